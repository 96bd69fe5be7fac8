"""Batches hold the rows as they are, in a seeded order that covers every row once an epoch."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.shards import Shards
from lrtrain.loader import Batch, StepLoader, order, to_batch, whole
from lrtrain.weights import impact, longce
from tests.lrtrain.tiny_runs import build_shards


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_dataset(build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards"))


@given(rows=st.integers(0, 300), seed=st.integers(0, 2**31), epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(order(rows, seed, epoch).tolist()) == list(range(rows))
    assert np.array_equal(order(rows, seed, epoch), order(rows, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("kind", ["extend", "replay"])
def test_a_batch_is_its_rows_end_to_end(shards: Shards, kind: str) -> None:
    rows = [shards.read_row(kind, index) for index in range(3)]
    batch = to_batch(rows)
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int32
    assert batch.input_ids[0].tolist() == [i for row in rows for i in row.input_ids.tolist()]
    assert batch.position_ids[0].tolist() == [p for row in rows for p in row.position_ids.tolist()]
    assert batch.seq_lengths == [n for row in rows for n in row.seq_lengths.tolist()]
    assert batch.tokens == sum(batch.seq_lengths) == len(batch.weights)
    firsts = np.cumsum([0, *batch.seq_lengths[:-1]])
    expected = np.concatenate([row.loss_mask for row in rows]).astype(np.float32)
    expected[firsts] = 0
    assert np.array_equal(batch.weights.numpy(), expected)
    assert 0 < batch.weights.sum() < batch.tokens


@pytest.mark.parametrize("kind", ["extend", "replay"])
def test_in_one_piece_each_token_predicts_the_next_and_the_last_nothing(
    shards: Shards, kind: str
) -> None:
    batch = to_batch([shards.read_row(kind, index) for index in range(3)])
    piece = whole(batch)
    assert torch.equal(piece.input_ids, batch.input_ids)
    assert torch.equal(piece.position_ids, batch.position_ids)
    assert piece.seq_lengths == batch.seq_lengths
    assert piece.targets.tolist() == batch.input_ids[0].tolist()[1:]
    assert piece.weights.tolist() == batch.weights.tolist()[1:]
    assert len(piece.targets) == batch.tokens - 1


def test_weights_count_where_the_loss_mask_is_on_and_something_precedes(shards: Shards) -> None:
    """Rows of packed documents, whose masks leave prompts out."""
    draw = np.random.default_rng(0)
    rows = [shards.read_row("replay", index) for index in range(3)]
    scored = [
        replace(row, lsd=draw.normal(0, 2, len(row.input_ids)).astype(np.float16)) for row in rows
    ]
    weights = to_batch(scored, longce).weights.numpy()
    plain = to_batch(scored).weights.numpy()
    assert weights.dtype == np.float32
    assert np.array_equal(weights, plain * np.concatenate([longce(row) for row in scored]))
    assert len(set(weights.tolist())) > 100


def test_a_loader_weighs_every_micro_batch(shards: Shards) -> None:
    plain = StepLoader(shards, "extend", 1, 4, micro_tokens=0)
    weighted = StepLoader(shards, "extend", 1, 4, micro_tokens=0, weighting=impact)
    for one, other in zip(plain.step(2), weighted.step(2), strict=True):
        assert one.rows == other.rows
        assert set(other.weights.tolist()) == {0.0, 1.0, 2.0}
        assert torch.equal(other.weights.clamp(max=1), one.weights)


def test_a_batch_does_not_write_into_the_shards(shards: Shards) -> None:
    row = shards.read_row("extend", 0)
    before = row.input_ids.copy()
    to_batch([row]).input_ids.zero_()
    assert np.array_equal(shards.read_row("extend", 0).input_ids, before)


@pytest.mark.parametrize("rows_per_step", [1, 3, 7])
def test_every_row_comes_once_an_epoch(shards: Shards, rows_per_step: int) -> None:
    loader = StepLoader(shards, "extend", seed=5, rows_per_step=rows_per_step, micro_tokens=0)
    seen: list[str] = []
    epochs = 3
    while len(seen) < epochs * loader.rows:
        step = len(seen) // rows_per_step
        batches = loader.step(step)
        assert [len(batch.rows) for batch in batches] == [1] * rows_per_step
        seen += [row for batch in batches for row in batch.rows]
    for epoch in range(epochs):
        part = seen[epoch * loader.rows : (epoch + 1) * loader.rows]
        assert set(Counter(part).values()) == {1}
        assert len(part) == loader.rows
    assert loader.steps_per_epoch == -(-loader.rows // rows_per_step)


def test_any_step_is_the_same_in_any_order(shards: Shards) -> None:
    one = StepLoader(shards, "extend", 1, 4, 0)
    other = StepLoader(shards, "extend", 1, 4, 0)
    late = other.step(9)
    for step in range(9):
        one.step(step)
    assert [batch.rows for batch in one.step(9)] == [batch.rows for batch in late]


def test_micro_batches_hold_as_many_rows_as_fit(shards: Shards) -> None:
    size = len(shards.read_row("extend", 0).input_ids)
    loader = StepLoader(shards, "extend", 1, 7, micro_tokens=3 * size)
    assert [len(batch.rows) for batch in loader.step(0)] == [3, 3, 1]
    alone = StepLoader(shards, "extend", 1, 7, micro_tokens=0)
    assert [row for batch in loader.step(0) for row in batch.rows] == [
        row for batch in alone.step(0) for row in batch.rows
    ]


def test_more_rows_a_step_than_there_are(shards: Shards) -> None:
    loader = StepLoader(shards, "extend", 1, 10_000, 0)
    assert loader.steps_per_epoch == 1
    assert len({row for batch in loader.step(0) for row in batch.rows}) == loader.rows


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_each_step(shards: Shards, world: int) -> None:
    """Together they read what one would, wherever each of them begins."""
    alone = StepLoader(shards, "extend", 3, 7, 0)
    ranks = [StepLoader(shards, "extend", 3, 7, 0, rank=rank, world=world) for rank in range(world)]
    for number in (4, 0, 11):
        expected = [row for batch in alone.step(number) for row in batch.rows]
        parts = [[row for batch in one.step(number) for row in batch.rows] for one in ranks]
        assert sorted(row for part in parts for row in part) == sorted(expected)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_steps_read_ahead_are_the_steps(shards: Shards) -> None:
    loader = StepLoader(shards, "extend", 1, 4, 0)
    ahead = list(loader.steps(3, 8))
    assert len(ahead) == 5
    for number, batches in enumerate(ahead, 3):
        for one, other in zip(batches, loader.step(number), strict=True):
            assert one.rows == other.rows
            assert torch.equal(one.input_ids, other.input_ids)
    assert list(loader.steps(5, 5)) == []


def test_what_goes_wrong_ahead_is_said_where_it_belongs(shards: Shards) -> None:
    class Torn(StepLoader):
        def step(self, number: int) -> list[Batch]:
            if number == 2:
                raise LongRecipeError("row 8 is torn")
            return super().step(number)

    steps = Torn(shards, "extend", 1, 4, 0).steps(0, 5)
    assert len([next(steps), next(steps)]) == 2
    with pytest.raises(LongRecipeError, match="row 8"):
        next(steps)
