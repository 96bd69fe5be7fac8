"""Merge two models of one shape, tensor by tensor: (1 - w) * base + w * tuned.

Memory is one tensor of each: the inputs are read lazily and the output is written as a stream.
Config, tokenizer and RoPE come from the tuned model: its theta is what its weights were trained at.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrtrain.model import appearing, check_saved, copy_tokenizer, load_config

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
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
            else [_SINGLE]
        )
        for name in names:
            if not (folder / name).exists():
                raise LongRecipeError(f"{folder / name} is missing; only safetensors are merged")
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
            raise LongRecipeError(f"{name} is stored as {kind}; merge plain float weights")
        return _DTYPES[kind]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


def merge_models(base: str, tuned: str, out: Path, weight: float = 0.5) -> None:
    """Write (1 - weight) * base + weight * tuned as a plain Hugging Face folder.

    The paper's merge is weight 0.5. Math in float32, stored in the tuned model's dtype. Raises
    LongRecipeError for models of different shapes; says so in one line when their thetas differ.
    """
    if not 0 <= weight <= 1:
        raise LongRecipeError(f"--weight {weight} must be between 0 (base) and 1 (tuned)")
    base_folder, tuned_folder = _folder(base), _folder(tuned)
    configs = _comparable_configs(base, tuned)
    one, other = (
        Weights(folder, config.tie_word_embeddings)
        for folder, config in zip((base_folder, tuned_folder), configs, strict=True)
    )
    _compare_shapes(base, one, tuned, other)
    with appearing(out) as partial:
        names = other.names()
        with progress("merging", len(names)) as task:

            def merged() -> Iterator[tuple[str, torch.Tensor]]:
                for name in names:
                    task.advance()
                    yield name, torch.lerp(one[name].float(), other[name].float(), weight)

            write_safetensors(partial / _SINGLE, merged(), _header(other, names))
        for name in ("config.json", "generation_config.json"):
            if (tuned_folder / name).exists():
                (partial / name).write_bytes((tuned_folder / name).read_bytes())
        copy_tokenizer(str(tuned_folder), partial, None)
        card = _card(base, tuned, weight)
        (partial / "README.md").write_text(card, encoding="utf-8")
        check_saved(partial)


def _header(weights: Weights, names: list[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (weights.dtype(name), weights.shape(name)) for name in names}


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


def _folder(path_or_id: str) -> Path:
    path = Path(path_or_id)
    if path.is_dir():
        return path
    import huggingface_hub

    try:
        patterns = ["*.safetensors", "*.json"]
        return Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=patterns))
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"no model at {path_or_id}: {str(problem).splitlines()[0]}") from None


def _comparable_configs(base: str, tuned: str) -> tuple[Any, Any]:
    """Both configs, of one architecture; says so when their thetas differ."""
    one, other = load_config(base), load_config(tuned)
    if one.model_type != other.model_type:
        raise LongRecipeError(
            f"{base} is a {one.model_type} model, {tuned} a {other.model_type} one; both must be "
            "the same architecture"
        )
    thetas = [config.rope_parameters["rope_theta"] for config in (one, other)]
    if thetas[0] != thetas[1]:
        print(
            f"note: {base} was trained at theta {thetas[0]:g}, {tuned} at {thetas[1]:g}; the "
            "merged model takes the latter: evaluate it",
            file=sys.stderr,
        )
    return one, other


def _compare_shapes(base: str, one: Weights, tuned: str, other: Weights) -> None:
    for name in sorted({*one.names(), *other.names()}):
        for where, weights in ((base, one), (tuned, other)):
            if name not in weights:
                raise LongRecipeError(
                    f"{where} has no tensor {name}; merge models of one shape (and both with tied "
                    "or both with untied embeddings)"
                )
            weights.dtype(name)  # refuses what is not plain floats
        if one.shape(name) != other.shape(name):
            raise LongRecipeError(
                f"{name} is {one.shape(name)} in {base} and {other.shape(name)} in {tuned}; merge "
                "models of one shape"
            )


def _card(base: str, tuned: str, weight: float) -> str:
    return (
        f"# Merged long-context model\n\n{1 - weight:g} x `{Path(base).name}` + {weight:g} x "
        f"`{Path(tuned).name}`, tensor by tensor, with longrecipe (LongRecipe, arXiv 2409.00509).\n"
        "Config, RoPE and tokenizer are those of the second.\n"
    )
