"""What a run refuses, before the first step, in one line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import read_manifest, write_manifest
from lrtrain.checkpoint import Checkpoints
from lrtrain.cli import main
from lrtrain.model import model_fingerprint
from lrtrain.model_files import SINGLE
from lrtrain.recipe import TrainRecipe
from lrtrain.run_folder import claim
from lrtrain.stages import run
from tests.lrtrain.tiny_runs import RECIPE, TARGET, build_shards, save_tiny_model


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def done(shards: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    run(shards, str(model), out, RECIPE, lambda _: None)
    return out


def _refused(shards: Path, model: Path | str, out: Path, recipe: TrainRecipe = RECIPE) -> str:
    with pytest.raises(LongRecipeError) as problem:
        run(shards, str(model), out, recipe, lambda _: None)
    message = str(problem.value)
    assert "\n" not in message
    assert not (out / "metrics.jsonl").exists()
    assert not (out / "extend").exists()
    return message


@pytest.mark.usefixtures("positions_in_tf32")
def test_a_device_that_rounds_positions_is_refused(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    assert "position 2,049 are off by" in _refused(shards, model, tmp_path / "run")


@pytest.mark.usefixtures("no_native_library")
def test_a_bitsandbytes_that_does_not_work_here_is_refused(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    message = _refused(shards, model, tmp_path / "run", replace(RECIPE, moments="8bit"))
    assert "bitsandbytes does not work on cpu" in message


def test_another_tokenizer(shards: Path, tiny_bos_tokenizer: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tiny_bos_tokenizer, tmp_path / "other")
    assert "another tokenizer" in _refused(shards, model, tmp_path / "run")


def test_a_window_that_is_already_the_target(
    shards: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = save_tiny_model(tiny_tokenizer, tmp_path / "wide", window=TARGET)
    assert "already has a window of 512" in _refused(shards, model, tmp_path / "run")


def test_a_newer_format(shards: Path, model: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(shards, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["format_version"] = "9.0"
    (newer / "manifest.json").write_text(json.dumps(manifest))
    assert "9.0" in _refused(newer, model, tmp_path / "run")


def test_a_flipped_byte(shards: Path, model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    file = damaged / next(e.path for e in read_manifest(damaged).files if e.path[0] == "e")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = _refused(damaged, model, tmp_path / "run")
    assert str(file) in message
    assert "checksum" in message


def test_an_unsupported_architecture(shards: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "gpt"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config |= {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}
    (other / "config.json").write_text(json.dumps(config))
    assert "gemma2" in _refused(shards, other, tmp_path / "run")


def _changed(model: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """A copy with these tensors in it, or without those that are None."""
    shutil.copytree(model, folder)
    tensors = {**load_file(folder / SINGLE), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / SINGLE, {"format": "pt"})
    return folder


def test_weights_that_are_not_there(shards: Path, model: Path, tmp_path: Path) -> None:
    """Which transformers would draw at random."""
    headless = _changed(model, tmp_path / "headless", **{"lm_head.weight": None})
    message = _refused(shards, headless, tmp_path / "run")
    assert f"{headless}: lm_head.weight is not there" in message
    assert not (tmp_path / "run").exists()


def test_a_tied_model_with_an_output_embedding_of_its_own(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    own = _changed(model, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "set tie_word_embeddings to false" in _refused(shards, own, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ids_without_an_embedding(shards: Path, model: Path, tmp_path: Path) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    rows = {name: load_file(model / SINGLE)[name][:900].clone() for name in names}
    few = _changed(model, tmp_path / "few", **rows)
    config = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps({**config, "vocab_size": 900}))
    message = _refused(shards, few, tmp_path / "run")
    assert f"{few} has 900 embeddings but its tokenizer" in message


def test_a_quantized_model(shards: Path, model: Path, tmp_path: Path) -> None:
    quantized = _changed(model, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (quantized / "config.json").write_text(json.dumps(config))
    message = _refused(shards, quantized, tmp_path / "run")
    assert f"{quantized} is quantized (quantization_config)" in message


def test_what_was_made_before_a_stage_that_is_to_run(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    """It would stay, and be announced as made from it."""
    out = Path(shutil.copytree(done, tmp_path / "run"))
    merged, annealed = out / "merged", out / "anneal"
    shutil.rmtree(annealed)  # as after --stages extend,merge
    for names in (("anneal",), ("anneal", "merge"), ("extend", "anneal", "merge")):
        with pytest.raises(LongRecipeError, match=f"anneal stage.*: {merged}; remove"):
            run(shards, str(model), out, replace(RECIPE, stages=names), lambda _: None)
    shutil.copytree(done / "anneal", annealed)
    shutil.rmtree(out / "extend")
    with pytest.raises(LongRecipeError, match=f"extend stage.*: {annealed} and {merged}; remove"):
        run(shards, str(model), out, RECIPE, lambda _: None)
    assert not (out / "extend").exists()
    shutil.rmtree(annealed)
    shutil.rmtree(merged)
    begun = Checkpoints(out, "anneal", 1).save(1, [("weight", torch.zeros(3))]).folder
    with pytest.raises(LongRecipeError, match=f"extend stage.*: {begun}; remove"):
        run(shards, str(model), out, RECIPE, lambda _: None)


def test_an_annealed_model_is_merged_without_the_one_before_it(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    """Which takes 16 GB of an 8B model, and is for nothing but to anneal."""
    out = Path(shutil.copytree(done, tmp_path / "run"))
    for name in ("extend", "merged"):
        shutil.rmtree(out / name)
    run(shards, str(model), out, replace(RECIPE, stages=("anneal", "merge")), lambda _: None)
    merged = (folder / "merged" / SINGLE for folder in (out, done))
    assert len({path.read_bytes() for path in merged}) == 1


def test_a_run_that_is_refused_leaves_the_one_at_work_its_recipe(
    shards: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would not know it any more when it goes on. The first has yet to read its base."""
    out, other = tmp_path / "run", replace(RECIPE, lr=1e-4, steps=1)
    refused = list[LongRecipeError]()

    def slowly(path: str) -> str:
        if not refused:
            with pytest.raises(LongRecipeError, match="another run is at work") as problem:
                run(shards, str(model), out, replace(other, lr=2e-4), lambda _: None)
            refused.append(problem.value)
        return model_fingerprint(path)

    monkeypatch.setattr("lrtrain.run_folder.model_fingerprint", slowly)
    run(shards, str(model), out, other, lambda _: None)
    assert refused
    assert json.loads((out / "recipe.json").read_text())["lr"] == 1e-4
    run(shards, str(model), out, other, lambda _: None)


