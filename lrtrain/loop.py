"""One stage of training: steps over rows, metrics as it goes."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.shards import Shards
from lrtrain.checkpoint import Checkpoints, random_state, set_random_state
from lrtrain.distributed import ALONE, Elsewhere, Ranks
from lrtrain.flops import peak_of, training_flops
from lrtrain.interrupt import stop_asked
from lrtrain.loader import Batch, StepLoader, to_batch
from lrtrain.metrics import MetricsLog, note, peak_memory, speed
from lrtrain.optim import AdamW
from lrtrain.recipe import TrainRecipe
from lrtrain.step import LossOptions, Stopped, accumulate, batch_loss

CHECKPOINT_SECONDS = 20 * 60
"""Of work that may be lost, where it is not said in steps: one takes a second or a quarter of an
hour."""


@dataclass(frozen=True)
class Stage:
    """What one stage does: `factor` is the schedule, step -> share of the peak rate."""

    name: str
    steps: int
    lr: float
    factor: Callable[[int], float]
    attention_scale: float


def train_stage(
    model: Any,
    shards: Shards,
    loader: StepLoader,
    stage: Stage,
    recipe: TrainRecipe,
    device: torch.device,
    log: MetricsLog,
    checkpoints: Checkpoints,
    ranks: Ranks = ALONE,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Train `model` in place for the steps of a stage, from its last checkpoint on if it has one,
    and `finish`, which saves it: where that fails there is a checkpoint of the last step.

    The loss of a step is sum(w * CE) / sum(w) over all its rows, whatever way they are split into
    micro-batches and over ranks; the first rank says how it goes, for all. Raises
    LongRecipeError, naming the rows, when a loss or gradient is not finite. A signal to stop ends
    it between two micro-batches with a checkpoint of the last whole step and a KeyboardInterrupt;
    it waits for `finish`.
    """
    how = (stage.lr, (recipe.beta1, recipe.beta2), recipe.weight_decay, recipe.storage)
    optimizer: AdamW = ranks.agree(lambda: AdamW(model, *how))
    options = LossOptions(device, stage.attention_scale, recipe.chunk_tokens)
    peak = peak_of(device, recipe.dtype)
    holdout = min(shards.rows("holdout"), recipe.holdout_rows)
    unscaled = replace(options, attention_scale=1.0)  # a holdout window has all its keys
    measure = partial(holdout_loss, model, shards, holdout, unscaled, ranks)
    saver = _Saver(checkpoints, optimizer, recipe.checkpoint_every, ranks)
    done = saver.restore()
    if ranks.first:
        log.begin(after=done)
    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with (
            ranks.splitting(),
            stop_asked() as stop,
            progress(stage.name, stage.steps, done, silent=not ranks.first) as task,
        ):
            started = time.monotonic()
            try:
                steps = loader.steps(done, stage.steps)
                for number in range(done, stage.steps):
                    batches = ranks.agree(lambda: next(steps))
                    loss, norm = _whole_step(model, batches, stage, options, optimizer, stop, ranks)
                    factor = stage.factor(number)
                    optimizer.step(factor, norm, recipe.clip)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)  # the optimizer's kernels may still run
                    done, seconds = number + 1, time.monotonic() - started
                    values = {
                        "loss": loss,
                        "lr": stage.lr * factor,
                        "grad_norm": float(norm),
                        **speed(_work(model, batches, ranks), seconds, peak, ranks),
                        **peak_memory(device, ranks),
                    }
                    if holdout and _is_due(done, stage.steps, recipe.holdout_every):
                        if done == stage.steps and ranks.size > 1:
                            # Many ranks do not outlive it where one has no room: nothing is lost.
                            if ranks.first:
                                log.write(done, **values)
                            saver.save_if_it_can(done)
                        values["holdout_loss"] = _if_there_is_room(measure, device, ranks)
                    if ranks.first:
                        log.write(done, **values)
                    task.advance(note=note(values))
                    saver.save_if_due(done)
                    if ranks.any(stop()):
                        raise Stopped
                    started = time.monotonic()  # a checkpoint is no part of the next step
            except Stopped:
                saver.save(done)
                ranks.stop()
            try:
                finish()
            except (Exception, Elsewhere):
                with suppress(Exception, Elsewhere):  # what failed first is what is said
                    saver.save(done)
                raise
            if ranks.any(stop()):
                ranks.stop()
    finally:
        optimizer.close()
        log.close()


