"""AdamW over master weights is torch's, small gradients are not lost, schedules end as they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lrtrain.optim import FLOOR, MasterAdamW, linear_to_zero, warmup_then


def a_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)).to(dtype)


def backward(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    dtype = next(model.parameters()).dtype
    (model(torch.randn(5, 8, dtype=dtype)) ** 2).sum().backward()


def test_fp32_is_torchs_adamw_bit_for_bit() -> None:
    ours, theirs = a_model(), a_model()
    optimizer = MasterAdamW(ours, 1e-2, (0.9, 0.95), weight_decay=0.1)
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    vectors = [p for p in theirs.parameters() if p.dim() <= 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
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
    optimizer = MasterAdamW(model, 1e-3, (0.9, 0.95), 0.0)
    batch = torch.full((1, 4), 1.0, dtype=torch.bfloat16)
    plain = torch.zeros(1, 4, dtype=torch.bfloat16)
    for _ in range(1000):
        model(batch).sum().backward()
        plain += 1.0
    assert model.weight.grad is None  # freed as it comes
    (master,) = optimizer.masters
    assert master.grad is not None
    assert torch.equal(master.grad, torch.full((1, 4), 1000.0))
    assert float(plain[0, 0]) < 300  # what would have happened


def test_steps_below_a_bf16_digit_add_up_too() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    model.weight.data.fill_(1.0)
    optimizer = MasterAdamW(model, 1e-4, (0.9, 0.95), 0.0)
    for _ in range(100):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
    assert float(model.weight.detach()) == pytest.approx(0.99, abs=2e-3)


def test_a_closed_optimizer_leaves_the_model_alone() -> None:
    model = a_model(torch.bfloat16)
    MasterAdamW(model, 1e-3, (0.9, 0.95), 0.0).close()
    backward(model, 0)
    assert all(parameter.grad is not None for parameter in model.parameters())


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
    if steps > 2 and warmup < 0.5 and schedule != "constant":
        assert values[-1] == pytest.approx(FLOOR)


@given(steps=st.integers(2, 500))
def test_annealing_ends_at_exactly_zero(steps: int) -> None:
    factor = linear_to_zero(steps)
    assert factor(0) == 1.0
    assert factor(steps - 1) == 0.0
    assert all(factor(step) > factor(step + 1) for step in range(steps - 1))
