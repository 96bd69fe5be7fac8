"""A recipe as the command line that means it."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from lrdata.recipe import WRITTEN, BuildRecipe
from lrdata.visible import visible

_UNWRITTEN = ("corpora", "encoder", "unit_bytes")


def build_command(recipe: Mapping[str, Any]) -> list[str]:
    """`lrdata build`, in parts that each fit on a line; options at their default are left out.

    `recipe` is what `BuildRecipe.portable` gives.
    """
    parts = [" ".join(["lrdata build", *words(map(_path, recipe.get("corpora", ())))])]
    for option in fields(BuildRecipe):
        value = recipe.get(option.name)
        if option.name in _UNWRITTEN or value is None or value == _default(option):
            continue
        parts += _option(option.name, value)
    return [*parts, "--out FOLDER"]


def words(values: Iterable[Any]) -> list[str]:
    """Words of a shell command; line ends and fences would break a code block that holds them."""
    lines = (" ".join(str(value).replace("```", "").split()) for value in values)
    return [shlex.quote(visible(line)) for line in lines]


def _path(corpus: Any) -> str:
    """A path that does not look like an option."""
    return f"./{corpus}" if str(corpus).startswith("-") else str(corpus)


def _default(option: Any) -> Any:
    if option.default_factory is not MISSING:
        return option.default_factory()
    return list(option.default) if isinstance(option.default, tuple) else option.default


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + WRITTEN.get(name, name).replace("_", "-")
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    return [f"{flag} {word}" for word in words(value if isinstance(value, list) else [value])]