class _Saver:
    """What is kept of a stage's state, and when: after every so many steps, or by the clock."""

    def __init__(
        self, checkpoints: Checkpoints, optimizer: AdamW, every: int | None, ranks: Ranks
    ) -> None:
        self._checkpoints, self._optimizer, self._ranks = checkpoints, optimizer, ranks
        self._every, self._saved = every, 0
        self._kept = time.monotonic()  # when what is done so far was on the disk

    def restore(self) -> int:
        """Take over the last checkpoint; returns how many steps it has behind it."""
        latest = self._checkpoints.latest()
        if latest is None:
            return 0
        rank, rows = self._ranks.rank, self._optimizer.rows

        def of_the_optimizer() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in latest.tensors(rows):
                if name.startswith("random."):
                    set_random_state(name, tensor, rank)
                else:
                    yield name, tensor

        self._ranks.agree(lambda: self._optimizer.load(of_the_optimizer()))
        self._saved = latest.step
        return latest.step

    def save(self, done: int) -> None:
        """Keep the state after `done` steps, unless it is kept already."""
        if done > self._saved:
            state = chain(self._optimizer.state(), random_state(self._ranks.rank))
            self._checkpoints.save(done, state, self._optimizer.rows)
            self._saved, self._kept = done, time.monotonic()

    def save_if_due(self, done: int) -> None:
        """The same where it is time for it, on all ranks or on none, by each one's clock."""
        if self._every is None:
            due = self._ranks.any(time.monotonic() - self._kept >= CHECKPOINT_SECONDS)
        else:
            due = self._every > 0 and done % self._every == 0
        if due:
            self.save(done)

    def save_if_it_can(self, done: int) -> None:
        """The same where nobody asked for it, and a full disk is no reason to stop."""
        if self._every != 0:
            with suppress(Exception, Elsewhere):
                self.save(done)


@contextmanager
def enough_memory(stage: str, device: torch.device) -> Iterator[None]:
    """A model that is loaded, or trained, on the device: where it has no room LongRecipeError says
    what helps."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise LongRecipeError(
            f"{stage}: {device} ran out of memory; `lrtrain plan` says which options need less: "
            "the same command goes on in this folder with --checkpointing, --offload, or smaller "
            "--micro-tokens, --mlp-tokens and --chunk-tokens"
        ) from None


def _work(model: Any, batches: list[Batch], ranks: Ranks) -> tuple[int, float]:
    """Tokens and operations of a step on all ranks; those that share a row read it alike."""
    tokens = sum(batch.tokens for batch in batches)
    flops = sum(training_flops(model.config, batch.seq_lengths) for batch in batches)
    all_tokens, all_flops = zip(*ranks.exchange((tokens, flops))[:: ranks.context], strict=True)
    return sum(all_tokens), sum(all_flops)


def _whole_step(
    model: Any,
    batches: list[Batch],
    stage: Stage,
    options: LossOptions,
    optimizer: AdamW,
    stop: Callable[[], bool],
    ranks: Ranks,
) -> tuple[float, torch.Tensor]:
    """`accumulate`, refusing rows that give nothing to learn from or no finite numbers."""
    rows = [row for batch in batches for row in batch.rows]
    if not ranks.any(any(batch.weights.any() for batch in batches)):
        ranks.fail(f"{stage.name}: no token of {_named(rows, ranks)} counts in the loss")
    loss, norm = accumulate(model, batches, optimizer, options, stop, ranks)
    ranks.arrived(norm)  # after the loss
    value = float(loss)
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        ranks.fail(
            f"{stage.name}: loss {value} and gradient norm {float(norm)} are not finite; the rows "
            f"of the step: {_named(rows, ranks)}; lower --lr or look at them with `lrdata inspect`"
        )
    return value, norm


def _named(rows: list[str], ranks: Ranks) -> str:
    """The rows of all ranks, the first of them."""
    names = {name: None for own in ranks.exchange(rows) for name in own}
    return ", ".join(names)[:400]


def _is_due(done: int, steps: int, every: int) -> bool:
    return done == steps or bool(every and done % every == 0)


@torch.no_grad()
def holdout_loss(
    model: Any, shards: Shards, count: int, options: LossOptions, ranks: Ranks = ALONE
) -> float:
    """Mean cross-entropy on the first `count` holdout windows: whole, at their own positions."""
    own = range(ranks.data_rank, count, ranks.data)
    rows = ranks.agree(lambda: [to_batch([shards.read_row("holdout", i)]) for i in own])
    batches, weight = ranks.in_step(rows)
    model.eval()
    try:
        losses = (batch_loss(model, batch, options, ranks) for batch in batches)
        total = sum(float(ranks.arrived(loss)) for loss in losses)
    finally:
        model.train()
    return sum(ranks.exchange(total)) / weight


def _if_there_is_room(
    measure: Callable[[], float], device: torch.device, ranks: Ranks
) -> float | None:
    """What is measured, or None: hours of training are not lost for a window that is longer than
    the rows are. Many ranks cannot go on when one of them has left the others in a window."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        if ranks.size > 1:
            raise LongRecipeError(
                f"{device} ran out of memory in a holdout window, which is whole: with "
                "--holdout-rows 0 the same command goes on from the last checkpoint"
            ) from None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
