"""The whole of `lrdata build`: every row rebuilt from its sources, equal bytes, clear errors."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
from click.testing import CliRunner

from lrdata.building import build
from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import Manifest, read_manifest
from lrdata.plan import make_plan
from lrdata.positions import SCHEMES
from lrdata.recipe import BuildRecipe
from lrdata.report.about import COLUMNS
from lrdata.shards import Row
from tests.corpora import content, some_texts, write_jsonl
from tests.fetch import fetch
from tests.lrdata import build_runs

TARGET = 1024


def rebuild(row: Row, texts: dict[str, str], library: tokenizers.Tokenizer, manifest: Manifest):
    """A row's ids from the source texts and its provenance columns, and nothing of ours."""
    eot, bos = manifest.tokenizer.eot_id, manifest.tokenizer.bos_id
    lead = [] if bos is None else [bos]
    window: list[int] = [] if row.kind == "replay" else list(lead)
    for name, start, length in zip(row.doc_ids, row.doc_offsets, row.doc_lengths, strict=True):
        tokens = [*library.encode(texts[name], add_special_tokens=False).ids, eot]
        if row.kind == "replay":
            tokens = lead + tokens
        window += tokens[start : start + length]
    assert len(window) == row.window_tokens
    pieces = zip(row.segment_starts, row.segment_lengths, strict=True)
    return [token for start, length in pieces for token in window[start : start + length]]


def assert_rebuilt(folder: Path, texts: dict[str, str], tokenizer: Path) -> dict[str, int]:
    library = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    library.encode_special_tokens = True
    shards = open_dataset(folder)
    seen = {}
    for kind in shards.kinds:
        for index in range(shards.rows(kind)):
            row = shards.read_row(kind, index)
            assert row.input_ids.tolist() == rebuild(row, texts, library, shards.manifest)
        seen[kind] = shards.rows(kind)
    return seen


def texts_of(corpus: Path) -> dict[str, str]:
    texts = {}
    for name in ("books/a.jsonl", "b.jsonl", "short.jsonl"):
        for line in (corpus / name).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts[record["id"]] = record["text"]
            texts[record["id"].replace("b-", "c-")] = record["text"]
    return texts


def test_every_row_is_rebuilt_from_its_sources(
    built: Path, corpus: Path, tiny_bos_tokenizer: Path
) -> None:
    seen = assert_rebuilt(built, texts_of(corpus), tiny_bos_tokenizer)
    assert set(seen) == {"extend", "replay", "holdout"}
    assert min(seen.values()) >= 1


@pytest.mark.parametrize("name", ["llama3", "qwen", "smollm2"])
def test_real_multilingual_text_is_rebuilt(name: str, tmp_path: Path) -> None:
    source = fetch("locales") / "texts.jsonl"
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    recipe = BuildRecipe(
        corpora=(str(source),),
        tokenizer=str(fetch(name)),
        target_len=4096,
        holdout=0.2,
        id_field="id",
        replay=(str(source),),
    )
    build(recipe, tmp_path / "out", workers=1)
    texts = {record["id"]: record["text"] for record in records}
    seen = assert_rebuilt(tmp_path / "out", texts, fetch(name))
    assert seen["extend"] > 20
    assert seen["holdout"] > 0
    joined = pq.read_table(tmp_path / "out" / "extend").column("doc_ids").to_pylist()
    assert max(map(len, joined)) > 1, "some windows are joined from several documents"


def test_rows_keep_their_promises(built: Path, recipe: BuildRecipe) -> None:
    shards = open_dataset(built)
    for index in range(shards.rows("extend")):
        row = shards.read_row("extend", index)
        assert len(row.input_ids) == recipe.train_len == 304
        assert row.input_ids[0] == shards.bos_id
        assert (row.position_ids[0], row.position_ids.max() < TARGET) == (0, True)
        assert (np.diff(row.position_ids) >= 1).all()
        ends = set(np.cumsum(row.segment_lengths).tolist())
        gaps = np.flatnonzero(np.diff(row.position_ids) > 1) + 1
        assert set(gaps.tolist()) <= ends
        assert row.impact_mask.any()
    for index in range(shards.rows("holdout")):
        row = shards.read_row("holdout", index)
        assert row.position_ids.tolist() == list(range(TARGET))


