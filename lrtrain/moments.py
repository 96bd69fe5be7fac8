"""Running averages of Adam, flat, in fp32 or 8 bits, on the device or in host memory.

A part of them is read to the device in fp32, changed there, and written back.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, Protocol

import torch

from lrdata.errors import LongRecipeError
from lrtrain.host_memory import to_device, zeros

BLOCK = 256
"""Numbers of 8 bits that share a scale."""
SCALES = "_scales"
"""What the name of a tensor of them ends with."""
_LEAST = 4096
"""Smaller averages stay in fp32: norms, biases."""


class Moment(Protocol):
    """A running average of n numbers. Parts begin at multiples of BLOCK."""

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

    def __init__(self, n: int, device: torch.device, offload: bool, signed: bool) -> None:
        self._map = _map(signed).to(device)
        self._least = 0 if signed else 1  # a square lost to zero would make the next step huge
        self._codes = zeros(n, torch.uint8, device, offload)  # of scales that are 0: zeros
        self._scales = zeros(n // BLOCK, torch.float32, device, offload)
        self._device, self._offload = device, offload

    def read(self, part: slice) -> torch.Tensor:
        values: torch.Tensor = _functional().dequantize_blockwise(
            to_device(self._codes[part], self._device, self._offload),
            absmax=to_device(self._scales[_blocks(part)], self._device, self._offload),
            code=self._map,
            blocksize=BLOCK,
        )
        return values

    def write(self, part: slice, values: torch.Tensor) -> None:
        codes, state = _functional().quantize_blockwise(values, code=self._map, blocksize=BLOCK)
        self._codes[part].copy_(codes.clamp_(min=self._least), non_blocking=True)
        self._scales[_blocks(part)].copy_(state.absmax, non_blocking=True)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "_codes", self._codes
        yield SCALES, self._scales


def is_eight_bit(shape: Sequence[int], kind: str) -> bool:
    """Whether running averages of a parameter are kept in 8 bits: of short ones they are not, nor
    where a block would have numbers of two rows, which may be on two ranks."""
    return kind == "8bit" and prod(shape) >= _LEAST and prod(shape[1:]) % BLOCK == 0


def make_moment(
    n: int, device: torch.device, eight_bit: bool, offload: bool, signed: bool
) -> Moment:
    """n zeros. eight_bit: see `is_eight_bit`."""
    return EightBit(n, device, offload, signed) if eight_bit else Exact(n, device, offload)


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


def need_bitsandbytes() -> None:
    """Raise LongRecipeError unless 8 bits can be had here."""
    _functional()


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
