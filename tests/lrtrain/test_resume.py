"""A run that dies at any moment and is started again is, bit for bit, one that nobody disturbed.

`Run` starts one process after the other on one folder (`tests.lrtrain.lives`). After each death
what has a final name has its final bytes, and what a checkpoint holds is not trained again.
"""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lrtrain.loop
import lrtrain.model
import lrtrain.step
from lrdata.errors import LongRecipeError
from lrtrain.checkpoint import Checkpoints
from lrtrain.loss import piece_loss
from lrtrain.metrics import read_metrics
from lrtrain.optim import AdamW
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run
from tests.lrtrain.lives import (
    SECONDS_TO_FINISH,
    AtStep,
    Death,
    Inputs,
    Run,
    assert_nothing_half,
    assert_the_same,
    command,
    ended,
    files,
    kept_lines,
    replacing,
    start,
    untimed,
)
from tests.lrtrain.tiny_runs import WIDE, build_shards, save_tiny_model

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
    "as little memory as can be": replace(
        RECIPE,
        dtype="bf16",
        masters="none",
        gradients="bf16",
        moments="8bit",
        offload=("optimizer", "activations"),
        checkpointing=True,
        mlp_tokens=48,
    ),
}
ONE_QUICKLY = [
    pytest.param(name, marks=[pytest.mark.slow] * bool(place)) for place, name in enumerate(RECIPES)
]
"""Their names; all but the first are for those who have time."""
SHORT = replace(WEIGHTED, steps=5, anneal_steps=3, clip=0.5)
"""Checkpoints after steps 2 and 4 of extend and 2 of anneal; the fifth step is in none."""

STOPS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    return Inputs(
        build_shards(tiny_tokenizer, root / "shards"),
        save_tiny_model(tiny_tokenizer, root / "tiny"),
        save_tiny_model(tiny_tokenizer, root / "wide", width=WIDE),
    )


Undisturbed = Callable[[TrainRecipe], Path]


