"""What an evaluation found: as JSON, as tables in the terminal, as figures.

`eval.json` holds the outcome of every sample beside the means, and everything that is needed to
repeat the evaluation. Intervals are 95 % bootstrap intervals over samples (percentiles of 2,000
resamples, seeded); where all samples agree an interval has no width.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdata.atomic import replacing, write_json
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrtrain.evaluate.needle import NeedleCell
from lrtrain.evaluate.perplexity import PerplexityCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

FORMAT = "longrecipe-eval"
FORMAT_VERSION = "1.0"
JSON_NAME, NEEDLE_NAME, PERPLEXITY_NAME = "eval.json", "needle.png", "perplexity.png"

_RESAMPLES = 2000
_FIGURE_INCHES = 12.0
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"


@dataclass(frozen=True)
class ModelEntry:
    """A model that was evaluated. `window`: its max_position_embeddings, in tokens."""

    name: str
    path: str
    rope: str | None
    target_len: int | None
    window: int
    rope_type: str
    theta: float | None
    parameters: int
    tokenizer: str
    dtype: str
    device: str
    seconds: float = 0.0
    tokens: int = 0


@dataclass
class Report:
    """Everything an evaluation found. `settings` and `versions` are what it takes to repeat it."""

    settings: dict[str, Any]
    versions: dict[str, str]
    models: list[ModelEntry] = field(default_factory=list)
    needle: list[NeedleCell] = field(default_factory=list)
    perplexity: list[PerplexityCell] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lengths(self) -> list[int]:
        needle = {cell.length for cell in self.needle}
        return sorted(needle | {cell.length for cell in self.perplexity})

    @property
    def depths(self) -> list[float]:
        return sorted({cell.depth for cell in self.needle})

    def needle_at(
        self, model: str, length: int, depth: float | None = None
    ) -> tuple["Mean", "Mean"] | None:
        """Exact and share at one depth, or over all depths; None where nothing was measured."""
        cells = [
            cell
            for cell in self.needle
            if (cell.model, cell.length) == (model, length) and depth in (None, cell.depth)
        ]
        if not cells:
            return None
        exact = [float(value) for cell in cells for value in cell.exact]
        return mean(exact), mean([value for cell in cells for value in cell.share])

    def perplexity_at(self, model: str, length: int) -> tuple["Mean", "Mean"] | None:
        """Nats per token and nats per byte; None where nothing was measured."""
        for cell in self.perplexity:
            if (cell.model, cell.length) == (model, length):
                return mean(cell.nats, cell.tokens), mean(cell.nats, cell.bytes)
        return None

    def as_dict(self) -> dict[str, Any]:
        """The content of eval.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "versions": self.versions,
            "seconds": round(self.seconds, 3),
            "models": [asdict(model) for model in self.models],
            "needle": {
                "by_length": [
                    {"model": model.name, "length": length} | _needle_values(found)
                    for model in self.models
                    for length in self.lengths
                    if (found := self.needle_at(model.name, length))
                ],
                "cells": [
                    {"model": cell.model, "length": cell.length, "depth": cell.depth}
                    | _needle_values(self.needle_at(cell.model, cell.length, cell.depth))
                    | {
                        "exact_samples": [int(value) for value in cell.exact],
                        "share_samples": [round(value, 6) for value in cell.share],
                    }
                    for cell in self.needle
                ],
            },
            "perplexity": {"cells": [self._perplexity_values(cell) for cell in self.perplexity]},
        }

    def _perplexity_values(self, cell: PerplexityCell) -> dict[str, Any]:
        per_token, per_byte = mean(cell.nats, cell.tokens), mean(cell.nats, cell.bytes)
        return {
            "model": cell.model,
            "length": cell.length,
            "nats_per_token": per_token.as_list(),
            "nats_per_byte": per_byte.as_list(),
            "perplexity": [round(math.exp(value), 6) for value in per_token.as_list()],
            "span_nats": [round(value, 6) for value in cell.nats],
            "span_tokens": list(cell.tokens),
            "span_bytes": list(cell.bytes),
        }


def _needle_values(found: "tuple[Mean, Mean] | None") -> dict[str, Any]:
    if found is None:
        return {}
    exact, share = found
    return {"exact": exact.as_list(), "share": share.as_list(), "samples": exact.count}


