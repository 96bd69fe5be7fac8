from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata import select
from lrdata.draws import Draws, Stream
from tests.chi_square import assert_follows, evenly


def stream(seed: int = 0) -> Stream:
    return Draws(seed).stream("test")


def f32(*scores: float) -> np.ndarray:
    return np.array(scores, np.float32)


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sentence lengths, int64 [s], and the tokens' scores, float32 [n]; often 0, often tied."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=20))
    score = st.sampled_from([0.0, 0.0, 0.25, 0.5, 0.5, 1.0, 3.0])
    scores = draw(st.lists(score, min_size=sum(lengths), max_size=sum(lengths)))
    return np.array(lengths, np.int64), f32(*scores)


seeds = st.integers(0, 2**32)


def sentences(lengths: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """The values of each sentence."""
    return np.split(values, np.cumsum(lengths)[:-1])


# Impactful tokens.


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.25]), max_size=80), seeds)
def test_impactful_tokens_are_the_top_fifth_with_a_score(scores: list[float], seed: int) -> None:
    mask = select.impactful(f32(*scores), stream(seed))
    assert mask.dtype == bool
    assert len(mask) == len(scores)
    limit = len(scores) // 5
    scored = sum(score > 0 for score in scores)
    assert mask.sum() == min(limit, scored)
    chosen = sorted(f32(*scores)[mask].tolist(), reverse=True)
    assert chosen == sorted(scores, reverse=True)[: len(chosen)]


@given(st.lists(st.booleans(), max_size=80), seeds)
def test_scores_of_zero_and_one_may_be_booleans(scores: list[bool], seed: int) -> None:
    masks = [select.impactful(np.array(scores, kind), stream(seed)) for kind in (bool, np.float32)]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("n", [1, 4, 5, 9, 10, 15, 35, 131_072, 131_070])
def test_the_fifth_is_floored(n: int) -> None:
    assert select.impactful(np.ones(n, np.float32), stream()).sum() == n // 5


def test_ties_are_broken_evenly_by_the_seed() -> None:
    scores = f32(9, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)  # three of: the 9, two of four ones
    drawn = [tuple(np.flatnonzero(select.impactful(scores, stream(s)))) for s in range(2000)]
    assert_follows(drawn, evenly((0, *two) for two in combinations([1, 3, 4, 6], 2)))


# The order in which sentences are taken.


def order_of(keys: np.ndarray) -> np.ndarray:
    """Sentence numbers, the first to keep first."""
    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == len(keys)
    return np.argsort(keys)


