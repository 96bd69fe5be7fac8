"""The figures of the proof, from its JSON alone.

python bench/proof/figures.py small small.json small.png
python bench/proof/figures.py scale scale.json scale.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intervals import Interval, over_seeds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measures import values_of

_BLUE, _ORANGE, _GREY = "#1f77b4", "#ff7f0e", "#888888"
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


def small(found: dict[str, Any], path: Path) -> None:
    """Retrieval and text at the target of every method, in both budgets, with intervals."""
    names = list(found["trained"]["tokens"])
    figure = Figure(figsize=(9.5, 0.32 * len(names) + 1.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, measure, title in (
        (left, "retrieval 2048", "retrieval at 2,048: share of symbols"),
        (right, "nats/byte 2048", "text at 2,048: nats/byte, lower is better"),
    ):
        for budget, label, colour, shift in (
            ("tokens", "equal tokens", _BLUE, -0.14),
            ("rows", "equal rows and steps", _ORANGE, 0.14),
        ):
            for place, name in enumerate(names):
                runs = found["trained"][budget][name].values()
                interval = over_seeds([run["measured"][measure] for run in runs])
                _point(axes, interval, place + shift, colour, label if not place else "")
        theta = over_seeds([one["new theta"][measure] for one in found["base"].values()])
        axes.axvline(theta.mean, color=_GREY, linestyle=":", label="new theta, untrained")
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    right.invert_xaxis()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    seeds = len(found["base"])
    figure.suptitle(f"A tiny model from 256 to 2,048 tokens; {seeds} seeds, 95 % intervals")
    figure.savefig(path, dpi=150)


def _point(axes: Axes, interval: Interval, at: float, colour: str, label: str) -> None:
    axes.plot([interval.low, interval.high], [at, at], color=colour, linewidth=1.5)
    axes.plot(interval.mean, at, color=colour, marker="o", linestyle="none", label=label)


def scale(found: dict[str, Any], path: Path) -> None:
    """Retrieval and text at the target by the power of log L / log T, a line for each share."""
    targets = list(dict.fromkeys(one["target"] for one in found["scales"]))
    figure = Figure(figsize=(3.6 * len(targets) + 1, 6.4), layout="constrained")
    grid = figure.subplots(2, len(targets), squeeze=False, sharex=True)
    for column, target in enumerate(targets):
        for axes, measure, title in (
            (grid[0, column], f"retrieval {target}", "retrieval"),
            (grid[1, column], f"nats/byte {target}", "nats/byte of text"),
        ):
            _powers(axes, found, target, measure)
            axes.set_ylabel(f"{title} at {target:,}")
            axes.grid(alpha=0.3)
        grid[0, column].set_title(f"to {target:,}")
        grid[1, column].set_xlabel("power of log L / log T")
        grid[0, column].legend(fontsize=8, frameon=False, title="rows", title_fontsize=8)
    figure.suptitle("Softmax scale in training; measured without it")
    figure.savefig(path, dpi=150)


def _powers(axes: Axes, found: dict[str, Any], target: int, measure: str) -> None:
    names = [one["method"] for one in found["scales"] if one["target"] == target]
    lines = dict[str, list[tuple[float, Interval]]]()
    for name in names:
        values = values_of(found, target, name, measure)
        share, _, power = name.partition(", power ")
        if power:
            lines.setdefault(share, []).append((float(power), over_seeds(values)))
        else:
            axes.axhline(over_seeds(values).mean, color=_GREY, linestyle=":", label=name)
    shares = list(dict.fromkeys(f"{one['share']}" for one in found["scales"]))
    for share, points in lines.items():  # one colour in all panels
        _line(axes, points, _COLOURS[sorted(shares).index(share)], f"{float(share):.0%}")


def _line(axes: Axes, points: Sequence[tuple[float, Interval]], colour: str, label: str) -> None:
    places = [place for place, _ in points]
    axes.plot(places, [one.mean for _, one in points], color=colour, marker="o", label=label)
    low, high = [one.low for _, one in points], [one.high for _, one in points]
    axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(places)


FIGURES = {"small": small, "scale": scale}

if __name__ == "__main__":
    what, source, target = sys.argv[1:]
    FIGURES[what](json.loads(Path(source).read_text(encoding="utf-8")), Path(target))
