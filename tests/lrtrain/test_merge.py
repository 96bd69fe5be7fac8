"""The streamed merge is the weighted mean, and the tuned model's config wins."""

import json
import os
import weakref
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save_model as save_safetensors
from transformers import AutoModelForCausalLM

import lrtrain.merge
from lrdata.errors import LongRecipeError
from lrtrain import model_files
from lrtrain.merge import merge_models
from lrtrain.model import load_config, load_model, save_model
from lrtrain.model_files import Weights, write_safetensors
from lrtrain.rope import Rope
from tests.lrtrain.tiny_models import FAMILIES, download_from, save_tiny


def a_pair(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[Path, Path]:
    """A base in float32, and the same made wider with other weights, in `dtype`."""
    base = Path(save_tiny(family, folder / "base", **changes))
    tuned = load_model(str(base), dtype=dtype, rope=Rope("auto"), target_len=512)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_model(tuned, str(base), folder / "tuned", target_len=512, card="")
    return base, folder / "tuned"


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_every_tensor_is_the_weighted_mean(family: str, weight: float, tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path, family, tie_word_embeddings=family == "qwen2")
    assert (family == "qwen2") != ("lm_head.weight" in load_file(tuned / "model.safetensors"))
    merge_models(str(base), str(tuned), tmp_path / "merged", weight)
    one, other, merged = (
        load_file(folder / "model.safetensors") for folder in (base, tuned, tmp_path / "merged")
    )
    assert set(merged) == set(other)
    for name, tensor in merged.items():
        wanted = one[name].double() * (1 - weight) + other[name].double() * weight
        assert tensor.dtype == other[name].dtype
        assert torch.allclose(tensor.double(), wanted, atol=1e-6)
    if weight in (0.0, 1.0):
        end = one if weight == 0.0 else other
        assert all(torch.equal(merged[name], end[name]) for name in merged)


def test_config_and_rope_are_the_tuned_models(tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path)
    merge_models(str(base), str(tuned), tmp_path / "merged")
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tuned / name).read_bytes()
    merged, extended = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "merged", tuned)
    )
    assert merged.config.max_position_embeddings == 512
    assert torch.equal(merged.model.rotary_emb.inv_freq, extended.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_dtypes_may_differ_and_the_tuned_models_is_kept(weight: float, tmp_path: Path) -> None:
    """float32 and bf16 give the float64 mean rounded to bf16: rounded once, not on the way."""
    base, tuned = a_pair(tmp_path, dtype=torch.bfloat16)
    merge_models(str(base), str(tuned), tmp_path / "merged", weight)
    one, other, merged = (
        load_file(folder / "model.safetensors") for folder in (base, tuned, tmp_path / "merged")
    )
    for name, tensor in merged.items():
        assert one[name].dtype == torch.float32
        assert tensor.dtype == torch.bfloat16
        wanted = one[name].double() * (1 - weight) + other[name].double() * weight
        assert torch.equal(tensor, wanted.bfloat16())


def test_stored_copies_of_other_tensors_are_not_merged(tmp_path: Path) -> None:
    """Some hub models store the tied output embedding, and old ones the rotary frequencies."""
    base, tuned = a_pair(tmp_path, "qwen2", tie_word_embeddings=True)
    merge_models(str(base), str(tuned), tmp_path / "plain")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    merge_models(str(base), str(tuned), tmp_path / "merged")
    file = "model.safetensors"
    assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_tied_embedding_that_is_stored_as_the_output_alone_is_merged(tmp_path: Path) -> None:
    """As safetensors' own save_model stores it."""
    base, tuned = a_pair(tmp_path, "qwen2", tie_word_embeddings=True)
    merge_models(str(base), str(tuned), tmp_path / "plain")
    model, file = AutoModelForCausalLM.from_pretrained(base), "model.safetensors"
    (base / file).unlink()
    save_safetensors(model, str(base / file))
    assert "model.embed_tokens.weight" not in load_file(base / file)
    merge_models(str(base), str(tuned), tmp_path / "merged")
    assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_the_tokenizer_of_a_hub_model_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some it is in files that are neither weights nor JSON."""
    base, tuned = a_pair(tmp_path)
    tokenizer = ("tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
    for name in tokenizer:
        (tuned / name).write_text(name)
    download = download_from(tuned, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = load_config(str(tuned))
    monkeypatch.setattr(
        lrtrain.merge,
        "load_config",
        lambda name: config if name == "me/tuned" else load_config(name),
    )
    merge_models(str(base), "me/tuned", tmp_path / "merged")
    for name in tokenizer:
        assert (tmp_path / "merged" / name).read_text() == name


def test_models_in_several_files_are_read(tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path)
    merge_models(str(base), str(tuned), tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "split", max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    merge_models(str(tmp_path / "split"), str(tuned), tmp_path / "merged")
    file = "model.safetensors"
    assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_tensors_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a tensor is asked for, the one before it is already gone."""
    base, tuned = a_pair(tmp_path)
    read: list[Any] = []
    most = 0
    original = Weights.__getitem__

    def watched(self: Weights, name: str) -> torch.Tensor:
        nonlocal most
        tensor = original(self, name)
        read.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in read))
        return tensor

    monkeypatch.setattr(Weights, "__getitem__", watched)
    merge_models(str(base), str(tuned), tmp_path / "merged")
    assert len(read) > 20
    assert most <= 4  # the pair at hand, and at most the one before


