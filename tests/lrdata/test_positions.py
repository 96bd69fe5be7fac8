from collections import defaultdict
from collections.abc import Hashable
from fractions import Fraction
from itertools import accumulate, combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.draws import Draws
from lrdata.positions import (
    SCHEMES,
    contiguous,
    longrecipe,
    pose,
    pose_chunks,
    pose_content,
    randpos,
    source,
)
from tests.chi_square import assert_follows, evenly

SPREADING = ["longrecipe", "pose", "randpos"]  # they place L tokens anywhere in [0, T)


def lengths(*segments: int) -> np.ndarray:
    return np.array(segments, np.int64)


def row(length: int) -> np.ndarray:
    """The first `length` tokens of a window, kept."""
    return np.arange(length, dtype=np.int32)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Kept tokens, their segments and a target."""
    segments = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    length = sum(segments)
    target = length + draw(st.integers(0, 60))
    kept = draw(st.sets(st.integers(0, target - 1), min_size=length, max_size=length))
    return np.array(sorted(kept), np.int32), lengths(*segments), target


# What every scheme promises.


@pytest.mark.parametrize("scheme", SCHEMES)
@given(row=rows(), seed=st.integers(0, 2**32))
def test_positions_increase_strictly_below_the_target(
    scheme: str, row: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    kept, segments, target = row
    positions = SCHEMES[scheme](kept, segments, target, Draws(seed).stream("positions"))
    assert positions.dtype == np.int32
    assert positions.shape == kept.shape
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] < target
    if scheme != "source":
        assert positions[0] == 0
    again = SCHEMES[scheme](kept, segments, target, Draws(seed).stream("positions"))
    np.testing.assert_array_equal(positions, again)


@given(row=rows(), seed=st.integers(0, 2**32))
def test_longrecipe_is_contiguous_inside_segments(
    row: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    kept, segments, target = row
    positions = longrecipe(kept, segments, target, Draws(seed).stream("positions"))
    gaps = set((np.flatnonzero(np.diff(positions) > 1) + 1).tolist())
    assert gaps <= set(np.cumsum(segments)[:-1].tolist())


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 8), st.integers(0, 2**32))
def test_pose_has_at_most_its_chunks(length: int, unused: int, chunks: int, seed: int) -> None:
    positions = pose_chunks(length, length + unused, Draws(seed).stream("p"), chunks)
    assert np.count_nonzero(np.diff(positions) > 1) < chunks
    assert positions[0] == 0
    assert (np.diff(positions) > 0).all()
    assert positions[-1] < length + unused


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("length", "target"), [(1, 1), (1, 50), (50, 50)])
def test_shortest_and_fullest_rows(scheme: str, length: int, target: int) -> None:
    stream = Draws(0).stream("positions")
    positions = SCHEMES[scheme](row(length), lengths(length), target, stream)
    assert positions.tolist() == list(range(length))  # there is no other way


def test_a_full_window_of_many_segments_has_no_gap() -> None:
    positions = longrecipe(row(50), lengths(*[5] * 10), 50, Draws(0).stream("positions"))
    assert positions.tolist() == list(range(50))


def test_contiguous_and_source_are_what_they_say() -> None:
    kept, stream = np.array([2, 3, 7, 9], np.int32), Draws(0).stream("positions")
    assert contiguous(kept, lengths(2, 2), 10, stream).tolist() == [0, 1, 2, 3]
    assert source(kept, lengths(2, 2), 10, stream).tolist() == [2, 3, 7, 9]


# Each scheme against its definition, by its whole distribution at a small size.


def shifted(segments: tuple[int, ...], skips: tuple[int, ...]) -> tuple[int, ...]:
    """Positions of segments, each `skips` further than it would be without."""
    starts = [0, *accumulate(segments)]
    return tuple(
        start + skip + i
        for start, skip, n in zip(starts, skips, segments, strict=False)
        for i in range(n)
    )


@pytest.mark.parametrize(
    ("segments", "target"), [((2, 1, 2), 9), ((1, 1), 6), ((3,), 7), ((1, 2, 1, 1), 8), ((2, 2), 4)]
)
def test_longrecipe_spreads_the_unused_positions_by_stars_and_bars(
    segments: tuple[int, ...], target: int
) -> None:
    unused = target - sum(segments)
    expected: list[Hashable] = [
        shifted(segments, (0, *accumulate(gaps)))  # what the gaps leave is slack at the end
        for gaps in product(range(unused + 1), repeat=len(segments) - 1)
        if sum(gaps) <= unused
    ]
    kept = row(sum(segments))
    drawn = [
        tuple(longrecipe(kept, lengths(*segments), target, Draws(seed).stream("p")).tolist())
        for seed in range(4000)
    ]
    if len(expected) == 1:
        assert set(drawn) == set(expected)
    else:
        assert_follows(drawn, evenly(expected))


@pytest.mark.parametrize(("length", "target", "chunks"), [(4, 7, 2), (5, 8, 3), (4, 6, 4)])
def test_pose_draws_every_composition_and_then_every_skip(
    length: int, target: int, chunks: int
) -> None:
    unused = target - length
    expected: dict[Hashable, Fraction] = defaultdict(Fraction)
    for cuts in combinations(range(1, length), chunks - 1):
        edges = (0, *cuts, length)
        segments = tuple(b - a for a, b in pairwise(edges))
        for skips in product(range(unused + 1), repeat=chunks - 1):
            skips = (0, *skips)
            steps = list(pairwise(skips))
            if all(a <= b for a, b in steps):
                chance = Fraction(1)
                for least, _ in steps:
                    chance /= unused - least + 1  # u_i ~ U{u_(i-1) .. T - L}
                expected[shifted(segments, skips)] += chance
    drawn = [
        tuple(pose_chunks(length, target, Draws(seed).stream("p"), chunks).tolist())
        for seed in range(6000)
    ]
    assert_follows(drawn, {outcome: float(chance) for outcome, chance in expected.items()})


def test_pose_takes_the_chunks_that_it_then_places() -> None:
    """All first chunks and all places of the second one, evenly; and the cut is the positions'."""
    length, window = 4, 7
    expected: list[Hashable] = [
        (*range(first), *range(first + skip, length + skip))
        for first in range(1, length)
        for skip in range(window - length + 1)
    ]
    drawn: list[Hashable] = []
    for seed in range(4000):
        draws = Draws(seed)
        kept = pose_content(length, window, draws.stream("p"), draws.stream("c"))
        assert kept.dtype == np.int32
        positions = pose(kept, lengths(1, 3), 100, draws.stream("p"))
        cuts = (set(np.flatnonzero(np.diff(places) > 1).tolist()) for places in (kept, positions))
        assert len(set.union(*cuts)) <= 1
        drawn.append(tuple(kept.tolist()))
    assert_follows(drawn, evenly(expected))