# Statistics


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def as_list(self) -> list[float]:
        """[mean, low end, high end], as eval.json has them."""
        return [round(self.value, 6), round(self.low, 6), round(self.high, 6)]


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Mean:
    """sum(values) / sum(weights), weights 1 if not given, with its bootstrap interval.

    Samples are drawn with replacement, the pairs (value, weight) kept together.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones(len(top)) if weights is None else np.asarray(weights, np.float64)
    draws = Draws("bootstrap", len(top)).stream("resamples")
    picked = draws.below(len(top), len(top) * _RESAMPLES).reshape(_RESAMPLES, len(top))
    low, high = np.percentile(top[picked].sum(1) / bottom[picked].sum(1), [2.5, 97.5])
    return Mean(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


# Terminal


def size_text(length: int) -> str:
    """131072 -> 128k, 614 -> 614."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def print_report(report: Report, console: "Console | None" = None) -> None:
    """One table for each suite: models as rows, lengths as columns."""
    from rich.console import Console

    if console is None:
        plain = Console()
        console = plain if plain.is_terminal else Console(width=160)
    if report.needle:
        depths, samples = len(report.depths), len(report.needle[0].exact)
        console.print("\n[bold]Needle retrieval[/]: share of answer tokens right")
        console.print(
            f"below it: ± half of its 95 % interval, and answers exactly right "
            f"({depths} depths x {samples} samples)",
            style="dim",
        )
        console.print(_needle_table(report))
    if report.perplexity:
        first = report.perplexity[0]
        console.print("\n[bold]Perplexity[/] of the same tokens after more or less context")
        console.print(
            f"below it: nats per byte, ± half of its 95 % interval "
            f"(the last {first.tokens[0]:,} tokens of {len(first.nats)} windows)",
            style="dim",
        )
        console.print(_perplexity_table(report))
    if any(length > model.window for model in report.models for length in report.lengths):
        console.print("* beyond the model's max_position_embeddings", style="dim")


def _table(lengths: list[int]) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("model", overflow="fold")
    table.add_column("window", justify="right")
    for length in lengths:
        table.add_column(size_text(length), justify="right")
    return table


def _needle_table(report: Report) -> "Table":
    lengths = sorted({cell.length for cell in report.needle})
    table = _table(lengths)
    for model in report.models:
        cells = []
        for length in lengths:
            found = report.needle_at(model.name, length)
            if found is None:
                cells.append("")
                continue
            exact, share = found
            colour = "green" if share.value >= 0.9 else "yellow" if share.value >= 0.5 else "red"
            cells.append(
                f"[{colour}]{share.value:.3f}[/]{_mark(length, model)}\n"
                f"[dim]±{_half(share):.3f} [/]\n[dim]{exact.value:.0%} [/]"
            )
        table.add_row(_plain(model.name), size_text(model.window), *cells, end_section=True)
    return table


def _perplexity_table(report: Report) -> "Table":
    lengths = sorted({cell.length for cell in report.perplexity})
    table = _table(lengths)
    for model in report.models:
        cells = []
        for length in lengths:
            found = report.perplexity_at(model.name, length)
            if found is None:
                cells.append("")
                continue
            token, byte = found
            cells.append(
                f"{_short(math.exp(token.value))}{_mark(length, model)}\n"
                f"[dim]{byte.value:.3f} [/]\n[dim]±{_half(byte):.3f} [/]"
            )
        table.add_row(_plain(model.name), size_text(model.window), *cells, end_section=True)
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _mark(length: int, model: ModelEntry) -> str:
    return "*" if length > model.window else " "


def _half(found: Mean) -> float:
    return (found.high - found.low) / 2


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


# Files


def check_plots() -> None:
    """Raises LongRecipeError when figures cannot be drawn here."""
    if find_spec("matplotlib") is None:
        raise LongRecipeError(
            "figures need matplotlib, which is not installed; pip install 'longrecipe[plots]'"
        )


def write_report(report: Report, out: Path, *, plots: bool = True) -> list[Path]:
    """Write eval.json and the figures of the suites that ran. Returns the files written."""
    written = [out / JSON_NAME]
    write_json(written[0], report.as_dict())
    if plots:
        check_plots()
        if report.needle:
            _save(_needle_figure(report), out / NEEDLE_NAME)
            written.append(out / NEEDLE_NAME)
        if report.perplexity:
            _save(_perplexity_figure(report), out / PERPLEXITY_NAME)
            written.append(out / PERPLEXITY_NAME)
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
