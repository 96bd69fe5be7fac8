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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrdata.atomic import write_text
from lrdata.draws import Draws

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
    """Modules of the standard library up to `most_bytes`, every tenth held out."""
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
    return Library(picked, heldout, _prose())


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


def code(stream_values: np.ndarray) -> str:
    """The line of a code: int64 [CUE + ANSWER] symbols -> text."""
    return CODE_PREFIX + "".join(SYMBOLS[value] for value in stream_values) + "."


def ledger(draws: Draws, prose: Sequence[str], codes: int, lines: int) -> str:
    """A document of `lines` lines of prose, with `codes` codes in each half, the same in both."""
    values = draws.stream("codes").below(len(SYMBOLS), codes * (CUE + ANSWER))
    planted = [code(row) for row in values.reshape(codes, -1)]
    order = draws.stream("order")
    text = draws.stream("prose").below(len(prose), lines)
    halves = []
    for half in (0, 1):
        places = order.below(lines // 2, codes)
        body = [[prose[i]] for i in text[half * (lines // 2) : (half + 1) * (lines // 2)]]
        turn = np.argsort(order.words(codes), kind="stable")
        for place, which in zip(places.tolist(), turn.tolist(), strict=True):
            body[place].append(planted[which])
        halves += [line for group in body for line in group]
    return "\n".join(halves) + "\n"


def write_jsonl(path: Path, texts: Iterator[str] | Sequence[str]) -> None:
    """One record a text."""
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def python_name() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor}"
