import math
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
def test_top_takes_the_sentence_with_the_highest_mean_first(
    window: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    lengths, scores = window
    means = [float(np.float32(np.mean(part.astype(float)))) for part in sentences(lengths, scores)]
    order = order_of(select.top_keys(lengths, scores, scores > 0, stream(seed)))
    taken = [means[sentence] for sentence in order]
    assert taken == sorted(means, reverse=True)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=200), st.data())
def test_top_with_scores_of_any_size(values: list[float], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1).map(np.array))
    lengths = np.diff(np.minimum(np.cumsum([0, *lengths, len(values)]), len(values)))
    lengths = lengths[lengths > 0]
    scores = f32(*values)
    means = [math.fsum(part.tolist()) / len(part) for part in sentences(lengths, scores)]
    order = order_of(select.top_keys(lengths, scores, scores > 0, stream()))
    taken = np.array([means[sentence] for sentence in order])
    assert (taken[1:] <= taken[:-1] * (1 + 1e-6)).all()


@given(st.binary(min_size=1, max_size=200), st.data())
def test_bytes_are_ranked_as_the_same_floats(values: bytes, data: st.DataObject) -> None:
    scores = np.frombuffer(values, np.uint8)
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1).map(np.array))
    lengths = np.diff(np.minimum(np.cumsum([0, *lengths, len(values)]), len(values)))
    lengths = lengths[lengths > 0]
    floats = scores.astype(np.float32)
    mask = select.impactful(scores, stream())
    assert np.array_equal(mask, select.impactful(floats, stream()))
    keys = select.top_keys(lengths, scores, mask, stream())
    assert np.array_equal(keys, select.top_keys(lengths, floats, mask, stream()))


@given(st.sampled_from(["bool", "u1", "i4", "i8", "f2", "f4", "f8"]), st.data())
def test_top_orders_by_plain_means_whatever_the_type(kind: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=20))
    most = {"bool": 1, "u1": 255, "f2": 1}.get(kind, 2**31 - 1)
    value = st.integers(0, most) | st.floats(0, 1) if "f" in kind else st.integers(0, most)
    scores = data.draw(st.lists(value, min_size=sum(lengths), max_size=sum(lengths)))
    values = np.array(scores).astype(kind)
    parts = sentences(np.array(lengths), values)
    means = np.array([math.fsum(part.astype(float)) / len(part) for part in parts])
    mask = select.impactful(values, stream())
    assert mask.sum() == min(len(values) // 5, np.count_nonzero(values))
    taken = means[order_of(select.top_keys(np.array(lengths), values, mask, stream()))]
    expected = means[np.argsort(-means)]  # keys have the precision of float32
    np.testing.assert_allclose(taken, expected, rtol=1e-6, atol=1e-37)


def test_top_takes_a_negative_zero_for_zero() -> None:
    lengths, scores = np.ones(3, np.int64), f32(-0.0, 0.5, 0.0)
    orders = {
        tuple(order_of(select.top_keys(lengths, scores, scores > 0, stream(seed))).tolist())
        for seed in range(40)
    }
    assert orders == {(1, 0, 2), (1, 2, 0)}


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


# Sentences that need others.


@st.composite
def needs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys of sentences, uint64 [s], and which needs which, int64 [e] each; one may need itself."""
    count = draw(st.integers(1, 15))
    rule = draw(st.sampled_from(sorted(select.RULES)))
    lengths, scores = np.ones(count, np.int64), np.zeros(count, np.float32)
    keys = select.RULES[rule](lengths, scores, scores > 0, stream(draw(seeds)))
    sentence = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(sentence, sentence), max_size=20))
    needing, needed = (np.array([pair[at] for pair in pairs], np.int64) for at in (0, 1))
    return keys, needing, needed


@given(needs())
def test_pairs_are_taken_as_by_a_loop_over_the_sentences(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """One that needs others is taken with them, when its turn comes; then come all the rest."""
    keys, needing, needed = pairs
    by_key = np.argsort(keys).tolist()
    expected: list[int] = []
    for sentence in by_key:
        group = {sentence, *needed[needing == sentence].tolist()}
        if sentence in needing:
            expected += [one for one in by_key if one in group and one not in expected]
    expected += [sentence for sentence in by_key if sentence not in expected]
    assert order_of(select.pair_keys(keys, needing, needed)).tolist() == expected


@given(needs())
def test_every_sentence_of_a_pair_comes_before_every_other(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    keys, needing, needed = pairs
    order = order_of(select.pair_keys(keys, needing, needed)).tolist()
    assert sorted(order) == list(range(len(keys)))
    paired = {*needing.tolist(), *needed.tolist()}
    assert set(order[: len(paired)]) == paired
    rest = order[len(paired) :]  # which stay in their order
    assert rest == [sentence for sentence in np.argsort(keys).tolist() if sentence not in paired]


@given(needs())
def test_what_a_sentence_needs_comes_with_it_and_not_later(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Of sentences that no other needs: they stay in the order of their keys, and between one and
    what it needs there is nothing that it does not need."""
    keys, needing, needed = pairs
    order = order_of(select.pair_keys(keys, needing, needed)).tolist()
    place = {sentence: at for at, sentence in enumerate(order)}
    firsts = [one for one in np.argsort(keys).tolist() if one in needing and one not in needed]
    assert sorted(firsts, key=lambda one: place[one]) == firsts
    for sentence in firsts:
        own = {sentence, *needed[needing == sentence].tolist()}
        last = max(place[one] for one in own)
        assert set(order[place[sentence] : last + 1]) <= own


def test_pairs_are_kept_whole_while_there_is_room() -> None:
    keys = np.array([5, 0, 1, 2, 3, 4], np.uint64)  # in the order 1 2 3 4 5 0
    needing, needed = np.array([4, 3]), np.array([0, 3])  # 3 has what it needs in itself
    paired = select.pair_keys(keys, needing, needed)
    assert order_of(paired).tolist() == [3, 4, 0, 1, 2, 5]
    assert select.keep(np.full(6, 10), paired, 35).tolist() == [10, 5, 0, 10, 10, 0]


def test_without_pairs_the_order_stays() -> None:
    nothing = np.zeros(0, np.int64)
    keys = np.array([3, 1, 2], np.uint64)
    assert order_of(select.pair_keys(keys, nothing, nothing)).tolist() == [1, 2, 0]


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
