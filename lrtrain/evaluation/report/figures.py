"""What the figures of all sections have in common."""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lrdata.atomic import replacing
from lrdata.errors import LongRecipeError
from lrtrain.evaluation.report.results import ModelEntry, Report
from lrtrain.evaluation.report.statistics import Mean
from lrtrain.evaluation.report.tables import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
_MARKERS = "osD^vPX*h"
_FAR_APART = 5.0
_MAPS_INCHES = 12.0
_ASIDE, _MOST_ASIDE = 0.08, 0.36  # of the way to the next length: between models, for all of them


def check_plots() -> None:
    """Raises LongRecipeError when figures cannot be drawn here."""
    if find_spec("matplotlib") is None:
        raise LongRecipeError(
            "figures need matplotlib, which is not installed; pip install 'longrecipe[plots]'"
        )


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, complete or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def style(index: int) -> tuple[str, str]:
    """Colour and marker of the model at this place of a report: the same in all its figures."""
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]


def draw_line(axes: "Axes", index: int, places: list[int], values: list[Mean], label: str) -> None:
    """One model's line with its interval."""
    colour, marker = style(index)
    axes.plot(places, [value.value for value in values], color=colour, marker=marker, label=label)
    low, high = [value.low for value in values], [value.high for value in values]
    axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)


def draw_by_length(
    axes: "Axes", report: Report, lengths: list[int], found: Callable[[str, int], Mean | None]
) -> None:
    """A line for each model, beside each other where they would cover each other.

    found: what a model, by its name, has at a length. Points beyond a model's window are hollow.
    """
    count = len(report.models)
    step = min(_ASIDE, _MOST_ASIDE / max(count - 1, 1))
    for index, model in enumerate(report.models):
        colour, marker = style(index)
        values = [found(model.name, length) for length in lengths]
        aside = step * (index - (count - 1) / 2)
        places = [place + aside for place, value in enumerate(values) if value]
        axes.plot(places, [value.value for value in values if value], color=colour, linewidth=1.2)
        for place, (length, value) in enumerate(zip(lengths, values, strict=True)):
            if value:
                axes.errorbar(
                    place + aside,
                    value.value,
                    [[value.value - value.low], [value.high - value.value]],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    markerfacecolor="white" if length > model.window else colour,
                    elinewidth=0.8,
                )
    label_lengths(axes, lengths)
    if any(max(lengths) > model.window for model in report.models):
        axes.set_xlabel("context length (tokens; hollow: beyond the window)")


def draw_maps(
    models: Sequence[ModelEntry],
    lengths: list[int],
    rows: list[str],
    values: Callable[[ModelEntry], np.ndarray],
    *,
    title: str,
    side: str,
) -> "Figure":
    """A map of shares for each model: rows down, length across; a line ends its window.

    values: float [rows, lengths] from 0 to 1; NaN where nothing was measured. side: what rows are.
    """
    from matplotlib.figure import Figure

    width = max(2.6, 0.62 * len(lengths) + 0.4)
    lines = -(-len(models) // max(1, int(_MAPS_INCHES / width)))
    columns = -(-len(models) // lines)
    height = max(1.9, 0.42 * len(rows) + 0.7)
    size = max(5.0, columns * width + 1.6), lines * height + 0.9  # the title needs as much
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    image = None
    for index, axes in enumerate(grid.flat):
        if index >= len(models):
            axes.set_visible(False)
            continue
        image = _draw_map(axes, models[index], lengths, rows, values(models[index]))
    figure.supxlabel("context length (tokens)", fontsize=10)
    figure.supylabel(side, fontsize=10)
    if any(min(lengths) <= model.window < max(lengths) for model in models):
        title += "\n(red line: end of the model's window)"
    figure.suptitle(title, fontsize=11)
    if image is not None:
        figure.colorbar(image, ax=grid.ravel().tolist(), aspect=25, pad=0.02)
    return figure


def _draw_map(
    axes: "Axes", model: ModelEntry, lengths: list[int], rows: list[str], values: np.ndarray
) -> "AxesImage":
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < 0.6 else "black"
            text = f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    inside = sum(length <= model.window for length in lengths)
    if 0 < inside < len(lengths):
        axes.axvline(inside - 0.5, color="#d62728", linewidth=2)
    axes.set_xticks(range(len(lengths)), [size_text(length) for length in lengths], fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(f"{model.name}\nwindow {size_text(model.window)}", fontsize=9)
    return image


def label_lengths(axes: "Axes", lengths: list[int]) -> None:
    """Context lengths, evenly spread, as the x axis; a grid of the y axis."""
    axes.set_xticks(range(len(lengths)), [size_text(length) for length in lengths])
    axes.set_xlabel("context length (tokens)")
    axes.grid(axis="y", alpha=0.3)


def spread(axes: "Axes", side: Literal["x", "y"]) -> None:
    """A logarithmic axis where positive values are far apart; its numbers are written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if side == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    if high < _FAR_APART * low:
        return
    axes.set(**{f"{side}scale": "log"})
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
