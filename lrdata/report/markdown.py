"""Markdown in which text from data stays text."""

import re
from collections.abc import Iterable, Iterator, Sequence

from lrdata.visible import visible

_MARKUP = "\\`*_[]<>#|!~&$"


_LINKS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=\S)(?=@\S)|(?<=\S@)(?=\S)", re.IGNORECASE)
"""Where a space keeps an address from becoming a link. The hub makes links of plain addresses, and
finds them again behind backslashes: it looks for them in the finished text."""


def inert(text: str) -> str:
    """Text from data for a line or a table: on one line, and no markup, HTML or formula in it.

    Addresses stay readable, but are no links: `https: //host`, `www .host`, `name @ host`.
    """
    line = visible(" ".join(_LINKS.sub(" ", text).split()))
    return "".join(f"\\{char}" if char in _MARKUP else char for char in line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table; cells are Markdown already."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def shell(commands: Iterable[str]) -> Iterator[str]:
    """A code block of commands; no line of them may hold its fence."""
    yield "```sh"
    yield from commands
    yield "```"
