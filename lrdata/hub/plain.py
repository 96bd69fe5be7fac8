"""A plain folder as a place for a dataset: a disk to carry, a share, a bucket that is mounted."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrdata.atomic import fsync, replacing
from lrdata.errors import LongRecipeError
from lrdata.hub.places import Held, Sent
from lrdata.manifest import MANIFEST, safe_path
from lrdata.progress import Task
from lrdata.shards import KINDS

OURS = (*KINDS, "quarantine", "report", "README.md", "croissant.json", MANIFEST)


class PlainFolder:
    """The files of a folder. Links in it may not lead out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        return str(self.root)

    def held(self) -> Mapping[str, Held]:
        found = {}
        for name in OURS:
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

    def prepare(self, private: bool) -> None:
        if private:
            raise LongRecipeError(f"{self.root} is a folder; --private is for the Hub")
        if self.root.exists() and not self.root.is_dir():
            raise LongRecipeError(f"{self.root} is a file; choose another folder")
        if self.root.exists() and not (self.root / MANIFEST).exists():
            for entry in self.root.iterdir():
                if entry.name not in OURS and not entry.name.endswith(".partial"):
                    raise LongRecipeError(
                        f"{self.root} holds {entry.name}, which is not of a dataset; choose an "
                        "empty folder"
                    )
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in (self.root, *(self.root / name for name in OURS)):
            for partial in folder.glob(".*.partial"):  # of a push that was killed
                partial.unlink()

    def remove(self, paths: Sequence[str], message: str) -> None:
        for path in sorted(paths, key=lambda path: path != MANIFEST):  # the manifest first
            file = safe_path(self.root, path)
            file.unlink(missing_ok=True)
            fsync(file.parent)

    def add(self, files: Sequence[Sent], message: str, task: Task) -> None:
        for sent in files:
            with replacing(safe_path(self.root, sent.path)) as partial:
                shutil.copyfile(sent.file, partial)
            task.advance(sent.size, note=sent.path)


def refuse_leaving(root: Path, file: Path) -> None:
    """A link that leads out of a folder gives away, or brings in, what is not of the dataset."""
    if not file.resolve().is_relative_to(root.resolve()):
        raise LongRecipeError(
            f"{file} is a link to a file outside of {root}; put the file itself there"
        )
