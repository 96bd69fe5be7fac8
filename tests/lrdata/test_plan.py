"""What `lrdata plan` expects is what `lrdata build` makes."""

import gzip
import io
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from lrdata import plan as plan_module
from lrdata.building import build
from lrdata.cli import main
from lrdata.corpus import Unit
from lrdata.manifest import read_manifest
from lrdata.plan import Plan, make_plan, plan_table
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from tests.corpora import some_texts, write_jsonl


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> BuildRecipe:
    folder = tmp_path_factory.mktemp("corpus") / "books"
    for number in range(4):
        path = write_jsonl(folder / f"{number}.jsonl", some_texts(60, 70 * number))
        with open(path, "a", encoding="utf-8") as stream:
            stream.write('{"text": 5}\n')
    return BuildRecipe(
        corpora=(str(folder),),
        tokenizer=str(tiny_tokenizer),
        target_len=1024,
        unit_bytes=400_000,
        holdout=0.2,
    )


def test_a_sample_of_everything_tells_everything(recipe: BuildRecipe, tmp_path: Path) -> None:
    plan = make_plan(recipe, workers=2)
    ledger = build(recipe, tmp_path / "out", workers=1).ledger
    assert 1 < len(plan.units) <= plan_module._SAMPLES
    assert plan.sample.ledger == ledger
    assert plan.tokens == pytest.approx(ledger.encoded, rel=0.02)
    assert plan.total_rows == pytest.approx(ledger.rows, rel=0.1)


