"""A text that is too long to be held as one string: it is decoded piece by piece.

    for piece in LongText(memoryview(cell)):             # UTF-8, as Parquet and text files hold it
        ...
    LongText(line[first:last], escaped=True)             # what stands between the quotes of JSON

A Python string takes up to four bytes a character; of a document of 300 MB there is never more than
its own bytes and a piece. Where a tokenizer allows it (`lrdata.cutting` says when and why), the
pieces are encoded one by one. They end at a line end between two words, or else at a space.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

LONG_BYTES = 16 * 1024**2
"""Longer texts are handled in pieces."""

PIECE_BYTES = 2 * 1024**2

_ESCAPES = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+",
    re.DOTALL,
)
"""A run of whole escapes and whole surrogate pairs. Possessive: it has nothing to remember."""


@dataclass(frozen=True)
class LongText:
    """UTF-8 bytes of a text; `escaped`: as they stand in a JSON string."""

    data: memoryview
    escaped: bool = False

    def __len__(self) -> int:
        """Bytes, as they are stored."""
        return len(self.data)

    def __str__(self) -> str:
        return "".join(self)

    def __iter__(self) -> Iterator[str]:
        """The text in pieces of about PIECE_BYTES; one without a place to cut is one piece.

        Raises UnicodeDecodeError, and json.JSONDecodeError for a bad escape or control character.
        """
        held, without = "", 0
        for part in self._decoded():
            held += part
            cut = last_cut(held, without)
            if cut:
                yield held[:cut]
                held = held[cut:]
            # What was looked through in vain is not looked through again, but for its last
            # character, which had nothing behind it.
            without = 0 if cut else len(held) - 1
        if held:
            yield held

    def _decoded(self) -> Iterator[str]:
        start, total = 0, len(self.data)
        while start < total:
            stop = self._end_of_part(start, min(start + PIECE_BYTES, total))
            part = bytes(self.data[start:stop])
            yield json.loads(b'"' + part + b'"') if self.escaped else part.decode()
            start = stop

    def _end_of_part(self, start: int, stop: int) -> int:
        """At or a little before `stop`: not inside a character or an escape."""
        if stop == len(self.data):
            return stop
        if self.escaped:
            whole = _ESCAPES.match(self.data, start, stop)
            stop = whole.end() if whole and whole.end() > start else stop
        while stop > start + 1 and self.data[stop] & 0xC0 == 0x80:
            stop -= 1
        return stop


def last_cut(text: str, without: int = 0) -> int:
    """Where a text may be cut, as late as possible; 0 for nowhere.

    After the line end of `X\\nY`, where X is no white space and Y a letter or number; where there
    is none, before the space of `X Y` between two letters. without: so many characters at the
    beginning are known to be no such line end or space.
    """
    first = max(1, without)
    at = text.rfind("\n", first, -1)
    while at > 0:
        if text[at + 1].isalnum() and not text[at - 1].isspace():
            return at + 1
        at = text.rfind("\n", first, at)
    at = text.rfind(" ", first, -1)
    while at > 0:
        if text[at + 1].isalpha() and text[at - 1].isalpha():
            return at
        at = text.rfind(" ", first, at)
    return 0
