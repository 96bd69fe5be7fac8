"""Kernels for causal attention inside each document of a flat row.

Shape legend: Hq / Hkv query and key-value heads (Hq a multiple of Hkv), S tokens, D head width.
Every backend takes query [1, Hq, S, D], key and value [1, Hkv, S, D], the documents' lengths, which
sum to S, and the factor on the logits, and returns [1, S, Hq, D]. Queries may be fewer than keys:
then they are those of the last tokens, and what they lack is the beginning of the first document
(of a row that is split over ranks, see `lrtrain.context_parallel`).
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache
from importlib import import_module
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrdata.errors import LongRecipeError, one_line

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[int], float], torch.Tensor]

_WRONG_CUDNN = 91_500
"""Up to this version cuDNN is wrong for lengths that 128 does not divide, and not torch's choice
(pytorch issue 169849)."""
_TORCHS_OWN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """torch's scaled_dot_product_attention, on GPUs with all kernels but cuDNN's."""
    with sdpa_kernel(_TORCHS_OWN) if query.is_cuda else nullcontext():
        return _by_documents(query, key, value, seq_lengths, scale)


def _by_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """scaled_dot_product_attention, once for each run of equally long documents.

    No S x S mask is ever made: each document is causal on its own, and neighbours of one length
    go as a batch.
    """
    outputs, start = [], 0
    without = key.shape[2] - query.shape[2]
    if without:
        start, seq_lengths = seq_lengths[0], seq_lengths[1:]
        first = (query[:, :, : start - without], key[:, :, :start], value[:, :, :start])
        outputs.append(_last_queries(*first, scale))
    for length, count in _runs(seq_lengths):
        stop = start + length * count
        q = _documents(query[:, :, start - without : stop - without], count)
        k, v = (_documents(x[:, :, start:stop], count) for x in (key, value))
        # Grouped heads have no efficient backward on CPUs in all supported versions, and no kernel
        # but the one that makes the S x S matrix for fp32 on GPUs.
        if length == 1 or not query.is_cuda or query.dtype == torch.float32:
            k, v = (_repeat_heads(x, query.shape[1]) for x in (k, v))
        if length == 1:  # a token sees itself alone; cuDNN has no kernel for that
            out = v + 0 * (q + k)
        else:
            grouped = k.shape[1] != q.shape[1]
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
        outputs.append(out.transpose(1, 2).reshape(1, length * count, *out.shape[1::2]))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def _last_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention of a document's last tokens to all of it: [1, Sq, Hq, D]."""
    if not query.is_cuda or query.dtype == torch.float32:
        key, value = (_repeat_heads(x, query.shape[1]) for x in (key, value))
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_lower_right(query, key),
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out.transpose(1, 2)


