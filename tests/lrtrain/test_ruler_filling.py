"""Fillers have exactly so many tokens, and everything that must be in them, whole."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.draws import Draws
from lrtrain.evaluation.needle import Haystack
from lrtrain.evaluation.ruler.filling import (
    NoRoom,
    fill_with_lines,
    fill_with_text,
    most_that_fit,
    sentence_breaks,
    woven,
)


def haystack(size: int, starts: list[int]) -> Haystack:
    """Tokens 0, 1, 2 and so on."""
    made = Haystack.__new__(Haystack)
    made.ids = np.arange(size, dtype=np.int32)
    made.starts = np.array(sorted({0, *(start % size for start in starts)}))
    return made


def inserts_of(sizes: list[int]) -> list[np.ndarray]:
    """The first of them is -1, -1, ..., the second -2, -2, ..."""
    return [np.full(size, -at, np.int32) for at, size in enumerate(sizes, 1)]


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(
    size=st.integers(1, 60),
    starts=st.lists(st.integers(0, 59), max_size=12),
    offset=st.integers(-100, 100),
    count=st.integers(1, 150),
)
def test_sentence_breaks_are_where_sentences_begin(
    size: int, starts: list[int], offset: int, count: int
) -> None:
    hay = haystack(size, starts)
    begin = set(hay.starts.tolist())
    expected = [at for at in range(count) if (offset + at) % size in begin] or [0]
    assert sentence_breaks(hay, offset, count).tolist() == [*expected, count]


@given(
    size=st.integers(1, 60),
    starts=st.lists(st.integers(0, 59), max_size=12),
    end=st.integers(0, 59),
    sizes=SIZES,
    depths=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    more=st.integers(-3, 150),
)
def test_text_with_needles(
    size: int,
    starts: list[int],
    end: int,
    sizes: list[int],
    depths: list[float],
    more: int,
) -> None:
    hay, needles = haystack(size, starts), inserts_of(sizes)
    room = sum(sizes) + more
    places = sorted(depths[: len(sizes)])
    if more < 1:
        with pytest.raises(NoRoom) as problem:
            fill_with_text(hay, end, needles, places, room)
        assert problem.value.missing == 1 - more
        return
    filled = fill_with_text(hay, end, needles, places, room)
    assert filled.dtype == np.int32
    assert filled.shape == (room,)
    text = filled[filled >= 0]
    assert text.tolist() == [at % size for at in range(end - more, end)]
    breaks = sentence_breaks(hay, end - more, more).tolist()
    for at, (depth, needle) in enumerate(zip(places, needles, strict=True), 1):
        found = np.flatnonzero(filled == -at)
        assert len(found) == len(needle)
        assert found[-1] - found[0] == len(needle) - 1
        before = int((filled[: found[0]] >= 0).sum())
        assert before == breaks[int((len(breaks) - 1) * depth)]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    sizes=SIZES,
    room=st.integers(0, 120),
    seed=st.integers(0, 99),
)
def test_lines_with_inserts(lengths: list[int], sizes: list[int], room: int, seed: int) -> None:
    inserts = inserts_of(sizes)
    lines = [np.arange(length, dtype=np.int32) + 10 * at for at, length in enumerate(lengths)]
    asked = list[int]()

    def places(count: int) -> list[int]:
        asked.append(count)
        return Draws(seed).stream("places").subset(count, len(sizes)).tolist()

    whole = sum(map(len, itertools.islice(itertools.cycle(lines), len(sizes))))
    if room < sum(sizes) + whole:
        with pytest.raises(NoRoom) as problem:
            fill_with_lines(itertools.cycle(lines), inserts, places, room)
        assert problem.value.missing > 0
        return
    filled = fill_with_lines(itertools.cycle(lines), inserts, places, room)
    assert filled.dtype == np.int32
    assert filled.shape == (room,)
    (count,) = asked
    used = list(itertools.islice(itertools.cycle(lines), count + 1))
    left = room - sum(sizes) - sum(map(len, used[:-1]))
    assert 0 <= left < len(used[-1])
    others = filled[filled >= 0].tolist()
    assert others == [*used[-1][len(used[-1]) - left :], *np.concatenate([[], *used[:-1]]).tolist()]
    edges = left + np.cumsum([0, *map(len, used[:-1])])
    for at, place in enumerate(places(count), 1):
        found = np.flatnonzero(filled == -at)
        assert found[-1] - found[0] == sizes[at - 1] - 1 == len(found) - 1
        assert int((filled[: found[0]] >= 0).sum()) == edges[place]


@given(pieces=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6))
def test_woven(pieces: list[list[int]]) -> None:
    arrays = [np.array(piece, np.int32) for piece in pieces]
    between = inserts_of([1] * (len(pieces) - 1))
    expected = list(pieces[0])
    for at, piece in enumerate(pieces[1:], 1):
        expected += [-at, *piece]
    assert woven(arrays, between).tolist() == expected


@given(
    steps=st.lists(st.integers(0, 9), min_size=1, max_size=200),
    slope=st.integers(1, 5),
    least=st.integers(0, 20),
    room=st.integers(0, 2000),
)
def test_most_that_fit(steps: list[int], slope: int, least: int, room: int) -> None:
    sums = np.cumsum([0, *steps])
    tries = list[int]()

    def tokens(count: int) -> int:
        tries.append(count)
        last = len(sums) - 1
        return int(sums[min(count, last)]) + slope * max(0, count - last)

    if tokens(least) > room:
        with pytest.raises(NoRoom) as problem:
            most_that_fit(tokens, room, least)
        assert problem.value.missing == tokens(least) - room
        return
    found = most_that_fit(tokens, room, least)
    assert found >= least
    assert tokens(found) <= room < tokens(found + 1)


def test_most_that_fit_takes_few_tries_where_things_are_of_a_size() -> None:
    draws = Draws(0).stream("sizes").below(5, 40_000) + 3
    sums, tries = np.cumsum(np.append(0, draws)), list[int]()

    def tokens(count: int) -> int:
        tries.append(count)
        return int(sums[min(count, len(draws))]) + 7 * max(0, count - len(draws))

    for room in (1000, 30_000, 120_000):
        tries.clear()
        found = most_that_fit(tokens, room)
        assert sums[found] <= room < sums[found + 1]
        assert len(tries) < 25
