"""A dataset built again from what its manifest names, and compared with it.

    rebuilt = rebuild(Path("shards"), Path("again"), root=Path("/data"), tokenizer="./llama3-8b")
    rebuilt.equal  # every file has the bytes that the manifest says

A manifest holds the whole recipe, but of paths only the last part. Every corpus file, the tokenizer
and the scores must be those of the manifest, by their hashes, before anything is built.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lrdata.building import build
from lrdata.errors import LongRecipeError, one_line
from lrdata.manifest import Manifest, read_manifest
from lrdata.recipe import BuildRecipe, differences
from lrdata.retargeting import retarget
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
        LongRecipeError: as `build`; or a source is missing, or is not what the manifest says.
    """
    there, out = read_manifest(Path(folder)), Path(out)
    instead = {"corpora": corpora, "replay": replay, "tokenizer": tokenizer, "impact": impact}
    given = {name: value for name, value in instead.items() if value}
    try:
        recipe = recipe_of(there, Path(root), given)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise LongRecipeError(
            f"{folder}: its recipe is not one of lrdata build ({one_line(problem)}); it cannot be "
            "built again"
        ) from None
    window = window_len(there)
    made = out
    if window != there.target_len:
        made = out.with_name(f"{out.name}-{window}")
    manifest = build(recipe, made, workers=workers, like=there)
    if made != out:
        manifest = retarget(made, there.target_len, out)
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
    kind, _, path = raw["impact"].partition(":")
    for name in ("corpora", "replay"):
        raw[name] = tuple(instead.get(name, [str(root / part) for part in raw[name]]))
    if (root / raw["tokenizer"]).exists():
        raw["tokenizer"] = str(root / raw["tokenizer"])
    if kind in ("lexicon", "scores"):
        raw["impact"] = f"{kind}:{root / path}"
    for name in ("tokenizer", "impact"):
        raw[name] = instead.get(name, raw[name])
    return BuildRecipe(**raw)


def compare(made: Manifest, there: Manifest) -> Rebuilt:
    """File by file, in the order of `there`."""
    new, old = ({entry.path: entry for entry in each.files} for each in (made, there))
    same, content, other = [], [], []
    for path in dict.fromkeys([*old, *new]):
        if path not in new or path not in old:
            other.append(path)
        elif new[path].sha256 == old[path].sha256:
            same.append(path)
        elif new[path].content_sha256 == old[path].content_sha256:
            content.append(path)
        else:
            other.append(path)
    return Rebuilt(made, same, content, other, differences(made.versions, there.versions))
