"""What must hold in a row, by the contract of `lrdata.shards`.

    for what, rows in length_findings(RowGroup.of(table, 0, "extend", manifest)): ...

The columns of a row group are checked as flat arrays, never row by row. Each rule yields what is
wrong, in words, and in which rows. `length_findings` comes first: the other rules rely on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lrdata.manifest import Manifest
from lrdata.positions import OF_THE_WINDOW

_TOKEN_COLUMNS = ("position_ids", "impact_mask", "loss_mask", "lsd")

Finding = tuple[str, np.ndarray]
"""What is wrong, in words, and in which rows of a group: bool [rows]."""


def window_len(manifest: Manifest) -> int:
    """Tokens of the dataset's windows: target_len, or what it was before `lrdata retarget`."""
    first = manifest.recipe.get("retargeted_from")
    return first if isinstance(first, int) and first > 0 else manifest.target_len


@dataclass(frozen=True)
class Ragged:
    """A list column: row i is values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # int64 [rows + 1]

    @classmethod
    def of(cls, column: pa.Array) -> "Ragged":
        offsets = column.offsets.to_numpy().astype(np.int64)
        flat = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        if pa.types.is_string(flat.type):  # only the number of strings matters
            return cls(np.zeros(len(flat), bool), offsets - offsets[0])
        return cls(flat.to_numpy(zero_copy_only=False), offsets - offsets[0])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def first(self) -> np.ndarray:
        """bool [values]: the first value of each row that has one."""
        flags = np.zeros(len(self.values), bool)
        flags[self.offsets[:-1][self.lengths > 0]] = True
        return flags

    def sums(self) -> np.ndarray:
        total = np.concatenate([[0], np.cumsum(self.values, dtype=np.int64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def any(self, flags: np.ndarray) -> np.ndarray:
        """Rows with a flagged value: bool [rows]."""
        return Ragged(flags, self.offsets).sums() > 0

    def spread(self, per_row: np.ndarray) -> np.ndarray:
        """One value a row -> one for each value of the row."""
        return np.repeat(per_row, self.lengths)

    def counter(self) -> np.ndarray:
        """0, 1, 2, ... in each row."""
        return np.arange(len(self.values)) - self.spread(self.offsets[:-1])


@dataclass(frozen=True)
class RowGroup:
    """Some rows of a file. `rows` are their numbers in it."""

    table: pa.Table
    rows: np.ndarray
    kind: str
    manifest: Manifest
    lists: dict[str, Ragged]

    @classmethod
    def of(cls, table: pa.Table, first: int, kind: str, manifest: Manifest) -> "RowGroup":
        rows = np.arange(first, first + table.num_rows)
        return cls._made(table, rows, kind, manifest)

    @classmethod
    def _made(cls, table: pa.Table, rows: np.ndarray, kind: str, manifest: Manifest) -> "RowGroup":
        lists = {
            entry.name: Ragged.of(_array(table.column(entry.name)))
            for entry in table.schema
            if pa.types.is_list(entry.type)
        }
        return cls(table, rows, kind, manifest, lists)

    def only(self, good: np.ndarray) -> "RowGroup":
        table = self.table.filter(pa.array(good)).combine_chunks()
        return self._made(table, self.rows[good], self.kind, self.manifest)

    def __getitem__(self, name: str) -> Ragged:
        return self.lists[name]

    @property
    def count(self) -> int:
        return len(self.rows)

    def scalar(self, name: str) -> np.ndarray:
        return _array(self.table.column(name)).to_numpy(zero_copy_only=False)

    @property
    def scheme(self) -> Any:
        return self.manifest.recipe.get("positions")

    @property
    def takes_places(self) -> bool:
        """Whether rows took the tokens that stand at their positions in the window."""
        unselected = self.manifest.recipe.get("impact") == "none"
        return self.scheme == "source" or (unselected and self.scheme in OF_THE_WINDOW)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


# Rules of a row. Each yields what is wrong and in which rows: bool [rows].


def length_findings(group: RowGroup) -> Iterator[Finding]:
    """Lengths that the other checks rely on."""
    tokens = group["input_ids"].lengths
    yield "it has no tokens", tokens == 0
    for name in _TOKEN_COLUMNS:
        if name in group.lists:
            yield f"{name} is not as long as input_ids", group[name].lengths != tokens
    for name, other in (
        ("segment_lengths", "segment_starts"),
        ("doc_offsets", "doc_ids"),
        ("doc_lengths", "doc_ids"),
    ):
        yield f"{name} is not as long as {other}", group[name].lengths != group[other].lengths
    for name in ("seq_lengths", "segment_lengths"):
        parts = group[name]
        yield f"{name} has an entry below 1", parts.any(parts.values < 1)
        yield f"{name} does not sum to the row's length", parts.sums() != tokens


def _size_findings(group: RowGroup) -> Iterator[Finding]:
    manifest, tokens = group.manifest, group["input_ids"].lengths
    window, expected = group.scalar("window_tokens"), window_len(manifest)
    if group.kind == "holdout":
        yield f"it is longer than a window of {expected}", tokens > expected
    else:
        yield f"it is longer than train_len {manifest.train_len}", tokens > manifest.train_len
    yield f"its kind is not {group.kind}", group.scalar("kind") != group.kind
    target = group.scalar("target_len")
    yield f"its target_len is not {manifest.target_len}", target != manifest.target_len
    if group.kind == "replay":
        yield "its window_tokens is not its length", window != tokens
    else:
        yield f"its window_tokens is not {expected}", window != expected
    if group.kind == "holdout":
        yield "it is not a whole window", tokens != window


def _id_findings(group: RowGroup) -> Iterator[Finding]:
    ids, tokenizer = group["input_ids"], group.manifest.tokenizer
    outside = (ids.values < 0) | (ids.values >= tokenizer.vocab_size)
    yield f"an id is not in [0, {tokenizer.vocab_size})", ids.any(outside)
    if group.kind != "replay" and tokenizer.bos_id is not None:
        starts = group["segment_starts"].values[group["segment_starts"].offsets[:-1]]
        first = ids.values[ids.offsets[:-1]]
        wrong = (starts == 0) & (first != tokenizer.bos_id)
        yield f"it does not begin with the start-of-text token {tokenizer.bos_id}", wrong


def _position_findings(group: RowGroup) -> Iterator[Finding]:
    positions, limit = group["position_ids"], group.manifest.target_len
    outside = (positions.values < 0) | (positions.values >= limit)
    yield f"a position is not in [0, {limit})", positions.any(outside)
    if group.kind == "replay":
        documents = group["seq_lengths"].values
        counter = np.arange(len(positions.values))
        expected = counter - np.repeat(np.cumsum(documents, dtype=np.int64) - documents, documents)
        wrong = positions.any(positions.values != expected)
        yield "positions do not count from 0 in each document of seq_lengths", wrong
    elif group.kind == "holdout":
        wrong = positions.any(positions.values != positions.counter())
        yield "positions are not 0, 1, 2, ...", wrong
    else:
        steps = np.diff(positions.values.astype(np.int64), prepend=0)
        wrong = positions.any((steps <= 0) & ~positions.first)
        yield "positions are not strictly increasing", wrong
        yield from _scheme_findings(group, steps)


def _scheme_findings(group: RowGroup, steps: np.ndarray) -> Iterator[Finding]:
    """Positions of extend rows, where the scheme tells something of them."""
    positions, lengths = group["position_ids"], group["segment_lengths"].values
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    if group.scheme == "longrecipe":
        inside = ~positions.first
        inside[before] = False
        wrong = positions.any(inside & (steps != 1))
        yield "positions jump inside a segment", wrong
    elif group.takes_places:
        offsets = np.repeat(group["segment_starts"].values - before, lengths)
        wrong = positions.any(positions.values != offsets + np.arange(len(offsets)))
        yield "positions are not the tokens' offsets in the window", wrong
    elif group.scheme in ("full", "contiguous"):
        wrong = positions.any(positions.values != positions.counter())
        yield "positions are not 0, 1, 2, ...", wrong


def _segment_findings(group: RowGroup) -> Iterator[Finding]:
    starts = group["segment_starts"]
    begin = starts.values.astype(np.int64)
    end = begin + group["segment_lengths"].values
    outside = (begin < 0) | (end > starts.spread(group.scalar("window_tokens")))
    yield "a segment leaves the window", starts.any(outside)
    before = np.concatenate([[0], end[:-1]])
    wrong = starts.any((begin < before) & ~starts.first)
    yield "segments overlap or are out of order", wrong


def _document_findings(group: RowGroup) -> Iterator[Finding]:
    lengths, offsets = group["doc_lengths"], group["doc_offsets"]
    yield "doc_lengths has an entry below 1", lengths.any(lengths.values < 1)
    yield "doc_offsets has an entry below 0", offsets.any(offsets.values < 0)
    lead = group.kind != "replay" and group.manifest.tokenizer.bos_id is not None
    expected = group.scalar("window_tokens") - int(lead)
    less = ", the start-of-text token left out" if lead else ""
    yield f"doc_lengths does not sum to window_tokens{less}", lengths.sums() != expected


def _mask_findings(group: RowGroup) -> Iterator[Finding]:
    loss, impact = group["loss_mask"], group["impact_mask"]
    if group.kind == "replay":
        yield "impact_mask is not all false", impact.any(impact.values)
    else:
        yield "loss_mask is not all true", loss.any(~loss.values)


VALUE_CHECKS: tuple[Callable[[RowGroup], Iterator[Finding]], ...] = (
    _size_findings,
    _id_findings,
    _position_findings,
    _segment_findings,
    _document_findings,
    _mask_findings,
)
