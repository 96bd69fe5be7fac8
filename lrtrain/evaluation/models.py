"""The models of an evaluation, loaded with transformers' own attention (sdpa), not with the
trainer's, so that a mistake in the trainer's attention cannot hide in the evaluation.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdata.errors import LongRecipeError, one_line
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
    """A model under evaluation. `window` is its max_position_embeddings, `theta` its RoPE base,
    `layers_width` the number of its layers times what is hidden between two of them."""

    spec: ModelSpec
    model: Any  # PreTrainedModel
    tokenizer: Tokenizer
    device: "torch.device"
    window: int
    theta: float | None
    rope_type: str
    parameters: int
    layers_width: int = 0

    def operations(self, length: int) -> float:
        """Of reading so many tokens, about: two for each weight and token, and of the causal half
        of attention two for each pair of tokens and number between layers.
        """
        return 2.0 * length * (self.parameters + length * self.layers_width)


def parse_dtype(dtype: str) -> str:
    """The torch name of a dtype, or auto. Raises LongRecipeError for one that is not known."""
    if dtype not in _DTYPES:
        raise LongRecipeError(f"unknown dtype {dtype}; choose auto, float32, bfloat16 or float16")
    return _DTYPES[dtype]


@dataclass(frozen=True, eq=False)
class OpenModel:
    """What is known of a model before its weights are read: config, tokenizer, where it goes."""

    spec: ModelSpec
    tokenizer: Tokenizer
    config: Any  # PretrainedConfig, with the RoPE of the spec
    device: "torch.device"
    dtype: "torch.dtype"
    written: list[tuple[str, int]]
    """Its files of weights, and when they were written: nanoseconds. Of a hub id, none."""

    @property
    def name(self) -> str:
        return self.spec.name

    @cached_property
    def folder(self) -> Path:
        """Of its files; of a hub id, in the hub's cache, where they are fetched to."""
        from lrtrain.model_files import model_folder

        return model_folder(self.spec.path)

    @cached_property
    def key(self) -> str:
        """A digest of what tells it from other models, whatever it is called, and of the code that
        measures it."""
        from lrtrain.model import model_fingerprint

        spec, reads = self.spec, self.tokenizer
        ends = self.folder / "generation_config.json"  # of answers
        said = [
            model_fingerprint(str(self.folder)),
            ends.read_text(encoding="utf-8") if ends.exists() else None,
            [reads.fingerprint, reads.probe_fingerprint, reads.bos_id, reads.eot_id],
            [reads.chat_template, reads.bos_token],
            [spec.rope, spec.target_len, str(self.dtype), self.device.type],
            _code(),
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def load(self) -> LoadedModel:
        """Read the weights: safetensors only, no remote code.

        Raises LongRecipeError where some are missing or do not fit the config or the tokenizer, or
        were written after the model was opened.
        """
        from lrtrain.model import check_vocabulary

        spec, tokenizer = self.spec, self.tokenizer
        if self.device.type == "cuda":
            _settle_kernels(self.dtype)
        model = _load_weights(spec, self.folder, self.config, self.dtype)
        if _written(spec) != self.written:
            raise LongRecipeError(
                f"{spec.path} was written anew since the evaluation began; start it again"
            )
        check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0], spec.path)
        parameters = getattr(self.config, "rope_parameters", None) or {}
        text = self.config.get_text_config()
        return LoadedModel(
            spec=spec,
            model=model.to(self.device).eval(),
            tokenizer=tokenizer,
            device=self.device,
            window=int(self.config.max_position_embeddings),
            theta=parameters.get("rope_theta"),
            rope_type=str(parameters.get("rope_type", "default")),
            parameters=sum(weight.numel() for weight in model.parameters()),
            layers_width=int(text.num_hidden_layers * text.hidden_size),
        )


@cache
def _code() -> str:
    """A digest of what measures: an installation from a checkout has any state of one version."""
    here = Path(__file__).parent
    files = {*here.rglob("*.py"), here.with_name("loss.py")} - {*here.glob("report/*.py")}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _settle_kernels(dtype: "torch.dtype") -> None:
    """Of transformers' sdpa on GPUs, for this process.

    cuDNN's attention comes first in newer versions of torch, and has been wrong more than once
    (pytorch issues 169849 and 193893). For fp32 and grouped heads torch has but the kernel that
    makes the S x S matrix, unless keys and values are repeated, which transformers does with a mask
    alone.
    """
    import torch
    from transformers.integrations import sdpa_attention

    torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype == torch.float32:
        sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def open_model(spec: ModelSpec, *, dtype: str, device: str, eot: str | None = None) -> OpenModel:
    """Read config and tokenizer, see `Tokenizer.load` for `eot`. Raises LongRecipeError where one
    is missing or cannot be used."""
    import torch

    from lrtrain.model import automatic_dtype, choose_device

    tokenizer = Tokenizer.load(spec.path, eot=eot)
    config = _load_config(spec)
    place, name = choose_device(device), parse_dtype(dtype)
    known = automatic_dtype(place) if name == "auto" else getattr(torch, name)
    return OpenModel(spec, tokenizer, config, place, known, _written(spec))


def _written(spec: ModelSpec) -> list[tuple[str, int]]:
    weights = sorted(Path(spec.path).glob("*.safetensors"))
    return [(path.name, path.stat().st_mtime_ns) for path in weights]


def _load_weights(spec: ModelSpec, folder: Path, config: Any, dtype: "torch.dtype") -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with _quiet_loading():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise LongRecipeError(f"{spec.path} cannot be loaded: {one_line(problem)}") from None
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise LongRecipeError(f"{spec.path} lacks the weights {missing}; save the model again")
    return model


def _load_config(spec: ModelSpec) -> Any:
    """With the RoPE of the spec. Raises LongRecipeError where training refuses the model for it:
    the new RoPE would not be what training starts from, or replace one that is scaled."""
    from transformers import AutoConfig

    from lrtrain.model_files import model_folder

    folder = model_folder(spec.path, ["*.json"])
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"{spec.path} has no config to read: {problem}") from None
    if getattr(config, "max_position_embeddings", None) is None:
        raise LongRecipeError(f"{spec.path} has no max_position_embeddings; it is not supported")
    if spec.rope is not None:
        from lrtrain.model import check_architecture, check_extensible, check_unscaled
        from lrtrain.rope import parse_rope, set_rope

        check_architecture(config, spec.path)
        if spec.target_len is None:
            check_unscaled(config, spec.path)
        else:
            check_extensible(config, spec.path, spec.target_len)
        set_rope(config, parse_rope(spec.rope), spec.target_len or config.max_position_embeddings)
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
