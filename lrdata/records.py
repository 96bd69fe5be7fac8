"""Units -> batches of documents: every record is either a document or rejected with a reason.

    for documents, rejected in read_unit(unit, Fields(text="body", id="meta.id")): ...

Records are a line of JSON, a row of Parquet or Arrow, or a text file. A record is never repaired:
where its text is not a string of valid Unicode it is rejected, and the reason never quotes it.
Records read = documents + sum of `Rejected.count`, exactly (`records_read`).
"""

import codecs
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from lrdata.corpus import Piece, SourceFile, Unit, open_source
from lrdata.errors import LongRecipeError

MAX_RECORD_BYTES = 256 * 1024**2
"""A longer line, text or text file is rejected; no more than this much of it is ever held."""

BATCH_BYTES = 16 * 1024**2
READ_BYTES = 1024**2
_COMPRESSED_READ_BYTES = 8 * 1024
"""So little, because a byte of zstd can stand for 32 kB of text and there is no other brake."""

_MAX_WINDOW_BYTES = 2**31  # `zstd --long=31`, in which some published corpora are packed
_ROWS = 1024
"""At most this many rows of Parquet are decoded at once: their size is only known afterwards."""

_RECORD_OVERHEAD = 256  # bytes that a record costs beside its text, roughly
_BOM = codecs.BOM_UTF8
_MISSING = object()


@dataclass(frozen=True)
class Fields:
    """Where a record keeps what we need. A dotted name such as `meta.id` looks into objects,
    unless a field has that very name. With `prompt` and `response` the text is the response."""

    text: str = "text"
    id: str | None = None
    source: str | None = None
    prompt: str | None = None
    response: str | None = None

    @property
    def content(self) -> str:
        """The field that texts come from."""
        return self.response or self.text

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.content, self.prompt) if self.prompt else (self.content,)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.needed, *(name for name in (self.id, self.source) if name))


class Rejected(NamedTuple):
    """`count` records from `record` on that are not used. A file that cannot be opened has
    record -1; one that ends too early, the offset at which what can be read of it ends."""

    file: str
    record: int
    reason: str
    count: int = 1


class Record(NamedTuple):
    """A usable record. `size`: bytes that it took up in its file."""

    text: str
    id: str
    source: str
    file: str
    record: int
    prompt: str | None
    size: int


@dataclass
class Documents:
    """A batch, as parallel lists [n]; `prompts` is None unless `Fields.prompt` is given.

    ids: the record's own, else `<file>:<record>`. sources: the record's own, else the file's.
    records: first byte of the line in the decompressed JSONL file, row number in the Parquet or
    Arrow file, 0 in a text file; with `files` (relative names) it says where a text came from.
    """

    texts: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    prompts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, record: Record) -> None:
        self.texts.append(record.text)
        self.ids.append(record.id)
        self.sources.append(record.source)
        self.files.append(record.file)
        self.records.append(record.record)
        if record.prompt is not None:
            self.prompts = self.prompts or []
            self.prompts.append(record.prompt)


def records_read(documents: Documents, rejected: list[Rejected]) -> int:
    """How many records a batch stands for."""
    return len(documents) + sum(entry.count for entry in rejected)


def read_unit(
    unit: Unit, fields: Fields, batch_bytes: int = BATCH_BYTES
) -> Iterator[tuple[Documents, list[Rejected]]]:
    """The records of a unit in order, in batches of about `batch_bytes` of text.

    Holds about `batch_bytes` and the largest record. Raises LongRecipeError where a needed field
    is in no record of a file, and where a file changed since the unit was planned.
    """
    documents, rejected, held = Documents(), list[Rejected](), 0
    for piece in unit.pieces:
        for item in _read_piece(piece, fields):
            held += _RECORD_OVERHEAD
            if isinstance(item, Record):
                documents.add(item)
                held += item.size
            else:
                rejected.append(item)
            if held >= batch_bytes:
                yield documents, rejected
                documents, rejected, held = Documents(), [], 0
    if held:
        yield documents, rejected