def test_a_run_that_is_stopped_while_it_reads_its_base_has_not_begun(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    """As of many ranks, where a signal only asks."""
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path, RECIPE, str(model), open_dataset(shards), lambda: True)
    assert not any(tmp_path.iterdir())


def test_a_merge_that_needs_no_anneal_is_done(
    tiny_tokenizer: Path, model: Path, tmp_path: Path
) -> None:
    """Of shards without replay rows."""
    shards, out = build_shards(tiny_tokenizer, tmp_path / "plain", replay=False), tmp_path / "run"
    recipe, said = replace(RECIPE, steps=1), list[str]()
    run(shards, str(model), out, recipe, lambda _: None)
    run(shards, str(model), out, recipe, said.append)
    assert f"merge: {out / 'merged'} is there; done" in said


def test_a_missing_model_and_missing_shards(shards: Path, model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in _refused(shards, empty, tmp_path / "run")
    assert "manifest.json" in _refused(empty, model, tmp_path / "run")


def test_another_run_in_the_folder(shards: Path, model: Path, done: Path) -> None:
    with pytest.raises(LongRecipeError, match="another run"):
        run(shards, str(model), done, replace(RECIPE, lr=1e-4), lambda _: None)


def test_other_shards_are_said_in_words(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    """Not in the hashes of hundreds of files."""
    other = Path(shutil.copytree(shards, tmp_path / "other"))
    manifest = read_manifest(other)
    kept = [entry for entry in manifest.files if entry.kind != "holdout"]
    write_manifest(other, replace(manifest, files=kept))
    with pytest.raises(LongRecipeError, match=f"on other shards than those in {other}") as problem:
        run(other, str(model), done, RECIPE, lambda _: None)
    assert not re.search("[0-9a-f]{64}", str(problem.value))


def test_another_base_under_the_same_name(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    """With it a merge would average a model that was never extended."""
    base, out = Path(shutil.copytree(model, tmp_path / "base")), tmp_path / "run"
    extend, merge = (replace(RECIPE, stages=(stage,), steps=1) for stage in ("extend", "merge"))
    run(shards, str(base), out, extend, lambda _: None)
    sha256 = json.loads((out / "recipe.json").read_text())["model_sha256"]
    assert sha256 == model_fingerprint(str(base))
    tensors = load_file(base / SINGLE)
    before = (base / SINGLE).read_bytes()
    save_file({**tensors, "lm_head.weight": -tensors["lm_head.weight"]}, base / SINGLE)
    with pytest.raises(LongRecipeError, match=f"{base} had other weights or another config"):
        run(shards, str(base), out, merge, lambda _: None)
    assert not (out / "merged").exists()
    (base / SINGLE).write_bytes(before)
    # Weights in a second form, for others, which some hubs have: they are not read.
    save_file({"layers.0.weight": torch.zeros(3)}, base / "consolidated.safetensors")
    run(shards, str(base), out, merge, lambda _: None)


def test_a_run_of_before_its_weights_were_recorded_goes_on(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "run"))
    recipe = json.loads((out / "recipe.json").read_text())
    sha256 = recipe.pop("model_sha256")
    (out / "recipe.json").write_text(json.dumps(recipe))
    run(shards, str(model), out, RECIPE, lambda _: None)
    assert json.loads((out / "recipe.json").read_text())["model_sha256"] == sha256


def test_the_options_of_a_run_are_those_of_its_recipe(
    shards: Path, done: Path, tmp_path: Path
) -> None:
    """Which holds hashes beside them."""
    out = Path(shutil.copytree(done, tmp_path / "run"))
    words = ("run", shards, "--config", out / "recipe.json", "--out", out)
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert (out / "recipe.json").read_text() == (done / "recipe.json").read_text()


def test_a_folder_with_other_things(shards: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "not an empty folder" in _refused(shards, model, tmp_path)


def test_anneal_without_extend(shards: Path, model: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, stages=("anneal", "merge"))
    assert "extend stage first" in _refused(shards, model, tmp_path / "run", recipe)


@pytest.mark.parametrize("token_weights", ["longce", "ukp"])
def test_weights_from_scores_that_are_not_there(
    shards: Path, model: Path, tmp_path: Path, token_weights: str
) -> None:
    recipe = replace(RECIPE, token_weights=token_weights)
    message = _refused(shards, model, tmp_path / "run", recipe)
    assert f"--token-weights {token_weights}: no token of {shards} has an lsd" in message
    assert "--impact scores:DIR, DIR from `lrtrain score` of this corpus" in message
    assert not (tmp_path / "run").exists()


def test_impact_weights_without_impact(shards: Path, model: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(shards, plain)
    manifest = read_manifest(plain)
    manifest.recipe["impact"] = "none"
    write_manifest(plain, manifest)
    message = _refused(plain, model, tmp_path / "run", replace(RECIPE, token_weights="impact"))
    assert f"{plain} was built with --impact none" in message
    assert "build it with another --impact" in message
    later = replace(RECIPE, token_weights="impact", stages=("anneal",))
    assert "extend stage first" in _refused(plain, model, tmp_path / "run", later)