def _lower_right(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What says so to torch: on GPUs by name, for which there are kernels."""
    shape = query.shape[2], key.shape[2]
    if query.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(*shape)
    return torch.ones(shape, dtype=torch.bool, device=query.device).tril(shape[1] - shape[0])


def cudnn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """The same with cuDNN's kernels, and no others."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _by_documents(query, key, value, seq_lengths, scale)


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
    scores = query @ k.transpose(-1, -2)
    if scores.dtype != torch.float64:
        scores = scores.float()
    seen = seen[len(index) - query.shape[2] :]
    weights = (scores * scale).masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def _packed(kernel: Callable[..., Any]) -> Backend:
    """A backend from a kernel that takes [S, H, D] each, the documents' ends among the queries and
    among the keys, the most of either, and a scale."""

    def backend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seq_lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        flat = (x[0].transpose(0, 1) for x in (query, key, value))
        lengths = tuple(seq_lengths)
        queries = (lengths[0] - key.shape[2] + query.shape[2], *lengths[1:])
        ends = (cumulative(each, query.device) for each in (queries, lengths))
        out = kernel(*flat, *ends, max(queries), max(lengths), scale)
        # Some also return the logsumexp.
        states: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return states[None]

    return backend


def _load_cudnn() -> Backend:
    version = torch.backends.cudnn.version() or 0
    if version <= _WRONG_CUDNN:
        raise ImportError(f"it needs a cuDNN above {_WRONG_CUDNN}, here is {version or 'none'}")
    return cudnn


def _load_varlen() -> Backend:
    """torch's own variable-length flash attention; older ones know no grouped heads."""
    varlen_attn: Any = import_module("torch.nn.attention.varlen").varlen_attn
    missing = {"scale", "window_size", "enable_gqa"} - set(
        inspect.signature(varlen_attn).parameters
    )
    if missing:
        raise ImportError(f"that of torch {torch.__version__} has no {', '.join(sorted(missing))}")

    def kernel(q: Any, k: Any, v: Any, *sizes_and_scale: Any) -> Any:
        *sizes, scale = sizes_and_scale
        grouped = k.shape[1] != q.shape[1]
        return varlen_attn(q, k, v, *sizes, scale=scale, window_size=(-1, 0), enable_gqa=grouped)

    return _packed(kernel)


def _load_flash(module: str) -> Callable[[], Backend]:
    """`flash_attn_varlen_func` of a release of flash-attn, which has other modules in each."""

    def load() -> Backend:
        function: Any = import_module(module).flash_attn_varlen_func

        def kernel(q: Any, k: Any, v: Any, *sizes_and_scale: Any) -> Any:
            *sizes, scale = sizes_and_scale
            names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
            named = dict(zip(names, sizes, strict=True))
            return function(q, k, v, **named, softmax_scale=scale, causal=True)

        return _packed(kernel)

    return load


_LOADERS: dict[str, Callable[[], Backend]] = {
    "sdpa": lambda: sdpa,
    "dense": lambda: dense,
    "cudnn": _load_cudnn,
    "varlen": _load_varlen,
    "flash2": _load_flash("flash_attn"),
    "flash3": _load_flash("flash_attn_interface"),
    "flash4": _load_flash("flash_attn.cute"),
}
BACKENDS = tuple(_LOADERS)
ON_CPU = ("sdpa", "dense")
NOT_SPLIT = ("cudnn",)
"""Has no kernel for fewer queries than keys."""


def parts(name: str) -> list[str]:
    """`cudnn+flash2` -> ["cudnn", "flash2"]; of one backend, that."""
    return name.split("+", 1)


def _by_row(of_one: Backend, of_several: Backend) -> Backend:
    """Rows to extend with are single documents of one length, for which some kernels plan once and
    are fastest; rows of replay have others each time."""

    def backend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seq_lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        chosen = of_one if len(seq_lengths) == 1 else of_several
        return chosen(query, key, value, seq_lengths, scale)

    return backend


@cache
def load_backend(name: str) -> Backend:
    """A backend by name; of `one+other`, one is for rows of a single document, and other for rows
    of several. Raises LongRecipeError, saying why, when it is not installed here."""
    if len(names := parts(name)) == 2:
        return _by_row(*map(load_backend, names))
    if name not in _LOADERS:
        raise LongRecipeError(f"--attention {name} is unknown; choose auto, {', '.join(BACKENDS)}")
    try:
        return _LOADERS[name]()
    except (ImportError, AttributeError, OSError, RuntimeError) as problem:
        raise LongRecipeError(
            f"--attention {name} is not here ({one_line(problem)}); choose auto or sdpa"
        ) from None


@lru_cache(maxsize=64)
def cumulative(seq_lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Ends of the documents after a 0: int32 [documents + 1]. Made once for all layers of a row."""
    with torch.inference_mode(False):  # scoring may ask first, and backward keep them later
        ends = torch.tensor([0, *accumulate(seq_lengths)], dtype=torch.int32)
        if device.type == "cuda":  # else the copy would wait for all that the device has to do
            ends = ends.pin_memory()
        return ends.to(device, non_blocking=True)


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