def test_pose_as_a_scheme_has_two_chunks() -> None:
    for seed in range(20):
        positions = pose(row(30), lengths(10, 20), 90, Draws(seed).stream("p"))
        same = pose_chunks(30, 90, Draws(seed).stream("p"), chunks=2)
        np.testing.assert_array_equal(positions, same)


def test_randpos_draws_every_subset_that_holds_the_start() -> None:
    expected: list[Hashable] = [(0, *rest) for rest in combinations(range(1, 7), 2)]
    drawn = [
        tuple(randpos(row(3), lengths(3), 7, Draws(seed).stream("p")).tolist())
        for seed in range(3000)
    ]
    assert_follows(drawn, evenly(expected))


# At the paper's size, 24k for 80k.

L, T = 24_000, 80_000


def mean_distance(positions: np.ndarray) -> float:
    """Mean |distance| over all pairs of tokens."""
    n = len(positions)
    weights = 2 * np.arange(n) - n + 1
    return float(2 * (weights * positions.astype(np.float64)).sum() / (n * (n - 1)))


def measure(scheme: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance and last position of each of some rows of 24k tokens for 80k."""
    length = T if scheme == "full" else L
    segments = np.full(length // 88 + 1, 88)
    segments[-1] = length - segments[:-1].sum()
    drawn = [
        SCHEMES[scheme](row(length), segments, T, Draws(seed, "24k").stream("positions"))
        for seed in range(rows)
    ]
    return np.array([mean_distance(p) for p in drawn]), np.array([p[-1] for p in drawn])


@pytest.mark.parametrize(
    ("scheme", "distance", "last"),
    [
        ("full", (T + 1) / 3, T - 1),
        # L - 1 of T - 1 positions: the last is a step of T / L from the end, on average.
        ("randpos", (T + 1) / 3, T - T / L),
        # N segments share T - L positions with the slack; two of them are N / 3 apart on average.
        ("longrecipe", (L + 1) / 3 + (T - L) / 3, T - 1 - (T - L) / 273),
        # u ~ U{0 .. T - L}; the cut divides a third of all pairs, which are then u further apart.
        ("pose", (L + 1) / 3 + (T - L) / 2 / 3, L - 1 + (T - L) / 2),
    ],
)
def test_spread_at_the_papers_size(scheme: str, distance: float, last: float) -> None:
    distances, lasts = measure(scheme, rows=1000 if scheme == "pose" else 100)
    for drawn, expected in ((distances, distance), (lasts, last)):
        error = drawn.std() / np.sqrt(len(drawn))
        assert abs(drawn.mean() - expected) < 4 * error + 2
    # What was measured once, on a handful of rows; PoSE varies most from row to row.
    known = {"full": 26_700, "randpos": 26_600, "longrecipe": 27_000, "pose": 15_400}
    share = 0.15 if scheme == "pose" else 0.015
    assert distances.mean() == pytest.approx(known[scheme], rel=share)
    assert lasts.mean() == pytest.approx(49_000 if scheme == "pose" else 80_000, rel=share)


def test_schemes_spread_in_the_order_that_is_known() -> None:
    spread = {scheme: measure(scheme, rows=30)[0].mean() for scheme in SPREADING}
    assert spread["pose"] < 0.75 * spread["randpos"] < 0.76 * spread["longrecipe"]


# CREAM and EndPrompt


def cream_reaches(factor: int) -> dict[int, float]:
    """The chance of each a, by integrating the truncated normal's density."""
    x = np.linspace(2, 2 * factor, 200_001)
    density = np.exp(-((x - factor - 1) ** 2) / (2 * 3.0**2))
    found = {a: float(density[np.floor(x) == a].sum()) for a in range(2, int(2 * factor) + 1)}
    del found[int(2 * factor)]  # a single point, for a whole factor
    return {a: share / sum(found.values()) for a, share in found.items()}


@pytest.mark.parametrize(("length", "target"), [(300, 1200), (300, 1000), (90, 300), (64, 640)])
def test_cream_is_a_head_a_block_and_a_tail(length: int, target: int) -> None:
    factor = target / length
    seen = set()
    for seed in range(300):
        positions = SCHEMES["cream"](row(length), lengths(length), target, Draws(seed).stream("p"))
        jumps = np.flatnonzero(np.diff(positions) > 1) + 1
        assert len(jumps) <= 2
        ends = int(target - positions[jumps[-1]])
        assert positions[-1] == target - 1
        assert ends in {length // 3, min(int(4 * factor), length // 3)}
        seen.add(ends)
        block = length - 2 * ends
        last = int(positions[length - ends - 1])
        assert positions[length - ends - block] == last - block + 1, "the block is contiguous"
        possible = [
            a
            for a in range(2, int(2 * factor) + 1)
            if ends + (block - 1) * a // 2 <= last <= a * length // 2 - ends - 1
        ]
        assert possible, "no a gives this end of the block"
    assert len(seen) == len({length // 3, min(int(4 * factor), length // 3)})


def test_creams_block_ends_as_often_as_its_formula_says() -> None:
    """Every (head, a, end) is likely by the formula: so every (head, end) is by their sum."""
    length, target = 12, 48
    factor, expected = target // length, defaultdict[Hashable, float](float)
    for ends in (length // 3, min(int(4 * factor), length // 3)):
        block = length - 2 * ends
        for a, share in cream_reaches(factor).items():
            least, most = ends + (block - 1) * a // 2, a * length // 2 - ends - 1
            for last in range(least, most + 1):
                expected[last] += 0.5 * share / (most - least + 1)
    drawn = [
        int(
            SCHEMES["cream"](row(length), lengths(length), target, Draws(seed).stream("p"))[
                length - length // 3 - 1
            ]
        )
        for seed in range(40_000)
    ]
    assert_follows(drawn, dict(expected))


@pytest.mark.parametrize(("length", "target"), [(100, 1000), (20, 50), (21, 50), (2, 9)])
def test_endprompt_is_contiguous_but_for_its_end(length: int, target: int) -> None:
    positions = SCHEMES["endprompt"](row(length), lengths(length), target, Draws(0).stream("p"))
    tail = min(20, length - 1)
    expected = [*range(length - tail), *range(target - tail, target)]
    assert positions.tolist() == expected
