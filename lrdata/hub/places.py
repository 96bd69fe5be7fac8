"""Where datasets lie: `owner/name`, `hf://datasets/owner/name[@revision]`, or a folder.

A name that starts with `.`, `/`, `~` or `file:`, or that is a folder here, is a folder; every other
one is a dataset repository of the Hugging Face Hub.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from lrdata.errors import LongRecipeError
from lrdata.manifest import LARGEST_MANIFEST, MANIFEST, FileEntry, Manifest
from lrdata.progress import Task
from lrdata.shards import file_sha256
from lrdata.verifying import manifest_problems
from lrdata.visible import visible

_REPOSITORY = re.compile(r"(hf://datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>.+?))?/?")


@dataclass(frozen=True)
class HubAddress:
    """A dataset repository of the Hub. revision: a branch, tag or commit; None is the main one."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Held:
    """A file that lies at a place. sha256: where the place tells it, as for all large files of the
    Hub; blob: git's hash, where there is one; file: itself, where it is on this disk."""

    size: int
    sha256: str | None = None
    blob: str | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Sent:
    """A file to push: its name in the dataset, with slashes, and where it lies."""

    path: str
    file: Path
    size: int
    sha256: str

    def is_held(self, held: Held | None) -> bool:
        """Whether the same bytes are there already."""
        if held is None or held.size != self.size:
            return False
        if held.sha256 or held.file:
            return self.sha256 == (held.sha256 or (held.file and file_sha256(held.file)))
        return held.blob == _git_blob(self.file)

    def changed(self) -> LongRecipeError:
        """What to raise where the bytes that were sent are others than were checked."""
        return LongRecipeError(
            f"{self.file} was changed while it was pushed; run the same command again"
        )


class Place(Protocol):
    """Something that datasets are pulled from and pushed to."""

    @property
    def address(self) -> str:
        """As it is typed and printed."""

    def held(self) -> Mapping[str, Held]:
        """The files that lie there, by name."""

    def fetch(self, path: str, into: Path) -> None:
        """Copy a file to `into / path`, all of it or nothing."""

    def writing(self, private: bool) -> AbstractContextManager[None]:
        """While it is written, from when it is there and may be; refused where it may not."""

    def remove(self, paths: Sequence[str], message: str) -> None:
        """Remove files, all at once where that is possible."""

    def add(self, files: Sequence[Sent], message: str, task: Task) -> None:
        """Add or replace files, all at once where that is possible; `task` counts bytes."""


def parse_place(where: str, revision: str | None = None) -> Path | HubAddress:
    """What a name stands for. Raises LongRecipeError where it cannot be meant."""
    folder = _folder(where)
    if folder is not None:
        if revision is not None:
            raise LongRecipeError(f"{where} is a folder, which has no --revision {revision}")
        return folder
    parts = _REPOSITORY.fullmatch(where)
    if not parts:
        raise LongRecipeError(
            f"{where} names no dataset; write owner/name or hf://datasets/owner/name for one of "
            "the Hub, ./name for a folder"
        )
    named = unquote(parts["revision"] or "") or None
    if named and revision and named != revision:
        raise LongRecipeError(f"{where} and --revision {revision} are two revisions; name one")
    return HubAddress(parts["repo"], named or revision)


def _folder(where: str) -> Path | None:
    if where.startswith("file:"):
        path = unquote(where.removeprefix("file:"))
        return Path(path.removeprefix("//") if path.startswith("///") else path).expanduser()
    named = where.startswith((".", "/", "~"))
    found = named or (where and Path(where).is_dir())
    return Path(where).expanduser() if found else None


def refuse_without_manifest(address: str, held: Mapping[str, Held]) -> None:
    """A place without a manifest holds no whole dataset."""
    there = held.get(MANIFEST)
    if there is None:
        raise LongRecipeError(
            f"{address} is no dataset of ours: it has no {MANIFEST}, which is pushed last; check "
            "the name, or push it again"
        )
    if there.size > LARGEST_MANIFEST:
        raise LongRecipeError(
            f"{address}: {MANIFEST} has {there.size:,} bytes, too many to be one; not read"
        )


def refuse_wrong(address: str, manifest: Manifest, held: Mapping[str, Held]) -> None:
    """Everything about a manifest that can be known to be wrong before a shard is there."""
    for problem in manifest_problems(manifest):
        raise LongRecipeError(f"{address} is damaged: {visible(problem)}; have it pushed again")
    for entry in manifest.files:
        _refuse_unlike(address, entry, held)


def _refuse_unlike(address: str, entry: FileEntry, held: Mapping[str, Held]) -> None:
    """What a place says of a shard must be what the manifest says."""
    there = held.get(entry.path)
    if there is None:
        raise LongRecipeError(
            f"{address}: {entry.path} is named by the manifest but missing; have it pushed again"
        )
    if there.size != entry.bytes:
        raise LongRecipeError(
            f"{address}: {entry.path} has {there.size} bytes, the manifest says {entry.bytes}; "
            "push it again"
        )
    if there.sha256 and there.sha256 != entry.sha256:
        raise LongRecipeError(
            f"{address}: {entry.path} does not have the sha256 of the manifest; have it pushed "
            "again"
        )


def _git_blob(file: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with open(file, "rb") as stream:
        while data := stream.read(1024**2):
            digest.update(data)
    return digest.hexdigest()
