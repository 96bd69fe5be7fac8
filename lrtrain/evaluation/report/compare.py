"""One figure that compares the models over all suites that ran: a panel for each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrtrain.evaluation.report.figures import style
from lrtrain.evaluation.report.results import Report
from lrtrain.evaluation.report.section import Section
from lrtrain.evaluation.report.tables import size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARE_NAME = "compare.png"

_MOST_COLUMNS = 3
_PANEL_INCHES = 4.6


def draw_comparison(report: Report, sections: Sequence[Section]) -> "Figure":
    """The panels of the suites that ran, one at least, with one legend for all of them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [section.panel for section in sections if section.panel and section.ran(report)]
    rows = -(-len(panels) // _MOST_COLUMNS)
    columns = -(-len(panels) // rows)
    height = max(3.6, 0.36 * len(report.models) + 1.4)
    legend_columns = min(len(report.models), max(1, int(1.6 * columns)))
    legend = 0.25 * -(-len(report.models) // legend_columns) + 0.3
    figure = Figure(
        figsize=(columns * _PANEL_INCHES + 0.4, rows * height + legend), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(report, axes)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(10)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    handles = [
        Line2D(
            [],
            [],
            color=style(index)[0],
            marker=style(index)[1],
            label=f"{model.name} (window {size_text(model.window)})",
        )
        for index, model in enumerate(report.models)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns,
        fontsize=9,
        frameon=False,
    )
    return figure
