"""Greedy generation: prompts of one length are read a few at a time, and answered all together.

    answers = generate(model, ids, most=128, stop={tokenizer.eot_id})

Prompts of one length need no padding and so no mask, and a batch gives what its rows give alone, up
to rounding: kernels differ with the size of a batch, and where two tokens are as good as equally
likely the other one may be chosen. The same as `model.generate(do_sample=False)` of transformers,
without what a generation_config may add to it (penalties, forced or forbidden tokens).
"""

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_READ_TOKENS = 8192
"""Of prompts that are read at a time: more are no faster, and take more memory."""
_CHUNK = 4096
_LEAST_CHUNK = 256


def generate(
    model: Any, ids: "torch.Tensor", most: int, stop: Set[int], *, chunk: int | None = None
) -> list[np.ndarray]:
    """The continuation of each prompt by the likeliest tokens, int64 [n] with n <= `most`.

    ids: int64 [B, S], on the model's device. A row ends before its first token of `stop`, which is
    not part of it; the batch ends when all rows have. Where the device has no memory for all of
    them, half of them are answered at a time. A prompt is read in one pass, which is the fastest;
    where there is no memory for one, `chunk` tokens at a time (by default what turns out to fit),
    which needs a mask and so another kernel: numbers differ by rounding.
    Raises torch.OutOfMemoryError where chunks of 256 tokens of one prompt do not fit either, and
    FloatingPointError where logits are not finite.
    """
    import torch

    if ids.ndim != 2 or not ids.numel() or most < 1:
        raise ValueError(f"nothing to generate: ids {tuple(ids.shape)}, at most {most} tokens")
    try:
        return _answers(model, ids, most, stop, chunk)
    except torch.OutOfMemoryError:
        if len(ids) == 1:
            raise
    torch.cuda.empty_cache()  # out of the handler, which keeps the failed pass alive
    halves = ids.tensor_split(2)
    return [answer for half in halves for answer in generate(model, half, most, stop, chunk=chunk)]


def _answers(
    model: Any, ids: "torch.Tensor", most: int, stop: Set[int], chunk: int | None
) -> list[np.ndarray]:
    import torch

    stops = torch.tensor(sorted(stop), dtype=ids.dtype, device=ids.device)
    with torch.inference_mode():
        logits, cache = _read(model, ids, most, chunk)
        tokens = list[torch.Tensor]()
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while True:
            tokens.append(logits.argmax(-1))
            ended |= torch.isin(tokens[-1], stops)
            if len(tokens) == most or bool(ended.all()):
                break
            logits = _step(model, tokens[-1][:, None], cache)
    rows = torch.stack(tokens, dim=1).cpu().numpy()
    stopped = np.isin(rows, sorted(stop))
    ends = np.where(stopped.any(axis=1), stopped.argmax(axis=1), rows.shape[1])
    return [row[:end] for row, end in zip(rows, ends.tolist(), strict=True)]


def _read(
    model: Any, ids: "torch.Tensor", most: int, chunk: int | None
) -> "tuple[torch.Tensor, Any]":
    """The logits [B, V] after the prompts, and their keys and values with room for an answer."""
    import torch

    size = chunk or ids.shape[1]
    while True:
        try:
            return _read_chunks(model, ids, most, size)
        except torch.OutOfMemoryError:
            if chunk or len(ids) > 1 or size <= _LEAST_CHUNK:
                raise
        size = min(_CHUNK, size // 2)  # out of the handler, as above
        torch.cuda.empty_cache()


def _read_chunks(
    model: Any, ids: "torch.Tensor", most: int, size: int
) -> "tuple[torch.Tensor, Any]":
    import torch

    from lrtrain.evaluation.cache import RoomyCache

    count, length = ids.shape
    cache = RoomyCache(model.config, count, length + most)
    group = max(1, _READ_TOKENS // length) if cache.by_rows else count
    logits = list[torch.Tensor]()
    for first in range(0, count, group):
        rows = slice(first, first + group)
        cache.turn_to(rows, 0)
        read = [_step(model, part, cache) for part in ids[rows].split(size, dim=1)]
        logits.append(read[-1])
    cache.turn_to(slice(None), length)
    return torch.cat(logits), cache


def _step(model: Any, ids: "torch.Tensor", cache: Any) -> "torch.Tensor":
    """The logits [B, V] after the last of these tokens, whose keys and values go to the cache."""
    from lrtrain.finite import need_finite

    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = out.logits[:, -1]
    need_finite(logits.amax(-1))
    return logits
