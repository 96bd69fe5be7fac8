"""extend -> anneal -> merge: a run folder from shards and a base model.

    RUN/recipe.json      what was asked for      RUN/extend/   the extended model
    RUN/metrics.jsonl    a line a step           RUN/anneal/   the same after replay
    RUN/loss.png         the same as a picture   RUN/merged/   averaged with the original model
    RUN/memory.png       the peak so far         RUN/tensorboard/   with --tensorboard

Each model is a plain Hugging Face folder that appears when it is complete: a stage whose folder is
there is done, and the same command goes on with the next one. A stage that was stopped goes on from
its last checkpoint in RUN/checkpoints, which go when it is done.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lrdata.atomic import locked
from lrdata.runtime import usable_cpus
from lrtrain.activations import prepare
from lrtrain.attention import choose_backend, heads_of
from lrtrain.attention_scale import scale_in_training
from lrtrain.checkpoint import Checkpoints
from lrtrain.checks import attention_crosses_gaps, attention_stops_at_documents
from lrtrain.distributed import many
from lrtrain.loader import StepLoader
from lrtrain.loop import Stage, enough_memory, train_stage
from lrtrain.merge import merge_models
from lrtrain.metrics import METRICS, MetricsLog
from lrtrain.model import (
    TORCH_DTYPES,
    load_config,
    load_model,
    save_model,
)
from lrtrain.opening import Run, Say, open_run, refuse_unlike_ranks
from lrtrain.plots import plot_run
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import Rope, parse_rope
from lrtrain.run_folder import claim
from lrtrain.schedules import linear_to_zero, warmup_then
from lrtrain.weights import WEIGHTS


def run(
    shards_folder: Path | str, model: str, out: Path, recipe: TrainRecipe, say: Say = print
) -> list[Path]:
    """Run the recipe's stages and return the model folders in `out`.

    shards_folder: or an address, `hf://datasets/owner/name[@revision]`.

    Everything that can be refused is refused before the first step. Raises LongRecipeError. Under
    torchrun all ranks call it alike; the first one speaks, and merges, while the others wait, who
    return nothing.
    """
    numbers = (recipe.context_parallel, recipe.data_parallel)
    with ExitStack() as stack:
        with many(*numbers, recipe.device, recipe.rank_timeout) as ranks, ranks.reached():
            say = say if ranks.first else _silent
            opened: Run = ranks.agree(
                lambda: open_run(shards_folder, model, Path(out), recipe, say, ranks)
            )

            def hold() -> None:
                if ranks.first:
                    stack.enter_context(locked(opened.out, opened.out))

            refuse_unlike_ranks(opened)
            ranks.agree(hold)  # before kernels are tried on a card that the other run fills
            say(f"attention: {_attention(opened)}, on {ranks.where(opened.device)}")
            ranks.first_works(partial(claim, opened.out, recipe, model, opened.shards))
            made = [*_trained(opened), *_merged(opened)]
        return made if ranks.first else []


def _silent(text: str) -> None:
    """What another rank says."""


def _trained(opened: Run) -> Iterator[Path]:
    """Do the stages of training that are not done; their model folders."""
    for stage in opened.recipe.stages:
        if stage == "merge":
            continue
        if opened.is_left_out(stage):
            text = "anneal: the shards hold no replay rows; left out (build with --replay for it)"
            opened.say(text)
            continue
        if opened.ranks.exchange(opened.is_done(stage))[0]:
            _clean(opened, stage)  # after a run that was killed before it did
            opened.say(f"{stage}: {opened.folder(stage)} is there; done")
        else:
            with enough_memory(stage, opened.device):
                _train(opened, stage)
            _free_memory()
        yield opened.folder(stage)


def _merged(opened: Run) -> Iterator[Path]:
    """Merge what was trained, if that is asked for and not done; its folder."""
    if "merge" not in opened.recipe.stages:
        return
    folder = opened.folder("merge")
    if opened.ranks.exchange(opened.is_done("merge"))[0]:
        opened.say(f"merge: {folder} is there; done")
    else:
        opened.ranks.first_works(partial(_merge, opened))
    yield folder


def _attention(opened: Run) -> str:
    """Choose the backend, the first rank's on all of them."""
    recipe, ranks = opened.recipe, opened.ranks

    def choose(name: str) -> str:
        how = (opened.device, TORCH_DTYPES[recipe.dtype], ranks.context > 1)
        return choose_backend(name, heads_of(load_config(opened.model)), *how)

    chosen: str = ranks.from_first(lambda: choose(recipe.attention))
    ranks.agree(lambda: None if ranks.first else choose(chosen.split()[0]))
    return chosen


@dataclass(frozen=True)
class _Start:
    """What a stage begins with. model: its weights; with the RoPE of the window where it is to be
    extended. weights: see `lrtrain.weights`. schedule: for a number of steps."""

    kind: str
    model: str
    rope: Rope | None
    weights: str
    steps: int | None
    lr: float
    schedule: Callable[[int], Callable[[int], float]]
    attention_scale: float


