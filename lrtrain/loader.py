"""Shards -> batches: rows joined flat, with explicit documents, in a seeded order.

The order of an epoch is a pure function of integers and the state is (epoch, step), so any run can
go on from any other's place. Token columns go from Arrow memory into fresh tensors in one copy;
there is no Python object per token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lrdata.draws import Draws
from lrdata.shards import Row, Shards
from lrtrain.weights import Weighting, none


@dataclass(frozen=True)
class Batch:
    """Rows as one flat row. S tokens; `weights[i]` belongs to token i as the target."""

    input_ids: torch.Tensor  # int64 [1, S]
    position_ids: torch.Tensor  # int64 [1, S]
    seq_lengths: list[int]
    weights: torch.Tensor  # float32 [S], 0 at the first token of each document
    rows: list[str]

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]


def order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch in random order: int64 [rows]."""
    words = Draws(seed, epoch).stream("order").words(rows)
    return np.argsort(words, kind="stable")


def to_batch(rows: Sequence[Row], weighting: Weighting = none) -> Batch:
    """Join rows; a document of one row never attends to another row's.

    A token's weight is what `weighting` says (see `lrtrain.weights`), and 0 where the loss mask is
    off.
    """
    lengths = np.concatenate([row.seq_lengths for row in rows])
    weights = np.concatenate([weighting(row) * row.loss_mask for row in rows])
    weights[np.cumsum(lengths) - lengths] = 0.0  # nothing precedes a document's first token
    return Batch(
        input_ids=_int64([row.input_ids for row in rows]),
        position_ids=_int64([row.position_ids for row in rows]),
        seq_lengths=lengths.tolist(),
        weights=torch.from_numpy(weights),
        rows=[row.sample_id for row in rows],
    )


def _int64(parts: list[np.ndarray]) -> torch.Tensor:
    joined = np.empty((1, sum(map(len, parts))), np.int64)
    np.concatenate(parts, out=joined[0])
    return torch.from_numpy(joined)


class StepLoader:
    """Optimizer steps of one kind of rows, over as many epochs as it takes.

    A step holds `rows_per_step` rows (fewer only when there are fewer), as flat micro-batches of
    at most `micro_tokens` tokens, at least a row each. The last rows of an epoch that do not fill
    a step are joined by the first of the next. `weighting` says what each token weighs in the loss.
    """

    def __init__(
        self,
        shards: Shards,
        kind: str,
        seed: int,
        rows_per_step: int,
        micro_tokens: int,
        weighting: Weighting = none,
    ) -> None:
        self.shards, self.kind, self.seed = shards, kind, seed
        self.weighting = weighting
        self.rows = shards.rows(kind)
        self.rows_per_step = min(rows_per_step, self.rows)
        self.micro_tokens = micro_tokens

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see each row once, the last one perhaps some rows twice."""
        return -(-self.rows // self.rows_per_step)

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number`, counted from 0 over all epochs."""
        places = np.arange(self.rows_per_step) + number * self.rows_per_step
        rows = [self.shards.read_row(self.kind, int(index)) for index in self._row_numbers(places)]
        return [to_batch(group, self.weighting) for group in self._groups(rows)]

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
