"""A Parquet file of rows, read a row group at a time, whoever made it.

    with ShardFile(path) as file:
        for group in range(file.groups):
            table = file.read(group)

What would not fit into memory is not decoded, and what Python could not read is an error of Arrow.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.parquet.bounds import decoded_bytes

LARGEST_GROUP = 1 << 30
"""Bytes of a row group, decoded; those of `lrdata build` have a tenth of it."""


class ShardFile:
    """An open file. Everything raises OSError or pa.ArrowException for one that is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self.schema: pa.Schema = self._file.schema_arrow
        self.groups: int = self._file.metadata.num_row_groups

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def rows(self, group: int) -> int:
        """Rows of a row group, as the footer has it."""
        return int(self._file.metadata.row_group(group).num_rows)

    def read(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A row group as one chunk; all columns, or some."""
        size = decoded_bytes(self._path, self._file.metadata, group)
        if max(size, self.rows(group)) > LARGEST_GROUP:
            raise pa.ArrowInvalid(
                f"row group {group} would take up to {size:,} bytes and {self.rows(group):,} rows, "
                "more than any of ours: not decoded"
            )
        table = self._file.read_row_group(group, columns=columns).combine_chunks()
        table.validate(full=True)  # texts are UTF-8, lists lie in their values
        return table
