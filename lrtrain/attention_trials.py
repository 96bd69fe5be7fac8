"""The choice among kernels: each is tried on the device, whether it is right, and how fast.

Training and scoring take the fastest that is right; `python bench/gpu` shows all of them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lrdata.errors import LongRecipeError, one_line
from lrtrain.attention_backends import (
    BACKENDS,
    NOT_SPLIT,
    ON_CPU,
    Backend,
    dense,
    load_backend,
)

_TOLERANCE = 0.02
"""Largest error of bf16 that is taken, as a share of the largest value."""
_TIMED_TOKENS = 16_384
_REPETITIONS = 4


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
    """The name of the fastest backend that is right on this device, or of two, `one+other`, see
    `load_backend`; and why others that are installed were left out. On a CPU it is sdpa. Raises
    LongRecipeError when none is right."""
    if device.type == "cpu":
        return "sdpa", []
    one, several, problems = [], [], []
    for trial in try_backends(heads, device, dtype, split=split):
        if trial.seconds is not None and trial.packed_seconds is not None:
            one.append((trial.seconds, trial.name))
            several.append((trial.packed_seconds, trial.name))
        elif trial.installed:
            problems.append(f"{trial.name} left out: {trial.problem}")
    if not one:
        raise LongRecipeError(
            f"no attention backend is right on {device}: {'; '.join(problems)}; use --device cpu"
        )
    names = dict.fromkeys((min(one)[1], min(several)[1]))
    return "+".join(names), problems


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
