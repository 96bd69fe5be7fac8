"""A plain folder as a place for a dataset: a disk to carry, a share, a bucket that is mounted.

While it is written it has a hidden folder, `.push`: by it what a push that was killed left there is
known to be ours, and two pushes at once are kept apart. It goes with a push that was refused before
it wrote anything.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lrdata.atomic import locked, remove_file, remove_partials, replacing
from lrdata.errors import LongRecipeError
from lrdata.hub.places import Held, Sent
from lrdata.layout import CARD, FOLDERS
from lrdata.manifest import MANIFEST, refuse_leaving, safe_path
from lrdata.progress import Task
from lrdata.shards import file_sha256

STAGING, _BEGUN = ".push", "begun"


class PlainFolder:
    """The files of a folder. Links in it may not lead out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._begun = root / STAGING / _BEGUN

    @property
    def address(self) -> str:
        return str(self.root)

    def held(self) -> Mapping[str, Held]:
        found = {}
        for name in (*FOLDERS, *CARD, MANIFEST):
            top = self.root / name
            for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
                path = file.relative_to(self.root)
                if file.is_file() and not any(part.startswith(".") for part in path.parts):
                    refuse_leaving(self.root, file)
                    found[path.as_posix()] = Held(file.stat().st_size, file=file)
        return found

    def fetch(self, path: str, into: Path) -> None:
        with replacing(into / path) as partial:
            shutil.copyfile(safe_path(self.root, path), partial)

    @contextmanager
    def writing(self, private: bool) -> Iterator[None]:
        if private:
            raise LongRecipeError(f"{self.root} is a folder; --private is for the Hub")
        staging = self._begun.parent
        self._refuse_foreign(staging)
        begun = staging.exists()
        with locked(staging, self.root):
            if begun:
                self._begun.touch()
            for folder in (self.root, *(self.root / name for name in FOLDERS)):
                remove_partials(folder)  # of a push that was killed
            yield
            self._begun.unlink(missing_ok=True)

    def _refuse_foreign(self, staging: Path) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise LongRecipeError(f"{self.root} is a file; choose another folder")
        ours = staging.exists() or (self.root / MANIFEST).exists()
        if self.root.exists() and not ours and any(self.root.iterdir()):
            raise LongRecipeError(f"{self.root} holds files and no dataset; choose an empty folder")

    def remove(self, paths: Sequence[str], message: str) -> None:
        self._begun.touch()
        for path in sorted(paths, key=lambda path: path != MANIFEST):  # the manifest first
            remove_file(safe_path(self.root, path))

    def add(self, files: Sequence[Sent], message: str, task: Task) -> None:
        self._begun.touch()
        for sent in files:
            with replacing(safe_path(self.root, sent.path)) as partial:
                shutil.copyfile(sent.file, partial)
                if file_sha256(partial) != sent.sha256:
                    raise sent.changed()
            task.advance(sent.size, note=sent.path)
