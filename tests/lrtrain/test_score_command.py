"""`lrtrain score` as a person meets it: what is refused, and what the command says."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lrdata.scores import open_scores
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import main
from lrtrain.model import copy_tokenizer
from lrtrain.model_files import SINGLE
from tests.corpora import content
from tests.lrtrain.scoring import (
    FILES,
    RECIPES,
    TEXTS,
    contrast,
    lsd,
    quietly,
    refused,
    save_models,
    stop_after,
    write_corpus,
)
from tests.lrtrain.tiny_runs import WINDOW


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` and `long`."""
    return save_models(tiny_tokenizer, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def bos_models(tiny_bos_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose tokenizer adds a start of text."""
    return save_models(tiny_bos_tokenizer, tmp_path_factory.mktemp("bos-models"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four documents of more than 512 tokens, and one of fewer than a window."""
    return write_corpus(tmp_path_factory.mktemp("data") / "books", TEXTS)


@pytest.fixture(scope="module")
def finished(
    models: Path, corpus: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of three scored windows by each method; nobody may change them."""
    root = tmp_path_factory.mktemp("finished")
    for method, recipe in RECIPES.items():
        quietly(recipe(corpus, models), root / method)
    return {method: root / method for method in RECIPES}


# What is refused


def test_a_window_beyond_the_models_is_refused_with_what_to_write(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    message = refused(lsd(corpus, models, window=WINDOW + 1), tmp_path / "scores")
    for part in ("--window 129", "128", f"{models / 'long'}@target=129"):
        assert part in message
    roped = f"{models / 'long'}@target=256"
    assert "--window 257" in refused(
        lsd(corpus, models, model=roped, window=257), tmp_path / "scores"
    )
    assert not (tmp_path / "scores").exists()


def test_scores_are_no_corpus_of_their_own(models: Path, corpus: str, tmp_path: Path) -> None:
    folder = shutil.copytree(Path(corpus).parent, tmp_path / "data")
    message = refused(lsd(str(folder), models), folder / "scores")
    assert f"{folder / 'scores'} lies in the corpus" in message
    assert not (folder / "scores").exists()


def test_models_with_different_tokenizers_are_refused(
    models: Path, bos_models: Path, corpus: str, tmp_path: Path
) -> None:
    recipe = contrast(corpus, models, long_model=str(bos_models / "long"))
    assert "different tokenizers" in refused(recipe, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_a_short_context_that_leaves_nothing_is_refused(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    recipe = lsd(corpus, models, short_context=100, stride=28)
    assert "--short-context" in refused(recipe, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    quietly(replace(recipe, stride=27, tokens=1), tmp_path / "scores")
    assert open_scores(tmp_path / "scores").manifest.measured == 1


def test_a_short_context_that_leaves_nothing_beside_the_start_of_text_is_refused(
    bos_models: Path, corpus: str, tmp_path: Path
) -> None:
    """It takes up a token of the window: what is enough without it is one too little."""
    recipe = lsd(corpus, bos_models, short_context=100, stride=27)
    assert "--short-context" in refused(recipe, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    quietly(replace(recipe, stride=26, tokens=1), tmp_path / "scores")
    assert open_scores(tmp_path / "scores").manifest.measured == 1


def test_a_folder_of_something_else_is_left_alone(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    out = tmp_path / "notes"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "--out" in refused(lsd(corpus, models), out)
    assert content(out) == {"notes.txt": b"mine"}
    assert "--out" in refused(lsd(corpus, models), out / "notes.txt")
    (tmp_path / "empty").mkdir()
    quietly(lsd(corpus, models), tmp_path / "empty")
    assert set(content(tmp_path / "empty")) == FILES


def test_after_a_refusal_the_corrected_command_goes_on_in_the_same_folder(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    """The line says to lower --window: the folder must not be claimed by what was refused."""
    out = tmp_path / "scores"
    recipe = lsd(corpus, models, min_doc_tokens=10_000)
    assert "--min-doc-tokens" in refused(recipe, out)
    quietly(replace(recipe, min_doc_tokens=0), out)
    assert set(content(out)) == FILES


@pytest.mark.parametrize("suffix", ["@theta=8e6", "@auto", "@yarn"])
def test_a_rope_without_its_window_is_one_line(
    suffix: str, models: Path, corpus: str, tmp_path: Path
) -> None:
    recipe = lsd(corpus, models, model=f"{models / 'long'}{suffix}")
    assert "target" in refused(recipe, tmp_path / "scores")


def save_few_embeddings(tokenizer: Path, folder: Path) -> str:
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(str(tokenizer), folder, WINDOW)
    return str(folder)


@pytest.mark.parametrize(
    ("long_model", "named"),
    [
        ("few", "embeddings"),
        ("headless", "headless: lm_head.weight is not there"),
        ("long@target=64", "already has a window"),
        ("long@theta=big,target=512", "theta=big"),
    ],
)
def test_what_is_wrong_with_the_long_model_is_found_before_the_base_is_read(
    long_model: str,
    named: str,
    tiny_tokenizer: Path,
    models: Path,
    corpus: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading it may take hours."""
    save_few_embeddings(tiny_tokenizer, tmp_path / "few")
    shutil.copytree(models / "long", tmp_path / "long")
    headless = Path(shutil.copytree(models / "long", tmp_path / "headless"))
    tensors = load_file(headless / SINGLE)
    del tensors["lm_head.weight"]
    save_file(tensors, headless / SINGLE, {"format": "pt"})
    read = stop_after(monkeypatch, 100)
    recipe = contrast(corpus, models, long_model=str(tmp_path / long_model), window=32)
    assert named in refused(recipe, tmp_path / "scores")
    assert read == []


# The command


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_says_what_it_does_and_what_comes_next(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    words = ("score", corpus, "--model", models / "long", "--out", out, "--tokens", 300)
    done = invoke(*words, "--id-field", "id", "--device", "cpu")
    assert done.exit_code == 0, done.output
    scores = open_scores(out)
    first, *_, last_but_one, last = done.stdout.splitlines()
    for part in ("384 tokens", "3 windows", "3 documents", "16 to 31 tokens", "cpu"):
        assert part in first
    for part in (str(out), "384 tokens", "3 documents", f"{3 * (WINDOW - 32)} measured"):
        assert part in last_but_one
    assert f"lrdata lexicon {out}" in last
    assert scores.manifest.measured == 3 * (WINDOW - 32)
    before = content(out)
    again = invoke(*words, "--id-field", "id", "--batch-tokens", "1k", "--chunk-tokens", "1k")
    assert again.exit_code == 0, again.output
    assert content(out) == before
    assert "384 tokens" in again.stdout


def test_the_command_equals_the_function(models: Path, corpus: str, tmp_path: Path) -> None:
    done = invoke(
        *("score", corpus, "--model", models / "base", "--long-model", models / "long"),
        *("--out", tmp_path / "command", "--tokens", "0.25k", "--window", 64, "--seed", 4),
        *("--id-field", "id", "--per-document", 2, "--min-doc-tokens", 50, "--dtype", "fp32"),
    )
    assert done.exit_code == 0, done.output
    options = {"tokens": 256, "window": 64, "seed": 4, "per_document": 2, "min_doc_tokens": 50}
    quietly(contrast(corpus, models, **options, dtype="fp32"), tmp_path / "function")
    assert content(tmp_path / "command") == content(tmp_path / "function")


def test_all_tokens_are_all_windows_of_all_documents(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(str(models / "long"))
    lengths = [len(tokenizer.encode_documents([text])[0]) for text in TEXTS.values()]
    words = ("score", corpus, "--model", models / "long", "--id-field", "id", "--tokens", "all")
    done = invoke(*words, "--out", tmp_path / "one")  # a window of each document
    assert done.exit_code == 0, done.output
    scores = open_scores(tmp_path / "one")
    assert scores.manifest.documents == len(scores) == sum(size >= WINDOW for size in lengths)
    done = invoke(*words, "--out", tmp_path / "all", "--per-document", "all")
    assert done.exit_code == 0, done.output
    assert len(open_scores(tmp_path / "all")) == sum(size // WINDOW for size in lengths)
    assert "all that there are" not in done.stdout  # nobody asked for more


def test_a_budget_that_the_corpus_does_not_fill_is_told(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    done = invoke("score", corpus, "--model", models / "long", "--out", tmp_path / "scores")
    assert done.exit_code == 0, done.output
    assert f"{4 * WINDOW} tokens" in done.stdout
    assert "all that there are, 1 a document at most (--per-document all gives more)" in done.stdout
    done = invoke(
        *("score", corpus, "--model", models / "long", "--out", tmp_path / "all"),
        *("--per-document", "all"),
    )
    assert done.exit_code == 0, done.output
    assert "all that there are:" in done.stdout


def test_what_is_wrong_with_a_command_is_one_line(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    out = tmp_path / "scores"

    def line(code: int, *words: object) -> str:
        done = invoke("score", *words, "--out", out)
        assert done.exit_code == code, done.output
        (found,) = (text for text in done.stderr.splitlines() if text.startswith("error: "))
        assert "Traceback" not in done.output
        assert not out.exists()
        return found

    model = ("--model", models / "long")
    assert "--model" in line(2, corpus)
    assert "CORPORA" in line(2, *model)
    assert "nowhere" in line(1, corpus, "--model", tmp_path / "nowhere")
    assert "nowhere" in line(1, tmp_path / "nowhere", *model)
    assert "'few'" in line(1, corpus, *model, "--tokens", "few")
    assert "--tokens 0" in line(1, corpus, *model, "--tokens", 0)
    assert "--per-document 0" in line(1, corpus, *model, "--per-document", 0)
    assert "--window 1" in line(1, corpus, *model, "--window", 1)
    assert "--window 129" in line(1, corpus, *model, "--window", 129)
    assert "tpu" in line(1, corpus, *model, "--device", "tpu")


def test_help_teaches_without_loading_torch() -> None:
    script = (
        "import sys; from lrtrain.cli import main\n"
        "try: main(['score', '--help'])\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for part in ("Usage:", "lsd", "contrast", "OUT/scores.parquet"):
        assert part in done.stdout


def test_the_end_of_text_may_be_chosen(models: Path, corpus: str, tmp_path: Path) -> None:
    """As for `lrdata build`: where the tokenizer names none, or another."""
    recipe = lsd(corpus, models, tokens=None, per_document=None, min_doc_tokens=64)
    usual = quietly(recipe, tmp_path / "usual")
    words = ["score", corpus, "--model", models / "long", "--id-field", "id", "--tokens", "all"]
    words += ["--per-document", "all", "--min-doc-tokens", 64, "--device", "cpu"]
    done = invoke(*words, "--eot", "<|im_end|>", "--out", tmp_path / "other")
    assert done.exit_code == 0, done.output
    other = open_scores(tmp_path / "other")
    tokenizer = Tokenizer.load(str(models / "long"), eot="<|im_end|>")
    assert tokenizer.eot_id != usual.manifest.tokenizer.eot_id
    assert other.manifest.tokenizer.eot_id == tokenizer.eot_id
    assert other.index == usual.index
    ended = 0
    for one, two in zip(usual, other, strict=True):
        ends = one.ids == usual.manifest.tokenizer.eot_id
        np.testing.assert_array_equal(two.ids, np.where(ends, tokenizer.eot_id, one.ids))
        ended += int(ends.sum())
    assert ended > 0
    assert "eot: None, not '<|im_end|>'" in refused(
        replace(recipe, eot="<|im_end|>"), tmp_path / "usual"
    )
    assert "--eot" in refused(replace(recipe, eot="<|nothing|>"), tmp_path / "third")
    assert not (tmp_path / "third").exists()
