"""A row that is split over ranks is the same row: its tokens, its documents, its attention.

Pieces of all ranks together are the row and what fills it up; what each attends to is what a loop
over its tokens says; attention of pieces, and its gradients, are those of the whole row by the
definition in float64: in one process, where a stand-in for the gathering has all keys, and on ranks
that gather them. Ranks hold the rows of a parameter that torch.chunk gives them, and each loads no
more than a layer of a model at once.
"""

import gc
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lrtrain.context_parallel
from lrtrain.attention_backends import Backend, dense, sdpa
from lrtrain.attention_trials import Heads
from lrtrain.context_parallel import SplitRows, keys_of, piece
from lrtrain.distributed import many
from lrtrain.loader import Batch, Piece
from lrtrain.model import load_model
from lrtrain.model_files import Weights
from lrtrain.sharded import local, rows_of
from tests.lrtrain.many import on_ranks
from tests.lrtrain.tiny_models import save_tiny

CONTEXTS = st.integers(1, 5)
TOLERANCE = 1e-12
"""Of float64: sums in another order. Measured: up to 4e-15 of the largest value."""


@st.composite
def documents(draw: st.DrawFn, context: int, most: int = 12) -> list[int]:
    """Lengths of a row's documents; many of them end at, before or after an end of a chunk, some
    are of one token, and some rows are shorter than there are chunks."""
    chunk = draw(st.integers(1, most))
    tokens = 2 * context * chunk - draw(st.integers(0, 2 * context - 1))
    edges = st.builds(lambda n, by: n * chunk + by, st.integers(0, 2 * context), st.integers(-1, 1))
    ends = draw(st.sets(st.one_of(edges, st.integers(1, tokens)), max_size=8))
    inside = sorted(end for end in ends if 0 < end < tokens)
    return [stop - start for start, stop in zip([0, *inside], [*inside, tokens], strict=True)]


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, Batch]:
    """Among how many ranks, and a row of which every token, position and weight is another."""
    context = draw(CONTEXTS)
    lengths = draw(documents(context))
    tokens = sum(lengths)
    weights = torch.arange(1.0, tokens + 1) * torch.tensor(
        draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    )
    for start in accumulate(lengths[:-1], initial=0):
        weights[start] = 0
    ids = torch.arange(7, 7 + tokens, dtype=torch.int32)[None]
    return context, Batch(ids, 1000 + 3 * ids, lengths, weights, ["a row"])


def joined(pieces: Sequence[Piece], part: str) -> torch.Tensor:
    """A part of all ranks' pieces in the row's order."""
    own = [getattr(one, part).view(-1).chunk(2) for one in pieces]
    return torch.cat([*(early for early, _ in own), *(late for _, late in reversed(own))])