def _read_piece(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    file = piece.file
    if os.stat(file.path).st_size != file.size:
        raise LongRecipeError(f"{file.path} changed while it was being read; run the command again")
    return _READERS[file.format](piece, fields)


def _judge(
    file: SourceFile,
    fields: Fields,
    at: int,
    size: int,
    values: dict[str, Any],
) -> Record | Rejected:
    """A record as a document, or why not. `values` holds what was found under `Fields.all`."""
    for name in fields.needed:
        problem = _problem(name, values.get(name, _MISSING))
        if problem:
            return Rejected(file.name, at, problem)
    return Record(
        text=values[fields.content],
        id=_label(values.get(fields.id or "")) or f"{file.name}:{at}",
        source=_label(values.get(fields.source or "")) or file.source,
        file=file.name,
        record=at,
        prompt=values[fields.prompt] if fields.prompt else None,
        size=size,
    )


_NAMES_OF_TYPES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _problem(name: str, value: Any) -> str | None:
    """Why a value is no text to train on; None where it is."""
    if value is _MISSING:
        return f"{name} is missing"
    if value is None:
        return f"{name} is null"
    if type(value) is bytes:
        return f"{name} is not UTF-8"
    if type(value) is not str:
        return f"{name} is {_NAMES_OF_TYPES[type(value)]}, not text"
    if not value or value.isspace():
        return f"{name} is empty"
    if "\0" in value:
        return f"{name} holds a NUL character"
    return None if _is_unicode(value) else f"{name} holds half a surrogate pair"


def _is_unicode(text: str) -> bool:
    if text.isascii():  # known without looking
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(value: Any) -> str | None:
    """An id or source as it is published: text or an integer; None for anything else."""
    if type(value) is int:
        return str(value)
    return value if type(value) is str and value and _is_unicode(value) else None


def _too_long(file: SourceFile, at: int) -> Rejected:
    return Rejected(file.name, at, f"longer than {MAX_RECORD_BYTES // 1024**2} MB")


def _wrong_field(file: SourceFile, name: str, present: list[str]) -> LongRecipeError:
    shown = ", ".join(key[:40] for key in present[:20]) or "none"
    return LongRecipeError(
        f"{file.path} has no field {name!r} in any record; its fields are: {shown}"
    )


# ---- bytes and lines ----


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


def _lines(blocks: _Blocks) -> Iterator[tuple[int, bytes | None]]:
    """(offset of its first byte, line without its newline); None for a line that is too long."""
    offset, parts, held = blocks.position, list[bytes](), 0
    for block in blocks:
        *ended, rest = block.split(b"\n")
        for end in ended:
            held += len(end)
            line = b"".join((*parts, end)) if parts else end
            yield offset, line if held <= MAX_RECORD_BYTES else None
            offset += held + 1
            parts, held = [], 0
        held += len(rest)
        if held > MAX_RECORD_BYTES:
            parts = []
        elif rest:
            parts.append(rest)
    if held:
        yield offset, b"".join(parts) if held <= MAX_RECORD_BYTES else None


# ---- JSON lines ----


def _read_jsonl(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    file = piece.file
    blocks = _Blocks(file, max(piece.start - 1, 0))
    lines = _lines(blocks)
    if piece.start:
        next(lines, None)  # begins before the piece, or is what precedes the newline at its edge
    absent, present = list(fields.needed), _Names()
    for at, line in lines:
        if file.compression is None and at >= piece.stop:
            break
        if at == 0 and line is not None:
            line = line.removeprefix(_BOM)
            _refuse_array(file, line)
        if line is not None and (not line or line.isspace()):
            continue
        item = _too_long(file, at) if line is None else _parse(file, at, line)
        if not isinstance(item, Rejected):
            if absent:
                absent = [name for name in absent if _look_up(item, name) is _MISSING]
                present.add(item)
            values = {name: _look_up(item, name) for name in fields.all}
            item = _judge(file, fields, at, len(line or b""), values)
        if blocks.damage and isinstance(item, Rejected):
            break  # the line in which a damaged file ends: its rejection is the file's
        yield item
    if blocks.damage:
        yield Rejected(file.name, blocks.position, blocks.damage)
    for name in absent:
        if present.objects and not _occurs(piece, name):
            raise _wrong_field(file, name, present.names)


class _Names:
    """The names of the fields of some objects."""

    def __init__(self) -> None:
        self.objects, self.names = 0, list[str]()

    def add(self, record: dict[str, Any]) -> None:
        self.objects += 1
        if self.objects <= 100:
            self.names += [name for name in record if name not in self.names]


def _refuse_array(file: SourceFile, first_line: bytes) -> None:
    if re.match(rb"\s*\[\s*(\{|$)", first_line):
        raise LongRecipeError(
            f"{file.path} is one JSON array, not JSON lines; convert it: jq -c '.[]' a.json > b.jsonl"
        )


def _parse(file: SourceFile, at: int, line: bytes) -> dict[str, Any] | Rejected:
    """The object on a line, or why there is none."""
    try:
        record = json.loads(line.decode())
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


def _look_up(record: dict[str, Any], name: str) -> Any:
    if name in record or "." not in name:
        return record.get(name, _MISSING)
    value: Any = record
    for step in name.split("."):
        if not isinstance(value, dict) or step not in value:
            return _MISSING
        value = value[step]
    return value


def _occurs(piece: Piece, name: str) -> bool:
    """Whether the field is in a record of the file that lies outside the piece."""
    file = piece.file
    if file.compression or (piece.start == 0 and piece.stop == file.size):
        return False
    records = (_parse(file, at, line) for at, line in _lines(_Blocks(file)) if line)
    return any(
        not isinstance(record, Rejected) and _look_up(record, name) is not _MISSING
        for record in records
    )


# ---- text files ----


def _read_text(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    """A file as one document; line ends become \\n. Of a damaged one, what can be read."""
    file, blocks = piece.file, _Blocks(piece.file)
    parts: list[bytes] = []
    for block in blocks:
        if blocks.position > MAX_RECORD_BYTES:
            yield _too_long(file, 0)
            return
        parts.append(block)
    data = b"".join(parts).removeprefix(_BOM).replace(b"\r\n", b"\n")
    text = _decode(data, whole=not blocks.damage)
    item = _judge(file, fields, 0, len(data), {fields.content: text})
    if not blocks.damage or isinstance(item, Record):
        yield item
    if blocks.damage:
        yield Rejected(file.name, blocks.position, blocks.damage)


def _decode(data: bytes | None, whole: bool = True) -> str | bytes | None:
    """UTF-8 as text; what is not stays bytes. Not `whole`: half a character at the end is cut."""
    if data is None:
        return None
    try:
        return data.decode() if whole else codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return data


# ---- Parquet and Arrow ----

_DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)


def _raise_unless_damage(problem: Exception) -> None:
    """An error of the disk is not the file's fault: it must not become a rejection."""
    if isinstance(problem, OSError) and problem.errno:
        raise problem


def _read_parquet(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    """Rows of the piece's row groups. Where one is damaged, the rest of it is rejected."""
    file = piece.file
    try:
        parquet = pq.ParquetFile(
            open_source(file), buffer_size=READ_BYTES, page_checksum_verification=True
        )
        groups = [parquet.metadata.row_group(at) for at in range(parquet.num_row_groups)]
        schema = parquet.schema_arrow
    except _DAMAGE as problem:
        _raise_unless_damage(problem)
        yield Rejected(file.name, -1, "damaged: the footer of the Parquet file cannot be read")
        return
    columns = _columns(file, schema, fields)
    first = sum(group.num_rows for group in groups[: piece.start])
    for at in range(piece.start, piece.stop):
        rows, size = groups[at].num_rows, groups[at].total_byte_size
        batches = parquet.iter_batches(
            batch_size=_rows_at_once(rows, size),
            row_groups=[at],
            columns=[".".join(steps) for steps in columns.values()],
            use_threads=False,
        )
        done = 0
        while done < rows:
            try:
                items = _rows(file, fields, columns, next(batches), first + done)
            except (*_DAMAGE, StopIteration) as problem:
                _raise_unless_damage(problem)
                yield Rejected(file.name, first + done, f"damaged row group {at}", rows - done)
                break
            yield from items
            done += len(items)
        first += rows


def _rows_at_once(rows: int, size: int) -> int:
    return min(_ROWS, max(1, rows * READ_BYTES // max(size, 1)))


def _read_arrow(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    """Rows of an IPC file or stream. A record batch that cannot be opened ends the file: its
    length, and with it the number of every later row, is unknown."""
    file = piece.file
    try:
        schema = _open_arrow(file).schema
    except _DAMAGE as problem:
        _raise_unless_damage(problem)
        yield Rejected(file.name, -1, "damaged: the start of the Arrow file cannot be read")
        return
    columns = _columns(file, schema, fields)
    batches = _arrow_batches(file, schema, columns)
    first = 0
    while True:
        try:
            batch = next(batches, None)
        except _DAMAGE as problem:
            _raise_unless_damage(problem)
            yield Rejected(file.name, first, "damaged: the rest of the Arrow file cannot be read")
            return
        if batch is None:
            return
        step = _rows_at_once(batch.num_rows, batch.nbytes)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            try:
                items = _rows(file, fields, columns, part, first + start)
            except _DAMAGE as problem:
                _raise_unless_damage(problem)
                items = [Rejected(file.name, first + start, "damaged rows", part.num_rows)]
            yield from items
        first += batch.num_rows


def _open_arrow(file: SourceFile, fields: list[int] | None = None) -> Any:
    """A reader of an IPC file or stream that decodes only the top-level `fields`."""
    if not file.size:
        raise pa.ArrowInvalid("empty")  # cannot be mapped
    source = open_source(file, mapped=True)
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    if source.read_at(6, 0) == b"ARROW1":
        return pa.ipc.open_file(source, options=options)
    return pa.ipc.open_stream(source, options=options)


def _arrow_batches(
    file: SourceFile, schema: pa.Schema, columns: dict[str, tuple[str, ...]]
) -> Iterator[pa.RecordBatch]:
    wanted = sorted({schema.get_field_index(steps[0]) for steps in columns.values()})
    reader = _open_arrow(file, wanted)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
    else:
        batches = iter(reader)
    for batch in batches:
        batch.validate()  # buffers that are too short for the rows; what is in them: _values
        yield batch


def _columns(file: SourceFile, schema: pa.Schema, fields: Fields) -> dict[str, tuple[str, ...]]:
    """For each field that the file has, the way to its column. Raises where a needed one is not
    there or is not text; ids and sources of other types than text and integer are left out."""
    columns = {}
    for name in fields.all:
        steps = (name,) if schema.get_field_index(name) >= 0 else tuple(name.split("."))
        kind = _type_at(schema, steps)
        if kind is None and name in fields.needed:
            raise _wrong_field(file, name, schema.names)
        if kind is None:
            continue
        if _is_text(kind) or (pa.types.is_integer(kind) and name not in fields.needed):
            columns[name] = steps
        elif name in fields.needed:
            raise LongRecipeError(f"the field {name!r} of {file.path} is {kind}, not text")
    return columns


def _type_at(schema: pa.Schema, steps: tuple[str, ...]) -> pa.DataType | None:
    kind: Any = pa.struct(list(schema))
    for step in steps:
        at = kind.get_field_index(step) if pa.types.is_struct(kind) else -1
        if at < 0:
            return None
        kind = kind.field(at).type
    return kind


def _is_text(kind: pa.DataType) -> bool:
    """Text, bytes that should be text (Parquet from some writers), or nothing but nulls."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_null,
    )
    return any(test(kind) for test in tests)


def _rows(
    file: SourceFile,
    fields: Fields,
    columns: dict[str, tuple[str, ...]],
    batch: pa.RecordBatch,
    first: int,
) -> list[Record | Rejected]:
    """The rows of a batch, the first of which is row `first` of the file."""
    names = list(columns)
    needed = [names.index(name) for name in fields.needed]
    items: list[Record | Rejected] = []
    for at, row in enumerate(
        zip(*(_values(batch, steps) for steps in columns.values()), strict=True), first
    ):
        size = sum(len(row[column] or b"") for column in needed)
        if size > MAX_RECORD_BYTES:
            items.append(_too_long(file, at))
            continue
        values = {
            name: _decode(value) if type(value) is bytes else value
            for name, value in zip(names, row, strict=True)
        }
        items.append(_judge(file, fields, at, size, values))
    return items


def _values(batch: pa.RecordBatch, steps: tuple[str, ...]) -> list[Any]:
    """A column as integers or undecoded bytes. Raises ArrowInvalid where offsets are damaged:
    Arrow itself trusts them."""
    array = batch.column(steps[0])
    if len(steps) > 1:
        array = pc.struct_field(array, list(steps[1:]))
    if pa.types.is_dictionary(array.type):
        array.validate(full=True)
        array = array.dictionary_decode()
    if not pa.types.is_integer(array.type):
        array = array.cast(pa.large_binary() if _is_large(array.type) else pa.binary())
    array.validate(full=True)
    return array.to_pylist()


def _is_large(kind: pa.DataType) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)


_READERS: dict[str, Callable[[Piece, Fields], Iterator[Record | Rejected]]] = {
    "jsonl": _read_jsonl,
    "text": _read_text,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
