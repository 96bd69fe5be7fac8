"""Kernels for causal attention inside each document of a flat row, and the choice among them.

Shape legend: Hq / Hkv query and key-value heads (Hq a multiple of Hkv), S tokens, D head width.
Every backend takes query [1, Hq, S, D], key and value [1, Hkv, S, D], the documents' lengths, which
sum to S, and the factor on the logits, and returns [1, S, Hq, D]. Queries may be fewer than keys:
then they are those of the last tokens, and what they lack is the beginning of the first document
(of a row that is split over ranks, see `lrtrain.context_parallel`).
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrdata.errors import LongRecipeError, one_line

Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[int], float], torch.Tensor]

_TOLERANCE = 0.02
"""Largest error of bf16 that is taken, as a share of the largest value."""
_TIMED_TOKENS = 16_384
_REPETITIONS = 4
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


@cache
def load_backend(name: str) -> Backend:
    """A backend by name. Raises LongRecipeError, saying why, when it is not installed here."""
    if name not in _LOADERS:
        raise LongRecipeError(f"--attention {name} is unknown; choose auto, {', '.join(BACKENDS)}")
    try:
        return _LOADERS[name]()
    except (ImportError, AttributeError, OSError, RuntimeError) as problem:
        raise LongRecipeError(
            f"--attention {name} is not here ({one_line(problem)}); choose auto or sdpa"
        ) from None


@dataclass(frozen=True)
class Heads:
    """The shape of a model's attention."""

    query: int
    key_value: int
    width: int


@dataclass(frozen=True)
class Trial:
    """How a backend did: seconds of a forward and backward pass over one document, and over as
    many tokens of many, or why it is not used."""

    name: str
    seconds: float | None = None
    packed_seconds: float | None = None
    problem: str | None = None
    installed: bool = True


def try_backends(
    heads: Heads,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int = _TIMED_TOKENS,
    split: bool = False,
) -> Iterator[Trial]:
    """Try every backend but `dense` on a device: is it right, and how fast.

    Output and gradients on packed documents must be those of `dense` in float64, as training calls
    it, and with `split` also where the first document lacks queries; the times are those of
    `tokens` tokens.
    """
    for name in BACKENDS:
        if name == "dense" or (device.type == "cpu" and name not in ON_CPU):
            continue
        if split and name in NOT_SPLIT:
            yield Trial(name, problem="it would make a mask of a piece of a row")
            continue
        try:
            backend = load_backend(name)
        except LongRecipeError as problem:
            yield Trial(name, problem=str(problem), installed=False)
            continue
        try:
            error = max(
                max(largest_errors(backend, heads, device, dtype, lacking=lacking))
                for lacking in ((0, 70) if split else (0,))
            )
            if not error < _TOLERANCE:
                yield Trial(name, problem=f"its values are off by {error:.3g}")
                continue
            same = [[tokens]] * _REPETITIONS  # rows to extend with are all as long
            one = _seconds(backend, heads, device, dtype, same, tokens // 2 if split else 0)
            others = [_many_documents(tokens, number) for number in range(_REPETITIONS)]
            yield Trial(name, one, _seconds(backend, heads, device, dtype, others))
        except Exception as problem:  # a kernel may refuse a card or a shape in any way it likes
            yield Trial(name, problem=one_line(problem))


def fastest(
    heads: Heads, device: torch.device, dtype: torch.dtype, split: bool = False
) -> tuple[str, list[str]]:
    """The name of the fastest backend that is right on this device, and why others that are
    installed were left out; on a CPU it is sdpa. Raises LongRecipeError when none is right."""
    if device.type == "cpu":
        return "sdpa", []
    timed, problems = [], []
    for trial in try_backends(heads, device, dtype, split=split):
        if trial.seconds is not None and trial.packed_seconds is not None:
            timed.append((trial.seconds + trial.packed_seconds, trial.name))
        elif trial.installed:
            problems.append(f"{trial.name} left out: {trial.problem}")
    if not timed:
        raise LongRecipeError(
            f"no attention backend is right on {device}: {'; '.join(problems)}; use --device cpu"
        )
    return min(timed)[1], problems


def largest_errors(
    backend: Backend,
    heads: Heads,
    device: torch.device,
    dtype: torch.dtype,
    seq_lengths: Sequence[int] = (130, 1, 320, 81, 1100),
    lacking: int = 0,
) -> tuple[float, float, float, float]:
    """Largest error of a backend against `dense` in float64, as a share of the largest value: of
    the output and of the gradients of query, key and value. lacking: queries of the first document
    that are not there.

    At two scales in turn, as rows of two stages have them: a kernel may remember the first.
    """
    inputs = _inputs(heads, sum(seq_lengths), device, dtype, lacking)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    errors = []
    for factor in (1.0, 0.5):
        scale = factor * heads.width**-0.5
        found = _values(backend, inputs, seq_lengths, scale)
        wanted = _values(dense, exact, seq_lengths, scale)
        errors.append([_error(x, y) for x, y in zip(found, wanted, strict=True)])
    out, query, key, value = map(max, *errors)
    return out, query, key, value


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    return float(error.nan_to_num(math.inf))  # of two numbers NaN is not always the largest


def _values(
    backend: Backend, inputs: Sequence[torch.Tensor], seq_lengths: Sequence[int], scale: float
) -> list[torch.Tensor]:
    """The output and the gradients of the inputs for an output gradient of fixed random values."""
    out = backend(inputs[0], inputs[1], inputs[2], seq_lengths, scale)
    generator = torch.Generator().manual_seed(1)
    outer = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(out, inputs, outer.to(out.device, out.dtype))
    return [out.detach(), *gradients]


def _inputs(
    heads: Heads, tokens: int, device: torch.device, dtype: torch.dtype, lacking: int = 0
) -> list[torch.Tensor]:
    """Query, key and value as a model has them: [1, S, H, D] transposed. Keys and values for fewer
    queries were gathered, and are not."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens - lacking, heads.query), *[(tokens, heads.key_value)] * 2)
    drawn = [torch.randn(1, *shape, heads.width, generator=generator) for shape in shapes]
    query, key, value = (x.transpose(1, 2).to(device, dtype) for x in drawn)
    if lacking:
        key, value = key.contiguous(), value.contiguous()
    return [x.requires_grad_() for x in (query, key, value)]


def _seconds(
    backend: Backend,
    heads: Heads,
    device: torch.device,
    dtype: torch.dtype,
    rows: Sequence[Sequence[int]],
    lacking: int = 0,
) -> float:
    """Of a forward and backward pass over a row of these documents; the best of all after the
    first, which loads kernels."""
    inputs = _inputs(heads, sum(rows[0]), device, dtype, lacking)
    times = []
    for seq_lengths in rows:
        _wait(device)
        started = time.perf_counter()
        out = backend(inputs[0], inputs[1], inputs[2], seq_lengths, heads.width**-0.5)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _many_documents(tokens: int, row: int) -> list[int]:
    """Lengths of documents as replay rows have them, each another, summing to `tokens`. Of another
    row they are others: a kernel that is planned anew for each length takes longer there."""
    lengths, left = list[int](), tokens
    while left > 2 * (len(lengths) + 1):
        lengths.append(min(left // 2, 100 + row + 7 * len(lengths)))
        left -= lengths[-1]
    return [*lengths, left] if left else lengths


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