@given(rows())
def test_the_pieces_of_all_ranks_are_the_row_and_what_fills_it_up(row: tuple[int, Batch]) -> None:
    context, batch = row
    pieces = [piece(batch, rank, context) for rank in range(context)]
    more = -batch.tokens % (2 * context)
    for name in ("input_ids", "position_ids"):
        parts = [getattr(one, name) for one in pieces]
        assert {part.shape for part in parts} == {(1, (batch.tokens + more) // context)}
        whole = joined(pieces, name)
        assert whole.dtype == torch.int32
        assert torch.equal(whole[: batch.tokens], getattr(batch, name)[0])
        assert len(whole) == batch.tokens + more
        assert not whole[batch.tokens :].any()
    for one in pieces:
        assert one.seq_lengths[: len(batch.seq_lengths)] == batch.seq_lengths
        assert sum(one.seq_lengths) == batch.tokens + more
        assert len(one.seq_lengths) == len(batch.seq_lengths) + (more > 0)
        assert min(one.seq_lengths) > 0


@given(rows())
def test_targets_and_weights_are_those_of_the_next_token(row: tuple[int, Batch]) -> None:
    """Of the row's, which another rank may have; what fills it up weighs nothing."""
    context, batch = row
    pieces = [piece(batch, rank, context) for rank in range(context)]
    targets, weights = joined(pieces, "targets"), joined(pieces, "weights")
    assert targets.dtype == torch.int32
    assert weights.dtype == torch.float32
    assert torch.equal(targets[: batch.tokens - 1], batch.input_ids[0, 1:])
    assert torch.equal(weights[: batch.tokens - 1], batch.weights[1:])
    assert not weights[batch.tokens - 1 :].any()
    assert all(len(one.targets) == len(one.weights) == one.input_ids.shape[1] for one in pieces)


@given(st.data(), CONTEXTS)
def test_the_keys_of_some_tokens_are_those_of_each(data: st.DataObject, context: int) -> None:
    lengths = data.draw(documents(context))
    tokens = sum(lengths)
    start = data.draw(st.integers(0, tokens - 1))
    stop = data.draw(st.integers(start + 1, tokens))
    starts = [begin for n, begin in _with_starts(lengths) for _ in range(n)]  # by token
    first, found = keys_of(lengths, start, stop)
    assert first == min(starts[token] for token in range(start, stop))
    assert first + sum(found) == stop
    documents_of_keys = [begin for n, begin in _with_starts(found) for _ in range(n)]
    for token in range(start, stop):  # the last tokens of `found` see what they should
        assert first + documents_of_keys[token - first] == starts[token]
    begun = {starts[token] for token in range(start, stop)}
    assert len(found) == len(begun)


def _with_starts(lengths: Sequence[int]) -> list[tuple[int, int]]:
    starts = accumulate(lengths[:-1], initial=0)
    return list(zip(lengths, starts, strict=True)) if lengths else []


# Attention


def states(heads: Heads, tokens: int, seed: int) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output, float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, n, tokens, heads.width) for n in (heads.query, heads.key_value, heads.key_value)]
    shapes.append((1, tokens, heads.query, heads.width))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def own_part(x: torch.Tensor, rank: int, context: int, dim: int) -> torch.Tensor:
    chunks = x.chunk(2 * context, dim)
    return torch.cat([chunks[rank], chunks[2 * context - 1 - rank]], dim)


def whole_attention(heads: Heads, lengths: Sequence[int], seed: int) -> list[torch.Tensor]:
    """The output of the definition and the gradients of query, key and value."""
    *inputs, outer = states(heads, sum(lengths), seed)
    leaves = [x.requires_grad_() for x in inputs]
    out = dense(*leaves, lengths, 0.7)
    return [out.detach(), *torch.autograd.grad(out, leaves, outer)]


def padded(lengths: Sequence[int], context: int) -> list[int]:
    more = -sum(lengths) % (2 * context)
    return [*lengths, more] if more else list(lengths)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


HEADS = (Heads(2, 2, 4), Heads(4, 2, 3), Heads(6, 1, 2))


