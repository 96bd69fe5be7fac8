"""The models of an evaluation: how they are written, named and loaded.

    PATH                      a plain Hugging Face folder, or a hub id
    NAME=PATH                 the same, under a name of your own
    PATH@theta=8e6            with another RoPE, untrained: as `lrtrain run --rope` writes it
    PATH@target=2048          with the RoPE of `--rope auto` for a window of 2,048 tokens
    PATH@yarn,target=128k     both

They are loaded with transformers' own attention (sdpa), not with the trainer's, so that a mistake
in the trainer's attention cannot hide in the evaluation.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdata.errors import LongRecipeError
from lrdata.sizes import parse_count
from lrdata.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"([^=/\\@]+)=(.+)")
_ROPE = re.compile(r"(.+)@((?:theta|target)=[^@/]+|(?:auto|yarn|none)(?:,[^@/]+)?)")
_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


@dataclass(frozen=True)
class ModelSpec:
    """What a person wrote, taken apart. `rope` is in the syntax of `lrtrain.rope.parse_rope`."""

    name: str
    path: str
    rope: str | None = None
    target_len: int | None = None


@dataclass
class LoadedModel:
    """A model under evaluation. `window` is its max_position_embeddings, `theta` its RoPE base."""

    spec: ModelSpec
    model: Any  # PreTrainedModel
    tokenizer: Tokenizer
    device: "torch.device"
    window: int
    theta: float | None
    rope_type: str
    parameters: int


def parse_models(written: list[str]) -> list[ModelSpec]:
    """Take the arguments apart and give every model a short name of its own.

    The name is the last part of the path and the RoPE suffix, with as many parts before it as
    tell the models apart. Raises LongRecipeError when two have the same name.
    """
    if not written:
        raise LongRecipeError("no model to evaluate; name a Hugging Face folder or a hub id")
    given = [_parse(text) for text in written]
    names = _short_names([(path, suffix) for name, path, suffix in given if name is None])
    specs = []
    for name, path, suffix in given:
        rope, target_len = _parse_suffix(suffix)
        specs.append(ModelSpec(name or next(names), path, rope, target_len))
    taken = [spec.name for spec in specs]
    for name in taken:
        if taken.count(name) > 1:
            raise LongRecipeError(f"two models are called {name}; call one of them NAME=PATH")
    return specs


def _parse(text: str) -> tuple[str | None, str, str]:
    """(name or None, path, RoPE suffix or ""). A folder that exists as written is a path."""
    if Path(text).is_dir():
        return None, text, ""
    named = _NAME.fullmatch(text)
    # `meta/Llama@theta=8e6` has its only = after the @; `lr=1/merged@theta=8e6` is a folder's name.
    name, rest = (named[1], named[2]) if named else (None, text)
    roped = _ROPE.fullmatch(text)
    if named and roped and Path(roped[1]).is_dir():
        name, rest = None, text
    found = _ROPE.fullmatch(rest)
    if found and not Path(rest).is_dir():
        return name, found[1], found[2]
    return name, rest, ""


def _parse_suffix(suffix: str) -> tuple[str | None, int | None]:
    rope, target_len = None, None
    for part in filter(None, suffix.split(",")):
        if part.startswith("target="):
            target_len = parse_count(part.removeprefix("target="))
        else:
            rope = part
    return (rope or "auto") if suffix else None, target_len


def _short_names(paths: list[tuple[str, str]]) -> Iterator[str]:
    """One name for each (path, suffix), in order."""
    parts = []
    for path, _ in paths:
        folder = Path(path)
        whole = folder.resolve() if folder.is_dir() else folder
        parts.append([part for part in whole.parts if part not in ("/", "\\")] or [path])
    suffixes = [f"@{suffix}" if suffix else "" for _, suffix in paths]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-depth:]) + s for p, s in zip(parts, suffixes, strict=True)]
        if len(set(names)) == len(names):
            break
    return iter(names)


def parse_dtype(dtype: str) -> str:
    """The torch name of a dtype. Raises LongRecipeError for one that is not known."""
    if dtype not in _DTYPES:
        raise LongRecipeError(f"unknown dtype {dtype}; choose float32, bfloat16 or float16")
    return _DTYPES[dtype]


def load_model(spec: ModelSpec, *, dtype: str, device: str) -> LoadedModel:
    """Load config, weights (safetensors only, no remote code) and tokenizer.

    Raises LongRecipeError where one of them is missing or does not fit the others.
    """
    import torch

    from lrtrain.model import choose_device

    tokenizer = Tokenizer.load(spec.path)
    config = _load_config(spec)
    model = _load_weights(spec, config, getattr(torch, parse_dtype(dtype)))
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise LongRecipeError(
            f"{spec.path} has {rows} embeddings but its tokenizer {tokenizer.vocab_size} ids; "
            "put the tokenizer there that it was trained with"
        )
    place = choose_device(device)
    parameters = getattr(config, "rope_parameters", None) or {}
    return LoadedModel(
        spec=spec,
        model=model.to(place).eval(),
        tokenizer=tokenizer,
        device=place,
        window=int(config.max_position_embeddings),
        theta=parameters.get("rope_theta"),
        rope_type=str(parameters.get("rope_type", "default")),
        parameters=sum(weight.numel() for weight in model.parameters()),
    )


def _load_weights(spec: ModelSpec, config: Any, dtype: "torch.dtype") -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _quiet_loading():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                spec.path,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"{spec.path} cannot be loaded: {problem}") from None
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise LongRecipeError(f"{spec.path} lacks the weights {missing}; save the model again")
    return model


def _load_config(spec: ModelSpec) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(spec.path, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"{spec.path} has no config to read: {problem}") from None
    if getattr(config, "max_position_embeddings", None) is None:
        raise LongRecipeError(f"{spec.path} has no max_position_embeddings; it is not supported")
    if spec.rope is not None:
        from lrtrain.rope import parse_rope, set_rope

        target_len = spec.target_len or config.max_position_embeddings
        if spec.rope == "auto" and spec.target_len is None:
            raise LongRecipeError(f"{spec.path}@auto needs a target; write @target=128k")
        set_rope(config, parse_rope(spec.rope), target_len)
    return config


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No bar of transformers' own beside ours while weights are loaded."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
