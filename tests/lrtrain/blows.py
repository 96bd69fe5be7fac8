"""What happens to ranks: they give themselves signals at chosen places of a run; how they end."""

import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import lrtrain.model
import lrtrain.stages
import lrtrain.step
from lrtrain.checkpoint import Checkpoints
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.optim import AdamW
from lrtrain.recipe import TrainRecipe
from tests.lrtrain.many import Ended, Inputs, Ranks, on_ranks, train

RECIPE = TrainRecipe(
    stages=("extend",),
    steps=5,
    rows_per_step=5,
    micro_tokens=300,
    token_weights="impact",
    weight_decay=0.1,
    clip=0.5,
    lr=3e-3,
    holdout_rows=2,
    checkpoint_every=0,
    dtype="fp32",
    device="cpu",
    rank_timeout=60,
)
FP32 = {"losses": 2e-6, "weights": 1e-4}
SECONDS_TO_NOTICE = 20
"""That a rank died; measured: 0.1. That one hangs: so many after what the run has for a limit."""

Where = Literal[
    "in a check",
    "before a step",
    "in a step",
    "after a step",
    "in a checkpoint",
    "in an export",
]


@dataclass(frozen=True)
class Blow:
    """A signal that some ranks give themselves, at a step (from 1) or when they save something."""

    ranks: Sequence[int]
    number: signal.Signals
    where: Where
    step: int = 0

    def strike(self, where: Where, step: int) -> None:
        if int(os.environ["RANK"]) in self.ranks and (where, step) == (self.where, self.step):
            Path(os.environ["BLOW"]).touch()
            os.kill(os.getpid(), self.number)

    def prepare(self) -> None:
        """For the rest of a process's life."""
        steps = 0
        loss, update = lrtrain.step.piece_loss, AdamW.step
        write, export = Checkpoints._write, lrtrain.model.copy_tokenizer
        check = lrtrain.stages.attention_crosses_gaps

        def checked(model: Any) -> str:
            self.strike("in a check", 0)
            return check(model)

        def piece_loss(*given: Any) -> torch.Tensor:
            if torch.is_grad_enabled():
                self.strike("before a step", steps + 1)
                value = loss(*given)
                self.strike("in a step", steps + 1)
                return value
            return loss(*given)

        def step(optimizer: AdamW, *given: Any) -> None:
            nonlocal steps
            update(optimizer, *given)
            steps = optimizer.steps
            self.strike("after a step", steps)

        def written(*given: Any) -> list[str]:
            self.strike("in a checkpoint", 0)
            return write(*given)

        def exported(*given: Any) -> None:
            self.strike("in an export", 0)
            export(*given)

        lrtrain.stages.attention_crosses_gaps = checked
        lrtrain.step.piece_loss = piece_loss
        AdamW.step = step  # type: ignore[method-assign]
        Checkpoints._write = written  # type: ignore[method-assign]
        lrtrain.model.copy_tokenizer = exported


def train_until(blow: Blow, at: Path, inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    os.environ["BLOW"] = str(at)
    blow.prepare()
    train(inputs, out, recipe)


def stopped(inputs: Inputs, recipe: TrainRecipe, out: Path, size: int, blow: Blow) -> list[Ended]:
    """The ends of a run's ranks but of one that hangs."""
    at = out.with_name(f"{out.name}.blow")
    ranks = Ranks(size, train_until, blow, at, inputs, out, recipe)
    ended = ranks.end(but=blow.ranks if blow.number == signal.SIGSTOP else ())
    limit = 2 * recipe.rank_timeout if blow.number == signal.SIGSTOP else 0
    assert time.time() - at.stat().st_mtime < limit + SECONDS_TO_NOTICE
    return ended


def assert_said_once(ended: Sequence[Ended], pattern: str, by: int, code: int = 1) -> None:
    """One line by one rank; the others are quiet; all end with one code, and no bug."""
    assert [one.code for one in ended] == [code] * len(ended), [one.said for one in ended]
    for rank, one in enumerate(ended):
        assert len(one.errors) == (rank == by), one.said
    assert re.search(pattern, ended[by].errors[0]), ended[by].errors
    assert "add --debug" not in ended[by].said


def latest(out: Path) -> int:
    checkpoint = Checkpoints(out, "extend", keep=1).latest()
    assert checkpoint is not None
    return checkpoint.step


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in read_metrics(out / METRICS)]


# Runs that several tests start from


class Undisturbed:
    """Folders of runs by some ranks that came to their end at once."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory, self._made = factory, dict[Any, Path]()

    def __call__(self, inputs: Inputs, recipe: TrainRecipe, size: int = 1) -> Path:
        if (key := (inputs, recipe, size)) not in self._made:
            self._made[key] = self._factory.mktemp("whole") / "run"
            on_ranks(size, train, inputs, self._made[key], recipe)
        return self._made[key]


class StoppedAfterThree:
    """Copies of folders of runs that were stopped after their third step."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory, self._made = factory, dict[Any, Path]()

    def __call__(self, inputs: Inputs, recipe: TrainRecipe, size: int, out: Path) -> Path:
        if (key := (inputs, recipe, size)) not in self._made:
            made = self._made[key] = self._factory.mktemp("stopped") / "run"
            blow = Blow([size - 1], signal.SIGTERM, "after a step", 3)
            ended = stopped(inputs, recipe, made, size, blow)
            assert [one.code for one in ended] == [130] * size
            assert latest(made) == 3
            assert steps_of(made) == [1, 2, 3]
        shutil.copytree(self._made[key], out)
        return out
