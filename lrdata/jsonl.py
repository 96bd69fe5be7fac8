"""JSON lines and plain text, as they are or compressed: bytes -> lines -> records."""

import codecs
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa
import zstandard

from lrdata.corpus import Piece, SourceFile, open_source
from lrdata.errors import LongRecipeError
from lrdata.long_text import LONG_BYTES, LongText
from lrdata.records import (
    MAX_RECORD_BYTES,
    MISSING,
    READ_BYTES,
    Fields,
    Judge,
    Record,
    Rejected,
    decode_text,
    too_long,
    wrong_field,
)

_COMPRESSED_READ_BYTES = 8 * 1024
"""So little, because a byte of zstd can stand for 32 kB of text and there is no other brake."""

_MAX_WINDOW_BYTES = 2**31  # `zstd --long=31`, in which some published corpora are packed
_BOM = codecs.BOM_UTF8


class _Blocks:
    """The decompressed bytes of a file from `start` on, in blocks of about READ_BYTES.

    Once they are read to the end, `damage` says why they end too early (None: they do not) and
    `position` at which byte. All members of a .gz and all frames of a .zst are read.
    """

    def __init__(self, file: SourceFile, start: int = 0) -> None:
        self._file, self.position = file, start
        self.damage: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        with open_source(self._file) as stream:
            stream.seek(0 if self._file.compression else self.position)
            pending: list[bytes] = []
            size = 0
            for block in self._inflated(stream) if self._file.compression else _raw(stream):
                self.position += len(block)
                pending.append(block)
                size += len(block)
                if size >= READ_BYTES:
                    yield b"".join(pending)
                    pending, size = [], 0
            if pending:
                yield b"".join(pending)

    def _inflated(self, stream: pa.NativeFile) -> Iterator[bytes]:
        new = _DECOMPRESSORS[self._file.compression or ""]
        member = new()
        while raw := stream.read(_COMPRESSED_READ_BYTES):
            while raw:
                if member.eof:
                    raw = raw.lstrip(b"\0")  # padding is allowed after a member
                    member = new() if raw else member
                    continue
                try:
                    yield member.decompress(raw)
                except (zlib.error, zstandard.ZstdError):
                    self.damage = "damaged: the rest of the compressed file cannot be read"
                    return
                raw = member.unused_data if member.eof else b""
        if not member.eof:
            self.damage = "truncated: the compressed file ends too early"
            yield member.flush() or b""


def _raw(stream: pa.NativeFile) -> Iterator[bytes]:
    while block := stream.read(READ_BYTES):
        yield block


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    # Not stream_reader: it returns what it has of a truncated file without a word.
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj(),
}


Line = bytes | bytearray | memoryview


def _lines(
    blocks: _Blocks, stop: float = math.inf, skip: bool = False
) -> Iterator[tuple[int, Line | None, bool]]:
    """(offset of its first byte, line without its newline, whether it has one); None for a line
    that is too long.

    Lines that begin at `stop` or later are left out; so is the first one if `skip`. A line is a
    view of its block where it lies in one.
    """
    offset, begun, held = blocks.position, bytearray(), 0
    for block in blocks:
        if skip:
            _, newline, block = block.partition(b"\n")
            offset = blocks.position - len(block)
            skip = not newline
        if offset >= stop:
            return
        view, start = memoryview(block), 0
        while (end := block.find(b"\n", start)) >= 0:
            line: Line = view[start:end]
            held += end - start
            if begun:
                begun += line
                line, begun = begun, bytearray()
            yield offset, line if held <= MAX_RECORD_BYTES else None, True
            offset += held + 1
            start, held = end + 1, 0
            if offset >= stop:
                return
        held += len(block) - start
        if held > MAX_RECORD_BYTES:
            begun = bytearray()
        else:
            begun += view[start:]
    if held:
        yield offset, begun if held <= MAX_RECORD_BYTES else None, False


# ---- JSON lines ----


