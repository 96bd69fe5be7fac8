"""The command that comes next, as the last line of one that is done prints it."""

import shlex
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lrdata.sizes import format_tokens

if TYPE_CHECKING:
    from lrtrain.recipe import TrainRecipe

_STEP = 4
"""Each context length that is measured is so many times the one before."""


def run_command(shards: Path | str, model: str, recipe: "TrainRecipe") -> str:
    """`lrtrain run` with the options of a recipe, but for those at their defaults."""
    words = ["lrtrain", "run", str(shards), "--model", model, "--out", "RUN"]
    for option in fields(recipe):
        value = getattr(recipe, option.name)
        if value != option.default:
            words.append(f"--{option.name.replace('_', '-')}")
            if value is not True:
                words.append(",".join(value) if isinstance(value, tuple) else str(value))
    return shlex.join(words)


def eval_command(base: str, made: Path, eot: str | None = None) -> str:
    """`lrtrain eval` of a model, from the window of its base to its own: beside the base, also with
    the RoPE that training began with, untrained. eot: where the tokenizer names none."""
    from lrtrain.model import load_config
    from lrtrain.rope import rope_between

    configs = [load_config(str(one)) for one in (base, made)]
    window, target = (config.max_position_embeddings for config in configs)
    models, lengths = [f"base={base}"], [min(window, target)]
    if window < target:
        rope = rope_between(*configs)
        chosen = "" if rope == "auto" else f"{rope},"
        models.append(f"{base}@{chosen}target={_written(target)}")
        while _STEP * lengths[-1] < target:
            lengths.append(_STEP * lengths[-1])
        lengths.append(target)
    words = ["lrtrain", "eval", *models, str(made), "--lengths", ",".join(map(_written, lengths))]
    words += ["--eot", eot] if eot else []
    words += [] if find_spec("matplotlib") else ["--no-plots"]
    return shlex.join(words)


def _written(tokens: int) -> str:
    return format_tokens(tokens).replace(",", "")
