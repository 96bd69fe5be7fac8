"""LongPPL in the report: by model, and by how much text is before a key token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lrtrain.evaluation.longppl import LongPplCell
from lrtrain.evaluation.report.figures import spread, style
from lrtrain.evaluation.report.results import Report
from lrtrain.evaluation.report.section import Section
from lrtrain.evaluation.report.statistics import Mean, as_perplexity, mean, measured_mean
from lrtrain.evaluation.report.tables import add_model, mark, new_table, plain, shortly, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class LongPplFound:
    """What one model says of the key tokens, in nats per token; their number is that of all.

    Samples are documents: windows of the same one are too much alike to be a sample each.
    """

    keys: Mean
    all_tokens: Mean
    key_tokens: int
    by_position: dict[tuple[int, int], tuple[Mean, int]]
    """Bin -> nats per key token, key tokens; bins without any are not there."""
    longest: int
    """Tokens read of the longest window."""
    left_out: int


def longppl_of(report: Report, model: str) -> LongPplFound | None:
    """None where nothing was measured. Documents without key tokens do not widen intervals."""
    cell = next((cell for cell in report.of(LongPplCell) if cell.model == model), None)
    return _found(cell) if cell else None


def _found(cell: LongPplCell) -> LongPplFound:
    counts = list(map(sum, cell.key_tokens))
    keys = measured_mean(*_by_document(cell, list(map(sum, cell.key_nats)), counts))
    assert keys is not None, "a model without key tokens has no cell"
    bins = {}
    for at, bin_ in enumerate(cell.bins):
        tokens = [row[at] for row in cell.key_tokens]
        found = measured_mean(*_by_document(cell, [row[at] for row in cell.key_nats], tokens))
        if found:
            bins[bin_] = (found, sum(tokens))
    return LongPplFound(
        keys=keys,
        all_tokens=mean(*_by_document(cell, cell.nats, cell.tokens)),
        key_tokens=sum(counts),
        by_position=bins,
        longest=cell.longest_read,
        left_out=cell.left_out,
    )


def _by_document(
    cell: LongPplCell, nats: Sequence[float], of: Sequence[float]
) -> tuple[list[float], list[float]]:
    """What has an entry for each window, summed over the windows of each document."""
    documents = cell.documents or range(len(cell.windows))
    numbers = np.unique(documents, return_inverse=True)[1]
    return np.bincount(numbers, nats).tolist(), np.bincount(numbers, of).tolist()


def _bins(report: Report) -> list[tuple[int, int]]:
    """Those in which some model has key tokens."""
    return sorted({bin_ for cell in report.of(LongPplCell) for bin_ in cell.bins})


def bin_text(bin_: tuple[int, int]) -> str:
    """(0, 1024) -> up to 1k, (1024, 2048) -> 1k-2k."""
    above, to = bin_
    return f"{size_text(above)}-{size_text(to)}" if above else f"up to {size_text(to)}"


def _values(report: Report) -> dict[str, Any]:
    return {"cells": [_cell_values(cell, _found(cell)) for cell in report.of(LongPplCell)]}


def _cell_values(cell: LongPplCell, found: LongPplFound) -> dict[str, Any]:
    return {
        "model": cell.model,
        "longppl": as_perplexity(found.keys),
        "perplexity": as_perplexity(found.all_tokens),
        "nats_per_byte": mean(*_by_document(cell, cell.nats, cell.bytes)).as_list(),
        "key_tokens": found.key_tokens,
        "tokens": sum(cell.tokens),
        "left_out": cell.left_out,
        "by_position": [
            {"above": above, "to": to, "longppl": as_perplexity(nats), "key_tokens": count}
            for (above, to), (nats, count) in found.by_position.items()
        ],
        "windows": list(cell.windows),
        "window_documents": list(cell.documents),
        "window_context": list(cell.context),
        "window_key_nats": [round(sum(row), 6) for row in cell.key_nats],
        "window_key_tokens": [sum(row) for row in cell.key_tokens],
        "window_nats": [round(value, 6) for value in cell.nats],
        "window_tokens": list(cell.tokens),
        "window_bytes": list(cell.bytes),
    }


def _show(report: Report, console: "Console") -> None:
    found = {model.name: longppl_of(report, model.name) for model in report.models}
    cells = report.of(LongPplCell)
    windows = max(len(cell.windows) + cell.left_out for cell in cells)
    documents = max(len(set(cell.documents or cell.windows)) for cell in cells)
    console.print("\n[bold]LongPPL[/]: perplexity of the tokens for which long context matters")
    console.print(
        f"below it: its 95 % interval over {documents} documents ({windows} windows), and key "
        "tokens; by how many tokens are before them; perplexity: that of all tokens",
        style="dim",
    )
    console.print(_table(report, found))
    keys = report.settings.get("keys") or {}
    if common := keys.get("files_in_shards"):
        console.print(
            f"{plain(keys['folder'])} and {plain(report.settings['shards'])} are of the same files "
            f"({len(common)}, {plain(common[0])} for one): models that were trained on these may "
            "know the text; score another"
        )
    for name, cell in found.items():
        if cell and cell.left_out:
            console.print(
                f"{plain(name)}: {cell.left_out} of {windows} windows left out, which its "
                "tokenizer does not spell as they are",
                style="dim",
            )


def _table(report: Report, found: dict[str, LongPplFound | None]) -> "Table":
    bins = _bins(report)
    table = new_table(["LongPPL", *map(bin_text, bins), "perplexity"])
    for model in report.models:
        cell = found[model.name]
        if cell is None:
            continue
        whole = mark(cell.longest, model)
        parts = [_lines(cell.keys, cell.key_tokens, whole)]
        for bin_ in bins:
            if bin_ not in cell.by_position:
                parts.append("")
                continue
            part, count = cell.by_position[bin_]
            parts.append(_lines(part, count, mark(min(bin_[1], cell.longest), model)))
        parts.append(f"{shortly(math.exp(cell.all_tokens.value))}{whole}")
        add_model(table, model, parts)
    return table


def _lines(nats: Mean, tokens: int, star: str) -> str:
    value, low, high = (shortly(math.exp(value)) for value in (nats.value, nats.low, nats.high))
    interval = "±?" if math.isnan(nats.low) else f"{low}-{high}"
    return f"{value}{star}\n[dim]{interval} [/]\n[dim]{tokens:,} [/]"


def _draw(report: Report) -> "Figure":
    """LongPPL of each model with its interval, and by position where there are several bins."""
    from matplotlib.figure import Figure

    bins = _bins(report)
    panels = 2 if len(bins) > 1 else 1
    height = max(3.2, 0.5 * len(report.models) + 1.8)
    figure = Figure(figsize=(5.6 * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _intervals(axes[0], report)
    if panels == 2:
        _by_position(axes[1], report, bins)
    figure.suptitle("LongPPL, of tokens that need long context: lower is better", fontsize=12)
    return figure


def _intervals(axes: "Axes", report: Report) -> None:
    for index, model in enumerate(report.models):
        found = longppl_of(report, model.name)
        if found is None:
            continue
        colour, marker = style(index)
        value, low, high = map(math.exp, (found.keys.value, found.keys.low, found.keys.high))
        axes.plot([low, high], [index, index], color=colour, linewidth=2)
        axes.plot(value, index, color=colour, marker=marker, linestyle="none")
        axes.plot(math.exp(found.all_tokens.value), index, color="grey", marker="|", markersize=12)
    names = [f"{model.name}\nwindow {size_text(model.window)}" for model in report.models]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    spread(axes, "x")
    axes.set_xlabel("perplexity of key tokens, 95 % interval\n(grey line: of all tokens)")
    axes.grid(axis="x", alpha=0.3)


def _by_position(axes: "Axes", report: Report, bins: list[tuple[int, int]]) -> None:
    """Points beyond a model's window are hollow."""
    for index, model in enumerate(report.models):
        found = longppl_of(report, model.name)
        if found is None:
            continue
        there = [bin_ for bin_ in bins if bin_ in found.by_position]
        places = [bins.index(bin_) for bin_ in there]
        nats = [found.by_position[bin_][0] for bin_ in there]
        beyond = [min(to, found.longest) > model.window for _, to in there]
        colour, marker = style(index)
        values = [math.exp(cell.value) for cell in nats]
        axes.plot(places, values, color=colour, linewidth=1.4)
        for hollow in (False, True):
            points = [at for at, is_beyond in enumerate(beyond) if is_beyond == hollow]
            axes.plot(
                [places[at] for at in points],
                [values[at] for at in points],
                color=colour,
                marker=marker,
                markerfacecolor="white" if hollow else colour,
                linestyle="none",
            )
        low, high = [math.exp(cell.low) for cell in nats], [math.exp(cell.high) for cell in nats]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(bins)), list(map(bin_text, bins)), fontsize=8)
    spread(axes, "y")
    axes.set_xlabel("tokens before the key token\n(hollow: beyond the model's window)")
    axes.set_ylabel("perplexity of key tokens")
    axes.grid(axis="y", alpha=0.3)


def _panel(report: Report, axes: "Axes") -> None:
    """The first panel of its own figure."""
    _intervals(axes, report)
    axes.set_yticks(range(len(report.models)), [model.name for model in report.models])
    axes.set_title("LongPPL: lower is better")


SECTION = Section("longppl", LongPplCell, _values, _show, "longppl.png", _draw, _panel)
