"""A whole training step on every family equals a float64 reference; other models are refused."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from safetensors.torch import save_model as save_safetensors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GptOssConfig,
)

from lrdata.errors import LongRecipeError
from lrtrain import attention, distributed
from lrtrain.activations import Activations, prepare
from lrtrain.attention_backends import ON_CPU, load_backend
from lrtrain.loss import training_loss
from lrtrain.model import (
    appearing,
    choose_device,
    load_config,
    load_model,
    open_weights,
    save_model,
)
from lrtrain.model_files import model_folder
from lrtrain.rope import Rope
from tests.lrtrain.tiny_models import (
    FAMILIES,
    THETA,
    VOCABULARY,
    WINDOW,
    document_mask,
    download_from,
    reference_model,
    save_tiny,
    tiny_config,
)

TARGET, NEW_THETA = 512, 400_000.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of each family, and a Qwen2 with tied embeddings."""
    root = tmp_path_factory.mktemp("models")
    paths = {family: save_tiny(family, root / family) for family in FAMILIES}
    paths["qwen2 tied"] = save_tiny("qwen2", root / "tied", tie_word_embeddings=True)
    return paths


@dataclass(frozen=True)
class _Sample:
    """A flat row: tokens, positions with gaps, documents, weights with zeros."""

    ids: torch.Tensor
    positions: torch.Tensor
    seq_lengths: list[int]
    weights: torch.Tensor


