"""One stage of training: steps over rows, metrics as it goes."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.shards import Shards
from lrtrain.loader import Batch, StepLoader, to_batch
from lrtrain.loss import training_loss
from lrtrain.optim import MasterAdamW


@dataclass(frozen=True)
class Stage:
    """What one stage does: `factor` is the schedule, step -> share of the peak rate."""

    name: str
    kind: str
    steps: int
    lr: float
    factor: Callable[[int], float]
    attention_scale: float


@dataclass(frozen=True)
class Settings:
    """What all stages share."""

    betas: tuple[float, float]
    weight_decay: float
    clip: float
    chunk_tokens: int
    holdout_every: int
    holdout_rows: int
    device: torch.device


class MetricsLog:
    """JSON lines, one a step, flushed as they are written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **values: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")


def train_stage(
    model: Any,
    shards: Shards,
    loader: StepLoader,
    stage: Stage,
    settings: Settings,
    log: MetricsLog,
) -> None:
    """Train `model` in place for the steps of a stage.

    The loss of a step is sum(w * CE) / sum(w) over all its rows, whatever way they are split into
    micro-batches. Raises LongRecipeError, naming the rows, when a loss or gradient is not finite.
    """
    optimizer = MasterAdamW(model, stage.lr, settings.betas, settings.weight_decay)
    model.train()
    try:
        with progress(stage.name, stage.steps) as task:
            for number in range(stage.steps):
                started = time.monotonic()
                batches = loader.step(number)
                loss, norm = _accumulate(model, batches, stage, settings, optimizer)
                factor = stage.factor(number)
                optimizer.step(factor, norm, settings.clip)
                seconds = time.monotonic() - started
                tokens = sum(batch.tokens for batch in batches)
                values = {
                    "stage": stage.name,
                    "step": number + 1,
                    "loss": loss,
                    "lr": stage.lr * factor,
                    "grad_norm": float(norm),
                    "tokens": tokens,
                    "seconds": round(seconds, 4),
                    "tokens_per_s": round(tokens / seconds, 1),
                }
                if _is_due(number, stage.steps, settings.holdout_every) and shards.rows("holdout"):
                    values["holdout_loss"] = holdout_loss(model, shards, settings)
                log.write(**values)
                task.advance(note=f"loss {loss:.3f}  {tokens / seconds:,.0f} tok/s")
    finally:
        optimizer.close()


def _accumulate(
    model: Any,
    batches: list[Batch],
    stage: Stage,
    settings: Settings,
    optimizer: MasterAdamW,
) -> tuple[float, torch.Tensor]:
    """Loss of the step and norm of its gradient, which is left in the optimizer's buffers."""
    total_weight = sum(float(batch.weights.sum()) for batch in batches)
    if not total_weight:
        raise LongRecipeError(f"{stage.name}: no token of {batches[0].rows[0]} counts in the loss")
    total = torch.zeros((), device=settings.device)
    for batch in batches:
        loss = _loss(model, batch, settings, stage.attention_scale) / total_weight
        loss.backward()
        total += loss.detach()
    norm = optimizer.gradient_norm()
    value = float(total)
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        rows = ", ".join(row for batch in batches for row in batch.rows)
        raise LongRecipeError(
            f"{stage.name}: loss {value} and gradient norm {float(norm)} are not finite; the rows "
            f"of the step: {rows[:400]}; lower --lr or look at them with `lrdata inspect`"
        )
    return value, norm


def _loss(model: Any, batch: Batch, settings: Settings, attention_scale: float) -> torch.Tensor:
    return training_loss(
        model,
        batch.input_ids.to(settings.device),
        batch.position_ids.to(settings.device),
        batch.seq_lengths,
        batch.weights.to(settings.device),
        attention_scale,
        settings.chunk_tokens,
    )


def _is_due(number: int, steps: int, every: int) -> bool:
    return number + 1 == steps or bool(every and (number + 1) % every == 0)


@torch.no_grad()
def holdout_loss(model: Any, shards: Shards, settings: Settings) -> float:
    """Mean cross-entropy on the first holdout windows: whole, at their own positions, scale 1."""
    model.eval()
    total, weight = 0.0, 0.0
    for index in range(min(settings.holdout_rows, shards.rows("holdout"))):
        batch = to_batch([shards.read_row("holdout", index)])
        total += float(_loss(model, batch, settings, 1.0))
        weight += float(batch.weights.sum())
    model.train()
    return total / weight
