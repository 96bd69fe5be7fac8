"""An evaluation that was stopped goes on, and nothing that was measured is measured again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lrdata.progress
from lrdata.building import build
from lrdata.errors import LongRecipeError
from lrdata.progress import Task
from lrdata.recipe import BuildRecipe
from lrtrain.evaluation import evaluate
from lrtrain.evaluation.finished import CELLS_NAME
from lrtrain.evaluation.models import OpenModel, open_model
from lrtrain.evaluation.needle import NeedleSuite
from lrtrain.evaluation.perplexity import PerplexitySuite
from lrtrain.model_spec import ModelSpec
from tests.lrtrain.tiny_runs import build_shards, save_tiny_model

ROOT = Path(__file__).parents[2]
ASKED: dict[str, Any] = {
    "suites": ["needle", "ruler", "ppl", "short"],
    "lengths": [512, 640],
    "depths": [0.0, 1.0],
    "tasks": ["niah_single_1"],
    "samples": 2,
    "windows": 3,
    "short_tokens": 64,
    "device": "cpu",
    "plots": False,
}
CELLS = 4 + 2 + 2 + 1  # of a model

DEATH = """
import json, os, signal, sys
from lrtrain.evaluation import evaluate, finished
die_after, models, out, asked = json.loads(sys.argv[1])
add, added = finished.Finished.add, 0
def dying(*arguments):
    global added
    add(*arguments)
    added += 1
    if added == die_after:
        os.kill(os.getpid(), signal.SIGKILL)
finished.Finished.add = dying
evaluate(models, out=out, **asked)
"""
"""An evaluation that kills itself after so many cells."""


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    one, two = (save_tiny_model(tiny_tokenizer, folder / name, 1024) for name in ("one", "two"))
    other = AutoModelForCausalLM.from_pretrained(two)
    with torch.no_grad():
        other.lm_head.weight *= 0.5
    other.save_pretrained(two)
    return [str(one), str(two)]


@pytest.fixture(scope="module")
def whole(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is written of both models at once."""
    out = tmp_path_factory.mktemp("whole")
    evaluate(models, out=out, **ASKED)
    return found_in(out)


def found_in(out: Path) -> dict[str, Any]:
    """eval.json, but for how long it took."""
    found: dict[str, Any] = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    del found["seconds"]
    for model in found["models"]:
        del model["seconds"]
    return found


def lines_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / CELLS_NAME).read_bytes().split(b"\n")[:-1]]


class Loads:
    """Whose weights are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names, load = list[str](), OpenModel.load

        def listed(opened: OpenModel) -> Any:
            self.names.append(opened.name)
            return load(opened)

        monkeypatch.setattr(OpenModel, "load", listed)


@pytest.mark.parametrize("die_after", [1, 5, CELLS, 2 * CELLS - 1])
def test_a_killed_evaluation_goes_on(
    models: list[str], whole: dict[str, Any], tmp_path: Path, die_after: int
) -> None:
    given = json.dumps([die_after, models, str(tmp_path), ASKED])
    done = subprocess.run([sys.executable, "-c", DEATH, given], cwd=ROOT, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    before = lines_in(tmp_path)
    assert sum("cell" in line for line in before) == die_after
    with open(tmp_path / CELLS_NAME, "ab") as stream:
        stream.write('{"key": "cut by a power failure: ü'.encode()[:-1])
    evaluate(models, out=tmp_path, **ASKED)
    assert found_in(tmp_path) == whole
    after = lines_in(tmp_path)
    assert after[: len(before)] == before
    measured = [(line["key"], line["suite"], line["index"]) for line in after if "cell" in line]
    twice = {cell[1] for cell in measured if measured.count(cell) > 1}
    # The base is read once more for those that are compared with it.
    assert twice == ({"short"} if die_after >= CELLS else set())


def test_what_is_there_is_not_measured_again(
    models: list[str], whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)
    asked = {**ASKED, "suites": ["needle", "ppl"]}
    evaluate(models[:1], out=tmp_path, **asked)
    evaluate(models, out=tmp_path, **asked)
    assert loads.names == ["one", "two"]
    evaluate(models, out=tmp_path, **asked)
    assert loads.names == ["one", "two"]
    for suite in ("needle", "perplexity"):
        assert found_in(tmp_path)[suite] == whole[suite]
    evaluate([f"base={models[1]}", models[0]], out=tmp_path, **asked)
    assert loads.names == ["one", "two"]
    assert [model["name"] for model in found_in(tmp_path)["models"]] == ["base", "one"]
    evaluate(models, out=tmp_path, overwrite=True, **asked)
    assert loads.names == ["one", "two"] * 2


def test_how_long_it_takes_is_told_by_the_work_that_is_left(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt takes more work than a short one, and what is foreseen is what is done."""
    tasks = list[Task]()

    class Kept(lrdata.progress._Lines):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            tasks.append(self)

    monkeypatch.setattr(lrdata.progress, "_Lines", Kept)
    evaluate(models[:1], out=tmp_path, **ASKED)
    cut = [line for line in lines_in(tmp_path) if line.get("index", 0) == 0]  # the first of each
    whole, tasks[:] = [task.worked for task in tasks], []
    (tmp_path / CELLS_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in cut))
    evaluate(models[:1], out=tmp_path, **ASKED)
    assert [task.what for task in tasks] == ["one: needle", "one: ruler", "one: perplexity"]
    for task, all_of_it in zip(tasks, whole[:3], strict=True):
        assert task.done == task.total
        assert task.worked == pytest.approx(task.due)
        half = task.what != "one: needle"  # of two cells, the one of 640 tokens, not 512
        assert 0.55 < task.worked / all_of_it < 0.65 if half else task.worked < all_of_it


