"""What is chosen is the fastest of the kernels that are right, on whatever device."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lrdata.errors import LongRecipeError
from lrtrain import attention, attention_backends, attention_trials
from lrtrain.attention import choose_backend
from lrtrain.attention_backends import Backend, load_backend, sdpa
from lrtrain.attention_trials import Heads, fastest, try_backends
from tests.lrtrain.test_attention_backends import unscaled

CPU = torch.device("cpu")
HEADS = Heads(query=4, key_value=2, width=32)


@pytest.mark.gpu
def test_a_gpu_has_a_choice_and_takes_the_fastest() -> None:
    trials = list(try_backends(HEADS, torch.device("cuda"), torch.bfloat16, 4096))
    timed = {trial.name: trial.seconds for trial in trials if trial.seconds is not None}
    assert "sdpa" in timed
    chosen = fastest(HEADS, torch.device("cuda"), torch.bfloat16)[0]
    assert set(attention_backends.parts(chosen)) <= set(timed)


def _blind(q: Any, k: Any, v: Any, seq_lengths: Sequence[int], scale: float) -> torch.Tensor:
    return sdpa(q, k, v, [sum(seq_lengths)], scale)


class _Gradient(torch.autograd.Function):
    """x, whose gradient is so many times what it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        return outer[0] * ctx.factor, None


