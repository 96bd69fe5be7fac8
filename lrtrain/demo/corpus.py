"""What the demo reads: the running Python's own library, and documents that restate planted facts.

A fact is a *code*, a line such as `Code: k 7 Q x a B 9 z p L 2 m.`: twelve symbols, each one token.
Whoever has read it can go on from its first four. A *ledger* is a long document of prose in which
codes are planted in the first half and restated in the second: exactly what a short window cannot
hold together, and what its rows of selected sentences can.
"""

import json
import string
import sys
import sysconfig
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrdata.atomic import write_text
from lrdata.draws import Draws, Stream

SYMBOLS = tuple(" " + symbol for symbol in string.ascii_letters + string.digits)
CUE, ANSWER = 4, 8
CODE_PREFIX = "Code:"
_FILE_BYTES = (2_000, 60_000)


@dataclass(frozen=True)
class Library:
    """Texts of the running Python: sources to train on, others to measure on, and prose lines."""

    sources: list[str]
    heldout: list[str]
    prose: list[str]


def read_library(most_bytes: int) -> Library:
    """Modules of the standard library up to `most_bytes`, every tenth held out if it is new.

    Tables are copies of each other there: half of the tenths would measure what was learned by
    heart.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    picked, heldout, size = list[str](), list[str](), 0
    for number, path in enumerate(sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py"))):
        if not _FILE_BYTES[0] <= path.stat().st_size <= _FILE_BYTES[1]:
            continue
        if any(part in ("test", "site-packages", "idlelib") for part in path.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        (heldout if number % 10 == 9 else picked).append(text)
        size += len(text)
        if size >= most_bytes:
            break
    known = {line for text in picked for line in long_lines(text)}
    return Library(picked, [text for text in heldout if is_new(text, known)], _prose())


def long_lines(text: str) -> set[int]:
    """Hashes of its lines of 40 characters or more, which are seldom the same by chance."""
    return {hash(line) for line in map(str.strip, text.split("\n")) if len(line) >= 40}


def is_new(text: str, known: Set[int]) -> bool:
    """Whether it has long lines, and at most one in twenty of them is `known`."""
    lines = long_lines(text)
    return bool(lines) and len(lines & known) <= len(lines) / 20


def _prose() -> list[str]:
    """Sentences of Python's documentation without digits: what a digit scorer leaves out."""
    from pydoc_data.topics import topics

    lines = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            line = " ".join(paragraph.split())
            plain = 40 <= len(line) <= 240 and line.isascii() and line[0].isupper()
            if plain and line.endswith(".") and not any(map(str.isdigit, line)):
                lines.append(line)
    return lines


def ledger(draws: Draws, prose: Sequence[str], codes: int = 18, lines: int = 26) -> str:
    """A document of `lines` lines of prose, with the same `codes` codes in each half."""
    planted = draw_codes(draws.stream("codes"), codes)
    order = draws.stream("order")
    text = [prose[index] for index in draws.stream("prose").below(len(prose), lines).tolist()]
    halves = []
    for half in (text[: lines // 2], text[lines // 2 :]):
        turn = np.argsort(order.words(codes), kind="stable").tolist()
        halves += _scatter([planted[which] for which in turn], half, order)
    return "\n".join(halves) + "\n"


def short_documents(draws: Draws, library: Library, count: int) -> Iterator[str]:
    """Texts that fit the base model's window, of the kinds that it was trained on."""
    places = draws.stream("places")
    for number in range(count):
        own = draws.stream(f"own {number}")
        kind = number % 3
        if kind == 0:
            period = 8 + int(own.below(56, 1)[0])
            symbols = "".join(SYMBOLS[value] for value in own.below(len(SYMBOLS), period).tolist())
            yield symbols * (200 // period)
            continue
        source = library.sources[int(places.below(len(library.sources), 1)[0])]
        start = int(places.below(max(1, len(source) - 350), 1)[0])
        lines = source[start : start + 350].split("\n")
        if kind == 1:
            yield "\n".join(lines)
        else:
            planted = draw_codes(own, 3)
            yield "\n".join(_scatter([*planted, *planted], lines, own))


def draw_codes(draws: Stream, count: int) -> list[str]:
    """So many codes, each a line."""
    values = draws.below(len(SYMBOLS), count * (CUE + ANSWER))
    return [
        CODE_PREFIX + "".join(SYMBOLS[value] for value in row) + "."
        for row in values.reshape(count, -1).tolist()
    ]


def _scatter(codes: Sequence[str], lines: Sequence[str], draws: Stream) -> list[str]:
    """The lines with the codes at random places between them, in the order given."""
    places = np.sort(draws.below(len(lines) + 1, len(codes))).tolist()
    mixed = list(lines)
    for place, code in reversed(list(zip(places, codes, strict=True))):
        mixed.insert(place, code)
    return mixed


def write_jsonl(path: Path, texts: Iterator[str] | Sequence[str]) -> None:
    """One record a text."""
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def python_name() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor}"
