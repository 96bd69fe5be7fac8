"""The content hash: what a shard holds, whatever wrote it."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lrdata.parquet import Column


class ContentHash:
    """sha256 over the decoded columns: the same for every grouping, encoding and library version.

    For each column, in schema order: the digest of the row lengths (int64, little-endian; lists
    only) and of the values (little-endian; bool as one byte, strings as UTF-8 each preceded by its
    length as int64). The content hash is the sha256 of those digests, joined.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._names = schema.names
        self._hashers = [(hashlib.sha256(), hashlib.sha256()) for _ in schema]

    def update(self, table: pa.Table) -> None:
        """Add rows of the schema's columns."""
        for name, hashers in zip(self._names, self._hashers, strict=True):
            for array in table.column(name).chunks:
                _add(hashers, _column(array))

    def update_columns(self, columns: Sequence[Column]) -> None:
        """The same, from columns in the order of the schema."""
        for hashers, column in zip(self._hashers, columns, strict=True):
            _add(hashers, column)

    def hexdigest(self) -> str:
        parts = (part.digest() for pair in self._hashers for part in pair)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _add(hashers: tuple[Any, Any], column: Column) -> None:
    lengths, values = hashers
    if column.lengths is not None:
        lengths.update(_little(column.lengths))
    if isinstance(column.values, list):
        values.update(_with_lengths(column.values))
    else:
        values.update(_little(column.values))


def _column(array: pa.Array) -> Column:
    lengths = None
    if pa.types.is_list(array.type):
        lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
        array = array.flatten()
    if pa.types.is_string(array.type):
        return Column([text.encode() for text in array.to_pylist()], lengths)
    return Column(array.to_numpy(zero_copy_only=False), lengths)


def _little(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data


def _with_lengths(texts: Iterable[bytes]) -> bytes:
    return b"".join(part for text in texts for part in (len(text).to_bytes(8, "little"), text))
