"""A dataset of the Hub, opened for reading: the manifest now, a shard when a row of it is read.

Shards come through the client's own cache, so a second run fetches nothing; each is checked by its
sha256 when its first row is read, as those of a folder are. While its rows are read the next shard
of its kind is fetched beside.
"""

import threading
from contextlib import suppress
from pathlib import Path

from lrdata.errors import LongRecipeError
from lrdata.hub.places import HubAddress, parse_place, refuse_without_manifest, refuse_wrong
from lrdata.hub.repository import Repository
from lrdata.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from lrdata.shards import Shards


class HubShards(Shards):
    """Shards whose files are fetched when they are needed, all of one commit."""

    remote = True
    remedy = "remove it from the cache and run the same command again"

    def __init__(self, repository: Repository, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, manifest)
        self._repository = repository
        self._here: dict[str, Path] = {}
        self._asked: set[str] = set()

    @property
    def where(self) -> str:
        return self._repository.address

    def path(self, entry: FileEntry) -> Path:
        """The file in the cache, fetched if it is not there."""
        if entry.path not in self._here:
            self._here[entry.path] = self._repository.cached(entry.path)
            self._fetch_next(entry)
        return self._here[entry.path]

    def _fetch_next(self, entry: FileEntry) -> None:
        """Begin to fetch the shard after this one. The client lets a file be fetched once at a
        time, so whoever needs it meanwhile waits for this."""
        files = self.files(entry.kind)
        following = files[files.index(entry) + 1 :][:1]
        if following and following[0].path not in self._asked | self._here.keys():
            self._asked.add(following[0].path)
            threading.Thread(
                target=self._fetch_quietly, args=following, name="next shard", daemon=True
            ).start()

    def _fetch_quietly(self, entry: FileEntry) -> None:
        with suppress(LongRecipeError, OSError):  # said when the shard is needed
            self._repository.cached(entry.path)


def open_on_hub(address: str) -> HubShards:
    """Open the dataset at `hf://datasets/owner/name[@revision]`.

    Raises LongRecipeError when there is none that this version reads, or when the repository has
    other files than its manifest says.
    """
    place = parse_place(address) if address.startswith("hf://") else None
    if not isinstance(place, HubAddress):
        raise LongRecipeError(
            f"{address} is not a dataset's address; write hf://datasets/owner/name, or a folder"
        )
    repository = Repository(place)
    held = repository.held()
    refuse_without_manifest(address, held)
    folder = repository.cached(MANIFEST).parent
    manifest = read_manifest(folder)
    refuse_wrong(address, manifest, held)
    return HubShards(repository, folder, manifest)
