"""What an evaluation found, as figures."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lrdata.atomic import replacing
from lrdata.errors import LongRecipeError
from lrtrain.evaluate.report.results import ModelEntry, Report
from lrtrain.evaluate.report.tables import bin_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDLE_NAME, PERPLEXITY_NAME, LONGPPL_NAME = "needle.png", "perplexity.png", "longppl.png"

_FIGURE_INCHES = 12.0
_FAR_APART = 5.0
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"


def check_plots() -> None:
    """Raises LongRecipeError when figures cannot be drawn here."""
    if find_spec("matplotlib") is None:
        raise LongRecipeError(
            "figures need matplotlib, which is not installed; pip install 'longrecipe[plots]'"
        )


def write_figures(report: Report, out: Path) -> list[Path]:
    """Draw the suites that ran. Returns the files written."""
    check_plots()
    written = []
    for measured, name, draw in (
        (report.needle, NEEDLE_NAME, _needle_figure),
        (report.perplexity, PERPLEXITY_NAME, _perplexity_figure),
        (report.longppl, LONGPPL_NAME, _longppl_figure),
    ):
        if measured:
            _save(draw(report), out / name)
            written.append(out / name)
    return written


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _needle_figure(report: Report) -> "Figure":
    """A map of share right for each model: depth down, length across; a line ends its window."""
    from matplotlib.figure import Figure

    lengths = sorted({cell.length for cell in report.needle})
    depths = report.depths
    models = report.models
    width = max(2.6, 0.62 * len(lengths) + 0.4)
    rows = -(-len(models) // max(1, int(_FIGURE_INCHES / width)))
    columns = -(-len(models) // rows)
    height = max(1.9, 0.42 * len(depths) + 0.7)
    figure = Figure(figsize=(columns * width + 1.6, rows * height + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    image = None
    for index, axes in enumerate(grid.flat):
        if index >= len(models):
            axes.set_visible(False)
            continue
        image = _needle_map(axes, report, models[index], lengths, depths)
    figure.supxlabel("context length (tokens)", fontsize=10)
    figure.supylabel("needle depth", fontsize=10)
    title = "Needle retrieval: share of answer tokens right"
    if any(min(lengths) <= model.window < max(lengths) for model in models):
        title += "\n(red line: end of the model's window)"
    figure.suptitle(title, fontsize=11)
    if image is not None:
        figure.colorbar(image, ax=grid.ravel().tolist(), aspect=25, pad=0.02)
    return figure


def _needle_map(
    axes: "Axes", report: Report, model: ModelEntry, lengths: list[int], depths: list[float]
) -> Any:
    values = np.full((len(depths), len(lengths)), np.nan)
    for cell in report.needle:
        if cell.model == model.name:
            values[depths.index(cell.depth), lengths.index(cell.length)] = np.mean(cell.share)
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
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
    axes.set_title(f"{model.name}\nwindow {size_text(model.window)}", fontsize=9)
    return image


def _perplexity_figure(report: Report) -> "Figure":
    """Nats per byte by context length, a line for each model with its interval."""
    from matplotlib.figure import Figure

    lengths = sorted({cell.length for cell in report.perplexity})
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, model in enumerate(report.models):
        found = [(length, report.perplexity_at(model.name, length)) for length in lengths]
        points = [(length, cell[1]) for length, cell in found if cell]
        places = [lengths.index(length) for length, _ in points]
        colour = _LINE_COLOURS[index % len(_LINE_COLOURS)]
        axes.plot(
            places,
            [point.value for _, point in points],
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            label=f"{model.name} (window {size_text(model.window)})",
        )
        low, high = [point.low for _, point in points], [point.high for _, point in points]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(lengths)), [size_text(length) for length in lengths])
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("nats per byte of the same text")
    axes.set_title("Perplexity by context length: lower is better", fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _longppl_figure(report: Report) -> "Figure":
    """LongPPL of each model with its interval, and by position where there are several bins."""
    from matplotlib.figure import Figure

    bins = report.position_bins
    panels = 2 if len(bins) > 1 else 1
    height = max(3.2, 0.5 * len(report.models) + 1.8)
    figure = Figure(figsize=(5.6 * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _longppl_intervals(axes[0], report)
    if panels == 2:
        _longppl_by_position(axes[1], report, bins)
    figure.suptitle("LongPPL, of tokens that need long context: lower is better", fontsize=12)
    return figure


def _longppl_intervals(axes: "Axes", report: Report) -> None:
    for index, model in enumerate(report.models):
        found = report.longppl_of(model.name)
        if found is None:
            continue
        colour = _LINE_COLOURS[index % len(_LINE_COLOURS)]
        marker = _MARKERS[index % len(_MARKERS)]
        value, low, high = map(math.exp, (found.keys.value, found.keys.low, found.keys.high))
        axes.plot([low, high], [index, index], color=colour, linewidth=2)
        axes.plot(value, index, color=colour, marker=marker, linestyle="none")
        axes.plot(math.exp(found.all_tokens.value), index, color="grey", marker="|", markersize=12)
    names = [f"{model.name}\nwindow {size_text(model.window)}" for model in report.models]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    _spread(axes, "x")
    axes.set_xlabel("perplexity of key tokens, 95 % interval\n(grey line: of all tokens)")
    axes.grid(axis="x", alpha=0.3)


def _spread(axes: "Axes", side: Literal["x", "y"]) -> None:
    """A logarithmic axis where values are far apart; its numbers are written out."""
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


def _longppl_by_position(axes: "Axes", report: Report, bins: list[tuple[int, int]]) -> None:
    """Points beyond a model's window are hollow."""
    for index, model in enumerate(report.models):
        found = report.longppl_of(model.name)
        if found is None:
            continue
        there = [bin_ for bin_ in bins if bin_ in found.by_position]
        places = [bins.index(bin_) for bin_ in there]
        nats = [found.by_position[bin_][0] for bin_ in there]
        beyond = [min(to, found.longest) > model.window for _, to in there]
        colour = _LINE_COLOURS[index % len(_LINE_COLOURS)]
        values = [math.exp(cell.value) for cell in nats]
        axes.plot(places, values, color=colour, linewidth=1.4)
        for hollow in (False, True):
            points = [at for at, is_beyond in enumerate(beyond) if is_beyond == hollow]
            axes.plot(
                [places[at] for at in points],
                [values[at] for at in points],
                color=colour,
                marker=_MARKERS[index % len(_MARKERS)],
                markerfacecolor="white" if hollow else colour,
                linestyle="none",
            )
        low, high = [math.exp(cell.low) for cell in nats], [math.exp(cell.high) for cell in nats]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(bins)), list(map(bin_text, bins)), fontsize=8)
    _spread(axes, "y")
    axes.set_xlabel("tokens before the key token\n(hollow: beyond the model's window)")
    axes.set_ylabel("perplexity of key tokens")
    axes.grid(axis="y", alpha=0.3)
