"""Classes of tokens: every byte string has one, and the ones that people would name."""

import unicodedata
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrdata.token_classes import CLASSES, class_of, token_classes
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import Vocabulary, offsets_of
from tests.fetch import fetch

EXAMPLES: dict[str, list[str | bytes]] = {
    "newline": [
        "\n",
        "\n\n",
        " \n",
        "\r\n",
        "\r",
        ".\n",
        "word\n",
        "{\n",
        "中\n",
        "1\n",
        "}\n\n\n",
    ],
    "space": [" ", "    ", "\t", " \t ", "\u00a0", "\u3000", ""],
    "byte": [b"\xff", b"\xe4", b"\xe4\xb8", b" \xd0", b"\x80", b"a\xc3", b"\n\xe4"],
    "cjk": ["中", " 日本", "の", "カタ", "한국", "𠀀", "第1", "中文a", "三", "中。"],
    "number": ["7", " 2024", "3.14", " 1,000", "50%", "(1)", "½", "²", "٣", "१२", " -5", "Ⅷ"],
    "identifier": [
        *("x1", " v2", "snake_case", "_name", " __init", "A_", "camelCase", " getElement"),
        *("utf8", "3D", " 2nd", "i18n", ".toString", "x²"),
    ],
    "acronym": ["NASA", " USA", "ID", " СССР", " U.S", "(AB", "A\u0301B"],
    "capitalised": [
        *("The", " Paris", "A", " I", " Été", "Жук", '"The', " (See", "Straße"),
        *("E\u0301te\u0301", "E\u0301"),
    ],
    "word start": [
        *(" the", " été", " и", "\tword", " don't", " e.g", "  two", "\u00a0mot", " कि"),
        *(" \u093e", " \u0bbe"),  # vowel signs of Devanagari and Tamil, alone
    ],
    "word part": [
        *("ing", "a", "été", "и", "don't", "'s", ".com", "शह", "ς"),
        *("कि", "\u093f", "\u094d", "\u093e\u0902", "\u0ba4\u0bcd", "e\u0301", "\u0301"),
    ],
    "punctuation": [".", ",", " (", "...", '"', "?!", "),", " --", "—", " «", "。", "،", "!", "…"],
    "symbol": [
        *("=", " {", "</", " #", "+=", "€", "→", "*", "_", "[]", "@", "|", "(=", "😀", "$"),
        *("\u2764\ufe0f", " \u00a9\ufe0f"),  # their variation selector is of no letter
    ],
}


@pytest.mark.parametrize(
    ("name", "token"),
    [(name, token) for name, tokens in EXAMPLES.items() for token in tokens],
)
def test_a_token_has_the_class_of_what_it_looks_like(name: str, token: str | bytes) -> None:
    assert class_of(token if isinstance(token, bytes) else token.encode()) == name


def test_there_is_an_example_of_every_class() -> None:
    assert {*EXAMPLES, "special"} == set(CLASSES)
    assert len(set(CLASSES)) == len(CLASSES)


@given(st.binary(max_size=12))
@example(b"\xed\xa0\x80")  # half of a surrogate pair
@example(b"\x00")
@example(b"\xef\xbb\xbf")
def test_every_byte_string_has_one_class(token: bytes) -> None:
    assert class_of(token) in set(CLASSES) - {"special"}


def is_letter(character: str) -> bool:
    """Or a mark that is written on one; not one that chooses how an emoji looks."""
    of_letters = unicodedata.category(character) in ("Mn", "Mc")
    return character.isalpha() or (
        of_letters and "VARIATION SELECTOR" not in unicodedata.name(character, "")
    )


@given(st.text(max_size=8))
@example("\u093e")
@example("1\u093e")
def test_the_first_classes_hold_what_they_say(text: str) -> None:
    found = class_of(text.encode())
    assert (found == "newline") == ("\n" in text or "\r" in text)
    assert (found == "space") == (found != "newline" and not text.strip())
    assert found != "byte"
    if found == "number":
        assert any(character.isnumeric() for character in text)
        assert not any(map(is_letter, text))
    if found in ("punctuation", "symbol"):
        assert not any(character.isnumeric() or is_letter(character) for character in text)
    if found in ("word start", "word part", "capitalised", "acronym", "identifier"):
        assert any(
            is_letter(character) or unicodedata.category(character).startswith("M")
            for character in text
        )


