"""Load a causal model for a longer window with the trainer's attention, and save it as plain HF."""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lrdata.atomic import fsync, write_json, write_text
from lrdata.errors import LongRecipeError
from lrdata.shards import file_sha256
from lrdata.tokenizer import Tokenizer
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.distributed import ALONE, Ranks, shard, whole_parameters
from lrtrain.model_files import SINGLE, Weights, model_folder, weight_files, write_safetensors
from lrtrain.rope import Rope, check_angles, check_inv_freq, rope_of_transformers_4, set_rope

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The architectures whose training step is tested against a dense reference."""

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What --dtype names."""

_GENERATION = "generation_config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def quiet_transformers() -> None:
    """Only errors: its notes and bars would hide the one progress line that matters."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def choose_device(name: str) -> torch.device:
    """`auto` is cuda where there is one; of several, cuda:1 is torch's own from then on. Raises
    LongRecipeError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LongRecipeError(f"unknown device {name}; choose cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LongRecipeError(f"there is no {name} here; use --device cpu")
    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            raise LongRecipeError(
                f"there is no {name} here; choose from cuda:0 to cuda:{count - 1}"
            )
        torch.cuda.set_device(device)  # of random state, locked memory, what is waited for
    if device.type == "cuda":  # TF32, which some containers ask for, has 11 bits for a position
        torch.set_float32_matmul_precision("highest")
    return device


def automatic_dtype(device: torch.device) -> torch.dtype:
    """What --dtype auto reads models in: bf16 on a GPU, fp32 on a CPU, where few have fast bf16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_config(path_or_id: str) -> Any:
    """The model's config; never runs code that comes with a model."""
    from transformers import AutoConfig

    quiet_transformers()

    path = Path(path_or_id)
    if path.exists() and not (path / "config.json").exists():
        raise LongRecipeError(f"{path} has no config.json; name a Hugging Face model folder")
    try:
        return AutoConfig.from_pretrained(path_or_id, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"no model at {path_or_id}: {_first_line(problem)}") from None


def check_architecture(config: Any, name: str) -> None:
    """Raise LongRecipeError unless the trainer computes exactly what this model computes."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise LongRecipeError(
            f"{name} is a {kind} model; the trainer knows {', '.join(FAMILIES)}: its attention "
            "would not be the model's own"
        )
    if getattr(config, "quantization_config", None):
        raise LongRecipeError(
            f"{name} is quantized (quantization_config); start from its plain weights"
        )
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if (slides and kind == "mistral") or layers != {"full_attention"}:
        raise LongRecipeError(
            f"{name} uses sliding-window attention (sliding_window={config.sliding_window}); "
            "extending its window would change the model: choose one with full attention"
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention_sink"):
        if getattr(config, key, None):
            raise LongRecipeError(f"{name} has {key}, which the trainer does not compute")
    if getattr(config, "attention_dropout", 0.0):
        raise LongRecipeError(
            f"{name} has attention_dropout={config.attention_dropout}; set it to 0"
        )
    parameters = config.rope_parameters or {}
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise LongRecipeError(f"{name} rotates a part of each head (partial_rotary_factor)")


def check_extensible(config: Any, name: str, target_len: int) -> None:
    """Raise LongRecipeError when the model's window is not below the target or already scaled."""
    if config.max_position_embeddings >= target_len:
        raise LongRecipeError(
            f"{name} already has a window of {config.max_position_embeddings:,} tokens "
            f"(max_position_embeddings), which a target of {target_len:,} does not extend; choose "
            "a longer target or another model"
        )
    check_unscaled(config, name)


def check_unscaled(config: Any, name: str) -> None:
    """Raise LongRecipeError when the model's RoPE is already scaled."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind != "default":
        raise LongRecipeError(
            f"{name} has RoPE that is already scaled (rope_type={kind}); start from the model "
            "before it was extended"
        )


def check_vocabulary(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Raise LongRecipeError unless a model with so many embeddings has one for each id."""
    if tokenizer.vocab_size > rows:
        raise LongRecipeError(
            f"{name} has {rows} embeddings but its tokenizer {tokenizer.vocab_size} ids; "
            "put the tokenizer there that it was trained with"
        )


def open_weights(path_or_id: str, config: Any) -> Weights:
    """A model's tensors, which are those of its config: transformers makes up what is missing and
    leaves out what it does not know. Reads headers alone. Raises LongRecipeError."""
    from transformers import AutoModelForCausalLM

    weights = Weights(model_folder(path_or_id), config.tie_word_embeddings)
    with torch.device("meta"):
        shell: Any = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)
    weights.check({name: parameter.shape for name, parameter in shell.named_parameters()})
    return weights