def _sample(seq_lengths: Sequence[int], seed: int = 0) -> _Sample:
    generator = torch.Generator().manual_seed(seed)
    total = sum(seq_lengths)
    positions = []
    for length in seq_lengths:
        chosen = torch.randperm(TARGET, generator=generator)[: (length + 3) // 4].sort().values
        runs = (chosen[:, None] // 4 * 4 + torch.arange(4)).reshape(-1)  # runs of 4, then a gap
        positions.append(runs[:length].sort().values)
    weights = torch.rand(total, generator=generator)
    weights[torch.rand(total, generator=generator) < 0.3] = 0
    weights[torch.tensor([0, *seq_lengths[:-1]]).cumsum(0)] = 0
    ids = torch.randint(0, VOCABULARY, (1, total), generator=generator)
    return _Sample(ids, torch.cat(positions)[None], list(seq_lengths), weights)


def _reference_step(folder: str, sample: _Sample, scale: float) -> Any:
    """Loss in float64 and the model holding its gradients."""
    rope = {"rope_type": "default", "rope_theta": NEW_THETA}
    model = reference_model(folder, rope, TARGET)
    for layer in model.model.layers:
        layer.self_attn.scaling *= scale
    logits = model(
        input_ids=sample.ids,
        position_ids=sample.positions,
        attention_mask=document_mask(sample.seq_lengths),
        use_cache=False,
    ).logits[0]
    losses = F.cross_entropy(logits[:-1], sample.ids[0, 1:], reduction="none")
    loss = (losses * sample.weights[1:]).sum()
    loss.backward()
    return loss, model


def _count_calls(monkeypatch: pytest.MonkeyPatch, backend: str) -> list[int]:
    calls = []
    original = load_backend(backend)

    def counting(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(query.shape[2])
        return original(query, *rest)

    monkeypatch.setattr(attention, "_chosen", counting)
    return calls


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", [*FAMILIES, "qwen2 tied"])
def test_a_whole_training_step_equals_the_float64_reference(
    folders: dict[str, str],
    name: str,
    backend: str,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = _count_calls(monkeypatch, backend)
    for seq_lengths, scale in (([50], 1.0), ([12, 12, 7, 30], 1.0), ([20, 20], 0.75)):
        sample = _sample(seq_lengths)
        assert int(sample.positions.diff().max()) > 1  # gaps that plain transformers would cut at
        expected, reference = _reference_step(folders[name], sample, scale)

        model = load_model(
            folders[name], dtype=torch.float32, rope=Rope("theta", NEW_THETA), target_len=TARGET
        ).train()
        if checkpointing:
            prepare(model, Activations(checkpointing=True))
        calls.clear()
        loss = training_loss(
            model,
            sample.ids,
            sample.positions,
            sample.seq_lengths,
            sample.weights,
            attention_scale=scale,
            chunk_tokens=11,
        )
        loss.backward()

        # Checkpointing really happened: each layer's attention ran again in the backward pass.
        assert len(calls) == (4 if checkpointing else 2)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        gradients = {key: p.grad for key, p in reference.named_parameters()}
        ours = dict(model.named_parameters())
        assert ours.keys() == gradients.keys()
        for key, parameter in ours.items():
            assert gradients[key].abs().max() > 0
            error = (parameter.grad.double() - gradients[key]).abs().max()
            assert error <= 1e-4 * gradients[key].abs().max(), key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_with_a_cut_at_the_gaps_would_show(
    folders: dict[str, str], name: str
) -> None:
    """The equality above is not blind: cutting documents moves the loss far beyond its bounds."""
    sample = _sample([40])
    model = load_model(
        folders[name], dtype=torch.float32, rope=Rope("theta", NEW_THETA), target_len=TARGET
    )
    with torch.no_grad():
        whole, cut, unscaled = (
            float(training_loss(model, sample.ids, sample.positions, lengths, sample.weights, s))
            for lengths, s in (([40], 0.75), ([20, 20], 0.75), ([40], 1.0))
        )
    assert abs(whole - cut) > 1e-3 * whole
    assert abs(whole - unscaled) > 1e-3 * whole


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_cross_gaps_and_stop_at_documents(
    folders: dict[str, str], name: str, checkpointing: bool
) -> None:
    """Through the training step: the loss behind a gap depends on the tokens before it."""
    model = load_model(folders[name], dtype=torch.float32).train()
    if checkpointing:
        prepare(model, Activations(checkpointing=True))
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, VOCABULARY, (1, 24), generator=generator)
    ids[0, 3] = VOCABULARY - 1
    ids[0][torch.arange(24) != 3] %= VOCABULARY - 1  # token 3 alone has this row of the table
    positions = torch.cat([torch.arange(12), torch.arange(12) + 40])[None]
    weights = torch.cat([torch.zeros(13), torch.ones(11)])

    def influence_of_token_3(seq_lengths: list[int]) -> float:
        model.zero_grad()
        training_loss(model, ids, positions, seq_lengths, weights).backward()
        return float(model.model.embed_tokens.weight.grad[VOCABULARY - 1].abs().max())

    assert influence_of_token_3([24]) > 1e-4
    assert influence_of_token_3([12, 12]) == 0.0


def _refused(config: Any, folder: Path, match: str, **arguments: Any) -> None:
    """load_model says no from the config alone, in one line that names the model."""
    config.save_pretrained(folder)
    with pytest.raises(LongRecipeError, match=match) as problem:
        load_model(str(folder), dtype=torch.float32, **arguments)
    assert str(folder) in str(problem.value)
    assert "\n" not in str(problem.value)


EXTEND: dict[str, Any] = {"rope": Rope("auto"), "target_len": TARGET}


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    _refused(
        tiny_config("mistral", sliding_window=32),
        tmp_path / "mistral",
        "sliding-window attention \\(sliding_window=32\\)",
    )
    for family in ("qwen2", "qwen3"):
        sliding = tiny_config(
            family, use_sliding_window=True, sliding_window=32, max_window_layers=1
        )
        _refused(sliding, tmp_path / family, "sliding-window attention")


def test_qwen_with_an_unused_sliding_window_is_accepted(tmp_path: Path) -> None:
    folder = save_tiny("qwen2", tmp_path / "q", use_sliding_window=False, sliding_window=32)
    load_model(folder, dtype=torch.float32, **EXTEND)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (Gemma2Config(), "is a gemma2 model"),  # soft-capped logits, sliding layers
        (GptOssConfig(), "is a gpt_oss model"),  # attention sinks
        (GPT2Config(), "is a gpt2 model"),  # learned positions
    ],
    ids=["soft-capping", "sinks", "no-rope"],
)
def test_other_architectures_are_refused_by_name(config: Any, match: str, tmp_path: Path) -> None:
    _refused(config, tmp_path / "model", match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attention_sink": True}, "attention_sink"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its plain weights"),
        (
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": THETA,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor",
        ),
    ],
)
def test_details_that_the_trainer_does_not_compute_are_refused(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    _refused(tiny_config("llama", **changes), tmp_path / "model", match)


@pytest.mark.parametrize(
    "scaled",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda scaled: scaled["rope_type"],
)
def test_a_rope_that_is_already_scaled_is_not_extended(
    scaled: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config("llama", rope_parameters={"rope_theta": THETA, **scaled})
    match = f"already scaled \\(rope_type={scaled['rope_type']}\\)"
    _refused(config, tmp_path / "model", match, **EXTEND)


@pytest.mark.parametrize("window", [TARGET, 2 * TARGET])
def test_a_window_that_is_already_the_target_is_refused(window: int, tmp_path: Path) -> None:
    config = tiny_config("llama", max_position_embeddings=window)
    _refused(config, tmp_path / "model", f"already has a window of {window:,} tokens", **EXTEND)


def test_code_that_comes_with_a_model_never_runs(tmp_path: Path) -> None:
    """A Llama whose config points to code of its own loads as a plain Llama."""
    folder = Path(save_tiny("llama", tmp_path / "model"))
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass C: pass\nclass M: pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": own}), encoding="utf-8")

    model = load_model(str(folder), dtype=torch.float32, **EXTEND)
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"

    unknown = {**config, "auto_map": own, "model_type": "my-own"}
    (folder / "config.json").write_text(json.dumps(unknown), encoding="utf-8")
    with pytest.raises(LongRecipeError, match="no model at"):
        load_model(str(folder), dtype=torch.float32)
    assert not marker.exists()


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LongRecipeError, match=r"has no config\.json"):
        load_model(str(tmp_path), dtype=torch.float32)
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(LongRecipeError, match=r"model\.safetensors is missing"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = Path(save_tiny("llama", tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LongRecipeError, match="only safetensors are read"):
        load_model(str(folder), dtype=torch.float32)


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As of a model without a head for next tokens."""
    del tensors["lm_head.weight"]
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda x: {key: x[key] for key in x if key != "lm_head.weight"},
            r"lm_head\.weight is not there, and \(96, 48\) by its config\.json",
        ),
        (
            lambda x: {key: x[key] for key in x if "1.mlp.up_proj" not in key},
            r"model\.layers\.1\.mlp\.up_proj\.weight is not there",
        ),
        (_without_prefix, r"lm_head\.weight is not there.* as a causal model"),
        (
            lambda x: {**x, "model.layers.0.self_attn.q_proj.bias": torch.ones(48)},
            r"layers\.0\.self_attn\.q_proj\.bias is not of the model of its config\.json",
        ),
        (
            lambda x: {**x, "model.norm.weight": torch.ones(16)},
            r"model\.norm\.weight is \(16,\), and \(48,\) by its config\.json",
        ),
        (
            lambda x: {**x, "model.norm.weight": torch.ones(48, dtype=torch.int8)},
            r"model\.norm\.weight is stored as I8",
        ),
    ],
    ids=["no head", "no layer", "no prefix", "a bias", "a shape", "bytes"],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    match: str,
    tmp_path: Path,
) -> None:
    """transformers would draw those that are missing at random, and say so in a warning."""
    folder = Path(save_tiny("llama", tmp_path / "model"))
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LongRecipeError, match=match) as problem:
        load_model(str(folder), dtype=torch.float32)
    assert str(problem.value).startswith(f"{folder}: ")
    assert "\n" not in str(problem.value)


def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    file = Path(save_tiny("llama", tmp_path / "model")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LongRecipeError, match=rf"{file} is damaged \(.*\); get the model again"):
        load_model(str(file.parent), dtype=torch.float32)


@pytest.mark.parametrize("stored", ["both", "input", "output", "buffers", "split"])
def test_tied_embeddings_are_loaded_however_they_are_stored(stored: str, tmp_path: Path) -> None:
    """Both, either, with the buffers of old versions, in several files: as transformers has it."""
    folder = Path(save_tiny("llama", tmp_path / "model", tie_word_embeddings=True))
    expected = AutoModelForCausalLM.from_pretrained(folder)
    file, head = folder / "model.safetensors", "lm_head.weight"
    tensors = load_file(file)
    if stored == "both":
        tensors[head] = tensors["model.embed_tokens.weight"].clone()
    elif stored == "output":
        file.unlink()
        save_safetensors(expected, str(file))  # keeps one of two that share their memory
        tensors = load_file(file)
        assert head in tensors
        assert "model.embed_tokens.weight" not in tensors
    elif stored == "buffers":
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file, {"format": "pt"})
    if stored == "split":
        file.unlink()
        expected.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    open_weights(str(folder), load_config(str(folder))).check_tied()
    ours = load_model(str(folder), dtype=torch.float32)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    for name, parameter in expected.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter)


def test_one_file_is_read_before_several_as_transformers_does(tmp_path: Path) -> None:
    folder = Path(save_tiny("llama", tmp_path / "model"))
    index = {"weight_map": {"lm_head.weight": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    AutoModelForCausalLM.from_pretrained(folder)
    load_model(str(folder), dtype=torch.float32)


def test_an_output_embedding_of_its_own_in_a_tied_model_is_refused(tmp_path: Path) -> None:
    """transformers trains both; many ranks, and a merge, would leave it out."""
    folder = Path(save_tiny("llama", tmp_path / "model", tie_word_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    weights = open_weights(str(folder), load_config(str(folder)))
    with pytest.raises(LongRecipeError, match="set tie_word_embeddings to false") as problem:
        weights.check_tied()
    assert f"{folder} holds an output embedding of its own" in str(problem.value)


def test_of_a_hub_model_the_weights_of_its_index_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that some hold a second time, for other programs."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    model = AutoModelForCausalLM.from_pretrained(save_tiny("llama", tmp_path / "model"))
    model.save_pretrained(hub, max_shard_size="20KB")
    wanted = {path.name for path in hub.iterdir()}
    for name in ("consolidated.safetensors", "README.md"):
        (hub / name).touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_from(hub, cache))
    assert model_folder("me/model") == cache
    assert {path.name for path in cache.iterdir()} == wanted


def test_loading_without_extension_keeps_window_and_theta(folders: dict[str, str]) -> None:
    model = load_model(folders["llama"], dtype=torch.bfloat16)
    assert model.config.max_position_embeddings == WINDOW
    assert model.config.rope_parameters["rope_theta"] == THETA
    assert model.dtype == torch.bfloat16


def test_a_folder_has_its_name_when_all_in_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes after it finds the name there too, whenever the power goes."""
    done: list[tuple[str, int]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        done.append(("fsync", os.fstat(handle).st_ino))
        real_fsync(handle)

    def rename(source: Any, target: Any) -> None:
        done.append(("rename", os.stat(source).st_ino))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with appearing(tmp_path / "out") as partial:
        (partial / "weights").write_text("many")
        (partial / "config").write_text("few")
    number = {path.name: path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}
    before = done[: done.index(("rename", number["out"]))]
    assert sorted(before[:2]) == sorted(("fsync", number[name]) for name in ("weights", "config"))
    assert before[2:] == [("fsync", number["out"])]
    assert done[len(before) + 1 :] == [("fsync", number[tmp_path.name])]


GENERATION = {"eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9}
"""As of Llama-2 and 3; of what is not sampled, which some transformers write and others refuse."""


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.0: it saves no generation config with a fault."""

    def refuse(config: GenerationConfig, *_: Any, **__: Any) -> None:
        raise ValueError("GenerationConfig is invalid")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", refuse)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("target_len", [None, TARGET])
def test_how_a_model_answers_is_the_bases_but_for_the_old_window(
    target_len: int | None, folders: dict[str, str], tmp_path: Path
) -> None:
    """Else `generate` takes no prompt that is longer than the base's was."""
    base, out = Path(shutil.copytree(folders["llama"], tmp_path / "base")), tmp_path / "out"
    own = {**GENERATION, "max_length": WINDOW}
    (base / "generation_config.json").write_text(json.dumps(own))
    rope = Rope("auto") if target_len else None
    model = load_model(str(base), dtype=torch.float32, rope=rope, target_len=target_len)
    save_model(model, str(base), out, target_len=target_len, card="")
    saved = json.loads((out / "generation_config.json").read_text())
    assert saved == (GENERATION if target_len else own)
    if target_len:
        prompt = torch.ones((1, 2 * WINDOW), dtype=torch.long)
        assert AutoModelForCausalLM.from_pretrained(out).generate(prompt).shape[1] > 2 * WINDOW


@pytest.mark.usefixtures("strict")
def test_a_base_that_has_it_in_its_config_has_it_in_a_file_of_its_own(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """As models of transformers before 4.26 have."""
    base, out = Path(shutil.copytree(folders["llama"], tmp_path / "base")), tmp_path / "out"
    (base / "generation_config.json").unlink()
    config = json.loads((base / "config.json").read_text())
    old = {**config, "temperature": 0.6, "max_length": WINDOW}
    (base / "config.json").write_text(json.dumps(old))
    model = load_model(str(base), dtype=torch.float32, rope=Rope("auto"), target_len=TARGET)
    save_model(model, str(base), out, target_len=TARGET, card="")
    saved = json.loads((out / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6
    assert "max_length" not in saved


def test_devices_that_are_not_there_are_one_line() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(LongRecipeError, match="unknown device"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(LongRecipeError, match="no cuda:1 here"):
            choose_device("cuda:1")


def test_a_gpu_multiplies_fp32_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a container has set; each of many ranks has its own. A CPU has no TF32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    before = torch.get_float32_matmul_precision()
    try:
        for choose, name, after in (
            (choose_device, "cpu", "high"),
            (choose_device, "cuda", "highest"),
            (choose_device, "cuda:0", "highest"),
            (distributed._device, "auto", "highest"),
        ):
            torch.set_float32_matmul_precision("high")
            choose(name)
            assert torch.get_float32_matmul_precision() == after
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_device_with_a_number_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random state, locked memory and waiting are of the current one, whatever tensors are on."""
    chosen = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "auto", "cuda:1"):
        assert choose_device(name) == torch.device(name if name != "auto" else "cuda")
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(LongRecipeError, match="no cuda:2 here; choose from cuda:0 to cuda:1"):
        choose_device("cuda:2")
