"""RULER's tasks in the report: a table of means by model, one of tasks for each model, and maps."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lrtrain.evaluation.report.figures import draw_by_length, draw_maps
from lrtrain.evaluation.report.results import ModelEntry, Report
from lrtrain.evaluation.report.section import Section
from lrtrain.evaluation.report.statistics import Mean, mean
from lrtrain.evaluation.report.tables import (
    by_length,
    graded,
    mark,
    plain,
    plus_minus,
    size_text,
)
from lrtrain.evaluation.ruler import TASKS, RulerCell
from lrtrain.evaluation.suite import seed_of_each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

SHOWN = 3
"""Of so many samples of each cell eval.json holds the answer."""


def score_at(report: Report, model: str, length: int, task: str | None = None) -> Mean | None:
    """The score in one task, or over all tasks; None where nothing was measured.

    The tasks are given, and resamples are drawn within them. Seeds are but further draws of
    prompts: their samples are one sample.
    """
    cells = [
        cell
        for cell in report.of(RulerCell)
        if (cell.model, cell.length) == (model, length) and task in (None, cell.task)
    ]
    if not cells:
        return None
    tasks = [index for index, cell in enumerate(cells) for _ in cell.score]
    return mean([value for cell in cells for value in cell.score], groups=tasks)


def _lengths(report: Report) -> list[int]:
    return sorted({cell.length for cell in report.of(RulerCell)})


def _tasks(report: Report) -> list[str]:
    measured = {cell.task for cell in report.of(RulerCell)}
    return [name for name in TASKS if name in measured]


def _values(report: Report) -> dict[str, Any]:
    return {
        "by_length": [
            {
                "model": model.name,
                "length": length,
                "score": found.as_list(),
                "samples": found.count,
            }
            for model in report.models
            for length in _lengths(report)
            if (found := score_at(report, model.name, length))
        ],
        "cells": [
            _cell_values(cell, found)
            for cell in report.of(RulerCell)
            if (found := score_at(report, cell.model, cell.length, cell.task))
        ],
    }


def _cell_values(cell: RulerCell, found: Mean) -> dict[str, Any]:
    first = list(zip(cell.references, cell.answers, strict=True))[:SHOWN]
    return {
        "model": cell.model,
        "task": cell.task,
        "length": cell.length,
        "score": found.as_list(),
        "samples": found.count,
        "score_samples": [round(value, 6) for value in cell.score],
        "sample_seeds": seed_of_each(len(cell.score), cell.seeds),
        "answers": [
            {"references": list(references), "answer": answer} for references, answer in first
        ],
    }


def _show(report: Report, console: "Console") -> None:
    lengths, first, count = _lengths(report), report.of(RulerCell)[0], len(_tasks(report))
    console.print("\n[bold]RULER[/]: share of the references in the answers")
    console.print(
        f"mean of {count} task{'s' * (count > 1)} ({len(first.score)} samples each); "
        "below it: ± half of its 95 % interval",
        style="dim",
    )
    console.print(by_length(report.models, lengths, partial(_mean_cell, report)))
    _show_tasks(report, console, lengths)


def _show_tasks(report: Report, console: "Console", lengths: list[int]) -> None:
    """A table for each model: tasks as rows, lengths as columns."""
    from rich.table import Table

    for model in report.models:
        table = Table(title=plain(model.name), title_justify="left", title_style="bold")
        table.add_column("task")
        for length in lengths:
            table.add_column(size_text(length), justify="right")
        for task in _tasks(report):
            found = [score_at(report, model.name, length, task) for length in lengths]
            table.add_row(
                task,
                *(
                    f"{graded(score.value)}{mark(length, model)}" if score else ""
                    for score, length in zip(found, lengths, strict=True)
                ),
            )
        console.print(table)


def _mean_cell(report: Report, model: ModelEntry, length: int) -> str:
    found = score_at(report, model.name, length)
    if found is None:
        return ""
    return f"{graded(found.value)}{mark(length, model)}\n[dim]{plus_minus(found)} [/]"


def _draw(report: Report) -> "Figure":
    """A map of the score for each model: tasks down, and their mean; length across."""
    lengths, tasks = _lengths(report), _tasks(report)

    def values(model: ModelEntry) -> np.ndarray:
        rows = [
            [score_at(report, model.name, length, task) for length in lengths]
            for task in [*tasks, None]
        ]
        return np.array([[found.value if found else np.nan for found in row] for row in rows])

    return draw_maps(
        report.models,
        lengths,
        [*tasks, "mean"],
        values,
        title="RULER: share of the references in the answers",
        side="task",
    )


def _panel(report: Report, axes: "Axes") -> None:
    """The mean of the tasks by length."""
    draw_by_length(axes, report, _lengths(report), partial(score_at, report))
    axes.set_ylim(-0.04, 1.04)
    axes.set_title("RULER: higher is better")
    axes.set_ylabel(f"mean score of {len(_tasks(report))} tasks")


SECTION = Section("ruler", RulerCell, _values, _show, "ruler.png", _draw, _panel)
