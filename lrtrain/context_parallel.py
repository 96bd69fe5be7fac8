"""Rows that are split over ranks: each has two chunks, and the keys and values of all.

Of 2C equal chunks of a row, rank c of C has the c-th and the c-th from the end: so causal attention
takes all of them equally long. Keys and values are gathered in every layer, whereupon a rank's
attention is that of any backend for the last tokens of a row, with documents where they are. A
ring would send the same bytes in C - 1 turns and hold C times less of one layer's keys, but needs
a kernel that gives its logsumexp, and to know the documents of every two ranks' tokens.

Shape legend: B sequences, H heads, S tokens of the row, D head width, C ranks.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist

from lrtrain.attention_backends import Backend
from lrtrain.loader import Batch, Piece

# torch 2.13 renamed them; machines in the field carry older ones.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def piece(batch: Batch, rank: int, ranks: int) -> Piece:
    """The chunks `rank` and `2 * ranks - 1 - rank` of a batch, after as many more tokens, of a
    document of their own, as make all chunks equally long."""
    tokens = batch.tokens
    more = -tokens % (2 * ranks)
    chunk = (tokens + more) // (2 * ranks)

    def cut(x: torch.Tensor, shift: int) -> torch.Tensor:
        """Both chunks of x, as it is `shift` places on."""
        into = x.new_zeros(2 * chunk, pin_memory=x.is_pinned())
        for place, start in ((0, rank * chunk), (chunk, (2 * ranks - 1 - rank) * chunk)):
            found = x[start + shift : start + shift + chunk]
            into[place : place + len(found)] = found
        return into

    return Piece(
        input_ids=cut(batch.input_ids[0], 0)[None],
        position_ids=cut(batch.position_ids[0], 0)[None],
        seq_lengths=[*batch.seq_lengths, more] if more else batch.seq_lengths,
        targets=cut(batch.input_ids[0], 1),
        weights=cut(batch.weights, 1),
    )


def keys_of(seq_lengths: Sequence[int], start: int, stop: int) -> tuple[int, list[int]]:
    """Which keys tokens [start, stop) of a row attend to: the first of them, the last being
    stop - 1, and the lengths of their documents as far as they go."""
    first, lengths = 0, list[int]()
    for end, length in zip(accumulate(seq_lengths), seq_lengths, strict=True):
        if end > start and end - length < stop:
            if not lengths:
                first = end - length
            lengths.append(min(end, stop) - (end - length))
    return first, lengths


class SplitRows:
    """Attention of a rank's two chunks, to the gathered keys and values of all ranks of the row."""

    def __init__(self, rank: int, ranks: int, group: Any) -> None:
        """This is the `rank`-th of so many, which are in torch's process group `group`."""
        self.ranks, self._rank, self._group = ranks, rank, group

    def __call__(
        self,
        backend: Backend,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seq_lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        keys, values = _Gathered.apply(torch.cat([key, value]), self._group).split(1)
        chunk = query.shape[2] // 2
        out = []
        numbers = (self._rank, 2 * self.ranks - 1 - self._rank)
        for number, own in zip(numbers, query.split(chunk, 2), strict=True):
            stop = (number + 1) * chunk
            first, lengths = keys_of(seq_lengths, stop - chunk, stop)
            seen = slice(first, stop)
            out.append(backend(own, keys[:, :, seen], values[:, :, seen], lengths, scale))
        return torch.cat(out, 1)


class _Gathered(torch.autograd.Function):
    """Both chunks of every rank of a group in the row's order: [B, H, S / C, D] -> [B, H, S, D]."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        ranks = dist.get_world_size(group)
        batch, heads, tokens, width = own.shape
        by_rank = own.new_empty(ranks * batch, heads, tokens, width)
        _all_gather(by_rank, own.contiguous(), group=group)
        chunks = by_rank.view(ranks, batch, heads, 2, tokens // 2, width).permute(1, 2, 0, 3, 4, 5)
        row = own.new_empty(batch, heads, 2 * ranks, tokens // 2, width)
        row[:, :, :ranks] = chunks[:, :, :, 0]
        row[:, :, ranks:] = chunks[:, :, :, 1].flip(2)
        return row.view(batch, heads, ranks * tokens, width)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        ranks = dist.get_world_size(ctx.group)
        batch, heads, tokens, width = outer[0].shape
        chunks = outer[0].view(batch, heads, 2 * ranks, tokens // (2 * ranks), width)
        ascending, descending = chunks.permute(2, 0, 1, 3, 4).split(ranks)
        by_rank = torch.stack([ascending, descending.flip(0)], 3)  # [C, B, H, 2, S / 2C, D]
        own = outer[0].new_empty(batch, heads, tokens // ranks, width)
        shape = (ranks * batch, *own.shape[1:])
        _reduce_scatter(own, by_rank.reshape(shape), group=ctx.group)
        return own, None
