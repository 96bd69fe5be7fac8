"""A dataset built again from what its manifest names, and compared with it.

    rebuilt = rebuild(Path("shards"), Path("again"), root=Path("/data"), tokenizer="./llama3-8b")
    rebuilt.equal  # every file has the bytes that the manifest says

A manifest holds the whole recipe, but of paths only the last part. Every corpus file, the tokenizer
and the scores must be those of the manifest, by their hashes, before anything is built. Of a part
(`lrdata pull --only`) the whole is built. A retargeted dataset is built for its first window in a
hidden folder beside the new one, which goes in the end.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lrdata.building import build
from lrdata.errors import LongRecipeError, one_line
from lrdata.manifest import MANIFEST, Manifest, read_manifest, shortened
from lrdata.recipe import BuildRecipe, differences, leads_elsewhere
from lrdata.retargeting import refuse_foreign, retarget
from lrdata.rules import window_len


@dataclass(frozen=True)
class Rebuilt:
    """What was built, beside the manifest it should equal. Files are lists of their names."""

    manifest: Manifest
    same: list[str]
    """Byte for byte."""
    same_content: list[str]
    """The same columns, in other bytes: what other versions of libraries may write."""
    other: list[str]
    """Other rows; or a file that only one of them has."""
    versions: list[str]
    """Libraries that have another version now."""

    @property
    def equal(self) -> bool:
        return not self.same_content and not self.other


def rebuild(
    folder: Path | str,
    out: Path | str,
    *,
    root: Path | str = ".",
    corpora: Sequence[str] = (),
    replay: Sequence[str] = (),
    tokenizer: str | None = None,
    impact: str | None = None,
    workers: int | None = None,
) -> Rebuilt:
    """Build the dataset in `folder` again, into `out`, and compare.

    Only the manifest of `folder` is read.

    Args:
        root: the folder that holds what the recipe names: corpora, replay, tokenizer, lexicon.
        corpora, replay, tokenizer, impact: where one of them is, if not there.

    Raises:
        LongRecipeError: as `build`; or `out` holds a dataset, or what is not ours, or a source is
            missing, or is not what the manifest says.
    """
    there, out = read_manifest(Path(folder)), Path(out)
    window = window_len(there)
    retargeted = window != there.target_len
    made = out.with_name(f".{out.name}.rebuild") if retargeted else out
    if (out / MANIFEST).exists():  # it would be compared, and nothing be built
        raise LongRecipeError(f"{out} holds a dataset already; choose another --out")
    if retargeted:  # before hours of building
        refuse_foreign(out)
    instead = {"corpora": corpora, "replay": replay, "tokenizer": tokenizer, "impact": impact}
    given = {name: value for name, value in instead.items() if value}
    try:
        recipe = recipe_of(there, Path(root), given)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise LongRecipeError(
            f"{folder}: its recipe is not one of lrdata build ({one_line(problem)}); it cannot be "
            "built again"
        ) from None
    manifest = build(recipe, made, workers=workers, like=there)
    if retargeted:
        manifest = retarget(made, there.target_len, out)
        shutil.rmtree(made)  # not before: after an interruption the same call goes on with it
    return compare(manifest, there)


def recipe_of(manifest: Manifest, root: Path, instead: Mapping[str, Any]) -> BuildRecipe:
    """The recipe of a manifest, with the paths of this machine."""
    raw = {**manifest.recipe, "target_len": window_len(manifest)}
    raw.pop("retargeted_from", None)
    unknown = set(raw) - {field.name for field in fields(BuildRecipe)}
    if unknown:
        raise LongRecipeError(
            f"the recipe has an option {min(unknown)!r}, which this version does not know; install "
            f"longrecipe {manifest.versions.get('longrecipe', 'of the build')}"
        )
    for name in ("corpora", "replay"):
        found = instead.get(name) or [_under(root, part) for part in raw[name]]
        raw[name] = tuple(map(str, found))
    kind, _, path = raw["impact"].partition(":")
    if "tokenizer" not in instead and _under(root, raw["tokenizer"]).exists():
        raw["tokenizer"] = str(root / raw["tokenizer"])
    if "impact" not in instead and kind in ("lexicon", "scores"):
        raw["impact"] = f"{kind}:{_under(root, path)}"
    for name in ("tokenizer", "impact"):
        raw[name] = instead.get(name, raw[name])
    return BuildRecipe(**raw)


def _under(root: Path, name: str) -> Path:
    """What a recipe names, which may be a stranger's: it must lie in `root`."""
    if leads_elsewhere(name):
        raise LongRecipeError(
            f"the recipe names {shortened(name)}, outside --root; say where it is: CORPORA, "
            "--replay, --tokenizer or --impact"
        )
    return root / name


def compare(made: Manifest, there: Manifest) -> Rebuilt:
    """File by file, in the order of `there`; those that it was pulled without, too.

    Only where it was retargeted after that, the hashes of these are not known, and they are passed
    over.
    """
    new = {entry.path: entry for entry in made.files}
    old = {entry.path: entry for entry in (*there.files, *there.left_out)}
    unknown = {entry.path for entry in there.left_out if not entry.sha256}
    same, content, other = [], [], []
    for path in dict.fromkeys([*old, *new]):
        if path in unknown and path in new:
            continue
        if path not in new or path not in old:
            other.append(path)
        elif new[path].sha256 == old[path].sha256:
            same.append(path)
        elif new[path].content_sha256 == old[path].content_sha256:
            content.append(path)
        else:
            other.append(path)
    return Rebuilt(made, same, content, other, differences(made.versions, there.versions))
