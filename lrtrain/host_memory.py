"""Host memory that a GPU reads and writes directly: page-locked, and not a byte more than asked.

torch's own pinned tensors come in powers of two, which for tens of gigabytes matters.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensor

from lrdata.errors import LongRecipeError
from lrdata.sizes import format_bytes

_making = False


def is_being_made() -> bool:
    """Whether the tensor that is being made goes to host memory: where tensors have no data and no
    device (`lrtrain.memory`), nothing else tells."""
    return _making


@contextmanager
def _made() -> Iterator[None]:
    global _making
    _making = True
    try:
        yield
    finally:
        _making = False


def host_zeros(
    shape: Sequence[int] | int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A CPU tensor of zeros, page-locked where `device` is a GPU. Raises LongRecipeError when the
    system refuses to lock so much."""
    with _made():
        tensor = torch.zeros(shape, dtype=dtype, device="cpu")
    if isinstance(tensor, FakeTensor):
        return tensor
    if device.type == "cuda" and tensor.nbytes:
        library = torch.cuda.cudart()
        address = tensor.data_ptr()
        problem = int(library.cudaHostRegister(address, tensor.nbytes, 0))
        if problem:
            raise LongRecipeError(
                f"cannot lock {format_bytes(tensor.nbytes)} of host memory (CUDA error {problem}); "
                "`lrtrain plan` says how much is needed: free some, or offload less"
            )
        weakref.finalize(tensor.untyped_storage(), library.cudaHostUnregister, address)
    return tensor


def zeros(n: int, dtype: torch.dtype, device: torch.device, offload: bool) -> torch.Tensor:
    """n zeros, in host memory for a device or on it."""
    return host_zeros(n, dtype, device) if offload else torch.zeros(n, dtype=dtype, device=device)


def to_device(x: torch.Tensor, device: torch.device, offload: bool) -> torch.Tensor:
    """x itself where it is kept on the device, else a copy that is."""
    return x.to(device, non_blocking=True, copy=True) if offload else x
