"""The whole evaluation: models by name, the same prompts for all, errors before the work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from lrdata.building import build
from lrdata.errors import LongRecipeError
from lrdata.manifest import (
    FileEntry,
    Ledger,
    Manifest,
    TokenizerEntry,
    read_manifest,
    write_manifest,
)
from lrdata.recipe import BuildRecipe
from lrdata.shard_writer import writing_shard
from lrdata.shards import Row, file_sha256
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import main
from lrtrain.evaluation import NeedleTemplate, Report, evaluate
from lrtrain.evaluation.models import open_model
from lrtrain.evaluation.needle import NeedleCell
from lrtrain.evaluation.perplexity import PerplexityCell
from lrtrain.evaluation.suite import seed_of_each
from lrtrain.evaluation.text import holdout_rows, read_text
from lrtrain.model import automatic_dtype, load_model, model_fingerprint
from lrtrain.model_spec import ModelSpec, parse_models
from lrtrain.rope import parse_rope
from lrtrain.scoring import ScoreRecipe, score
from tests.conftest import CHAT_TOKENS, EOT, generated_text
from tests.fetch import fetch
from tests.lrtrain.tiny_models import download_from
from tests.lrtrain.tiny_runs import save_tiny_model

SMALL: dict[str, Any] = {
    "suites": ["needle", "ppl"],
    "lengths": [64, 128],
    "depths": [0.0, 1.0],
    "samples": 2,
    "windows": 4,
    "device": "cpu",
    "plots": False,
}


@pytest.fixture(scope="module")
def make_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path
) -> Callable[..., str]:
    """Saves a tiny random model with the tiny tokenizer and returns its folder."""

    def make(name: str, seed: int, vocab_size: int = 1000) -> str:
        folder = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        for file in tiny_bos_tokenizer.iterdir():
            shutil.copy(file, folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def two_models(make_model: Callable[..., str]) -> list[str]:
    return [make_model("one", 0), make_model("two", 1)]


def outcome(report: Report) -> dict[str, Any]:
    """What was measured, by model."""
    return {
        model.name: (
            [cell for cell in report.of(NeedleCell) if cell.model == model.name],
            [cell for cell in report.of(PerplexityCell) if cell.model == model.name],
        )
        for model in report.models
    }


def test_a_model_of_the_hub_is_the_same_one_in_a_folder(
    two_models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same results and the same key, so that an evaluation goes on by either name."""
    download = download_from(Path(two_models[0]), tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    of_hub = evaluate(["one=me/model"], out=tmp_path / "hub", **SMALL)
    of_folder = evaluate([f"one={two_models[0]}"], out=tmp_path / "folder", **SMALL)
    assert outcome(of_hub) == outcome(of_folder)
    keys = [
        open_model(ModelSpec("one", path), dtype="auto", device="cpu").key
        for path in ("me/model", two_models[0])
    ]
    assert keys[0] == keys[1]
    assert model_fingerprint("me/model") == model_fingerprint(two_models[0])


def test_results_do_not_depend_on_the_other_models(two_models: list[str], tmp_path: Path) -> None:
    both = evaluate(two_models, out=tmp_path / "both", **SMALL)
    turned = evaluate(two_models[::-1], out=tmp_path / "turned", **SMALL)
    alone = evaluate(two_models[:1], out=tmp_path / "alone", **SMALL)
    assert [model.name for model in both.models] == ["one", "two"]
    assert outcome(both) == outcome(turned)
    assert outcome(alone)["one"] == outcome(both)["one"]
    first, _, other, _ = both.of(PerplexityCell)
    assert first.nats != other.nats  # the models do differ
    needle, spans = outcome(both)["one"]
    assert [(cell.length, cell.depth) for cell in needle] == [
        (64, 0.0), (64, 1.0), (128, 0.0), (128, 1.0),
    ]  # fmt: skip
    assert [cell.length for cell in spans] == [64, 128]
    assert {cell.bytes for cell in both.of(PerplexityCell)} == {spans[0].bytes}
    tokens = (2 * SMALL["samples"] + SMALL["windows"]) * (64 + 128)
    assert [model.tokens for model in both.models] == [tokens] * 2


def test_the_json_is_enough_to_repeat_it(two_models: list[str], tmp_path: Path) -> None:
    evaluate(two_models[:1], out=tmp_path / "a", seed=3, **SMALL)
    first = json.loads((tmp_path / "a" / "eval.json").read_text())
    said = first["settings"]
    evaluate(
        [model["path"] for model in first["models"]],
        suites=said["suites"],
        lengths=said["lengths"],
        depths=said["depths"],
        samples=said["samples"],
        windows=said["windows"],
        needle=NeedleTemplate(**said["template"]),
        seed=said["seed"],
        dtype=said["dtype"],
        device=said["device"],
        out=tmp_path / "b",
        plots=False,
    )
    again = json.loads((tmp_path / "b" / "eval.json").read_text())
    for name in ("settings", "versions", "needle", "perplexity"):
        assert first[name] == again[name]


def test_several_seeds_are_the_prompts_of_each(two_models: list[str], tmp_path: Path) -> None:
    asked = {**SMALL, "suites": ["needle"], "lengths": [128]}
    three = evaluate(two_models[:1], out=tmp_path / "all", seed=5, seeds=3, **asked)
    alone = [
        evaluate(two_models[:1], out=tmp_path / str(seed), seed=seed, **asked) for seed in (5, 6, 7)
    ]
    assert three.settings["seeds"] == [5, 6, 7]
    for index, cell in enumerate(three.of(NeedleCell)):
        each = [report.of(NeedleCell)[index] for report in alone]
        assert cell.seeds == (5, 6, 7)
        assert cell.share == tuple(value for one in each for value in one.share)
        assert cell.exact == tuple(value for one in each for value in one.exact)
        assert seed_of_each(len(cell.share), cell.seeds) == [5, 5, 6, 6, 7, 7]
    assert three.models[0].tokens == sum(report.models[0].tokens for report in alone)
    written = json.loads((tmp_path / "all" / "eval.json").read_text())["needle"]
    by_seed = written["by_length"][0]["by_seed"]
    assert [entry["seed"] for entry in by_seed] == [5, 6, 7]
    assert np.mean([entry["share"] for entry in by_seed]) == pytest.approx(
        written["by_length"][0]["share"][0], abs=1e-5
    )


def test_a_text_of_ones_own(two_models: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        text = "".join(generated_text(60, seed=ord(name)))
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    report = evaluate(
        two_models[:1], haystack=tmp_path / "a.txt", text=tmp_path / "b.txt", out=tmp_path, **SMALL
    )
    said = report.settings
    assert said["haystack"]["origin"] == "a.txt"
    assert said["text"]["origin"] == "b.txt"
    own = evaluate(two_models[:1], out=tmp_path / "own", **SMALL)
    assert own.of(PerplexityCell) != report.of(PerplexityCell)
    with pytest.raises(LongRecipeError, match="longest context; name a longer text"):
        evaluate(
            two_models[:1],
            suites=["ppl"],
            lengths=[64, 65536],
            text=tmp_path / "b.txt",
            out=tmp_path / "none",
            plots=False,
        )
    assert not (tmp_path / "none").exists()


def test_pythons_documentation_is_long_enough_for_128k() -> None:
    topics, more = read_text(None, 65_536), read_text(None, 131_072)
    assert more.documents[: len(topics.documents)] == topics.documents
    assert "its docstrings" in more.origin
    assert "its docstrings" not in topics.origin
    tokenizer = Tokenizer.load(str(fetch("smollm2")))
    assert len(more.streams(tokenizer)[0]) > 131_072


def holdout_of(folder: Path, tokenizer: Tokenizer, window: int, fingerprint: str | None) -> None:
    """A dataset of two holdout rows, each a whole window with its start-of-text token."""
    ids = tokenizer.encode(["".join(generated_text(60, seed=4))])[0]
    path = folder / "holdout" / "test-00000-of-00001.parquet"
    with writing_shard(path) as writer:
        for index in range(2):
            part = ids[index * (window - 1) : (index + 1) * (window - 1)]
            row = np.concatenate([[tokenizer.bos_id], part]).astype(np.int32)
            whole = np.array([window], np.int32)
            writer.write(
                Row(
                    input_ids=row,
                    position_ids=np.arange(window, dtype=np.int32),
                    seq_lengths=whole,
                    impact_mask=np.zeros(window, bool),
                    loss_mask=np.ones(window, bool),
                    segment_starts=np.zeros(1, np.int32),
                    segment_lengths=whole,
                    doc_ids=["d"],
                    doc_offsets=np.array([index * (window - 1)], np.int64),
                    doc_lengths=whole - 1,
                    sample_id=f"s{index}",
                    source="s",
                    kind="holdout",
                    window_tokens=window,
                    target_len=window,
                )
            )
    content = writer.content.hexdigest()
    name = path.relative_to(folder).as_posix()
    size, sha = path.stat().st_size, file_sha256(path)
    entry = FileEntry(name, "holdout", writer.rows, writer.tokens, size, sha, content)
    known = TokenizerEntry(
        tokenizer.name,
        fingerprint or tokenizer.fingerprint,
        tokenizer.probe_fingerprint,
        tokenizer.vocab_size,
        tokenizer.eot_id,
        tokenizer.bos_id,
    )
    write_manifest(folder, Manifest(window, 48, 0, {}, known, [], [entry], Ledger()))


def test_perplexity_of_holdout_rows(two_models: list[str], tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(two_models[0])
    holdout_of(tmp_path / "shards", tokenizer, 160, None)
    report = evaluate(
        two_models[:1],
        suites=["ppl"],
        lengths=[80, 160],
        shards=tmp_path / "shards",
        device="cpu",
        out=tmp_path,
        plots=False,
    )
    whole = report.of(PerplexityCell)[1]
    assert whole.length == 160
    assert len(whole.nats) == 2  # one window of the full length a row

    ids = tokenizer.encode(["".join(generated_text(60, seed=4))])[0]
    row = torch.tensor([[tokenizer.bos_id, *ids[:159].tolist()]])
    labels = row.clone()
    labels[:, :-40] = -100
    model = AutoModelForCausalLM.from_pretrained(two_models[0])
    with torch.no_grad():
        assert whole.nats[0] == pytest.approx(40 * float(model(row, labels=labels).loss), rel=1e-5)


def test_shards_of_another_tokenizer_are_refused(two_models: list[str], tmp_path: Path) -> None:
    holdout_of(tmp_path / "shards", Tokenizer.load(two_models[0]), 160, "0" * 64)
    with pytest.raises(LongRecipeError, match="another tokenizer"):
        evaluate(two_models, suites=["ppl"], lengths=[80], shards=tmp_path / "shards", out=tmp_path)


@pytest.mark.parametrize(
    ("holdout", "made", "said"),
    [
        (0.0, 0, "; build with --holdout, or name a text"),
        (0.005, 0, "--holdout 0.5% keeps out of one fill no window"),
        (0.005, 2, "`lrdata pull` left them out"),
    ],
)
def test_why_there_are_no_holdout_rows_is_said(
    holdout: float, made: int, said: str, two_models: list[str], tmp_path: Path
) -> None:
    tokenizer, folder = Tokenizer.load(two_models[0]), tmp_path / "shards"
    holdout_of(folder, tokenizer, 160, None)
    (entry,) = (manifest := read_manifest(folder)).files
    manifest.recipe["holdout"], manifest.ledger.holdout_rows = holdout, made
    manifest.files, manifest.left_out = [], [entry] if made else []
    write_manifest(folder, manifest)
    with pytest.raises(LongRecipeError) as problem:
        holdout_rows(folder, tokenizer)
    assert str(problem.value).startswith(f"{folder} has no holdout rows")
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


FIN = "<|fin|>"


@pytest.fixture
def no_end_of_text(tiny_tokenizer: Path, tmp_path: Path) -> str:
    """A model whose tokenizer names no end of text, nor has a token of a well-known name."""
    folder = save_tiny_model(tiny_tokenizer, tmp_path / "mine", window=512)
    written = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for known, other in ((EOT, FIN), (CHAT_TOKENS[1], "<|close|>")):
        written = written.replace(known, other)
    (folder / "tokenizer.json").write_text(written, encoding="utf-8")
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return str(folder)


def test_the_end_of_text_may_be_chosen(no_end_of_text: str, tmp_path: Path) -> None:
    """As for `lrdata build` and `lrtrain score`, where the tokenizer names none."""
    command = ["eval", no_end_of_text, "--suite", "ppl", "--lengths", "128", "--windows", "2"]
    command += ["--device", "cpu", "--no-plots", "--out", str(tmp_path / "out")]
    for eot, message in (([], "with --eot TOKEN"), (["--eot", "<|no|>"], "'<|no|>' is not in")):
        refused = CliRunner().invoke(main, [*command, *eot])
        assert refused.exit_code == 1
        assert message in refused.output
    done = CliRunner().invoke(main, [*command, "--eot", FIN])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert written["settings"]["eot"] == FIN


def test_the_end_of_text_is_that_of_the_shards(
    no_end_of_text: str, make_model: Callable[..., str], tmp_path: Path
) -> None:
    lines = [json.dumps({"text": "".join(generated_text(30, seed))}) for seed in range(12)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = BuildRecipe(
        corpora=(str(tmp_path / "texts.jsonl"),),
        tokenizer=no_end_of_text,
        eot=FIN,
        target_len=512,
        holdout=0.3,
    )
    build(recipe, tmp_path / "shards", workers=1)
    asked: dict[str, Any] = {
        "suites": ["ppl", "short"],
        "lengths": [128, 512],
        "windows": 2,
        "shards": tmp_path / "shards",
        "device": "cpu",
        "plots": False,
    }
    report = evaluate([no_end_of_text], out=tmp_path / "out", **asked)
    named = evaluate([no_end_of_text], out=tmp_path / "named", eot=FIN, **asked)
    assert len(report.cells) == 3
    assert report.cells == named.cells
    other, needles = make_model("other", 1), {**asked, "suites": ["needle"], "lengths": [64]}
    assert evaluate([other], out=tmp_path / "needles", **needles).cells, "which reads no row"


def test_a_model_beyond_its_window_is_measured_all_the_same(
    two_models: list[str], tmp_path: Path
) -> None:
    report = evaluate(two_models[:1], out=tmp_path, **{**SMALL, "suites": ["needle"]})
    assert report.models[0].window == 64
    assert {cell.length for cell in report.of(NeedleCell)} == {64, 128}
    assert report.of(PerplexityCell) == []


def test_the_report_says_in_which_dtype_a_model_was_read(
    two_models: list[str], tmp_path: Path
) -> None:
    asked = {**SMALL, "suites": ["ppl"], "windows": 1}
    exact = evaluate(two_models[:1], out=tmp_path / "auto", **asked)
    rounded = evaluate(two_models[:1], out=tmp_path / "bf16", dtype="bf16", **asked)
    assert [exact.models[0].dtype, rounded.models[0].dtype] == ["float32", "bfloat16"]
    assert exact.of(PerplexityCell) != rounded.of(PerplexityCell)


def test_on_a_gpu_models_are_read_in_bfloat16() -> None:
    dtypes = [automatic_dtype(torch.device(name)) for name in ("cpu", "cuda:1")]
    assert dtypes == [torch.float32, torch.bfloat16]


def test_a_new_theta_without_training(make_model: Callable[..., str]) -> None:
    from lrtrain.rope import extended_theta

    folder = make_model("rope", 0)
    plain = open_model(ModelSpec("m", folder), dtype="float32", device="cpu").load()
    assert (plain.theta, plain.window) == (10_000.0, 64)
    (spec,) = parse_models([f"{folder}@target=512"])
    auto = open_model(spec, dtype="float32", device="cpu").load()
    assert auto.theta == pytest.approx(extended_theta(10_000.0, 64, 512, 8))
    assert auto.window == 512
    (spec,) = parse_models([f"{folder}@theta=8e6"])
    given = open_model(spec, dtype="float32", device="cpu").load()
    assert (given.theta, given.window) == (8e6, 64)
    for loaded, theta in ((auto, auto.theta), (given, 8e6)):
        expected = theta ** (-np.arange(0, 8, 2) / 8)
        found = loaded.model.model.rotary_emb.inv_freq
        assert found.numpy() == pytest.approx(expected, rel=1e-5)
        for one, other in zip(loaded.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("suffix", ["target=512", "theta=8e6,target=512", "yarn,target=512"])
def test_a_new_rope_is_the_one_that_training_starts_from(
    make_model: Callable[..., str], suffix: str
) -> None:
    folder = make_model("rope", 0)
    (spec,) = parse_models([f"{folder}@{suffix}"])
    assert spec.rope is not None
    read = open_model(spec, dtype="float32", device="cpu").load()
    trained = load_model(folder, dtype=torch.float32, rope=parse_rope(spec.rope), target_len=512)
    ours, theirs = (model.model.rotary_emb for model in (read.model, trained))
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling
    assert read.window == trained.config.max_position_embeddings == 512


CONFIGS = {
    "plain": LlamaConfig(max_position_embeddings=8192),
    "scaled": LlamaConfig(
        max_position_embeddings=131_072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "extended": LlamaConfig(max_position_embeddings=131_072),
    "gemma3": Gemma3TextConfig(),
    "gpt2": GPT2Config(),
}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("scaled@target=256k", "already scaled (rope_type=llama3)"),
        ("plain@target=2k", "already has a window of 8,192"),
        ("extended@target=128k", "already has a window of 131,072"),  # nothing would be new
        ("gemma3@target=256k", "is a gemma3_text model"),
        ("gpt2@target=64k", "is a gpt2 model"),
    ],
)
def test_a_rope_that_training_and_scores_refuse_is_refused_in_their_words(
    tiny_tokenizer: Path, tmp_path: Path, model: str, message: str
) -> None:
    name = model.partition("@")[0]
    shutil.copytree(tiny_tokenizer, tmp_path / name)
    CONFIGS[name].save_pretrained(tmp_path / name)
    path = str(tmp_path / model)
    with pytest.raises(LongRecipeError) as problem:
        evaluate([path], out=tmp_path / "out", **SMALL)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)
    with pytest.raises(LongRecipeError) as theirs:
        score(ScoreRecipe(("books",), model=path, device="cpu"), tmp_path / "scores")
    assert str(theirs.value) == str(problem.value)


def test_a_theta_alone_is_for_a_rope_that_is_not_scaled(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    specs = {}
    for name in ("plain", "scaled"):
        shutil.copytree(tiny_tokenizer, tmp_path / name)
        CONFIGS[name].save_pretrained(tmp_path / name)
        (specs[name],) = parse_models([str(tmp_path / f"{name}@theta=8e6")])
    config = open_model(specs["plain"], dtype="float32", device="cpu").config
    assert config.rope_parameters["rope_theta"] == 8e6
    assert config.max_position_embeddings == 8192
    with pytest.raises(LongRecipeError, match="already scaled"):
        open_model(specs["scaled"], dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"suites": ["nedle"]}, "unknown suite nedle"),
        ({"lengths": []}, "context lengths"),
        ({"lengths": [1]}, "context lengths"),
        ({"depths": [0.5, 50.0]}, "must lie between 0"),
        ({"samples": 0}, "0 samples"),
        ({"seeds": 0}, "0 samples, windows or seeds"),
        ({"prompt": "instruct"}, "unknown prompt instruct"),
        ({"base": "other"}, "--base other is none of the models"),
        ({"dtype": "int8"}, "unknown dtype int8"),
        ({"device": "abacus"}, "unknown device abacus"),
        ({"lengths": [16]}, "has no room"),
        ({"haystack": Path("nowhere.txt")}, "nowhere.txt"),
        ({"text": Path("a"), "shards": Path("b")}, "name one of them"),
        ({"models": []}, "no model"),
        ({"models": ["nowhere/at/all"]}, "nowhere/at/all"),
        ({"models": ["a=x", "a=y"]}, "two models are called a"),
    ],
)
def test_a_request_that_cannot_work_is_one_line(
    two_models: list[str], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    asked = {"models": two_models[:1], **SMALL, **changed}
    with pytest.raises(LongRecipeError) as problem:
        evaluate(asked.pop("models"), out=tmp_path / "out", **asked)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "out").exists()


def test_weights_and_tokenizer_must_be_complete(
    make_model: Callable[..., str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(make_model("broken", 0))
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LongRecipeError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj"):
        evaluate([str(folder)], out=tmp_path / "out", **SMALL)
    weights["model.layers.1.mlp.up_proj.weight"] = lost
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()  # pickled weights are never read
    with pytest.raises(LongRecipeError, match="cannot be loaded"):
        evaluate([str(folder)], out=tmp_path / "out", **SMALL)
    small = make_model("small", 0, vocab_size=500)
    with pytest.raises(LongRecipeError, match="500 embeddings"):
        evaluate([small], out=tmp_path / "out", **SMALL)
    assert not (tmp_path / "out" / "eval.json").exists()
