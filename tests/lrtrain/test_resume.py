"""A run that dies at any moment and is started again is, bit for bit, one that nobody disturbed.

Every run here that dies is a process of its own, forked from this one, where torch is loaded: a
life takes as long as its work. `Run` starts them on one folder; after each death what has a final
name has its final bytes, and what a checkpoint holds is not trained again.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import lrtrain.loop
import lrtrain.stages
from lrdata.errors import LongRecipeError
from lrtrain.checkpoint import Checkpoints
from lrtrain.loop import MetricsLog
from lrtrain.optim import MasterAdamW
from lrtrain.plots import read_metrics
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run
from tests.lrtrain.tiny_runs import build_shards, save_tiny_model

ROOT = Path(__file__).parents[2]
SECONDS_TO_FINISH = 300
"""A run that takes longer hangs."""

RECIPE = TrainRecipe(
    steps=12,
    anneal_steps=6,
    rows_per_step=4,
    lr=3e-3,
    anneal_lr=1e-3,
    holdout_every=5,
    holdout_rows=2,
    checkpoint_every=2,
    dtype="fp32",
    device="cpu",
)
WEIGHTED = replace(RECIPE, micro_tokens=300, token_weights="impact", weight_decay=0.1)
RECIPES = {
    "fp32, weighted, rows joined": WEIGHTED,
    "bf16, a row at a time": replace(RECIPE, dtype="bf16", checkpoint_every=3, keep_checkpoints=2),
    "bf16, weighted, rows joined": replace(WEIGHTED, dtype="bf16"),
}
SHORT = replace(WEIGHTED, steps=5, anneal_steps=3, clip=0.5)
"""Checkpoints after steps 2 and 4 of extend and 2 of anneal; the fifth step is in none."""

STAGES = {"extend": "extend", "anneal": "anneal", "merge": "merged"}
NOT_TIMED = ("stage", "step", "loss", "lr", "grad_norm", "tokens", "holdout_loss")
"""What the metrics say of the training, and not of how fast it was."""


@dataclass(frozen=True)
class Inputs:
    shards: Path
    model: Path


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    return Inputs(
        build_shards(tiny_tokenizer, root / "shards"),
        save_tiny_model(tiny_tokenizer, root / "tiny"),
    )


Undisturbed = Callable[[TrainRecipe], Path]


@pytest.fixture(scope="module")
def undisturbed(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a recipe's run that came to its end at once."""
    made: dict[TrainRecipe, Path] = {}

    def folder(recipe: TrainRecipe) -> Path:
        if recipe not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            run(inputs.shards, str(inputs.model), out, recipe, lambda _: None)
            made[recipe] = out
        return made[recipe]

    return folder


# What a person sees of a run's folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def untimed(metrics: Path) -> list[dict[str, Any]]:
    return [
        {key: line[key] for key in NOT_TIMED if key in line} for line in read_metrics(metrics)
    ]


def assert_the_same(out: Path, whole: Path) -> None:
    """Two runs that came to their ends, but for how long it took."""
    lines = untimed(out / "metrics.jsonl")
    steps = [(line["stage"], line["step"]) for line in lines]
    assert len(set(steps)) == len(steps), "a step is there twice"
    assert lines == untimed(whole / "metrics.jsonl")
    for name in STAGES.values():
        found, expected = files(out / name), files(whole / name)
        assert found.keys() == expected.keys()
        for file in expected:
            assert found[file] == expected[file], f"{name}/{file} has other bytes"
    seen = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert seen == {path.name for path in whole.iterdir()}, "checkpoints are left, or else"


def assert_nothing_half(out: Path, whole: Path) -> None:
    """What is there of a run that died: whole models, whole checkpoints."""
    for name in STAGES.values():
        if (out / name).exists():
            assert files(out / name) == files(whole / name), f"{name} is not what it will be"
    for stage in STAGES:
        for checkpoint in Checkpoints(out, stage, keep=1).all()[-1:]:
            assert dict(checkpoint.tensors())


def kept_lines(out: Path) -> str:
    """The metrics that need not be made again: of stages that are done, and up to a checkpoint.

    Made again they would be others, by the seconds that they took.
    """
    kept = ""
    for line in (out / "metrics.jsonl").read_text().splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            break
        latest = Checkpoints(out, values["stage"], keep=1).latest()
        done = (out / STAGES[values["stage"]]).exists()
        if not (done or (latest and values["step"] <= latest.step)):
            break
        kept += line
    return kept


