"""What a sample of a dataset's rows says: gaps, documents, coverage, impact by class."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.positions import SCHEMES
from lrdata.progress import progress
from lrdata.report.coverage import LONGEST_TARGET, Coverage, CoverageCounter
from lrdata.rules import window_len
from lrdata.shards import Row, Shards
from lrdata.token_classes import CLASSES

ROWS, _FEWEST_ROWS = 512, 16
_TOKENS = ROWS * 2**17
"""Of windows above 128k fewer rows are read, for as long: see `usual_rows`."""

_NEIGHBOURS = 8
"""Rows of a larger sample are read so many at a place: row groups are decoded as a whole."""

_REPLAY_ROWS = 64
_POWERS = 40

DRAWN = {"pose": "PoSE, 2 chunks", "randpos": "RandPos"}
"""Schemes whose positions are drawn for the same rows, to compare with."""

NAMES = {"rows": "these rows", "full": "full-length rows", **DRAWN}
"""What each coverage of `RowStatistics` is called."""


@dataclass
class Powers:
    """Counts of positive numbers by powers of two: entry k is of 2^k .. 2^(k+1) - 1."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_POWERS, np.int64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(_POWERS, np.int64))
    largest: int = 0

    def add(self, values: np.ndarray) -> None:
        """Values int [n] in [1, 2^40)."""
        if len(values):
            powers = np.frexp(values.astype(np.float64))[1] - 1
            self.counts += np.bincount(powers, minlength=_POWERS)
            self.sums += np.bincount(powers, values, minlength=_POWERS).astype(np.int64)
            self.largest = max(self.largest, int(values.max()))

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / max(self.count, 1))

    def used(self) -> range:
        """The powers from the smallest to the largest that occurs."""
        there = np.flatnonzero(self.counts)
        return range(int(there[0]), int(there[-1]) + 1) if len(there) else range(0)


@dataclass
class RowStatistics:
    """Of `sampled` extend rows out of `total`. coverage: by the name of the scheme, `rows` first;
    `full` is of rows of the whole target length, and is not there where nobody knows their
    documents; empty without rows, and for windows above LONGEST_TARGET. by_class: int64
    [classes], of the rows' tokens and of the impactful ones; None where the tokenizer is not at
    hand."""

    total: int
    sampled: int = 0
    tokens: int = 0
    impactful: int = 0
    gaps: Powers = field(default_factory=Powers)
    documents: Powers = field(default_factory=Powers)
    coverage: dict[str, Coverage] = field(default_factory=dict)
    by_class: tuple[np.ndarray, np.ndarray] | None = None


