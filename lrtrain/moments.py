"""Running averages of Adam, flat, in fp32 or 8 bits, on the device or in host memory.

A part of them is read to the device in fp32, changed there, and written back.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, Protocol

import torch

from lrdata.errors import LongRecipeError, one_line
from lrtrain.host_memory import to_device, zeros

BLOCKS = (256, 128, 64)
"""Numbers of 8 bits that share a scale: as many as divide a row of the parameter."""
SCALES = "_scales"
"""What the names of scales end with."""
_TOLERANCE = 0.02
"""Of the largest of a block; half the widest step between codes is 0.007."""
_LEAST = 4096
"""Smaller averages stay in fp32: norms, biases."""


class Moment(Protocol):
    """A running average of n numbers. Parts begin at multiples of a block."""

    def read(self, part: slice) -> torch.Tensor:
        """fp32 on the device, to be changed in place and given to `write`."""

    def write(self, part: slice, values: torch.Tensor) -> None: ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What it is kept as, each with what its name ends with."""


class Exact:
    """In fp32."""

    def __init__(self, n: int, device: torch.device, offload: bool) -> None:
        self._values = zeros(n, torch.float32, device, offload)
        self._device, self._offload = device, offload

    def read(self, part: slice) -> torch.Tensor:
        return to_device(self._values[part], self._device, self._offload)

    def write(self, part: slice, values: torch.Tensor) -> None:
        if self._offload:
            self._values[part].copy_(values, non_blocking=True)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "", self._values


class EightBit:
    """In 8 bits a number, by block: bitsandbytes' dynamic map (arXiv 2110.02861)."""

    def __init__(
        self, n: int, device: torch.device, offload: bool, signed: bool, block: int
    ) -> None:
        self._block = block
        self._map = _map(signed).to(device)
        self._least = 0 if signed else 1  # a square lost to zero would make the next step huge
        self._codes = zeros(n, torch.uint8, device, offload)  # of scales that are 0: zeros
        self._scales = zeros(n // block, torch.float32, device, offload)
        self._device, self._offload = device, offload

    def read(self, part: slice) -> torch.Tensor:
        values: torch.Tensor = _functional().dequantize_blockwise(
            to_device(self._codes[part], self._device, self._offload),
            absmax=to_device(self._scales[self._blocks(part)], self._device, self._offload),
            code=self._map,
            blocksize=self._block,
        )
        return values

    def write(self, part: slice, values: torch.Tensor) -> None:
        codes, state = _functional().quantize_blockwise(
            values, code=self._map, blocksize=self._block
        )
        self._codes[part].copy_(codes.clamp_(min=self._least), non_blocking=True)
        self._scales[self._blocks(part)].copy_(state.absmax, non_blocking=True)

    def _blocks(self, part: slice) -> slice:
        return slice(part.start // self._block, -(-part.stop // self._block))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "_codes", self._codes
        yield SCALES, self._scales


def block_of(shape: Sequence[int], kind: str) -> int:
    """The block in which running averages of a parameter are kept in 8 bits; 0 where they are not:
    of short ones, and where every block would have numbers of two rows, which may be on two ranks.
    """
    if kind != "8bit" or prod(shape) < _LEAST:
        return 0
    return next((block for block in BLOCKS if prod(shape[1:]) % block == 0), 0)


def make_moment(n: int, device: torch.device, block: int, offload: bool, signed: bool) -> Moment:
    """n zeros. block: see `block_of`."""
    if not block:
        return Exact(n, device, offload)
    return EightBit(n, device, offload, signed, block)


def need_bitsandbytes(device: torch.device) -> None:
    """Raise LongRecipeError unless a device can write numbers in 8 bits and read them: bitsandbytes
    is imported without complaint where its own library has no kernels for it."""
    _functional()
    numbers = torch.linspace(-1, 1, BLOCKS[0], device=device)
    moment = EightBit(len(numbers), device, False, True, len(numbers))
    whole = slice(0, len(numbers))
    try:
        moment.write(whole, numbers)
        error = float((moment.read(whole) - numbers).abs().max())
        wrong = "" if error < _TOLERANCE else f"numbers are read back off by {error:.2g}"
    except Exception as problem:  # it may raise whatever it likes
        wrong = one_line(problem)
    if wrong:
        raise LongRecipeError(
            f"--moments 8bit: bitsandbytes does not work on {device} ({wrong[:100]}); install one "
            "for this device and CUDA (python -m bitsandbytes says more) or use --moments fp32"
        )


@cache
def _functional() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that are not used here
    try:
        import bitsandbytes.functional
    except ImportError:
        raise LongRecipeError(
            "--moments 8bit needs bitsandbytes: pip install 'longrecipe[gpu]'"
        ) from None
    return bitsandbytes.functional


@cache
def _map(signed: bool) -> torch.Tensor:
    table: torch.Tensor = _functional().create_dynamic_map(signed)
    return table
