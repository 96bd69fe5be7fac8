"""Ranks that are told to stop, die or hang: the others end in time and say so, and it goes on.

To the losses of a run that nobody disturbed, within what is let pass in `test_distributed_runs`.
"""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lrtrain.checkpoint import Checkpoints
from lrtrain.cli_next import eval_command
from lrtrain.metrics import METRICS
from lrtrain.recipe import TrainRecipe
from tests.lrtrain.blows import (
    FP32,
    RECIPE,
    Blow,
    Undisturbed,
    Where,
    assert_said_once,
    latest,
    steps_of,
    stopped,
    train_until,
)
from tests.lrtrain.lives import command
from tests.lrtrain.many import (
    Inputs,
    Ranks,
    build_inputs,
    differences,
    on_ranks,
    train,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return build_inputs(tiny_tokenizer, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory)


# Signals

STOPS: dict[str, tuple[int, int, Blow, int]] = {
    "one, in the middle of a step": (2, 2, Blow([1], signal.SIGTERM, "in a step", 3), 2),
    "the first, after a step": (2, 1, Blow([0], signal.SIGTERM, "after a step", 3), 3),
    "one, whose terminal has gone": (2, 1, Blow([1], signal.SIGHUP, "in a step", 3), 2),
    "all, in the middle of a step": (4, 2, Blow(range(4), signal.SIGTERM, "in a step", 3), 2),
    "all, after the last step": (2, 2, Blow(range(2), signal.SIGINT, "after a step", 5), 5),
    "one, while the model is saved": (2, 1, Blow([0], signal.SIGTERM, "in an export"), 0),
}
"""Ranks, how many share a row, who is told and when, and the step of the checkpoint."""


@pytest.mark.parametrize("name", list(STOPS))
def test_all_ranks_stop_where_one_is_told_to(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """With a checkpoint of the last whole step, and one line; the same command goes on."""
    size, context, blow, step = STOPS[name]
    out, recipe = tmp_path / "run", replace(RECIPE, context_parallel=context)
    ended = stopped(inputs, recipe, out, size, blow)
    assert_said_once(ended, "interrupted; the same command goes on", by=0, code=130)
    if step:
        assert latest(out) == step
        assert steps_of(out) == list(range(1, step + 1))
        assert dict(Checkpoints(out, "extend", 1).all()[-1].tensors())
    before = (out / METRICS).read_text()
    on_ranks(size, train, inputs, out, recipe)
    assert (out / METRICS).read_text().startswith(before), "steps were done again"
    found = differences(inputs, out, undisturbed(inputs, RECIPE))
    assert found.within(**FP32), found


def _interrupted_twice(
    again: signal.Signals, inputs: Inputs, out: Path, recipe: TrainRecipe
) -> None:
    blow = Blow([1], again, "in a checkpoint")
    blow.prepare()
    train_until(
        Blow([0, 1], signal.SIGINT, "after a step", 3), out.parent / "blow", inputs, out, recipe
    )


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_passed_on_does_not_stop_the_saving(
    again: signal.Signals, inputs: Inputs, tmp_path: Path
) -> None:
    """What started the ranks tells them once more, by the same signal; or ends those that are left
    by the other."""
    out = tmp_path / "run"
    ended = Ranks(2, _interrupted_twice, again, inputs, out, RECIPE).end()
    assert_said_once(ended, "interrupted", by=0, code=130)
    assert latest(out) == 3


# Death

DEATHS: dict[str, tuple[int, int, Blow]] = {
    "in a check": (2, 1, Blow([1], signal.SIGKILL, "in a check")),
    "before a step": (2, 1, Blow([1], signal.SIGKILL, "before a step", 3)),
    "in a step, of a row's ranks": (4, 2, Blow([2], signal.SIGKILL, "in a step", 3)),
    "after a step": (2, 2, Blow([1], signal.SIGKILL, "after a step", 3)),
    "in a checkpoint": (2, 1, Blow([1], signal.SIGKILL, "in a checkpoint")),
    "the first, in an export": (2, 2, Blow([0], signal.SIGKILL, "in an export")),
    "the first, in a step": (2, 2, Blow([0], signal.SIGKILL, "in a step", 3)),
}
"""Ranks, how many share a row, who dies and when."""
GONE = r"rank \d of \d: another rank died or did not answer in time \(.+\); run the same command"


@pytest.mark.parametrize("name", list(DEATHS))
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    size, context, blow = DEATHS[name]
    out, recipe = tmp_path / "run", replace(RECIPE, context_parallel=context, checkpoint_every=2)
    ended = stopped(inputs, recipe, out, size, blow)
    for rank, one in enumerate(ended):
        if rank in blow.ranks:
            assert one.code == -signal.SIGKILL
        else:
            assert (one.code, len(one.errors)) == (1, 1), one.said
            assert re.search(GONE, one.errors[0]), one.errors
    for checkpoint in Checkpoints(out, "extend", 1).all():
        assert dict(checkpoint.tensors())
    on_ranks(size, train, inputs, out, recipe)
    assert steps_of(out) == [1, 2, 3, 4, 5]
    found = differences(inputs, out, undisturbed(inputs, RECIPE))
    assert found.within(**FP32), found


@pytest.mark.parametrize(
    "where", ["in a step", pytest.param("after a step", marks=pytest.mark.slow)]
)
def test_a_rank_that_hangs_ends_the_others(where: Where, inputs: Inputs, tmp_path: Path) -> None:
    blow = Blow([1], signal.SIGSTOP, where, 2)
    recipe = replace(RECIPE, rank_timeout=3, context_parallel=2)
    for one in stopped(inputs, recipe, tmp_path / "run", 4, blow):
        assert (one.code, len(one.errors)) == (1, 1), one.said
        assert re.search(GONE, one.errors[0]), one.errors


# The command


def torchrun(inputs: Inputs, recipe: TrainRecipe, out: Path) -> subprocess.Popen[str]:
    """On two ranks, in a process group of its own, as a terminal would start it."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lrtrain"]
    split = ["--context-parallel", str(recipe.context_parallel)]
    return subprocess.Popen(
        [sys.executable, *start, *command(inputs, recipe, out), *split],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(process: subprocess.Popen[str], out: Path) -> None:
    """More than two of them, or its end."""
    while process.poll() is None and not ((out / METRICS).exists() and len(steps_of(out)) > 2):
        time.sleep(0.01)


def test_a_signal_to_every_process_of_a_job_costs_no_step(inputs: Inputs, tmp_path: Path) -> None:
    """A scheduler tells torchrun and its ranks, whom torchrun tells once more."""
    out = tmp_path / "run"
    recipe = replace(RECIPE, steps=400, rows_per_step=3, anneal_steps=1)
    process = torchrun(inputs, recipe, out)
    try:
        wait_for_steps(process, out)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(ranks) == 2
        for number in (process.pid, *map(int, ranks)):
            os.kill(number, signal.SIGTERM)
        _, complained = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "error: interrupted; the same command goes on" in complained
    done = latest(out)
    assert steps_of(out) == list(range(1, done + 1))
    assert 2 < done < 400, "it came too late"


def test_the_command_under_torchrun(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Ctrl-C leaves a checkpoint, the same command goes on to the end, and one rank speaks."""
    out = tmp_path / "run"
    recipe = TrainRecipe(
        steps=40, anneal_steps=2, rows_per_step=3, lr=1e-3, dtype="fp32", device="cpu"
    )
    split = replace(recipe, context_parallel=2, checkpoint_every=0)
    process = torchrun(inputs, split, out)
    try:
        wait_for_steps(process, out)
        os.killpg(process.pid, signal.SIGINT)
        said, complained = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert complained.count("error: interrupted; the same command goes on") == 1, complained
    assert complained.count("Traceback") == complained.count("SignalException: ") == 1, "torchrun's"
    assert "lrtrain/" not in complained, complained
    assert said.count("attention: sdpa, on 2 ranks, cpu, a row over 2 of them") == 1
    done = latest(out)
    assert steps_of(out) == list(range(1, done + 1))
    assert 2 < done < 40, "it came too late"
    process = torchrun(inputs, replace(split, checkpoint_every=7), out)
    try:
        said, complained = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, complained
    made = ", ".join(str(out / name) for name in ("extend", "anneal", "merged"))
    lines = [line for line in said.splitlines() if line]
    assert lines == [
        "attention: sdpa, on 2 ranks, cpu, a row over 2 of them",
        f"made {made}",
        f"see what it retrieves with: {eval_command(str(inputs.model), out / 'merged')}",
    ]
    for stage in ("extend: 40/40 loss ", "anneal: 2/2 loss "):
        assert complained.count(stage) == 1, complained
    assert "Warning" not in complained.replace("OMP_NUM_THREADS", ""), complained
    found = differences(inputs, out, undisturbed(inputs, recipe))
    assert found.within(losses=2e-5, weights=1e-3), found
    assert (out / "loss.png").exists()
