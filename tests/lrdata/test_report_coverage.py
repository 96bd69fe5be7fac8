"""Coverage of distances and positions, against counting pairs one by one."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.positions import pose_chunks
from lrdata.report.coverage import POSITION_BINS, CoverageCounter, octaves, pair_counts
from lrdata.report.statistics import Powers, spread, usual_rows

Documents = list[list[int]]


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, list[Documents]]:
    """A target length and rows: for each attention document its positions, which increase along
    the row."""
    target = draw(st.integers(2, 300))
    row = st.sets(st.integers(0, target - 1), min_size=1, max_size=120).map(sorted)
    cuts = st.sets(st.integers(1, 119), max_size=3).map(sorted)
    return target, draw(st.lists(st.builds(_cut, row, cuts), min_size=1, max_size=4))


def _cut(row: list[int], cuts: list[int]) -> Documents:
    edges = [0, *(cut for cut in cuts if cut < len(row)), len(row)]
    return [row[begin:end] for begin, end in pairwise(edges)]


def _columns(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    positions = np.array([place for document in documents for place in document], np.int32)
    return positions, np.array([len(document) for document in documents], np.int32)


def _pairs(documents: Documents, target: int) -> list[int]:
    """One by one."""
    counts = [0] * target
    for document in documents:
        for earlier, later in combinations(document, 2):
            counts[later - earlier] += 1
    return counts


@settings(max_examples=60)
@given(rows())
def test_pairs_and_shares_are_those_of_counting_one_by_one(
    drawn: tuple[int, list[Documents]],
) -> None:
    target, every = drawn
    counter = CoverageCounter(target)
    for documents in every:
        positions, lengths = _columns(documents)
        assert pair_counts(positions, lengths, target).tolist() == _pairs(documents, target)
        counter.add(positions, lengths)
    coverage = counter.coverage()
    counts = np.array([_pairs(documents, target) for documents in every])
    assert coverage.pairs.tolist() == counts.sum(axis=0).tolist()
    assert coverage.seen == pytest.approx((counts[:, 1:] > 0).any(axis=0).mean())
    assert coverage.seen_by_a_row == pytest.approx((counts[:, 1:] > 0).mean())
    for low, high in octaves(target):
        pairs, share = coverage.between(low, high)
        assert pairs == pytest.approx(counts[:, low:high].sum(axis=1).mean())
        assert share == pytest.approx((counts[:, low:high] > 0).mean())
    middles, density = coverage.density(7)
    assert len(middles) == len(density) <= 7
    assert (density * _widths(middles, target)).sum() == pytest.approx(counts.sum() / len(every))
    bins = min(target, POSITION_BINS)
    in_bin = [[p * bins // target for document in row for p in document] for row in every]
    expected = [sum(part in row for row in in_bin) / len(every) for part in range(bins)]
    assert coverage.occupancy().tolist() == pytest.approx(expected)


def _widths(middles: np.ndarray, target: int) -> list[float]:
    """How many distances each part has: they follow one another from 1 to target - 1."""
    widths, begin = [], 1.0
    for middle in middles.tolist():
        widths.append(2 * (middle - begin) + 1)
        begin += widths[-1]
    assert begin == target
    return widths


@pytest.mark.parametrize("target", [131_072, 100_003])
def test_counts_of_long_rows_are_exact(target: int) -> None:
    whole = np.arange(target)
    counts = pair_counts(whole, np.array([target]), target)
    assert np.array_equal(counts[1:], target - whole[1:])
    some = np.sort(np.random.default_rng(3).choice(target, 39_312, replace=False))
    counts = pair_counts(some, np.array([len(some)]), target)
    assert counts.sum() == len(some) * (len(some) - 1) // 2
    there = np.zeros(target, bool)
    there[some] = True
    for distance in (1, 2, 87, 4_096, 65_537, target - 1):
        assert counts[distance] == (there[distance:] & there[:-distance]).sum()


@settings(max_examples=40)
@given(rows(), st.integers(1, 5))
def test_equal_rows_may_be_added_at_once(drawn: tuple[int, list[Documents]], times: int) -> None:
    target, every = drawn
    one, other = CoverageCounter(target), CoverageCounter(target)
    for documents in every:
        one.add(*_columns(documents), times)
        for _ in range(times):
            other.add(*_columns(documents))
    first, second = one.coverage(), other.coverage()
    assert (first.rows, first.tokens) == (second.rows, second.tokens)
    for name in ("pairs", "rows_at", "occupied"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("target", [64, 2**15, 2**17, 2**20, 2**22])
def test_the_usual_sample_does_not_take_longer_for_longer_windows(target: int) -> None:
    assert usual_rows(target) == min(512, 2**26 // target)


def test_two_chunks_see_the_distances_that_their_definition_says() -> None:
    """PoSE: inside a chunk of length l all distances below l, and between the chunks those from
    the gap on, as many in a row as there are tokens less one."""
    target, length = 4_096, 1_200
    positions = pose_chunks(length, target, Draws("a row").stream("pose"), chunks=2)
    counts = pair_counts(positions, np.array([length]), target)
    jump = int(np.argmax(np.diff(positions)))
    first, gap = jump + 1, int(np.diff(positions)[jump])
    expected = set(range(1, max(first, length - first))) | set(range(gap, gap + length - 1))
    assert set(np.flatnonzero(counts).tolist()) == expected


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [
        ([0, 1, 64], [3]),
        ([-1, 0, 1], [3]),
        ([0, 2, 1], [3]),
        ([0, 1, 1], [3]),
        ([0, 1, 2], [2]),
        ([0, 1, 2], [3, 0]),
        ([0, 1, 0, 1], [2, 2]),
        ([0, 1, 1, 2], [2, 2]),
        ([], []),
    ],
)
def test_a_row_that_is_none_is_refused(positions: list[int], lengths: list[int]) -> None:
    with pytest.raises(LongRecipeError, match="positions of a row"):
        CoverageCounter(64).add(np.array(positions, int), np.array(lengths, int))


@given(st.integers(2, 300_000))
def test_parts_of_the_distances_are_all_of_them_once(target: int) -> None:
    parts = octaves(target)
    assert parts[0][0] == 1
    assert parts[-1][1] == target
    assert all(low < high for low, high in parts)
    assert all(one[1] == other[0] for one, other in pairwise(parts))


@given(st.integers(0, 5_000), st.integers(1, 700))
def test_a_sample_is_spread_over_all_rows(total: int, wanted: int) -> None:
    chosen = spread(total, wanted)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < total for index in chosen)
    assert len(chosen) <= wanted
    if total <= wanted:
        assert chosen == list(range(total))
    elif wanted > 1:  # of large samples eight neighbours at a place
        run = 8 if wanted >= 64 else 1
        assert len(chosen) >= 0.6 * wanted
        assert chosen[0] == 0
        assert chosen[-1] >= total - run
        assert max(np.diff(chosen)) <= total / (wanted / run - 1) + 1


@given(st.lists(st.integers(1, 2**31), max_size=30))
def test_powers_count_and_add_up(values: list[int]) -> None:
    powers = Powers()
    powers.add(np.array(values[:10], np.int64))
    powers.add(np.array(values[10:], np.int64))
    assert powers.count == len(values)
    assert powers.sums.sum() == sum(values)
    assert powers.largest == max(values, default=0)
    for power in powers.used():
        assert powers.counts[power] == sum(2**power <= value < 2 ** (power + 1) for value in values)
