"""How fast a shard is written, beside pyarrow's writer and what zstd alone takes.

    lrdata build CORPUS --tokenizer TOKENIZER --target-len 128k --out /tmp/shards
    python bench/shards.py /tmp/shards

The rows of the first shard, from memory to a file in memory, in one thread: by `lrdata.parquet`, by
pyarrow with the same content (zstd-3, DELTA_BINARY_PACKED, page index and checksums) with and
without its content-defined chunking, and zstd-3 of the ids alone. Processor time, the best of five,
in turns.
"""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import click
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from rich import box
from rich.console import Console
from rich.table import Table

from lrdata.dataset import open_dataset
from lrdata.parquet import ParquetFile
from lrdata.runtime import prepare_for_bulk_work
from lrdata.shard_writer import DELTA_COLUMNS, columns_of
from lrdata.shards import SCHEMA, Row, table_to_rows

PAGE_ROWS = 20
ROUNDS = 5


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.argument("shards", type=click.Path(exists=True, path_type=Path))
def main(shards: Path) -> None:
    prepare_for_bulk_work()
    opened = open_dataset(shards)
    table = pq.read_table(opened.path(opened.files("extend")[0])).combine_chunks()
    rows = list(table_to_rows(table))
    kept = sum(len(row.input_ids) for row in rows)
    window = sum(row.window_tokens for row in rows)
    ways: dict[str, Callable[[], int]] = {
        "lrdata.parquet": lambda: _ours(rows),
        "pyarrow, content-defined chunking": lambda: _pyarrow(table, True),
        "pyarrow without it": lambda: _pyarrow(table, False),
        "zstd of the ids alone (the limit)": lambda: _zstd(rows),
    }
    found = {way: (float("inf"), 0) for way in ways}
    for _ in range(ROUNDS):
        for way, write in ways.items():
            began = time.process_time()
            size = write()
            found[way] = min(found[way], (time.process_time() - began, size))
    ours, _ = found["lrdata.parquet"]
    result = Table(title=f"{len(rows)} rows, {kept:,} kept tokens", box=box.SIMPLE_HEAD)
    for name in ("", "ns a kept token", "ns a window token", "bytes a token", "ours is"):
        result.add_column(name, justify="right" if name else "left")
    for way, (seconds, size) in found.items():
        result.add_row(
            way,
            f"{seconds / kept * 1e9:.1f}",
            f"{seconds / window * 1e9:.1f}",
            f"{size / kept:.2f}",
            f"{seconds / ours:.2f} x",
        )
    Console(width=100).print(result)


def _ours(rows: list[Row]) -> int:
    stream = io.BytesIO()
    file = ParquetFile(stream, SCHEMA, DELTA_COLUMNS)
    for start in range(0, len(rows), PAGE_ROWS):
        file.add_page(columns_of(rows[start : start + PAGE_ROWS], SCHEMA))
        if start % (2 * PAGE_ROWS):
            file.end_group()
    file.finish()
    return stream.tell()


def pyarrow_writer(sink: BinaryIO | Path, schema: pa.Schema, chunking: bool) -> pq.ParquetWriter:
    """pyarrow's own writer of the same content."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["source", "kind", "doc_ids.list.element"],
        column_encoding={f"{name}.list.element": "DELTA_BINARY_PACKED" for name in DELTA_COLUMNS},
        write_page_index=True,
        write_page_checksum=True,
        use_content_defined_chunking=chunking,
    )


def _pyarrow(table: pa.Table, chunking: bool) -> int:
    stream = io.BytesIO()
    with pyarrow_writer(stream, SCHEMA, chunking) as writer:
        writer.write_table(table, row_group_size=2 * PAGE_ROWS)
    return stream.tell()


def _zstd(rows: list[Row]) -> int:
    compressor = zstandard.ZstdCompressor(level=3)
    pages = (rows[start : start + PAGE_ROWS] for start in range(0, len(rows), PAGE_ROWS))
    return sum(
        len(compressor.compress(b"".join(row.input_ids.tobytes() for row in page)))
        for page in pages
    )


if __name__ == "__main__":
    main()
