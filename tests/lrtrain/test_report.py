"""A report says what was measured: means, intervals, JSON, tables, figures."""

import io
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lrdata.errors import LongRecipeError
from lrtrain.evaluation.longppl import LongPplCell
from lrtrain.evaluation.needle import NeedleCell
from lrtrain.evaluation.perplexity import PerplexityCell
from lrtrain.evaluation.report import (
    SECTIONS,
    ModelEntry,
    Report,
    content,
    mean,
    print_report,
    write_report,
)
from lrtrain.evaluation.report.compare import draw_comparison
from lrtrain.evaluation.report.needle import needle_at
from lrtrain.evaluation.report.perplexity import perplexity_at
from lrtrain.evaluation.report.short import short_of
from lrtrain.evaluation.report.statistics import Samples, as_perplexity, difference, share
from lrtrain.evaluation.report.tables import half, plus_minus
from lrtrain.evaluation.ruler import RulerCell
from lrtrain.evaluation.short import ShortCell
from lrtrain.evaluation.suite import Cell


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


def test_a_difference_of_the_same_samples_is_that_of_the_normal_law() -> None:
    draw = np.random.default_rng(1)
    hard = draw.normal(10.0, 5.0, 400)  # how hard a sample is, for both
    more = draw.normal(0.5, 1.0, 400)
    ones, ten = np.ones(400).tolist(), np.full(400, 10.0)
    found = difference(Samples((hard + more).tolist(), ones), Samples(hard.tolist(), ones))
    assert found is not None
    assert found.value == pytest.approx(more.mean())
    half = 1.96 * more.std() / math.sqrt(400)
    assert found.low == pytest.approx(more.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(more.mean() + half, abs=0.1 * half)
    kept = share(Samples((0.8 * hard).tolist(), ten.tolist()), Samples(hard.tolist(), ten.tolist()))
    assert kept is not None
    assert kept.as_list() == [0.8, 0.8, 0.8]
    assert share(Samples([1, 2], [3, 3]), Samples([0, 0], [3, 3])) is None
    assert difference(Samples([1, 2], [0, 0]), Samples([1, 2], [0, 0])) is None


def short_cell(model: str, right: tuple[int, ...], **changed: Any) -> ShortCell:
    """On three windows, unless something else is said."""
    values: dict[str, Any] = {
        "windows": (0, 1, 2),
        "context": (64, 64, 64),
        "nats": (50.0, 70.0, 60.0),
        "tokens": (63, 63, 63),
        "bytes": (200, 210, 190),
        "words": (10, 12, 8),
        "drift": (0.0, 0.0, 0.0),
        "positions": (63, 63, 63),
        "left_out": 0,
    }
    return ShortCell(model=model, base="base", right=right, **{**values, **changed})


@pytest.fixture
def short_report(report: Report) -> Report:
    report.models += [entry("tuned", 1024), entry("other", 32)]
    tuned = short_cell("tuned", (4, 6, 2), nats=(56.0, 76.0, 66.0), drift=(0.25 * 63,) * 3)
    two: dict[str, Any] = {
        "windows": (0, 2),
        "context": (70, 70),
        "nats": (59.0, 69.0),
        "tokens": (69, 69),
    }
    two |= {"bytes": (200, 190), "words": (10, 8), "drift": None, "positions": (0, 0)}
    other = short_cell("other", (4, 2), left_out=1, **two)
    report.cells = [short_cell("base", (5, 6, 4)), tuned, other]
    return report


def test_short_skills_are_compared_with_the_base_on_the_same_windows(short_report: Report) -> None:
    base, tuned, other = (short_of(short_report, name) for name in ("base", "tuned", "other"))
    assert base
    assert tuned
    assert other
    assert (base.more_nats, base.cloze_kept) == (None, None)
    assert tuned.more_nats
    assert tuned.more_nats.value == pytest.approx(18 / 600)
    assert tuned.cloze_kept
    assert tuned.cloze_kept.value == pytest.approx(12 / 15)
    assert tuned.drift
    assert tuned.drift.as_list() == [0.25, 0.25, 0.25]
    assert other.drift is None
    assert other.cloze_kept  # of the first and the last window alone
    assert other.cloze_kept.value == pytest.approx((4 + 2) / (5 + 4))
    assert short_of(short_report, "extended [v2]") is None


def test_the_table_of_short_skills(short_report: Report, tmp_path: Path) -> None:
    output = io.StringIO()
    print_report(short_report, Console(file=output, width=120))
    text = output.getvalue()
    assert "+0.030 ±" in text
    assert "80.0% ±" in text
    assert "0.250" in text
    assert "other: 1 of 3 windows left out" in text
    assert "extended" not in text
    assert "* beyond the model's" in text
    names = [path.name for path in write_report(short_report, tmp_path)]
    assert names == ["eval.json", "short.png", "compare.png"]


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
    names = [path.name for path in written]
    assert names == ["eval.json", "needle.png", "perplexity.png", "compare.png"]
    for path in written[1:]:
        assert min(size_of(path)) > 300
    report.cells = list[Cell](report.of(PerplexityCell))
    names = [path.name for path in write_report(report, tmp_path / "one")]
    assert names == ["eval.json", "perplexity.png", "compare.png"]
    assert not (tmp_path / "one" / "needle.png").exists()


def test_one_model_is_compared_with_nothing(report: Report, tmp_path: Path) -> None:
    del report.models[1:]
    report.cells = [cell for cell in report.cells if cell.model == "base"]
    names = [path.name for path in write_report(report, tmp_path)]
    assert names == ["eval.json", "needle.png", "perplexity.png"]


def size_of(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


@pytest.mark.parametrize("count", [2, 5, 8])
def test_models_are_compared_in_a_panel_for_each_suite(report: Report, count: int) -> None:
    """Eight models can be told apart, in the same colours and markers in every panel."""
    cells, report.models, report.cells = report.cells, [], []
    for index in range(count):
        name = f"model {index}"
        report.models.append(entry(name, 1024 if index % 2 else 4096))
        own = [cell for cell in cells if cell.model == "base"]
        report.cells += [replace(cell, model=name) for cell in own]
        report.cells.append(replace(short_cell(name, (5, 6, 4)), base="model 0"))
    figure = draw_comparison(report, SECTIONS)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().split(":")[0] for axes in panels] == [
        "Needle retrieval",
        "Perplexity",
        "Short skills",
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][1:2] == ["model 1 (window 1k)"]
    looks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    assert len(set(looks)) == count
    for axes in panels:
        drawn = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
        assert set(looks) <= drawn
    hollow = [line for line in panels[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert len(hollow) == count // 2  # 4,096 tokens for models with a window of 1,024


def test_what_is_beyond_a_window_does_not_set_the_scale(report: Report) -> None:
    report.cells = [
        PerplexityCell("base", 512, (60.0, 62.0), (10, 10), (100, 100)),
        PerplexityCell("base", 4096, (600.0, 620.0), (10, 10), (100, 100)),
        PerplexityCell("extended [v2]", 512, (64.0, 66.0), (10, 10), (100, 100)),
        PerplexityCell("extended [v2]", 4096, (54.0, 56.0), (10, 10), (100, 100)),
    ]
    (axes,) = draw_comparison(report, SECTIONS).axes
    low, high = axes.get_ylim()
    assert 0.4 < low < 0.54
    assert 0.66 < high < 0.8


# A single sample


def test_a_single_sample_has_no_interval() -> None:
    two, one = Samples([20.0, 24.0], [10, 10]), Samples([20.0], [10])
    for found in (mean([20.0], [10]), difference(one, one), share(one, one)):
        assert found is not None
        assert found.as_list()[1:] == [None, None]
        assert as_perplexity(found)[1:] == [None, None]
        assert as_perplexity(found)[0] == pytest.approx(math.exp(found.value))
        assert plus_minus(found) == "±?"
    for found in (mean(two.values, two.weights), difference(two, two)):
        assert found is not None
        assert None not in found.as_list()
        assert "?" not in plus_minus(found)


def test_a_report_of_single_samples(report: Report, tmp_path: Path) -> None:
    """Of every suite: numbers in the tables, no NaN in the JSON, points in the figures."""
    one: dict[str, Any] = {
        "windows": (0,), "context": (64,), "nats": (50.0,), "tokens": (63,), "bytes": (200,),
        "words": (10,), "drift": (0.5,), "positions": (63,),
    }  # fmt: skip
    report.cells = []
    for model in report.models:
        name = model.name
        report.cells += [
            NeedleCell(name, 512, 0.5, (False,), (0.4,)),
            RulerCell(name, "vt", 512, 30, (0.4,), ("",), (("a",),)),
            *(PerplexityCell(name, length, (20.0,), (10,), (40,)) for length in (512, 4096)),
            short_cell(name, (4,), **one),
            LongPplCell(
                model=name,
                windows=(0, 1),
                context=(128, 128),
                bins=((0, 64), (64, 128)),
                key_nats=((2.0, 1.0), (3.0, 1.0)),
                key_tokens=((2, 1), (2, 1)),
                nats=(9.0, 8.0),
                tokens=(3, 3),
                bytes=(9, 9),
                left_out=0,
                documents=(4, 4),
            ),
        ]
    written = write_report(report, tmp_path)
    assert len(written) == 1 + len(SECTIONS) + 1
    text = (tmp_path / "eval.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    read = json.loads(text)
    assert read["needle"]["by_length"][0]["share"] == [0.4, None, None]
    assert read["ruler"]["by_length"][0]["score"] == [0.4, None, None]
    assert read["perplexity"]["cells"][0]["nats_per_byte"] == [0.5, None, None]
    assert read["short"]["cells"][1]["nats_per_byte_less_base"] == [0.0, None, None]
    assert read["longppl"]["cells"][0]["longppl"] == [pytest.approx(math.exp(7 / 6)), None, None]
    output = io.StringIO()
    print_report(report, Console(file=output, width=160))
    assert "nan" not in output.getvalue()
    assert "±0.000" not in output.getvalue()
    # Of two models: four suites, perplexity at two lengths, short skills of the second against the
    # first, LongPPL in two bins.
    assert output.getvalue().count("±?") == 2 + 2 + 4 + (3 + 3 + 2) + 6


def test_a_single_sample_is_inside_what_a_panel_shows(report: Report) -> None:
    report.cells = [
        PerplexityCell(model.name, length, (nats,), (10,), (100,))
        for model, nats in zip(report.models, (60.0, 66.0), strict=True)
        for length in (512, 4096)
    ]
    (axes,) = draw_comparison(report, SECTIONS).axes
    low, high = axes.get_ylim()
    assert low < 0.6 < 0.66 < high


# Depths and seeds


def test_what_differs_between_depths_does_not_widen_the_interval(report: Report) -> None:
    """A model that reads half of the text is sure to find what is there, and nothing else."""
    report.cells = [
        NeedleCell("base", 512, depth, (found,) * 4, (float(found),) * 4)
        for depth, found in ((0.0, False), (1.0, True))
    ]
    found = needle_at(report, "base", 512)
    assert found
    assert [one.as_list() for one in found] == [[0.5, 0.5, 0.5]] * 2
    assert [one.count for one in found] == [8, 8]


def test_a_mean_over_depths_has_the_analytic_standard_error(report: Report) -> None:
    """That of a stratified mean."""
    draw = np.random.default_rng(8)
    report.cells, variance = [], 0.0
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        share = depth / 2 + draw.uniform(0, 0.5, 5)
        variance += share.var(ddof=1) / 5 / 5**2
        report.cells.append(NeedleCell("base", 512, depth, (False,) * 5, tuple(share.tolist())))
    found = needle_at(report, "base", 512)
    assert found
    assert half(found[1]) == pytest.approx(1.96 * math.sqrt(variance), rel=0.06)


def test_seeds_are_further_draws_of_samples(report: Report) -> None:
    """As uncertain as so many samples of one seed, by the analytic standard error."""
    draw = np.random.default_rng(6)
    share = draw.uniform(0, 1, 400)
    expected = 1.96 * share.std(ddof=1) / math.sqrt(400)
    for seeds in (range(1), range(4), range(400)):  # of 400, 100 and a single sample each
        exact = tuple((share > 0.5).tolist())
        cell = NeedleCell("base", 512, 0.0, exact, tuple(share.tolist()), tuple(seeds))
        report.cells = [cell]
        found = needle_at(report, "base", 512)
        assert found
        assert (found[1].high - found[1].low) / 2 == pytest.approx(expected, rel=0.06)
        assert found[0].count == 400


def test_what_each_seed_found_is_written(report: Report) -> None:
    share = (1.0,) * 4 + (0.5,) * 4
    exact = (True,) * 4 + (False,) * 4
    cell = NeedleCell("base", 512, 0.0, exact, share, (3, 4))
    other = NeedleCell("base", 512, 1.0, exact, share, (3, 4))
    report.cells = [cell, other]
    found = needle_at(report, "base", 512)
    assert found
    assert found[1].value == 0.75
    assert found[0].count == 16
    written = content(report)["needle"]
    by_seed = [{"seed": 3, "exact": 1.0, "share": 1.0}, {"seed": 4, "exact": 0.0, "share": 0.5}]
    assert written["by_length"][0]["by_seed"] == by_seed
    assert [entry["by_seed"] for entry in written["cells"]] == [by_seed, by_seed]


def test_without_matplotlib_the_error_names_the_extra(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LongRecipeError, match=r"longrecipe\[plots\]"):
        write_report(report, tmp_path)
    write_report(report, tmp_path, plots=False)
