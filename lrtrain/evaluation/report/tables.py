"""What the tables of all sections have in common."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lrtrain.evaluation.report.results import ModelEntry
from lrtrain.evaluation.report.statistics import Mean

if TYPE_CHECKING:
    from rich.table import Table


def size_text(length: int) -> str:
    """131072 -> 128k, 614 -> 614."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def new_table(columns: list[str]) -> "Table":
    """A table with a row for each model: its name, its window, and these columns."""
    from rich.table import Table

    table = Table()
    table.add_column("model", overflow="fold")
    table.add_column("window", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def add_model(table: "Table", model: ModelEntry, cells: list[str]) -> None:
    """Add its row, and a line below it."""
    table.add_row(plain(model.name), size_text(model.window), *cells, end_section=True)


def by_length(
    models: Sequence[ModelEntry], lengths: list[int], cell: Callable[[ModelEntry, int], str]
) -> "Table":
    """A row for each model, a column for each length."""
    table = new_table(list(map(size_text, lengths)))
    for model in models:
        add_model(table, model, [cell(model, length) for length in lengths])
    return table


def plain(text: str) -> str:
    """A text whose brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def graded(share: float) -> str:
    """A share in green from 0.9 on, in yellow from 0.5 on, else in red."""
    colour = "green" if share >= 0.9 else "yellow" if share >= 0.5 else "red"
    return f"[{colour}]{share:.3f}[/]"


def mark(length: int, model: ModelEntry) -> str:
    """A star behind what was read beyond the model's window."""
    return "*" if length > model.window else " "


def half(found: Mean) -> float:
    """Half of the interval; NaN where there is none."""
    return (found.high - found.low) / 2


def plus_minus(found: Mean, how: str = ".3f") -> str:
    """The same as a table has it: ±0.012, or ±?."""
    return "±?" if math.isnan(half(found)) else f"±{format(half(found), how)}"


def shortly(value: float) -> str:
    """3 decimals of what is below 100, none of what is above."""
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
