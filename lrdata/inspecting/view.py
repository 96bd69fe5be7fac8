"""A row with what a picture of it needs."""

from dataclasses import dataclass

import numpy as np

from lrdata.errors import LongRecipeError
from lrdata.shards import Row, Shards


@dataclass(frozen=True)
class View:
    """Row `index` of `rows` of its kind. Arrays have an entry for each of its n tokens."""

    row: Row
    index: int
    rows: int
    lead: int  # 1 where the window begins with a start-of-text token
    offsets: np.ndarray  # int64: place in the window
    skips: np.ndarray  # int64: positions skipped just before the token
    left_out: np.ndarray  # int64: tokens of the window left out just before it
    document: np.ndarray  # int64: which document of the window it belongs to
    marked: np.ndarray  # bool: shown in colour

    @classmethod
    def read(cls, shards: Shards, kind: str, index: int) -> "View":
        """Raises LongRecipeError when there is no such row, or its columns do not fit together."""
        row = shards.read_row(kind, index)
        lead = int(kind != "replay" and shards.bos_id is not None)
        offsets = _offsets(row) if _is_whole(row, shards.manifest.tokenizer.vocab_size) else None
        if offsets is None or offsets[-1] >= lead + row.doc_lengths.sum(dtype=np.int64):
            raise LongRecipeError(
                f"{shards.folder}: the columns of {kind} row {index} do not fit together; "
                "run `lrdata verify`"
            )
        steps = np.diff(row.position_ids.astype(np.int64), prepend=-1)
        return cls(
            row=row,
            index=index,
            rows=shards.rows(kind),
            lead=lead,
            offsets=offsets,
            skips=np.maximum(steps - 1, 0),  # a restart (replay) skips nothing
            left_out=np.maximum(np.diff(offsets, prepend=-1) - 1, 0),
            document=document_at(row, lead, offsets),
            marked=row.loss_mask if row.kind == "replay" else row.impact_mask,
        )

    @property
    def breaks(self) -> np.ndarray:
        """Tokens before which something is shown: int64."""
        changes = np.diff(self.document, prepend=-1) != 0
        return np.flatnonzero((self.skips > 0) | (self.left_out > 0) | changes)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of its window was dropped: its ids are those of the window."""
        return len(self.offsets) == self.lead + int(self.row.doc_lengths.sum(dtype=np.int64))

    @property
    def kept(self) -> np.ndarray:
        """How many tokens of each document the row has: int64 [documents]."""
        return np.bincount(self.document, minlength=len(self.row.doc_ids))

    def facts(self) -> list[tuple[str, str]]:
        """What the row is, as names and values; these may hold text of the data."""
        row, tokens = self.row, len(self.row.input_ids)
        positions, gaps = row.position_ids, self.skips[self.skips > 0]
        share = tokens / max(row.window_tokens, 1)
        between = (
            f"; {len(gaps):,} gaps of {gaps.mean():,.0f} positions on average" if len(gaps) else ""
        )
        marks, count = (
            "in the loss" if row.kind == "replay" else "impactful",
            int(self.marked.sum()),
        )
        facts = [
            ("row", f"{self.index:,} of {self.rows:,} {row.kind} rows"),
            ("sample", row.sample_id),
            ("source", row.source),
            ("tokens", f"window of {row.window_tokens:,} -> row of {tokens:,} ({share:.1%})"),
            ("positions", f"{positions.min():,}..{positions.max():,} of 0..{row.target_len - 1:,}"),
            ("segments", f"{len(row.segment_lengths):,}{between}"),
        ]
        if len(row.seq_lengths) > 1:
            there = f"{len(row.seq_lengths):,} documents that do not see each other"
            facts.append(("attention", there))
        return [*facts, (marks, f"{count:,} tokens ({count / tokens:.1%}), in colour")]


def begins(lengths: np.ndarray) -> np.ndarray:
    """Where pieces of these lengths begin, one after the other: int64, as many."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def document_at(row: Row, lead: int, offsets: np.ndarray) -> np.ndarray:
    """Which document of the window each place in it belongs to: int64, as many as `offsets`."""
    ends = lead + np.cumsum(row.doc_lengths.astype(np.int64))
    return np.minimum(np.searchsorted(ends, offsets, side="right"), len(ends) - 1)


def _offsets(row: Row) -> np.ndarray | None:
    """int64 [n], increasing, where the segments are in order."""
    lengths = row.segment_lengths
    shifts = np.repeat(row.segment_starts - begins(lengths), lengths)
    offsets = np.arange(len(shifts)) + shifts
    return offsets if (np.diff(offsets) > 0).all() else None


def _is_whole(row: Row, vocab_size: int) -> bool:
    """Whether a picture can be made of its columns; `lrdata verify` checks much more."""
    tokens, pieces, names = len(row.input_ids), row.segment_lengths, len(row.doc_ids)
    per_token = (row.position_ids, row.impact_mask, row.loss_mask)
    return bool(
        0 < tokens == pieces.sum() == row.seq_lengths.sum()
        and all(len(column) == tokens for column in per_token)
        and (row.lsd is None or len(row.lsd) == tokens)
        and len(pieces) == len(row.segment_starts)
        and pieces.min() > 0
        and row.segment_starts.min() >= 0
        and 0 < names == len(row.doc_offsets) == len(row.doc_lengths)
        and row.doc_lengths.min() >= 0
        and 0 <= row.position_ids.min() <= row.position_ids.max() < row.target_len
        and row.input_ids.min() >= 0
        and row.input_ids.max() < vocab_size
    )
