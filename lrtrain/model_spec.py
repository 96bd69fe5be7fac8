"""Models as a person writes them on a command line.

PATH                      a plain Hugging Face folder, or a hub id
NAME=PATH                 the same, under a name of your own
PATH@theta=8e6            with another RoPE, untrained: as `lrtrain run --rope` writes it
PATH@target=2048          with the RoPE of `--rope auto` for a window of 2,048 tokens
PATH@yarn,target=128k     both
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lrdata.errors import LongRecipeError
from lrdata.sizes import parse_count

_NAME = re.compile(r"([^=/\\@]+)=(.+)")
_ROPE = re.compile(r"(.+)@((?:theta|target)=[^@/]+|(?:auto|yarn|none)(?:,[^@/]+)?)")


@dataclass(frozen=True)
class ModelSpec:
    """What a person wrote, taken apart. `rope` is in the syntax of `lrtrain.rope.parse_rope`."""

    name: str
    path: str
    rope: str | None = None
    target_len: int | None = None


def parse_models(written: list[str]) -> list[ModelSpec]:
    """Take the arguments apart and give every model a short name of its own.

    The name is the last part of the path and the RoPE suffix, with as many parts before it as
    tell the models apart. Raises LongRecipeError when two have the same name.
    """
    if not written:
        raise LongRecipeError("no model to evaluate; name a Hugging Face folder or a hub id")
    given = [_parse(text) for text in written]
    names = _short_names([(path, suffix) for name, path, suffix in given if name is None])
    specs = []
    for name, path, suffix in given:
        rope, target_len = _parse_suffix(suffix)
        specs.append(ModelSpec(name or next(names), path, rope, target_len))
    taken = [spec.name for spec in specs]
    for name in taken:
        if taken.count(name) > 1:
            raise LongRecipeError(f"two models are called {name}; call one of them NAME=PATH")
    return specs


def _parse(text: str) -> tuple[str | None, str, str]:
    """(name or None, path, RoPE suffix or ""). A folder that exists as written is a path."""
    if Path(text).is_dir():
        return None, text, ""
    named = _NAME.fullmatch(text)
    # `meta/Llama@theta=8e6` has its only = after the @; `lr=1/merged@theta=8e6` is a folder's name.
    name, rest = (named[1], named[2]) if named else (None, text)
    roped = _ROPE.fullmatch(text)
    if named and roped and Path(roped[1]).is_dir():
        name, rest = None, text
    found = _ROPE.fullmatch(rest)
    if found and not Path(rest).is_dir():
        return name, found[1], found[2]
    return name, rest, ""


def _parse_suffix(suffix: str) -> tuple[str | None, int | None]:
    """(RoPE, target). Raises LongRecipeError for one that is said twice, or lacks its target."""
    rope, target_len = None, None
    for part in filter(None, suffix.split(",")):
        if (target_len if part.startswith("target=") else rope) is not None:
            raise LongRecipeError(f"@{suffix} says it twice; write one RoPE and one target")
        if part.startswith("target="):
            target_len = parse_count(part.removeprefix("target="))
        else:
            rope = part
    if rope in ("auto", "yarn") and target_len is None:
        raise LongRecipeError(f"@{suffix} needs a target; write @{rope},target=128k")
    return (rope or "auto") if suffix else None, target_len


def _short_names(paths: list[tuple[str, str]]) -> Iterator[str]:
    """One name for each (path, suffix), in order."""
    parts = []
    for path, _ in paths:
        folder = Path(path)
        whole = folder.resolve() if folder.is_dir() else folder
        parts.append([part for part in whole.parts if part not in ("/", "\\")] or [path])
    suffixes = [f"@{suffix}" if suffix else "" for _, suffix in paths]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-depth:]) + s for p, s in zip(parts, suffixes, strict=True)]
        if len(set(names)) == len(names):
            break
    return iter(names)
