"""Tensors for checkpoints, and what is there of them afterwards."""

from pathlib import Path

import torch

from lrtrain.checkpoint import Checkpoint

Tensors = dict[str, torch.Tensor]


def any_bits(seed: int, *shape: int) -> torch.Tensor:
    """Bytes at random: as floats they hold infinities, subnormals and NaNs of many kinds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, flat.numpy().tobytes()


def assert_holds(checkpoint: Checkpoint | None, tensors: Tensors) -> None:
    assert checkpoint is not None
    found = list(checkpoint.tensors())
    assert len(found) == len(tensors)
    assert {name: bits(tensor) for name, tensor in found} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
