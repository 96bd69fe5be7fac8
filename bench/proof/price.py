"""What a row costs: operations, counted both ways, and seconds, measured alone and in turns."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from methods import Budget, Method
from training import Setting

from lrdata.dataset import open_dataset
from lrdata.scores import Scores
from lrtrain.attention import choose_backend, heads_of
from lrtrain.flops import training_flops
from lrtrain.loader import StepLoader
from lrtrain.model import choose_device, load_config, load_model
from lrtrain.optim import AdamW
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import parse_rope
from lrtrain.scoring.readings import short_blocks
from lrtrain.step import LossOptions, accumulate

ROUNDS, STEPS = 5, 6


def scoring_flops(scores: Scores, config: Any, short_context: int, stride: int) -> float:
    """Operations of what a lexicon is made from: each window read whole, and again in blocks.

    Forward only, a third of what training takes.
    """
    found = 0.0
    for window in scores:
        tokens = len(window.ids)
        blocks = short_blocks(tokens, short_context, stride)
        read = [tokens, *(block.stop - block.start for block in blocks)]
        found += training_flops(config, read) / 3
    return found


def price(setting: Setting, methods: Sequence[Method], budget: Budget) -> dict[str, Any]:
    """By method: tokens, operations and seconds of a row, the medians of rounds that take turns.

    Of steps of `budget`, with the optimizer's update, as `lrtrain run` makes them.
    """
    recipe = TrainRecipe(**setting.options)
    device = choose_device(recipe.device)
    choose_backend(recipe.attention, heads_of(load_config(setting.base)), device)
    model = load_model(
        setting.base,
        dtype=torch.float32,
        rope=parse_rope(recipe.rope),
        target_len=setting.target,
        device=device,
    ).train()
    optimizer = AdamW(model, 1e-6, (0.9, 0.95), 0.0, recipe.storage)
    loaders = {
        method.name: StepLoader(
            open_dataset(setting.shards(method)),
            "extend",
            setting.seed,
            budget.rows(method),
            recipe.micro_tokens,
        )
        for method in methods
    }
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(-1, ROUNDS):  # the first round warms up
        for name, loader in loaders.items():
            steps = [loader.step(step) for step in range(STEPS)]
            begun = time.perf_counter()
            for batches in steps:
                _, norm = accumulate(model, batches, optimizer, LossOptions(device))
                optimizer.step(1.0, norm, clip=1.0)
            if number >= 0:
                seconds[name].append((time.perf_counter() - begun) / STEPS)
    found = {}
    for method in methods:
        row = method.train_len(setting.target)
        found[method.name] = {
            "row_tokens": row,
            "row_flops": training_flops(model.config, [row]),
            "row_flops_all_pairs": training_flops(model.config, [row], causal=False),
            "row_seconds": median(seconds[method.name]) / budget.rows(method),
        }
    return found