def _wrong_backward(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
    return sdpa(q, _Gradient.apply(k, 0.9), v, lengths, scale)


def _nan_backward(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
    return sdpa(q, k, _Gradient.apply(v, float("nan")), lengths, scale)


def _in_one_piece(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
    """As if values lay in memory as [1, H, S, D], which those of a model do not."""
    strides = torch.empty(v.shape, device="meta").stride()
    return sdpa(q, k, v.as_strided(v.shape, strides), lengths, scale)


class _Remembering:
    """Plans a kernel for each shape, with the scale in it."""

    def __init__(self) -> None:
        self.scales = dict[Any, float]()

    def __call__(
        self, q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float
    ) -> torch.Tensor:
        return sdpa(q, k, v, lengths, self.scales.setdefault((q.shape, *lengths), scale))


WRONG = [_blind, unscaled, _wrong_backward, _nan_backward, _in_one_piece, _Remembering()]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_backend_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    monkeypatch.setitem(attention_backends._LOADERS, "wrong", lambda: wrong)
    monkeypatch.setattr(attention_trials, "BACKENDS", ("sdpa", "wrong"))
    monkeypatch.setattr(attention_trials, "ON_CPU", ("sdpa", "wrong"))
    trials = {trial.name: trial for trial in try_backends(HEADS, CPU, torch.float32, 64)}
    load_backend.cache_clear()
    assert trials["sdpa"].seconds is not None
    assert "off by" in str(trials["wrong"].problem)
    assert trials["wrong"].seconds is None


def _from_the_first_key(
    q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float
) -> torch.Tensor:
    """As if queries that are fewer than keys were the first of them and not the last."""
    own = lengths[0] - k.shape[2] + q.shape[2]
    out = sdpa(q[:, :, :own], k[:, :, :own], v[:, :, :own], [own], scale)
    if len(lengths) == 1:
        return out
    keys, values = (x[:, :, lengths[0] :] for x in (k, v))
    return torch.cat([out, sdpa(q[:, :, own:], keys, values, lengths[1:], scale)], 1)


@pytest.mark.parametrize("split", [False, True])
def test_a_backend_that_is_wrong_on_pieces_of_rows_is_not_used_for_them(
    split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention_backends._LOADERS, "wrong", lambda: _from_the_first_key)
    monkeypatch.setattr(attention_trials, "BACKENDS", ("sdpa", "wrong"))
    monkeypatch.setattr(attention_trials, "ON_CPU", ("sdpa", "wrong"))
    found = try_backends(HEADS, CPU, torch.float32, 64, split=split)
    trials = {trial.name: trial for trial in found}
    load_backend.cache_clear()
    assert trials["sdpa"].seconds is not None
    assert ("off by" in str(trials["wrong"].problem)) == split
    assert (trials["wrong"].seconds is None) == split


def test_what_is_not_installed_or_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this card\nand more")

    monkeypatch.setitem(attention_backends._LOADERS, "raises", lambda: raises)
    monkeypatch.setattr(attention_trials, "BACKENDS", ("flash3", "raises"))
    monkeypatch.setattr(attention_trials, "ON_CPU", ("flash3", "raises"))
    trials = {trial.name: trial for trial in try_backends(HEADS, CPU, torch.float32, 64)}
    load_backend.cache_clear()
    assert "flash3 is not here (No module named" in str(trials["flash3"].problem)
    assert trials["raises"].problem == "no kernel for this card and more"


def _as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch, **loaders: Any) -> None:
    """The choice that a GPU is given, of these backends alone, made on a CPU."""
    for name, backend in loaders.items():
        monkeypatch.setitem(attention_backends._LOADERS, name, lambda backend=backend: backend)
    monkeypatch.setattr(attention_trials, "BACKENDS", (*loaders, "flash3"))
    real = try_backends

    def on_the_cpu(heads: Heads, device: torch.device, dtype: torch.dtype, *, split: bool) -> Any:
        monkeypatch.setattr(attention_trials, "ON_CPU", attention_trials.BACKENDS)
        return real(heads, CPU, torch.float32, 256, split)

    monkeypatch.setattr(attention_trials, "try_backends", on_the_cpu)


def test_the_fastest_of_those_that_are_right_is_taken_and_others_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_backend.cache_clear()
    _as_if_on_a_gpu(monkeypatch, slow=_after(lambda _: 0.1), sdpa=sdpa, wrong=unscaled)
    name, problems = fastest(HEADS, torch.device("cuda"), torch.float32)
    load_backend.cache_clear()
    assert name == "sdpa"
    (problem,) = problems
    assert problem.startswith("wrong left out: its values are off by"), "flash3 is not installed"


def test_what_is_fastest_for_rows_that_are_split_is_right_on_pieces_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_backend.cache_clear()
    _as_if_on_a_gpu(monkeypatch, slow=_after(lambda _: 0.1), other=_from_the_first_key)
    gpu = torch.device("cuda")
    assert fastest(HEADS, gpu, torch.float32) == ("other", [])
    name, problems = fastest(HEADS, gpu, torch.float32, split=True)
    assert choose_backend("auto", HEADS, gpu, torch.float32).split()[0] == "other"
    chosen = choose_backend("auto", HEADS, gpu, torch.float32, split=True)
    load_backend.cache_clear()
    assert name == "slow"
    (problem,) = problems
    assert problem.startswith("other left out: its values are off by")
    assert chosen.startswith("slow (other left out: its values are off by")


def test_no_backend_that_is_right_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load_backend.cache_clear()
    _as_if_on_a_gpu(monkeypatch, blind=_blind)
    with pytest.raises(LongRecipeError, match=r"no attention backend is right on cuda: blind left"):
        fastest(HEADS, torch.device("cuda"), torch.float32)
    load_backend.cache_clear()


@pytest.mark.parametrize("tokens", [1, 2, 5, 256, 16_384])
def test_many_documents_sum_to_the_tokens(tokens: int) -> None:
    rows = [attention_trials._many_documents(tokens, row) for row in range(4)]
    for lengths in rows:
        assert sum(lengths) == tokens
        assert min(lengths) >= 1
        assert tokens < 1000 or len(set(lengths)) > 10
    assert tokens < 1000 or not set(rows[0]) & set(rows[1]) & set(rows[2])


def _after(seconds: Callable[[Sequence[int]], float]) -> Backend:
    def backend(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
        time.sleep(seconds(lengths))
        return sdpa(q, k, v, lengths, scale)

    return backend


def test_a_backend_that_takes_its_time_for_each_new_length_is_for_rows_that_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = set[tuple[int, ...]]()

    def plan(lengths: Sequence[int]) -> float:
        new = tuple(lengths) not in known
        known.add(tuple(lengths))
        return 0.1 if new else 0.0

    load_backend.cache_clear()
    _as_if_on_a_gpu(monkeypatch, planned=_after(plan), steady=_after(lambda _: 0.005))
    name, _ = fastest(HEADS, torch.device("cuda"), torch.float32)
    load_backend.cache_clear()
    assert name == "planned+steady"


def test_rows_of_one_document_and_of_several_have_their_own_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuDNN plans each new length: nothing is faster where all rows are as long."""
    used = list[str]()

    def noted(name: str, seconds: Callable[[Sequence[int]], float]) -> Backend:
        def backend(q: Any, k: Any, v: Any, lengths: Sequence[int], scale: float) -> torch.Tensor:
            used.append(name)
            return _after(seconds)(q, k, v, lengths, scale)

        return backend

    load_backend.cache_clear()
    one = noted("one", lambda lengths: 0.1 * (len(lengths) > 1))
    several = noted("several", lambda lengths: 0.02)
    _as_if_on_a_gpu(monkeypatch, one=one, several=several)
    monkeypatch.setattr(attention, "_chosen", sdpa)
    name = choose_backend("auto", HEADS, torch.device("cuda"), torch.float32)
    assert name == "one+several"
    for lengths, expected in (([64], "one"), ([40, 24], "several")):
        query, key, value = attention_trials._inputs(HEADS, 64, CPU, torch.float32)
        used.clear()
        found = attention._chosen(query, key, value, lengths, 0.1)
        assert used == [expected]
        torch.testing.assert_close(found, sdpa(query, key, value, lengths, 0.1))
    with pytest.raises(LongRecipeError, match="--attention nine is unknown"):
        load_backend("one+nine")
    load_backend.cache_clear()
    with pytest.raises(LongRecipeError, match=r"--attention sdpa\+cudnn needs a GPU"):
        choose_backend("sdpa+cudnn")
    with pytest.raises(LongRecipeError, match="cannot take a row in pieces"):
        choose_backend("cudnn+sdpa", None, torch.device("cuda"), split=True)
