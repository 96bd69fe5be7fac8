"""One stage of training: steps over rows, metrics as it goes."""

import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lrdata.atomic import write_text
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.shards import Shards
from lrdata.sizes import format_bytes
from lrtrain.checkpoint import Checkpoints, random_state, set_random_state
from lrtrain.flops import peak_flops, training_flops
from lrtrain.interrupt import stop_asked
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
    checkpoint_every: int
    device: torch.device


class MetricsLog:
    """JSON lines, one a step, flushed as they are written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def forget(self, stage: str, after: int) -> None:
        """Drop the lines of an earlier try at a stage beyond step `after`, and what a kill cut."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            with suppress(ValueError):
                values = json.loads(line)
                if line.endswith("\n") and (values["stage"] != stage or values["step"] <= after):
                    kept.append(line)
        write_text(self._path, "".join(kept))

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
    checkpoints: Checkpoints,
) -> None:
    """Train `model` in place for the steps of a stage, from its last checkpoint on if it has one.

    The loss of a step is sum(w * CE) / sum(w) over all its rows, whatever way they are split into
    micro-batches. Raises LongRecipeError, naming the rows, when a loss or gradient is not finite.
    A signal to stop ends it between two micro-batches with a checkpoint of the last whole step and
    a KeyboardInterrupt.
    """
    optimizer = MasterAdamW(model, stage.lr, settings.betas, settings.weight_decay)
    device = settings.device
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    done = saved = _restore(checkpoints, optimizer)
    log.forget(stage.name, after=done)
    model.train()
    try:
        with stop_asked() as stop, progress(stage.name, stage.steps, done) as task:
            started = time.monotonic()
            for number, batches in enumerate(loader.steps(done, stage.steps), done):
                loss, norm = _accumulate(model, batches, stage, settings, optimizer, stop)
                factor = stage.factor(number)
                optimizer.step(factor, norm, settings.clip)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # the optimizer's kernels may still run
                seconds = time.monotonic() - started
                tokens = sum(batch.tokens for batch in batches)
                rate = _flops(model, batches) / seconds
                values = {
                    "stage": stage.name,
                    "step": number + 1,
                    "loss": loss,
                    "lr": stage.lr * factor,
                    "grad_norm": float(norm),
                    "tokens": tokens,
                    "seconds": round(seconds, 4),
                    "tokens_per_s": round(tokens / seconds, 1),
                    "tflops": round(rate / 1e12, 4),
                    "mfu": None if peak is None else round(rate / peak, 4),
                    "peak_memory_bytes": _peak_memory(settings.device),
                }
                if _is_due(number, stage.steps, settings.holdout_every) and shards.rows("holdout"):
                    values["holdout_loss"] = holdout_loss(model, shards, settings)
                log.write(**values)
                task.advance(note=_note(values))
                done = number + 1
                if settings.checkpoint_every and done % settings.checkpoint_every == 0:
                    saved = _save(checkpoints, optimizer, done)
                if stop():
                    raise _Stopped
                started = time.monotonic()  # a checkpoint is no part of the next step
    except _Stopped:
        if saved < done:
            _save(checkpoints, optimizer, done)
        raise KeyboardInterrupt from None
    finally:
        optimizer.close()


def _flops(model: Any, batches: list[Batch]) -> float:
    return sum(training_flops(model.config, batch.seq_lengths) for batch in batches)


def _peak_memory(device: torch.device) -> int:
    """Bytes of the device that tensors took up at most so far; on a CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _note(values: dict[str, Any]) -> str:
    """What the progress line says of a step."""
    parts = [f"loss {values['loss']:.3f}", f"{values['tokens_per_s']:,.0f} tok/s"]
    if values["mfu"] is not None:
        parts.append(f"MFU {values['mfu']:.0%}")
    return "  ".join([*parts, f"peak {format_bytes(values['peak_memory_bytes'])}"])


class _Stopped(Exception):
    """A signal asked to stop."""


def _save(checkpoints: Checkpoints, optimizer: MasterAdamW, done: int) -> int:
    """Keep the state after `done` steps; returns `done`."""
    checkpoints.save(done, chain(optimizer.state(), random_state()))
    return done


def _restore(checkpoints: Checkpoints, optimizer: MasterAdamW) -> int:
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


def _accumulate(
    model: Any,
    batches: list[Batch],
    stage: Stage,
    settings: Settings,
    optimizer: MasterAdamW,
    stop: Callable[[], bool],
) -> tuple[float, torch.Tensor]:
    """Loss of the step and norm of its gradient, which is left in the optimizer's buffers.

    Raises _Stopped when a stop is asked for; the optimizer's state is then as it was.
    """
    total_weight = sum(float(batch.weights.sum()) for batch in batches)
    if not total_weight:
        raise LongRecipeError(f"{stage.name}: no token of {batches[0].rows[0]} counts in the loss")
    total = torch.zeros((), device=settings.device)
    for batch in batches:
        if stop():
            raise _Stopped
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
        batch.input_ids.to(settings.device, non_blocking=True).long(),
        batch.position_ids.to(settings.device, non_blocking=True).long(),
        batch.seq_lengths,
        batch.weights.to(settings.device, non_blocking=True),
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
