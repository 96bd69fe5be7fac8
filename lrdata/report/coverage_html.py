"""Coverage as parts of a page: which distances and which positions training sees."""

from collections.abc import Iterator

import numpy as np

from lrdata.report.coverage import LONGEST_TARGET, Coverage, octaves
from lrdata.report.page import section, short, some_rows, table, text
from lrdata.report.statistics import NAMES, RowStatistics
from lrdata.report.svg import Axis, Series, line_chart

_DISTANCE_BINS = 128
_COLOURS = {name: colour for colour, name in enumerate(NAMES)}
_DISTANCES = "Which distances training sees"
_FULL = "full-length rows are as long as the window, and cost accordingly."
_NO_FULL = (
    "full-length rows are left out: which documents a window of another length has is not known."
)


def coverage_sections(found: RowStatistics, target: int) -> Iterator[str]:
    """Two sections, of distances and of positions; one that says why there is no more; or, without
    extend rows, none."""
    coverage = found.coverage
    if not found.sampled:
        return
    if not coverage:
        yield section(
            _DISTANCES,
            f"<p>Left out: distances are counted for windows of 2 to {LONGEST_TARGET:,} tokens, "
            f"and these have {target:,}.</p>",
        )
        return
    names = {key: NAMES[key] for key in coverage}
    mine = coverage["rows"]
    densities = {key: one.density(_DISTANCE_BINS) for key, one in coverage.items()}
    series = [
        Series(names[key], values, _COLOURS[key], dashed=key != "rows")
        for key, (_, values) in densities.items()
    ]
    positive = np.concatenate([one.values[one.values > 0] for one in series])
    up = Axis.powers("pairs a row", max(positive.min(initial=1.0), 1e-3), positive.max(initial=10))
    across = Axis.tokens("distance between two tokens", target)
    yield section(
        _DISTANCES,
        "<p>With rotary positions a model sees how far apart two tokens are. Of each distance up "
        f"to {target:,}: how many pairs a row has, of a token and an earlier one that it attends "
        f"to. A row of these shows {mine.seen_by_a_row:.1%} of all distances, "
        f"{some_rows(mine.rows)} together {mine.seen:.1%}; "
        f"a row with the positions of PoSE shows {coverage['pose'].seen_by_a_row:.1%}.</p>",
        line_chart(densities["rows"][0], series, across, up, "pairs by distance"),
        _distance_table(coverage, names, target),
        f'<p class="soft">Of {some_rows(found.sampled)} out of {found.total:,}. PoSE and RandPos '
        f"are positions drawn for the same rows; {_FULL if 'full' in coverage else _NO_FULL} In "
        "the table: pairs a row, and the share of the distances of the line that occur in a row."
        "</p>",
    )
    bins = len(mine.occupied)
    places = (np.arange(bins) + 0.5) * target / bins
    occupancy = [
        Series(names[key], one.occupancy(), _COLOURS[key], dashed=key != "rows")
        for key, one in coverage.items()
        if key != "full"
    ]
    yield section(
        "Which positions training sees",
        f"<p>The window in {bins:,} equal parts of about {target / bins:,.0f} positions: the share "
        "of rows that have a token in each.</p>",
        line_chart(
            places,
            occupancy,
            Axis.tokens("position", target),
            Axis.shares("share of rows"),
            "rows by position",
        ),
    )


def _distance_table(coverage: dict[str, Coverage], names: dict[str, str], target: int) -> str:
    def cell(one: Coverage, low: int, high: int) -> str:
        pairs, share = one.between(low, high)
        return f'{short(round(pairs))} <span class="soft">{share:.0%}</span>'

    lines = [
        (f"{low:,}–{high - 1:,}", *(cell(one, low, high) for one in coverage.values()))
        for low, high in octaves(target)
    ]
    every = coverage.values()
    of_a_row = ("share of all, in a row", *(f"{one.seen_by_a_row:.1%}" for one in every))
    of_all = ("share of all, in any row", *(f"{one.seen:.1%}" for one in every))
    tokens = ("tokens a row", *(f"{one.tokens / one.rows:,.0f}" for one in every))
    header = ("distance", *(text(name) for name in names.values()))
    columns = range(1, len(header))
    return table(header, [*lines, of_a_row, of_all, tokens], numbers=columns)