def load_model(
    path_or_id: str,
    *,
    dtype: torch.dtype,
    rope: Rope | None = None,
    target_len: int | None = None,
    device: str | torch.device = "cpu",
    ranks: Ranks = ALONE,
) -> Any:
    """Load a causal model with the trainer's attention; sharded, if there are many ranks.

    With `rope` and `target_len` its window is extended: the config is changed before the model is
    made, and the rotary frequencies are checked afterwards. Raises LongRecipeError for anything
    that the trainer would compute differently from the model.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(path_or_id)
    check_architecture(config, path_or_id)
    if rope is not None:
        if target_len is None:
            raise ValueError("a new RoPE needs a target length")
        check_extensible(config, path_or_id, target_len)
        set_rope(config, rope, target_len)
    register()
    weights = open_weights(path_or_id, config)
    if ranks.size > 1:
        return _load_sharded(weights, config, dtype, ranks)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            config=config,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            use_safetensors=True,
            trust_remote_code=False,
            **_straight_to(torch.device(device)),
        )
    except (OSError, ValueError) as problem:
        raise LongRecipeError(f"cannot load {path_or_id}: {_first_line(problem)}") from None
    check_inv_freq(model)
    model = model.to(device)
    check_angles(model)
    return model


def _load_sharded(weights: Weights, config: Any, dtype: torch.dtype, ranks: Ranks) -> Any:
    """A model without weights whose layers get theirs, and are sharded, one after another."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=IMPLEMENTATION
        )
    # on meta it has no numbers: make it again
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(ranks.device)
    names = {parameter: name for name, parameter in model.named_parameters()}

    def fill(module: torch.nn.Module) -> None:
        made = dict[torch.Tensor, torch.nn.Parameter]()  # of tied ones: the same for both
        for part in module.modules():
            for leaf, parameter in list(part.named_parameters(recurse=False)):
                if parameter.is_meta:
                    if parameter not in made:
                        tensor = weights[names[parameter]].to(ranks.device, dtype)
                        made[parameter] = torch.nn.Parameter(tensor)
                    setattr(part, leaf, made[parameter])

    shard(model, ranks, fill)
    check_inv_freq(model)
    check_angles(model)
    return model


def _straight_to(device: torch.device) -> dict[str, Any]:
    """transformers reads weights a tensor at a time; to a GPU without a copy of the model in host
    memory where accelerate is installed."""
    if device.type == "cpu" or find_spec("accelerate") is None:
        return {}
    return {"device_map": {"": device}}


def model_fingerprint(path_or_id: str) -> str:
    """sha256 over a model's config and the files of weights that are read: the same whether it is a
    folder or a hub id, of which they are fetched."""
    folder = model_folder(path_or_id)
    digest = hashlib.sha256()
    for name in sorted(["config.json", *weight_files(folder)]):
        if (folder / name).exists():  # that it is not is said when the weights are opened
            digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def save_model(
    model: Any,
    tokenizer_from: str,
    out: Path,
    *,
    target_len: int | None,
    card: str,
    ranks: Ranks = ALONE,
) -> None:
    """Write a plain Hugging Face folder: weights, config, tokenizer, model card.

    A tensor at a time: the optimizer may still be in host memory. Of a sharded model the first
    rank writes it; all must call.

    The folder appears under its name when it is complete. What was written is loaded again from
    its config and its rotary frequencies are checked. `tokenizer_from`: a folder or hub id, whose
    tokenizer files are copied as they are, but for model_max_length; and its generation config.
    """
    quiet_transformers()

    def save() -> None:
        tensors = whole_parameters(model) if ranks.size > 1 else _parameters(model)
        try:
            if not ranks.first:
                return
            with appearing(out) as partial:
                _write_model(model, tensors, partial)
                _write_generation_config(model, tokenizer_from, partial, target_len)
                copy_tokenizer(tokenizer_from, partial, target_len)
                write_text(partial / "README.md", card)
                check_saved(partial, model.config)
        finally:
            deque(tensors, maxlen=0)  # all ranks give theirs, whatever becomes of it

    ranks.agree(save)


def _parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, each on the CPU when it is asked for."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().cpu()


def _write_model(model: Any, tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Weights and config as save_pretrained writes them."""
    parameters = list(model.named_parameters())
    header = {name: (parameter.dtype, tuple(parameter.shape)) for name, parameter in parameters}
    write_safetensors(folder / SINGLE, tensors, header)
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    model.config.dtype = parameters[0][1].dtype
    save_config(model.config, folder)


def save_config(config: Any, folder: Path) -> None:
    """Its RoPE in the words of transformers 4 too, which would take theta 10,000 without."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**written, **rope_of_transformers_4(config.rope_parameters)})


def _write_generation_config(model: Any, source: str, out: Path, target_len: int | None) -> None:
    """The source's own where it has one: save_pretrained refuses some that are in use. A
    max_length there is of the window before: `generate` would refuse longer prompts."""
    path = model_folder(source, [_GENERATION]) / _GENERATION
    own = path.read_text(encoding="utf-8") if path.exists() else None
    config = json.loads(own or model.generation_config.to_json_string())
    if target_len is not None:
        config.pop("max_length", None)
    write_json(out / _GENERATION, config)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name, when all in it is on the disk, on
    success; removed on failure."""
    if out.exists():
        raise LongRecipeError(f"{out} exists; choose another folder or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            fsync(path)
        partial.rename(out)
        fsync(out.parent)  # checkpoints may go after it
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_tokenizer(source: str, out: Path, target_len: int | None) -> None:
    """Copy tokenizer files byte for byte; tokenizer_config.json gets the new model_max_length."""
    folder = model_folder(source, TOKENIZER_FILES)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
    settings = out / "tokenizer_config.json"
    if target_len is not None and settings.exists():
        config = json.loads(settings.read_text(encoding="utf-8"))
        write_json(settings, {**config, "model_max_length": target_len})


def check_saved(folder: Path, wanted: Any) -> None:
    """The RoPE and window that plain transformers makes of a saved config: those of `wanted`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    embedding = type(shell.model.rotary_emb)(config)  # on meta it has no numbers: make it again
    for name in ("rope_parameters", "max_position_embeddings"):
        meant, found = getattr(wanted, name), getattr(config, name)
        if found != meant:
            raise LongRecipeError(
                f"{folder}: transformers reads {name} {found} where {meant} was to be saved; "
                "report it with its version"
            )
    check_inv_freq(_Rotary(config, embedding))


class _Rotary(torch.nn.Module):
    """Only the rotary embedding of a model, for `check_inv_freq`."""

    def __init__(self, config: Any, embedding: torch.nn.Module) -> None:
        super().__init__()
        self.config, self.embedding = config, embedding


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
