"""Corpora that are damaged on purpose, and what a second, simple reader makes of them."""

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import zstandard

from tests.conftest import generated_text
from tests.corpora import ENDINGS, columnar, encoded, packed

GOOD = "good.jsonl"


@dataclass
class Damaged:
    """A corpus with a damaged file `bad.*` and, mostly, a whole one.

    texts: document id -> text of every record that can be read. rejected: how many others there
    are; None where it is not defined, and then `texts` holds what may be built. raw: where even
    the texts are not known, bytes that what is built must be part of. refusable: whether the
    damage may make the whole build an error.
    """

    format: str
    damage: str
    files: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    rejected: int | None = 0
    raw: bytes | None = None
    refusable: bool = False


def damaged_corpus(number: int) -> Damaged:
    """The corpus with this number, always the same."""
    draw = random.Random(f"corpus {number}")
    format = draw.choice(list(ENDINGS))
    records = _records(draw, draw.randint(1, 20))
    whole_file = format.startswith("txt") or draw.random() < 0.5
    corpus = (_damaged_file if whole_file else _damaged_records)(draw, format, records)
    if draw.random() < 0.85:
        good = _records(draw, 16)
        corpus.files[GOOD] = encoded(good, "jsonl")
        corpus.texts |= read_lines(GOOD, corpus.files[GOOD])[0]
    return corpus


def _records(draw: random.Random, count: int) -> list[dict[str, Any]]:
    seed = draw.randrange(10**9)
    texts = ["".join(generated_text(draw.randint(1, 3), seed + at)) for at in range(count)]
    return [{"id": f"r{at}", "text": text} for at, text in enumerate(texts)]


# The simple readers


def read_lines(name: str, data: bytes) -> tuple[dict[str, str], int, bool]:
    """(texts by id, rejected lines, whether the file may be refused) of JSON lines."""
    texts: dict[str, str] = {}
    rejected, objects, with_text, at = 0, 0, 0, 0
    for line in data.split(b"\n"):
        start, at = at, at + len(line) + 1
        line = line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line
        if not line.strip():
            continue
        value = _value(line)
        objects += isinstance(value, dict)
        with_text += isinstance(value, dict) and "text" in value
        text = value.get("text") if isinstance(value, dict) else None
        if is_text(text):
            texts[f"{name}:{start}"] = text
        else:
            rejected += 1
    array = data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return texts, rejected, array or (objects > 0 and not with_text)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None


def is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    return not any(0xD800 <= ord(character) < 0xE000 for character in value)


def readable(data: bytes, format: str) -> tuple[bytes, bool]:
    """What can be unpacked of a damaged file, byte by byte, and whether that is all of it."""
    if format.endswith(".gz"):
        new: Callable[[], Any] = lambda: zlib.decompressobj(wbits=31)  # noqa: E731
    elif format.endswith(".zst"):
        new = lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()  # noqa: E731
    else:
        return data, True
    member, out = new(), bytearray()
    for at in range(len(data)):
        if member.eof:
            if not data[at]:
                continue
            member = new()
        try:
            out += member.decompress(data[at : at + 1])
        except (zlib.error, zstandard.ZstdError):
            return bytes(out), False
    return bytes(out), member.eof


# Damage to the bytes of a file


def _damaged_file(draw: random.Random, format: str, records: list[dict[str, Any]]) -> Damaged:
    name = f"bad{ENDINGS[format]}"
    damage = draw.choice(list(_FILE_DAMAGE))
    whole = encoded(records, format, rows_in_group=draw.choice([1, 4, 100]))
    data = _FILE_DAMAGE[damage](draw, whole)
    corpus = Damaged(format, damage, {name: data})
    inside, complete = readable(data, format)
    if format.startswith("jsonl"):
        corpus.texts, rejected, corpus.refusable = read_lines(name, inside)
        corpus.rejected = rejected if complete else None
        corpus.refusable |= not complete  # what is lost may be the part that had the texts
    elif format.startswith("txt"):
        inside = inside.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        text = inside.decode(errors="replace")
        good = is_text(text) and text.encode() == inside
        corpus.texts = {f"{name}:0": text} if good and complete else {}
        corpus.rejected = int(not good) if complete else None
        corpus.raw = None if complete else inside
    else:
        corpus.rejected, corpus.refusable = None, True
        corpus.texts = {f"{name}:{at}": str(r["text"]) for at, r in enumerate(records)}
        if format.startswith("arrow"):  # which has no checksums
            corpus.texts, corpus.raw = {}, data
    return corpus


