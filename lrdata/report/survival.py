"""What selections keep, as tables, JSON and a figure. See `lrdata.survival`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdata.atomic import replacing
from lrdata.bootstrap import Interval, ratio
from lrdata.survival import COUNTS, Contestant, Outcome

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TITLES = {
    "keys": "key tokens kept",
    "pairs": "key tokens kept with their evidence",
    "copies": "copied tokens kept with their evidence",
}
_COLOURS = {
    "random": "#7F7F7F",
    "digits": "#E69F00",
    "lexicon": "#0072B2",
    "returns": "#D55E00",
    "scores": "#009E73",
}
_OTHERS = ("#CC79A7", "#56B4E9", "#000000", "#8C6D31")


def share(outcome: Outcome, count: str) -> Interval | None:
    """The share that survives, with its 95 % interval over documents; None where not judged."""
    counted = outcome.counted(count)
    return None if counted is None else ratio(*counted)


def against(outcome: Outcome, other: Outcome, count: str) -> Interval | None:
    """How many times as much survives as with another way, on the same windows."""
    ours, theirs = outcome.counted(count), other.counted(count)
    if ours is None or theirs is None or not theirs[0].any():
        return None
    return ratio(ours[0], theirs[0])


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A value with its interval for each way, budget and count, and what each window kept."""
    return [
        {
            "impact": outcome.contestant.name,
            "select": outcome.contestant.select,
            "evidence": outcome.contestant.evidence,
            "budget": outcome.budget,
            **{name: share(outcome, name) for name in COUNTS},
            **{
                f"{name}_over_random": against(outcome, baseline(outcomes, outcome), name)
                for name in COUNTS
            },
            "kept": outcome.kept.tolist(),
            "total": outcome.total.tolist(),
        }
        for outcome in outcomes
    ]


def baseline(outcomes: Sequence[Outcome], outcome: Outcome) -> Outcome:
    """Random sentences at the same budget."""
    plain = Contestant("random", "draw")
    return next(o for o in outcomes if o.contestant == plain and o.budget == outcome.budget)


def print_survival(outcomes: Sequence[Outcome], console: "Console | None" = None) -> None:
    """A table for each count: ways down, budgets across."""
    from rich.console import Console

    console = console or Console()
    for name in COUNTS:
        total = outcomes[0].total[COUNTS.index(name)].sum()
        console.print(f"\n[bold]{TITLES[name].capitalize()}[/], of {total:,}")
        console.print(
            "below it: its 95 % interval over documents, and how many times random's", style="dim"
        )
        console.print(_table(outcomes, name))


def _table(outcomes: Sequence[Outcome], count: str) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("impact, select")
    budgets = sorted({outcome.budget for outcome in outcomes})
    for budget in budgets:
        table.add_column(f"{budget:.0%}", justify="right")
    for way in dict.fromkeys(outcome.contestant for outcome in outcomes):
        cells = [
            _cell(outcomes, outcome, count)
            for budget in budgets
            for outcome in outcomes
            if (outcome.contestant, outcome.budget) == (way, budget)
        ]
        if any(cells):
            table.add_row(str(way), *cells, end_section=True)
    return table


def _cell(outcomes: Sequence[Outcome], outcome: Outcome, count: str) -> str:
    found, times = share(outcome, count), against(outcome, baseline(outcomes, outcome), count)
    if found is None:
        return ""
    over = f"\n[dim]x {times.value:.2f}[/]" if times else ""
    return f"{found.value:.3f}\n[dim]{found.low:.2f}-{found.high:.2f}[/]{over}"


def plot_survival(outcomes: Sequence[Outcome], path: Path) -> None:
    """A panel for each count: the share that survives by budget, a line for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    impacts = dict.fromkeys(outcome.contestant.impact for outcome in outcomes)
    others = [impact for impact in impacts if impact not in _COLOURS]
    for axes, name in zip(figure.subplots(1, len(COUNTS)), COUNTS, strict=True):
        for way in dict.fromkeys(outcome.contestant for outcome in outcomes):
            found = [(o.budget, share(o, name)) for o in outcomes if o.contestant == way]
            points = [(budget, point) for budget, point in found if point]
            if not points:
                continue
            colour = _COLOURS.get(way.impact) or _OTHERS[others.index(way.impact) % len(_OTHERS)]
            budgets = [budget for budget, _ in points]
            axes.plot(
                budgets,
                [point.value for _, point in points],
                color=colour,
                ls="-" if way.evidence else ":" if way.select == "draw" else "--",
                marker="o" if way.select == "draw" else "s",
                ms=4,
                lw=1.6,
                label=str(way),
            )
            low, high = ([getattr(point, end) for _, point in points] for end in ("low", "high"))
            axes.fill_between(budgets, low, high, color=colour, alpha=0.06, linewidth=0)
        axes.plot([0, 1], [0, 1], color="black", lw=0.6)
        axes.set(xlim=(0, max(budgets) * 1.05), ylim=(0, 1), xlabel="share of the window kept")
        axes.set_title(TITLES[name], fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    drawn = {
        label: line
        for panel in figure.axes
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    ways = [str(way) for way in dict.fromkeys(outcome.contestant for outcome in outcomes)]
    shown = [way for way in ways if way in drawn]
    axes.legend([drawn[way] for way in shown], shown, fontsize=7, frameon=False, **place)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
