"""A report says what was measured: means, intervals, JSON, tables, figures."""

import io
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lrdata.errors import LongRecipeError
from lrtrain.evaluate.needle import NeedleCell
from lrtrain.evaluate.perplexity import PerplexityCell
from lrtrain.evaluate.report import ModelEntry, Report, mean, print_report, write_report
from lrtrain.evaluate.report.needle import needle_at
from lrtrain.evaluate.report.perplexity import perplexity_at
from lrtrain.evaluate.suite import Cell


def entry(name: str, window: int) -> ModelEntry:
    return ModelEntry(
        name=name,
        path=f"models/{name}",
        rope=None,
        target_len=None,
        window=window,
        rope_type="default",
        theta=10_000.0,
        parameters=1000,
        tokenizer="0" * 64,
        dtype="float32",
        device="cpu",
    )


@pytest.fixture
def report() -> Report:
    report = Report(settings={"seed": 0}, versions={"python": "3"})
    for name, window, far in (("base", 1024, 0.0), ("extended [v2]", 4096, 0.5)):
        report.models.append(entry(name, window))
        for length in (512, 4096):
            near = length == 512
            for depth in (0.0, 0.5, 1.0):
                share = 1.0 if near else far * depth
                report.cells.append(NeedleCell(name, length, depth, (near, near), (share, share)))
            nats = (20.0, 30.0) if near else (40.0, 60.0)
            report.cells.append(PerplexityCell(name, length, nats, (10, 10), (40, 60)))
    return report


def test_a_mean_is_the_mean_and_its_interval_that_of_the_normal_law() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(3.0, 2.0, 400)
    found = mean(values.tolist())
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean(values.tolist()) == found


def test_a_weighted_mean_is_a_ratio_of_sums() -> None:
    found = mean([1.0, 2.0, 30.0], [1, 2, 3])
    assert found.value == pytest.approx(33 / 6)
    assert mean([2.0, 4.0, 8.0], [1, 2, 4]).as_list() == [2.0, 2.0, 2.0]


def test_means_over_depths_and_spans(report: Report) -> None:
    found = needle_at(report, "extended [v2]", 4096)
    assert found
    exact, share = found
    assert (exact.value, exact.count) == (0.0, 6)
    assert share.value == pytest.approx((0 + 0.25 + 0.5) / 3)
    spans = perplexity_at(report, "base", 4096)
    assert spans
    assert (spans[0].value, spans[1].value) == (5.0, 1.0)
    assert needle_at(report, "base", 77) is None


def test_json_holds_every_sample_and_the_means(report: Report, tmp_path: Path) -> None:
    report.models.append(entry("not measured", 10))
    write_report(report, tmp_path, plots=False)
    read = json.loads((tmp_path / "eval.json").read_text())
    assert read["settings"] == {"seed": 0}
    assert [model["name"] for model in read["models"]][:2] == ["base", "extended [v2]"]
    cells = read["needle"]["cells"]
    assert len(cells) == 2 * 2 * 3
    for cell in cells:
        assert cell["exact"][0] == np.mean(cell["exact_samples"])
        assert cell["share"][0] == np.mean(cell["share_samples"])
    assert len(read["needle"]["by_length"]) == 4
    for cell in read["perplexity"]["cells"]:
        per_token = sum(cell["span_nats"]) / sum(cell["span_tokens"])
        assert cell["nats_per_token"][0] == pytest.approx(per_token)
        assert cell["perplexity"][0] == pytest.approx(math.exp(per_token))
        assert cell["nats_per_byte"][0] == sum(cell["span_nats"]) / sum(cell["span_bytes"])


def test_the_table_shows_each_model_and_marks_lengths_beyond_its_window(report: Report) -> None:
    output = io.StringIO()
    print_report(report, Console(file=output, width=120))
    lines = output.getvalue().splitlines()
    base = next(line for line in lines if "base" in line and "1k" in line)
    assert "1.000 " in base
    assert "0.000*" in base
    extended = next(line for line in lines if "extended [v2]" in line)
    assert "*" not in extended
    assert f"{math.exp(5.0):,.0f}" in output.getvalue()
    assert lines[-1].startswith("* beyond")


def test_figures_are_written_for_the_suites_that_ran(report: Report, tmp_path: Path) -> None:
    written = write_report(report, tmp_path / "both")
    assert [path.name for path in written] == ["eval.json", "needle.png", "perplexity.png"]
    for path in written[1:]:
        header = path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG\r\n")
        width, height = struct.unpack(">II", header[16:24])
        assert min(width, height) > 300
    report.cells = list[Cell](report.of(PerplexityCell))
    assert [path.name for path in write_report(report, tmp_path / "one")][1:] == ["perplexity.png"]
    assert not (tmp_path / "one" / "needle.png").exists()


def test_without_matplotlib_the_error_names_the_extra(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LongRecipeError, match=r"longrecipe\[plots\]"):
        write_report(report, tmp_path)
    write_report(report, tmp_path, plots=False)
