"""The rows of a dataset: schema, atomic Parquet writer, random-access reader.

This file and `lrdata.manifest` are the data contract. What a row holds:

    input_ids         the kept tokens (labels are not stored: they are input_ids)
    position_ids      their positions, < target_len; strictly increasing along an extend row,
                      0..n-1 along a holdout row, restarting at 0 in each document of a replay row
    seq_lengths       lengths of the row's attention documents, summing to its length
    impact_mask       impactful tokens; loss_mask: tokens that count in the loss
    segment_starts    where in the window each contiguous piece of the row came from,
    segment_lengths     in order; positions jump only between pieces
    doc_ids           the documents of the window, in order: id,
    doc_offsets         first token used (of the document's tokens, its end-of-text token included),
    doc_lengths         tokens used
    window_tokens     length of the window; target_len: the window that the positions simulate

**Alignment.** `loss_mask[i]`, `impact_mask[i]` and `lsd[i]` belong to token i as the *target*,
predicted from the tokens before it. The first token of an attention document is never a target.

**Rebuilding a row.** With tokens(d) = encode(text of d) + [end of text], the window of an extend
or holdout row is [start of text, if the tokenizer adds one] + tokens(d)[offset : offset + length]
for each of its documents, and input_ids is that window at the row's segments. In a replay row,
where every document is read on its own, tokens(d) begins with the start-of-text token itself.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.atomic import replacing
from lrdata.errors import LongRecipeError
from lrdata.manifest import FileEntry, Manifest, read_manifest, safe_path
from lrdata.stopwatch import Stopwatch

KINDS = ("extend", "replay", "holdout")

ROW_GROUP_BYTES = 16 * 1024**2
"""Rows are buffered to about this many decoded bytes before a row group is written."""

_CHUNKING = {"min_chunk_size": 1024**2, "max_chunk_size": 4 * 1024**2, "norm_level": 0}
"""Pages end where the content says so, at 1 to 4 MB of values: a third faster to write than at the
library's 0.25 to 1 MB, for which every value is hashed."""


def _list_of(name: str, item: pa.DataType) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("element", item, nullable=False)), nullable=False)


def _scalar(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        _list_of("input_ids", pa.int32()),
        _list_of("position_ids", pa.int32()),
        _list_of("seq_lengths", pa.int32()),
        _list_of("impact_mask", pa.bool_()),
        _list_of("loss_mask", pa.bool_()),
        _list_of("segment_starts", pa.int32()),
        _list_of("segment_lengths", pa.int32()),
        _list_of("doc_ids", pa.string()),
        _list_of("doc_offsets", pa.int64()),
        _list_of("doc_lengths", pa.int32()),
        _scalar("sample_id", pa.string()),
        _scalar("source", pa.string()),
        _scalar("kind", pa.string()),
        _scalar("window_tokens", pa.int32()),
        _scalar("target_len", pa.int32()),
    ]
)
LSD_FIELD = _list_of("lsd", pa.float16())

_DELTA_COLUMNS = ("position_ids", "segment_starts", "segment_lengths", "doc_offsets", "doc_lengths")
_DICTIONARY_COLUMNS = ["source", "kind", "doc_ids.list.element"]


@dataclass(frozen=True)
class Row:
    """One row. n tokens, d attention documents, s segments, w documents of the window."""

    input_ids: np.ndarray  # int32 [n]
    position_ids: np.ndarray  # int32 [n]
    seq_lengths: np.ndarray  # int32 [d]
    impact_mask: np.ndarray  # bool [n]
    loss_mask: np.ndarray  # bool [n]
    segment_starts: np.ndarray  # int32 [s]
    segment_lengths: np.ndarray  # int32 [s]
    doc_ids: list[str]  # [w]
    doc_offsets: np.ndarray  # int64 [w]
    doc_lengths: np.ndarray  # int32 [w]
    sample_id: str
    source: str
    kind: str
    window_tokens: int
    target_len: int
    lsd: np.ndarray | None = None  # float16 [n]


