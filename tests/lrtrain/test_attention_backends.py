"""Every kernel equals the definition in float64."""

from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn

from lrdata.errors import LongRecipeError
from lrtrain import attention_backends
from lrtrain.attention_backends import (
    BACKENDS,
    ON_CPU,
    Backend,
    cudnn,
    cumulative,
    dense,
    load_backend,
    sdpa,
)
from lrtrain.attention_trials import Heads, largest_errors

CPU = torch.device("cpu")
HEADS = Heads(query=4, key_value=2, width=32)
LENGTHS = ([700], [1, 1, 5, 5, 5], [130, 1, 320, 81], [256, 256])


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
@pytest.mark.parametrize("heads", [HEADS, Heads(8, 2, 128)], ids=str)
@pytest.mark.parametrize("lacking", [1, 70, 129])
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "dense"])
def test_errors_without_the_first_queries_on_a_gpu(name: str, lacking: int, heads: Heads) -> None:
    try:
        backend = load_backend(name)
    except LongRecipeError as problem:
        pytest.skip(str(problem))
    device = torch.device("cuda")
    assert 0 < max(largest_errors(backend, heads, device, torch.bfloat16, lacking=lacking)) < 0.02


def _kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """What kernels for packed documents do, [S, H, D] each: the last query of a document sees all
    its keys, the one before it all but the last."""
    out = []
    documents = zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True)
    for (first_q, last_q), (first_k, last_k) in documents:
        query = q[first_q:last_q]
        key, value = (
            x[first_k:last_k].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)
        )
        logits = torch.einsum("ihd,jhd->hij", query, key) * scale
        unseen = torch.ones(len(query), len(key)).triu(len(key) - len(query) + 1).bool()
        weights = logits.masked_fill(unseen, float("-inf")).softmax(-1)
        out.append(torch.einsum("hij,jhd->ihd", weights, value))
    return torch.cat(out)


class _Installed:
    """A module as a release of flash-attn has it."""

    def __init__(self, with_logsumexp: bool) -> None:
        self.with_logsumexp = with_logsumexp
        self.given: dict[str, Any] = {}

    def flash_attn_varlen_func(self, q: Any, k: Any, v: Any, **given: Any) -> Any:
        self.given = given
        ends = given["cu_seqlens_q"], given["cu_seqlens_k"]
        out = _kernel(q, k, v, *ends, given["softmax_scale"])
        return (out, None) if self.with_logsumexp else out


def _loaded(name: str, module: Any) -> Backend:
    """A backend whose module is this one."""
    load_backend.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_backends, "import_module", lambda _: module)
        backend = load_backend(name)
    load_backend.cache_clear()
    return backend


@pytest.mark.parametrize("with_logsumexp", [False, True])
@pytest.mark.parametrize("name", ["flash2", "flash3", "flash4"])
def test_how_flash_attention_is_called(name: str, with_logsumexp: bool) -> None:
    """In its own layout, causal, with the ends of documents as int32 and the longest of them."""
    module = _Installed(with_logsumexp)
    backend = _loaded(name, module)
    assert max(largest_errors(backend, HEADS, CPU, torch.float32, [3, 9, 4])) < 1e-5
    given = module.given
    assert given["causal"] is True
    assert given["cu_seqlens_q"].tolist() == [0, 3, 12, 16]
    assert given["cu_seqlens_q"].dtype == torch.int32
    assert given["cu_seqlens_k"] is given["cu_seqlens_q"]
    assert given["max_seqlen_q"] == given["max_seqlen_k"] == 9
    lacking = largest_errors(backend, HEADS, CPU, torch.float32, [9, 3, 4], lacking=7)
    assert max(lacking) < 1e-5
    given = module.given
    assert given["causal"] is True
    assert given["cu_seqlens_q"].tolist() == [0, 2, 5, 9]
    assert given["cu_seqlens_k"].tolist() == [0, 9, 12, 16]
    assert given["cu_seqlens_q"].dtype == given["cu_seqlens_k"].dtype == torch.int32
    assert (given["max_seqlen_q"], given["max_seqlen_k"]) == (4, 9)


