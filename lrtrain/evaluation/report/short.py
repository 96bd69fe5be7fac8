"""Short skills in the report: what is left of those of the base."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrtrain.evaluation.report.figures import spread, style
from lrtrain.evaluation.report.results import Report
from lrtrain.evaluation.report.section import Section
from lrtrain.evaluation.report.statistics import (
    Mean,
    Samples,
    as_perplexity,
    difference,
    mean,
    measured_mean,
    share,
)
from lrtrain.evaluation.report.tables import (
    add_model,
    mark,
    new_table,
    plain,
    plus_minus,
    size_text,
)
from lrtrain.evaluation.short import ShortCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


@dataclass(frozen=True)
class ShortFound:
    """The short skills of one model. None where nothing was measured or can be compared."""

    nats_per_byte: Mean
    cloze: Mean | None
    """Share of words."""
    drift: Mean | None
    """KL(base || model), nats per position."""
    more_nats: Mean | None
    """Nats per byte less the base's."""
    cloze_kept: Mean | None
    """Cloze as a share of the base's."""


def short_of(report: Report, model: str) -> ShortFound | None:
    """None where nothing was measured."""
    cells = {cell.model: cell for cell in report.of(ShortCell)}
    if model not in cells:
        return None
    cell = cells[model]
    base = cells.get(cell.base) if model != cell.base else None
    return ShortFound(
        nats_per_byte=mean(cell.nats, cell.bytes),
        cloze=measured_mean(cell.right, cell.words),
        drift=None if cell.drift is None else measured_mean(cell.drift, cell.positions),
        more_nats=difference(*_nats(cell, base)) if base else None,
        cloze_kept=share(*_cloze(cell, base)) if base else None,
    )


def _nats(cell: ShortCell, base: ShortCell) -> tuple[Samples, Samples]:
    """Of the same windows. The base reads them all."""
    at = cell.windows
    return (
        Samples(cell.nats, cell.bytes),
        Samples([base.nats[i] for i in at], [base.bytes[i] for i in at]),
    )


def _cloze(cell: ShortCell, base: ShortCell) -> tuple[Samples, Samples]:
    at = cell.windows
    return (
        Samples(cell.right, cell.words),
        Samples([base.right[i] for i in at], [base.words[i] for i in at]),
    )


def _values(report: Report) -> dict[str, Any]:
    return {
        "cells": [
            _cell_values(cell, found)
            for cell in report.of(ShortCell)
            if (found := short_of(report, cell.model))
        ]
    }


def _cell_values(cell: ShortCell, found: ShortFound) -> dict[str, Any]:
    per_token = mean(cell.nats, cell.tokens)
    return {
        "model": cell.model,
        "base": cell.base,
        "nats_per_token": per_token.as_list(),
        "nats_per_byte": found.nats_per_byte.as_list(),
        "perplexity": as_perplexity(per_token),
        "cloze": _listed(found.cloze),
        "kl": _listed(found.drift),
        "nats_per_byte_less_base": _listed(found.more_nats),
        "cloze_of_base": _listed(found.cloze_kept),
        "words": sum(cell.words),
        "positions": sum(cell.positions),
        "left_out": cell.left_out,
        "windows": list(cell.windows),
        "window_context": list(cell.context),
        "window_nats": [round(value, 6) for value in cell.nats],
        "window_tokens": list(cell.tokens),
        "window_bytes": list(cell.bytes),
        "window_words": list(cell.words),
        "window_right": list(cell.right),
        "window_kl": None if cell.drift is None else [round(value, 6) for value in cell.drift],
        "window_positions": list(cell.positions),
    }


def _listed(found: Mean | None) -> list[float | None] | None:
    return found.as_list() if found else None


def _show(report: Report, console: "Console") -> None:
    cells = report.of(ShortCell)
    base = next(cell for cell in cells if cell.model == cell.base)
    console.print(f"\n[bold]Short skills[/], and what is left of those of {plain(base.model)}")
    console.print(
        f"{len(base.windows)} windows of {max(base.context):,} tokens; cloze: share of "
        f"{sum(base.words):,} words written right; KL at {sum(base.positions)} tokens; below it: "
        f"± half of its 95 % interval, and against {plain(base.model)}",
        style="dim",
    )
    table = new_table(["nats/byte", "cloze", "KL (nats)"])
    for model in report.models:
        cell = next((cell for cell in cells if cell.model == model.name), None)
        found = short_of(report, model.name)
        if cell is None or found is None:
            continue
        star = mark(cell.longest_read, model)
        add_model(
            table,
            model,
            [
                _lines(found.nats_per_byte, found.more_nats, "+.3f", star),
                _lines(found.cloze, found.cloze_kept, ".1%", star) if found.cloze else "",
                _lines(found.drift, None, "", star) if found.drift else "",
            ],
        )
    console.print(table)
    for cell in cells:
        if cell.left_out:
            console.print(
                f"{plain(cell.model)}: {cell.left_out} of {cell.left_out + len(cell.windows)} "
                "windows left out, which its tokenizer does not spell as they are",
                style="dim",
            )