@given(st.binary(max_size=6).filter(lambda token: not token[:1].isspace()))
def test_a_space_before_a_token_only_makes_a_word_of_a_word_part(token: bytes) -> None:
    expected = class_of(token)
    expected = "word start" if expected == "word part" else expected
    assert class_of(b" " + token) == expected


def vocabulary_of(pieces: list[bytes], special: list[bool]) -> Vocabulary:
    values = np.frombuffer(b"".join(pieces), np.uint8)
    table = SimpleNamespace(
        token_bytes=(values, offsets_of(map(len, pieces), len(pieces))),
        special=np.array(special, bool),
        eot_id=0,
    )
    return cast(Vocabulary, table)


@given(st.lists(st.tuples(st.binary(max_size=5), st.booleans()), max_size=20))
def test_a_vocabulary_has_a_class_for_each_id(rows: list[tuple[bytes, bool]]) -> None:
    classes = token_classes(vocabulary_of([row[0] for row in rows], [row[1] for row in rows]))
    assert classes.dtype == np.uint8
    expected = ["special" if special else class_of(piece) for piece, special in rows]
    assert [CLASSES[number] for number in classes] == expected


# Real vocabularies

KNOWN = {
    b" the": "word start",
    b"The": "capitalised",
    b" The": "capitalised",
    b"ing": "word part",
    b"7": "number",
    b".": "punctuation",
    b" (": "punctuation",
    b" =": "symbol",
    b"{": "symbol",
    b" ": "space",
    b"    ": "space",
    b"\n": "newline",
    b"\n\n": "newline",
    b" USA": "acronym",
    b"\xe4": "byte",
    "的".encode(): "cjk",
    " é".encode(): "word start",
}
KNOWN_OF = {
    "llama3": {
        b" 2024": None,  # a space never stays with a number
        b"202": "number",
        b" getElement": "identifier",
        b"://": "symbol",
        b" {\n": "newline",
        "は".encode(): "cjk",
        " при".encode(): "word start",
        b"_name": "identifier",
    },
    "smollm2": {
        b"202": None,  # each digit is a token
        b"</": "symbol",
        b" PyTorch": "identifier",
        b"assertFalse": "identifier",
        b" NASA": "acronym",
    },
}


@cache
def _real(name: str) -> tuple[dict[bytes, int], np.ndarray, Tokenizer]:
    tokenizer = Tokenizer.load(str(fetch(name)), encoder="tokenizers")
    values, offsets = tokenizer.token_bytes
    data = values.tobytes()
    pieces = [data[start:stop] for start, stop in pairwise(offsets.tolist())]
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    return ids, token_classes(tokenizer), tokenizer


@pytest.mark.parametrize("name", sorted(KNOWN_OF))
def test_every_id_of_a_real_tokenizer_has_a_class(name: str) -> None:
    _, classes, tokenizer = _real(name)
    assert len(classes) == tokenizer.vocab_size
    assert classes.max() < len(CLASSES)
    special = classes == CLASSES.index("special")
    np.testing.assert_array_equal(special, tokenizer.special)
    assert special[tokenizer.eot_id]
    # All of them are there, and none is a drawer for whatever does not fit elsewhere.
    share = np.bincount(classes, minlength=len(CLASSES)) / len(classes)
    assert (share > 0).all()
    assert share[CLASSES.index("symbol")] < 0.1


@pytest.mark.parametrize("name", sorted(KNOWN_OF))
def test_known_tokens_of_a_real_tokenizer_have_the_right_class(name: str) -> None:
    ids, classes, _ = _real(name)
    for piece, expected in (KNOWN | KNOWN_OF[name]).items():
        found = CLASSES[classes[ids[piece]]] if piece in ids else None
        assert found == expected, piece
