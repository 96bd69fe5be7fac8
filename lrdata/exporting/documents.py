"""Rows -> documents: what other trainers read, as whole row groups of flat arrays.

    input_ids       the tokens of one attention document
    attention_mask  all 1: with it transformers 5 does not read gaps as document ends
    labels          input_ids, -100 where a token is no target: the loss mask is off, or nothing
                    comes before it; trainers shift them by one themselves
    position_ids    as the row has them

A document without a target teaches nothing, and some trainers stop at one: it is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lrdata.errors import LongRecipeError, one_line
from lrdata.manifest import FileEntry
from lrdata.rules import Ragged, RowGroup, length_findings
from lrdata.shard_file import ShardFile
from lrdata.shards import SCHEMA as ROWS
from lrdata.shards import Shards, list_of

IGNORED = -100
"""The label that PyTorch's cross-entropy skips."""


SCHEMA = pa.schema(
    [
        list_of("input_ids", pa.int32()),
        list_of("attention_mask", pa.int8()),
        list_of("labels", pa.int32()),
        list_of("position_ids", pa.int32()),
    ]
)

_READ = [
    *("input_ids", "position_ids", "seq_lengths", "loss_mask"),
    *("segment_starts", "segment_lengths", "doc_ids", "doc_offsets", "doc_lengths"),
]


@dataclass
class Tally:
    """What an export holds, and what of it a trainer may get wrong."""

    rows: int = 0
    """Of the dataset."""
    documents: int = 0
    """Rows of the export."""
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    """Tokens of the longest document."""
    reach: int = 0
    """The most that two positions of a document differ."""
    gapped: int = 0
    """Documents in which a position does not follow the one before it."""
    left_out: int = 0
    """Documents without a target."""
    left_out_tokens: int = 0


def row_groups(shards: Shards, entry: FileEntry) -> Iterator[RowGroup]:
    """The row groups of a file, one in memory at a time.

    Raises LongRecipeError when its bytes are not the manifest's, or its columns do not fit
    together.
    """
    path, rows = shards.checked(entry), 0
    try:
        with ShardFile(path) as file:
            for name in _READ:
                index = file.schema.get_field_index(name)
                if index < 0 or not file.schema.field(index).equals(ROWS.field(name)):
                    raise LongRecipeError(f"{path}: {name} is not as it should be; {_VERIFY}")
            for number in range(file.groups):
                table = file.read(number, _READ)
                group = RowGroup.of(table, rows, entry.kind, shards.manifest)
                for what, bad in length_findings(group):
                    if bad.any():
                        row = int(group.rows[bad][0])
                        raise LongRecipeError(f"{path} row {row}: {what}; {_VERIFY}")
                rows += group.count
                yield group
    except (OSError, pa.ArrowException) as problem:
        raise LongRecipeError(f"{path} cannot be read ({one_line(problem)}); {_VERIFY}") from None
    if rows != entry.rows:
        raise LongRecipeError(f"{path} holds {rows} rows, the manifest says {entry.rows}")


_VERIFY = "see `lrdata verify`"


def documents_of(group: RowGroup, tally: Tally) -> pa.Table:
    """The documents of a row group, in order, in the columns of SCHEMA; counted in `tally`."""
    ids, positions = group["input_ids"].values, group["position_ids"].values
    ends = np.cumsum(group["seq_lengths"].values, dtype=np.int64)
    firsts = np.concatenate([[0], ends[:-1]])
    documents = Ragged(ids, np.append(firsts, len(ids)))

    targets = group["loss_mask"].values.copy()
    targets[firsts] = False  # nothing precedes a document's first token
    steps = np.diff(positions.astype(np.int64), prepend=0)
    steps[firsts] = 1
    kept = documents.any(targets)
    gapped = documents.any(steps != 1)
    reach = np.maximum.reduceat(positions, firsts) - np.minimum.reduceat(positions, firsts)

    tally.rows += group.count
    tally.documents += int(kept.sum())
    tally.tokens += int(documents.lengths[kept].sum())
    tally.targets += int(targets.sum())
    tally.longest = max(tally.longest, int(documents.lengths[kept].max(initial=0)))
    tally.reach = max(tally.reach, int(reach[kept].max(initial=0)))
    tally.gapped += int((gapped & kept).sum())
    tally.left_out += int((~kept).sum())
    tally.left_out_tokens += int(documents.lengths[~kept].sum())

    columns = {
        "input_ids": ids,
        "attention_mask": np.ones(len(ids), np.int8),
        "labels": np.where(targets, ids, np.int32(IGNORED)),
        "position_ids": positions,
    }
    offsets = pa.array(documents.offsets.astype(np.int32))
    lists = [
        pa.ListArray.from_arrays(offsets, columns[field.name], type=field.type) for field in SCHEMA
    ]
    table = pa.Table.from_arrays(lists, schema=SCHEMA)
    return table if kept.all() else table.filter(pa.array(kept))