def usual_rows(target_len: int) -> int:
    """How many rows are read unless another number is asked for: counting one takes as long as
    its window."""
    return min(max(_TOKENS // max(target_len, 1), _FEWEST_ROWS), ROWS)


def spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `total`, spread evenly: sorted, the same each time."""
    if total <= wanted:
        return list(range(total))
    run = _NEIGHBOURS if wanted >= 8 * _NEIGHBOURS else 1
    places = -(-wanted // run)
    starts = [at * (total - run) // max(places - 1, 1) for at in range(places)]
    return sorted({start + step for start in starts for step in range(run)})[:wanted]


def read_statistics(
    shards: Shards, rows: int | None = None, classes: np.ndarray | None = None
) -> RowStatistics:
    """Statistics of at most `rows` extend rows (None: `usual_rows`).

    Memory holds a few row groups and a few arrays of target_len.

    Args:
        classes: the class of each id, uint8 [vocab_size], see `lrdata.token_classes`.
    Raises:
        LongRecipeError: a file is damaged, or a row is not as it must be.
    """
    wanted = usual_rows(shards.target_len) if rows is None else rows
    chosen = spread(shards.rows("extend"), wanted)
    found = RowStatistics(total=shards.rows("extend"))
    if classes is not None:
        found.by_class = (np.zeros(len(CLASSES), np.int64), np.zeros(len(CLASSES), np.int64))
    positions = None
    if chosen and 1 < shards.target_len <= LONGEST_TARGET:
        positions = _Positions(shards)
    with progress("checking files and reading rows", len(chosen)) as task:
        for index in chosen:
            row = shards.read_row("extend", index)
            _add_row(found, row, classes)
            if positions is not None:
                positions.add(row, index)
            task.advance()
    if positions is not None:
        found.coverage = positions.coverage()
    return found


def replay_shares(shards: Shards) -> tuple[int, float, float]:
    """Of at most 64 replay rows: how many, documents a row, share of tokens in the loss."""
    chosen = spread(shards.rows("replay"), _REPLAY_ROWS)
    documents = tokens = counted = 0
    for index in chosen:
        row = shards.read_row("replay", index)
        documents += len(row.doc_ids)
        tokens += len(row.loss_mask)
        counted += int(row.loss_mask.sum())
    return len(chosen), documents / max(len(chosen), 1), counted / max(tokens, 1)


def _add_row(found: RowStatistics, row: Row, classes: np.ndarray | None) -> None:
    found.sampled += 1
    found.tokens += len(row.input_ids)
    found.impactful += int(row.impact_mask.sum())
    skips = np.diff(row.position_ids.astype(np.int64)) - 1
    found.gaps.add(skips[skips > 0])
    found.documents.add(row.doc_lengths[row.doc_lengths > 0])
    if classes is not None and found.by_class is not None:
        ids = row.input_ids
        whole = len(ids) == len(row.impact_mask)
        if not whole or not len(ids) or ids.min() < 0 or ids.max() >= len(classes):
            raise LongRecipeError(
                f"row {row.sample_id[:80]!r} has ids that its tokenizer has not; "
                "run `lrdata verify`"
            )
        for counts, chosen in zip(found.by_class, (ids, ids[row.impact_mask]), strict=True):
            counts += np.bincount(classes[chosen], minlength=len(counts))


class _Positions:
    """Coverage of rows, of the same rows by other schemes, and at full length.

    What a row is at full length follows from the recipe and the documents of its window, not from
    what selection kept of them.
    """

    def __init__(self, shards: Shards) -> None:
        self._target = shards.target_len
        self._masked = shards.manifest.recipe.get("join") == "mask"
        self._lead = int(shards.bos_id is not None)
        known = not self._masked or window_len(shards.manifest) == self._target
        names = [name for name in NAMES if known or name != "full"]
        self._counters = {name: CoverageCounter(self._target) for name in names}
        self._whole = 0  # rows whose full length is one document: all the same

    def add(self, row: Row, index: int) -> None:
        self._counters["rows"].add(row.position_ids, row.seq_lengths)  # which checks them
        for name, positions in _drawn(len(row.position_ids), index, self._target):
            self._counters[name].add(positions, row.seq_lengths)
        if "full" in self._counters:
            self._add_full(row)

    def _add_full(self, row: Row) -> None:
        lengths = row.doc_lengths.astype(np.int64)
        if not self._masked or len(lengths) == 1:
            self._whole += 1
            return
        if not len(lengths) or lengths.min() < 1 or lengths.sum() + self._lead != self._target:
            raise LongRecipeError(
                f"the documents of row {row.sample_id[:80]!r} are not as long as its window; "
                "run `lrdata verify`"
            )
        lengths[0] += self._lead
        self._counters["full"].add(np.arange(self._target), lengths)

    def coverage(self) -> dict[str, Coverage]:
        if self._whole:
            whole = np.array([self._target])
            self._counters["full"].add(np.arange(self._target), whole, self._whole)
        return {name: counter.coverage() for name, counter in self._counters.items()}


def _drawn(count: int, index: int, target_len: int) -> Iterator[tuple[str, np.ndarray]]:
    """Positions of the other schemes for a row of `count` tokens: the same on every machine."""
    kept = np.arange(count, dtype=np.int32)
    for name in DRAWN:
        stream = Draws("report", index).stream(name)
        yield name, SCHEMES[name](kept, np.array([count]), target_len, stream)