def _extending(opened: Run) -> _Start:
    recipe, shards = opened.recipe, opened.shards
    return _Start(
        kind="extend",
        model=opened.model,
        rope=parse_rope(recipe.rope),
        weights=recipe.token_weights,
        steps=recipe.steps,
        lr=recipe.lr,
        schedule=lambda steps: warmup_then(recipe.schedule, steps, recipe.warmup),
        attention_scale=scale_in_training(
            recipe.attention_scale, shards.train_len, shards.target_len
        ),
    )


def _annealing(opened: Run) -> _Start:
    """Replay rows have as many keys as positions: nothing is to be scaled."""
    return _Start(
        kind="replay",
        model=str(opened.folder("extend")),
        rope=None,
        weights="none",
        steps=opened.recipe.anneal_steps,
        lr=opened.recipe.anneal_lr,
        schedule=linear_to_zero,
        attention_scale=1.0,
    )


_STARTS = {"extend": _extending, "anneal": _annealing}


def _train(opened: Run, name: str) -> None:
    recipe, shards, start = opened.recipe, opened.shards, _STARTS[name](opened)
    ranks, device = opened.ranks, opened.device
    torch.manual_seed(recipe.seed + ranks.rank)
    if start.model != opened.model:
        ranks.see(Path(start.model))
    model = ranks.agree(
        lambda: load_model(
            start.model,
            dtype=TORCH_DTYPES[recipe.dtype],
            rope=start.rope,
            target_len=None if start.rope is None else shards.target_len,
            device=device,
            ranks=ranks,
        )
    )
    with torch.no_grad():
        for check in (attention_crosses_gaps, attention_stops_at_documents):
            ranks.agree(partial(ranks.call, model, check))
    prepare(model, recipe.activations)
    loader = StepLoader(
        shards,
        start.kind,
        recipe.seed,
        recipe.rows_per_step,
        recipe.micro_tokens,
        WEIGHTS[start.weights],
        rank=ranks.data_rank,
        world=ranks.data,
        pinned=device.type == "cuda",
    )
    steps = start.steps or loader.steps_per_epoch
    stage = Stage(name, steps, start.lr, start.schedule(steps), start.attention_scale)
    log = MetricsLog(opened.out, name, recipe.tensorboard)
    checkpoints = Checkpoints(opened.out, name, recipe.keep_checkpoints, ranks)
    finish = partial(
        save_model,
        model,
        opened.model,
        opened.folder(name),
        target_len=shards.target_len,
        card=_card(opened, name, start, steps),
        ranks=ranks,
    )
    train_stage(model, shards, loader, stage, recipe, device, log, checkpoints, ranks, finish)
    _clean(opened, name)


def _free_memory() -> None:
    """Of the model of a stage, before the next one is loaded: it refers to itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _clean(opened: Run, name: str) -> None:
    """What is left to do of a stage whose model is there."""
    if not opened.ranks.first:
        return
    Checkpoints(opened.out, name, 1).remove()
    out = opened.out
    if not plot_run(out / METRICS, out / "loss.png", out / "memory.png"):
        opened.say("no loss.png: install matplotlib with: pip install 'longrecipe[plots]'")


def _merge(opened: Run, stop: Callable[[], bool]) -> None:
    trained = "anneal" if opened.is_done("anneal") else "extend"
    threads = torch.get_num_threads()
    if opened.ranks.size > 1:  # torchrun gives each one thread; the others only wait
        torch.set_num_threads(usable_cpus())
    try:
        merge_models(
            opened.model,
            str(opened.folder(trained)),
            opened.folder("merge"),
            opened.recipe.merge_weight,
            stop,
        )
    finally:
        torch.set_num_threads(threads)


def _card(opened: Run, stage: str, start: _Start, steps: int) -> str:
    """The model card of a stage: what it is and how it was made."""
    recipe, shards = opened.recipe, opened.shards
    made = shards.manifest.recipe
    names = ("positions", "impact", "evidence")
    how = ", ".join(f"{name} {made[name]}" for name in names if made.get(name))
    annealed = ", and annealed on replayed short texts" if stage == "anneal" else ""
    rows: dict[str, Any] = {
        "stage": stage,
        "base model": Path(opened.model).name,
        "window": f"{shards.target_len:,} tokens",
        "extended with": f"{shards.rows('extend'):,} rows of {shards.train_len:,} tokens, {how}",
        "rows of this stage": f"{shards.rows(start.kind):,}",
        "steps": steps,
        "rows per step": min(recipe.rows_per_step, shards.rows(start.kind)),
        "learning rate": f"{start.lr}, {recipe.schedule if stage == 'extend' else 'linear to 0'}",
        "RoPE": recipe.rope,
        "attention scale in training": f"{start.attention_scale:.3g}",
        "token weights": start.weights,
        "precision": recipe.dtype,
        "seed": recipe.seed,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {Path(opened.model).name}, {shards.target_len:,}-token window ({stage})\n\n"
        "Its window was extended with longrecipe (LongRecipe, arXiv 2409.00509)"
        f"{annealed}.\n\n| | |\n|---|---|\n{table}\n"
    )
