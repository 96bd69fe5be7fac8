"""A lexicon as a person looks at it: its classes and types in tables, the paper's Figure 4 as PNG.

Figure 4 of LongRecipe counts, at each position of the window, how often a token of a class is among
the 20 % whose prediction changed most. Positions are taken together in a few bins.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from lrdata.atomic import replacing
from lrdata.lexicon import Lexicon, measured_tokens
from lrdata.scores import Scores
from lrdata.select import IMPACTFUL_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

_BINS = 16
_LEAST_TOKENS = 100
"""A class of fewer is not in the figure, a class with a smaller share of the tokens than the next
has no line in it, and a line has no point for fewer than the last."""
_LEAST_SHARE, _LEAST_OF_A_POINT = 0.005, 20
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#8C6D31",
    "#7F7F7F",
    "#9467BD",
    "#17BECF",
    "#BCBD22",
    "#E377C2",
)


def class_table(lexicon: Lexicon) -> pl.DataFrame:
    """A row for each class that was measured, the most significant first.

    Columns: class, tokens, share (of all tokens), top_share, key_share, mean_gain (of its tokens).
    """
    count = pl.col("count")
    weighted = {
        name: (pl.col(name) * count).sum() / count.sum()
        for name in ("top_share", "key_share", "mean_gain")
    }
    table = lexicon.table.filter(count > 0).group_by("class").agg(tokens=count.sum(), **weighted)
    share = pl.col("tokens") / pl.col("tokens").sum()
    columns = table.select("class", "tokens", *weighted, share=share)
    return columns.sort("top_share", "class", descending=True)


def position_table(all_scores: Sequence[Scores], lexicon: Lexicon) -> pl.DataFrame:
    """The share at the top by class and position: columns class, position (the middle of a bin, in
    tokens), tokens, top_share."""
    longest = max(scores.manifest.window for scores in all_scores)
    width = -(-longest // _BINS)
    tokens = pl.concat([measured_tokens(scores) for scores in all_scores])
    classes = lexicon.table.lazy().select("token", "class")
    return (
        tokens.join(classes, on="token")
        .group_by("class", bin=pl.col("position") // width)
        .agg(tokens=pl.len(), top_share=pl.col("top").mean())
        .select("class", "tokens", "top_share", position=pl.col("bin") * width + width // 2)
        .sort("class", "position")
        .collect()
    )


def top_types(lexicon: Lexicon, count: int, least: int) -> pl.DataFrame:
    """The `count` most significant types that were measured `least` times or more."""
    seen = lexicon.table.filter(pl.col("count") >= least)
    return seen.sort("significance", "token", descending=[True, False]).head(count)


def as_json(lexicon: Lexicon, positions: pl.DataFrame) -> dict[str, Any]:
    """The tables as plain JSON values."""
    return {
        "classes": class_table(lexicon).to_dicts(),
        "positions": positions.to_dicts(),
        "types": top_types(lexicon, 200, least=3).to_dicts(),
    }


def print_lexicon(lexicon: Lexicon, console: "Console | None" = None) -> None:
    """The classes, and the most significant types of each."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(title="How often a token is among the top 20 % at its position, by class")
    for name in ("class", "share of tokens", "at the top", "key tokens", "mean gain"):
        table.add_column(name, justify="left" if name == "class" else "right")
    classes = class_table(lexicon)
    for row in classes.iter_rows(named=True):
        shares = (f"{row['share']:.1%}", f"{row['top_share']:.3f}", f"{row['key_share']:.2%}")
        table.add_row(row["class"], *shares, f"{row['mean_gain']:+.3f}")
    console.print(table)
    console.print("Most significant types, of those seen three times or more:")
    for name in classes["class"]:
        of_class = Lexicon(lexicon.table.filter(pl.col("class") == name), lexicon.fingerprint)
        types = top_types(of_class, 12, least=3)["text"].to_list()
        console.print(f"  [bold]{name}[/]  {escape('  '.join(map(_shown, types)))}", soft_wrap=True)


def _shown(text: str) -> str:
    """A token's text on one line, its spaces visible."""
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    return re.sub(" {3,}", lambda run: f"␣*{len(run[0])}", shown).replace(" ", "␣")


def plot_lexicon(lexicon: Lexicon, positions: pl.DataFrame, path: Path) -> None:
    """Figure 4: the share at the top by class, over all positions and along them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(1, 1.6))
    table = class_table(lexicon).filter(pl.col("tokens") >= _LEAST_TOKENS)
    _bars(bars, table)
    large = table.filter(pl.col("share") >= _LEAST_SHARE)["class"].to_list()
    for name, colour in zip(large, _COLOURS[: len(large)], strict=True):
        part = positions.filter((pl.col("class") == name) & (pl.col("tokens") >= _LEAST_OF_A_POINT))
        lines.plot(
            *(part[column].to_numpy() for column in ("position", "top_share")),
            color=colour,
            label=name,
            lw=1.6,
        )
    lines.axhline(IMPACTFUL_SHARE, color="grey", lw=0.8, ls="--")
    lines.set_xlabel("position in the window (tokens)")
    lines.set_ylabel("share among the top 20 %")
    lines.set_title("along the window", fontsize=10)
    lines.set_ylim(bottom=0)
    lines.legend(fontsize=8, frameon=False, ncols=2)
    for axes in (bars, lines):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle("For which tokens does long context matter?", fontsize=12)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _bars(axes: "Axes", table: pl.DataFrame) -> None:
    names, shares = table["class"].to_list(), table["top_share"].to_numpy()
    places = np.arange(len(names))[::-1]
    axes.barh(places, shares, color="#0072B2", alpha=0.85)
    for place, share, part in zip(places, shares, table["share"], strict=True):
        axes.text(share, place, f" {share:.2f}", va="center", fontsize=8)
        axes.text(0.002, place, f"{part:.1%}", va="center", fontsize=7, color="white")
    axes.set_yticks(places, names, fontsize=9)
    axes.axvline(IMPACTFUL_SHARE, color="grey", lw=0.8, ls="--")
    axes.set_xlabel("share among the top 20 % (in the bar: share of all tokens)")
    axes.set_title("over all positions", fontsize=10)