def test_our_file_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 1, 2).half(),
        "d": torch.tensor(3.0, dtype=torch.float64),
        "e": torch.empty(0, 4),
    }
    header = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", iter(tensors.items()), header)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype


def test_the_disk_keeps_up_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 140 GB that it is told to keep at the end alone other ranks would not wait for that."""
    path, on_the_disk = tmp_path / "x.safetensors", [0]
    monkeypatch.setattr(model_files, "_SYNCED_BYTES", 1000)
    monkeypatch.setattr(os, "fsync", lambda file: on_the_disk.append(os.fstat(file).st_size))
    tensors = {f"t{number:02}": torch.randn(100) for number in range(20)}
    header = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, iter(tensors.items()), header)
    on_the_disk.append(path.stat().st_size)
    tensor, before_the_first = 400, 2000
    assert max(np.diff(on_the_disk)) < before_the_first + 1000 + tensor
    assert max(np.diff(on_the_disk)[1:]) < 1000 + tensor


def test_it_stops_between_two_tensors(tmp_path: Path) -> None:
    """And leaves nothing."""
    base, tuned = a_pair(tmp_path)
    asked = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        merge_models(str(base), str(tuned), tmp_path / "merged", 0.5, lambda: next(asked))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


def refused(base: Path, tuned: Path, out: Path, weight: float = 0.5) -> str:
    with pytest.raises(LongRecipeError) as problem:
        merge_models(str(base), str(tuned), out, weight)
    assert not out.exists()
    assert not list(out.parent.glob(".*partial"))
    return str(problem.value)


def test_models_of_other_shapes_are_refused(tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path)
    wide = Path(save_tiny("llama", tmp_path / "wide", intermediate_size=100))
    assert "merge models of one shape" in refused(wide, tuned, tmp_path / "out")
    deep = Path(save_tiny("llama", tmp_path / "deep", num_hidden_layers=3))
    assert "has no tensor" in refused(deep, tuned, tmp_path / "out")
    tied = Path(save_tiny("llama", tmp_path / "tied", tie_word_embeddings=True))
    assert "lm_head.weight" in refused(tied, tuned, tmp_path / "out")
    qwen = Path(save_tiny("qwen2", tmp_path / "qwen"))
    assert "same architecture" in refused(qwen, tuned, tmp_path / "out")
    assert "between 0" in refused(base, tuned, tmp_path / "out", 1.5)


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_a_tied_model_with_an_output_embedding_of_its_own_is_refused(
    which: str, tmp_path: Path
) -> None:
    """It would be left out."""
    base, tuned = a_pair(tmp_path, "qwen2", tie_word_embeddings=True)
    file = tmp_path / which / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, file, {"format": "pt"})
    message = refused(base, tuned, tmp_path / "out")
    assert f"{tmp_path / which} holds an output embedding of its own" in message


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path)
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    assert "only safetensors are read" in refused(base, tuned, tmp_path / "out")


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path)

    tensors = load_file(base / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(torch.int8)}, base / "model.safetensors")
    assert "stored as I8" in refused(base, tuned, tmp_path / "out")


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    base, tuned = a_pair(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(LongRecipeError, match="exists"):
        merge_models(str(base), str(tuned), out)
    assert (out / "thesis.txt").exists()


def test_different_thetas_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, tuned = a_pair(tmp_path)
    merge_models(str(base), str(tuned), tmp_path / "merged")
    theta = json.loads((tuned / "config.json").read_text())["rope_parameters"]["rope_theta"]
    assert f"{theta:g}" in capfd.readouterr().err
