"""Markdown in which text from data stays text."""

from collections.abc import Iterable, Iterator, Sequence

from lrdata.visible import visible

_MARKUP = "\\`*_[]<>#|!~&$"


def inert(text: str) -> str:
    """Text from data for a line or a table: on one line, and no markup, HTML or formula in it."""
    line = visible(" ".join(text.split()))
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