def test_a_sample_of_some_units_tells_about_all(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_SAMPLES", 2)
    monkeypatch.setattr(plan_module, "_SAMPLE_BYTES", 40_000)
    monkeypatch.setattr("lrdata.reader.BATCH_BYTES", 10_000)
    plan = make_plan(recipe, workers=2)
    ledger = build(recipe, tmp_path / "out", workers=1).ledger
    assert plan.sample.ledger.encoded < ledger.encoded
    assert plan.tokens == pytest.approx(ledger.encoded, rel=0.2)
    assert plan.total_rows == pytest.approx(ledger.rows, rel=0.3)


def test_holdout_rows_are_those_of_the_build(recipe: BuildRecipe, tmp_path: Path) -> None:
    plan = make_plan(recipe)
    rows = build(recipe, tmp_path / "out", workers=1).ledger.holdout_rows
    assert plan.total_holdout_rows == pytest.approx(rows, rel=0.3)
    assert plan.as_json()["holdout_rows"] == plan.total_holdout_rows
    assert f"holdout rows  about {plan.total_holdout_rows} of 1,024" in table(plan)
    assert "holdout rows" not in table(make_plan(replace(recipe, holdout=0.0)))


def test_a_share_that_fills_no_window_is_said(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Before the build, and at its end."""
    corpus = write_jsonl(tmp_path / "short.jsonl", some_texts(400, 3, longest=2))
    words = [str(corpus), "--tokenizer", str(tiny_tokenizer), "--target-len", "1k"]
    for share, fills in (("0.5%", False), ("30%", True)):
        more, out = [*words, "--holdout", share], tmp_path / share
        planned = CliRunner().invoke(main, ["plan", *more])
        built = CliRunner().invoke(main, ["build", *more, "--out", str(out), "--workers", "1"])
        assert (planned.exit_code, built.exit_code) == (0, 0)
        assert (read_manifest(out).ledger.holdout_rows > 0) == fills
        assert ("0: documents are joined within a unit, and 0.5% of" in planned.stdout) != fills
        warning = "warning: no holdout rows: documents are joined within a unit, and those that"
        assert built.stderr.splitlines()[-1].startswith(f"{warning} --holdout 0.5%") != fills


def test_weights_count(recipe: BuildRecipe, tmp_path: Path) -> None:
    twice = replace(recipe, weights={"books": 2.0}, holdout=0.0)
    rows = build(twice, tmp_path / "out", workers=1).ledger.rows
    assert make_plan(twice).total_rows == pytest.approx(rows, rel=0.1)


def test_a_begun_build_is_counted(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lrdata.staging.Staging.publish", stops)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, tmp_path / "out", workers=1)
    plan = make_plan(recipe, out=tmp_path / "out")
    assert plan.finished == len(plan.units)
    assert make_plan(recipe, out=tmp_path / "other").finished == 0


def test_the_table_says_it_all(recipe: BuildRecipe) -> None:
    plan = make_plan(recipe, workers=2)
    text = table(plan)
    for part in (f"{plan.tokens:,}", f"{plan.total_rows:,} of 304", "4 of", "with 2 workers"):
        assert part in text
    assert all(f"books/{number}.jsonl" in text for number in range(4))


def table(plan: Plan) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    return console.export_text()


@pytest.mark.parametrize("command", [["plan"], ["build", "--dry-run"]])
def test_both_commands_plan_and_write_nothing(
    command: list[str], recipe: BuildRecipe, tmp_path: Path
) -> None:
    options = ["--tokenizer", recipe.tokenizer, "--target-len", "1k", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(main, [*command, *recipe.corpora, *options])
    assert result.exit_code == 0, result.output
    assert "tokens" in result.stdout
    assert not (tmp_path / "o").exists()


def test_errors_are_those_of_a_build(tmp_path: Path, tiny_tokenizer: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"body": "text"}) + "\n")
    for corpus, line in ((str(path), "has no field 'text'"), ("nowhere", "does not exist")):
        options = [corpus, "--tokenizer", str(tiny_tokenizer), "--target-len", "1k"]
        result = CliRunner().invoke(main, ["plan", *options])
        assert result.exit_code == 1
        assert line in result.stderr


def test_no_more_workers_than_cpus_that_the_process_may_use(recipe: BuildRecipe) -> None:
    """A scheduler gives a job some of a machine's CPUs, by its affinity."""
    code = (
        "import os, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from lrdata.cli import main\n"
        "main(sys.argv[1:])"
    )
    words = ["plan", *recipe.corpora, "--tokenizer", recipe.tokenizer, "--target-len", "1k"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["workers"] == 1


def test_time_is_of_what_is_built(recipe: BuildRecipe) -> None:
    """With --max-rows of the units that give so many rows; without, of all of them."""
    plan = replace(make_plan(recipe, workers=1), workers=1, start_seconds=3.0)
    half = replace(plan, recipe=replace(recipe, max_rows=plan.total_rows // 2))
    assert half.needed == math.ceil(len(plan.units) / 2)
    work = (plan.seconds - 3) * half.needed / len(plan.units)
    assert half.seconds == pytest.approx(3 + work)
    assert replace(half, finished=half.needed).seconds == 3.0
    assert replace(plan, finished=len(plan.units)).seconds == 3.0
    more = replace(plan, recipe=replace(recipe, max_rows=10 * plan.total_rows))
    assert more.seconds == plan.seconds


@pytest.mark.parametrize("packed", [False, True])
def test_what_replay_reads_is_said_beside_the_time(
    packed: bool, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of twenty clusters, each of which gives a twentieth: packed files of any size, to their
    end, or parts of two thousand bytes of one file."""
    monkeypatch.setattr("lrdata.replay_sample._POINTS", 20)
    monkeypatch.setattr("lrdata.replay_sample._UNIT_BYTES", 2000)
    texts = [text for number in range(60) for text in some_texts(4, 100 * number, longest=8)]
    plain = write_jsonl(tmp_path / "chat.jsonl", texts)
    if packed:
        lines = plain.read_bytes().splitlines(True)
        plain.unlink()
        for number in range(30):
            part = b"".join(lines[8 * number : 8 * number + 8])
            (tmp_path / f"chat{number:02}.jsonl.gz").write_bytes(gzip.compress(part, mtime=0))
    read: list[int] = []

    def reading(unit: Unit, *arguments: object) -> object:
        read.append(sum(piece.text_bytes for piece in unit.pieces))
        return read_unit(unit, *arguments)

    monkeypatch.setattr("lrdata.replay.read_unit", reading)
    replay = replace(recipe, replay=(str(tmp_path / "chat*"),), replay_ratio=1.0, max_rows=90)
    plan = make_plan(replay, workers=1)
    build(replay, tmp_path / "out", workers=1)
    assert sum(read) < 2.1 * plan.replay_bytes
    assert sum(read) > (1.9 if packed else 1.2) * plan.replay_bytes
    assert plan.as_json()["replay_bytes"] == plan.replay_bytes > 0
    assert "replay        not in that time: about" in table(plan)
    assert "not in that time" not in table(make_plan(recipe, workers=1))


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_build_begins_when_all_is_hashed(
    workers: int, recipe: BuildRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a second a thousand bytes, each file by one worker."""
    monkeypatch.setattr(plan_module, "_HASHED_BYTES", 1000)
    clock = itertools.count()
    monkeypatch.setattr(plan_module.time, "monotonic", lambda: float(next(clock)))
    sizes = [path.stat().st_size for path in Path(recipe.corpora[0]).iterdir()]
    monkeypatch.setattr("lrdata.plan._sample", lambda *_: None)
    seconds = make_plan(recipe, workers=workers).start_seconds
    assert seconds == pytest.approx(max(max(sizes), sum(sizes) / min(workers, 4)) / 1000)