def _flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwrite(draw: random.Random, data: bytes) -> bytes:
    at, length = draw.randrange(len(data)), draw.randint(1, 64)
    return data[:at] + draw.randbytes(min(length, len(data) - at)) + data[at + length :]


def _insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.randint(1, 64)) + data[at:]


def _swap(draw: random.Random, data: bytes) -> bytes:
    a, b, c = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _zero(draw: random.Random, data: bytes) -> bytes:
    at, length = draw.randrange(len(data)), draw.choice([1, 8, 64, 512])
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def _repeat(draw: random.Random, data: bytes) -> bytes:
    a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] + data[b:]


_FILE_DAMAGE: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "bits flipped": _flip_bits,
    "truncated": lambda draw, data: data[: draw.randrange(len(data))],
    "beginning lost": lambda draw, data: data[draw.randrange(len(data)) :],
    "bytes overwritten": _overwrite,
    "bytes inserted": _insert,
    "bytes appended": lambda draw, data: data + draw.randbytes(draw.randint(1, 64)),
    "blocks swapped": _swap,
    "block repeated": _repeat,
    "zeroed": _zero,
    "empty": lambda draw, data: b"",
    "only noise": lambda draw, data: draw.randbytes(draw.randint(1, 4000)),
}


# Damage to single records, in a file that is whole


def _damaged_records(draw: random.Random, format: str, records: list[dict[str, Any]]) -> Damaged:
    name = f"bad{ENDINGS[format]}"
    if not format.startswith("jsonl"):
        return _damaged_rows(draw, format, name, records)
    lines = [json.dumps(record).encode() for record in records]
    damage = draw.choice([*_LINE_DAMAGE, "of all kinds"])
    for at in range(len(lines)):
        if draw.random() < 0.4:
            kind = draw.choice(list(_LINE_DAMAGE)) if damage == "of all kinds" else damage
            lines[at] = _LINE_DAMAGE[kind](draw, lines[at])
    data = b"\n".join(lines) + draw.choice([b"", b"\n", b"\n\n"])
    corpus = Damaged(format, f"lines: {damage}", {name: packed(data, format)})
    corpus.texts, corpus.rejected, corpus.refusable = read_lines(name, data)
    return corpus


def _field(draw: random.Random, line: bytes, value: str) -> bytes:
    """The line with another value of its text, written as it is given."""
    record = json.loads(line)
    return f'{{"id": "{record["id"]}", "text": {value}}}'.encode()


def _beside(draw: random.Random, line: bytes, value: str) -> bytes:
    return line[:-1] + f', "x": {value}}}'.encode()


def _put_in(draw: random.Random, line: bytes, what: bytes) -> bytes:
    at = draw.randrange(len(line) + 1)
    return line[:at] + what + line[at:]


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


