"""Every kernel equals the definition in float64; the choice is of those that do."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from lrdata.errors import LongRecipeError
from lrtrain import attention_backends
from lrtrain.attention_backends import (
    BACKENDS,
    ON_CPU,
    Heads,
    cumulative,
    dense,
    fastest,
    largest_errors,
    load_backend,
    sdpa,
    try_backends,
)

CPU = torch.device("cpu")
HEADS = Heads(query=4, key_value=2, width=32)
LENGTHS = ([700], [1, 1, 5, 5, 5], [130, 1, 300, 81], [256, 256])


@pytest.mark.parametrize("seq_lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", ON_CPU)
def test_errors_against_float64_on_a_cpu(name: str, seq_lengths: list[int]) -> None:
    backend = load_backend(name)
    assert max(largest_errors(backend, HEADS, CPU, torch.float32, seq_lengths)) < 1e-5
    assert 0 < max(largest_errors(backend, HEADS, CPU, torch.bfloat16, seq_lengths)) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [HEADS, Heads(4, 4, 64), Heads(8, 2, 128)], ids=str)
@pytest.mark.parametrize("seq_lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "dense"])
def test_errors_against_float64_on_a_gpu(name: str, seq_lengths: list[int], heads: Heads) -> None:
    try:
        backend = load_backend(name)
    except LongRecipeError as problem:
        pytest.skip(str(problem))
    device = torch.device("cuda")
    assert 0 < max(largest_errors(backend, heads, device, torch.bfloat16, seq_lengths)) < 0.02


@pytest.mark.gpu
def test_a_gpu_has_a_choice_and_takes_the_fastest() -> None:
    trials = list(try_backends(HEADS, torch.device("cuda"), torch.bfloat16, 4096))
    timed = {trial.name: trial.seconds for trial in trials if trial.seconds is not None}
    assert "sdpa" in timed
    assert fastest(HEADS, torch.device("cuda"), torch.bfloat16)[0] in timed


def _blind(q: Any, k: Any, v: Any, seq_lengths: Sequence[int], scale: float) -> torch.Tensor:
    return sdpa(q, k, v, [sum(seq_lengths)], scale)


def _unscaled(q: Any, k: Any, v: Any, seq_lengths: Sequence[int], scale: float) -> torch.Tensor:
    return dense(q, k, v, seq_lengths, scale * 1.1)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> torch.Tensor:
        return outer[0] * 0.9


def _wrong_backward(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
    return sdpa(q, _WrongGradient.apply(k), v, lengths, scale)


@pytest.mark.parametrize("wrong", [_blind, _unscaled, _wrong_backward])
def test_a_backend_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    monkeypatch.setitem(attention_backends._LOADERS, "wrong", lambda: wrong)
    monkeypatch.setattr(attention_backends, "BACKENDS", ("sdpa", "wrong"))
    monkeypatch.setattr(attention_backends, "ON_CPU", ("sdpa", "wrong"))
    trials = {trial.name: trial for trial in try_backends(HEADS, CPU, torch.float32, 64)}
    load_backend.cache_clear()
    assert trials["sdpa"].seconds is not None
    assert "off by" in str(trials["wrong"].problem)
    assert trials["wrong"].seconds is None


def test_what_is_not_installed_or_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this card\nand more")

    monkeypatch.setitem(attention_backends._LOADERS, "raises", lambda: raises)
    monkeypatch.setattr(attention_backends, "BACKENDS", ("flash3", "raises"))
    monkeypatch.setattr(attention_backends, "ON_CPU", ("flash3", "raises"))
    trials = {trial.name: trial for trial in try_backends(HEADS, CPU, torch.float32, 64)}
    load_backend.cache_clear()
    assert "flash3 is not here (No module named" in str(trials["flash3"].problem)
    assert trials["raises"].problem == "no kernel for this card and more"


class _Installed:
    """A module as a release of flash-attn has it; the arithmetic is that of `dense`."""

    def __init__(self, with_logsumexp: bool) -> None:
        self.with_logsumexp = with_logsumexp
        self.given: dict[str, Any] = {}

    def flash_attn_varlen_func(self, q: Any, k: Any, v: Any, **given: Any) -> Any:
        self.given = given
        lengths = given["cu_seqlens_q"].diff().tolist()
        parts = [x.transpose(0, 1)[None] for x in (q, k, v)]
        out = dense(parts[0], parts[1], parts[2], lengths, given["softmax_scale"])[0]
        return (out, None) if self.with_logsumexp else out


@pytest.mark.parametrize("with_logsumexp", [False, True])
@pytest.mark.parametrize("name", ["flash2", "flash3", "flash4"])
def test_how_flash_attention_is_called(
    name: str, with_logsumexp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own layout, causal, with the ends of documents as int32 and the longest of them."""
    module = _Installed(with_logsumexp)
    monkeypatch.setattr(attention_backends, "import_module", lambda _: module)
    load_backend.cache_clear()
    backend = load_backend(name)
    load_backend.cache_clear()
    assert max(largest_errors(backend, HEADS, CPU, torch.float32, [3, 9, 4])) < 1e-5
    given = module.given
    assert given["causal"] is True
    assert given["cu_seqlens_q"].tolist() == [0, 3, 12, 16]
    assert given["cu_seqlens_q"].dtype == torch.int32
    assert given["cu_seqlens_k"] is given["cu_seqlens_q"]
    assert given["max_seqlen_q"] == given["max_seqlen_k"] == 9