@given(windows(), seeds)
def test_every_order_is_a_permutation(window: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    lengths, scores = window
    mask = select.impactful(scores, stream(seed))
    for rule in select.RULES.values():
        taken = order_of(rule(lengths, scores, mask, stream(seed)))
        assert sorted(taken.tolist()) == list(range(len(lengths)))
        again = order_of(rule(lengths, scores, mask, stream(seed)))
        np.testing.assert_array_equal(taken, again)


@given(windows(), seeds)
def test_draw_takes_sentences_with_an_impactful_token_first(
    window: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    lengths, scores = window
    mask = select.impactful(scores, stream(seed))
    order = order_of(select.draw_keys(lengths, scores, mask, stream(seed)))
    holds = [part.any() for part in sentences(lengths, mask)]
    taken = [holds[sentence] for sentence in order]
    assert taken == sorted(taken, reverse=True)


def test_draw_makes_every_order_equally_likely() -> None:
    lengths = np.array([2, 1, 3, 1, 2])
    mask = np.array([0, 1, 0, 1, 0, 0, 0, 0, 1], bool)  # sentences 0, 2 and 4 hold one
    scores = mask.astype(np.float32)
    drawn = [
        tuple(order_of(select.draw_keys(lengths, scores, mask, stream(s)))) for s in range(2000)
    ]
    expected = [a + b for a in permutations([0, 2, 4]) for b in permutations([1, 3])]
    assert_follows(drawn, evenly(expected))


@given(windows(), seeds)
def test_top_takes_the_best_mean_of_the_best_quarter_first(
    window: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    lengths, scores = window
    means = []
    for part in sentences(lengths, scores):
        best = sorted(part.tolist(), reverse=True)[: max(1, len(part) // 4)]
        means.append(sum(best) / len(best))
    order = order_of(select.top_keys(lengths, scores, scores > 0, stream(seed)))
    taken = [means[sentence] for sentence in order]
    assert taken == sorted(means, reverse=True)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=200), st.data())
def test_top_with_scores_of_any_size(values: list[float], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1).map(np.array))
    lengths = np.diff(np.minimum(np.cumsum([0, *lengths, len(values)]), len(values)))
    lengths = lengths[lengths > 0]
    best = [max(part) for part in sentences(lengths, f32(*values))]
    order = order_of(select.top_keys(lengths, f32(*values), f32(*values) > 0, stream()))
    few = [best[i] for i in order if lengths[i] < 8]  # one token decides these
    assert few == sorted(few, reverse=True)


def test_top_takes_a_negative_zero_for_zero() -> None:
    lengths, scores = np.array([1, 2]), f32(0.25, -0.0, 0.5)
    for seed in range(5):
        order = order_of(select.top_keys(lengths, scores, scores > 0, stream(seed)))
        assert order.tolist() == [1, 0]


def test_top_breaks_ties_by_the_seed() -> None:
    scores = f32(0.5, 0.5, 2.0, 0.5)
    drawn = [
        tuple(order_of(select.top_keys(np.ones(4, np.int64), scores, scores > 0, stream(s))))
        for s in range(1200)
    ]
    assert_follows(drawn, evenly((2, *rest) for rest in permutations([0, 1, 3])))


def test_first_takes_the_window_from_its_start() -> None:
    order = order_of(
        select.first_keys(np.array([3, 1, 4]), f32(*[0] * 8), np.zeros(8, bool), stream())
    )
    assert order.tolist() == [0, 1, 2]


# The budget.


@given(windows(), seeds, st.integers(0, 200))
def test_the_budget_is_met_exactly(
    window: tuple[np.ndarray, np.ndarray], seed: int, budget: int
) -> None:
    lengths, scores = window
    keys = select.draw_keys(lengths, scores, scores > 0, stream(seed))
    kept = select.keep(lengths, keys, budget)
    left = budget
    for sentence in order_of(keys):  # taken one after another, the last one truncated
        assert kept[sentence] == min(lengths[sentence], left)
        left -= kept[sentence]
    assert kept.sum() == min(budget, lengths.sum())


@given(windows(), seeds, st.integers(0, 200))
def test_no_impactful_sentence_goes_while_another_kind_stays_whole(
    window: tuple[np.ndarray, np.ndarray], seed: int, budget: int
) -> None:
    lengths, scores = window
    mask = select.impactful(scores, stream(seed))
    keys = select.draw_keys(lengths, scores, mask, stream(seed))
    kept = select.keep(lengths, keys, budget)
    holds = np.array([part.any() for part in sentences(lengths, mask)])
    if (kept[holds] < lengths[holds]).any():
        assert (kept[~holds] == 0).all()


# From counts to offsets, segments and pieces, against loops over tokens.


@st.composite
def selections(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sentence lengths and the tokens kept of each."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=25))
    kept = [draw(st.sampled_from([0, n, draw(st.integers(0, n))])) for n in lengths]
    return np.array(lengths, np.int64), np.array(kept, np.int64)


@given(selections())
def test_kept_tokens_are_the_starts_of_the_sentences_in_source_order(
    selection: tuple[np.ndarray, np.ndarray],
) -> None:
    lengths, kept = selection
    expected, start = [], 0
    for length, count in zip(lengths.tolist(), kept.tolist(), strict=True):
        expected += range(start, start + count)
        start += length
    offsets = select.kept_tokens(lengths, kept)
    assert offsets.dtype == np.int32
    assert offsets.tolist() == expected


@given(selections(), st.integers(1, 40))
def test_segments_are_runs_of_kept_sentences(
    selection: tuple[np.ndarray, np.ndarray], aim: int
) -> None:
    _, kept = selection
    segments = select.group(kept, aim)
    expected: list[int] = []
    before = 0
    number = -1
    for count in kept[kept > 0].tolist():
        if before // aim != number:  # the first sentence at or after a multiple of the aim
            expected.append(0)
            number = before // aim
        expected[-1] += count
        before += count
    assert segments.tolist() == expected
    assert segments.sum() == kept.sum()
    # No sentence is divided: every segment end is a sentence end.
    assert set(np.cumsum(segments).tolist()) <= set(np.cumsum(kept).tolist())


@pytest.mark.parametrize("aim", [40, 88, 300])
def test_segments_have_the_length_asked_for_on_average(aim: int) -> None:
    kept = Draws(0).stream("lengths").below(40, 4000) + 1
    assert select.group(kept, aim).mean() == pytest.approx(aim, rel=0.02)


@given(selections(), st.integers(1, 40))
def test_pieces_are_contiguous_and_end_with_segments(
    selection: tuple[np.ndarray, np.ndarray], aim: int
) -> None:
    lengths, kept = selection
    offsets = select.kept_tokens(lengths, kept)
    segments = select.group(kept, aim)
    ends = set(np.cumsum(segments).tolist())
    expected: list[list[int]] = []  # start, length
    for place, offset in enumerate(offsets.tolist()):
        if not expected or place in ends or offset != expected[-1][0] + expected[-1][1]:
            expected.append([offset, 0])
        expected[-1][1] += 1
    starts, counts = select.pieces(lengths, kept, segments)
    assert starts.dtype == counts.dtype == np.int32
    assert [list(piece) for piece in zip(starts.tolist(), counts.tolist(), strict=True)] == expected


@given(windows(), seeds, st.integers(1, 60), st.integers(1, 30))
def test_a_row_is_rebuilt_from_its_pieces(
    window: tuple[np.ndarray, np.ndarray], seed: int, budget: int, aim: int
) -> None:
    lengths, scores = window
    mask = select.impactful(scores, stream(seed))
    keys = select.draw_keys(lengths, scores, mask, stream(seed))
    kept = select.keep(lengths, keys, budget)
    offsets = select.kept_tokens(lengths, kept)
    starts, counts = select.pieces(lengths, kept, select.group(kept, aim))
    ids = np.arange(lengths.sum()) + 500
    parts = [ids[start : start + count] for start, count in zip(starts, counts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), ids[offsets])
