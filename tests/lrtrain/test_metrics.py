"""The metrics hold a line a step, whatever was killed before; TensorBoard shows the same."""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrdata.errors import LongRecipeError
from lrtrain.metrics import (
    METRICS,
    MetricsLog,
    note,
    peak_memory,
    read_metrics,
    summary_writer,
)
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run
from tests.lrtrain.tiny_runs import build_shards, save_tiny_model


def write_steps(
    folder: Path, stage: str, steps: range, *, tensorboard: bool = False, loss: float = 1.0
) -> None:
    """A try of a stage that goes on after the steps before `steps`; it is never closed."""
    log = MetricsLog(folder, stage, tensorboard)
    log.begin(after=steps.start - 1)
    for step in steps:
        log.write(step, loss=loss * step, mfu=None, tokens=10 * step)


def numbers(folder: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in read_metrics(folder / METRICS)]


def steps(stage: str, *numbers: int) -> list[tuple[str, int]]:
    return [(stage, number) for number in numbers]


def test_every_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, "extend")
    log.begin(after=0)
    assert not (tmp_path / METRICS).exists()
    for step in (1, 2):
        log.write(step, loss=0.5 * step, mfu=None, text="ä\n")
        text = (tmp_path / METRICS).read_text(encoding="utf-8")
        assert text.count("\n") == step
        assert text.endswith("\n")
    log.close()
    assert read_metrics(tmp_path / METRICS) == [
        {"stage": "extend", "step": step, "loss": 0.5 * step, "mfu": None, "text": "ä\n"}
        for step in (1, 2)
    ]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_later_lines_of_its_own_stage_are_dropped(tmp_path: Path, after: int) -> None:
    write_steps(tmp_path, "extend", range(1, 6))
    write_steps(tmp_path, "anneal", range(1, 6))
    lines = (tmp_path / METRICS).read_text().splitlines(keepends=True)
    MetricsLog(tmp_path, "anneal").begin(after)
    assert (tmp_path / METRICS).read_text() == "".join(lines[: 5 + after])
    write_steps(tmp_path, "anneal", range(after + 1, 8))
    assert numbers(tmp_path) == steps("extend", *range(1, 6)) + steps("anneal", *range(1, 8))


def test_a_step_that_is_written_again_has_one_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, "extend")
    log.begin(after=0)
    for step, loss in ((1, 1.0), (2, 2.0), (2, 0.5), (3, 3.0)):
        log.write(step, loss=loss)
    assert [line["loss"] for line in read_metrics(tmp_path / METRICS)] == [1.0, 0.5, 3.0]
    assert numbers(tmp_path) == steps("extend", 1, 2, 3)


def test_lines_of_later_stages_go_with_what_they_came_from(tmp_path: Path) -> None:
    """As where a person removed the models, to have them made anew: else they are drawn first."""
    write_steps(tmp_path, "extend", range(1, 6))
    write_steps(tmp_path, "anneal", range(1, 4))
    write_steps(tmp_path, "extend", range(3, 6))
    assert numbers(tmp_path) == steps("extend", *range(1, 6))


def test_what_a_kill_cut_is_dropped(tmp_path: Path) -> None:
    """At any byte, of this stage and of the one before."""
    write_steps(tmp_path, "extend", range(1, 3))
    text = (tmp_path / METRICS).read_text()
    cut = json.dumps({"stage": "extend", "step": 3, "loss": 1.5}) + "\n"
    for length in range(1, len(cut)):
        for stage, after in (("extend", 3), ("anneal", 0)):
            (tmp_path / METRICS).write_text(text + cut[:length])
            assert numbers(tmp_path) == steps("extend", 1, 2)
            MetricsLog(tmp_path, stage).begin(after)
            assert (tmp_path / METRICS).read_text() == text
    write_steps(tmp_path, "extend", range(3, 4))
    assert numbers(tmp_path) == steps("extend", 1, 2, 3)


# TensorBoard


