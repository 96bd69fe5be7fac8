"""`--config FILE`: options from a file, as if they were written on the command line.

    corpora: [books/, web/*.jsonl.zst]      # YAML or JSON; names of options, with - or _
    tokenizer: ./llama3-8b
    target-len: 128k

What is written on the command line comes first. A dataset's manifest.json and a run's recipe.json
are such files too: the same options again. They may be a stranger's, so of these only what makes
the recipe is taken, which the command names; where to write, or whether to write over what is
there, is for a person to say. Paths count from where the command runs.
"""

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lrdata.errors import LongRecipeError

_OTHER_NAMES = {"weights": "weight", "licences": "licence", "license": "licence"}
"""What recipes call options that the command line repeats."""


_STORED = ("manifest.json", "recipe.json")
_IS_STORED = f"{__name__}: stored"
"""In a context: whether a program wrote what `--config` names."""


def config_option(
    recipe: Callable[[], Collection[str]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--config` to a command. recipe: the names that a manifest or a run's recipe may set."""

    def use(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is not None:
            given, stored = read_options(path)
            context.meta[_IS_STORED] = stored
            allowed = recipe() if stored else None
            context.default_map = defaults_of(given, context.command.params, path, allowed)

    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,  # before the options it stands for
        expose_value=False,
        callback=use,
        help="Options from a YAML or JSON file, by their names; also from a manifest.json or "
        "recipe.json. Those on the command line come first.",
    )


def is_stored(context: click.Context, parameter: str) -> bool:
    """Whether the value of a parameter is of a manifest or a run's recipe: no person wrote it."""
    written = context.get_parameter_source(parameter) is not ParameterSource.DEFAULT_MAP
    return bool(context.meta.get(_IS_STORED)) and not written


def read_options(path: Path) -> tuple[dict[str, Any], bool]:
    """What a file says of options: name -> value as YAML has it; and whether a program wrote it,
    as a manifest or a run's recipe. Raises LongRecipeError."""
    try:
        raw = _parsed(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        where = " ".join(str(problem).split())
        raise LongRecipeError(f"{path} is not YAML or JSON ({where})") from None
    stored = path.name in _STORED
    if isinstance(raw, dict) and isinstance(raw.get("recipe"), dict):  # a manifest
        from lrdata.recipe import without_derived  # which imports numpy: too much for --help

        raw, stored = dict(raw["recipe"]), True
        raw["target_len"] = raw.pop("retargeted_from", raw.get("target_len"))
        raw = without_derived(raw)
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise LongRecipeError(f"{path} does not hold options; write lines like target-len: 128k")
    if isinstance(raw.get("shards"), list):  # a run's recipe.json: hashes, no folder
        del raw["shards"]
        raw.pop("model_sha256", None)
        stored = True
    return raw, stored


def _parsed(text: str) -> Any:
    """JSON, which manifests are, is read a hundred times faster by what reads nothing else."""
    try:
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise ValueError(str(problem)) from None


def defaults_of(
    given: Mapping[str, Any],
    parameters: list[click.Parameter],
    path: Path,
    allowed: Collection[str] | None = None,
) -> dict[str, Any]:
    """Values for the parameters of a command, as click takes them from a command line.

    allowed: the names that may be given, as recipes have them; None: all of the command's.
    """
    known = {str(parameter.name): parameter for parameter in parameters}
    found = {}
    for written, value in given.items():
        name = written.replace("-", "_")
        name = _OTHER_NAMES.get(name, name)
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise LongRecipeError(f"{path}: this command has no option {written!r}{hint}")
        if allowed is not None and written not in allowed:
            raise LongRecipeError(
                f"{path}: {written!r} is not of a recipe; write it on the command line, if you "
                "want it"
            )
        if value is not None:
            found[name] = _as_written(value, known[name])
    return found


def _as_written(value: Any, parameter: click.Parameter) -> Any:
    several = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list):
        words = [str(item) for item in value]
        return words if several else ",".join(words)
    if isinstance(value, bool):
        return value
    return [str(value)] if several else str(value)
