"""LongPPL: the perplexity of the same spans of text, whatever model and tokenizer read them."""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaConfig
from transformers import LlamaForCausalLM as Llama

from lrdata.errors import LongRecipeError
from lrdata.manifest import SourceEntry, TokenizerEntry
from lrdata.scores import (
    SCORES,
    VOCABULARY,
    ScoredWindow,
    ScoresManifest,
    open_scores,
    write_scores_manifest,
    write_vocabulary,
    write_windows,
)
from lrdata.shards import file_sha256
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import main
from lrtrain.evaluation import Report, evaluate
from lrtrain.evaluation.finished import CELLS_NAME
from lrtrain.evaluation.longppl import LongPplCell, bin_ends, encode_keys, open_keys
from lrtrain.evaluation.models import OpenModel
from lrtrain.evaluation.report.longppl import longppl_of
from lrtrain.evaluation.report.tables import half
from lrtrain.evaluation.spelling import overlapping
from tests.conftest import EOT, generated_text
from tests.lrtrain.tiny_runs import build_shards

WINDOW = 128


def save_model(folder: Path, tokenizer: Path, seed: int = 0, window: int = WINDOW) -> str:
    """A random Llama whose tokens depend much on what is before them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=Tokenizer.load(str(tokenizer)).vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    Llama(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return str(folder)


def train(folder: Path, normalizer: Any = None, spaces: bool = False) -> Path:
    """A tokenizer of 400 entries, coarser than the tiny one: byte-level, or as SentencePiece."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=spaces))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [EOT]
    if spaces:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(generated_text(100, seed=1), trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] == EOT]
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOT}))
    return folder


@pytest.fixture(scope="session")
def coarse_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizers") / "coarse")


def window_of(ids: np.ndarray, keys: list[int], document: str = "d") -> ScoredWindow:
    gain, log_prob = np.zeros(len(ids), np.float32), np.full(len(ids), -5.0, np.float32)
    gain[keys], log_prob[keys] = 3.0, -1.0
    return ScoredWindow(document, 0, ids, log_prob, (gain,))


def write_scores(
    folder: Path, tokenizer: Tokenizer, windows: list[ScoredWindow], method: str = "lsd"
) -> Path:
    folder.mkdir()
    write_windows(folder / SCORES, method, windows)
    write_vocabulary(folder / VOCABULARY, tokenizer.token_bytes, tokenizer.special)
    tokens = sum(len(window.ids) for window in windows)
    manifest = ScoresManifest(
        method=method,
        models={"long": "judge"},
        fingerprints={},
        tokenizer=TokenizerEntry(
            tokenizer.name,
            tokenizer.fingerprint,
            tokenizer.probe_fingerprint,
            tokenizer.vocab_size,
            tokenizer.eot_id,
            tokenizer.bos_id,
        ),
        sources=[],
        recipe={},
        window=WINDOW,
        windows=len(windows),
        documents=len(windows),
        tokens=tokens,
        measured=tokens,
        files={name: file_sha256(folder / name) for name in (SCORES, VOCABULARY)},
    )
    write_scores_manifest(folder, manifest)
    return folder


