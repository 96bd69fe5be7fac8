"""What an evaluation found, as tables in the terminal."""

import math
from typing import TYPE_CHECKING

from lrtrain.evaluate.report.results import LongPplFound, ModelEntry, Report
from lrtrain.evaluate.report.statistics import Mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def size_text(length: int) -> str:
    """131072 -> 128k, 614 -> 614."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def bin_text(bin_: tuple[int, int]) -> str:
    """(0, 1024) -> up to 1k, (1024, 2048) -> 1k-2k."""
    above, to = bin_
    return f"{size_text(above)}-{size_text(to)}" if above else f"up to {size_text(to)}"


def print_report(report: Report, console: "Console | None" = None) -> None:
    """One table for each suite: models as rows, lengths or positions as columns."""
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
    if report.longppl:
        _print_longppl(report, console)
    if any(_longest(report, model) > model.window for model in report.models):
        console.print("* beyond the model's max_position_embeddings", style="dim")


def _table(columns: list[str]) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("model", overflow="fold")
    table.add_column("window", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _needle_table(report: Report) -> "Table":
    lengths = sorted({cell.length for cell in report.needle})
    table = _table(list(map(size_text, lengths)))
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
    table = _table(list(map(size_text, lengths)))
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


def _print_longppl(report: Report, console: "Console") -> None:
    found = {model.name: report.longppl_of(model.name) for model in report.models}
    windows = max(len(cell.windows) + cell.left_out for cell in report.longppl)
    console.print("\n[bold]LongPPL[/]: perplexity of the tokens for which long context matters")
    console.print(
        f"below it: its 95 % interval over {windows} windows, and key tokens; by how many tokens "
        "are before them; perplexity: that of all tokens",
        style="dim",
    )
    console.print(_longppl_table(report, found))
    for name, cell in found.items():
        if cell and cell.left_out:
            console.print(
                f"{_plain(name)}: {cell.left_out} of {windows} windows left out, which its "
                "tokenizer does not spell as they are",
                style="dim",
            )


def _longppl_table(report: Report, found: dict[str, LongPplFound | None]) -> "Table":
    bins = report.position_bins
    table = _table(["LongPPL", *map(bin_text, bins), "perplexity"])
    for model in report.models:
        cell = found[model.name]
        if cell is None:
            continue
        whole = _mark(cell.longest, model)
        parts = [_perplexity_lines(cell.keys, cell.key_tokens, whole)]
        for bin_ in bins:
            if bin_ not in cell.by_position:
                parts.append("")
                continue
            part, count = cell.by_position[bin_]
            parts.append(_perplexity_lines(part, count, _mark(min(bin_[1], cell.longest), model)))
        parts.append(f"{_short(math.exp(cell.all_tokens.value))}{whole}")
        table.add_row(_plain(model.name), size_text(model.window), *parts, end_section=True)
    return table


def _perplexity_lines(nats: Mean, tokens: int, mark: str) -> str:
    value, low, high = (_short(math.exp(value)) for value in (nats.value, nats.low, nats.high))
    return f"{value}{mark}\n[dim]{low}-{high} [/]\n[dim]{tokens:,} [/]"


def _longest(report: Report, model: ModelEntry) -> int:
    """Most tokens that it was asked to read."""
    contexts = [max(cell.context) for cell in report.longppl if cell.model == model.name]
    return max([*report.lengths, *contexts], default=0)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _mark(length: int, model: ModelEntry) -> str:
    return "*" if length > model.window else " "


def _half(found: Mean) -> float:
    return (found.high - found.low) / 2


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
