"""AdamW over master weights is torch's and goes on from its state, however it is kept."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from lrdata.errors import LongRecipeError
from lrtrain import host_memory, moments, optim
from lrtrain.checkpoint import Checkpoints
from lrtrain.host_memory import host_zeros
from lrtrain.optim import EXACT, AdamW, Storage, StoredBytes, stored_bytes


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


def an_optimizer(model: nn.Module, storage: Storage = EXACT) -> AdamW:
    return AdamW(model, 1e-2, (0.9, 0.95), weight_decay=0.1, storage=storage)


def kept(optimizer: AdamW) -> dict[str, torch.Tensor]:
    """The state as a file has it: without ties to the optimizer."""
    return {name: tensor.detach().clone() for name, tensor in optimizer.state()}


def another_model(dtype: torch.dtype, made: Callable[[], nn.Module] = a_model) -> nn.Module:
    """Of the same shape, with other numbers."""
    model = made()
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
        ({"master.2.bias": None}, "lacks master.2.bias"),
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


# What is kept smaller

STORAGES = [
    Storage(*options)
    for options in product(("fp32", "none"), ("fp32", "bf16"), ("fp32", "8bit"), (False, True))
]


def named(storage: Storage) -> str:
    place = "host" if storage.offload else "device"
    return f"{storage.masters}-{storage.gradients}-{storage.moments}-{place}"


storages = pytest.mark.parametrize("storage", STORAGES, ids=named)
in_host_memory = pytest.mark.parametrize("offload", [False, True])


def a_wide_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Matrices of 4,096 and 4,608 numbers, which may go to 8 bits, one as large whose rows are
    narrow, and one of odd length."""
    torch.manual_seed(0)
    layers = nn.Linear(8, 256), nn.LayerNorm(256), nn.Linear(256, 16)
    more = nn.Linear(16, 512), nn.Linear(512, 9), nn.Linear(9, 457)
    return nn.Sequential(*layers, *more).to(dtype)


def test_wide_rows_alone_are_in_8_bits_and_each_has_scales_of_its_own() -> None:
    """As a checkpoint has them: whoever takes some rows takes their scales."""
    optimizer = an_optimizer(a_wide_model(), Storage(moments="8bit"))
    state = kept(optimizer)
    for kind in ("exp_avg", "exp_avg_sq"):
        codes = {name: t.shape for name, t in state.items() if name.startswith(f"{kind}_codes.")}
        assert codes == {f"{kind}_codes.2.weight": (16, 256), f"{kind}_codes.4.weight": (9, 512)}
        scales = {name: t.shape for name, t in state.items() if name.startswith(f"{kind}_scales.")}
        assert scales == {f"{kind}_scales.2.weight": (16, 1), f"{kind}_scales.4.weight": (9, 2)}


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_whole_parameters_have_all_their_rows_in_the_state(moments: str) -> None:
    optimizer = an_optimizer(a_wide_model(), Storage(moments=moments))
    for name, tensor in optimizer.state():
        rows = optimizer.rows(name)
        assert rows == (None if name == "steps" else (0, len(tensor), len(tensor)))
    assert optimizer.rows("random.cpu.0") is None