@settings(max_examples=60)
@given(st.data(), CONTEXTS, st.sampled_from(HEADS), st.sampled_from([sdpa, dense]))
def test_attention_of_pieces_is_that_of_the_row(
    data: st.DataObject, context: int, heads: Heads, backend: Backend
) -> None:
    """In one process: what is gathered is what all ranks have."""
    lengths = padded(data.draw(documents(context)), context)
    expected = whole_attention(heads, lengths, len(lengths))
    *inputs, outer = states(heads, sum(lengths), len(lengths))
    leaves = [x.requires_grad_() for x in inputs]
    gathered: dict[str, torch.Tensor] = {}

    class Gathered:
        @staticmethod
        def apply(own: torch.Tensor, group: None) -> torch.Tensor:
            gathered["own"] = own
            return torch.cat(leaves[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lrtrain.context_parallel, "_Gathered", Gathered)
        total = torch.zeros((), dtype=torch.float64)
        outputs = []
        for rank in range(context):
            split = SplitRows(rank, context, None)
            parts = [own_part(x, rank, context, 2) for x in leaves]
            outputs.append(split(backend, *parts, lengths, 0.7))
            assert torch.equal(gathered["own"], torch.cat(parts[1:]))
            assert_close(outputs[-1].detach(), own_part(expected[0], rank, context, 1))
            total = total + (outputs[-1] * own_part(outer, rank, context, 1)).sum()
    for found, gradient in zip(torch.autograd.grad(total, leaves), expected[1:], strict=True):
        assert_close(found, gradient)


SPLIT_ROWS = (
    [64],
    [8, 8, 16, 24, 8],  # every end is a chunk's
    [1, 1, 1, 5, 1, 7, 30, 1, 17],
    [7, 9, 15, 1, 20, 12],  # about the ends of chunks
    [3, 10, 17, 8],
    [1],
    [2, 1],
    [1, 1, 1, 1, 1],
)


def _gathered_on_a_rank(context: int, size: int) -> list[list[torch.Tensor]]:
    """Of each row: the output of this rank and the gradients of its query, key and value."""
    found = []
    with many(context, None, "cpu", 60) as ranks:
        for seed, row in enumerate(SPLIT_ROWS):
            lengths, heads = padded(row, context), HEADS[seed % len(HEADS)]
            *inputs, outer = states(heads, sum(lengths), seed)
            rank = ranks.context_rank
            leaves = [own_part(x, rank, context, 2).requires_grad_() for x in inputs]
            out = SplitRows(ranks.context_rank, ranks.context, ranks.group)(
                sdpa, *leaves, lengths, 0.7
            )
            gradients = torch.autograd.grad(out, leaves, own_part(outer, rank, context, 1))
            found.append([out.detach(), *gradients])
    return found


@pytest.mark.parametrize(("size", "context"), [(2, 2), (4, 4), (4, 2)])
def test_attention_on_ranks_is_that_of_the_row(size: int, context: int) -> None:
    """Its keys are gathered and their gradients are added up; of two rows at once in two groups."""
    by_rank = on_ranks(size, _gathered_on_a_rank, context, size)
    for seed, row in enumerate(SPLIT_ROWS):
        lengths, heads = padded(row, context), HEADS[seed % len(HEADS)]
        expected = whole_attention(heads, lengths, seed)
        for rank, found in enumerate(by_rank):
            for place, (one, whole) in enumerate(zip(found[seed], expected, strict=True)):
                dim = 2 if place else 1
                assert_close(one, own_part(whole, rank % context, context, dim))


# Parameters


class _Holder(nn.Module):
    """One parameter of two columns whose rows are their numbers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(count)[:, None].expand(count, 2).float())


def _rows_on_a_rank() -> list[tuple[Any, list[float]]]:
    found = []
    with many(1, None, "cpu", 60):
        for count in range(1, 12):
            holder = _Holder(count)
            assert rows_of(holder.weight) == (0, count, count)
            fully_shard(holder)
            found.append((rows_of(holder.weight), local(holder.weight)[:, 0].tolist()))
    return found


@pytest.mark.parametrize("size", [3, 4])
def test_a_rank_has_the_rows_that_torch_chunk_gives_it(size: int) -> None:
    for rank, found in enumerate(on_ranks(size, _rows_on_a_rank)):
        for count, (known, values) in enumerate(found, 1):
            chunks = torch.arange(float(count)).chunk(size)
            expected = chunks[rank].tolist() if rank < len(chunks) else []
            assert values == expected
            start, stop, all_rows = known
            assert torch.arange(float(count))[start:stop].tolist() == expected
            assert all_rows == count


def _most_parameters_at_once(folder: str) -> int:
    """How many that were read are there, each whole, while another is read."""
    most, real = 0, Weights.__getitem__
    gc.collect()

    def reading(weights: Weights, name: str) -> torch.Tensor:
        nonlocal most
        there = [x for x in gc.get_objects() if isinstance(x, nn.Parameter)]
        most = max(most, sum(not (isinstance(x, DTensor) or x.is_meta) for x in there))
        return real(weights, name)

    Weights.__getitem__ = reading  # type: ignore[method-assign]  # the process ends after it
    with many(1, None, "cpu", 60) as ranks:
        load_model(folder, dtype=torch.float32, ranks=ranks)
    return most


def test_no_more_than_a_layer_is_ever_whole(tmp_path: Path) -> None:
    folder = save_tiny("qwen3", tmp_path / "model", num_hidden_layers=5)
    of_a_layer = 7 + 4
    for most in on_ranks(2, _most_parameters_at_once, folder):
        assert of_a_layer - 1 <= most <= of_a_layer
