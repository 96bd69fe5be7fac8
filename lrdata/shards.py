"""The rows of a dataset: schema, and a random-access reader; `lrdata.shard_writer` writes them.

This file and `lrdata.manifest` are the data contract. What a row holds:

    input_ids         the kept tokens (labels are not stored: they are input_ids)
    position_ids      their positions, < target_len; strictly increasing along an extend row,
                      0..n-1 along a holdout row, restarting at 0 in each document of a replay row
    seq_lengths       lengths of the row's attention documents, summing to its length
    impact_mask       impactful tokens; loss_mask: tokens that count in the loss
    segment_starts    where in the window each contiguous piece of the row came from,
    segment_lengths     in order; positions jump only between pieces (but with the schemes of
                        `lrdata.positions.INSIDE_SEGMENTS`)
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
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lrdata.errors import LongRecipeError
from lrdata.manifest import FileEntry, Manifest, read_manifest, safe_path
from lrdata.shard_file import ShardFile

KINDS = ("extend", "replay", "holdout")


def list_of(name: str, item: pa.DataType) -> pa.Field:
    """A column of lists without nulls."""
    return pa.field(name, pa.list_(pa.field("element", item, nullable=False)), nullable=False)


def _scalar(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        list_of("input_ids", pa.int32()),
        list_of("position_ids", pa.int32()),
        list_of("seq_lengths", pa.int32()),
        list_of("impact_mask", pa.bool_()),
        list_of("loss_mask", pa.bool_()),
        list_of("segment_starts", pa.int32()),
        list_of("segment_lengths", pa.int32()),
        list_of("doc_ids", pa.string()),
        list_of("doc_offsets", pa.int64()),
        list_of("doc_lengths", pa.int32()),
        _scalar("sample_id", pa.string()),
        _scalar("source", pa.string()),
        _scalar("kind", pa.string()),
        _scalar("window_tokens", pa.int32()),
        _scalar("target_len", pa.int32()),
    ]
)
LSD_FIELD = list_of("lsd", pa.float16())


def schema_of(manifest: Manifest, kind: str) -> pa.Schema:
    """The columns of a dataset's rows of a kind."""
    return SCHEMA.append(LSD_FIELD) if manifest.lsd and kind != "replay" else SCHEMA


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


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, streamed."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Shards:
    """A built dataset, opened for reading. Use through `lrdata.dataset.open_dataset`."""

    remote = False
    """Whether files are fetched when they are needed, rather than here from the start."""
    remedy = "pull it again"
    """What to do about a file that is damaged."""

    def __init__(self, folder: Path, manifest: Manifest, cached_groups: int = 4) -> None:
        self.folder, self.manifest = folder, manifest
        self._cached_groups = cached_groups
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._starts: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        """The folder or address that it was opened by."""
        return str(self.folder)

    @property
    def kinds(self) -> list[str]:
        """The kinds that hold at least one row."""
        return [kind for kind in KINDS if self.rows(kind)]

    def files(self, kind: str) -> list[FileEntry]:
        return self.manifest.of_kind(kind)

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

    def checked(self, entry: FileEntry) -> Path:
        """The path of a file whose bytes are the manifest's; LongRecipeError where they are not."""
        path = self.path(entry)
        if file_sha256(path) != entry.sha256:
            raise LongRecipeError(
                f"{path} is damaged: its sha256 is not the manifest's; {self.remedy}"
            )
        return path

    def read_row(self, kind: str, index: int) -> Row:
        """Row `index` of a kind, counted over its files in order. By any thread.

        Row groups are decoded whole and the last few are kept, so neighbouring rows are cheap. A
        file's sha256 is checked when its first row is read. Raises LongRecipeError when it is not
        the manifest's, and when there is no such row.
        """
        with self._lock:
            return self._read_row(kind, index)

    def _read_row(self, kind: str, index: int) -> Row:
        first_rows = self._first_rows[kind]
        if not 0 <= index < first_rows[-1]:
            raise LongRecipeError(
                f"{self.where} has {first_rows[-1]} {kind} rows; there is no row {index}"
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
            path = self.checked(entry)
            with _open(path) as file:
                rows = [file.rows(group) for group in range(file.groups)]
            if sum(rows) != entry.rows:
                raise LongRecipeError(
                    f"{path} holds {sum(rows)} rows, the manifest says {entry.rows}; "
                    "build the dataset again"
                )
            self._starts[entry.path] = np.cumsum([0, *rows])[:-1]
        return self._starts[entry.path]


def _open(path: Path) -> ShardFile:
    try:
        return ShardFile(path)
    except (OSError, ValueError, pa.ArrowException) as problem:
        raise LongRecipeError(
            f"{path} cannot be read as Parquet ({problem}); pull it again"
        ) from None


def _read_group(path: Path, group: int) -> pa.Table:
    with _open(path) as file:
        missing = [name for name in SCHEMA.names if name not in file.schema.names]
        if missing:
            raise LongRecipeError(f"{path} lacks the column {missing[0]}; build the dataset again")
        for field in (*SCHEMA, LSD_FIELD):
            found = file.schema.get_field_index(field.name)
            if found >= 0 and not file.schema.field(found).equals(field):
                raise LongRecipeError(
                    f"{path} has the column {field.name} of another type; see `lrdata verify`"
                )
        try:
            return file.read(group)
        except (OSError, ValueError, pa.ArrowException) as problem:
            raise LongRecipeError(
                f"{path} row group {group} is damaged ({problem}); pull it again"
            ) from None


def open_folder(root: Path) -> Shards:
    """Open a dataset folder; raises LongRecipeError when it is not one that this version reads."""
    shards = Shards(root, read_manifest(root))
    for entry in shards.manifest.files:
        path = shards.path(entry)
        if not path.is_file():  # a device or a pipe is none, and may have no end
            raise LongRecipeError(f"{path} is named by the manifest but missing; pull it again")
        if path.stat().st_size != entry.bytes:
            raise LongRecipeError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
                "pull it again"
            )
    return shards
