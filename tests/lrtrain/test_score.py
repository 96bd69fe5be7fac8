"""`lrtrain score`: what it writes equals plain forwards, however often it was stopped."""

import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lrdata.atomic import locked
from lrdata.errors import LongRecipeError
from lrdata.manifest import MANIFEST
from lrdata.scores import SCORES, VOCABULARY, Scores, open_scores
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import main
from lrtrain.model import copy_tokenizer
from lrtrain.score import ScoreRecipe, score
from tests.conftest import generated_text
from tests.corpora import content
from tests.fetch import fetch
from tests.lrtrain.tiny_runs import WINDOW, save_tiny_model

ROOT = Path(__file__).parents[2]
FILES = {MANIFEST, SCORES, VOCABULARY}
TOLERANCE = 1e-5


def save_model(tokenizer: Path, folder: Path, seed: int) -> str:
    """The tiny model with weights so large that contexts and models differ by whole nats."""
    model = LlamaForCausalLM.from_pretrained(save_tiny_model(tokenizer, folder))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) / 4
        parameter.data = 1 + noise if "norm" in name else noise
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` and `long`."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "long")):
        save_model(tiny_tokenizer, root / name, seed)
    return root


@pytest.fixture(scope="module")
def bos_models(tiny_bos_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose tokenizer adds a start of text."""
    root = tmp_path_factory.mktemp("bos-models")
    for seed, name in enumerate(("base", "long")):
        save_model(tiny_bos_tokenizer, root / name, seed)
    return root


@pytest.fixture(params=["no start of text", "start of text"])
def either(request: pytest.FixtureRequest, models: Path, bos_models: Path) -> Path:
    return models if request.param == "no start of text" else bos_models


TEXTS = {f"doc {n}": "".join(generated_text(10, seed=n)) for n in range(4)} | {
    "short": "".join(generated_text(1, seed=99))
}


def write_corpus(folder: Path, texts: dict[str, str]) -> str:
    folder.mkdir(parents=True)
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()]
    (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four documents of more than 512 tokens, and one of fewer than a window."""
    return write_corpus(tmp_path_factory.mktemp("data") / "books", TEXTS)


def lsd(corpus: str, models: Path, **options: Any) -> ScoreRecipe:
    values = {"id_field": "id", "tokens": 300, "device": "cpu", **options}
    return ScoreRecipe(corpora=(corpus,), **{"model": str(models / "long"), **values})


def contrast(corpus: str, models: Path, **options: Any) -> ScoreRecipe:
    both = {"model": str(models / "base"), "long_model": str(models / "long")}
    return lsd(corpus, models, **{**both, **options})


RECIPES = {"lsd": lsd, "contrast": contrast}


def quietly(recipe: ScoreRecipe, out: Path) -> Scores:
    return score(recipe, out, lambda line: None)


@pytest.fixture(scope="module")
def finished(
    models: Path, corpus: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of three scored windows by each method; nobody may change them."""
    root = tmp_path_factory.mktemp("finished")
    for method, recipe in RECIPES.items():
        quietly(recipe(corpus, models), root / method)
    return {method: root / method for method in RECIPES}


# The reference: transformers by itself


def plain(folder: Path | str, theta: float = 10_000.0, window: int = WINDOW) -> Any:
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    config.max_position_embeddings = window
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def forward(model: Any, ids: Sequence[int], lead: Sequence[int]) -> np.ndarray:
    """log P and logit of every token after all before it: float32 [2, n], from one forward."""
    row = torch.tensor([[*lead, *ids]])
    logits = model(input_ids=row, use_cache=False).logits[0, :-1]
    targets = row[0, 1:, None]
    both = [logits.log_softmax(-1).gather(1, targets), logits.gather(1, targets)]
    found = torch.stack([values[:, 0] for values in both]).float().numpy()
    return np.concatenate([np.full((2, 1 - len(lead)), np.nan, np.float32), found], 1)


def short_log_probs(
    model: Any, ids: Sequence[int], lead: Sequence[int], short_context: int, stride: int
) -> np.ndarray:
    """log P of every token after its short context: a forward for each."""
    found = np.full(len(ids), np.nan, np.float32)
    for target in range(short_context + stride, len(ids)):
        start = (target - short_context) // stride * stride
        found[target] = forward(model, ids[start : target + 1], lead)[0, -1]
    return found


def lead_of(scores: Scores) -> list[int]:
    bos_id = scores.manifest.tokenizer.bos_id
    return [] if bos_id is None else [bos_id]


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)  # NaN equals only NaN


def assert_lsd(
    scores: Scores, model: Any, short_context: int = WINDOW // 8, stride: int = WINDOW // 8
) -> None:
    """Every window of a folder against the definition."""
    lead = lead_of(scores)
    measured = 0
    for window in scores:
        ids = window.ids.tolist()
        long = forward(model, ids, lead)[0]
        short = short_log_probs(model, ids, lead, short_context, stride)
        assert_near(window.log_prob, long)
        assert_near(window.gain, long - short)
        assert len(lead) + len(ids) <= scores.manifest.window
        measured += int(np.isfinite(window.gain).sum())
        assert np.nanstd(window.gain) > 0.1, "too little for a mistake to show"
    assert scores.manifest.measured == measured > 0


# What is written


def test_lsd_is_what_the_long_context_adds_to_the_short_one(
    either: Path, corpus: str, tmp_path: Path
) -> None:
    """By default the model's own window, and an eighth of it for the short context."""
    scores = quietly(lsd(corpus, either), tmp_path / "scores")
    manifest = scores.manifest
    assert (manifest.method, scores.measures) == ("lsd", ("lsd",))
    assert (manifest.window, manifest.windows) == (WINDOW, 3)
    assert {tokens for *_, tokens in scores.index} == {WINDOW - len(lead_of(scores))}
    assert manifest.tokens == 3 * (WINDOW - len(lead_of(scores)))
    assert_lsd(scores, plain(either / "long"))


def test_contrast_is_what_the_long_model_gained_over_the_base(
    either: Path, corpus: str, tmp_path: Path
) -> None:
    scores = quietly(contrast(corpus, either), tmp_path / "scores")
    assert (scores.manifest.method, scores.measures) == ("contrast", ("gain", "logit_gain"))
    lead = lead_of(scores)
    base, long = plain(either / "base"), plain(either / "long")
    for window in scores:
        ids = window.ids.tolist()
        assert len(lead) + len(ids) == scores.manifest.window == WINDOW
        after, before = forward(long, ids, lead), forward(base, ids, lead)
        assert_near(window.log_prob, after[0])
        assert_near(window.measures[0], after[0] - before[0])
        assert_near(window.measures[1], after[1] - before[1])
        assert np.nanstd(window.gain) > 0.5, "too little for a mistake to show"
    unmeasured = 0 if lead else len(scores)
    assert scores.manifest.measured == scores.manifest.tokens - unmeasured


@pytest.mark.parametrize("method", list(RECIPES))
def test_windows_are_the_tokens_of_their_documents(
    method: str, bos_models: Path, corpus: str, tmp_path: Path
) -> None:
    """By id and offset, without the start of text, the end of text included; as many tokens as
    leave room for the start of text."""
    recipe = RECIPES[method](corpus, bos_models, tokens=None, per_document=None, min_doc_tokens=64)
    scores = quietly(recipe, tmp_path / "scores")
    tokenizer = Tokenizer.load(str(bos_models / "long"))
    ids_of = {name: tokenizer.encode_documents([text])[0] for name, text in TEXTS.items()}
    assert 64 <= len(ids_of["short"]) < WINDOW
    assert tokenizer.bos_id is not None
    cuts = [
        (name, start, min(WINDOW - 1, len(ids) - start))
        for name, ids in ids_of.items()
        for start in range(0, len(ids), WINDOW - 1)
    ]
    assert scores.index == [place for place in cuts if place[2] >= 64] != cuts
    for window in scores:
        ids = ids_of[window.document]
        np.testing.assert_array_equal(window.ids, ids[window.start :][: len(window.ids)])


def test_the_folder_says_what_was_scored(models: Path, corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    scores = quietly(contrast(corpus, models, seed=3), out)
    assert set(content(out)) == FILES
    manifest = scores.manifest
    assert manifest.models == {"base": "base", "long": "long"}
    assert len(set(manifest.fingerprints.values())) == 2
    assert [entry.name for entry in manifest.sources] == ["books/a.jsonl"]
    assert manifest.recipe["seed"] == 3
    assert manifest.windows == len(scores)
    assert manifest.documents == len({document for document, *_ in scores.index})
    assert manifest.tokens == sum(tokens for *_, tokens in scores.index)
    tokenizer = Tokenizer.load(str(models / "long"))
    assert manifest.tokenizer.fingerprint == tokenizer.fingerprint
    text = TEXTS[scores.index[0][0]].encode()
    assert scores.text(scores.read(0).ids) in text
    everything = b"".join(content(out).values())
    for folder in (models, Path(corpus).parent, tmp_path):  # no folder of this machine
        assert str(folder).encode() not in everything


@pytest.mark.parametrize(("short_context", "stride"), [(20, 0), (9, 4), (1, 30)])
def test_the_short_context_may_be_chosen(
    short_context: int, stride: int, models: Path, corpus: str, tmp_path: Path
) -> None:
    """Its stride is as long where nothing else is said."""
    recipe = lsd(corpus, models, window=64, tokens=64, short_context=short_context, stride=stride)
    scores = quietly(recipe, tmp_path / "scores")
    assert_lsd(scores, plain(models / "long"), short_context, stride or short_context)


def test_a_document_that_fills_a_window_with_its_start_of_text_is_scored(
    bos_models: Path, corpus: str, tmp_path: Path
) -> None:
    """And one that lacks a token is not."""
    tokenizer = Tokenizer.load(str(bos_models / "long"))
    tokens = len(tokenizer.encode_documents([TEXTS["short"]])[0])
    recipe = lsd(corpus, bos_models, tokens=None, per_document=1, short_context=8)
    for window, named in ((tokens + 1, True), (tokens + 2, False)):
        scores = quietly(replace(recipe, window=window), tmp_path / f"{window}")
        lengths = {document: length for document, _, length in scores.index}
        assert ("short" in lengths) == named
        assert set(lengths.values()) == {window - 1}


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


def test_what_is_left_out_is_told(models: Path, tmp_path: Path) -> None:
    """Once: a run that goes on has its sample."""
    corpus = write_corpus(tmp_path / "books", TEXTS)
    again = json.dumps({"id": "doc 2", "text": "Another text."})
    (tmp_path / "books" / "b.jsonl").write_text(f"{again}\n{{\n5\n", encoding="utf-8")
    recipe = lsd(corpus, models, tokens=None)
    lines: list[str] = []
    scores = score(recipe, tmp_path / "scores", lines.append)
    assert [document for document, *_ in scores.index] == ["doc 0", "doc 1", "doc 3"]
    first, second, *_ = lines
    for part in ("2 records", "books/b.jsonl", f"record {len(again) + 1}"):
        assert part in first
    assert second.startswith("1 ids come twice")
    lines.clear()
    score(recipe, tmp_path / "scores", lines.append)
    assert not any("records" in line or "twice" in line for line in lines)


def test_how_it_is_computed_changes_no_score(models: Path, corpus: str, tmp_path: Path) -> None:
    """More or fewer blocks together, more or fewer logits in memory: equal to within rounding."""
    found = []
    for name, options in (
        ("usual", {}),
        ("little", {"batch_tokens": 1, "chunk_tokens": 1}),
        ("much", {"batch_tokens": 10**6, "chunk_tokens": 10**6}),
    ):
        found.append(quietly(lsd(corpus, models, **options), tmp_path / name))
    assert found[0].index == found[1].index == found[2].index
    for usual, *others in zip(*found, strict=True):
        for other in others:
            assert_near(other.log_prob, usual.log_prob)
            assert_near(other.gain, usual.gain)


def test_bf16_is_near_fp32(
    models: Path, corpus: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    exact = open_scores(finished["lsd"])
    near = quietly(lsd(corpus, models, dtype="bf16"), tmp_path / "scores")
    assert near.index == exact.index
    for one, other in zip(near, exact, strict=True):
        assert 0 < np.nanmean(np.abs(one.log_prob - other.log_prob)) < 0.1
        assert np.nanmean(np.abs(one.gain - other.gain)) < 0.1
        np.testing.assert_array_equal(np.isnan(one.gain), np.isnan(other.gain))


def test_a_model_may_be_read_with_the_rope_of_a_longer_window(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    """The paper's theta for four times the window: 10,000 (4 x 4 - 3)^(d / (d - 2)), d = 8."""
    recipe = lsd(corpus, models, model=f"{models / 'long'}@target=512", tokens=512)
    scores = quietly(recipe, tmp_path / "scores")
    assert (scores.manifest.window, len(scores.read(0).ids)) == (512, 512)
    assert_lsd(scores, plain(models / "long", 10_000 * 13 ** (8 / 6), 512), 64, 64)


def test_a_base_that_is_read_beyond_its_window_is_told(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    recipe = contrast(corpus, models, long_model=f"{models / 'long'}@target=512", window=256)
    score(recipe, tmp_path / "scores", lines.append)
    told = [line for line in lines if "beyond its window" in line]
    assert len(told) == 1
    assert f"{models / 'base'}@target=256" in told[0]
    both = replace(recipe, model=f"{models / 'base'}@target=256")
    lines.clear()
    score(both, tmp_path / "both", lines.append)
    assert not any("beyond its window" in line for line in lines)


# The same command again


def dates(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("method", list(RECIPES))
def test_a_second_call_does_nothing_and_gives_the_same(
    method: str,
    models: Path,
    corpus: str,
    finished: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How it is computed may be another."""
    recipe, out = RECIPES[method](corpus, models), finished[method]
    first = open_scores(out)
    before, data = dates(out), content(out)
    for name in ("plan.load_model", "sample_windows"):
        monkeypatch.delattr(f"lrtrain.score.{name}")
    second = quietly(replace(recipe, batch_tokens=77, chunk_tokens=77), out)
    assert (dates(out), content(out)) == (before, data)
    assert second.manifest == first.manifest
    assert second.index == first.index


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0, not 1"),
        ({"tokens": 301}, "tokens: 300, not 301"),
        ({"window": 64, "short_context": 16, "stride": 16}, "window: 128, not 64"),
        ({"short_context": 9, "stride": 16}, "short_context: 16, not 9"),
        ({"dtype": "bf16"}, "dtype: 'float32', not 'bfloat16'"),
        ({"per_document": None}, "per_document: 1, not None"),
    ],
)
def test_another_recipe_is_refused_with_what_differs(
    changes: dict[str, Any],
    named: str,
    models: Path,
    corpus: str,
    finished: dict[str, Path],
) -> None:
    out = finished["lsd"]
    data = content(out)
    assert named in refused(lsd(corpus, models, **changes), out)
    assert content(out) == data


def test_another_corpus_or_model_is_refused_with_what_differs(
    models: Path, corpus: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    """By what is in the files, not by their names."""
    out = finished["lsd"]
    changed = write_corpus(tmp_path / "books", {**TEXTS, "more": "More text."})
    assert "books/a.jsonl" in refused(lsd(changed, models), out)
    other = tmp_path / "other"
    shutil.copytree(models / "base", other / "long")  # under the name of the first
    assert "long model" in refused(lsd(corpus, other), out)
    assert "model" in refused(contrast(corpus, models), out)


def test_a_corpus_file_that_is_gone_is_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When scoring goes on, and when all is done; so is one that is new."""
    corpus = write_corpus(tmp_path / "books", TEXTS)
    more = Path(corpus) / "b.jsonl"
    line = json.dumps({"id": "more", "text": TEXTS["doc 0"]}) + "\n"
    more.write_text(line, encoding="utf-8")
    recipe, out = lsd(corpus, models), tmp_path / "scores"
    with monkeypatch.context() as patches:
        stop_after(patches, 1)
        with pytest.raises(Stopped):
            quietly(recipe, out)
    for _ in ("while it goes on", "when all is done"):
        more.unlink()
        assert "corpus file books/b.jsonl" in refused(recipe, out)
        more.write_text(line, encoding="utf-8")
        (more.parent / "c.jsonl").write_text(line, encoding="utf-8")
        assert "corpus file books/c.jsonl" in refused(recipe, out)
        (more.parent / "c.jsonl").unlink()
        quietly(recipe, out)
    assert set(content(out)) == FILES


def test_equal_files_elsewhere_are_the_same_recipe(
    models: Path, corpus: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    first = open_scores(finished["lsd"])
    shutil.copytree(corpus, tmp_path / "moved" / "books")
    shutil.copytree(models / "long", tmp_path / "models" / "long")
    recipe = lsd(str(tmp_path / "moved" / "books"), tmp_path / "models")
    assert quietly(recipe, finished["lsd"]).manifest == first.manifest
    quietly(recipe, tmp_path / "again")
    assert content(tmp_path / "again") == content(finished["lsd"])


class Stopped(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, reads: int) -> list[str]:
    """Have the scoring stop before its reading number `reads`, counted from 0; what was read."""
    import lrtrain.score.plan as module

    done: list[str] = []

    def counted(name: str) -> Any:
        real = getattr(module, name)

        def reading(*arguments: Any) -> Any:
            if len(done) == reads:
                raise Stopped
            done.append(name)
            return real(*arguments)

        return reading

    for name in ("read_whole", "read_short"):
        monkeypatch.setattr(module, name, counted(name))
    return done


@pytest.mark.parametrize("method", list(RECIPES))
@pytest.mark.parametrize("reads", [1, 3, 5])
def test_what_was_read_before_a_stop_is_not_read_again(
    method: str,
    reads: int,
    models: Path,
    corpus: str,
    finished: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three windows are read twice each; after any of the six the same command goes on."""
    recipe, out = RECIPES[method](corpus, models), tmp_path / "scores"
    with monkeypatch.context() as patches:
        stop_after(patches, reads)
        with pytest.raises(Stopped):
            quietly(recipe, out)
    assert not (out / MANIFEST).exists()
    assert "seed: 0, not 5" in refused(replace(recipe, seed=5), out)
    with monkeypatch.context() as patches:
        done = stop_after(patches, 6)
        quietly(recipe, out)
    assert len(done) == 6 - reads
    assert content(out) == content(finished[method])


def test_two_runs_do_not_write_to_one_folder(models: Path, corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    (out / ".score").mkdir(parents=True)
    with locked(out / ".score", out):
        assert "another run" in refused(lsd(corpus, models), out)
    quietly(lsd(corpus, models), out)
    assert set(content(out)) == FILES


# What is refused


def refused(recipe: ScoreRecipe, out: Path) -> str:
    with pytest.raises(LongRecipeError) as caught:
        quietly(recipe, out)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


# Killed

DEATH = """
import os, re, shutil, signal, sys
moment, call, pattern, nth = sys.argv.pop(1).split(" ")
home = shutil if call == "rmtree" else os
real, calls = getattr(home, call), 0
def dying(*arguments, **options):
    global calls
    found = re.search(pattern, str(arguments[1 if call == "replace" else 0])) is not None
    calls += found
    due = found and calls == int(nth)
    if due and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if due and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(home, call, dying)
from lrtrain.cli import main
main()
"""
"""`lrtrain`, with a function of `os` or `shutil` that kills the process around its n-th call for a
path of some form."""

MOMENTS = (
    r"before replace \.score/recipe\.json$ 1",
    r"before replace \.score/sample\.parquet$ 1",
    r"after replace \.score/sample\.parquet$ 1",
    r"before replace \.score/.*\.npy$ 2",
    r"after replace \.score/short.*\.npy$ 1",
    r"before replace scores/scores\.parquet$ 1",
    r"after replace scores/scores\.parquet$ 1",
    r"before replace scores/vocabulary\.parquet$ 1",
    r"before replace scores/manifest\.json$ 1",
    r"after replace scores/manifest\.json$ 1",
)
"""The worst moments of a run, in their order."""


def start(words: Sequence[str], death: str | None = None) -> subprocess.Popen[str]:
    program = ["-m", "lrtrain"] if death is None else ["-c", DEATH, death]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_to_its_end(words: Sequence[str], death: str | None = None) -> tuple[int, str]:
    """(exit status, standard error)."""
    process = start(words, death)
    try:
        _, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, stderr


def command(recipe: ScoreRecipe, out: Path) -> list[str]:
    """A recipe as the command line that a person would write: all windows of 64 tokens."""
    long = ["--long-model", recipe.long_model] if recipe.long_model else []
    options = ["--window", "64", "--id-field", "id", "--tokens", "all", "--per-document", "all"]
    words = ["score", *recipe.corpora, "--model", recipe.model, *long, *options, "--device", "cpu"]
    return [*words, "--out", str(out)]


def assert_nothing_half(out: Path, whole: dict[str, bytes]) -> None:
    """What has a final name has its final bytes; where there is a manifest, all is there."""
    found = content(out) if out.exists() else {}
    for name, data in found.items():
        if not name.startswith("."):
            assert data == whole[name], f"{name} has other bytes than it will have"
    if MANIFEST in found:
        open_scores(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(RECIPES))
def test_kills_at_random_moments_change_no_byte(
    method: str, models: Path, corpus: str, tmp_path: Path
) -> None:
    recipe, out = RECIPES[method](corpus, models), tmp_path / "scores"
    whole_code, stderr = run_to_its_end(command(recipe, tmp_path / "whole"))
    assert whole_code == 0, stderr
    whole = content(tmp_path / "whole")
    readings = 2 * open_scores(tmp_path / "whole").manifest.windows
    assert set(whole) == FILES
    draw, midway, code = random.Random(method), 0, -signal.SIGKILL
    targets = sorted(draw.sample(range(readings + 2), 5))  # readings that are there
    for target in targets:
        process = start(command(recipe, out))
        while process.poll() is None and len(list(out.glob(".score/*.npy"))) < target:
            time.sleep(0.001)
        time.sleep(draw.random() / 100)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        code = process.returncode
        assert code in (0, -signal.SIGKILL)
        midway += code != 0 and any(out.glob(".score/*.npy"))
        assert_nothing_half(out, whole)
    assert midway, "no kill came while some readings were there"
    if code:
        code, stderr = run_to_its_end(command(recipe, out))
        assert code == 0, stderr
    assert content(out) == whole


@pytest.mark.slow
def test_a_run_that_dies_at_every_worst_moment_changes_no_byte(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    """At one after the other, each time going on from where the one before died."""
    recipe, out = lsd(corpus, models), tmp_path / "scores"
    code, stderr = run_to_its_end(command(recipe, tmp_path / "whole"))
    assert code == 0, stderr
    whole = content(tmp_path / "whole")
    for moment in MOMENTS:
        code, stderr = run_to_its_end(command(recipe, out), moment)
        assert code == -signal.SIGKILL, f"it did not die {moment}: {stderr}"
        assert_nothing_half(out, whole)
    assert (out / ".score").exists()
    code, stderr = run_to_its_end(command(recipe, out), r"after unlink \.npy$ 3")
    assert code == -signal.SIGKILL, stderr
    assert_nothing_half(out, whole)
    code, stderr = run_to_its_end(command(recipe, out))
    assert code == 0, stderr
    assert content(out) == whole


# A real model


@pytest.mark.slow
def test_smollm2_says_of_real_text_what_transformers_says(tmp_path: Path) -> None:
    folder = fetch("smollm2")
    (tmp_path / "textwrap.txt").write_text(inspect.getsource(textwrap), encoding="utf-8")
    recipe = ScoreRecipe(
        corpora=(str(tmp_path / "textwrap.txt"),),
        model=str(folder),
        window=600,
        short_context=64,
        stride=32,
        tokens=600,
        dtype="fp32",
        device="cpu",
    )
    scores = quietly(recipe, tmp_path / "scores")
    (window,) = scores
    ids, lead = window.ids.tolist(), lead_of(scores)
    assert len(ids) == 600
    assert scores.text(window.ids).decode() in inspect.getsource(textwrap)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    long = forward(model, ids, lead)[0]
    np.testing.assert_allclose(window.log_prob, long, rtol=0, atol=1e-3)
    assert np.isnan(window.gain[:96]).all()
    for target in (96, 127, 128, 300, 599):
        begin = (target - 64) // 32 * 32
        short = forward(model, ids[begin : target + 1], lead)[0, -1]
        assert window.gain[target] == pytest.approx(long[target] - short, abs=1e-3)
    assert window.gain[96:].mean() > 0.05, "more context helps on real text"