def rows_to_table(rows: Sequence[Row], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Rows as one Arrow table in `schema`, without a Python object per token."""
    return pa.Table.from_arrays(
        [_column([getattr(row, field.name) for row in rows], field.type) for field in schema],
        schema=schema,
    )


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return _array(values, kind)
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    if pa.types.is_string(kind.value_type):
        flat = _array([item for value in values for item in value], kind.value_type)
    else:
        flat = _array(np.concatenate(values) if values else [], kind.value_type)
    return pa.ListArray.from_arrays(_array(offsets, pa.int32()), flat, type=kind)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """An Arrow array over the memory of a NumPy array, or of a list's values.

    pa.array would do, but it copies, and it imports pandas where that is installed: half a second.
    """
    if pa.types.is_string(kind):
        coded = [text.encode() for text in values]
        ends = np.cumsum([0, *map(len, coded)], dtype=np.int32)
        buffers = [ends, b"".join(coded)]
    elif pa.types.is_boolean(kind):
        buffers = [np.packbits(np.asarray(values, bool), bitorder="little")]
    else:
        buffers = [np.ascontiguousarray(values, _numpy_type(kind))]
    return pa.Array.from_buffers(kind, len(values), [None, *map(pa.py_buffer, buffers)])


def _numpy_type(kind: pa.DataType) -> np.dtype:
    return np.dtype(kind.to_pandas_dtype())


def table_to_rows(table: pa.Table) -> Iterator[Row]:
    """The rows of a table, one at a time; token columns are zero-copy views where Arrow allows."""
    names = {field.name for field in fields(Row)} & set(table.column_names)
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in names}
        for index in range(batch.num_rows):
            yield Row(**{name: _value(column, index) for name, column in columns.items()})


def _value(column: pa.Array, index: int) -> Any:
    if not pa.types.is_list(column.type):
        return column[index].as_py()
    if pa.types.is_string(column.type.value_type):
        return column[index].as_py()
    return column[index].values.to_numpy(zero_copy_only=False)


class ContentHash:
    """sha256 over the decoded columns: the same for every grouping, encoding and library version.

    For each column, in schema order: the digest of the row lengths (int64, little-endian; lists
    and strings) and of the values (little-endian; bool as one byte, strings as UTF-8 each preceded
    by its length). The content hash is the sha256 of those digests, joined.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._kinds = {field.name: field.type for field in schema}
        self._hashers = {name: (hashlib.sha256(), hashlib.sha256()) for name in schema.names}

    def update_rows(self, rows: Sequence[Row]) -> None:
        """The same as `update` with a table of these rows, without making one."""
        for name, (lengths, values) in self._hashers.items():
            column = [getattr(row, name) for row in rows]
            if isinstance(column[0], np.ndarray):
                lengths.update(np.array([len(array) for array in column], "<i8").tobytes())
                for array in column:
                    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                    values.update(np.ascontiguousarray(little).data)
            elif isinstance(column[0], int):
                plain = np.array(column, _numpy_type(self._kinds[name]).newbyteorder("<"))
                values.update(plain.tobytes())
            elif isinstance(column[0], list):
                lengths.update(np.array([len(texts) for texts in column], "<i8").tobytes())
                _hash_texts(values, (text for texts in column for text in texts))
            else:
                _hash_texts(values, column)

    def update(self, table: pa.Table) -> None:
        for name, (lengths, values) in self._hashers.items():
            for chunk in table.column(name).chunks:
                array = chunk
                if pa.types.is_list(array.type):
                    lengths.update(np.diff(array.offsets.to_numpy()).astype("<i8").tobytes())
                    array = array.flatten()
                if pa.types.is_string(array.type):
                    _hash_texts(values, array.to_pylist())
                elif pa.types.is_boolean(array.type):
                    values.update(array.to_numpy(zero_copy_only=False).tobytes())
                else:
                    plain = array.to_numpy(zero_copy_only=False)
                    values.update(plain.astype(plain.dtype.newbyteorder("<")).tobytes())

    def hexdigest(self) -> str:
        parts = (part.digest() for pair in self._hashers.values() for part in pair)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _hash_texts(hasher: Any, texts: Iterable[str]) -> None:
    coded = (text.encode() for text in texts)
    hasher.update(b"".join(len(data).to_bytes(8, "little") + data for data in coded))


class ShardWriter:
    """Writes rows of one kind to one Parquet file. Use through `writing_shard`.

    Row groups are hashed and written by a thread of its own while the next rows are made.
    """

    def __init__(self, path: Path, schema: pa.Schema = SCHEMA) -> None:
        self.schema, self.rows, self.tokens = schema, 0, 0
        self.content = ContentHash(schema)
        self.watch = Stopwatch()
        self._pending: list[Row] = []
        self._pending_bytes = 0
        self._beside = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self._parquet = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=_DICTIONARY_COLUMNS,
            column_encoding={
                f"{name}.list.element": "DELTA_BINARY_PACKED" for name in _DELTA_COLUMNS
            },
            write_page_index=True,
            write_page_checksum=True,
            use_content_defined_chunking=_CHUNKING,
            # The row group is bounded here by bytes; the library's own limit counts rows.
            store_schema=True,
        )

    def write(self, row: Row) -> None:
        self._pending.append(row)
        self._pending_bytes += 10 * len(row.input_ids)
        self.rows += 1
        self.tokens += len(row.input_ids)
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Hand the waiting rows to the thread, when it is done with those before."""
        rows, self._pending, self._pending_bytes = self._pending, [], 0
        if self._written is not None:
            self._written.result()
        self._written = self._beside.submit(self._write_group, rows) if rows else None

    def _write_group(self, rows: list[Row]) -> None:
        with self.watch("hash"):
            self.content.update_rows(rows)
        with self.watch("write"):
            table = rows_to_table(rows, self.schema)
            self._parquet.write_table(table, row_group_size=len(rows))

    def finish(self) -> None:
        """Write what is left, and the footer."""
        self._flush()
        if self._written is not None:
            self._written.result()
        self._parquet.close()

    def release(self) -> None:
        """Let go of the thread and the file, whatever state they are in."""
        self._beside.shutdown(cancel_futures=True)
        with suppress(Exception):  # of a file that is thrown away
            self._parquet.close()


@contextmanager
def writing_shard(path: Path, schema: pa.Schema = SCHEMA) -> Iterator[ShardWriter]:
    """Write one shard atomically: `path` exists only when it is complete and on the disk."""
    with replacing(path) as partial:
        writer = ShardWriter(partial, schema)
        try:
            yield writer
            writer.finish()
        finally:
            writer.release()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, streamed."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Shards:
    """A built dataset, opened for reading. Use through `open_shards`."""

    def __init__(self, folder: Path, manifest: Manifest, cached_groups: int = 4) -> None:
        self.folder, self.manifest = folder, manifest
        self._cached_groups = cached_groups
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._starts: dict[str, np.ndarray] = {}

    @property
    def kinds(self) -> list[str]:
        """The kinds that hold at least one row."""
        return [kind for kind in KINDS if self.rows(kind)]

    def files(self, kind: str) -> list[FileEntry]:
        return [entry for entry in self.manifest.files if entry.kind == kind]

    def rows(self, kind: str) -> int:
        return sum(entry.rows for entry in self.files(kind))

    def tokens(self, kind: str) -> int:
        return sum(entry.tokens for entry in self.files(kind))

    @property
    def target_len(self) -> int:
        return self.manifest.target_len

    @property
    def train_len(self) -> int:
        return self.manifest.train_len

    @property
    def fingerprint(self) -> str:
        """The tokenizer's id-to-bytes fingerprint: the trainer refuses another tokenizer."""
        return self.manifest.tokenizer.fingerprint

    @property
    def eot_id(self) -> int:
        return self.manifest.tokenizer.eot_id

    @property
    def bos_id(self) -> int | None:
        return self.manifest.tokenizer.bos_id

    def path(self, entry: FileEntry) -> Path:
        return safe_path(self.folder, entry.path)

    def read_row(self, kind: str, index: int) -> Row:
        """Row `index` of a kind, counted over its files in order.

        Row groups are decoded whole and the last few are kept, so neighbouring rows are cheap. A
        file's sha256 is checked when its first row is read. Raises LongRecipeError when it is not
        the manifest's, and when there is no such row.
        """
        first_rows = self._first_rows[kind]
        if not 0 <= index < first_rows[-1]:
            raise LongRecipeError(
                f"{self.folder} has {first_rows[-1]} {kind} rows; there is no row {index}"
            )
        file = int(np.searchsorted(first_rows, index, side="right")) - 1
        entry, within = self.files(kind)[file], index - int(first_rows[file])
        starts = self._group_starts(entry)
        group = int(np.searchsorted(starts, within, side="right")) - 1
        key = (entry.path, group)
        if key not in self._groups:
            self._groups[key] = _read_group(self.path(entry), group)
            while len(self._groups) > self._cached_groups:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return next(table_to_rows(self._groups[key].slice(within - int(starts[group]), 1)))

    @cached_property
    def _first_rows(self) -> dict[str, np.ndarray]:
        """Per kind: the index of each file's first row, and at the end the number of rows."""
        return {kind: np.cumsum([0] + [entry.rows for entry in self.files(kind)]) for kind in KINDS}

    def _group_starts(self, entry: FileEntry) -> np.ndarray:
        """The first row of each row group of a file whose bytes are as they should be."""
        if entry.path not in self._starts:
            path = self.path(entry)
            if file_sha256(path) != entry.sha256:
                raise LongRecipeError(
                    f"{path} is damaged: its sha256 is not the manifest's; pull it again"
                )
            with _open(path) as file:
                groups = range(file.metadata.num_row_groups)
                rows = [file.metadata.row_group(group).num_rows for group in groups]
            if sum(rows) != entry.rows:
                raise LongRecipeError(
                    f"{path} holds {sum(rows)} rows, the manifest says {entry.rows}; "
                    "build the dataset again"
                )
            self._starts[entry.path] = np.cumsum([0, *rows])[:-1]
        return self._starts[entry.path]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as problem:
        raise LongRecipeError(
            f"{path} cannot be read as Parquet ({problem}); pull it again"
        ) from None


def _read_group(path: Path, group: int) -> pa.Table:
    with _open(path) as file:
        missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
        if missing:
            raise LongRecipeError(f"{path} lacks the column {missing[0]}; build the dataset again")
        try:
            return file.read_row_group(group).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as problem:
            raise LongRecipeError(
                f"{path} row group {group} is damaged ({problem}); pull it again"
            ) from None


def open_shards(folder: str | Path) -> Shards:
    """Open a built dataset; raises LongRecipeError when it is not one that this version reads."""
    root = Path(folder)
    shards = Shards(root, read_manifest(root))
    for entry in shards.manifest.files:
        path = shards.path(entry)
        if not path.exists():
            raise LongRecipeError(f"{path} is named by the manifest but missing; pull it again")
        if path.stat().st_size != entry.bytes:
            raise LongRecipeError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
                "pull it again"
            )
    return shards