def read_jsonl(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    file = piece.file
    blocks = _Blocks(file, max(piece.start - 1, 0))
    # The first line begins before the piece, or is what precedes the newline at its edge.
    stop = piece.stop if file.compression is None else math.inf
    lines = _lines(blocks, stop, skip=piece.start > 0)
    absent, present = list(fields.needed), _Names()
    judge = Judge(file, fields)
    values_of = _looker(fields)
    labelled = fields.id is not None or fields.source is not None
    for at, line, ended in lines:
        if line is not None:
            if at == 0:
                line = line[len(_BOM) :] if line[: len(_BOM)] == _BOM else line
                _refuse_array(file, line)
            if not line or (line[0] <= 32 and bytes(line).isspace()):
                continue
        parsed, sound = (too_long(file, at), True) if line is None else _parse(file, at, line)
        line = line or b""
        if (
            labelled
            and sound
            and isinstance(parsed, dict)
            and float in map(type, values_of(parsed))
        ):
            parsed = _parse_slowly(file, at, line)  # orjson makes a float of more than 64 bits
        item: Record | Rejected
        if isinstance(parsed, Rejected):
            item = parsed
        else:
            if absent:
                absent = [name for name in absent if _look_up(parsed, name) is MISSING]
                present.add(parsed)
            values = values_of(parsed)
            plain = sound and _is_plain(line, values[0])
            item = judge(at, len(line), *values, sound=sound, plain=plain)
        if blocks.damage and not ended and isinstance(item, Rejected):
            break  # the line that the damage cuts: its rejection is the file's
        yield item
    if blocks.damage:
        yield Rejected(file.name, blocks.position, blocks.damage)
    # Whether it is in the rest of the file is asked once a file: to know, all of it is read.
    for name in absent if piece.start == 0 else ():
        if present.objects and not _occurs(piece, name):
            raise wrong_field(file, name, present.names)


def _is_plain(line: Line, text: Any) -> bool:
    """Whether a line's strings surely hold no NUL, which JSON writes with a backslash.

    Bytes are looked through faster than wide characters are, but not than an ASCII string.
    """
    return type(text) is str and not text.isascii() and b"\\" not in bytes(line)


def _looker(fields: Fields) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """A function from a record to the values that a Judge takes."""
    content, rest = fields.content, (fields.prompt, fields.id, fields.source)
    if not any(rest) and "." not in content:
        return lambda record: (record.get(content, MISSING),)
    names = (content, *rest)
    return lambda record: tuple(None if name is None else _look_up(record, name) for name in names)


class _Names:
    """The names of the fields of some objects."""

    def __init__(self) -> None:
        self.objects, self.names = 0, list[str]()

    def add(self, record: dict[str, Any]) -> None:
        self.objects += 1
        if self.objects <= 100:
            self.names += [name for name in record if name not in self.names]


def _refuse_array(file: SourceFile, first_line: Line) -> None:
    if re.match(rb"\s*\[\s*(\{|$)", first_line):
        raise LongRecipeError(
            f"{file.place} is one JSON array, not JSON lines; convert it with "
            "jq -c '.[]' a.json > b.jsonl"
        )


def _parse(file: SourceFile, at: int, line: Line) -> tuple[dict[str, Any] | Rejected, bool]:
    """The object on a line, or why there is none; and whether its strings are known to be sound."""
    if len(line) > LONG_BYTES:
        return _parse_long(file, at, memoryview(line)), False
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_slowly(file, at, line), False
    if type(record) is not dict:
        return Rejected(file.name, at, "not a JSON object"), True
    return record, True


def _parse_slowly(
    file: SourceFile,
    at: int,
    line: Line,
    restored: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any] | Rejected:
    """By Python's own parser, which takes NaN and says where a line is wrong.

    restored: what each object on the line, inner ones too, is to be.
    """
    try:
        record = json.loads(str(line, "utf-8"), object_hook=restored)
    except UnicodeDecodeError as problem:
        return Rejected(file.name, at, f"not UTF-8, at byte {problem.start} of the line")
    except json.JSONDecodeError as problem:
        return Rejected(file.name, at, f"not JSON, at character {problem.pos} of the line")
    except ValueError:
        return Rejected(file.name, at, "not JSON that can be read: a number is too long")
    except RecursionError:
        return Rejected(file.name, at, "not JSON that can be read: nested too deeply")
    if not isinstance(record, dict):
        return Rejected(file.name, at, "not a JSON object")
    return record


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _parse_long(file: SourceFile, at: int, line: memoryview) -> dict[str, Any] | Rejected:
    """The object on a long line. Its long strings stay where they are, as LongText."""
    spans = [
        match.span() for match in _STRING.finditer(line) if match.end() - match.start() > LONG_BYTES
    ]
    edges = [0, *(edge for span in spans for edge in span), len(line)]
    between = [bytes(line[edges[at] : edges[at + 1]]) for at in range(0, len(edges), 2)]
    mark = "long"
    while any(mark.encode() in part for part in between):
        mark += "-"
    numbered = (json.dumps(f"{mark}{index}").encode() for index in range(len(spans)))
    short = b"".join(part for pair in zip(between, [*numbered, b""], strict=True) for part in pair)
    texts = {
        f"{mark}{index}": LongText(line[start + 1 : stop - 1], escaped=True)
        for index, (start, stop) in enumerate(spans)
    }

    def restored(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: texts.get(value, value) if type(value) is str else value
            for name, value in values.items()
        }

    record = _parse_slowly(file, at, short, restored)
    if isinstance(record, Rejected) and record.reason.startswith("not JSON, at"):
        return Rejected(file.name, at, "not JSON")
    return record


def _look_up(record: dict[str, Any], name: str) -> Any:
    if name in record or "." not in name:
        return record.get(name, MISSING)
    value: Any = record
    for step in name.split("."):
        if not isinstance(value, dict) or step not in value:
            return MISSING
        value = value[step]
    return value


def _occurs(piece: Piece, name: str) -> bool:
    """Whether the field is in a record of the file that lies behind the piece, its first."""
    file = piece.file
    if file.compression or piece.stop == file.size:
        return False
    lines = _lines(_Blocks(file, piece.stop - 1), skip=True)
    records = (_parse(file, at, line)[0] for at, line, _ in lines if line)
    return any(
        not isinstance(record, Rejected) and _look_up(record, name) is not MISSING
        for record in records
    )


# ---- text files ----


def read_text(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    """A file as one document; line ends become \\n. Of a damaged one, what can be read."""
    file, blocks = piece.file, _Blocks(piece.file)
    data, end = bytearray(), b""
    for block in blocks:
        if blocks.position > MAX_RECORD_BYTES:
            yield too_long(file, 0)
            return
        block = end + block
        end = b"\r" if block.endswith(b"\r") else b""  # perhaps half of a line end
        data += block.removesuffix(end).replace(b"\r\n", b"\n")
    data += end
    if data.startswith(_BOM):
        del data[: len(_BOM)]
    text: Any
    if len(data) > LONG_BYTES and not blocks.damage:
        text = LongText(memoryview(data))
    else:
        text = decode_text(bytes(data), whole=not blocks.damage)
    item = Judge(file, fields)(0, len(data), text, sound=True)
    if not blocks.damage or isinstance(item, Record):
        yield item
    if blocks.damage:
        yield Rejected(file.name, blocks.position, blocks.damage)
