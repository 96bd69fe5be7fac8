"""Attention over explicit documents: `seq_lengths` says where they end, position ids never do.

transformers reads every jump in `position_ids` as the start of a new packed document and silently
cuts attention there: a row with gaps would teach nothing across them. So the trainer registers its
own attention function and a mask function that makes no mask, and passes the lengths of the row's
documents with every call:

    model(input_ids, position_ids=..., seq_lengths=[9824], attention_scale=1.0, use_cache=False)

Shape legend: B = 1 (rows are flat), Hq / Hkv query and key-value heads, S tokens, D head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lrdata.errors import LongRecipeError

IMPLEMENTATION = "longrecipe"

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[int], float], torch.Tensor]


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """torch's scaled_dot_product_attention, once for each run of equally long documents.

    No S x S mask is ever made: each document is causal on its own, and neighbours of one length
    go as a batch.
    """
    outputs, start = [], 0
    for length, count in _runs(seq_lengths):
        stop = start + length * count
        parts = [_documents(x[:, :, start:stop], count) for x in (query, key, value)]
        # One head a group: enable_gqa has no efficient CPU backward in all supported versions.
        q, k, v = parts[0], *(_repeat_heads(x, query.shape[1]) for x in parts[1:])
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(1, length * count, *out.shape[1::2]))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """The definition, with an explicit S x S mask: for checking the others on short rows."""
    lengths = torch.tensor(list(seq_lengths), device=query.device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=query.device), lengths)
    index = torch.arange(len(document), device=query.device)
    seen = (document[:, None] == document[None, :]) & (index[:, None] >= index[None, :])
    k, v = (_repeat_heads(x, query.shape[1]) for x in (key, value))
    scores = (query @ k.transpose(-1, -2)).float() * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "dense": dense}
_chosen = "sdpa"


def choose_backend(name: str = "auto") -> str:
    """Choose the backend of all later calls; returns its name. `auto` is the fastest there is."""
    global _chosen
    if name != "auto" and name not in BACKENDS:
        raise LongRecipeError(f"--attention {name} is unknown; choose auto, {', '.join(BACKENDS)}")
    _chosen = "sdpa" if name == "auto" else name
    return _chosen


def packed_causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
    backend: str,
) -> torch.Tensor:
    """Causal attention inside each document of a flat row.

    Args:
        query: [1, Hq, S, D]. key, value: [1, Hkv, S, D], Hq a multiple of Hkv.
        seq_lengths: lengths of the documents, summing to S.
        scale: factor on the logits.
    Returns:
        [1, S, Hq, D].
    """
    if query.shape[0] != 1:
        raise LongRecipeError(f"rows are flat: a batch of 1 is expected, not {query.shape[0]}")
    if sum(seq_lengths) != query.shape[2] or key.shape[2] != query.shape[2]:
        raise LongRecipeError(
            f"seq_lengths sum to {sum(seq_lengths)}, the row has {query.shape[2]} tokens and "
            f"{key.shape[2]} keys: documents must cover the row, without a cache"
        )
    return BACKENDS[backend](query, key, value, seq_lengths, scale)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    seq_lengths: Sequence[int] | None = None,
    attention_scale: float = 1.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer."""
    if seq_lengths is None:
        raise LongRecipeError("the model was called without seq_lengths: documents are explicit")
    if dropout:
        raise LongRecipeError("attention_dropout must be 0")
    scale = (query.shape[-1] ** -0.5 if scaling is None else scaling) * attention_scale
    return packed_causal_attention(query, key, value, seq_lengths, scale, _chosen), None


def register() -> None:
    """Make `attn_implementation="longrecipe"` known to transformers. Idempotent."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(length, how many in a row): [5, 5, 3] -> [(5, 2), (3, 1)]."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][0] == length:
            runs[-1] = (length, runs[-1][1] + 1)
        else:
            runs.append((length, 1))
    return runs


def _documents(x: torch.Tensor, count: int) -> torch.Tensor:
    """[1, H, count * n, D] -> [count, H, n, D]."""
    _, heads, tokens, width = x.shape
    return x.view(heads, count, tokens // count, width).transpose(0, 1) if count > 1 else x


def _repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, Hkv, S, D] -> [B, heads, S, D], each head for its group of queries."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