def test_a_model_that_was_trained_on_is_another_one(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for those that are compared with it."""
    one, two = AutoModelForCausalLM.from_pretrained(models[0]), tmp_path / "run"
    for file in Path(models[0]).glob("*token*"):
        two.mkdir(exist_ok=True)
        (two / file.name).write_bytes(file.read_bytes())
    one.save_pretrained(two)
    asked = {**ASKED, "suites": ["short"]}
    names = [f"base={two}", f"tuned={models[1]}"]
    evaluate(names, out=tmp_path / "eval", **asked)
    first = found_in(tmp_path / "eval")["short"]["cells"]
    with torch.no_grad():
        one.model.norm.weight *= 0.5
    one.save_pretrained(two)
    loads = Loads(monkeypatch)
    evaluate(names, out=tmp_path / "eval", **asked)
    assert loads.names == ["base", "tuned"]
    again = found_in(tmp_path / "eval")["short"]["cells"]
    assert again[0]["nats_per_byte"] != first[0]["nats_per_byte"]
    assert again[1]["kl"] != first[1]["kl"]
    assert again[1]["nats_per_byte"] == first[1]["nats_per_byte"]


def test_another_evaluation_in_the_folder_stays(models: list[str], tmp_path: Path) -> None:
    asked = {**ASKED, "suites": ["needle"]}
    evaluate(models[:1], out=tmp_path, **asked)
    kept = (tmp_path / "eval.json").read_bytes()
    with pytest.raises(LongRecipeError, match=r"another evaluation \(samples: 2, not 3\)"):
        evaluate(models[:1], out=tmp_path, **{**asked, "samples": 3})
    (tmp_path / CELLS_NAME).unlink()
    with pytest.raises(LongRecipeError, match=r"cells are not in cells\.jsonl"):
        evaluate(models[:1], out=tmp_path, **asked)
    assert (tmp_path / "eval.json").read_bytes() == kept
    evaluate(models[:1], out=tmp_path, overwrite=True, **asked)
    assert json.loads((tmp_path / "eval.json").read_text())["needle"] == json.loads(kept)["needle"]


def test_an_evaluation_that_had_no_room_goes_on_as_it_says(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the numbers that it has, called by another name; other numbers are measured anew."""

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    asked = {**ASKED, "suites": ["needle", "ppl"], "out": tmp_path}
    line = "one ran out of device memory; the same command goes on .* or with --dtype bfloat16;"
    with monkeypatch.context() as patched:
        patched.setattr(PerplexitySuite, "cells", full)
        with pytest.raises(LongRecipeError, match=line):
            evaluate(models[:1], **asked)
    needles = lines_in(tmp_path)
    assert sum("cell" in entry for entry in needles) == 4
    first = json.loads((tmp_path / CELLS_NAME).read_text().split("\n")[0])["asked"]
    assert not {"dtype", "device", "base"} & first.keys()
    report = evaluate(models[:1], **{**asked, "device": "auto", "dtype": "float32"})
    assert lines_in(tmp_path)[: len(needles)] == needles
    assert sum("cell" in entry for entry in lines_in(tmp_path)) == 6
    assert {model.dtype for model in report.models} == {"float32"}
    report = evaluate(models[:1], **{**asked, "dtype": "bfloat16"})
    assert {model.dtype for model in report.models} == {"bfloat16"}
    assert sum("cell" in entry for entry in lines_in(tmp_path)) == 2 * 6


def test_what_is_to_be_overwritten_stays_until_there_is_something_new(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**ASKED, "suites": ["needle"], "out": tmp_path}
    evaluate(models[:1], **asked)
    kept = (tmp_path / CELLS_NAME).read_bytes()

    def fail(opened: OpenModel) -> None:
        raise LongRecipeError(f"{opened.name} cannot be loaded")

    def stop(*_: Any) -> Any:
        raise LongRecipeError("its first cell cannot be measured")

    for of, name, failing in ((OpenModel, "load", fail), (NeedleSuite, "cells", stop)):
        with monkeypatch.context() as patched:
            patched.setattr(of, name, failing)
            with pytest.raises(LongRecipeError, match="cannot be"):
                evaluate(models[:1], overwrite=True, **asked)
        assert (tmp_path / CELLS_NAME).read_bytes() == kept
    loads = Loads(monkeypatch)
    evaluate(models[:1], **asked)
    assert not loads.names


def test_a_damaged_line_is_said_and_nothing_is_dropped(models: list[str], tmp_path: Path) -> None:
    asked = {**ASKED, "suites": ["needle"], "out": tmp_path}
    evaluate(models[:1], **asked)
    first, *others = (tmp_path / CELLS_NAME).read_bytes().split(b"\n")
    damaged = b"\n".join([first, others[0][:-5], *others[1:]])
    (tmp_path / CELLS_NAME).write_bytes(damaged)
    with pytest.raises(LongRecipeError, match="is damaged"):
        evaluate(models[:1], **asked)
    assert (tmp_path / CELLS_NAME).read_bytes() == damaged


def test_other_holdout_rows_are_another_evaluation(
    tiny_tokenizer: Path, models: list[str], tmp_path: Path
) -> None:
    shards = build_shards(tiny_tokenizer, tmp_path / "shards")
    asked = {**ASKED, "suites": ["short"], "shards": shards, "out": tmp_path / "eval"}
    evaluate(models[:1], **asked)
    shutil.rmtree(shards)
    other = BuildRecipe(
        corpora=(str(tmp_path / "shards-corpus" / "long.jsonl"),),
        tokenizer=str(tiny_tokenizer),
        target_len=512,
        holdout=0.3,
        seed=7,
    )
    build(other, shards, workers=1)
    with pytest.raises(LongRecipeError, match="another evaluation \\(holdout: "):
        evaluate(models, **asked)


@pytest.mark.parametrize("changed", ["generation_config.json", "tokenizer_config.json"])
def test_what_answers_depend_on_is_part_of_a_model(
    models: list[str], tmp_path: Path, changed: str
) -> None:
    keys = []
    folder = tmp_path / "model"
    shutil.copytree(models[0], folder)
    for end in ("<|endoftext|>", "<|im_start|>"):
        values = json.loads((folder / changed).read_text())
        values |= {"eos_token_id": len(end), "bos_token": end}
        (folder / changed).write_text(json.dumps(values))
        spec = ModelSpec("model", str(folder))
        keys.append(open_model(spec, dtype="auto", device="cpu").key)
    assert keys[0] != keys[1]


def test_weights_that_are_written_meanwhile_are_not_measured(
    models: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models[0], folder)
    opened = open_model(ModelSpec("model", str(folder)), dtype="auto", device="cpu")
    os.utime(folder / "model.safetensors")
    with pytest.raises(LongRecipeError, match="was written anew"):
        opened.load()


def test_what_cannot_be_measured_is_said_before_anything_is(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every suite and of every model."""
    loads = Loads(monkeypatch)
    (tmp_path / "text.txt").write_text("Not very much text. " * 200)
    (tmp_path / "file").touch()
    for changed, message in (
        ({"text": tmp_path / "text.txt", "lengths": [512, 8192]}, "longest context; name a longer"),
        ({"shards": tmp_path / "typo"}, "typo"),
        ({"tasks": ["cwe"]}, "has no room for cwe"),
        ({"models": [models[0], str(tmp_path / "nowhere")]}, "nowhere"),
        ({"out": tmp_path / "file"}, "file"),
    ):
        given = {"models": models, "out": tmp_path / "out", **ASKED, **changed}
        with pytest.raises((LongRecipeError, OSError), match=message):
            evaluate(given.pop("models"), **given)
    assert not loads.names
