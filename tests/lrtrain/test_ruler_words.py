"""Made-up words, numbers and identifiers: distinct, of one shape, the same whatever is drawn."""

import re
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.draws import Draws, Stream
from lrtrain.evaluation.ruler.words import (
    WORDS,
    distinct,
    letters,
    numbers,
    pairs,
    shuffled,
    uuids,
    word,
)


def stream(seed: int) -> Stream:
    return Draws(seed).stream("test")


def test_every_index_has_a_word_of_its_own_and_none_contains_another() -> None:
    words = [word(index) for index in range(WORDS)]
    assert len(set(words)) == WORDS > 60_000
    assert {len(word) for word in words} == {5}
    assert all(re.fullmatch("([bcdfhjklmnprstvwyz][aeiou]){2}[bdklmnrt]", word) for word in words)


@given(st.integers(0, 26**5 - 1), st.integers(0, 26**5 - 1))
def test_every_index_has_letters_of_its_own(one: int, other: int) -> None:
    first, second = letters(one, 5), letters(other, 5)
    assert re.fullmatch("[A-Z]{5}", first)
    assert (first == second) == (one == other)
    assert (first < second) == (one < other)


@given(
    bound=st.integers(1, 2000), share=st.floats(0, 1), less=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_distinct_integers_begin_with_fewer_of_them(
    bound: int, share: float, less: float, seed: int
) -> None:
    count = round(share * bound)
    fewer = round(less * count)
    drawn = distinct(stream(seed), bound, count)
    assert drawn.dtype == np.int64
    assert drawn.shape == (count,)
    assert len(set(drawn.tolist())) == count
    assert all(0 <= value < bound for value in drawn.tolist())
    assert np.array_equal(distinct(stream(seed), bound, fewer), drawn[:fewer])


def test_more_distinct_integers_than_there_are() -> None:
    with pytest.raises(ValueError, match="cannot draw 4 distinct integers of 3"):
        distinct(stream(0), 3, 4)


def test_distinct_integers_are_uniform_in_every_place() -> None:
    drawn = np.array([distinct(stream(seed), 10, 3) for seed in range(3000)])
    for place in range(3):
        assert abs(np.bincount(drawn[:, place], minlength=10) - 300).max() < 90


@given(count=st.integers(0, 300), seed=st.integers(0, 99))
def test_shuffled_is_an_order(count: int, seed: int) -> None:
    assert sorted(shuffled(stream(seed), count).tolist()) == list(range(count))


@given(count=st.integers(1, 50), digits=st.integers(2, 9), seed=st.integers(0, 99))
def test_shapes(count: int, digits: int, seed: int) -> None:
    drawn = numbers(stream(seed), count, digits)
    assert len(drawn) == count
    assert all(re.fullmatch(rf"[1-9]\d{{{digits - 1}}}", number) for number in drawn)
    assert len(set(uuids(stream(seed), count))) == count
    for text in uuids(stream(seed), count):
        assert str(uuid.UUID(text)) == text
        assert uuid.UUID(text).version == 4
        assert uuid.UUID(text).variant == uuid.RFC_4122
    assert all(re.fullmatch(r"[a-z]{5}-[a-z]{5}", pair) for pair in pairs(stream(seed), count))
