"""Parquet and Arrow: row groups and record batches -> records."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lrdata.corpus import DAMAGE, Piece, SourceFile, open_source, raise_unless_damage
from lrdata.errors import LongRecipeError
from lrdata.long_text import LONG_BYTES, LongText
from lrdata.records import (
    MAX_RECORD_BYTES,
    READ_BYTES,
    Fields,
    Judge,
    Record,
    Rejected,
    decode_text,
    too_long,
    wrong_field,
)

_ROWS = 1024
"""At most this many rows of Parquet are decoded at once: their size is only known afterwards."""


def read_parquet(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    """Rows of the piece's row groups. Where one is damaged, the rest of it is rejected."""
    file = piece.file
    try:
        parquet = pq.ParquetFile(
            open_source(file), buffer_size=READ_BYTES, page_checksum_verification=True
        )
        groups = [parquet.metadata.row_group(at) for at in range(parquet.num_row_groups)]
        schema = parquet.schema_arrow
    except DAMAGE as problem:
        raise_unless_damage(problem)
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
            except (*DAMAGE, StopIteration) as problem:
                raise_unless_damage(problem)
                yield Rejected(file.name, first + done, f"damaged row group {at}", rows - done)
                break
            yield from items
            done += len(items)
        first += rows


def _rows_at_once(rows: int, size: int) -> int:
    return min(_ROWS, max(1, rows * READ_BYTES // max(size, 1)))


def read_arrow(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    """Rows of an IPC file or stream. A record batch that cannot be opened ends the file: its
    length, and with it the number of every later row, is unknown."""
    file = piece.file
    try:
        schema = _open_arrow(file).schema
    except DAMAGE as problem:
        raise_unless_damage(problem)
        yield Rejected(file.name, -1, "damaged: the start of the Arrow file cannot be read")
        return
    columns = _columns(file, schema, fields)
    batches = _arrow_batches(file, schema, columns)
    first = 0
    while True:
        try:
            batch = next(batches, None)
        except DAMAGE as problem:
            raise_unless_damage(problem)
            yield Rejected(file.name, first, "damaged: the rest of the Arrow file cannot be read")
            return
        if batch is None:
            return
        step = _rows_at_once(batch.num_rows, batch.nbytes)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            try:
                items = _rows(file, fields, columns, part, first + start)
            except DAMAGE as problem:
                raise_unless_damage(problem)
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
            raise wrong_field(file, name, _names(file, schema))
        if kind is None:
            continue
        if _is_text(kind) or (pa.types.is_integer(kind) and name not in fields.needed):
            columns[name] = steps
        elif name in fields.needed:
            raise LongRecipeError(f"the field {name!r} of {file.place} is {kind}, not text")
    return columns


def _names(file: SourceFile, schema: pa.Schema) -> list[str]:
    try:
        return list(schema.names)
    except UnicodeDecodeError:
        raise LongRecipeError(
            f"{file.place} is damaged: the name of one of its columns is no text"
        ) from None


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
    roles = (fields.content, fields.prompt, fields.id, fields.source)
    judge = Judge(file, fields)
    items: list[Record | Rejected] = []
    for at, row in enumerate(
        zip(*(_values(batch, steps) for steps in columns.values()), strict=True), first
    ):
        size = sum(len(row[column] or b"") for column in needed)
        if size > MAX_RECORD_BYTES:
            items.append(too_long(file, at))
            continue
        values = {
            name: decode_text(value) if type(value) is bytes else value
            for name, value in zip(names, row, strict=True)
        }
        items.append(judge(at, size, *(values.get(name or "") for name in roles), sound=True))
    return items


def _values(batch: pa.RecordBatch, steps: tuple[str, ...]) -> list[Any]:
    """A column as integers, undecoded bytes, or long texts that are not copied. Raises
    ArrowInvalid where offsets are damaged: Arrow itself trusts them."""
    array = batch.column(steps[0])
    if len(steps) > 1:
        array = pc.struct_field(array, list(steps[1:]))
    if pa.types.is_dictionary(array.type):
        array.validate(full=True)
        array = array.dictionary_decode()
    if not pa.types.is_integer(array.type):
        array = array.cast(pa.large_binary() if _is_large(array.type) else pa.binary())
    array.validate(full=True)
    if array.nbytes > LONG_BYTES and not pa.types.is_integer(array.type):
        return list(_bytes_or_long(array))
    return array.to_pylist()


def _bytes_or_long(array: pa.Array) -> Iterator[bytes | LongText | None]:
    """The values of a binary column; of a long one its place in the column's memory."""
    _, offsets, data = array.buffers()
    kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    ends = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array) + 1].tolist()
    view = memoryview(data or b"")
    for null, (start, stop) in zip(array.is_null(), pairwise(ends), strict=True):
        if null.as_py():
            yield None
        elif stop - start > LONG_BYTES:
            yield LongText(view[start:stop])
        else:
            yield bytes(view[start:stop])


def _is_large(kind: pa.DataType) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