def events(folder: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard" / stage))
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def test_tensorboard_reads_the_same_lines(tmp_path: Path) -> None:
    write_steps(tmp_path, "extend", range(1, 6), tensorboard=True)
    write_steps(tmp_path, "anneal", range(1, 3), tensorboard=True, loss=0.5)
    for stage in ("extend", "anneal"):
        lines = [line for line in read_metrics(tmp_path / METRICS) if line["stage"] == stage]
        found = events(tmp_path, stage)
        assert found.keys() == {"loss", "tokens"}, "what was not measured is left out"
        for name, values in found.items():
            assert values == [(line["step"], line[name]) for line in lines]


def _from_second(folder: Path, number: int) -> None:
    """As if what was written last began then: TensorBoard reads files in the order of their names,
    which hold the second."""
    (written,) = folder.glob("events.out.tfevents.1[1-9]*")
    written.rename(folder / f"events.out.tfevents.{10**9 + number}.host.1.0")


@pytest.mark.parametrize("after", [0, 3, 5])
def test_steps_that_are_done_again_are_not_shown_twice(tmp_path: Path, after: int) -> None:
    """A try that was killed in step 6, one in step 7, and a last one, each from a checkpoint."""
    tries = range(1, 6), range(after + 1, 7), range(after + 2, 9)
    for number, (tried, loss) in enumerate(zip(tries, (1.0, 2.0, 4.0), strict=True)):
        write_steps(tmp_path, "extend", tried, tensorboard=True, loss=loss)
        _from_second(tmp_path / "tensorboard" / "extend", number)
    expected = [
        (step, step * (1.0 if step <= after else 2.0 if step <= after + 1 else 4.0))
        for step in range(1, 9)
    ]
    assert events(tmp_path, "extend")["loss"] == expected
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / METRICS)] == expected


def _without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)


def test_tensorboard_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert summary_writer().__name__ == "SummaryWriter"
    _without_tensorboard(monkeypatch)
    for ask in (summary_writer, lambda: MetricsLog(tmp_path, "extend", True).begin(0)):
        with pytest.raises(LongRecipeError) as problem:
            ask()
        assert str(problem.value) == (
            "--tensorboard needs it installed: pip install 'longrecipe[tensorboard]'"
        )
    write_steps(tmp_path, "extend", range(1, 3))  # nobody asked for it


def test_a_run_writes_what_tensorboard_shows(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = build_shards(tiny_tokenizer, tmp_path / "shards")
    model = save_tiny_model(tiny_tokenizer, tmp_path / "model")
    recipe = TrainRecipe(
        stages=("extend",), steps=2, rows_per_step=2, dtype="fp32", device="cpu", tensorboard=True
    )
    with monkeypatch.context() as patch:
        _without_tensorboard(patch)
        with pytest.raises(LongRecipeError, match=r"longrecipe\[tensorboard\]"):
            run(shards, str(model), tmp_path / "run", recipe, lambda _: None)
    assert not (tmp_path / "run").exists(), "refused before anything is written"
    run(shards, str(model), tmp_path / "run", recipe, lambda _: None)
    lines = read_metrics(tmp_path / "run" / METRICS)
    found = events(tmp_path / "run", "extend")
    assert found.keys() == lines[-1].keys() - {"stage", "step", "mfu"}
    for name, values in found.items():
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert [step for step, _ in values] == [step for step, _ in expected]
        assert [v for _, v in values] == pytest.approx([v for _, v in expected], rel=1e-6)
    again = replace(recipe, tensorboard=False)  # of no matter for what is trained
    assert run(shards, str(model), tmp_path / "run", again, lambda _: None)


# Memory, and the line of the progress bar


def test_the_peak_of_a_cpu_is_that_of_the_process() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before.keys() == {"peak_memory_bytes", "peak_host_bytes"}
    assert before["peak_memory_bytes"] == before["peak_host_bytes"] > 10**7
    held = torch.ones(10**7)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    after = peak_memory(torch.device("cpu"))["peak_host_bytes"]
    assert after >= before["peak_host_bytes"]
    assert after >= 0.95 * resident > held.nbytes, "the kernel counts pages in batches"


def test_the_peak_of_a_gpu_is_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12_345)
    found = peak_memory(torch.device("cuda"))
    assert found["peak_memory_bytes"] == 12_345
    assert found["peak_host_bytes"] == peak_memory(torch.device("cpu"))["peak_host_bytes"]


def test_the_note_says_what_matters() -> None:
    values: dict[str, Any] = {
        "loss": 2.34567,
        "tokens_per_s": 12_345.6,
        "mfu": 0.412,
        "peak_memory_bytes": 61_200_000_000,
    }
    assert note(values) == "loss 2.346  12,346 tok/s  MFU 41%  peak 61.2 GB"
    assert note({**values, "mfu": None}) == "loss 2.346  12,346 tok/s  peak 61.2 GB"
