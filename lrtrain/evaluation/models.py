"""The models of an evaluation, loaded with transformers' own attention (sdpa), not with the
trainer's, so that a mistake in the trainer's attention cannot hide in the evaluation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


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


def parse_dtype(dtype: str) -> str:
    """The torch name of a dtype, or auto. Raises LongRecipeError for one that is not known."""
    if dtype not in _DTYPES:
        raise LongRecipeError(f"unknown dtype {dtype}; choose auto, float32, bfloat16 or float16")
    return _DTYPES[dtype]


def load_model(spec: ModelSpec, *, dtype: str, device: str) -> LoadedModel:
    """Load config, weights (safetensors only, no remote code) and tokenizer.

    Raises LongRecipeError where one of them is missing or does not fit the others.
    """
    import torch

    from lrtrain.model import automatic_dtype, choose_device

    tokenizer = Tokenizer.load(spec.path)
    config = _load_config(spec)
    place, name = choose_device(device), parse_dtype(dtype)
    known = automatic_dtype(place) if name == "auto" else getattr(torch, name)
    model = _load_weights(spec, config, known)
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise LongRecipeError(
            f"{spec.path} has {rows} embeddings but its tokenizer {tokenizer.vocab_size} ids; "
            "put the tokenizer there that it was trained with"
        )
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
