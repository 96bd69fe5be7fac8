"""Where in a corpus documents lie, by their ids.

A document without an id of its own is named `file:record`: the byte of a JSONL file at which its
line begins, or its row of a Parquet or Arrow file.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq

from lrdata.corpus import (
    DAMAGE,
    Piece,
    SourceFile,
    Unit,
    open_source,
    plan_units,
    raise_unless_damage,
)
from lrdata.records import READ_BYTES


def likely_units(ids: Iterable[str], files: Sequence[SourceFile]) -> Iterator[Unit]:
    """Units that hold the documents, if these ids are places: the lines of plain JSONL, the row
    groups of Parquet, any other file as a whole. Little else is in them."""
    records: dict[str, set[int]] = {}
    for name, _, record in (id_.rpartition(":") for id_ in ids):
        if record.isascii() and record.isdigit() and len(record) < 19:
            records.setdefault(name, set()).add(int(record))
    for file in files:
        wanted = sorted(records.get(file.name, ()))
        if not wanted:
            continue
        if file.format == "jsonl" and file.compression is None:
            pieces = _lines(file, wanted)
        elif file.format == "parquet":
            pieces = _row_groups(file, wanted)
        else:
            yield from plan_units([file])
            continue
        yield from (Unit(0, (piece,)) for piece in pieces)


def _lines(file: SourceFile, offsets: Sequence[int]) -> Iterator[Piece]:
    """Lines so near to each other that they are read at once anyway are one piece."""
    begin = end = -1
    for offset in (offset for offset in offsets if offset < file.size):
        if begin >= 0 and offset - end > READ_BYTES:
            yield Piece(file, begin, end + 1)
            begin = -1
        begin, end = offset if begin < 0 else begin, offset
    if begin >= 0:
        yield Piece(file, begin, end + 1)


def _row_groups(file: SourceFile, rows: Sequence[int]) -> Iterator[Piece]:
    try:
        metadata = pq.read_metadata(open_source(file))
        lengths = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
    except DAMAGE as problem:
        raise_unless_damage(problem)
        return
    groups = np.unique(np.searchsorted(np.cumsum(lengths), rows, side="right"))
    yield from (Piece(file, at, at + 1) for at in groups.tolist() if at < len(lengths))
