"""Long texts: their pieces are the text, whatever the bytes look like."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata import long_text
from lrdata.long_text import LongText, last_cut

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["a\nb", "one two", "\n", " ", "\\", '"', "\\n", "\U0001f600", "\r\n", "é"]
        ),
    ),
    max_size=30,
).map("".join)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", 13)  # one more than a pair of escapes


@given(TEXTS)
def test_the_pieces_of_plain_text_are_the_text(text: str) -> None:
    assert "".join(LongText(memoryview(text.encode()))) == text


@given(TEXTS, st.booleans())
def test_the_pieces_of_a_json_string_are_what_json_reads(text: str, ascii_only: bool) -> None:
    line = json.dumps(text, ensure_ascii=ascii_only).encode()
    assert "".join(LongText(memoryview(line)[1:-1], escaped=True)) == json.loads(line)


@given(TEXTS)
def test_every_piece_but_the_last_ends_at_a_cut(text: str) -> None:
    pieces = list(LongText(memoryview(text.encode())))
    padded = f"  {text}"  # two characters before every cut
    before = 0
    for piece in pieces[:-1]:
        before += len(piece)
        around = padded[before : before + 4]
        at_line = around[1] == "\n" and not around[0].isspace() and around[2].isalnum()
        at_space = around[2] == " " and around[1].isalpha() and around[3].isalpha()
        assert at_line or at_space


@given(TEXTS)
def test_pieces_end_where_a_look_at_all_that_is_held_would_end_them(text: str) -> None:
    whole, held, wanted = LongText(memoryview(text.encode())), "", []
    for part in whole._decoded():
        held += part
        if cut := last_cut(held):
            wanted.append(held[:cut])
            held = held[cut:]
    assert list(whole) == [*wanted, *([held] if held else [])]


def test_what_has_no_cut_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of numbers: 384 MB of it took half an hour when each part was looked for in all."""
    looked = []

    def counted(text: str, without: int = 0) -> int:
        looked.append(len(text) - without)
        return last_cut(text, without)

    monkeypatch.setattr(long_text, "last_cut", counted)
    text = "0.25 -1.5 " * 400
    assert list(LongText(memoryview(text.encode()))) == [text]
    assert sum(looked) < 1.2 * len(text)


def test_cuts_are_late_and_prefer_line_ends() -> None:
    assert last_cut("one\ntwo three\nfour five") == len("one\ntwo three\n")
    assert last_cut("one two three") == len("one two")
    assert last_cut("one\n\ntwo") == 0
    assert last_cut("one.\n two, 3") == 0
    assert last_cut("") == last_cut("\n") == last_cut("a") == last_cut("a\n") == 0


@given(st.binary(max_size=40))
def test_what_is_no_unicode_is_refused(data: bytes) -> None:
    try:
        expected = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            list(LongText(memoryview(data)))
    else:
        assert str(LongText(memoryview(data))) == expected


@given(st.lists(st.sampled_from([b"a", b"\\", b"u", b"d83d", b"n", b"\n", b"\\ude00", b"\xff"])))
def test_what_is_no_json_string_is_refused(parts: list[bytes]) -> None:
    data = b"".join(parts)
    try:
        expected = json.loads(b'"' + data + b'"')
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  # both kinds are
            list(LongText(memoryview(data), escaped=True))
    else:
        assert str(LongText(memoryview(data), escaped=True)) == expected
