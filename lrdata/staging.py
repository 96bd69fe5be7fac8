"""Where a build goes on: `<out>/.build`, and how its files get their final names.

    with Staging.open(out, identity, overwrite=False) as staging: ...
    staging.publish(moves, manifest)

The folder holds `recipe.json`, what must be equal for a build to go on here, the shards and
receipts of finished units, and, once all units are done, `publish.json`: which file gets which
final name, and the manifest. From then on a killed build needs nothing but renames to be complete.
The manifest comes last, so a folder with a manifest is complete; the staging folder goes after it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrdata.atomic import fsync, locked, write_json, write_text
from lrdata.errors import LongRecipeError
from lrdata.layout import CARD, FOLDERS, is_ours, is_partial
from lrdata.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from lrdata.recipe import differences
from lrdata.report.card import card
from lrdata.report.croissant import croissant

STAGING = ".build"
_RECIPE, _PUBLISH = "recipe.json", "publish.json"


@dataclass(frozen=True)
class Staging:
    """The staging folder of the dataset folder `out`."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out / STAGING

    @classmethod
    @contextmanager
    def open(cls, out: Path, identity: dict[str, Any], overwrite: bool) -> "Iterator[Staging]":
        """The staging folder, new or of an earlier run, for this process alone.

        `overwrite`: remove what an earlier build left in `out`. Raises LongRecipeError where `out`
        holds another build or anything else, and where a build is running.
        """
        if out.exists() and not out.is_dir():
            raise LongRecipeError(f"{out} is a file; choose another --out")
        staging = cls(out)
        staging._refuse_foreign(overwrite)
        staging.folder.mkdir(parents=True, exist_ok=True)
        with locked(staging.folder, out):
            try:
                staging._refuse_foreign(overwrite)
            except LongRecipeError:  # another build has come to its end since
                staging.folder.rmdir()
                raise
            recipe = staging.folder / _RECIPE
            if overwrite:
                staging._remove_build()
            if recipe.exists():
                refuse_other(out, json.loads(recipe.read_text(encoding="utf-8")), identity)
            else:
                write_json(recipe, identity)
            yield staging

    def _refuse_foreign(self, overwrite: bool) -> None:
        """Before the staging folder is there, which says that what is beside it is ours."""
        others = self.out.exists() and any(path.name != STAGING for path in self.out.iterdir())
        if overwrite and (self.out / MANIFEST).exists():
            read_manifest(self.out)  # another program's stays, with all that is there
        elif overwrite and others and not self.folder.exists():
            raise LongRecipeError(
                f"{self.out} holds no dataset of ours; --overwrite leaves it alone"
            )
        elif not overwrite and others and not (self.folder / _RECIPE).exists():
            raise LongRecipeError(
                f"{self.out} is not an empty folder; choose another --out, or --overwrite"
            )

    def finished_units(self) -> int:
        """How many units have a receipt."""
        return len(list(self.folder.glob("unit-*.json")))

    def published(self) -> Manifest | None:
        """The manifest of a build that was killed while its files got their names, now complete."""
        plan = self.folder / _PUBLISH
        if not plan.exists():
            return None
        raw = json.loads(plan.read_text(encoding="utf-8"))
        manifest = parse_manifest(raw["manifest"])
        self._finish(raw["moves"], manifest)
        return manifest

    def publish(self, moves: dict[str, str], manifest: Manifest) -> None:
        """Give files (names in the staging folder) their names in the dataset, and complete it."""
        write_json(self.folder / _PUBLISH, {"moves": moves, "manifest": asdict(manifest)})
        self._finish(moves, manifest)

    def refuse_missing(self, entries: Iterable[FileEntry]) -> None:
        """Raise LongRecipeError, which names the file, unless all that units say they wrote is in
        the folder: a machine that does not share it has a folder of that name of its own."""
        for entry in entries:
            _refuse_missing(self.folder / entry.path, entry.bytes)

    def _finish(self, moves: dict[str, str], manifest: Manifest) -> None:
        sizes = {entry.path: entry.bytes for entry in manifest.files}
        for made, final in moves.items():
            moved = not (self.folder / made).exists()  # an earlier run came to here
            _refuse_missing(self.out / final if moved else self.folder / made, sizes.get(final))
        for made, final in moves.items():
            target = self.out / final
            target.parent.mkdir(exist_ok=True)
            if (self.folder / made).exists():
                os.replace(self.folder / made, target)
        for folder in {(self.out / final).parent for final in moves.values()}:
            fsync(folder)
        complete(self.out, manifest)
        self.remove()

    def remove(self) -> None:
        """Remove the folder; the recipe, which says it is ours, last."""
        self._clear()
        self.folder.rmdir()

    def _clear(self) -> None:
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == _RECIPE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove_build(self) -> None:
        """Remove an earlier build, and nothing that is not ours. The manifest goes first; the
        staging folder, which is locked, and by which the others are known to be ours, stays."""
        for name in (MANIFEST, *CARD):
            (self.out / name).unlink(missing_ok=True)
        for name in FOLDERS:
            _remove_ours(self.out, self.out / name)
        self._clear()

    def discard_if_fruitless(self) -> None:
        """After an error in the input, leave nothing behind unless units are done."""
        if not self.finished_units() or not any(self.folder.glob("unit-*.parquet")):
            self.remove()
            if not any(self.out.iterdir()):
                self.out.rmdir()


def _refuse_missing(file: Path, size: int | None) -> None:
    """`size`: its bytes, where they are known."""
    if not file.is_file() or size not in (None, file.stat().st_size):
        raise LongRecipeError(
            f"{file} is not as its unit wrote it, or not there; with --engine ray all machines "
            "need the same --out, else build again with --overwrite"
        )


def complete(out: Path, manifest: Manifest) -> None:
    """Write the card, the catalogue entry and, last, the manifest of a dataset folder."""
    for partial in out.glob(".*.partial"):  # of a run that was killed here
        partial.unlink()
    write_text(out / "README.md", card(manifest))
    write_json(out / "croissant.json", croissant(manifest))
    write_manifest(out, manifest)


def refuse_other(out: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise LongRecipeError, which names the difference, unless both are the same build."""
    found = differences(json.loads(json.dumps(there)), json.loads(json.dumps(identity)))
    if found:
        raise LongRecipeError(
            f"{out} holds another build ({found[0]}); choose another --out, or --overwrite"
        )


def _remove_ours(out: Path, folder: Path) -> None:
    """Remove a folder of a dataset, but for what a person put into it."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    ours = [path for path in files if is_partial(path) or is_ours(path.relative_to(out).as_posix())]
    if len(ours) == len(files) and folder.is_dir():
        shutil.rmtree(folder)
    for path in ours:
        path.unlink(missing_ok=True)
