"""Opening a run: all that can be refused is refused here, before the first step."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.recipe import differences
from lrdata.shards import Shards, file_sha256
from lrdata.tokenizer import Tokenizer
from lrtrain.checkpoint import Checkpoints
from lrtrain.distributed import Ranks
from lrtrain.metrics import summary_writer
from lrtrain.model import (
    check_architecture,
    check_extensible,
    check_vocabulary,
    choose_device,
    load_config,
    open_weights,
)
from lrtrain.model_files import model_folder, sampled_fingerprint
from lrtrain.moments import need_bitsandbytes
from lrtrain.plan import check_memory
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import parse_rope
from lrtrain.weights import NEED_LSD

FOLDERS = {"extend": "extend", "anneal": "anneal", "merge": "merged"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """An opened run: everything that was checked before the first step."""

    out: Path
    model: str
    shards: Shards
    recipe: TrainRecipe
    say: Say
    ranks: Ranks
    device: torch.device

    def folder(self, stage: str) -> Path:
        return self.out / FOLDERS[stage]

    def is_done(self, stage: str) -> bool:
        return self.folder(stage).exists()

    def is_left_out(self, stage: str) -> bool:
        """Of a dataset without rows for it."""
        return stage == "anneal" and not self.shards.rows("replay")


def open_run(
    folder: Path | str, model: str, out: Path, recipe: TrainRecipe, say: Say, ranks: Ranks
) -> Run:
    shards = open_dataset(folder)
    parse_rope(recipe.rope)
    if recipe.tensorboard:
        summary_writer()
    device = choose_device(recipe.device) if ranks.size == 1 else ranks.device
    if recipe.moments == "8bit":
        need_bitsandbytes(device)
    config = load_config(model)
    check_architecture(config, model)
    check_extensible(config, model, shards.target_len)
    check_tokenizer(shards, model, config)
    if "extend" in recipe.stages and not shards.rows("extend"):
        raise LongRecipeError(f"{folder} holds no extend rows; build it again")
    if recipe.stages == ("anneal",) and not shards.rows("replay"):
        raise LongRecipeError(f"{folder} holds no replay rows to anneal on; build with --replay")
    if device.type == "cuda" and ranks.size == 1:  # elsewhere it is not what a run fails by
        say(_memory(shards, config, recipe, device))
    opened = Run(out, model, shards, recipe, say, ranks, device)
    _check_order(opened)
    if not shards.remote:  # there each is checked when it is fetched
        _check_files(shards, ranks)
    if "extend" in recipe.stages:
        _check_weights(shards, recipe.token_weights)
    tensors = open_weights(model, config)
    if ranks.first:
        tensors.check_tied()
    return opened


def _memory(shards: Shards, config: Any, recipe: TrainRecipe, device: torch.device) -> str:
    """A prediction, which refuses nothing."""
    try:
        return f"memory: {check_memory(shards, config, recipe, device)}"
    except LongRecipeError as problem:
        return f"memory: {problem}"


def check_tokenizer(shards: Shards, model: str, config: Any) -> None:
    """The model's tokenizer must be the one the shards were built with, and have embeddings."""
    tokenizer = Tokenizer.load(model, eot=shards.manifest.recipe.get("eot"), encoder="tokenizers")
    if tokenizer.fingerprint != shards.fingerprint:
        raise LongRecipeError(
            f"{model} has another tokenizer than the shards in {shards.where} (built with "
            f"{shards.manifest.tokenizer.name}); build them with --tokenizer {model}"
        )
    check_vocabulary(tokenizer, config.vocab_size, model)


def _check_order(opened: Run) -> None:
    """A stage that starts from another needs that one, here or now, and is not older."""
    stages = opened.recipe.stages
    to_do = [name for name in stages if not (opened.is_done(name) or opened.is_left_out(name))]
    if to_do == ["merge"] and opened.is_done("anneal"):  # which is all that it takes
        return
    if "extend" not in stages and to_do and not opened.is_done("extend"):
        raise LongRecipeError(
            f"--stages {','.join(stages)} starts from {opened.folder('extend')}, which is not "
            "there; run the extend stage first"
        )
    for stage in to_do:
        later = list(FOLDERS)[list(FOLDERS).index(stage) + 1 :]
        made = [opened.folder(name) for name in later if opened.is_done(name)]
        begun = [one.folder for name in later for one in Checkpoints(opened.out, name, 1).all()]
        stale = " and ".join(map(str, [*made, *begun]))
        if stale:
            raise LongRecipeError(
                f"made before the {stage} stage, which would run now: {stale}; remove that, to "
                f"have it made from {opened.folder(stage)}, or leave the stage out of --stages"
            )


def _check_files(shards: Shards, ranks: Ranks) -> None:
    """A damaged shard stops the run by its name, before the first step; each rank looks at some, so
    that each host looks at all: it may have a copy of its own."""
    number, of = ranks.rank, ranks.size
    if "LOCAL_WORLD_SIZE" in os.environ:  # as torchrun says
        number, of = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    for entry in shards.manifest.files[number::of]:
        if file_sha256(shards.path(entry)) != entry.sha256:
            raise LongRecipeError(
                f"{shards.path(entry)} does not have the checksum of the manifest; pull or build "
                "the dataset again"
            )


def _check_weights(shards: Shards, weights: str) -> None:
    """The extend rows must say what the weights are made of."""
    if weights == "impact" and shards.manifest.recipe["impact"] == "none":
        raise LongRecipeError(
            f"--token-weights impact: {shards.where} was built with --impact none and has no "
            "impactful tokens; build it with another --impact"
        )
    if weights in NEED_LSD and not shards.manifest.ledger.scored:
        raise LongRecipeError(
            f"--token-weights {weights}: no token of {shards.where} has an lsd; build the dataset "
            "with --impact scores:DIR, DIR from `lrtrain score` of this corpus without --long-model"
        )


def refuse_unlike_ranks(opened: Run) -> None:
    """All ranks must train the same: each host has been started by itself, and may have copies of
    its own of the model and the shards."""
    ranks = opened.ranks
    if ranks.size == 1:
        return
    files = "".join(entry.sha256 for entry in opened.shards.manifest.files)
    own = {
        **opened.recipe.as_json(),
        "shards": hashlib.sha256(files.encode()).hexdigest()[:16],
        "model": ranks.agree(lambda: sampled_fingerprint(model_folder(opened.model))),
        "torch": torch.__version__,
    }
    said = ranks.exchange(own)
    for rank, other in enumerate(said):
        if found := differences(said[0], other):
            ranks.fail(
                f"rank {rank} was given something else than the first ({found[0]}); all ranks need "
                "the same options, model, shards and versions"
            )