class _Torchs:
    """torch's module as the versions have it that are used."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def varlen_attn(
        self, query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int,
        max_k: int, *, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        self.given = {
            "window_size": window_size,
            "enable_gqa": enable_gqa,
            "ends": (cu_seq_q, cu_seq_k),
            "most": (max_q, max_k),
        }
        return _kernel(query, key, value, cu_seq_q, cu_seq_k, scale)


def test_how_torchs_varlen_is_called() -> None:
    module = _Torchs()
    backend = _loaded("varlen", module)
    assert max(largest_errors(backend, HEADS, CPU, torch.float32, [3, 9, 4])) < 1e-5
    given = module.given
    assert given["window_size"] == (-1, 0)
    assert given["enable_gqa"] is True
    assert given["most"] == (9, 9)
    assert given["ends"][0] is given["ends"][1]
    assert given["ends"][0].tolist() == [0, 3, 12, 16]
    lacking = largest_errors(backend, HEADS, CPU, torch.float32, [9, 3, 4], lacking=7)
    assert max(lacking) < 1e-5
    given = module.given
    assert given["window_size"] == (-1, 0)
    assert given["most"] == (4, 9)
    assert [ends.tolist() for ends in given["ends"]] == [[0, 2, 5, 9], [0, 9, 12, 16]]
    assert {ends.dtype for ends in given["ends"]} == {torch.int32}


# Fewer queries than keys


def _any_backend(name: str) -> Backend:
    """The real one where it runs on a CPU, else one over the arithmetic of `_kernel`."""
    if name in ON_CPU:
        return load_backend(name)
    return _loaded(name, _Torchs() if name == "varlen" else _Installed(name == "flash2"))


@pytest.mark.parametrize("name", [*ON_CPU, "varlen", "flash2", "flash4"])
@settings(max_examples=60)
@given(
    seq_lengths=st.lists(st.sampled_from([1, 2, 3, 5, 9, 17]), min_size=1, max_size=6),
    part=st.floats(0, 1, exclude_max=True),
    heads=st.sampled_from([Heads(1, 1, 16), Heads(2, 1, 4), Heads(3, 3, 4), Heads(8, 2, 16)]),
    scale=st.floats(0.05, 2.0),
)
def test_the_last_queries_alone_are_rows_of_the_full_result(
    name: str, seq_lengths: list[int], part: float, heads: Heads, scale: float
) -> None:
    """Of `dense` with all queries in float64; so are gradients, where none comes from those that
    are lacking."""
    lacking = int(part * seq_lengths[0])
    tokens = sum(seq_lengths)
    generator = torch.Generator().manual_seed(tokens)
    full = [
        torch.randn(1, h, tokens, heads.width, generator=generator, dtype=torch.float64)
        for h in (heads.query, heads.key_value, heads.key_value)
    ]
    outer = torch.randn(1, tokens, heads.query, heads.width, generator=generator).double()
    outer[:, :lacking] = 0.0
    exact = [x.clone().requires_grad_() for x in full]
    expected = dense(exact[0], exact[1], exact[2], seq_lengths, scale)
    wanted = list(torch.autograd.grad(expected, exact, outer))
    wanted[0] = wanted[0][:, :, lacking:]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        own = [full[0][:, :, lacking:], *full[1:]]
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in own]
        out = _any_backend(name)(inputs[0], inputs[1], inputs[2], seq_lengths, scale)
        assert out.shape == (1, tokens - lacking, heads.query, heads.width)
        assert out.dtype == dtype
        found = torch.autograd.grad(out, inputs, outer[:, lacking:].to(dtype))
        pairs = zip([out, *found], [expected[:, lacking:], *wanted], strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def unscaled(q: Any, k: Any, v: Any, seq_lengths: Sequence[int], scale: float) -> torch.Tensor:
    return dense(q, k, v, seq_lengths, scale * 1.1)


@pytest.mark.parametrize("lacking", [0, 1, 129])
@pytest.mark.parametrize("name", ON_CPU)
def test_errors_without_the_first_queries(name: str, lacking: int) -> None:
    backend = load_backend(name)
    assert max(largest_errors(backend, HEADS, CPU, torch.float32, lacking=lacking)) < 1e-5
    assert max(largest_errors(unscaled, HEADS, CPU, torch.float32, lacking=lacking)) > 1e-3


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


def test_ends_that_were_made_in_scoring_can_be_kept_for_backward() -> None:
    with torch.inference_mode():
        cumulative((7, 11), CPU)
    scale = torch.ones((), requires_grad=True)
    (scale * cumulative((7, 11), CPU)).sum().backward()
    assert scale.grad == 25


# cuDNN


@pytest.mark.parametrize("version", [None, 91_002, 91_500])
def test_a_cudnn_that_torch_keeps_away_from_is_not_there(
    version: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    load_backend.cache_clear()
    with pytest.raises(LongRecipeError, match=f"cuDNN above 91500, here is {version or 'none'}"):
        load_backend("cudnn")


def test_a_newer_cudnn_is_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_501)
    load_backend.cache_clear()
    assert load_backend("cudnn") is cudnn
    load_backend.cache_clear()


class _OnAGpu(torch.Tensor):
    is_cuda = True


@pytest.mark.parametrize(
    ("backend", "kernels"), [(sdpa, {"flash", "mem_efficient", "math"}), (cudnn, {"cudnn"})]
)
def test_two_backends_have_no_kernel_in_common(
    backend: Backend, kernels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own switches; or cuDNN, that torch prefers where it may, would be both."""
    seen = list[set[str]]()

    def enabled() -> set[str]:
        names = ("cudnn", "flash", "mem_efficient", "math")
        return {name for name in names if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()}

    def attend(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(enabled())
        return torch.zeros_like(query)

    before = enabled()
    monkeypatch.setattr(attention_backends.F, "scaled_dot_product_attention", attend)
    query, key, value = (torch.zeros(1, 2, 8, 4).as_subclass(_OnAGpu) for _ in range(3))
    backend(query, key, value, [5, 3], 1.0)
    assert seen == [kernels] * 2
    assert enabled() == before
