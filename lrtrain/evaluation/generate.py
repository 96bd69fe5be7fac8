"""Greedy generation: a batch of prompts of one length, read once, then a token at a time.

    answers = generate(model, ids, most=128, stop={tokenizer.eot_id})

Prompts of one length need no padding and so no mask, and a batch gives what its rows give alone, up
to rounding: kernels differ with the size of a batch, and where two tokens are as good as equally
likely the other one may be chosen. The same as `model.generate(do_sample=False)` of transformers,
without what a generation_config may add to it (penalties, forced or forbidden tokens). Keys and
values are kept by transformers' own cache, which copies all of them for every token: a read and a
write, about twice what attention itself reads.
"""

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_CHUNK = 4096
_LEAST_CHUNK = 256


def generate(
    model: Any, ids: "torch.Tensor", most: int, stop: Set[int], *, chunk: int | None = None
) -> list[np.ndarray]:
    """The continuation of each prompt by the likeliest tokens, int64 [n] with n <= `most`.

    ids: int64 [B, S], on the model's device. A row ends before its first token of `stop`, which is
    not part of it; the batch ends when all rows have. Prompts are read in one pass, which is the
    fastest; where the device has no memory for that, `chunk` tokens at a time (by default what
    turns out to fit), which needs a mask and so another kernel: numbers differ by rounding.
    Raises torch.OutOfMemoryError where chunks of 256 tokens do not fit either.
    """
    import torch

    if ids.ndim != 2 or not ids.numel() or most < 1:
        raise ValueError(f"nothing to generate: ids {tuple(ids.shape)}, at most {most} tokens")
    stops = torch.tensor(sorted(stop), dtype=ids.dtype, device=ids.device)
    with torch.inference_mode():
        logits, cache = _read(model, ids, chunk)
        tokens = list[torch.Tensor]()
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while True:
            tokens.append(logits.argmax(-1))
            ended |= torch.isin(tokens[-1], stops)
            if len(tokens) == most or bool(ended.all()):
                break
            logits, cache = _step(model, tokens[-1][:, None], cache)
    rows = torch.stack(tokens, dim=1).cpu().numpy()
    stopped = np.isin(rows, sorted(stop))
    ends = np.where(stopped.any(axis=1), stopped.argmax(axis=1), rows.shape[1])
    return [row[:end] for row, end in zip(rows, ends.tolist(), strict=True)]


def _read(model: Any, ids: "torch.Tensor", chunk: int | None) -> "tuple[torch.Tensor, Any]":
    """The logits [B, V] after the prompts, and their keys and values."""
    import torch

    size = chunk or ids.shape[1]
    while True:
        try:
            return _read_chunks(model, ids, size)
        except torch.OutOfMemoryError:
            if chunk or size <= _LEAST_CHUNK:
                raise
        size = min(_CHUNK, size // 2)  # out of the handler, which keeps the failed pass alive
        torch.cuda.empty_cache()


def _read_chunks(model: Any, ids: "torch.Tensor", size: int) -> "tuple[torch.Tensor, Any]":
    cache = None
    for part in ids.split(size, dim=1):
        logits, cache = _step(model, part, cache)
    return logits, cache


def _step(model: Any, ids: "torch.Tensor", cache: Any) -> "tuple[torch.Tensor, Any]":
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1], out.past_key_values
