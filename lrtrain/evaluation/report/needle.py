"""Needle retrieval in the report: maps of length and depth."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lrtrain.evaluation.needle import NeedleCell
from lrtrain.evaluation.report.figures import draw_by_length, draw_maps
from lrtrain.evaluation.report.results import ModelEntry, Report
from lrtrain.evaluation.report.section import Section
from lrtrain.evaluation.report.statistics import Mean, mean
from lrtrain.evaluation.report.tables import by_length, graded, mark, plus_minus
from lrtrain.evaluation.suite import seed_of_each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


def needle_at(
    report: Report, model: str, length: int, depth: float | None = None
) -> tuple[Mean, Mean] | None:
    """Exact and share at one depth, or over all depths; None where nothing was measured.

    The depths are given, and resamples are drawn within them. Seeds are but further draws of
    prompts: their samples are one sample.
    """
    cells = _cells_at(report, model, length, depth)
    if not cells:
        return None
    exact = [float(value) for cell in cells for value in cell.exact]
    share = [value for cell in cells for value in cell.share]
    depths = [index for index, cell in enumerate(cells) for _ in cell.share]
    return mean(exact, groups=depths), mean(share, groups=depths)


def _cells_at(
    report: Report, model: str, length: int, depth: float | None = None
) -> list[NeedleCell]:
    return [
        cell
        for cell in report.of(NeedleCell)
        if (cell.model, cell.length) == (model, length) and depth in (None, cell.depth)
    ]


def _by_seed(cells: list[NeedleCell]) -> list[dict[str, Any]]:
    """The means of each seed."""
    seeds = np.concatenate([seed_of_each(len(cell.share), cell.seeds) for cell in cells])
    exact = np.array([value for cell in cells for value in cell.exact])
    share = np.array([value for cell in cells for value in cell.share])
    return [
        {
            "seed": seed,
            "exact": round(float(exact[seeds == seed].mean()), 6),
            "share": round(float(share[seeds == seed].mean()), 6),
        }
        for seed in np.unique(seeds).tolist()
    ]


def _lengths(report: Report) -> list[int]:
    return sorted({cell.length for cell in report.of(NeedleCell)})


def _depths(report: Report) -> list[float]:
    return sorted({cell.depth for cell in report.of(NeedleCell)})


def _values(report: Report) -> dict[str, Any]:
    return {
        "by_length": [
            {"model": model.name, "length": length, **_means(found)}
            | {"by_seed": _by_seed(_cells_at(report, model.name, length))}
            for model in report.models
            for length in _lengths(report)
            if (found := needle_at(report, model.name, length))
        ],
        "cells": [
            {"model": cell.model, "length": cell.length, "depth": cell.depth}
            | _means(needle_at(report, cell.model, cell.length, cell.depth))
            | {
                "by_seed": _by_seed([cell]),
                "exact_samples": [int(value) for value in cell.exact],
                "share_samples": [round(value, 6) for value in cell.share],
            }
            for cell in report.of(NeedleCell)
        ],
    }


def _means(found: tuple[Mean, Mean] | None) -> dict[str, Any]:
    if found is None:
        return {}
    exact, share = found
    return {"exact": exact.as_list(), "share": share.as_list(), "samples": exact.count}


def _show(report: Report, console: "Console") -> None:
    first, depths = report.of(NeedleCell)[0], len(_depths(report))
    samples, seeds = len(first.exact) // len(first.seeds), len(first.seeds)
    console.print("\n[bold]Needle retrieval[/]: share of answer tokens right")
    console.print(
        f"below it: ± half of its 95 % interval, and answers exactly right "
        f"({depths} depths x {samples} samples{f' x {seeds} seeds' if seeds > 1 else ''})",
        style="dim",
    )
    console.print(by_length(report.models, _lengths(report), partial(_cell, report)))


def _cell(report: Report, model: ModelEntry, length: int) -> str:
    found = needle_at(report, model.name, length)
    if found is None:
        return ""
    exact, share = found
    return (
        f"{graded(share.value)}{mark(length, model)}\n"
        f"[dim]{plus_minus(share)} [/]\n[dim]{exact.value:.0%} [/]"
    )


def _draw(report: Report) -> "Figure":
    """A map of share right for each model: depth down, length across."""
    lengths, depths = _lengths(report), _depths(report)

    def values(model: ModelEntry) -> np.ndarray:
        found = np.full((len(depths), len(lengths)), np.nan)
        for cell in report.of(NeedleCell):
            if cell.model == model.name:
                found[depths.index(cell.depth), lengths.index(cell.length)] = np.mean(cell.share)
        return found

    return draw_maps(
        report.models,
        lengths,
        [f"{depth:.0%}" for depth in depths],
        values,
        title="Needle retrieval: share of answer tokens right",
        side="needle depth",
    )


def _panel(report: Report, axes: "Axes") -> None:
    """Share right by length, over all depths."""

    def found(model: str, length: int) -> Mean | None:
        both = needle_at(report, model, length)
        return both[1] if both else None

    draw_by_length(axes, report, _lengths(report), found)
    axes.set_ylim(-0.04, 1.04)
    axes.set_title("Needle retrieval: higher is better")
    axes.set_ylabel("share of answer tokens right")


SECTION = Section("needle", NeedleCell, _values, _show, "needle.png", _draw, _panel)
