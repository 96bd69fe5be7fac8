"""Coverage as one PNG, for the dataset's card: `report/coverage.png`."""

from pathlib import Path

import numpy as np

from lrdata.atomic import replacing
from lrdata.report.coverage import Coverage
from lrdata.report.statistics import NAMES
from lrdata.sizes import format_tokens

_BINS = 128
_COLOURS = {"rows": "#0072B2", "full": "#7F7F7F", "pose": "#D55E00", "randpos": "#00875F"}


def draw_coverage(coverage: dict[str, Coverage], path: Path) -> None:
    """Two panels: pairs of tokens by distance, and rows by position. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    target = coverage["rows"].target_len
    for name, one in coverage.items():
        style = {"color": _COLOURS[name], "label": NAMES[name], "lw": 2.2 - (name != "rows")}
        style["ls"] = "-" if name == "rows" else "--"
        middles, density = one.density(_BINS)
        left.plot(middles, np.where(density > 0, density, np.nan), **style)
        if name != "full":
            bins = len(one.occupied)
            right.plot((np.arange(bins) + 0.5) * target / bins, one.occupancy(), **style)
    left.set_yscale("log")
    left.set(xlabel="distance between two tokens", ylabel="pairs a row")
    left.set_title("Which distances training sees", fontsize=11)
    right.set(xlabel="position", ylabel="share of rows", ylim=(0, 1.04))
    right.set_title("Which positions training sees", fontsize=11)
    ticks = [target * part // 4 for part in range(5)]
    for axes in (left, right):
        axes.set_xlim(0, target)
        axes.set_xticks(ticks, [format_tokens(tick) for tick in ticks])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
