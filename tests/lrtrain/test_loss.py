"""The chunked loss is torch's full one, in value and gradients, and never holds all logits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from lrtrain.loss import chunked_weighted_cross_entropy


def some(
    tokens: int, width: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    weights = torch.rand(tokens) * (torch.rand(tokens) > 0.3)
    return hidden, weight, torch.randint(0, vocabulary, (tokens,)), weights


@settings(deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 16),
    vocabulary=st.integers(2, 50),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 10_000),
    factor=st.floats(0.1, 3.0),
)
def test_value_and_gradients(
    tokens: int, width: int, vocabulary: int, chunk: int, seed: int, factor: float
) -> None:
    hidden, weight, targets, weights = some(tokens, width, vocabulary, seed)
    loss = chunked_weighted_cross_entropy(hidden, weight, targets, weights, chunk)
    (loss * factor).backward()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    each = cross_entropy(exact_hidden @ exact_weight.T, targets, reduction="none")
    wanted = (each * weights.double()).sum()
    (wanted * factor).backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4, abs=1e-4)
    for ours, theirs in ((hidden, exact_hidden), (weight, exact_weight)):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)


def test_bf16_keeps_what_bf16_can_hold() -> None:
    hidden, weight, targets, weights = some(200, 32, 300, 0, torch.bfloat16)
    chunked_weighted_cross_entropy(hidden, weight, targets, weights, 16).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    each = cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    (each * weights.double()).sum().backward()
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.bfloat16
        error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 0.02


def test_no_gradient_is_made_where_none_is_asked_for() -> None:
    hidden, weight, targets, weights = some(9, 4, 11, 0)
    weight.requires_grad_(False)
    chunked_weighted_cross_entropy(hidden, weight, targets, weights, 4).backward()
    assert weight.grad is None
    with torch.no_grad():
        assert not chunked_weighted_cross_entropy(hidden, weight, targets, weights).requires_grad


def test_targets_of_weight_zero_cost_nothing_and_can_be_anything() -> None:
    hidden, weight, targets, weights = some(20, 4, 11, 1)
    weights[5] = 0.0
    hidden.data[5] = float("inf")
    loss = chunked_weighted_cross_entropy(hidden, weight, targets, weights, 6)
    loss.backward()
    assert torch.isfinite(loss)
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


class Largest(TorchDispatchMode):
    """Remembers the most rows that a tensor with the vocabulary as its last dimension had."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() > 1 and out.shape[-1] == self.vocabulary:
            self.rows = max(self.rows, out.numel() // self.vocabulary)
        return out


def test_logits_of_more_than_one_chunk_never_exist() -> None:
    hidden, weight, targets, _ = some(1000, 8, 777, 0)
    weights = torch.ones(1000)
    with Largest(777) as seen:
        chunked_weighted_cross_entropy(hidden, weight, targets, weights, 64).backward()
    assert seen.rows == 64
    with Largest(777) as seen:  # the watch works: torch's own makes all of them
        cross_entropy(hidden @ weight.T, targets).backward()
    assert seen.rows == 1000
