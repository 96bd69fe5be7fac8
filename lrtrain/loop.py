"""One stage of training: steps over rows, metrics as it goes."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.shards import Shards
from lrtrain.checkpoint import Checkpoints, random_state, set_random_state
from lrtrain.flops import peak_flops, training_flops
from lrtrain.interrupt import stop_asked
from lrtrain.loader import Batch, StepLoader, to_batch
from lrtrain.metrics import MetricsLog, note, peak_memory
from lrtrain.optim import AdamW, Storage
from lrtrain.step import LossOptions, Stopped, accumulate, batch_loss


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
    storage: Storage
    clip: float
    chunk_tokens: int
    holdout_every: int
    holdout_rows: int
    checkpoint_every: int
    device: torch.device


def train_stage(
    model: Any,
    shards: Shards,
    loader: StepLoader,
    stage: Stage,
    settings: Settings,
    log: MetricsLog,
    checkpoints: Checkpoints,
) -> None:
    """Train `model` in place for the steps of a stage, from its last checkpoint on if it has one.

    The loss of a step is sum(w * CE) / sum(w) over all its rows, whatever way they are split into
    micro-batches. Raises LongRecipeError, naming the rows, when a loss or gradient is not finite.
    A signal to stop ends it between two micro-batches with a checkpoint of the last whole step and
    a KeyboardInterrupt.
    """
    optimizer = AdamW(model, stage.lr, settings.betas, settings.weight_decay, settings.storage)
    device = settings.device
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    done = saved = _restore(checkpoints, optimizer)
    log.begin(after=done)
    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with stop_asked() as stop, progress(stage.name, stage.steps, done) as task:
            started = time.monotonic()
            for number, batches in enumerate(loader.steps(done, stage.steps), done):
                loss, norm = _whole_step(model, batches, stage, settings, optimizer, stop)
                factor = stage.factor(number)
                optimizer.step(factor, norm, settings.clip)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # the optimizer's kernels may still run
                seconds = time.monotonic() - started
                tokens = sum(batch.tokens for batch in batches)
                rate = _flops(model, batches) / seconds
                values = {
                    "loss": loss,
                    "lr": stage.lr * factor,
                    "grad_norm": float(norm),
                    "tokens": tokens,
                    "seconds": round(seconds, 4),
                    "tokens_per_s": round(tokens / seconds, 1),
                    "tflops": round(rate / 1e12, 4),
                    "mfu": None if peak is None else round(rate / peak, 4),
                    **peak_memory(device),
                }
                if _is_due(number, stage.steps, settings.holdout_every) and shards.rows("holdout"):
                    values["holdout_loss"] = holdout_loss(model, shards, settings)
                log.write(number + 1, **values)
                task.advance(note=note(values))
                done = number + 1
                if settings.checkpoint_every and done % settings.checkpoint_every == 0:
                    saved = _save(checkpoints, optimizer, done)
                if stop():
                    raise Stopped
                started = time.monotonic()  # a checkpoint is no part of the next step
    except torch.OutOfMemoryError:
        raise LongRecipeError(
            f"{stage.name}: {device} ran out of memory; `lrtrain plan` says which options save it"
        ) from None
    except Stopped:
        if saved < done:
            _save(checkpoints, optimizer, done)
        raise KeyboardInterrupt from None
    finally:
        optimizer.close()
        log.close()


def _flops(model: Any, batches: list[Batch]) -> float:
    return sum(training_flops(model.config, batch.seq_lengths) for batch in batches)


def _save(checkpoints: Checkpoints, optimizer: AdamW, done: int) -> int:
    """Keep the state after `done` steps; returns `done`."""
    checkpoints.save(done, chain(optimizer.state(), random_state()))
    return done


def _restore(checkpoints: Checkpoints, optimizer: AdamW) -> int:
    """Take over the last checkpoint; returns how many steps it has behind it."""
    latest = checkpoints.latest()
    if latest is None:
        return 0

    def of_the_optimizer() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in latest.tensors():
            if name.startswith("random."):
                set_random_state(name, tensor)
            else:
                yield name, tensor

    optimizer.load(of_the_optimizer())
    return latest.step


def _whole_step(
    model: Any,
    batches: list[Batch],
    stage: Stage,
    settings: Settings,
    optimizer: AdamW,
    stop: Callable[[], bool],
) -> tuple[float, torch.Tensor]:
    """`accumulate`, refusing rows that give nothing to learn from or no finite numbers."""
    if not any(batch.weights.any() for batch in batches):
        raise LongRecipeError(f"{stage.name}: no token of {batches[0].rows[0]} counts in the loss")
    options = LossOptions(settings.device, stage.attention_scale, settings.chunk_tokens)
    loss, norm = accumulate(model, batches, optimizer, options, stop)
    value = float(loss)
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        rows = ", ".join(row for batch in batches for row in batch.rows)
        raise LongRecipeError(
            f"{stage.name}: loss {value} and gradient norm {float(norm)} are not finite; the rows "
            f"of the step: {rows[:400]}; lower --lr or look at them with `lrdata inspect`"
        )
    return value, norm


def _is_due(number: int, steps: int, every: int) -> bool:
    return number + 1 == steps or bool(every and (number + 1) % every == 0)


@torch.no_grad()
def holdout_loss(model: Any, shards: Shards, settings: Settings) -> float:
    """Mean cross-entropy on the first holdout windows: whole, at their own positions, scale 1."""
    model.eval()
    options = LossOptions(settings.device, chunk_tokens=settings.chunk_tokens)
    total, weight = 0.0, 0.0
    for index in range(min(settings.holdout_rows, shards.rows("holdout"))):
        batch = to_batch([shards.read_row("holdout", index)])
        total += float(batch_loss(model, batch, options))
        weight += float(batch.weights.sum())
    model.train()
    return total / weight
