"""Shards -> batches: rows joined flat, with explicit documents, in a seeded order.

The order of an epoch is a pure function of integers and all of the state is the number of the step,
so any run, of however many processes, can go on from any other's place. Token columns go from Arrow
memory into fresh int32 tensors, pinned where the model is on a GPU, in one copy; there is no Python
object per token. A step is read while the one before it is trained on.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from lrdata.draws import Draws
from lrdata.shards import Row, Shards
from lrtrain.weights import Weighting, none


@dataclass(frozen=True)
class Batch:
    """Rows as one flat row. S tokens; `weights[i]` belongs to token i as the target."""

    input_ids: torch.Tensor  # int32 [1, S]
    position_ids: torch.Tensor  # int32 [1, S]
    seq_lengths: list[int]
    weights: torch.Tensor  # float32 [S], 0 at the first token of each document
    rows: list[str]

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]


@dataclass(frozen=True)
class Piece:
    """What is computed at once of a batch: all of it, or a rank's tokens. s tokens, the first n of
    which predict something."""

    input_ids: torch.Tensor  # int32 [1, s]
    position_ids: torch.Tensor  # int32 [1, s]
    seq_lengths: list[int]
    """Of the whole row, of however many ranks."""
    targets: torch.Tensor  # int32 [n]
    weights: torch.Tensor  # float32 [n], of the targets


def whole(batch: Batch) -> Piece:
    """A batch that is computed in one piece: its last token predicts nothing."""
    return Piece(
        batch.input_ids,
        batch.position_ids,
        batch.seq_lengths,
        batch.input_ids[0, 1:],
        batch.weights[1:],
    )


def order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch in random order: int64 [rows]."""
    words = Draws(seed, epoch).stream("order").words(rows)
    return np.argsort(words, kind="stable")


def to_batch(rows: Sequence[Row], weighting: Weighting = none, pinned: bool = False) -> Batch:
    """Join rows; a document of one row never attends to another row's.

    A token's weight is what `weighting` says (see `lrtrain.weights`), and 0 where the loss mask is
    off. pinned: in memory that a GPU reads from directly.
    """
    lengths = np.concatenate([row.seq_lengths for row in rows])
    weights = np.concatenate([weighting(row) * row.loss_mask for row in rows])
    weights[np.cumsum(lengths) - lengths] = 0.0  # nothing precedes a document's first token
    return Batch(
        input_ids=_joined([row.input_ids for row in rows], pinned)[None],
        position_ids=_joined([row.position_ids for row in rows], pinned)[None],
        seq_lengths=lengths.tolist(),
        weights=_joined([weights], pinned),
        rows=[row.sample_id for row in rows],
    )


def _joined(parts: list[np.ndarray], pinned: bool) -> torch.Tensor:
    """Arrays of one dtype (int32 or float32) as one tensor, one after another."""
    dtype = torch.int32 if parts[0].dtype == np.int32 else torch.float32
    joined = torch.empty(sum(map(len, parts)), dtype=dtype, pin_memory=pinned)
    np.concatenate(parts, out=joined.numpy())
    return joined


class StepLoader:
    """Optimizer steps of one kind of rows, over as many epochs as it takes.

    A step holds `rows_per_step` rows (fewer only when there are fewer), as flat micro-batches of
    at most `micro_tokens` tokens, at least a row each. The last rows of an epoch that do not fill
    a step are joined by the first of the next. `weighting` says what each token weighs in the loss.
    Of several processes, `world`, each takes every world-th row of a step, from its `rank` on.
    """

    def __init__(
        self,
        shards: Shards,
        kind: str,
        seed: int,
        rows_per_step: int,
        micro_tokens: int,
        weighting: Weighting = none,
        *,
        rank: int = 0,
        world: int = 1,
        pinned: bool = False,
    ) -> None:
        self.shards, self.kind, self.seed = shards, kind, seed
        self.weighting, self.pinned = weighting, pinned
        self.rank, self.world = rank, world
        self.rows = shards.rows(kind)
        self.rows_per_step = min(rows_per_step, self.rows)
        self.micro_tokens = micro_tokens

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see each row once, the last one perhaps some rows twice."""
        return -(-self.rows // self.rows_per_step)

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number`, counted from 0 over all epochs."""
        places = np.arange(self.rank, self.rows_per_step, self.world) + number * self.rows_per_step
        rows = [self.shards.read_row(self.kind, int(index)) for index in self._row_numbers(places)]
        return [to_batch(group, self.weighting, self.pinned) for group in self._groups(rows)]

    def steps(self, first: int, stop: int) -> Iterator[list[Batch]]:
        """Steps [first, stop), each read while the one before it is in use."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as beside:
            following = beside.submit(self.step, first) if first < stop else None
            for number in range(first + 1, stop + 1):
                assert following is not None
                batches = following.result()
                following = beside.submit(self.step, number) if number < stop else None
                yield batches

    def _row_numbers(self, places: np.ndarray) -> np.ndarray:
        epochs, offsets = np.divmod(places, self.rows)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            numbers[chosen] = order(self.rows, self.seed, int(epoch))[offsets[chosen]]
        return numbers

    def _groups(self, rows: list[Row]) -> Iterator[list[Row]]:
        group: list[Row] = []
        tokens = 0
        for row in rows:
            if group and tokens + len(row.input_ids) > self.micro_tokens:
                yield group
                group, tokens = [], 0
            group.append(row)
            tokens += len(row.input_ids)
        if group:
            yield group
