"""Which run a folder holds: recipe.json, compared before anything is trained there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lrdata.atomic import LOCK, write_json
from lrdata.errors import LongRecipeError
from lrdata.recipe import differences
from lrdata.shards import Shards
from lrtrain.model import model_fingerprint
from lrtrain.model_files import model_folder
from lrtrain.recipe import TrainRecipe

_OF_NO_MATTER = dict.fromkeys(
    (
        *("stages", "checkpoint_every", "keep_checkpoints", "offload", "tensorboard"),
        *("context_parallel", "data_parallel", "rank_timeout", "holdout_every", "holdout_rows"),
        *("device", "attention", "compile", "checkpointing"),
        *("mlp_tokens", "chunk_tokens", "micro_tokens"),
    )
)
"""Options in which two runs may differ and be the same: more stages of one recipe, for one; or
another machine, and what saves memory or time and changes no more than rounding."""


def claim(
    out: Path, recipe: TrainRecipe, model: str, shards: Shards, stop: Callable[[], bool]
) -> None:
    """Write recipe.json, or compare with the one that is there; `out` is locked.

    stop: asked when the base has been read, which takes minutes where it is large. Raises
    LongRecipeError for a folder of another run, or of something else.
    """
    wanted = {
        **recipe.as_json(),
        "model": model,
        "shards": [entry.sha256 for entry in shards.manifest.files],
    }
    path, there = out / "recipe.json", dict[str, Any]()
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        of_no_matter = {**_OF_NO_MATTER, "model_sha256": None, "shards": None}
        for found in differences(*({**one, **of_no_matter} for one in (there, wanted))):
            _refuse(out, found)
        if there.get("shards") != wanted["shards"]:
            _refuse(out, f"it trains on other shards than those in {shards.where}")
    elif any(not _is_ours(entry.name) for entry in out.iterdir()):
        raise LongRecipeError(f"{out} is not an empty folder; choose another --out")
    # Of what is there, whatever a hub calls it. Runs of before this was written have none.
    weights = model_fingerprint(str(model_folder(model)))
    if there.get("model_sha256", weights) != weights:
        _refuse(out, f"{model} had other weights or another config when it began")
    if stop():
        raise KeyboardInterrupt
    write_json(path, {**wanted, "model_sha256": weights})


def _is_ours(name: str) -> bool:
    """What is in the folder of a run that has not been claimed."""
    return name == LOCK or name.startswith(".recipe.json.")


def _refuse(out: Path, why: str) -> NoReturn:
    raise LongRecipeError(f"{out} holds another run ({why}); choose another --out")