def same(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@in_host_memory
@pytest.mark.parametrize("part", [256, 1024, optim.PART])
def test_masters_in_two_halves_are_torchs_over_fp32_copies(
    offload: bool, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "PART", part)
    ours, theirs = a_wide_model(torch.bfloat16), a_wide_model(torch.bfloat16).float()
    optimizer = AdamW(ours, 1e-3, (0.9, 0.95), 0.1, Storage(offload=offload))
    copies = list(theirs.parameters())
    groups = [
        {"params": [p for p in copies if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in copies if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    for step in range(8):
        backward(ours, step)
        for copy, gradient in zip(copies, optimizer.gradients(), strict=True):
            copy.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step(1.0, norm, clip=1.0)
        adam.step()
        assert same(optimizer.masters(), copies)
        for p, copy in zip(ours.parameters(), copies, strict=True):
            tie = copy.view(torch.int32) & 0xFFFF == 0x8000
            assert torch.equal(p[~tie], copy.bfloat16()[~tie])


def give(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    """By a backward, so that hooks see it."""
    (parameter * gradient.to(parameter.dtype)).sum().backward()


def test_without_masters_a_model_goes_on_average_where_fp32_goes() -> None:
    """200 steps, each a fortieth of what bf16 tells from 1.5. Rounded to nearest, none is taken."""
    ours, exact, nearest = (nn.Linear(128, 128, bias=False) for _ in range(3))
    ours.to(torch.bfloat16)
    nearest.to(torch.bfloat16)
    for model in (ours, exact, nearest):
        nn.init.constant_(model.weight, 1.5)
    optimizer = AdamW(ours, 2e-4, (0.9, 0.95), 0.0, Storage(masters="none"))
    adams = [
        torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
        for model in (exact, nearest)
    ]
    torch.manual_seed(0)
    for _ in range(200):
        gradient = (1 + 0.2 * torch.randn(128, 128)).bfloat16()
        for model in (ours, exact, nearest):
            give(model.weight, gradient)
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
        for adam in adams:
            adam.step()
            adam.zero_grad()
    assert torch.equal(nearest.weight, torch.full_like(nearest.weight, 1.5))
    way = 1.5 - exact.weight.detach().double().mean()
    assert way > 0.035
    error = (ours.weight.double() - exact.weight.double()).mean().abs()
    # Of 200 steps of p digits of 2^-7, each a coin: a number is off by 2^-7 sqrt(200 p (1 - p)).
    assert error < 5 * 0.018 / ours.weight.numel() ** 0.5
    assert error < way / 40


@pytest.mark.parametrize("micro_batches", [96, 256])
def test_gradients_in_bf16_add_up_to_the_fp32_sum_on_average(micro_batches: int) -> None:
    """Eight gradients, for 1,024 numbers each. Adding in bf16 loses as much for all of them."""
    model = nn.Linear(8, 1024, bias=False).to(torch.bfloat16)
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0, Storage(gradients="bf16"))
    one = torch.tensor([0.1, -0.11, 0.13, 1.0, -1.1, 1.3, 1e-6, 7.7]).bfloat16()
    batch = one[None]
    plain = torch.zeros(8, dtype=torch.bfloat16)
    torch.manual_seed(0)
    for _ in range(micro_batches):
        model(batch).sum().backward()
        plain += one
    assert model.weight.grad is None  # freed as it comes
    (gradient,) = optimizer.gradients()
    assert gradient.dtype == torch.bfloat16
    exact = one.double() * micro_batches
    error = (gradient.double().mean(0) - exact).abs() / exact.abs()
    # An addition is off by half of 2^-7 of the sum so far, at most: a number by less than 0.037.
    assert error.max() < 5 * 0.037 / 1024**0.5
    lost = (plain.double() - exact).abs() / exact.abs()
    assert lost.max() > 4 * error.max()
    assert lost.max() > 0.02  # what would have happened


def test_moments_in_8_bits_step_as_bitsandbytes_does() -> None:
    """Its AdamW, over a matrix whose columns have gradients of quite different sizes."""
    ours, theirs = (nn.Linear(256, 32, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamW(ours, 1e-3, (0.9, 0.95), 0.1, Storage(moments="8bit"))
    adam = bitsandbytes.optim.AdamW8bit(
        theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    assert any(name.startswith("exp_avg_codes.") for name, _ in optimizer.state())
    torch.manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(32, 256) * torch.logspace(-3, 0, 256)
        for model in (ours, theirs):
            model.weight.grad = gradient.clone()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
        adam.step()
        off = (ours.weight - theirs.weight).abs()
        # A number between two codes may fall to either side: a few then step otherwise.
        assert off.median() < 1e-6
        assert off.max() < 1e-4


@in_host_memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_moments_in_8_bits_a_loss_falls_as_with_torchs_adamw(
    dtype: torch.dtype, offload: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 16, generator=generator)
    targets = inputs[:, :1] * inputs[:, 1:2] + torch.sin(2 * inputs[:, 2:3])

    def a_regression() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 256), nn.Linear(256, 16)
        return nn.Sequential(*layers, nn.Linear(16, 1))

    def loss(model: nn.Module) -> torch.Tensor:
        outputs = model(inputs.to(next(model.parameters()).dtype))
        return nn.functional.mse_loss(outputs.float(), targets)

    ours, theirs = a_regression().to(dtype), a_regression()
    first = loss(theirs).item()
    storage = Storage(moments="8bit", offload=offload)
    optimizer = AdamW(ours, 3e-3, (0.9, 0.95), 0.0, storage)
    adam = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    assert sum(name.startswith("exp_avg_codes.") for name, _ in optimizer.state()) == 2
    for _ in range(60):
        loss(ours).backward()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
        adam.zero_grad()
        loss(theirs).backward()
        adam.step()
    reached = loss(theirs).item()
    assert reached < first / 4
    assert loss(ours).item() - reached < 0.05 * (first - reached)


def results(
    storage: Storage, dtype: torch.dtype, steps: int = 4
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What training two micro-batches a step gives, and the state after it."""
    model = a_wide_model(dtype)
    optimizer = an_optimizer(model, storage)
    seen = []
    for step in range(steps):
        backward(model, 100 + step)
        seen += trained(model, optimizer, [step])
    return seen, kept(optimizer)


@storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_host_memory_and_small_parts_change_no_bit(
    storage: Storage, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance aside: for that, numbers are rounded to nearest, whatever the order of draws."""
    monkeypatch.setattr(optim, "round_stochastically", lambda x: x.bfloat16())
    here = Storage(storage.masters, storage.gradients, storage.moments)
    expected, state = results(here, dtype)
    monkeypatch.setattr(optim, "PART", 512)
    found, other = results(storage, dtype)
    assert same(found, expected)
    assert state.keys() == other.keys()
    assert same(other.values(), state.values())


@pytest.mark.parametrize("storage", [s for s in STORAGES if s.offload], ids=named)
def test_host_memory_takes_the_same_chances(storage: Storage) -> None:
    here = Storage(storage.masters, storage.gradients, storage.moments)
    (one, state), (two, other) = results(here, torch.bfloat16), results(storage, torch.bfloat16)
    assert same(one, two)
    assert same(state.values(), other.values())


@storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_the_file_of_a_checkpoint_it_goes_on_bit_for_bit(
    storage: Storage, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = a_wide_model(dtype)
    optimizer = an_optimizer(model, storage)
    trained(model, optimizer, range(3))
    checkpoint = Checkpoints(tmp_path, "extend", keep=1).save(3, optimizer.state())
    other = another_model(dtype, a_wide_model)
    loaded = an_optimizer(other, storage)
    loaded.load(checkpoint.tensors())
    assert same(model.parameters(), other.parameters())
    whole = trained(model, optimizer, range(3, 6))
    assert same(whole, trained(other, loaded, range(3, 6)))
    ends = kept(optimizer), kept(loaded)
    assert ends[0].keys() == ends[1].keys()
    assert same(ends[0].values(), ends[1].values())


def test_a_checkpoint_can_be_gone_on_from_elsewhere() -> None:
    """Where things are kept, and in what gradients are added up, is not in it."""
    model = a_wide_model(torch.bfloat16)
    optimizer = an_optimizer(model, Storage(moments="8bit"))
    trained(model, optimizer, range(2))
    moved = Storage(moments="8bit", gradients="bf16", offload=True)
    other = an_optimizer(another_model(torch.bfloat16, a_wide_model), moved)
    other.load(kept(optimizer).items())
    assert same(other.masters(), optimizer.masters())
    assert same(kept(other).values(), kept(optimizer).values())


KINDS = list(product(("fp32", "none"), ("fp32", "8bit")))


@pytest.mark.parametrize(
    ("saved", "wanted"), [(one, other) for one, other in product(KINDS, KINDS) if one != other]
)
def test_the_state_of_another_storage_is_refused(
    saved: tuple[str, str], wanted: tuple[str, str]
) -> None:
    storage, another = (
        Storage(masters=masters, moments=moments) for masters, moments in (saved, wanted)
    )
    model = a_wide_model(torch.bfloat16)
    optimizer = an_optimizer(model, storage)
    trained(model, optimizer, range(2))
    with pytest.raises(LongRecipeError) as problem:
        an_optimizer(a_wide_model(torch.bfloat16), another).load(kept(optimizer).items())
    message = str(problem.value)
    assert "the checkpoint" in message
    assert "remove the run's folder checkpoints" in message
    assert "\n" not in message


def test_moments_of_another_type_are_refused() -> None:
    """torch would take them, rounded."""
    model = a_model()
    optimizer = an_optimizer(model)
    trained(model, optimizer, range(2))
    rounded = {**kept(optimizer), "exp_avg.0.weight": torch.zeros(16, 8, dtype=torch.bfloat16)}
    with pytest.raises(LongRecipeError, match=r"exp_avg\.0\.weight of shape \(16, 8\)"):
        an_optimizer(a_model()).load(rounded.items())


def tensors_in(thing: Any) -> Iterator[torch.Tensor]:
    """All that are reached from an object through attributes and containers."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors_in(value)
    elif type(thing).__module__.startswith("lrtrain."):
        yield from tensors_in(vars(thing))


def bytes_of(tensors: Iterable[torch.Tensor], apart_from: Iterable[torch.Tensor]) -> int:
    """Of their memory, each piece counted once, whatever views there are."""
    known = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for address, size in found.items() if address not in known)


@storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_takes_the_bytes_that_are_said(storage: Storage, dtype: torch.dtype) -> None:
    model = a_wide_model(dtype)
    optimizer = an_optimizer(model, storage)
    trained(model, optimizer, range(2))
    said = stored_bytes(model.parameters(), storage)
    maps = [moments._map(signed) for signed in (True, False)]  # a kilobyte each, for all
    beside = [*model.parameters(), *maps]
    assert bytes_of(tensors_in(optimizer), beside) == said.masters + said.moments
    backward(model, 0)
    backward(model, 1)
    kept_now = [*tensors_in(optimizer), *optimizer.gradients()]
    assert bytes_of(kept_now, beside) == said.masters + said.moments + said.gradients
    with torch.device("meta"):
        without_data = a_wide_model(dtype)
    assert stored_bytes(without_data.parameters(), storage) == said


@storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_halves_and_moments_are_what_goes_to_host_memory(
    storage: Storage, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, when told to; watched, as on a CPU it is one memory."""
    made: list[int] = []

    def watched(*shape_and_type: Any) -> torch.Tensor:
        tensor = host_zeros(*shape_and_type)
        made.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(host_memory, "host_zeros", watched)
    model = a_wide_model(dtype)
    trained(model, an_optimizer(model, storage), range(2))
    said = stored_bytes(model.parameters(), storage)
    assert sum(made) == (said.masters + said.moments if storage.offload else 0)


def test_what_a_parameter_costs() -> None:
    """By hand, for the table in lrtrain.optim: a matrix of 4,096 numbers in bf16, one in fp32."""

    def bytes_for(dtype: torch.dtype, storage: Storage) -> StoredBytes:
        return stored_bytes([torch.zeros(16, 256, dtype=dtype)], storage)

    n = 4096
    least = Storage("none", "bf16", "8bit")
    assert bytes_for(torch.bfloat16, EXACT) == StoredBytes(2 * n, 8 * n, 4 * n)
    assert bytes_for(torch.bfloat16, least) == StoredBytes(0, 2 * n + 128, 2 * n)
    assert bytes_for(torch.float32, least) == StoredBytes(0, 2 * n + 128, 4 * n)
    narrow = [torch.zeros(64, 64, dtype=torch.bfloat16)]
    assert stored_bytes(narrow, least) == StoredBytes(0, 2 * n + 512, 2 * n), "smaller blocks"
    odd = [torch.zeros(128, 32, dtype=torch.bfloat16)]
    assert stored_bytes(odd, least) == StoredBytes(0, 8 * n, 2 * n), "blocks would cross rows"