def _lines(found: Mean, against: Mean | None, how: str, star: str) -> str:
    lines = f"{found.value:.3f}{star}\n[dim]{plus_minus(found)} [/]"
    if against is None:
        return lines
    spread = plus_minus(against, how.removeprefix("+"))
    return f"{lines}\n[dim]{format(against.value, how)} {spread} [/]"


def _draw(report: Report) -> "Figure":
    """Three panels with a line for each model: nats per byte, cloze, KL from the base."""
    from matplotlib.figure import Figure

    base = report.of(ShortCell)[0].base
    reference = short_of(report, base)
    places = [index for index, model in enumerate(report.models) if short_of(report, model.name)]
    figure = Figure(figsize=(11.5, max(2.9, 0.42 * len(places) + 1.8)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for row, index in enumerate(places):
        found = short_of(report, report.models[index].name)
        assert found is not None, "only models that were measured have a row"
        _point(panels[0], row, index, found.nats_per_byte, _moved(reference, found.more_nats))
        _point(panels[1], row, index, found.cloze, _scaled(reference, found.cloze_kept))
        _point(panels[2], row, index, found.drift, found.drift)
    if reference:
        panels[0].axvline(reference.nats_per_byte.value, color="grey", linestyle=":", zorder=0)
        if reference.cloze:
            panels[1].axvline(reference.cloze.value, color="grey", linestyle=":", zorder=0)
    models = [report.models[index] for index in places]
    names = [f"{model.name}\nwindow {size_text(model.window)}" for model in models]
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    spread(panels[0], "x")
    panels[0].set_xlabel("nats per byte: lower is better", fontsize=9)
    panels[1].set_xlabel("share of words written right: higher is better", fontsize=9)
    panels[2].set_xlabel(f"KL from {base}, nats: lower is nearer to it", fontsize=9)
    for axes in panels:
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(
        f"Short skills (thin: 95 % interval; thick: that of the difference from {base})",
        fontsize=11,
    )
    return figure


def _point(axes: "Axes", row: int, index: int, value: Mean | None, against: Mean | None) -> None:
    """A model's value, its interval, and where it is with the base's value held still."""
    if value is None:
        place: dict[str, Any] = {
            "transform": axes.get_yaxis_transform(),
            "ha": "center",
            "va": "center",
        }
        axes.text(0.5, row, "not measured", color="grey", fontsize=8, **place)
        return
    colour, marker = style(index)
    axes.plot([value.low, value.high], [row, row], color="grey", linewidth=0.8)
    if against:
        axes.plot([against.low, against.high], [row, row], color=colour, linewidth=3, alpha=0.6)
    axes.plot(value.value, row, color=colour, marker=marker, linestyle="none")


def _moved(base: ShortFound | None, more: Mean | None) -> Mean | None:
    """The base's nats per byte, and so many more."""
    if base is None or more is None:
        return None
    nats = base.nats_per_byte.value
    return Mean(nats + more.value, nats + more.low, nats + more.high, more.count)


def _scaled(base: ShortFound | None, kept: Mean | None) -> Mean | None:
    """The base's cloze, and such a share of it."""
    if base is None or base.cloze is None or kept is None:
        return None
    cloze = base.cloze.value
    return Mean(cloze * kept.value, cloze * kept.low, cloze * kept.high, kept.count)


def _panel(report: Report, axes: "Axes") -> None:
    """Cloze as points; nats per byte and KL, which are read rather than seen, as numbers."""
    base = report.of(ShortCell)[0].base
    reference = short_of(report, base)
    labels = []
    for index, model in enumerate(report.models):
        found = short_of(report, model.name)
        labels.append(f"{model.name}\n{_numbers(found)}" if found else model.name)
        if found:
            _point(axes, index, index, found.cloze, _scaled(reference, found.cloze_kept))
    if reference and reference.cloze:
        axes.axvline(reference.cloze.value, color="grey", linestyle=":", zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("Short skills: higher is better")
    axes.set_xlabel(f"share of words written right (thick: against {base})")


def _numbers(found: ShortFound) -> str:
    nats = f"{found.nats_per_byte.value:.3f} nats/byte"
    return f"{nats}, KL {found.drift.value:.3f}" if found.drift else nats


SECTION = Section("short", ShortCell, _values, _show, "short.png", _draw, _panel)
