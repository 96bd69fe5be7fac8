"""Words that may be asked for: as another library's regular expressions find them."""

import numpy as np
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from lrtrain.evaluation.cloze import words_of, words_right

TEXTS = st.text(
    st.sampled_from("ab e.\n0é я的人😀\u0301\u094d\u00a0_-") | st.sampled_from(list("the andof ")),
    max_size=60,
)


def found_by_regex(text: str) -> list[list[int]]:
    """Bytes of the same words, found as text."""
    spans = []
    for match in regex.finditer(r"(?<= )[\p{L}\p{M}]+(?=[^\p{L}\p{M}])", text):
        if len(regex.findall(r"\p{L}", match[0])) >= 4:
            start = len(text[: match.start()].encode())
            spans.append([start, start + len(match[0].encode())])
    return spans


@given(TEXTS)
@example(" naïve-té, नमस्ते दुनिया. ")
def test_words_are_runs_of_letters_after_a_space(text: str) -> None:
    assert words_of(text.encode()).tolist() == found_by_regex(text)


@given(text=TEXTS, cuts=st.tuples(st.integers(0, 200), st.integers(0, 200)))
def test_a_text_that_is_cut_loses_words_but_makes_none(text: str, cuts: tuple[int, int]) -> None:
    whole = text.encode()
    first, stop = sorted(min(cut, len(whole)) for cut in cuts)
    words = words_of(whole).tolist()
    found = (words_of(whole[first:stop]) + first).tolist()
    # A cut right behind a character that has a mark of its own leaves a letter: no more is known.
    inside = [word for word in words if first < word[0] and word[1] < stop]
    assert all(word in words for word in found)
    assert len(found) <= len(inside)
    assert [w for w in inside if whole[w[1] : w[1] + 1] < b"\x80" or w in found] == found


def test_what_is_and_what_is_no_word() -> None:
    text = "Four the well-known café\nnight don't x1234 snake_case seven8 ends here"
    words = [text.encode()[start:stop].decode() for start, stop in words_of(text.encode())]
    assert words == ["well", "café", "snake", "seven", "ends"]


@given(
    right=st.lists(st.booleans(), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=10),
)
def test_a_word_is_right_when_all_its_tokens_are(right: list[bool], cuts: list[int]) -> None:
    spans = [
        (start, min(stop, len(right)))
        for start, stop in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)
        if start < min(stop, len(right))
    ]
    expected = sum(all(right[start:stop]) for start, stop in spans)
    assert words_right(np.array(right), np.array(spans, np.int64).reshape(-1, 2)) == expected
