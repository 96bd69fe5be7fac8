"""The pictures of a run show every stage's loss and memory, one stage after the other."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from lrtrain.metrics import METRICS, MetricsLog
from lrtrain.plots import COLOURS, plot_run

GB = 10**9
STEPS = {"extend": 6, "anneal": 4}


def write_metrics(
    folder: Path,
    stages: tuple[str, ...] = ("extend", "anneal"),
    holdout: bool = True,
    gpu: bool = True,
) -> Path:
    """Losses fall; the peak rises by 1 GB a step on a device, by 2 GB on its host."""
    for stage in stages:
        log = MetricsLog(folder, stage)
        log.begin(after=0)
        for step in range(1, STEPS[stage] + 1):
            measured = {"holdout_loss": 4.0 - step / 10} if holdout and step % 2 == 0 else {}
            log.write(
                step,
                loss=3.0 - step / 10,
                peak_memory_bytes=(step if gpu else 2 * step) * GB,
                peak_host_bytes=2 * step * GB,
                **measured,
            )
    return folder / METRICS


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are saved, as they are then."""
    saved: list[Figure] = []
    save = Figure.savefig

    def watched(figure: Figure, *args: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", watched)
    return saved


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> steps and values."""
    (axes,) = figure.axes
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


def share_of(colour: str, picture: np.ndarray) -> float:
    """How much of a picture is of a colour."""
    near = np.abs(picture[..., :3] - np.array(to_rgb(colour))).max(-1) < 0.02
    return float(near.mean())


@pytest.mark.parametrize("holdout", [True, False])
@pytest.mark.parametrize("stages", [("extend", "anneal"), ("extend",), ("anneal",)])
def test_both_pictures_show_the_stages_that_there_are(
    tmp_path: Path, stages: tuple[str, ...], holdout: bool
) -> None:
    metrics = write_metrics(tmp_path, stages, holdout)
    pictures = tmp_path / "loss.png", tmp_path / "memory.png"
    assert plot_run(metrics, *pictures) is True
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        picture = imread(path)
        assert picture.shape[:2] == (540, 960)
        assert picture.std() > 0.02, "a blank one is of one colour"
        for stage, colour in COLOURS.items():
            if stage in stages:
                assert share_of(colour, picture) > 5e-4
            else:
                assert share_of(colour, picture) == 0


def test_the_loss_is_drawn_over_all_steps_and_the_holdout_where_it_was_measured(
    tmp_path: Path, figures: list[Figure]
) -> None:
    metrics = write_metrics(tmp_path)
    plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png")
    found = curves(figures[0])
    assert list(found) == [
        "extend",
        "extend, on holdout windows",
        "anneal",
        "anneal, on holdout windows",
    ]
    assert found["extend"] == ([1, 2, 3, 4, 5, 6], pytest.approx([2.9, 2.8, 2.7, 2.6, 2.5, 2.4]))
    assert found["anneal"] == ([7, 8, 9, 10], pytest.approx([2.9, 2.8, 2.7, 2.6]))
    measured = found["anneal, on holdout windows"]
    assert measured == ([8, 10], pytest.approx([3.8, 3.6]))
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_ylabel() == "loss (nats per token)"


def test_without_holdout_windows_there_is_a_curve_a_stage(
    tmp_path: Path, figures: list[Figure]
) -> None:
    metrics = write_metrics(tmp_path, holdout=False)
    plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png")
    assert list(curves(figures[0])) == ["extend", "anneal"]


def test_memory_is_drawn_for_the_device_and_its_host(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = write_metrics(tmp_path)
    plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png")
    found = curves(figures[1])
    assert found == {
        "extend, device": ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        "extend, host": ([1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 10, 12]),
        "anneal, device": ([7, 8, 9, 10], [1, 2, 3, 4]),
        "anneal, host": ([7, 8, 9, 10], [2, 4, 6, 8]),
    }
    (axes,) = figures[1].axes
    assert axes.get_ylabel() == "peak memory of the stage so far (GB)"
    assert axes.get_ylim()[0] == 0


def test_a_later_stage_that_takes_more_is_in_the_picture(
    tmp_path: Path, figures: list[Figure]
) -> None:
    metrics = write_metrics(tmp_path, ("anneal", "extend"))  # the second has more steps, and more
    plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png")
    (axes,) = figures[1].axes
    assert axes.get_ylim()[1] > max(max(heights) for _, heights in curves(figures[1]).values())


def test_on_a_cpu_the_same_memory_is_drawn_once(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = write_metrics(tmp_path, gpu=False)
    plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png")
    assert list(curves(figures[1])) == ["extend, host", "anneal, host"]


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = write_metrics(tmp_path, ("extend",))
    with open(metrics, "a", encoding="utf-8") as stream:
        stream.write('{"stage": "extend", "step": 7, "lo')
    plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png")
    assert curves(figures[0])["extend"][0] == [1, 2, 3, 4, 5, 6]


def test_pictures_are_made_anew(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path, ("extend",))
    pictures = tmp_path / "loss.png", tmp_path / "memory.png"
    plot_run(metrics, *pictures)
    before = [path.read_bytes() for path in pictures]
    plot_run(write_metrics(tmp_path), *pictures)
    assert all(path.read_bytes() != old for path, old in zip(pictures, before, strict=True))


def test_without_matplotlib_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = write_metrics(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_run(metrics, tmp_path / "loss.png", tmp_path / "memory.png") is False
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]
