"""The tensors of a model folder: read by name when they are asked for, and written as a stream.

Memory is one tensor, however large the model is.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lrdata.errors import LongRecipeError

_INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Weights:
    """The tensors of a model folder by name, read when asked for.

    Copies that some folders hold are left out: the output embedding of a `tied` model, which
    transformers makes from the input's, and the rotary buffers that old versions stored.
    """

    def __init__(self, folder: Path, tied: bool) -> None:
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        index = folder / _INDEX
        names = (
            sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if index.exists()
            else [SINGLE]
        )
        for name in names:
            if not (folder / name).exists():
                raise LongRecipeError(f"{folder / name} is missing; only safetensors are read")
            stream = safe_open(str(folder / name), framework="pt")
            self._files.update(dict.fromkeys(stream.keys(), stream))
        for name in list(self._files):
            if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
                del self._files[name]

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        kind: str = self._files[name].get_slice(name).get_dtype()
        if kind not in _DTYPES:
            raise LongRecipeError(f"{name} is stored as {kind}; only plain floats are read")
        return _DTYPES[kind]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


def write_safetensors(
    path: Path,
    tensors: Iterator[tuple[str, torch.Tensor]],
    header: dict[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    """Write tensors one after another in the safetensors format.

    The format: the length of a JSON header (uint64, little-endian), the header, which gives each
    tensor's dtype, shape and place, then the tensors' bytes. `header` must name the tensors in the
    order in which they come.
    """
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in header.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        described[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (name, tensor), (expected, (dtype, _)) in zip(tensors, header.items(), strict=True):
            if name != expected:
                raise ValueError(f"{name} came where {expected} was announced")
            flat = tensor.to(dtype).contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)


def model_folder(path_or_id: str, patterns: Sequence[str] = ("*.safetensors", "*.json")) -> Path:
    """The folder of a model that is one, or a copy of what is at a hub id: config and weights, or
    other files."""
    path = Path(path_or_id)
    if path.is_dir():
        return path
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=list(patterns)))
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"no model at {path_or_id}: {str(problem).splitlines()[0]}") from None