@pytest.fixture
def scores(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    """Three windows, of which the second has no key token; the last ends with a special token."""
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    ids = tokenizer.encode(["".join(generated_text(40, seed=5))])[0]
    last = np.append(ids[400:480], tokenizer.eot_id).astype(np.int32)
    windows = [
        window_of(ids[:WINDOW], [20, 40, 41, 42, 100, 127], "a"),
        window_of(ids[200 : 200 + WINDOW], [], "b"),
        window_of(last, [16, 33, 79, 80], "c"),
    ]
    return write_scores(tmp_path / "scores", tokenizer, windows)


def run(scores: Path, models: list[str], **options: Any) -> Report:
    out = scores.parent / "out"
    return evaluate(
        models,
        suites=["longppl"],
        keys=scores,
        device="cpu",
        out=out,
        plots=False,
        overwrite=True,
        **options,
    )


def direct(path: str, ids: np.ndarray) -> np.ndarray:
    """-log P of each token, by transformers alone and in float64; NaN for what has no context."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    bos_id = Tokenizer.load(path).bos_id
    row = torch.tensor([[*([] if bos_id is None else [bos_id]), *ids.tolist()]])
    with torch.no_grad():
        found = model(row[:, :-1]).logits[0].log_softmax(-1)
    nats = -found.gather(1, row[0, 1:, None])[:, 0].numpy()
    return np.concatenate([[np.nan] if bos_id is None else [], nats])


def pieces_of(tokenizer: Tokenizer, ids: np.ndarray) -> list[bytes]:
    values, offsets = tokenizer.token_bytes
    return [bytes(values[offsets[id_] : offsets[id_ + 1]]) for id_ in ids.tolist()]


def edges_of(tokenizer: Tokenizer, ids: np.ndarray) -> list[int]:
    return np.cumsum([0, *map(len, pieces_of(tokenizer, ids))]).tolist()


def touched(edges: list[int], spans: np.ndarray) -> list[bool]:
    """Which tokens share a byte with a span, byte by byte."""
    inside = {byte for start, stop in spans.tolist() for byte in range(start, stop)}
    return [
        any(byte in inside for byte in range(start, stop))
        for start, stop in itertools.pairwise(edges)
    ]


def test_the_same_tokenizer_equals_a_plain_computation(
    scores: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "one", tiny_tokenizer)
    report = run(scores, [model])
    eot_id = Tokenizer.load(model).eot_id
    nats, keys, lengths = list[float](), list[bool](), list[int]()
    for window in (open_scores(scores).read(index) for index in (0, 2)):
        text = window.ids != eot_id
        reference = direct(model, window.ids)
        assert np.isnan(reference[0])
        nats += reference[text][1:].tolist()
        keys += window.keys[text][1:].tolist()
        lengths.append(int(text.sum()) - 1)
    assert sum(keys) == 9
    found = longppl_of(report, "one")
    assert found
    assert found.key_tokens == 9
    assert math.exp(found.keys.value) == pytest.approx(
        math.exp(np.mean(nats, where=keys)), rel=1e-5
    )
    assert found.all_tokens.value == pytest.approx(np.mean(nats), rel=1e-5)
    (cell,) = report.of(LongPplCell)
    assert (cell.windows, cell.left_out) == ((0, 2), 0)
    assert cell.tokens == tuple(lengths)
    assert cell.context == (127, 80)
    assert report.models[0].tokens == 207
    said = report.settings["keys"]
    assert (said["windows"], said["key_tokens"]) == (2, 9)  # a special token is no key token


def test_another_tokenizer_reads_the_same_spans(
    scores: Path,
    tiny_tokenizer: Path,
    tiny_bos_tokenizer: Path,
    coarse_tokenizer: Path,
    tmp_path: Path,
) -> None:
    own = Tokenizer.load(str(tiny_tokenizer))
    report = run(
        scores,
        [
            save_model(tmp_path / "bos", tiny_bos_tokenizer),
            save_model(tmp_path / "coarse", coarse_tokenizer),
        ],
    )
    for cell in report.of(LongPplCell):
        path = str(tmp_path / cell.model)
        tokenizer = Tokenizer.load(path)
        for at, index in enumerate(cell.windows):
            window = open_scores(scores).read(index)
            text = open_scores(scores).text(window.ids).decode()
            edges = np.array(edges_of(own, window.ids[window.ids != own.eot_id]))
            keys = window.keys[: len(edges) - 1]
            spans = np.stack([edges[:-1], edges[1:]], 1)[keys]
            ids = tokenizer.encode([text])[0]
            chosen = touched(edges_of(tokenizer, ids), spans)
            nats = direct(path, ids)
            assert sum(cell.key_tokens[at]) == sum(chosen) >= len(spans)
            assert sum(cell.key_nats[at]) == pytest.approx(nats[chosen].sum(), rel=1e-5)
            assert cell.nats[at] == pytest.approx(np.nansum(nats), rel=1e-5)
            first = len(pieces_of(tokenizer, ids)[0]) if tokenizer.bos_id is None else 0
            assert cell.bytes[at] == len(text.encode()) - first


def test_a_model_is_measured_alike_whatever_is_beside_it(
    scores: Path, tiny_tokenizer: Path, coarse_tokenizer: Path, tmp_path: Path
) -> None:
    asked = [
        save_model(tmp_path / "one", tiny_tokenizer),
        save_model(tmp_path / "other", coarse_tokenizer, seed=1),
    ]
    both = run(scores, asked)
    assert run(scores, asked[::-1]).of(LongPplCell) == both.of(LongPplCell)[::-1]
    assert run(scores, asked[:1]).of(LongPplCell) == both.of(LongPplCell)[:1]


# Transfer


@cache
def loaded(folder: Path) -> Tokenizer:
    return Tokenizer.load(str(folder))


@st.composite
def texts_and_spans(draw: st.DrawFn) -> tuple[bytes, list[list[int]]]:
    letters = st.sampled_from("ab e.\n0éя的人😀\u0301") | st.sampled_from(list("theandof of"))
    text = draw(st.text(letters, min_size=1, max_size=60)).encode()
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=12))
    edges = sorted(cuts[: len(cuts) // 2 * 2])
    return text, [edges[at : at + 2] for at in range(0, len(edges), 2)]


@given(texts_and_spans())
@example(("的人".encode(), [[1, 2], [3, 6]]))
def test_chosen_tokens_cover_all_spans_and_nothing_else(
    coarse_tokenizer: Path, made: tuple[bytes, list[list[int]]]
) -> None:
    text, spans = made[0], np.array(made[1], np.int64).reshape(-1, 2)
    tokenizer = loaded(coarse_tokenizer)
    read = encode_keys(text, spans, tokenizer)
    assert read is not None
    assert b"".join(pieces_of(tokenizer, read.ids)) == text
    edges = edges_of(tokenizer, read.ids)
    assert np.array_equal(read.sizes, np.diff(edges))
    assert read.keys.tolist() == touched(edges, spans)
    chosen = {byte for at in np.flatnonzero(read.keys) for byte in range(edges[at], edges[at + 1])}
    assert {byte for start, stop in spans.tolist() for byte in range(start, stop)} <= chosen


@given(
    sizes=st.lists(st.integers(0, 3), max_size=20),
    cuts=st.lists(st.integers(0, 60), max_size=12),
)
def test_empty_tokens_and_empty_spans_touch_nothing(sizes: list[int], cuts: list[int]) -> None:
    edges = np.cumsum([0, *sizes])
    spans = np.array(sorted(cuts[: len(cuts) // 2 * 2]), np.int64).reshape(-1, 2)
    assert overlapping(edges[:-1], edges[1:], spans).tolist() == touched(edges.tolist(), spans)


@pytest.mark.parametrize(("first", "stop"), [(0, 13), (1, 12), (2, 11), (3, 10), (6, 8), (1, 2)])
def test_characters_cut_at_the_ends_are_left_out(
    coarse_tokenizer: Path, first: int, stop: int
) -> None:
    text = "的人 a😀é".encode()[first:stop]
    spans = np.array([[0, 1], [len(text) - 1, len(text)]])
    read = encode_keys(text, spans if len(text) > 1 else spans[:1], loaded(coarse_tokenizer))
    assert read is not None
    whole = text.decode(errors="ignore").encode()
    assert b"".join(pieces_of(loaded(coarse_tokenizer), read.ids)) == whole
    start = text.index(whole)
    if len(read.ids):
        # A span within a cut character marks nothing; one within a whole character its tokens.
        assert read.keys[0] == (start == 0)
        assert read.keys[-1] == (start + len(whole) == len(text))


def test_windows_that_a_tokenizer_does_not_spell_are_left_out_and_counted(
    tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrtrain.evaluation import print_report

    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    apart, plain = "so e\u0301 one. " * 20, "so it is one. " * 20
    windows = [
        window_of(tokenizer.encode([text])[0][:60], [30, 50], text[:4]) for text in (apart, plain)
    ]
    scores = write_scores(tmp_path / "scores", tokenizer, windows)
    composing = save_model(tmp_path / "composing", train(tmp_path / "nfc", normalizers.NFC()))
    own = save_model(tmp_path / "own", tiny_tokenizer)
    report = run(scores, [composing, own])
    assert [cell.windows for cell in report.of(LongPplCell)] == [(1,), (0, 1)]
    assert [cell.left_out for cell in report.of(LongPplCell)] == [1, 0]
    print_report(report)
    assert "composing: 1 of 2 windows left out" in capsys.readouterr().out

    none = write_scores(tmp_path / "none", tokenizer, windows[:1])
    with pytest.raises(LongRecipeError, match="does not spell the text of any window"):
        run(none, [composing])


def test_bytes_that_are_no_text_are_not_read_as_one(coarse_tokenizer: Path) -> None:
    spans = np.array([[0, 2]])
    assert encode_keys(b"a\xffb", spans, loaded(coarse_tokenizer)) is None
    assert encode_keys(b"\x80" * 5, spans, loaded(coarse_tokenizer)) is not None  # nothing is left


def test_a_space_that_a_tokenizer_puts_before_a_text_is_no_byte_of_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(train(tmp_path / "spaces", spaces=True)))
    text = "the way of it, яяя 的 the".encode()
    spans = np.array([[0, 1], [4, 7], [len(text) - 1, len(text)]])
    read = encode_keys(text, spans, tokenizer)
    assert read is not None
    pieces = pieces_of(tokenizer, read.ids)
    assert b"".join(pieces) == b" " + text
    assert read.sizes.sum() == len(text)
    edges = [0, *np.cumsum(read.sizes).tolist()]
    assert read.keys.tolist() == touched(edges, spans)


# Positions


@given(window=st.integers(2, 300_000), before=st.integers(1, 400_000))
def test_bins_are_powers_of_two_that_end_with_the_window(window: int, before: int) -> None:
    ends = bin_ends(window)
    assert ends[0] == min(1024, 2 ** int(math.log2(max(window // 8, 1))))
    assert np.array_equal(ends[1:], 2 * ends[:-1])
    at = int(np.searchsorted(ends, before))
    assert before <= ends[at]
    assert at == 0 or before > ends[at - 1]


def test_positions_show_where_a_model_ends(
    scores: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    names = [
        save_model(tmp_path / "near", tiny_tokenizer, window=64),
        save_model(tmp_path / "far", tiny_tokenizer, window=128),
    ]
    report = run(scores, names)
    (cell, _) = report.of(LongPplCell)
    assert cell.bins == ((0, 16), (16, 32), (32, 64), (64, 128))
    assert np.array_equal(np.sum(cell.key_tokens, axis=0), [1, 1, 4, 3])
    found = longppl_of(report, "near")
    assert found
    pooled = sum(nats.value * count for nats, count in found.by_position.values())
    assert pooled / found.key_tokens == pytest.approx(found.keys.value)


# Text that was trained on


def test_scores_of_files_that_the_shards_are_of_are_named(
    scores: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their bytes, under whatever name."""
    from lrtrain.evaluation import print_report

    shards = build_shards(tiny_tokenizer, tmp_path / "shards", replay=False)
    trained = (tmp_path / "shards-corpus" / "long.jsonl").read_bytes()
    model = save_model(tmp_path / "one", tiny_tokenizer)
    manifest = open_scores(scores).manifest
    for contents, found in (
        ({"mine.jsonl": trained, "other.jsonl": b"other"}, ["mine.jsonl"]),
        ({"other.jsonl": b"other"}, None),
    ):
        sources = [
            SourceEntry(name, "books", None, len(data), hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        ]
        write_scores_manifest(scores, replace(manifest, sources=sources))
        report = run(scores, [model], shards=shards)
        print_report(report)
        said = capsys.readouterr().out
        assert ("scores and shards are of the same files" in said) == (found is not None)
        written = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))
        assert written["settings"]["keys"].get("files_in_shards") == found