_LINE_DAMAGE: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "noise": lambda draw, line: draw.randbytes(draw.randint(1, 200)).replace(b"\n", b""),
    "printable noise": lambda draw, line: bytes(draw.choices(b'{}[]",:\\ 0123truefalsn', k=60)),
    "NUL escaped": lambda draw, line: _field(draw, line, r'"a\u0000b"'),
    "NUL raw": lambda draw, line: _put_in(draw, line, b"\0"),
    "control character": lambda draw, line: _put_in(draw, line, b"\x01"),
    "not UTF-8": lambda draw, line: _put_in(
        draw,
        line,
        draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf"]),
    ),
    "BOM": lambda draw, line: draw.choice([b"\xef\xbb\xbf" + line, line + b"\xef\xbb\xbf"]),
    "deep beside": lambda draw, line: _beside(draw, line, _nested(draw.choice([50, 100_000]))),
    "deep text": lambda draw, line: _field(draw, line, _nested(draw.choice([50, 100_000]))),
    "deep objects": lambda draw, line: _beside(draw, line, '{"a":' * 100_000 + "1" + "}" * 100_000),
    "huge number": lambda draw, line: _beside(
        draw,
        line,
        draw.choice(
            ["1" * 400, "9" * 5000, "1e999999", "-1e-99999", "-" + "7" * 30, "0." + "3" * 999]
        ),
    ),
    "odd number": lambda draw, line: _beside(
        draw, line, draw.choice(["NaN", "-Infinity", "01", "1.", ".5", "+1", "0x1F", "1_000", "-"])
    ),
    "wrong type": lambda draw, line: _field(
        draw, line, draw.choice(["5", "1.5", "true", "null", '["a"]', '{"a": "b"}', "[]", "NaN"])
    ),
    "same key twice": lambda draw, line: _twice(draw, line),
    "no text": lambda draw, line: b'{"id": "none"}',
    "empty text": lambda draw, line: _field(
        draw, line, draw.choice(['""', '" "', r'"\n\t"', r'"\u2003\u00a0"', r'"\u0085"'])
    ),
    "surrogates": lambda draw, line: _field(
        draw,
        line,
        draw.choice([r'"a\ud800"', r'"\udc00a"', r'"\ude00\ud83d"', r'"\ud83d\ude00 ok"']),
    ),
    "escapes": lambda draw, line: _field(
        draw, line, draw.choice([r'"a\/b\b\f\u00e9"', r'"a\x41"', r'"\u12"', r'"\U0041"', '"a\\"'])
    ),
    "not an object": lambda draw, line: draw.choice([b"5", b'"text"', b"[1]", b"null", b"[{}]"]),
    "blank": lambda draw, line: draw.choice([b"", b" ", b"\t\r", b"\x0b\x0c", b"\xc2\xa0"]),
    "CRLF": lambda draw, line: line + b"\r",
    "CR": lambda draw, line: line + b"\r" + line,
    "cut": lambda draw, line: line[: draw.randrange(len(line))],
    "two on a line": lambda draw, line: line + draw.choice([b"", b" ", b","]) + line,
    "trailing comma": lambda draw, line: line[:-1] + b",}",
    "other quotes": lambda draw, line: line.replace(b'"', b"'"),
    "key escaped": lambda draw, line: line.replace(b'"text"', rb'"\u0074ext"'),
    "spaces": lambda draw, line: b"  " + line.replace(b": ", b" \t:\r ") + b" ",
}


def _twice(draw: random.Random, line: bytes) -> bytes:
    other = draw.choice(["5", "null", '"another text"', '"\\u0000"'])
    if draw.random() < 0.5:
        return line[:-1] + f', "text": {other}}}'.encode()
    return f'{{"text": {other}, '.encode() + line[1:]


def _damaged_rows(
    draw: random.Random, format: str, name: str, records: list[dict[str, Any]]
) -> Damaged:
    """Rows of a whole Parquet or Arrow file whose text is none."""
    bad = [None, b"", b" \n", b"a\0b", b"\xff\xfe", b"\xed\xa0\x80", "é".encode()[:1]]
    values: list[bytes | None] = [record["text"].encode() for record in records]
    for at in range(len(values)):
        if draw.random() < 0.4:
            values[at] = draw.choice(bad)
    kind = draw.choice(["binary", "large_binary", "string", "large_string", "dictionary"])
    column = pa.array(values, pa.large_binary() if kind.startswith("large") else pa.binary())
    if kind.endswith("string"):  # not checked by a view: as broken as writers leave it
        column = column.view(pa.large_string() if kind.startswith("large") else pa.string())
    elif kind == "dictionary":
        column = column.dictionary_encode()
    table = pa.table({"id": [record["id"] for record in records], "text": column})
    data = columnar(table, format, draw.choice([1, 4, 100]))
    corpus = Damaged(format, f"rows: {kind}", {name: data})
    for at, value in enumerate(values):
        text = None if value is None else value.decode(errors="surrogateescape")
        if is_text(text):
            corpus.texts[f"{name}:{at}"] = str(text)
    corpus.rejected = len(values) - len(corpus.texts)
    return corpus
