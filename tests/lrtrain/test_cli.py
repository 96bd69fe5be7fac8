"""The lrtrain command: help that teaches, one line for what is wrong, exit codes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lrtrain import recipe
from lrtrain.cli import main
from lrtrain.cli_run import run
from tests.lrtrain.tiny_runs import TARGET, WINDOW, build_shards, save_tiny_model


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(code: int, *words: object) -> str:
    done = invoke(*words)
    assert done.exit_code == code, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.output
    return lines[0]


def parsed(command: str) -> dict[str, Any]:
    """What `lrtrain` makes of a command line that was printed."""
    program, name, *words = shlex.split(command)
    assert program == "lrtrain"
    return main.commands[name].make_context(name, words).params


def test_run_merge_eval_make_what_they_say(shards: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = invoke(
        *("run", shards, "--model", model, "--out", out, "--steps", 2, "--anneal-steps", 1),
        *("--rows-per-step", 2, "--dtype", "fp32", "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    assert str(out / "merged") in done.stdout
    asked = parsed(done.stdout.splitlines()[-1].partition("with: ")[2])
    assert asked["models"] == (f"base={model}", f"{model}@target=512", str(out / "merged"))
    assert asked["lengths"] == [WINDOW, TARGET]
    done = invoke("merge", model, out / "extend", "--out", tmp_path / "other", "--weight", 0.3)
    assert done.exit_code == 0, done.output
    asked = parsed(done.stdout.splitlines()[-1].partition("with: ")[2])
    assert asked["models"][2:] == (str(tmp_path / "other"),)
    assert max(asked["lengths"]) == TARGET
    assert (tmp_path / "other" / "model.safetensors").exists()
    done = invoke(
        *("eval", f"base={model}", out / "merged", "--lengths", "128,256", "--samples", 1),
        *("--depths", "0,1", "--windows", 2, "--shards", shards, "--out", tmp_path / "eval"),
        *("--needle", "The word is {value}.", "--question", "The word is", "--values", "cat,dog"),
        *("--value-length", 1, "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert [entry["name"] for entry in found["models"]] == ["base", "merged"]
    assert found["settings"]["template"]["value_alphabet"] == ["cat", "dog"]
    assert (tmp_path / "eval" / "needle.png").exists()
    assert (tmp_path / "eval" / "perplexity.png").exists()


def test_what_is_wrong_is_one_line(shards: Path, model: Path, tmp_path: Path) -> None:
    run = ("run", shards, "--out", tmp_path / "run", "--device", "cpu", "--model")
    assert "unknown" in refused(1, *run, model, "--stages", "extend,extent")
    assert "this order" in refused(1, *run, model, "--stages", "merge,extend")
    assert "no model at" in refused(1, *run, tmp_path / "nowhere")
    assert "--rope ntk is unknown" in refused(1, *run, model, "--rope", "ntk")
    assert "--lr 0.0 must be above 0" in refused(1, *run, model, "--lr", 0)
    assert "Missing option '--model'" in refused(2, "run", shards, "--out", tmp_path / "run")
    assert "manifest.json" in refused(1, "run", tmp_path, "--model", model, "--out", tmp_path / "x")
    assert "--depths" in refused(2, "eval", model, "--depths", "deep")
    for option, value in (("--value-length", 0), ("--values", "77"), ("--values", "red,blue,")):
        said = refused(1, "eval", model, option, value)
        assert "an alphabet of 2 different ones" in said
    assert "has no {value}" in refused(1, "eval", model, "--needle", "")
    assert "short windows of 0" in refused(1, "eval", model, "--short-tokens", 0)
    assert "unknown suite" in refused(1, "eval", model, "--suite", "rulers")
    assert "between 0" in refused(1, "merge", model, model, "--out", tmp_path / "m", "--weight", 2)
    assert not (tmp_path / "run").exists()


def test_of_the_ranks_of_a_host_the_first_says_what_is_wrong_with_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where torchrun ends the others then, they are quiet too."""

    def ended(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", ended)
    run = ("run", "shards", "--out", "run")
    for code, words in ((2, ("--steps", "many")), (2, ()), (1, ("--model", "m", "--lr", 0))):
        monkeypatch.setenv("RANK", "8")  # another host may have another file, or none
        monkeypatch.setenv("LOCAL_RANK", "0")
        refused(code, *run, *words)
        monkeypatch.setenv("LOCAL_RANK", "1")
        done = invoke(*run, *words)
        assert (done.exit_code, done.output) == (1, "")


@pytest.mark.parametrize("command", [[], ["run"], ["merge"], ["eval"]])
def test_help_teaches_without_loading_torch(command: list[str]) -> None:
    script = (
        "import sys; from lrtrain.cli import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "finally: assert not {'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, check=True
    )
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("command", ["score", "eval"])
def test_help_says_of_which_text_keys_must_be(command: str) -> None:
    said = " ".join(invoke(command, "--help").stdout.split())
    assert "none of them was trained on" in said


def test_an_unexpected_error_names_debug(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("not json")
    message = refused(1, "merge", tmp_path, model, "--out", tmp_path / "out")
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("schedule", recipe.SCHEDULES),
        ("dtype", recipe.DTYPES),
        ("masters", recipe.MASTERS),
        ("gradients", recipe.GRADIENTS),
        ("moments", recipe.MOMENTS),
        ("token_weights", tuple(recipe.WEIGHTS)),
    ],
)
def test_choices_of_run_are_those_of_the_recipe(option: str, known: tuple[str, ...]) -> None:
    """They are written twice, so that --help imports no torch."""
    (found,) = (one for one in run.params if one.name == option)
    assert isinstance(found.type, click.Choice)
    assert tuple(found.type.choices) == known
    assert found.default == getattr(recipe.TrainRecipe(), option)


@pytest.mark.parametrize(
    "own", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}, {"PYTORCH_ALLOC_CONF": "b:1"}]
)
def test_segments_of_device_memory_grow_unless_somebody_has_chosen(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        if name in own:
            monkeypatch.setenv(name, own[name])
    refused(2, "merge")
    found = {name: os.environ[name] for name in names if name in os.environ}
    assert found == (own or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
