"""RULER in the report: means over tasks, what was answered, tables, figures; and the command."""

import io
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lrtrain.cli import main
from lrtrain.evaluation.report import ModelEntry, Report, mean, print_report, write_report
from lrtrain.evaluation.report.ruler import SHOWN, score_at
from lrtrain.evaluation.report.tables import half
from lrtrain.evaluation.ruler import TASKS, RulerCell
from tests.lrtrain.tiny_models import save_tiny

NAMES = ("niah_single_1", "vt")
LENGTHS = (1024, 4096)


def entry(name: str, window: int) -> ModelEntry:
    return ModelEntry(
        name, name, None, None, window, "default", 10_000.0, 1000, "0" * 64, "float32", "cpu"
    )


def report_of(models: int) -> Report:
    """Scores that fall with the length, and of the later models less."""
    report = Report(settings={}, versions={})
    for index in range(models):
        name = f"model {index} [x]"
        report.models.append(entry(name, 2048 << index))
        for length in LENGTHS:
            for task in NAMES:
                better = (task == "vt") + (length == 1024)
                values = (0.0, 0.2 * better, 0.4 * better, 0.25 * index)
                answers = tuple(f"answer {sample}\n[{task}]" for sample in range(4))
                report.cells.append(
                    RulerCell(name, task, length, 30, values, answers, (("a", "b"),) * 4, (5, 6))
                )
    return report


def test_means_are_of_the_samples_of_all_tasks() -> None:
    report = report_of(2)
    for model in report.models:
        for length in LENGTHS:
            cells = [
                cell
                for cell in report.of(RulerCell)
                if (cell.model, cell.length) == (model.name, length)
            ]
            found = score_at(report, model.name, length)
            assert found
            assert found.value == pytest.approx(np.mean([cell.score for cell in cells]))
            assert found.count == 8
            for cell in cells:
                alone = score_at(report, model.name, length, cell.task)
                assert alone
                assert alone.value == pytest.approx(np.mean(cell.score))
    assert score_at(report, "nobody", 1024) is None
    assert score_at(report, report.models[0].name, 1024, "cwe") is None


def test_what_differs_between_tasks_does_not_widen_the_interval() -> None:
    report = Report(settings={}, versions={}, models=[entry("one", 1024)])
    for task, value in (("vt", 0.0), ("cwe", 1.0)):
        cell = RulerCell("one", task, 1024, 30, (value,) * 4, ("",) * 4, (("a",),) * 4)
        report.cells.append(cell)
    found = score_at(report, "one", 1024)
    assert found
    assert found.as_list() == [0.5, 0.5, 0.5]


def test_a_mean_over_tasks_has_the_analytic_standard_error() -> None:
    """That of a stratified mean, whatever seeds its samples are of."""
    draw = np.random.default_rng(7)
    for seeds in (1, 5):
        report = Report(settings={}, versions={}, models=[entry("one", 1024)])
        variance = 0.0
        for index, task in enumerate(TASKS):
            scores = index / 20 + draw.uniform(0, 0.5, 5)
            variance += scores.var(ddof=1) / 5 / len(TASKS) ** 2
            values, seed = tuple(scores.tolist()), tuple(range(seeds))
            report.cells.append(
                RulerCell("one", task, 1024, 30, values, ("",) * 5, (("a",),) * 5, seed)
            )
        found = score_at(report, "one", 1024)
        assert found
        assert half(found) == pytest.approx(1.96 * math.sqrt(variance), rel=0.06)


def test_tasks_of_a_sample_each_are_one_sample() -> None:
    report = Report(settings={}, versions={}, models=[entry("one", 1024)])
    for index, task in enumerate(TASKS):
        cell = RulerCell("one", task, 1024, 30, (index / 10,), ("",), (("a",),))
        report.cells.append(cell)
    found = score_at(report, "one", 1024)
    assert found
    assert found == mean([index / 10 for index in range(len(TASKS))])
    assert found.low < found.value < found.high


def test_scores_that_are_all_the_same_can_be_drawn(tmp_path: Path) -> None:
    report = Report(settings={}, versions={})
    for name in ("one", "two"):
        report.models.append(entry(name, 1024))
        for task in TASKS:
            cell = RulerCell(name, task, 1024, 30, (0.8,) * 10, ("",) * 10, (("a",),) * 10)
            report.cells.append(cell)
    written = write_report(report, tmp_path)
    assert [path.name for path in written] == ["eval.json", "ruler.png", "compare.png"]


def test_the_json_has_every_score_and_the_first_answers(tmp_path: Path) -> None:
    report = report_of(2)
    write_report(report, tmp_path, plots=False)
    values = json.loads((tmp_path / "eval.json").read_text())["ruler"]
    assert len(values["by_length"]) == 2 * 2
    assert len(values["cells"]) == 2 * 2 * 2
    for written, cell in zip(values["cells"], report.of(RulerCell), strict=True):
        assert (written["task"], written["length"]) == (cell.task, cell.length)
        assert written["score_samples"] == pytest.approx(cell.score)
        assert written["sample_seeds"] == [5, 5, 6, 6]
        assert written["answers"] == [
            {"references": ["a", "b"], "answer": answer} for answer in cell.answers[:SHOWN]
        ]


def test_tables_of_models_and_of_tasks() -> None:
    out = io.StringIO()
    print_report(report_of(2), Console(file=out, width=100))
    text = out.getvalue()
    assert "mean of 2 tasks (4 samples each)" in text
    for index in range(2):
        assert text.count(f"model {index} [x]") == 2  # among the means, and above its tasks
    for name in NAMES:
        assert sum(name in line for line in text.splitlines()) == 2
    tables, note = text.split("* beyond the model's max_position_embeddings")
    assert not note.strip()
    short, long = (tables.rsplit(f"model {index} [x]", 1)[1] for index in range(2))
    assert long.count("*") == 0  # its window has room for all lengths
    assert short.split("model 1")[0].count("*") == len(NAMES)  # of 4,096 tokens


@pytest.mark.parametrize("models", [1, 3, 7])
def test_figures(tmp_path: Path, models: int) -> None:
    written = write_report(report_of(models), tmp_path)
    names = [path.name for path in written]
    assert names == ["eval.json", "ruler.png", *["compare.png"] * (models > 1)]
    for path in written[1:]:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert 400 < width < 4000
        assert 400 < height < 6000


def test_the_command(tmp_path: Path, tiny_bos_tokenizer: Path) -> None:
    folder = Path(save_tiny("qwen2", tmp_path / "model", vocab_size=1000))
    for file in tiny_bos_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    command = ["eval", str(folder), "--suite", "ruler", "--device", "cpu", "--out", str(tmp_path)]
    few = ["--lengths", "600", "--samples", "1", "--seeds", "2"]
    done = CliRunner().invoke(main, [*command, *few, "--tasks", "fwe,niah_single_2"])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["settings"]["tasks"] == ["niah_single_2", "fwe"]
    assert [cell["task"] for cell in written["ruler"]["cells"]] == ["niah_single_2", "fwe"]
    assert all(len(cell["answers"]) == 2 for cell in written["ruler"]["cells"])
    assert (tmp_path / "ruler.png").exists()
    for tasks, message in (("all", "has no room for"), ("qa", "unknown task qa"), ("", "(none)")):
        failed = CliRunner().invoke(main, [*command, *few, "--tasks", tasks])
        assert failed.exit_code == 1
        assert message in str(failed.exception) + failed.output
