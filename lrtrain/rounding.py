"""fp32 numbers in bf16 without losing what is too small for it.

bf16 is the upper half of fp32. Either the lower half is kept beside it, 16 bits more, or what is
cut off decides by chance whether the number goes up or down, so that it is right on average.
"""

import torch

_HALF, _LOWER, _UPPER = 1 << 15, (1 << 16) - 1, -(1 << 16)


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 -> the nearest bf16, and what `join` needs to give back the very number, as int16.

    A number in the middle of two bf16 goes away from zero. Finite numbers only.
    """
    bits = x.view(torch.int32)
    upper = (bits + _HALF) & _UPPER
    return (upper >> 16).to(torch.int16).view(torch.bfloat16), (bits - upper).to(torch.int16)


def join(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """What `split` has taken apart: bf16 and int16 -> fp32, exactly."""
    bits = (upper.view(torch.int16).to(torch.int32) << 16) + lower
    return bits.view(torch.float32)


def round_stochastically(x: torch.Tensor) -> torch.Tensor:
    """fp32 -> one of the two neighbours in bf16, the nearer one more often: x on average.

    Draws from torch's generator of the device. What is not finite stays so.
    """
    noise = torch.randint(0, _LOWER + 1, x.shape, dtype=torch.int32, device=x.device)
    rounded = noise.add_(x.view(torch.int32)).bitwise_and_(_UPPER).view(torch.float32)
    # CUDA's NaN is all ones but for the sign: any noise would carry it over to -0.0.
    return torch.where(x.isfinite(), rounded, x).bfloat16()
