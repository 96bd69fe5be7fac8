"""AdamW over master weights is torch's and goes on from its state; schedules end as they say."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lrdata.errors import LongRecipeError
from lrtrain import optim
from lrtrain.optim import AdamW
from lrtrain.schedules import FLOOR, linear_to_zero, warmup_then


def a_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)).to(dtype)


def backward(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    dtype = next(model.parameters()).dtype
    (model(torch.randn(5, 8, dtype=dtype)) ** 2).sum().backward()


def test_fp32_is_torchs_adamw_bit_for_bit() -> None:
    ours, theirs = a_model(), a_model()
    optimizer = AdamW(ours, 1e-2, (0.9, 0.95), weight_decay=0.1)
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    vectors = [p for p in theirs.parameters() if p.dim() <= 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    for step in range(5):
        backward(ours, step)
        backward(theirs, step)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert torch.equal(optimizer.gradient_norm(), norm)
        optimizer.step(1.0, norm, clip=0.5)
        adam.step()
        adam.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None


def test_many_small_bf16_gradients_add_up() -> None:
    """256 equal gradients: in bf16 the sum would stop growing long before."""
    model = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0)
    batch = torch.full((1, 4), 1.0, dtype=torch.bfloat16)
    plain = torch.zeros(1, 4, dtype=torch.bfloat16)
    for _ in range(1000):
        model(batch).sum().backward()
        plain += 1.0
    assert model.weight.grad is None  # freed as it comes
    (gradient,) = optimizer.gradients()
    assert torch.equal(gradient, torch.full((1, 4), 1000.0))
    assert float(plain[0, 0]) < 300  # what would have happened


def test_256_micro_batches_in_bf16_are_the_float64_sum() -> None:
    """Gradients of a real backward, of mixed sizes and signs, against adding them up in bf16."""
    model = nn.Linear(16, 8, bias=False).to(torch.bfloat16)
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0)
    generator = torch.Generator().manual_seed(3)
    exact = torch.zeros(8, 16, dtype=torch.float64)
    plain = torch.zeros(8, 16, dtype=torch.bfloat16)
    for _ in range(256):
        batch = (torch.randn(1, 16, generator=generator) + 0.5).bfloat16()
        outer = (torch.randn(8, generator=generator) + 0.5).bfloat16()
        (model(batch)[0] * outer).sum().backward()
        one = (outer[:, None] * batch).bfloat16()  # one token: exact but for one rounding
        exact += one.double()
        plain += one
    (gradient,) = optimizer.gradients()
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-4)
    assert (plain.double() - exact).norm() > 1e-2 * exact.norm()  # what would have happened
    assert optimizer.gradient_norm().item() == pytest.approx(exact.norm().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clipping_scales_all_gradients_to_the_limit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam hides a common factor: so look at the gradients that it is given."""
    model = a_model(dtype)
    optimizer = AdamW(model, 0.0, (0.9, 0.95), 0.0)
    seen: list[torch.Tensor] = []
    adamw = optim.adamw

    def watched(parameters: Any, gradients: list[torch.Tensor], *rest: Any, **options: Any) -> None:
        seen.extend(gradient.clone() for gradient in gradients)
        adamw(parameters, gradients, *rest, **options)

    monkeypatch.setattr(optim, "adamw", watched)
    for clip, share in ((0.5, 0.5), (1e9, None), (0.0, None)):
        seen.clear()
        backward(model, 0)
        norm = optimizer.gradient_norm()
        assert norm > 1
        optimizer.step(1.0, norm, clip)
        after = torch.cat([grad.flatten() for grad in seen]).norm()
        assert after.item() == pytest.approx(share or norm.item(), rel=1e-4)


def test_the_factor_scales_the_peak_rate_and_vectors_do_not_decay() -> None:
    """With no gradient only decay moves parameters: by lr x factor x decay, matrices alone."""
    model = a_model()
    optimizer = AdamW(model, 0.1, (0.9, 0.95), weight_decay=0.5)
    for factor in (0.0, 0.2):
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step(factor, optimizer.gradient_norm(), clip=1.0)
        for p, old in zip(model.parameters(), before, strict=True):
            shrunk = old * (1 - 0.1 * factor * 0.5) if p.dim() > 1 else old
            torch.testing.assert_close(p.detach(), shrunk, rtol=1e-6, atol=0)


