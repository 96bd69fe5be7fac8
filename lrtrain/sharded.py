"""Tensors of which each rank has some rows (FSDP2), and those that are whole, alike."""

import torch
from torch.distributed.tensor import DTensor

Rows = tuple[int, int, int]
"""Of a tensor: the first that is here, the one after the last, how many there are."""


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a sharded tensor; another is its own."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def rows_of(tensor: torch.Tensor) -> Rows:
    """Which rows of a tensor are here: FSDP2 shards as torch.chunk does."""
    count = tensor.shape[0]
    if not isinstance(tensor, DTensor):
        return 0, count, count
    mesh = tensor.device_mesh
    each = -(-count // mesh.size())
    start = min(mesh.get_local_rank() * each, count)
    return start, min(start + each, count), count
