"""`lrtrain score`: what it writes equals plain forwards, however often it was stopped."""

import inspect
import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lrdata.atomic import locked
from lrdata.manifest import MANIFEST
from lrdata.scores import Scores, open_scores
from lrdata.tokenizer import Tokenizer
from lrtrain import attention
from lrtrain.attention_trials import Heads
from lrtrain.scoring import ScoreRecipe, score
from tests.corpora import content
from tests.fetch import fetch
from tests.lrtrain.scoring import (
    FILES,
    RECIPES,
    TEXTS,
    Stopped,
    contrast,
    lsd,
    quietly,
    refused,
    save_models,
    stop_after,
    write_corpus,
)
from tests.lrtrain.tiny_runs import WINDOW

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` and `long`."""
    return save_models(tiny_tokenizer, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def bos_models(tiny_bos_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose tokenizer adds a start of text."""
    return save_models(tiny_bos_tokenizer, tmp_path_factory.mktemp("bos-models"))


@pytest.fixture(params=["no start of text", "start of text"])
def either(request: pytest.FixtureRequest, models: Path, bos_models: Path) -> Path:
    return models if request.param == "no start of text" else bos_models


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


# With which attention


def test_the_attention_of_a_run_in_the_same_process_is_not_used(
    models: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_model(*_: Any) -> torch.Tensor:
        raise RuntimeError("it is for other heads, another device or another dtype")

    monkeypatch.setattr(attention, "_chosen", of_another_model)
    assert_lsd(quietly(lsd(corpus, models), tmp_path / "scores"), plain(models / "long"))
    assert attention._chosen is of_another_model, "nor changed"


def test_attention_is_the_fastest_for_each_model_here(
    models: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()

    def fastest(*given: Any) -> tuple[str, list[str]]:
        asked.append(given)
        return "dense", []

    monkeypatch.setattr("lrtrain.scoring.plan.fastest", fastest)
    quietly(contrast(corpus, models), tmp_path / "scores")
    heads = Heads(query=4, key_value=2, width=8)
    assert asked == [(heads, torch.device("cpu"), torch.float32)] * 2


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
        monkeypatch.delattr(f"lrtrain.scoring.{name}")
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


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"eos_token": "<|im_end|>"}, "tokenizer's end of text: 0, not 2"),
        (
            {"bos_token": "<|im_start|>", "add_bos_token": True},
            "tokenizer's start of text: None, not 1",
        ),
    ],
)
def test_another_end_or_start_of_text_is_refused(
    changes: dict[str, Any],
    name: str,
    models: Path,
    corpus: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores of an earlier version, whose recipe does not name them, have them all the same."""
    shutil.copytree(models / "long", tmp_path / "long")
    recipe = lsd(corpus, tmp_path)
    scores = quietly(recipe, tmp_path / "finished")
    path = scores.folder / MANIFEST
    raw = json.loads(path.read_text())
    for key in ("tokenizer's end of text", "tokenizer's start of text", "tokenizer fingerprint"):
        del raw["recipe"][key]
    path.write_text(json.dumps(raw))
    quietly(recipe, scores.folder)
    with monkeypatch.context() as patches:
        stop_after(patches, 3)
        with pytest.raises(Stopped):
            quietly(recipe, tmp_path / "stopped")
    config = tmp_path / "long" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    for out in (scores.folder, tmp_path / "stopped"):
        assert name in refused(recipe, out)


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