def test_bf16_parameters_are_their_masters_rounded() -> None:
    ours, theirs = a_model(torch.bfloat16), a_model(torch.bfloat16).float()
    optimizer = AdamW(ours, 1e-2, (0.9, 0.95), 0.0)
    adam = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for step in range(3):
        backward(ours, step)
        for p, gradient in zip(theirs.parameters(), optimizer.gradients(), strict=True):
            p.grad = gradient.clone()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
        adam.step()
    for p, exact in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, exact.bfloat16())


def test_frozen_parameters_stay() -> None:
    model = a_model()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    optimizer = AdamW(model, 1e-2, (0.9, 0.95), 0.1)
    backward(model, 0)
    optimizer.step(1.0, optimizer.gradient_norm(), clip=1.0)
    assert torch.equal(frozen, before)


def test_steps_below_a_bf16_digit_add_up_too() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    model.weight.data.fill_(1.0)
    optimizer = AdamW(model, 1e-4, (0.9, 0.95), 0.0)
    for _ in range(100):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
    assert float(model.weight.detach()) == pytest.approx(0.99, abs=2e-3)


def test_a_closed_optimizer_leaves_the_model_alone() -> None:
    model = a_model(torch.bfloat16)
    AdamW(model, 1e-3, (0.9, 0.95), 0.0).close()
    backward(model, 0)
    assert all(parameter.grad is not None for parameter in model.parameters())


# What a checkpoint keeps of it


def trained(model: nn.Module, optimizer: AdamW, steps: Iterable[int]) -> list[torch.Tensor]:
    """All parameters and masters after each step; each has its own batch and rate."""
    seen = []
    for step in steps:
        backward(model, step)
        optimizer.step(1 / (1 + step), optimizer.gradient_norm(), clip=0.5)
        seen += [t.detach().clone() for t in (*model.parameters(), *optimizer.masters())]
    return seen


def an_optimizer(model: nn.Module) -> AdamW:
    return AdamW(model, 1e-2, (0.9, 0.95), weight_decay=0.1)


def kept(optimizer: AdamW) -> dict[str, torch.Tensor]:
    """The state as a file has it: without ties to the optimizer."""
    return {name: tensor.detach().clone() for name, tensor in optimizer.state()}