# Documents


def found_in(
    scores: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[LongPplCell, list[str]]:
    """The cell of the first model, whatever was there, and whose weights were read."""
    names, load = list[str](), OpenModel.load

    def listed(opened: OpenModel) -> Any:
        names.append(opened.name)
        return load(opened)

    monkeypatch.setattr(OpenModel, "load", listed)
    out = scores.parent / "out"
    report = evaluate(models, suites=["longppl"], keys=scores, out=out, device="cpu", plots=False)
    return report.of(LongPplCell)[0], names


def test_a_cell_says_of_which_document_a_window_is(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    ids = tokenizer.encode(["".join(generated_text(40, seed=5))])[0]
    windows = [
        window_of(ids[at * 60 : at * 60 + 60], keys, document)
        for at, (document, keys) in enumerate(
            [("z", [30]), ("none", []), ("a", [20, 40]), ("z", [50]), ("b", [9])]
        )
    ]
    scores = write_scores(tmp_path / "scores", tokenizer, windows)
    models = [save_model(tmp_path / "one", tiny_tokenizer)]
    cell, read = found_in(scores, models, monkeypatch)
    assert (cell.windows, cell.documents) == ((0, 2, 3, 4), (0, 2, 0, 3))
    assert read == ["one"]

    # What an earlier version kept does not say it: there each window counts as a document.
    kept = tmp_path / "out" / CELLS_NAME
    *lines, last = kept.read_text(encoding="utf-8").splitlines()
    line = json.loads(last)
    del line["cell"]["documents"]
    kept.write_text("\n".join([*lines, json.dumps(line), ""]), encoding="utf-8")
    old, read = found_in(scores, models, monkeypatch)
    assert (old.windows, old.documents, old.nats) == (cell.windows, (), cell.nats)
    assert not read


def test_windows_of_a_document_are_no_samples_of_their_own() -> None:
    """Its interval is that of the means of documents: here as wide as the analytic one."""
    draw = np.random.default_rng(9)
    documents, each = 60, 8
    nats = draw.normal(2.0, 0.3, (documents, 1)) + draw.normal(0.0, 0.3, (documents, each))
    count = nats.size
    cell = LongPplCell(
        model="one",
        windows=tuple(range(count)),
        context=(128,) * count,
        bins=((0, 128),),
        key_nats=tuple((value,) for value in nats.ravel().tolist()),
        key_tokens=((1,),) * count,
        nats=tuple((10 * nats).ravel().tolist()),
        tokens=(10,) * count,
        bytes=(40,) * count,
        left_out=0,
        documents=tuple(np.repeat(range(documents), each).tolist()),
    )
    found = longppl_of(Report(settings={}, versions={}, cells=[cell]), "one")
    assert found
    expected = 1.96 * nats.mean(1).std() / math.sqrt(documents)
    ((at_position, tokens),) = found.by_position.values()
    assert tokens == found.key_tokens == count
    for mean in (found.keys, found.all_tokens, at_position):
        assert mean.value == pytest.approx(nats.mean())
        assert mean.count == documents
        assert half(mean) == pytest.approx(expected, rel=0.06)


# The whole


def test_the_scoring_model_says_what_its_scores_say(
    tiny_bos_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model gains nothing from context: any token that gains a little is a key token.
    monkeypatch.setattr("lrdata.scores.KEY_GAIN", 0.2)
    monkeypatch.setattr("lrdata.scores.KEY_LOG_PROB", -20.0)
    for name in ("a", "b", "c"):
        text = "".join(generated_text(30, seed=ord(name)))
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    judge = save_model(tmp_path / "judge", tiny_bos_tokenizer, window=256)
    small = save_model(tmp_path / "small", tiny_bos_tokenizer, seed=1, window=128)
    scores, out = tmp_path / "scores", tmp_path / "eval"
    texts = [str(tmp_path / f"{name}.txt") for name in ("a", "b", "c")]
    options = ["--model", judge, "--out", str(scores), "--tokens", "all", "--device", "cpu"]
    scored = CliRunner().invoke(main, ["score", *texts, *options])
    assert scored.exit_code == 0, scored.output
    asked = [judge, small, "--suite", "longppl", "--keys", str(scores), "--out", str(out)]
    result = CliRunner().invoke(main, ["eval", *asked, "--device", "cpu"])
    assert result.exit_code == 0, result.output

    windows = list(open_scores(scores))
    log_probs = np.concatenate([window.log_prob[window.keys] for window in windows])
    written = json.loads((out / "eval.json").read_text())
    assert written["settings"]["keys"]["model"] == "judge"
    cell, other = written["longppl"]["cells"]
    assert (cell["model"], cell["key_tokens"]) == ("judge", len(log_probs))
    expected = math.exp(-log_probs.astype(np.float64).mean())
    assert cell["longppl"][0] == pytest.approx(expected, rel=1e-5)
    everything = np.concatenate([window.log_prob for window in windows]).astype(np.float64)
    assert cell["perplexity"][0] == pytest.approx(math.exp(-everything.mean()), rel=1e-5)
    assert sum(part["key_tokens"] for part in cell["by_position"]) == len(log_probs)
    assert cell["longppl"][1] < cell["longppl"][0] < cell["longppl"][2]
    assert other["window_key_tokens"] == cell["window_key_tokens"]
    assert other["longppl"] != cell["longppl"]

    lines = result.output.splitlines()
    ours = next(line for line in lines if "judge" in line and "256" in line)
    theirs = next(line for line in lines if "small" in line and "128" in line)
    assert "*" not in ours
    assert theirs.count("*") == 3  # LongPPL, its last bin, all tokens
    assert "* beyond the model's max_position_embeddings" in result.output
    assert (out / "longppl.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [("contrast", [3], "compares two models"), ("lsd", [], "has no key token among")],
)
def test_scores_without_key_tokens_are_refused_before_a_model_is_loaded(
    tiny_tokenizer: Path, tmp_path: Path, method: str, keys: list[int], message: str
) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    window = window_of(tokenizer.encode(["there is no model of that name"])[0], keys)
    if method == "contrast":
        window = window._replace(measures=(window.gain, window.gain))
    scores = write_scores(tmp_path / "scores", tokenizer, [window], method)
    with pytest.raises(LongRecipeError, match=message) as problem:
        run(scores, ["nowhere/at/all"])
    assert "\n" not in str(problem.value)


def test_a_special_token_is_no_key_token(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    ids = np.append(tokenizer.encode(["an end"])[0], tokenizer.eot_id).astype(np.int32)
    scores = write_scores(tmp_path / "scores", tokenizer, [window_of(ids, [len(ids) - 1])])
    with pytest.raises(LongRecipeError, match="has no key token"):
        open_keys(scores)


@pytest.mark.parametrize(
    "asked", [["--suite", "longppl"], ["--keys", "SCORES"], ["--suite", "longppl", "--keys", "no"]]
)
def test_the_command_says_what_is_missing(scores: Path, asked: list[str]) -> None:
    given = [str(scores) if word == "SCORES" else word for word in asked]
    result = CliRunner().invoke(main, ["eval", "nowhere/at/all", *given])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "lrtrain score" in result.output


def test_a_model_that_scales_its_logits_is_refused(
    scores: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    config = GraniteConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path / "granite")
    for file in tiny_tokenizer.iterdir():
        shutil.copy(file, tmp_path / "granite")
    with pytest.raises(LongRecipeError, match="does more to its logits"):
        run(scores, [str(tmp_path / "granite")])


def test_families_with_another_layout_are_read_all_the_same(
    scores: Path, tiny_tokenizer: Path, tmp_path: Path, make_gpt2: Callable[[Path], str]
) -> None:
    path = make_gpt2(tmp_path / "gpt2")
    report = run(scores, [path])
    window = open_scores(scores).read(0)
    nats = direct(path, window.ids)
    (cell,) = report.of(LongPplCell)
    assert sum(cell.key_nats[0]) == pytest.approx(nats[window.keys].sum(), rel=1e-5)


@pytest.fixture
def make_gpt2(tiny_tokenizer: Path) -> Callable[[Path], str]:
    """GPT-2: learned positions, so that not one token more than its window can be read."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(folder: Path) -> str:
        config = GPT2Config(vocab_size=1000, n_positions=WINDOW - 1, n_embd=16, n_layer=1, n_head=2)
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
        for file in tiny_tokenizer.iterdir():
            shutil.copy(file, folder)
        return str(folder)

    return make