@pytest.fixture(scope="module")
def undisturbed(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a recipe's run that came to its end at once."""
    made: dict[TrainRecipe, Path] = {}

    def folder(recipe: TrainRecipe) -> Path:
        if recipe not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            run(inputs.shards, inputs.model_for(recipe), out, recipe, lambda _: None)
            made[recipe] = out
        return made[recipe]

    return folder


def test_the_recipe_in_8_bits_has_them_for_every_matrix(inputs: Inputs, tmp_path: Path) -> None:
    """Else nothing here would be of 8 bits."""
    recipe = RECIPES["as little memory as can be"]
    stopped(inputs, recipe, tmp_path / "run")
    checkpoint = Checkpoints(tmp_path / "run", "extend", keep=1).latest()
    assert checkpoint is not None
    names = {name for name, _ in checkpoint.tensors()}
    matrices = {name.partition(".")[2] for name in names if name.startswith("exp_avg_codes.")}
    vectors = {name.partition(".")[2] for name in names if name.startswith("exp_avg.")}
    assert "lm_head.weight" in matrices
    assert all("norm" in name for name in vectors)


# Killed at random moments

KILLS = 25


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECIPES))
def test_kills_at_random_moments_change_no_bit(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe, whole = RECIPES[name], undisturbed(RECIPES[name])
    assert recipe.steps
    assert recipe.anneal_steps
    ends = recipe.steps, recipe.steps + recipe.anneal_steps
    draw, kills, midway, folders = random.Random(name), 0, 0, 0
    while kills < KILLS or not midway:
        folders += 1
        alive, code = Run(inputs, recipe, tmp_path / f"{folders}"), -signal.SIGKILL
        while code:
            before, lines = alive.metrics()
            kept = kept_lines(alive.out) if lines else ""
            process = alive.start()
            if kills < KILLS:  # after a few steps more, or when a stage comes to its end
                lines = alive.wait_for_training(process, before)
                end = ends[lines >= ends[0]]
                last = end if draw.random() < 0.4 else min(lines + draw.randint(0, 4), end)
                alive.wait_for_lines(last, process.is_alive)
                time.sleep(draw.random() / 15)  # a few steps, or all of saving a model
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


# Killed at the worst moments

PLACES: dict[str, Death | AtStep] = {
    "before the recipe has its name": Death("before", "replace", r"/recipe\.json$"),
    "after the recipe has its name": Death("after", "replace", r"/recipe\.json$"),
    "after the first step": AtStep("extend", 1, signal.SIGKILL),
    "while a line is written half": AtStep("extend", 3, signal.SIGKILL, half=True),
    "before a checkpoint is begun": Death("before", "mkdir", r"extend-000004\.partial$"),
    "before a checkpoint has its state": Death("before", "replace", r"extend-000004.*state\.json$"),
    "before a checkpoint has its name": Death("before", "rename", r"/extend-000004$"),
    "before the first checkpoint has its name": Death("before", "rename", r"/extend-000002$"),
    "after a checkpoint has its name": Death("after", "rename", r"/extend-000004$"),
    "when the old one has no state": Death("after", "unlink", r"/state\.json$"),
    "when the old one has no tensors": Death("after", "unlink", r"^rank-000-00001\."),
    "after the last step": AtStep("extend", 5, signal.SIGKILL),
    "before the model is saved": Death("before", "mkdir", r"/\.extend\.partial$"),
    "before the model has its name": Death("before", "rename", r"/extend$"),
    "after the model has its name": Death("after", "rename", r"/extend$"),
    "while the last checkpoint goes": Death("after", "unlink", r"/state\.json$", 2),
    "when the checkpoints are an empty folder": Death("before", "rmdir", r"/checkpoints$"),
    "before the next stage has its metrics": Death("before", "replace", r"/metrics\.jsonl$"),
    "while a line of the next stage is written half": AtStep(
        "anneal", 3, signal.SIGKILL, half=True
    ),
    "before the next stage's checkpoint has its name": Death(
        "before", "rename", r"/anneal-000002$"
    ),
    "after the next stage's checkpoint has its name": Death("after", "rename", r"/anneal-000002$"),
    "before the next model has its name": Death("before", "rename", r"/anneal$"),
    "after the next model has its name": Death("after", "rename", r"/anneal$"),
    "before the merged model has its name": Death("before", "rename", r"/merged$"),
    "after the merged model has its name": Death("after", "rename", r"/merged$"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
def test_a_death_at_the_worst_moment_changes_no_bit(
    place: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, alive = undisturbed(SHORT), Run(inputs, SHORT, tmp_path / "run")
    assert alive.live(PLACES[place]) == -signal.SIGKILL, f"it did not die {place}"
    assert_nothing_half(alive.out, whole)
    kept = kept_lines(alive.out) if alive.metrics()[1] else ""
    assert alive.live() == 0
    assert_the_same(alive.out, whole)
    assert (alive.out / "metrics.jsonl").read_text().startswith(kept)


@pytest.mark.parametrize("name", ONE_QUICKLY)
def test_a_run_that_dies_again_and_again_changes_no_bit(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """At one moment after the other, each time going on from where it died before."""
    whole, alive = undisturbed(RECIPES[name]), Run(inputs, RECIPES[name], tmp_path / "run")
    every = RECIPES[name].checkpoint_every
    for death in (
        AtStep("extend", 1, signal.SIGKILL),
        Death("after", "rename", f"/extend-{every:06d}$"),
        AtStep("extend", every + 1, signal.SIGKILL, half=True),
        Death("before", "rename", f"/extend-{2 * every:06d}$"),
        Death("before", "rename", f"/extend-{2 * every:06d}$"),
        Death("after", "rename", f"/extend-{3 * every:06d}$"),
        AtStep("extend", 12, signal.SIGKILL, half=True),
        Death("before", "rename", r"/extend$"),
        Death("before", "replace", r"/\.anneal-.*/state\.json$"),
        AtStep("anneal", every + 1, signal.SIGKILL, half=True),
        AtStep("anneal", 6, signal.SIGKILL),
        Death("before", "rename", r"/anneal$"),
        Death("before", "rename", r"/merged$"),
    ):
        assert alive.live(death) == -signal.SIGKILL, f"it did not die at {death}"
        assert_nothing_half(alive.out, whole)
    assert alive.live() == 0
    assert_the_same(alive.out, whole)


def test_the_picture_shows_all_steps_wherever_a_run_died(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """It is drawn last, when the stage's model is there."""
    whole, alive = undisturbed(SHORT), Run(inputs, SHORT, tmp_path / "run")
    assert alive.live(Death("after", "rename", r"/anneal$")) == -signal.SIGKILL
    assert alive.live() == 0
    assert (alive.out / "loss.png").read_bytes() == (whole / "loss.png").read_bytes()


# Asked to stop


@pytest.mark.parametrize("name", ONE_QUICKLY)
def test_a_run_that_is_asked_to_stop_loses_no_step(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """However many checkpoints it makes else: here none."""
    recipe, whole = replace(RECIPES[name], checkpoint_every=0), undisturbed(RECIPES[name])
    alive = Run(inputs, recipe, tmp_path / "run")
    for stage, step in (("extend", 1), ("extend", 7), ("extend", 8), ("anneal", 1), ("anneal", 5)):
        assert alive.live(AtStep(stage, step, signal.SIGINT)) == 130
        checkpoint = Checkpoints(alive.out, stage, keep=1).latest()
        assert checkpoint is not None
        assert checkpoint.step == step
        last = untimed(alive.out / "metrics.jsonl")[-1]
        assert (last["stage"], last["step"]) == (stage, step)
        text = (alive.out / "metrics.jsonl").read_text()
        assert kept_lines(alive.out) == text
        assert_nothing_half(alive.out, whole)
    assert alive.live() == 0
    assert (alive.out / "metrics.jsonl").read_text().startswith(text)
    assert_the_same(alive.out, whole)


def test_a_stop_in_the_last_step_is_heard(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Or the next stage would begin, which may take hours, as if nobody had asked."""
    whole, alive = undisturbed(SHORT), Run(inputs, SHORT, tmp_path / "run")
    assert alive.live(AtStep("extend", 5, signal.SIGINT)) == 130
    text = (alive.out / "metrics.jsonl").read_text()
    assert [line["stage"] for line in read_metrics(alive.out / "metrics.jsonl")] == ["extend"] * 5
    assert alive.live() == 0
    assert (alive.out / "metrics.jsonl").read_text().startswith(text), "steps were done again"
    assert_the_same(alive.out, whole)


def test_a_stop_while_the_model_is_saved_loses_no_step(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Without checkpoints on the way all of the stage would be lost."""
    recipe, whole = replace(SHORT, checkpoint_every=0), undisturbed(SHORT)
    alive = Run(inputs, recipe, tmp_path / "run")
    stop = Death("after", "mkdir", r"/\.extend\.partial$", number=signal.SIGINT)
    assert alive.live(stop) == 130
    text = (alive.out / "metrics.jsonl").read_text()
    assert alive.live() == 0
    assert (alive.out / "metrics.jsonl").read_text().startswith(text), "steps were done again"
    assert_the_same(alive.out, whole)


@pytest.mark.parametrize("every", [0, 2])
def test_a_model_that_cannot_be_saved_costs_no_step(
    every: int,
    inputs: Inputs,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk, or what another library refuses: the line says what was wrong."""
    recipe, whole = replace(SHORT, checkpoint_every=every), undisturbed(SHORT)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lrtrain.model, "copy_tokenizer", full)
    with pytest.raises(OSError, match="No space left"):
        run(inputs.shards, str(inputs.model), tmp_path / "run", recipe, lambda _: None)
    monkeypatch.undo()
    alive = Run(inputs, recipe, tmp_path / "run")
    latest = Checkpoints(alive.out, "extend", keep=1).latest()
    assert latest is not None
    assert latest.step == recipe.steps
    assert_nothing_half(alive.out, whole)
    text = (alive.out / "metrics.jsonl").read_text()
    assert alive.live() == 0
    assert (alive.out / "metrics.jsonl").read_text().startswith(text), "steps were done again"
    assert_the_same(alive.out, whole)


def test_what_failed_first_is_said_where_a_checkpoint_fails_too(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(what: str) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise LongRecipeError(what)

        return fail

    monkeypatch.setattr(lrtrain.model, "copy_tokenizer", failing("no tokenizer"))
    monkeypatch.setattr(Checkpoints, "save", failing("no checkpoint"))
    recipe = replace(SHORT, checkpoint_every=0)
    with pytest.raises(LongRecipeError, match="no tokenizer"):
        run(inputs.shards, str(inputs.model), tmp_path / "run", recipe, lambda _: None)


def test_a_second_signal_ends_it_at_once_and_the_run_still_goes_on(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Without a checkpoint of where it was: it goes on from the one before."""
    whole, alive = undisturbed(SHORT), Run(inputs, SHORT, tmp_path / "run")

    def two_signals() -> None:
        AtStep("extend", 3, signal.SIGINT)()
        AtStep("extend", 3, signal.SIGINT)()

    assert alive.live(two_signals) == 130
    latest = Checkpoints(alive.out, "extend", keep=1).latest()
    assert latest is not None
    assert latest.step == 2
    assert alive.live() == 0
    assert_the_same(alive.out, whole)


@pytest.mark.parametrize("numbers", [STOPS, STOPS[::-1]])
def test_the_other_signal_after_one_loses_no_step(
    numbers: Sequence[signal.Signals], inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A Ctrl-C that the terminal told this process and a launcher passed on."""
    whole, alive = undisturbed(SHORT), Run(inputs, SHORT, tmp_path / "run")

    def two_signals() -> None:
        for number in numbers:
            AtStep("extend", 3, number)()

    assert alive.live(two_signals) == 130
    latest = Checkpoints(alive.out, "extend", keep=1).latest()
    assert latest is not None
    assert latest.step == 3
    assert alive.live() == 0
    assert_the_same(alive.out, whole)


# Going on with other options, damage, chance


def stopped(inputs: Inputs, recipe: TrainRecipe, out: Path) -> Run:
    """A run that was asked to stop after the third step."""
    alive = Run(inputs, recipe, out)
    assert alive.live(AtStep("extend", 3, signal.SIGINT)) == 130
    return alive


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_every": 0},
        {"checkpoint_every": 1, "keep_checkpoints": 3},
        {"checkpointing": True, "device": "cpu"},  # as where there is less memory
    ],
)
def test_what_changes_no_number_may_change(
    change: dict[str, Any], inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    alive = stopped(inputs, SHORT, tmp_path / "run")
    changed = Run(inputs, replace(SHORT, **change), alive.out)
    assert changed.live() == 0
    whole = undisturbed(SHORT)
    recipes = [json.loads((out / "recipe.json").read_text()) for out in (alive.out, whole)]
    assert recipes[0] == {**recipes[1], **change}
    assert_the_same(alive.out, whole)


def test_without_a_number_of_steps_it_is_saved_by_the_clock(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps of 12 minutes after every second one; of quick ones never. To the same bits."""
    save, update = Checkpoints.save, AdamW.step
    seconds, of_a_step = 0.0, 1.0
    saved: list[tuple[str, int]] = []

    def saving(checkpoints: Checkpoints, step: int, *given: Any) -> Any:
        saved.append((checkpoints.stage, step))
        return save(checkpoints, step, *given)

    def step(*given: Any) -> None:
        nonlocal seconds
        seconds += of_a_step
        update(*given)

    monkeypatch.setattr(Checkpoints, "save", saving)
    monkeypatch.setattr(AdamW, "step", step)
    monkeypatch.setattr(lrtrain.loop, "time", SimpleNamespace(monotonic=lambda: seconds))
    recipe = replace(SHORT, checkpoint_every=None)
    run(inputs.shards, str(inputs.model), tmp_path / "quick", recipe, lambda _: None)
    assert saved == []
    of_a_step = 12 * 60.0
    run(inputs.shards, str(inputs.model), tmp_path / "slow", recipe, lambda _: None)
    assert saved == [("extend", 2), ("extend", 4), ("anneal", 2)]
    for name in ("quick", "slow"):
        assert_the_same(tmp_path / name, undisturbed(SHORT))


def test_what_is_learnt_may_not(inputs: Inputs, tmp_path: Path) -> None:
    alive = stopped(inputs, SHORT, tmp_path / "run")
    before = files(alive.out)
    for name, value in {"lr": 1e-3, "steps": 6, "seed": 1, "dtype": "bf16"}.items():
        recipe = replace(SHORT, **{name: value})  # type: ignore[arg-type]
        with pytest.raises(LongRecipeError, match="holds another run") as problem:
            run(inputs.shards, str(inputs.model), alive.out, recipe, lambda _: None)
        assert name in str(problem.value)
        assert "\n" not in str(problem.value)
        assert files(alive.out) == before


def test_a_damaged_checkpoint_loses_nothing(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One line says which it is; without it the run goes on from the one before."""
    recipe = replace(SHORT, keep_checkpoints=2)
    alive = stopped(inputs, recipe, tmp_path / "run")
    checkpoints = Checkpoints(alive.out, "extend", keep=2)
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [2, 3]
    damaged = checkpoints.all()[-1].folder
    tensors = damaged / "rank-000-00001.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    before = files(alive.out)
    with pytest.raises(LongRecipeError, match=f"{damaged} is damaged") as problem:
        run(inputs.shards, str(inputs.model), alive.out, recipe, lambda _: None)
    assert "\n" not in str(problem.value)
    assert files(alive.out) == before
    shutil.rmtree(damaged)
    assert alive.live() == 0
    assert_the_same(alive.out, undisturbed(SHORT))


def test_chances_of_a_step_that_was_stopped_are_drawn_again(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Gradients are added up by chance: those of half a step are gone, and so is what they drew."""
    recipe = replace(SHORT, dtype="bf16", gradients="bf16", micro_tokens=0, checkpoint_every=0)
    whole, alive = undisturbed(recipe), Run(inputs, recipe, tmp_path / "run")
    real, micro_batches = lrtrain.step.batch_loss, 0

    def stopping(*given: Any) -> torch.Tensor:
        nonlocal micro_batches
        micro_batches += 1
        if micro_batches == 2 * recipe.rows_per_step + 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    assert alive.live(lambda: replacing(lrtrain.step, "batch_loss", stopping)) == 130
    latest = Checkpoints(alive.out, "extend", keep=1).latest()
    assert latest is not None
    assert latest.step == 2
    assert alive.live() == 0
    assert_the_same(alive.out, whole)


def test_what_is_drawn_at_random_goes_on_too(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """No model here draws; so let the loss do it."""

    def noisy() -> None:
        replacing(lrtrain.step, "piece_loss", lambda *given: piece_loss(*given) * torch.rand(()))

    def noisy_and_stopped() -> None:
        noisy()
        AtStep("extend", 3, signal.SIGINT)()

    whole, alive = (Run(inputs, SHORT, tmp_path / name) for name in ("whole", "run"))
    assert whole.live(noisy) == 0
    assert alive.live(noisy_and_stopped) == 130
    assert alive.live(noisy) == 0
    assert_the_same(alive.out, whole.out)
    quiet = untimed(undisturbed(SHORT) / "metrics.jsonl")
    assert all(
        one["loss"] != other["loss"]
        for one, other in zip(untimed(alive.out / "metrics.jsonl"), quiet, strict=True)
    )


# The command


@pytest.mark.slow
@pytest.mark.parametrize(("every", "then"), [(4, 4), (0, 3)])
def test_the_command_stops_at_a_signal_and_goes_on(
    every: int, then: int, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe, out = replace(RECIPE, steps=60, checkpoint_every=every), tmp_path / "run"
    whole = undisturbed(replace(RECIPE, steps=60))
    process, alive = start(command(inputs, recipe, out)), Run(inputs, recipe, out)
    try:
        alive.wait_for_lines(3, lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=SECONDS_TO_FINISH)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    (line,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: interrupted; ")
    assert "Traceback" not in stderr
    checkpoint = Checkpoints(out, "extend", keep=1).latest()
    assert checkpoint is not None
    text = (out / "metrics.jsonl").read_text()
    assert checkpoint.step == text.count("\n") >= 3
    with pytest.raises(LongRecipeError, match="another run"):
        run(inputs.shards, str(inputs.model), out, replace(recipe, lr=1e-3), lambda _: None)
    process = start(command(inputs, replace(recipe, checkpoint_every=then), out))
    try:
        _, stderr = process.communicate(timeout=SECONDS_TO_FINISH)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert (out / "metrics.jsonl").read_text().startswith(text)
    assert_the_same(out, whole)