def test_how_torchs_varlen_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Module:
        @staticmethod
        def varlen_attn(
            query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
            *, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
        ) -> torch.Tensor:  # fmt: skip
            given.update(window_size=window_size, enable_gqa=enable_gqa, ends=cu_seq_q, max_q=max_q)
            parts = [x.transpose(0, 1)[None] for x in (query, key, value)]
            return dense(parts[0], parts[1], parts[2], cu_seq_q.diff().tolist(), scale)[0]

    monkeypatch.setattr(attention_backends, "import_module", lambda _: Module)
    load_backend.cache_clear()
    backend = load_backend("varlen")
    load_backend.cache_clear()
    assert max(largest_errors(backend, HEADS, CPU, torch.float32, [3, 9, 4])) < 1e-5
    assert given["window_size"] == (-1, 0)
    assert given["enable_gqa"] is True
    assert given["max_q"] == 9


_VARLEN = set(signature(varlen_attn).parameters)


def test_torchs_varlen_has_the_options_we_call_or_says_which_it_lacks() -> None:
    with (
        nullcontext()
        if {"scale", "window_size", "enable_gqa"} <= _VARLEN
        else pytest.raises(LongRecipeError, match="has no")
    ):
        load_backend("varlen")


def test_an_older_varlen_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def varlen_attn(query: Any, is_causal: bool = False) -> None: ...

    monkeypatch.setattr(attention_backends, "import_module", lambda _: Module)
    load_backend.cache_clear()
    with pytest.raises(LongRecipeError, match="has no enable_gqa, scale, window_size"):
        load_backend("varlen")
    load_backend.cache_clear()


def test_ends_are_made_once_for_all_layers() -> None:
    assert cumulative((2, 3), CPU) is cumulative((2, 3), CPU)
    assert cumulative((2, 3), CPU).tolist() == [0, 2, 5]


def _as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch, **loaders: Any) -> None:
    """The choice that a GPU is given, of these backends alone, made on a CPU."""
    for name, backend in loaders.items():
        monkeypatch.setitem(attention_backends._LOADERS, name, lambda backend=backend: backend)
    monkeypatch.setattr(attention_backends, "BACKENDS", (*loaders, "flash3"))
    real = try_backends

    def on_the_cpu(heads: Heads, device: torch.device, dtype: torch.dtype) -> Any:
        monkeypatch.setattr(attention_backends, "ON_CPU", attention_backends.BACKENDS)
        return real(heads, CPU, torch.float32, 256)

    monkeypatch.setattr(attention_backends, "try_backends", on_the_cpu)


def test_the_fastest_of_those_that_are_right_is_taken_and_others_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
        time.sleep(0.1)
        return sdpa(q, k, v, lengths, scale)

    load_backend.cache_clear()
    _as_if_on_a_gpu(monkeypatch, slow=slow, sdpa=sdpa, wrong=_unscaled)
    name, problems = fastest(HEADS, torch.device("cuda"), torch.float32)
    load_backend.cache_clear()
    assert name == "sdpa"
    (problem,) = problems
    assert problem.startswith("wrong left out: its values are off by"), "flash3 is not installed"


def test_no_backend_that_is_right_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load_backend.cache_clear()
    _as_if_on_a_gpu(monkeypatch, blind=_blind)
    with pytest.raises(LongRecipeError, match=r"no attention backend is right on cuda: blind left"):
        fastest(HEADS, torch.device("cuda"), torch.float32)
    load_backend.cache_clear()


@pytest.mark.parametrize("tokens", [1, 2, 5, 256, 16_384])
def test_many_documents_sum_to_the_tokens(tokens: int) -> None:
    lengths = attention_backends._many_documents(tokens)
    assert sum(lengths) == tokens
    assert min(lengths) >= 1
    assert tokens < 1000 or len(set(lengths)) > 10
