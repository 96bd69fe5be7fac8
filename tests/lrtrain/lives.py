"""Runs that die and are started again, each in a process of its own that is forked from this one,
where torch is loaded already: so a life takes no longer than its work.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lrtrain.checkpoint import Checkpoints
from lrtrain.metrics import MetricsLog, read_metrics
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run

ROOT = Path(__file__).parents[2]
SECONDS_TO_FINISH = 300
"""A run that takes longer hangs."""

STAGES = {"extend": "extend", "anneal": "anneal", "merge": "merged"}
NOT_TIMED = ("stage", "step", "loss", "lr", "grad_norm", "tokens", "holdout_loss")
"""What the metrics say of the training, and not of how fast it was."""


@dataclass(frozen=True)
class Inputs:
    shards: Path
    model: Path
    wide: Path
    """A model with rows for 8 bits."""

    def model_for(self, recipe: TrainRecipe) -> str:
        return str(self.wide if recipe.moments == "8bit" else self.model)


# What a person sees of a run's folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def untimed(metrics: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in NOT_TIMED if key in line} for line in read_metrics(metrics)]


def assert_the_same(out: Path, whole: Path) -> None:
    """Two runs that came to their ends, but for how long it took."""
    lines = untimed(out / "metrics.jsonl")
    recipe = json.loads((out / "recipe.json").read_text())
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("extend", 1 + number) for number in range(recipe["steps"])),
        *(("anneal", 1 + number) for number in range(recipe["anneal_steps"])),
    ]
    assert lines == untimed(whole / "metrics.jsonl")
    for name in STAGES.values():
        found, expected = files(out / name), files(whole / name)
        assert found.keys() == expected.keys()
        for file in expected:
            assert found[file] == expected[file], f"{name}/{file} has other bytes"
    seen = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert seen == {"recipe.json", "metrics.jsonl", "loss.png", "memory.png", *STAGES.values()}


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
                model = inputs.model_for(self.recipe)
                run(inputs.shards, model, self.out, self.recipe, lambda _: None)
            except KeyboardInterrupt:
                sys.exit(130)

        process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        process.start()
        return process

    def live(self, hook: Hook = lambda: None) -> int:
        """The exit code of a process that nobody waits to kill."""
        return ended(self.start(hook))

    def metrics(self) -> tuple[int, int]:
        """Which file the metrics are, of the many that replace each other, and its whole lines."""
        try:
            with open(self.out / "metrics.jsonl", "rb") as stream:
                return os.fstat(stream.fileno()).st_ino, stream.read().count(b"\n")
        except FileNotFoundError:
            return 0, 0

    def wait_for_training(self, process: Any, before: int) -> int:
        """Until the process has its own file of metrics, not `before`; returns its lines."""
        while process.is_alive() and self.metrics()[0] == before:
            time.sleep(0.001)
        return self.metrics()[1]

    def wait_for_lines(self, number: int, is_alive: Callable[[], bool]) -> None:
        while is_alive() and self.metrics()[1] < number:
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

        replacing(home, self.call, dying)


@dataclass(frozen=True)
class AtStep:
    """When a step's line is due in the metrics; `half` of it is written before a kill."""

    stage: str
    step: int
    number: signal.Signals
    half: bool = False

    def __call__(self) -> None:
        real = MetricsLog.write

        def write(log: MetricsLog, step: int, **values: Any) -> None:
            due = (log._stage, step) == (self.stage, self.step)
            if due and self.half:
                with open(log._path, "a", encoding="utf-8") as stream:
                    line = json.dumps({"stage": log._stage, "step": step, **values})
                    stream.write(line[: 1 + 7 * self.step])
            else:
                real(log, step, **values)
            if due:
                os.kill(os.getpid(), self.number)

        replacing(MetricsLog, "write", write)


def replacing(home: Any, name: str, value: Any) -> None:
    """For the rest of a process's life."""
    assert hasattr(home, name)
    setattr(home, name, value)


# The command


def command(inputs: Inputs, recipe: TrainRecipe, out: Path) -> list[str]:
    """A recipe as the command line that a person would write."""
    options = {
        "--steps": recipe.steps,
        "--anneal-steps": recipe.anneal_steps,
        "--rows-per-step": recipe.rows_per_step,
        "--lr": recipe.lr,
        "--anneal-lr": recipe.anneal_lr,
        "--holdout-every": recipe.holdout_every,
        "--holdout-rows": recipe.holdout_rows,
        "--checkpoint-every": recipe.checkpoint_every,
        "--dtype": recipe.dtype,
        "--device": recipe.device,
    }
    words = ["run", inputs.shards, "--model", inputs.model, "--out", out]
    return [str(word) for word in (*words, *(w for pair in options.items() for w in pair))]


def start(words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lrtrain", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