# Lives and deaths

Hook = Callable[[], None]


class Run:
    """A recipe's run in a folder, by one process after the other."""

    def __init__(self, inputs: Inputs, recipe: TrainRecipe, out: Path) -> None:
        self.inputs, self.recipe, self.out = inputs, recipe, out

    def start(self, hook: Hook = lambda: None) -> Any:
        """A process; `hook` does in it what it likes before the run begins."""

        def work() -> None:
            torch.set_num_threads(1)
            hook()
            inputs = self.inputs
            try:
                run(inputs.shards, str(inputs.model), self.out, self.recipe, lambda _: None)
            except KeyboardInterrupt:
                sys.exit(130)

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        return process

    def live(self, hook: Hook = lambda: None) -> int:
        """The exit code of a process that nobody waits to kill."""
        return ended(self.start(hook))

    def lines(self) -> int:
        """How many whole lines the metrics have."""
        metrics = self.out / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def wait(self, process: Any, lines: int) -> None:
        """Until there are so many, or the process has ended."""
        while process.is_alive() and self.lines() < lines:
            time.sleep(0.001)


def ended(process: Any) -> int:
    process.join(SECONDS_TO_FINISH)
    hangs = process.is_alive()
    process.kill()
    process.join()
    assert not hangs, "a run hangs"
    code: int = process.exitcode
    process.close()
    return code


@dataclass(frozen=True)
class Death:
    """Around the n-th call of a function of `os` or `shutil` for a path with `pattern` in it.

    Of rename and replace the target counts.
    """

    moment: Literal["before", "after"]
    call: str
    pattern: str
    nth: int = 1
    number: signal.Signals = signal.SIGKILL

    def __call__(self) -> None:
        home, calls = shutil if self.call == "rmtree" else os, 0
        real = getattr(home, self.call)

        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            target = str(arguments[1 if self.call in ("replace", "rename") else 0])
            found = re.search(self.pattern, target) is not None
            calls += found
            due = found and calls == self.nth
            if due and self.moment == "before":
                os.kill(os.getpid(), self.number)
            result = real(*arguments, **options)
            if due and self.moment == "after":
                os.kill(os.getpid(), self.number)
            return result

        setattr(home, self.call, dying)


@dataclass(frozen=True)
class AtStep:
    """When a step's line is due in the metrics; `half` of it is written before a kill."""

    stage: str
    step: int
    number: signal.Signals
    half: bool = False

    def __call__(self) -> None:
        real = MetricsLog.write

        def write(log: MetricsLog, **values: Any) -> None:
            due = (values["stage"], values["step"]) == (self.stage, self.step)
            if due and self.half:
                lrtrain.loop.open = half_open  # type: ignore[attr-defined]
            real(log, **values)
            if due:
                os.kill(os.getpid(), self.number)

        MetricsLog.write = write  # type: ignore[method-assign]


def half_open(*arguments: Any, **options: Any) -> Any:
    """`open` for a file that takes the first half of what is written."""
    stream = open(*arguments, **options)
    write = stream.write
    stream.write = lambda text: write(text[: len(text) // 2])
    return stream


# Killed at random moments

KILLS = 25


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECIPES))
def test_kills_at_random_moments_change_no_bit(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe, whole = RECIPES[name], undisturbed(RECIPES[name])
    ends = [recipe.steps or 0, (recipe.steps or 0) + (recipe.anneal_steps or 0)]
    draw, kills, midway, folders = random.Random(name), 0, 0, 0
    while kills < KILLS or not midway:
        folders += 1
        alive, code = Run(inputs, recipe, tmp_path / f"{folders}"), -signal.SIGKILL
        while code:
            kept = kept_lines(alive.out) if alive.lines() else ""
            process = alive.start()
            if kills < KILLS:  # after a few more steps, or just when a stage comes to its end
                end = next(step for step in ends if step >= min(alive.lines(), ends[1]))
                step = end if draw.random() < 0.3 else alive.lines() + draw.randint(0, 4)
                alive.wait(process, min(step, ends[1]))
                time.sleep(draw.random() / 15)
                process.kill()
            code = ended(process)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            midway += code != 0 and any(alive.out.glob("checkpoints/*/state.json"))
            assert_nothing_half(alive.out, whole)
            if kept:
                assert (alive.out / "metrics.jsonl").read_text().startswith(kept)
        assert_the_same(alive.out, whole)
        assert folders < KILLS, "no kill comes while there is a checkpoint"
