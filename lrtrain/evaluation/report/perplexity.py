"""Perplexity by context length in the report."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from lrtrain.evaluation.perplexity import PerplexityCell
from lrtrain.evaluation.report.figures import draw_by_length, draw_line, label_lengths
from lrtrain.evaluation.report.results import ModelEntry, Report
from lrtrain.evaluation.report.section import Section
from lrtrain.evaluation.report.statistics import Mean, as_perplexity, mean
from lrtrain.evaluation.report.tables import by_length, mark, plus_minus, shortly, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


def perplexity_at(report: Report, model: str, length: int) -> tuple[Mean, Mean] | None:
    """Nats per token and nats per byte; None where nothing was measured."""
    for cell in report.of(PerplexityCell):
        if (cell.model, cell.length) == (model, length):
            return mean(cell.nats, cell.tokens), mean(cell.nats, cell.bytes)
    return None


def _lengths(report: Report) -> list[int]:
    return sorted({cell.length for cell in report.of(PerplexityCell)})


def _values(report: Report) -> dict[str, Any]:
    return {"cells": [_cell_values(cell) for cell in report.of(PerplexityCell)]}


def _cell_values(cell: PerplexityCell) -> dict[str, Any]:
    per_token, per_byte = mean(cell.nats, cell.tokens), mean(cell.nats, cell.bytes)
    return {
        "model": cell.model,
        "length": cell.length,
        "nats_per_token": per_token.as_list(),
        "nats_per_byte": per_byte.as_list(),
        "perplexity": as_perplexity(per_token),
        "span_nats": [round(value, 6) for value in cell.nats],
        "span_tokens": list(cell.tokens),
        "span_bytes": list(cell.bytes),
    }


def _show(report: Report, console: "Console") -> None:
    first = report.of(PerplexityCell)[0]
    console.print("\n[bold]Perplexity[/] of the same tokens after more or less context")
    console.print(
        f"below it: nats per byte, ± half of its 95 % interval "
        f"({sum(first.tokens):,} tokens of text, at the ends of {len(first.nats)} windows)",
        style="dim",
    )
    if not _same_windows(report):
        console.print(
            "each tokenizer has its own windows of the text: between models of different ones, "
            "nats per byte are of different passages",
            style="dim",
        )
    console.print(by_length(report.models, _lengths(report), partial(_cell, report)))


def _same_windows(report: Report) -> bool:
    """Windows are so many tokens, and other tokens are other passages."""
    return len({model.tokenizer for model in report.models}) == 1


def _what(report: Report) -> str:
    return f"nats per byte{' of the same text' if _same_windows(report) else ''}"


def _cell(report: Report, model: ModelEntry, length: int) -> str:
    found = perplexity_at(report, model.name, length)
    if found is None:
        return ""
    token, byte = found
    return (
        f"{shortly(math.exp(token.value))}{mark(length, model)}\n"
        f"[dim]{byte.value:.3f} [/]\n[dim]{plus_minus(byte)} [/]"
    )


def _draw(report: Report) -> "Figure":
    """Nats per byte by context length, a line for each model with its interval."""
    from matplotlib.figure import Figure

    lengths = _lengths(report)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, model in enumerate(report.models):
        found = [perplexity_at(report, model.name, length) for length in lengths]
        places = [place for place, cell in enumerate(found) if cell]
        label = f"{model.name} (window {size_text(model.window)})"
        draw_line(axes, index, places, [cell[1] for cell in found if cell], label)
    label_lengths(axes, lengths)
    axes.set_ylabel(_what(report))
    axes.set_title("Perplexity by context length: lower is better", fontsize=12)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _panel(report: Report, axes: "Axes") -> None:
    """Nats per byte by length. What is beyond a model's window does not set the scale."""

    def found(model: str, length: int) -> Mean | None:
        both = perplexity_at(report, model, length)
        return both[1] if both else None

    lengths = _lengths(report)
    draw_by_length(axes, report, lengths, found)
    values = [
        (value, length <= model.window)
        for model in report.models
        for length in lengths
        if (value := found(model.name, length))
    ]
    tops = [max(value.value, value.high) for value, _ in values]  # the value where high is NaN
    inside = [top for top, (_, is_inside) in zip(tops, values, strict=True) if is_inside]
    if inside:
        low, high = min(min(value.value, value.low) for value, _ in values), max(inside)
        margin = 0.1 * (high - low)
        if any(top > high + margin for top in tops):
            axes.set_ylim(low - margin, high + margin)
    axes.set_title("Perplexity: lower is better")
    axes.set_ylabel(_what(report))


SECTION = Section("perplexity", PerplexityCell, _values, _show, "perplexity.png", _draw, _panel)
