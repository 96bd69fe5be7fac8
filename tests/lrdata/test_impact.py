from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata import select
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact import Scorer, open_scorer
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Document, Span, Window
from tests.chi_square import assert_follows, evenly


def tokenizer_of(pieces: list[bytes], special: list[bool]) -> Tokenizer:
    """As much of a tokenizer as a scorer looks at."""
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    values = np.frombuffer(b"".join(pieces), np.uint8)
    table = SimpleNamespace(token_bytes=(values, offsets), special=np.array(special, bool))
    return cast(Tokenizer, table)


def window_of(ids: list[int]) -> Window:
    tokens = np.array(ids, np.int32)
    span = Span(Document("d", "s", "f", 0), 0, len(ids))
    return Window(tokens, np.zeros(len(ids), bool), (span,), 0)


def score(scorer: Scorer, ids: list[int], seed: int = 0) -> np.ndarray:
    return scorer.score(window_of(ids), Draws(seed))


PIECES = [b"", b"a", b" 2024", b"x1", b"\xe2\x80", b"\xd9\xa3", b"/", b":", b"0", b"9", b"<|7|>"]
SPECIAL = [False] * (len(PIECES) - 1) + [True]


@given(st.lists(st.integers(0, len(PIECES) - 1)))
def test_digits_scores_tokens_with_a_digit(ids: list[int]) -> None:
    scores = score(open_scorer("digits", tokenizer_of(PIECES, SPECIAL)), ids)
    expected = [any(c in b"0123456789" for c in PIECES[i]) and not SPECIAL[i] for i in ids]
    assert scores.tolist() == expected


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=30))
def test_digits_for_any_vocabulary(pieces: list[bytes]) -> None:
    scorer = open_scorer("digits", tokenizer_of(pieces, [False] * len(pieces)))
    expected = [any(0x30 <= byte <= 0x39 for byte in piece) for piece in pieces]
    assert score(scorer, list(range(len(pieces)))).tolist() == expected


def test_random_is_uniform_above_zero_and_keyed_by_the_draws() -> None:
    scorer = open_scorer("random", tokenizer_of(PIECES, SPECIAL))
    scores = score(scorer, [1] * 50_000)
    assert scores.dtype == np.float32
    assert scores.min() > 0
    assert scores.max() <= 1
    tenths = np.minimum((scores * 10).astype(int), 9)
    assert_follows(tenths.tolist(), evenly(range(10)))
    np.testing.assert_array_equal(scores, score(scorer, [2] * 50_000))  # not by the tokens
    assert (scores != score(scorer, [1] * 50_000, seed=1)).mean() > 0.999


@pytest.mark.parametrize(("word", "least", "most"), [(0, 0, 1e-6), (2**64 - 1, 1, 1)])
def test_random_is_above_zero_for_every_word(word: int, least: float, most: float) -> None:
    words = SimpleNamespace(words=lambda count: np.full(count, word, np.uint64))
    draws = cast(Draws, SimpleNamespace(stream=lambda purpose: words))
    scorer = open_scorer("random", tokenizer_of(PIECES, SPECIAL))
    (scored,) = scorer.score(window_of([1]), draws)
    assert scored > 0
    assert least <= scored <= most


def test_random_makes_a_fifth_of_the_window_impactful() -> None:
    scores = score(open_scorer("random", tokenizer_of(PIECES, SPECIAL)), [1] * 1000)
    assert select.impactful(scores, Draws(0).stream("ties")).sum() == 200


def test_none_makes_nothing_impactful() -> None:
    scores = score(open_scorer("none", tokenizer_of(PIECES, SPECIAL)), [2] * 100)
    assert scores.dtype == np.float32
    assert not select.impactful(scores, Draws(0).stream("ties")).any()


@pytest.mark.parametrize("spec", ["digit", "", "none:x", "digits:a.txt", "Random"])
def test_an_unknown_scorer_is_named(spec: str) -> None:
    with pytest.raises(LongRecipeError, match=r"--impact .*: unknown scorer; known: digits, "):
        open_scorer(spec, tokenizer_of(PIECES, SPECIAL))
