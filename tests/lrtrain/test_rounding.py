"""fp32 in two halves is the same number again; chance rounds to a neighbour, right on average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrtrain.rounding import join, round_stochastically, split

TIE = 0x8000
LARGEST_BF16, LARGEST_FP32 = 0x7F7F0000, 0x7F7FFFFF


def is_finite(pattern: int) -> bool:
    return pattern & 0x7F800000 != 0x7F800000


UPPER = st.integers(0, 0xFFFF).map(lambda half: half << 16)
PATTERNS = st.one_of(
    st.integers(0, 0xFFFFFFFF),
    UPPER,  # exact in bf16
    st.builds(lambda upper, lower: upper + lower, UPPER, st.integers(TIE - 1, TIE + 1)),
    st.integers(0, 0x007FFFFF),  # subnormal
    st.integers(LARGEST_BF16 - 1, LARGEST_FP32),
    st.sampled_from([0, 1 << 31, 1, (1 << 31) + 1, 0x00800000, LARGEST_FP32 | 1 << 31]),
).filter(is_finite)
"""Of finite fp32 numbers."""


def numbers(patterns: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(patterns, np.uint32).view(np.float32))


def bits(x: torch.Tensor) -> list[int]:
    """Tells 0 from -0, as == does not."""
    unsigned = {torch.float32: np.uint32, torch.bfloat16: np.uint16}[x.dtype]
    signed = torch.int32 if x.dtype == torch.float32 else torch.int16
    found: list[int] = x.view(signed).numpy().view(unsigned).tolist()
    return found


def neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bf16 numbers at or below and at or above, by torch."""
    near = x.bfloat16()
    infinity = torch.full_like(near, torch.inf)
    below = torch.where(near.double() > x.double(), torch.nextafter(near, -infinity), near)
    above = torch.where(near.double() < x.double(), torch.nextafter(near, infinity), near)
    return below, above


def in_float64(x: torch.Tensor) -> torch.Tensor:
    """Infinity is where bf16 would go on, had it one exponent more."""
    return x.double().clamp(-(2.0**128), 2.0**128)


def assert_apart_and_together(x: torch.Tensor) -> None:
    upper, lower = split(x)
    assert (upper.dtype, lower.dtype) == (torch.bfloat16, torch.int16)
    assert bits(join(upper, lower)) == bits(x)
    below, above = neighbours(x)
    least = torch.minimum(
        (in_float64(below) - x.double()).abs(), (in_float64(above) - x.double()).abs()
    )
    assert torch.equal((in_float64(upper) - x.double()).abs(), least)
    tie = torch.tensor([pattern & 0xFFFF == TIE for pattern in bits(x)], dtype=torch.bool)
    assert bits(upper[~tie]) == bits(x.bfloat16()[~tie])
    assert torch.all(in_float64(upper[tie]).abs() > x[tie].double().abs())


@given(patterns=st.lists(PATTERNS, min_size=1, max_size=60))
def test_halves_give_back_the_very_number_and_the_upper_is_the_nearest(
    patterns: list[int],
) -> None:
    assert_apart_and_together(numbers(patterns))


@pytest.mark.parametrize("lower", [0, 1, TIE - 1, TIE, TIE + 1, 0xFFFF])
def test_so_for_every_upper_half(lower: int) -> None:
    patterns = [upper << 16 | lower for upper in range(1 << 16) if is_finite(upper << 16)]
    assert_apart_and_together(numbers(patterns))


def test_the_halves_have_the_shape_of_the_whole() -> None:
    for shape in ((), (0,), (3, 5)):
        x = torch.randn(shape)
        upper, lower = split(x)
        assert upper.shape == lower.shape == join(upper, lower).shape == shape
        assert round_stochastically(x).shape == shape


@given(patterns=st.lists(PATTERNS, min_size=1, max_size=60), seed=st.integers(0, 1000))
def test_chance_gives_one_of_the_two_neighbours(patterns: list[int], seed: int) -> None:
    x = numbers(patterns)
    torch.manual_seed(seed)
    rounded = round_stochastically(x)
    assert rounded.dtype == torch.bfloat16
    below, above = neighbours(x)
    assert torch.all((rounded == below) | (rounded == above))
    assert torch.equal(rounded.signbit(), x.signbit())
    assert bits(x) == patterns, "the argument was changed"


def test_what_bf16_holds_never_changes() -> None:
    exact = numbers([upper << 16 for upper in range(1 << 16) if is_finite(upper << 16)])
    for seed in range(20):
        torch.manual_seed(seed)
        assert bits(round_stochastically(exact)) == bits(exact.bfloat16())


INFINITIES = 0x7F800000, 0xFF800000
NOT_NUMBERS = 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000, 0x7FC00000, 0xFFC00000, 0x7F800001
"""The first is CUDA's own."""


def test_what_is_not_finite_stays_what_it_is() -> None:
    """Else a loss or gradient that blew up may look like zero."""
    x = numbers([*INFINITIES, *NOT_NUMBERS]).repeat(1000)
    rounded = round_stochastically(x).view(1000, -1)
    assert torch.equal(rounded[:, :2], x.view(1000, -1)[:, :2].bfloat16())
    assert torch.all(rounded[:, 2:].isnan())


DRAWS = 40_000


@pytest.mark.parametrize(
    "x", [1 + 2**-9, 1 + 2**-14, -1 - 2**-14, 1.00390625, 3.14159265, -7.3e-12, 1e30, 4e-40, 1e-44]
)
def test_chance_is_right_on_average(x: float) -> None:
    """The share that goes up is binomial: its mean is within five standard errors of x."""
    torch.manual_seed(1)
    one = torch.tensor([x])
    value = float(one)
    below, above = (float(neighbour) for neighbour in neighbours(one))
    gap = above - below
    chance = (value - below) / gap
    assert 0 < chance < 1
    mean = float(round_stochastically(one.expand(DRAWS).contiguous()).double().mean())
    assert abs(mean - value) <= 5 * gap * (chance * (1 - chance) / DRAWS) ** 0.5
    assert below < mean < above, "it went one way only"


@pytest.mark.parametrize("pattern", [0x3F800001, 0x3F80FFFF, 0x00000001, 0xBF80FFFF])
def test_the_rarest_chance_is_one_of_65536(pattern: int) -> None:
    """The last digit of fp32 counts: 16 are expected of 2^20 draws, and one is next to certain."""
    torch.manual_seed(3)
    x = numbers([pattern])
    rounded = round_stochastically(x.expand(1 << 20).contiguous())
    assert 1 <= int((rounded != x.bfloat16()).sum()) <= 40


def test_equal_numbers_are_rounded_apart_from_each_other() -> None:
    """Also in one call: else a whole layer would move at once."""
    torch.manual_seed(2)
    up = round_stochastically(torch.full((64, 64), 1 + 2**-8)) > 1
    halves = torch.tensor([up[:32].double().mean(), up[32:].double().mean()])
    assert torch.all((halves - 0.5).abs() < 0.08)  # five standard errors of 2,048 coins: 0.055
    assert not torch.equal(up[0], up[1])


def test_the_seed_decides() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first, second = round_stochastically(x), round_stochastically(x)
    torch.manual_seed(5)
    again = round_stochastically(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
