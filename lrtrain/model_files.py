"""The tensors of a model folder: read by name when asked for, compared with what a model has, and
written as a stream.

Memory is one tensor, however large the model is.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lrdata.errors import LongRecipeError, one_line

_SYNCED_BYTES = 1024**3
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_INPUT, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
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
    transformers makes from the input's, and the rotary buffers that old versions stored. Of a tied
    model that holds the output embedding alone, it is the input's.
    """

    def __init__(self, folder: Path, tied: bool) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._stored = dict[str, tuple[Any, str]]()  # the file, and the name there
        for file in weight_files(folder):
            path = folder / file
            if not path.exists():
                raise LongRecipeError(f"{path} is missing; only safetensors are read")
            try:
                stream = safe_open(str(path), framework="pt")
            except SafetensorError as problem:
                raise LongRecipeError(
                    f"{path} is damaged ({one_line(problem)}); get the model again"
                ) from None
            names = stream.keys()
            self._stored.update({name: (stream, name) for name in names})
        for name in list(self._stored):
            if name.endswith("rotary_emb.inv_freq"):
                del self._stored[name]
        self._copy = self._stored.pop(_OUTPUT, None) if tied else None
        if self._copy is not None:
            self._stored.setdefault(_INPUT, self._copy)

    def names(self) -> list[str]:
        return sorted(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        kind: str = self._slice(name).get_dtype()
        if kind not in _DTYPES:
            raise LongRecipeError(
                f"{self.folder}: {name} is stored as {kind}; only plain floats are read"
            )
        return _DTYPES[kind]

    def _slice(self, name: str) -> Any:
        stream, stored = self._stored[name]
        return stream.get_slice(stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> torch.Tensor:
        return _read(*self._stored[name])

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise LongRecipeError unless these are the tensors of a model that has `shapes`, all of
        them and no others. Reads headers alone."""
        for name, shape in sorted(shapes.items()):
            found = self.shape(name) if name in self else "not there"
            if found != tuple(shape):
                raise LongRecipeError(
                    f"{self.folder}: {name} is {found}, and {tuple(shape)} by its config.json; get "
                    "the whole model again, as a causal model"
                )
            self.dtype(name)  # refuses what is not plain floats
        for name in self.names():
            if name not in shapes:
                raise LongRecipeError(
                    f"{self.folder}: {name} is not of the model of its config.json, which would "
                    "leave it out; get the config that belongs to these weights"
                )

    def check_tied(self) -> None:
        """Raise LongRecipeError when a tied model holds an output embedding that is no copy: it
        would be left out. Reads both embeddings, where there are both."""
        if self._copy is None or self._copy is self._stored[_INPUT]:
            return
        one, other = self[_INPUT], _read(*self._copy)
        if not torch.equal(one, other.to(one.dtype)):
            raise LongRecipeError(
                f"{self.folder} holds an output embedding of its own ({_OUTPUT}); set "
                "tie_word_embeddings to false in its config.json"
            )


def _read(stream: Any, name: str) -> torch.Tensor:
    tensor: torch.Tensor = stream.get_tensor(name)
    return tensor


def weight_files(folder: Path) -> list[str]:
    """The names of its files of weights: one, or those of its index, as transformers has it."""
    index = folder / _INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return [SINGLE]
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def write_safetensors(
    path: Path,
    tensors: Iterator[tuple[str, torch.Tensor]],
    header: dict[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    """Write tensors one after another in the safetensors format.

    The format: the length of a JSON header (uint64, little-endian), the header, which gives each
    tensor's dtype, shape and place, then the tensors' bytes. `header` must name the tensors in the
    order in which they come. The disk keeps up with it: other ranks, who give their parts of each
    tensor, would not wait at the end until it had all of a large model.
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
    waiting = 0  # bytes that the disk may not have yet
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (name, tensor), (expected, (dtype, _)) in zip(tensors, header.items(), strict=True):
            if name != expected:
                raise ValueError(f"{name} came where {expected} was announced")
            flat = tensor.to(dtype).contiguous().reshape(-1)
            waiting += stream.write(flat.view(torch.uint8).numpy().data)
            if waiting >= _SYNCED_BYTES:
                stream.flush()
                os.fsync(stream.fileno())
                waiting = 0


def model_folder(path_or_id: str, patterns: Sequence[str] | None = None) -> Path:
    """The folder of a model that is one, or a copy of what is at a hub id: config and weights, or
    the files of `patterns`."""
    path = Path(path_or_id)
    if path.is_dir():
        return path
    import huggingface_hub

    if patterns is None:  # some hold their weights in a second form, for others
        patterns = ["*.json", *weight_files(model_folder(path_or_id, ["*.json"]))]
    try:
        return Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=list(patterns)))
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"no model at {path_or_id}: {str(problem).splitlines()[0]}") from None


def sampled_fingerprint(folder: Path) -> str:
    """A digest of a model's config and of parts of its weights, in a moment however large they are:
    another one for another model or another training of it. A damaged copy may have the same."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in weight_files(folder):
        with open(folder / name, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{name} {size}\n".encode())
            for part in range(_SAMPLES):
                stream.seek(size * part // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