def another_model(dtype: torch.dtype) -> nn.Module:
    """Of the same shape, with other numbers."""
    model = a_model()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_loaded_optimizer_goes_on_bit_for_bit(dtype: torch.dtype, done: int) -> None:
    model = a_model(dtype)
    optimizer = an_optimizer(model)
    trained(model, optimizer, range(done))
    state, before = kept(optimizer), [p.detach().clone() for p in model.parameters()]
    other = another_model(dtype)
    loaded = an_optimizer(other)
    loaded.load(state.items())
    for one, two in zip(before, other.parameters(), strict=True):
        assert torch.equal(one, two), "a parameter is not what it was"
    whole = trained(model, optimizer, range(done, done + 6))
    resumed = trained(other, loaded, range(done, done + 6))
    assert all(torch.equal(one, two) for one, two in zip(whole, resumed, strict=True))
    ends = kept(optimizer), kept(loaded)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_bf16_cannot_hold_is_kept() -> None:
    """From the parameters alone the masters would start again at rounded numbers."""
    model = a_model(torch.bfloat16)
    optimizer = an_optimizer(model)
    trained(model, optimizer, range(3))
    state = kept(optimizer)
    assert all(tensor.dtype == torch.float32 for name, tensor in state.items() if name != "steps")
    assert any(
        not torch.equal(tensor, tensor.bfloat16().float())
        for name, tensor in state.items()
        if name.startswith("master.")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_half_done_step_is_not_in_the_state(dtype: torch.dtype) -> None:
    """A run stops between two micro-batches: gradients are there, the next run makes them anew."""
    model = a_model(dtype)
    optimizer = an_optimizer(model)
    trained(model, optimizer, range(2))
    before = kept(optimizer)
    backward(model, 7)
    after = kept(optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_parameters_are_not_in_the_state() -> None:
    models = a_model(), another_model(torch.float32)
    for model in models:
        next(model.parameters()).requires_grad_(False)
    optimizer, other = map(an_optimizer, models)
    trained(models[0], optimizer, range(2))
    state = kept(optimizer)
    assert not any(name.endswith(".0.weight") for name in state)
    frozen = next(models[1].parameters()).clone()
    other.load(state.items())
    assert torch.equal(next(models[1].parameters()), frozen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"master.9.weight": torch.zeros(2)}, "master.9.weight"),
        ({"exp_avg.embedding": torch.zeros(2)}, "exp_avg.embedding"),
        ({"weight": torch.zeros(2)}, "weight"),
        ({"master.0.weight": torch.zeros(16, 9)}, "master.0.weight of shape (16, 9)"),
        ({"master.0.weight": torch.zeros(8, 16)}, "master.0.weight of shape (8, 16)"),
        ({"master.0.weight": torch.tensor(0.0)}, "master.0.weight of shape ()"),
        ({"exp_avg_sq.1.bias": torch.zeros(1)}, "exp_avg_sq.1.bias of shape (1,)"),
        ({"master.2.bias": None}, "lacks 2.bias"),
    ],
)
def test_the_state_of_another_model_is_refused(
    dtype: torch.dtype, change: dict[str, torch.Tensor | None], named: str
) -> None:
    model = a_model(dtype)
    optimizer = an_optimizer(model)
    trained(model, optimizer, range(2))
    state = {**kept(optimizer), **change}
    tensors = [(name, tensor) for name, tensor in state.items() if tensor is not None]
    with pytest.raises(LongRecipeError) as problem:
        an_optimizer(a_model(dtype)).load(tensors)
    message = str(problem.value)
    assert "the checkpoint" in message
    assert named in message
    assert "remove the run's folder checkpoints" in message
    assert "\n" not in message


# Schedules


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    steps=st.integers(1, 400),
    warmup=st.floats(0, 1),
)
def test_schedules_rise_then_fall(schedule: str, steps: int, warmup: float) -> None:
    factor = warmup_then(schedule, steps, warmup)
    values = [factor(step) for step in range(steps)]
    assert all(0 < value <= 1 for value in values)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    if math.ceil(warmup * steps) < steps - 1 and schedule != "constant":
        assert values[-1] == pytest.approx(FLOOR)


def test_where_the_schedules_begin_and_end() -> None:
    """101 steps, of which 10 warm up: 1/11 .. 10/11, the peak at step 10, the floor at 100."""
    for schedule, middle, last in (("cosine", 0.55, 0.1), ("linear", 0.55, 0.1)):
        factor = warmup_then(schedule, 101, 10 / 101)
        assert [factor(0), factor(9), factor(10)] == pytest.approx([1 / 11, 10 / 11, 1.0])
        assert factor(55) == pytest.approx(middle)
        assert factor(100) == pytest.approx(last)
    factor = warmup_then("constant", 101, 10 / 101)
    assert [factor(0), factor(10), factor(100)] == pytest.approx([1 / 11, 1.0, 1.0])
    assert warmup_then("cosine", 10, 0.0)(0) == 1.0
    assert linear_to_zero(1)(0) == 1.0  # a single step is not lost


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    steps=st.integers(2, 200),
    warmup=st.floats(0, 1),
)
def test_warm_up_rises_strictly(schedule: str, steps: int, warmup: float) -> None:
    factor = warmup_then(schedule, steps, warmup)
    values = [factor(step) for step in range(math.ceil(warmup * steps))]
    assert all(one < other for one, other in pairwise(values))


@given(steps=st.integers(2, 500))
def test_annealing_ends_at_exactly_zero(steps: int) -> None:
    factor = linear_to_zero(steps)
    assert factor(0) == 1.0
    assert factor(steps - 1) == 0.0
    assert all(factor(step) > factor(step + 1) for step in range(steps - 1))
