"""Where a build goes on: `<out>/.build`, and how its files get their final names.

    with Staging.open(out, identity, overwrite=False) as staging: ...
    staging.publish(moves, manifest)

The folder holds `recipe.json`, what must be equal for a build to go on here, and a folder for just
this recipe: whatever another build still writes, on a machine that does not know it was ended, is
not taken for ours. In it are the shards and receipts of finished units and, once all units are
done, `publish.json`: which file gets which final name, and the manifest. From then on a killed
build needs nothing but renames to be complete. The manifest comes last, so a folder with a manifest
is complete; the staging folder goes after it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrdata.atomic import (
    LOCK,
    clear,
    fsync,
    locked,
    remove_partials,
    write_json,
    write_text,
)
from lrdata.errors import LongRecipeError
from lrdata.layout import CARD, FOLDERS, PAGE, PICTURE, is_ours, is_partial
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
_UNITS = re.compile(r"units-[0-9a-f]{16}")
_LAYOUT = {f"layout of {STAGING}": 2}
"""In every recipe.json, which no other program's has. Before it units lay beside the recipe."""


@dataclass(frozen=True)
class Staging:
    """The staging folder of the dataset folder `out`, and in it that of the units of a recipe."""

    out: Path
    units: str = ""

    @property
    def root(self) -> Path:
        return self.out / STAGING

    @property
    def folder(self) -> Path:
        """Where units, their receipts and replay are written."""
        return self.root / self.units

    @classmethod
    @contextmanager
    def open(cls, out: Path, identity: dict[str, Any], overwrite: bool) -> "Iterator[Staging]":
        """The staging folder, new or of an earlier run, for this process alone.

        `overwrite`: remove what an earlier build left in `out`. Raises LongRecipeError where `out`
        holds another build or anything else, and where a build is running.
        """
        if out.exists() and not out.is_dir():
            raise LongRecipeError(f"{out} is a file; choose another --out")
        staging = cls(out, _units_name(identity))
        staging._refuse_foreign(overwrite)
        with locked(staging.root, out):
            staging._refuse_foreign(overwrite)  # another build may have come to its end since
            there = None if overwrite else staging._recipe()
            if there == _LAYOUT:
                raise LongRecipeError(
                    f"{out} is half removed, by an --overwrite that was ended; give --overwrite "
                    "again, or choose another --out"
                )
            if there is not None:
                refuse_other(out, there, {**_LAYOUT, **identity})
            if overwrite:
                staging._remove_build()
            staging.folder.mkdir(exist_ok=True)
            if there is None:
                write_json(staging.root / _RECIPE, {**_LAYOUT, **identity})
            clear(staging.root, keep=(_RECIPE, staging.units))
            remove_partials(staging.folder)
            yield staging

    def _recipe(self) -> dict[str, Any] | None:
        """What is built here, as far as it was a build of ours that said so."""
        try:
            raw = json.loads((self.root / _RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        ours = isinstance(raw, dict) and raw.keys() & {"version of longrecipe", *_LAYOUT}
        return raw if ours else None

    def is_foreign(self) -> bool:
        """Whether another program has a folder of this name: it holds what no build leaves."""
        try:
            found = list(self.root.iterdir())
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        return self._recipe() is None and any(
            path.name != LOCK and not is_partial(path) and not _UNITS.fullmatch(path.name)
            for path in found
        )

    def _refuse_foreign(self, overwrite: bool) -> None:
        """The recipe in the staging folder says that what is beside it is ours."""
        if self.is_foreign():
            raise LongRecipeError(
                f"{self.root} is another program's; choose another --out, or move it away"
            )
        others = self.out.exists() and any(path.name != STAGING for path in self.out.iterdir())
        if overwrite and (self.out / MANIFEST).exists():
            read_manifest(self.out)  # another program's stays, with all that is there
        elif others and self._recipe() is None:
            raise LongRecipeError(
                f"{self.out} holds no dataset of ours; --overwrite leaves it alone"
                if overwrite
                else f"{self.out} is not an empty folder; choose another --out, or --overwrite"
            )

    def finished_units(self) -> int:
        """How many units have a receipt."""
        return len(list(self.root.glob("units-*/unit-*.json")))

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
        """Empty the folder, which goes with its lock; the recipe, which says it is ours, last."""
        clear(self.root, keep=(_RECIPE,))
        (self.root / _RECIPE).unlink(missing_ok=True)

    def remove_rest(self) -> None:
        """Remove what a build that was killed when all was done but this left of the folder."""
        if self.root.exists() and not self.is_foreign():
            with suppress(LongRecipeError), locked(self.root, self.out):  # who has it removes it
                clear(self.root)

    def _remove_build(self) -> None:
        """Remove an earlier build, and nothing that is not ours. By a recipe, of no build, what is
        left is known to be ours until all is removed. The manifest goes first."""
        write_json(self.root / _RECIPE, _LAYOUT)
        for name in (MANIFEST, *CARD):
            (self.out / name).unlink(missing_ok=True)
        for name in FOLDERS:
            _remove_ours(self.out, self.out / name)
        clear(self.root, keep=(_RECIPE,))

    def discard_if_fruitless(self) -> None:
        """After an error in the input, leave nothing behind unless units are done."""
        if not self.finished_units() or not any(self.folder.glob("unit-*.parquet")):
            self.remove()


def _refuse_missing(file: Path, size: int | None) -> None:
    """`size`: its bytes, where they are known."""
    if not file.is_file() or size not in (None, file.stat().st_size):
        raise LongRecipeError(
            f"{file} is not as its unit wrote it, or not there; with --engine ray all machines "
            "need the same --out, else build again with --overwrite"
        )


def complete(out: Path, manifest: Manifest, figure: str | None = None) -> None:
    """Write the card, the catalogue entry and, last, the manifest of a dataset folder. figure: that
    the card shows."""
    remove_partials(out)  # of a run that was killed here
    write_text(out / "README.md", card(manifest, figure))
    write_json(out / "croissant.json", croissant(manifest))
    write_manifest(out, manifest)


def relicensed(manifest: Manifest, licences: Mapping[str, str]) -> Manifest:
    """The manifest with these licences, by source, beside those that it has of other sources. No
    row depends on them."""
    stated = {**manifest.recipe.get("licences", {}), **licences}
    sources = [replace(entry, licence=stated.get(entry.source)) for entry in manifest.sources]
    return replace(manifest, sources=sources, recipe={**manifest.recipe, "licences": stated})


def restate(out: Path, manifest: Manifest, stated: Manifest) -> None:
    """Complete a finished dataset anew with what is said of it now. For who has it `locked`.

    The page of its report goes: it names the licences of before, would be published with them, and
    rows have to be read to write it again (`lrdata report`). Raises LongRecipeError where somebody
    has written into its card.
    """
    path = out / CARD[0]
    there = path.read_text(encoding="utf-8") if path.exists() else card(manifest)
    both = (manifest, stated)  # the new one if this was killed before it wrote the manifest
    cards = {card(each, figure): figure for each in both for figure in (None, PICTURE)}
    if there not in cards:
        raise LongRecipeError(
            f"{path} is not as it was built, and would be written anew for other licences; move "
            "it away first"
        )
    (out / PAGE).unlink(missing_ok=True)  # first: no manifest stands beside a page of another
    complete(out, stated, cards[there])


def refuse_other(out: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise LongRecipeError, which names the difference, unless both are the same build."""
    found = differences(json.loads(json.dumps(there)), json.loads(json.dumps(identity)))
    if found:
        raise LongRecipeError(
            f"{out} holds another build ({found[0]}); choose another --out, or --overwrite"
        )


def _units_name(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return f"units-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _remove_ours(out: Path, folder: Path) -> None:
    """Remove a folder of a dataset, but for what a person put into it. Where it is a link, that
    alone: what it leads to lies elsewhere, and may be of another dataset."""
    if folder.is_symlink():
        folder.unlink()
        return
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    ours = [path for path in files if is_partial(path) or is_ours(path.relative_to(out).as_posix())]
    if len(ours) == len(files) and folder.is_dir():
        shutil.rmtree(folder)
    for path in ours:
        path.unlink(missing_ok=True)
