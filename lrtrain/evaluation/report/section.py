"""What a section is: how one suite's outcome is written and shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrtrain.evaluation.report.results import Report
from lrtrain.evaluation.suite import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


@dataclass(frozen=True)
class Section:
    """One suite in a report. All but `values` are called only when it ran."""

    key: str
    """Its key in eval.json."""
    cells: type[Cell]
    """The kind of its cells."""
    values: Callable[[Report], dict[str, Any]]
    """What is under the key, ready for JSON; without a cell, the same with nothing in it."""
    show: Callable[[Report, "Console"], None]
    """Prints a table: models as rows."""
    figure: str
    """The name of its figure."""
    draw: Callable[[Report], "Figure"]
    panel: Callable[[Report, "Axes"], None] | None = None
    """Draws its part of the figure that compares models, if it has one: see `compare`."""

    def ran(self, report: Report) -> bool:
        return bool(report.of(self.cells))