def test_the_ledger_is_exact(built: Path, corpus: Path, tiny_bos_tokenizer: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(tiny_bos_tokenizer / "tokenizer.json"))
    ledger = read_manifest(built).ledger
    texts = texts_of(corpus).values()
    assert ledger.problems() == []
    assert ledger.records_built == len(texts)
    lengths = [len(library.encode(text, add_special_tokens=False).ids) for text in texts]
    assert ledger.encoded == sum(lengths)
    assert ledger.inserted == len(texts) + ledger.rows + ledger.holdout_rows


def test_workers_do_not_change_a_byte(built: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    build(recipe, tmp_path / "shards", workers=2)
    assert content(tmp_path / "shards") == content(built)


def test_max_rows_takes_the_first_rows(built: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    whole = open_dataset(built)
    for limit in (1, whole.rows("extend") // 2, whole.rows("extend")):
        out = tmp_path / f"{limit}"
        manifest = build(replace(recipe, max_rows=limit, replay=()), out, workers=1)
        part = open_dataset(out)
        assert part.rows("extend") == limit
        assert manifest.ledger.problems() == []
        for index in range(limit):
            one, other = part.read_row("extend", index), whole.read_row("extend", index)
            assert one.sample_id == other.sample_id
            assert np.array_equal(one.position_ids, other.position_ids)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("join", ["attend", "mask"])
def test_every_scheme_builds(scheme: str, join: str, recipe: BuildRecipe, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    made = replace(
        recipe, positions=scheme, join=join, train_len=0, evidence=-1, replay=(), max_rows=20
    )
    build(made, out, workers=1)
    shards = open_dataset(out)
    jumps_inside = 0
    for index in range(20):
        row = shards.read_row("extend", index)
        jumps = np.flatnonzero(np.diff(row.position_ids) != 1) + 1
        jumps_inside += len(np.setdiff1d(jumps, np.cumsum(row.segment_lengths)))
        assert len(row.input_ids) == made.train_len
        assert row.seq_lengths.sum() == made.train_len
        assert join == "mask" or len(row.seq_lengths) == 1
        if scheme == "source":
            offsets = np.concatenate(
                [
                    np.arange(start, start + length)
                    for start, length in zip(row.segment_starts, row.segment_lengths, strict=True)
                ]
            )
            assert np.array_equal(row.position_ids, offsets)
        # Documents end where the end-of-text token is, and nowhere else.
        if join == "mask":
            ends = np.cumsum(row.seq_lengths)[:-1]
            kept_ends = np.flatnonzero(row.input_ids == shards.eot_id) + 1
            assert set(kept_ends.tolist()) - {made.train_len} <= set(ends.tolist())
    assert (jumps_inside > 0) == (f"`{scheme}`" in COLUMNS["segment_lengths"])


def test_weights_repeat_and_thin_sources(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    path = str(corpus / "books" / "a.jsonl")
    base = BuildRecipe(corpora=(path,), tokenizer=str(tiny_tokenizer), target_len=TARGET)
    once = build(base, tmp_path / "1", workers=1).ledger
    twice = build(replace(base, weights={"a": 2.0}), tmp_path / "2", workers=1)
    half = build(replace(base, weights={"a": 0.5}), tmp_path / "h", workers=1).ledger
    assert (twice.ledger.rows, twice.ledger.encoded) == (2 * once.rows, 2 * once.encoded)
    assert twice.ledger.problems() == half.problems() == []
    assert 0 < half.records_built < once.records_built
    assert half.records_built + half.records_filtered == once.records_built
    shards = open_dataset(tmp_path / "2")
    rows = {}
    for index in range(shards.rows("extend")):
        row = shards.read_row("extend", index)
        rows.setdefault(row.sample_id.rsplit(":", 1)[0], []).append(row.position_ids.tolist())
    assert all(len(pair) == 2 and pair[0] != pair[1] for pair in rows.values()), "new draws"


def test_a_source_of_weight_0_is_not_used_at_all(
    built: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    """Not to extend with, and not in the holdout."""
    made = replace(recipe, weights={"short": 0.0}, replay=())
    ledger = build(made, tmp_path / "without", workers=1).ledger
    alone = replace(made, corpora=recipe.corpora[:1], weights={})
    expected = build(alone, tmp_path / "alone", workers=1).ledger
    assert ledger.records_filtered == 200
    assert (ledger.holdout_rows, ledger.held_out) == (expected.holdout_rows, expected.held_out)
    assert (ledger.rows, ledger.encoded) == (expected.rows, expected.encoded)
    assert ledger.holdout_rows < read_manifest(built).ledger.holdout_rows


def test_weights_and_licences_are_of_sources_that_are_there(
    recipe: BuildRecipe, tmp_path: Path
) -> None:
    made = replace(recipe, holdout=0.0, max_rows=1)
    for wrong, what in (
        ({"weights": {"books/": 2.0}}, r"--weight books/=2\.0: .* one of books, short$"),
        ({"licences": {"book": "mit"}}, r"--license book=mit: .* one of books, short$"),
    ):
        with pytest.raises(LongRecipeError, match=what):
            build(replace(made, **wrong), tmp_path / "out", workers=1)
        with pytest.raises(LongRecipeError, match=what):
            make_plan(replace(made, **wrong))
    assert not (tmp_path / "out").exists()
    named = replace(made, source_field="id", weights={"a-3": 2.0}, licences={"books": "mit"})
    build(named, tmp_path / "out", workers=1)


def test_short_documents_are_set_aside(corpus: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    recipe = BuildRecipe(
        corpora=(str(corpus / "books" / "a.jsonl"),),
        tokenizer=str(tiny_tokenizer),
        target_len=TARGET,
        min_doc_tokens=500,
    )
    ledger = build(recipe, tmp_path / "out", workers=1).ledger
    assert ledger.records_filtered > 0
    assert ledger.problems() == []


def test_rejected_records_are_listed(tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", some_texts(10, 5))
    with open(path, "a") as stream:
        stream.write('{"id": "x", "text": 5}\n{broken secret\n')
    recipe = BuildRecipe(corpora=(str(path),), tokenizer=str(tiny_tokenizer), target_len=TARGET)
    ledger = build(recipe, tmp_path / "out", workers=1).ledger
    lines = [
        json.loads(line)
        for file in (tmp_path / "out" / "quarantine").iterdir()
        for line in file.read_text().splitlines()
    ]
    assert (ledger.records_read, ledger.records_built, len(lines)) == (12, 10, 2)
    assert all(line["file"] == "c.jsonl" and line["reason"] for line in lines)
    assert "secret" not in json.dumps(lines)


def spoiled(folder: Path, good: int, bad: int) -> Path:
    path = write_jsonl(folder / "c.jsonl", some_texts(good, 5))
    with open(path, "a") as stream:
        stream.write('{"id": "x", "text": 5}\n' * bad)
    return path


@pytest.mark.parametrize(("limit", "code"), [("1%", 1), ("10%", 1), ("17%", 0), (None, 1)])
def test_too_many_bad_records_decide_the_exit_code_and_nothing_else(
    limit: str | None, code: int, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    path, out = spoiled(tmp_path, good=10, bad=2), tmp_path / "out"
    options = ["--tokenizer", str(tiny_tokenizer), "--target-len", "1k", "--out", str(out)]
    options += ["--workers", "1", *(["--max-bad", limit] if limit else [])]
    for _ in range(2):  # of a finished build too
        result = CliRunner().invoke(main, ["build", str(path), *options])
        assert result.exit_code == code, result.output
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == code
        assert all("2 of 12 records (16.67%)" in line for line in errors)
    assert read_manifest(out).ledger.records_built == 10
    accepted = CliRunner().invoke(main, ["build", str(path), *options, "--max-bad", "20%"])
    assert accepted.exit_code == 0


@pytest.mark.slow
def test_a_line_of_500_mb_is_rejected_without_being_held(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", some_texts(10, 5))
    with open(path, "ab") as stream:
        stream.write(b'{"text": "')
        for _ in range(500):
            stream.write(b"word " * 200_000)
        stream.write(b'"}\n' + b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
        stream.write(json.dumps({"text": some_texts(1, 6)[0]}).encode() + b"\n")
    recipe = BuildRecipe((str(path),), str(tiny_tokenizer), TARGET)
    ledger = build(recipe, tmp_path / "out", workers=2).ledger
    path.unlink()
    lines = [
        json.loads(line)["reason"]
        for file in sorted((tmp_path / "out" / "quarantine").iterdir())
        for line in file.read_text().splitlines()
    ]
    assert lines == ["longer than 384 MB", "not JSON that can be read: nested too deeply"]
    assert (ledger.records_built, ledger.records_quarantined) == (11, 2)


def test_no_path_of_this_machine_is_published(built: Path, corpus: Path) -> None:
    for name, data in content(built).items():
        if not name.endswith(".parquet"):
            assert str(corpus).encode() not in data
            assert os.fsencode(Path.home()) + b"/" not in data


# Bad input: one line, an exit code, nothing left behind


def cases(corpus: Path) -> dict[str, tuple[list[str], int, str]]:
    a = str(corpus / "books" / "a.jsonl")
    ok = [a, "--target-len", "1k"]
    return {
        "missing file": (
            ["nowhere.jsonl", "--target-len", "1k"],
            1,
            "nowhere.jsonl does not exist",
        ),
        "empty corpus": ([str(corpus / "empty.jsonl"), "--target-len", "1k"], 1, "no usable doc"),
        "empty folder": ([str(corpus / "none"), "--target-len", "1k"], 1, "no corpus file"),
        "wrong field": ([*ok, "--text-field", "body"], 1, "body"),
        "too few tokens": ([a, "--target-len", "1m"], 1, "too few for one window"),
        "target below train": ([*ok, "--train-len", "2k"], 1, "--train-len 2048 must be below"),
        "unknown scheme": ([*ok, "--positions", "yarn"], 1, "--positions yarn is unknown"),
        "unknown scorer": ([*ok, "--impact", "vibes"], 1, "--impact vibes"),
        "not a size": ([a, "--target-len", "big"], 2, "'big' is not a size"),
        "no such end of text": ([*ok, "--eot", "<fin>"], 1, "<fin>"),
        "replay too short": (
            [*ok, "--replay", str(corpus / "tiny.jsonl"), "--replay-ratio", "90%"],
            1,
            "replay corpus has",
        ),
        "no template fields": ([*ok, "--chat-template"], 1, "--prompt-field"),
        "a seed beyond 64 bits": ([*ok, "--seed", str(-(2**63))], 1, "--seed does not fit"),
        "a long licence": ([*ok, "--license", "a=" + "x" * 4097], 1, "--license does not fit"),
        "a long field": ([*ok, "--text-field", "x" * 4097], 1, "--text-field does not fit"),
        "a weight that is none": ([*ok, "--weight", "a=nan"], 1, "--weight a=nan must be a number"),
        "a weight without end": ([*ok, "--weight", "a=inf"], 1, "--weight a=inf must be a number"),
        "no such tokenizer": ([*ok, "--tokenizer", "./nope"], 1, "nope"),
    }


@pytest.mark.parametrize("case", list(cases(Path())))
def test_bad_input_is_one_clear_line(
    case: str, corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    (corpus / "empty.jsonl").touch()
    (corpus / "none").mkdir(exist_ok=True)
    write_jsonl(corpus / "tiny.jsonl", ["A short one."])
    arguments, code, line = cases(corpus)[case]
    out = tmp_path / "out"
    if "--tokenizer" not in arguments:
        arguments = [*arguments, "--tokenizer", str(tiny_tokenizer)]
    options = ["--workers", "1", "--out", str(out)]
    result = CliRunner().invoke(main, ["build", *arguments, *options])
    errors = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (code, 1), result.output
    assert line in errors[0]
    if case != "replay too short":  # its units are done: the same command with more text goes on
        assert not out.exists()


@pytest.mark.parametrize("inside", ["folder", "glob", "replay"])
def test_a_dataset_is_no_corpus_of_its_own(
    inside: str, recipe: BuildRecipe, corpus: Path, tmp_path: Path
) -> None:
    """The same command again would read what it wrote; with --overwrite it would remove it first,
    and then not find it."""
    corpus = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    out = corpus / "made"
    folder = str(corpus)
    if inside == "glob":  # which does not tell before
        build(replace(recipe, corpora=(f"{corpus}/*/*.jsonl",)), out, workers=1)
        write_jsonl(out / "quarantine" / "x.jsonl", ["A rejected one."])
        folder = f"{corpus}/**/*.jsonl"
    before = content(out) if out.exists() else {}
    wrong: dict[str, Any] = {"corpora": (folder,)}
    if inside == "replay":
        wrong = {"replay": (folder,)}
    for overwrite in (False, True):
        with pytest.raises(LongRecipeError, match="lies in the corpus"):
            build(replace(recipe, **wrong), out, workers=1, overwrite=overwrite)
    assert (content(out) if out.exists() else {}) == before
    kept = write_jsonl(tmp_path / "data" / "raw" / "x.jsonl", some_texts(30, 1))
    build(replace(recipe, corpora=(str(kept),), replay=()), tmp_path / "data/shards", workers=1)
    if inside == "folder":
        build(replace(recipe, corpora=(folder,)), corpus / ".made", workers=1)


def test_a_wrong_tokenizer_is_said_before_a_long_corpus_is_hashed(tmp_path: Path) -> None:
    corpus = tmp_path / "long.jsonl"
    with open(corpus, "wb") as stream:
        stream.truncate(2**42)  # hours
    for workers in ("1", "2"):
        options = ("--target-len", "1k", "--workers", workers)
        arguments = build_runs.command([corpus], tmp_path / "out", tmp_path / "nope", *options)
        done = build_runs.run(arguments)
        (line,) = build_runs.error_lines(done.stderr)
        assert (done.returncode, "nope" in line) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"seed": 2**63}, {"seed": 0.5}, {"licences": {"x" * 4097: "mit"}}),
        *({"weights": {"a": float("nan")}}, {"weights": {"a": True}}, {"replay_ratio": math.inf}),
    ],
)
def test_what_no_manifest_holds_is_no_recipe(wrong: dict[str, Any], recipe: BuildRecipe) -> None:
    with pytest.raises(LongRecipeError):
        replace(recipe, **wrong)


def test_what_many_small_sources_lose_is_said(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A pattern that the shell expands makes a source of each file."""
    corpus = tmp_path / "corpus"
    files = [write_jsonl(corpus / f"{n}.jsonl", some_texts(8, n)) for n in range(4)]

    def said(*corpora: Path) -> str:
        out = tmp_path / f"out-{len(corpora)}"
        words = ["build", *corpora, "--out", out, "--target-len", "4k", "--workers", "1"]
        done = CliRunner().invoke(main, [*map(str, words), "--tokenizer", str(tiny_tokenizer)])
        assert done.exit_code == 0, done.output
        return done.output

    line = "of the tokens fill no window (tail): each of 4 sources has windows of its own"
    assert line in said(*files)
    assert line not in said(corpus)
