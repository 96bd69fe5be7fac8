"""A command line that is printed for what comes next is one that the command takes."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import LlamaConfig

from lrtrain.cli import main
from lrtrain.cli_next import eval_command, run_command
from lrtrain.model_spec import parse_models
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import parse_rope, set_rope


def parsed(command: str, name: str) -> dict[str, Any]:
    program, called, *words = shlex.split(command)
    assert (program, called) == ("lrtrain", name)
    return main.commands[name].make_context(name, words).params


@pytest.mark.parametrize(
    ("window", "target", "lengths"),
    [
        (8192, 131072, [8192, 32768, 131072]),
        (256, 2048, [256, 1024, 2048]),
        (4096, 100_000, [4096, 16384, 65536, 100_000]),
        (2048, 4096, [2048, 4096]),
        (4096, 4096, [4096]),
        (8192, 4096, [4096]),
    ],
)
def test_a_model_is_measured_up_to_its_window(
    window: int, target: int, lengths: list[int], tmp_path: Path
) -> None:
    base, made = tmp_path / "a base", tmp_path / "merged"
    for folder, length in ((base, window), (made, target)):
        LlamaConfig(max_position_embeddings=length).save_pretrained(folder)
    asked = parsed(eval_command(str(base), made), "eval")
    assert asked["lengths"] == lengths
    specs = parse_models(list(asked["models"]))
    assert (specs[0].name, specs[0].path) == ("base", str(base))
    assert specs[-1].path == str(made)
    untrained = [(spec.path, spec.target_len) for spec in specs[1:-1]]
    assert untrained == ([(str(base), target)] if window < target else [])


@pytest.mark.parametrize("rope", ["auto", "yarn", "theta=8e6", "none"])
def test_the_untrained_model_has_the_rope_that_training_began_with(
    rope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the configs of the two tell, of a merge too."""
    config = LlamaConfig(max_position_embeddings=256)
    config.save_pretrained(tmp_path / "base")
    set_rope(config, parse_rope(rope), 2048)
    config.save_pretrained(tmp_path / "made")
    monkeypatch.setattr("lrtrain.cli_next.find_spec", lambda name: None)
    command = eval_command(str(tmp_path / "base"), tmp_path / "made", "<end of text>")
    asked = parsed(command, "eval")
    untrained = parse_models(list(asked["models"]))[1]
    assert untrained.rope is not None
    assert parse_rope(untrained.rope) == parse_rope(rope)
    assert untrained.target_len == 2048
    assert (asked["eot"], asked["no_plots"]) == ("<end of text>", True)


def test_a_run_is_done_where_its_shards_answer_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are asked for their end of text after it."""
    for name, length in (("base", 256), ("made", 2048)):
        LlamaConfig(max_position_embeddings=length).save_pretrained(tmp_path / name)
    monkeypatch.setattr("lrtrain.stages.run", lambda *_: [tmp_path / "made"])
    words = ["run", tmp_path / "gone", "--model", tmp_path / "base", "--out", tmp_path / "run"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert eval_command(str(tmp_path / "base"), tmp_path / "made") in done.output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpointing": True, "moments": "8bit", "offload": ("optimizer", "activations")},
        {"dtype": "fp32", "device": "cpu", "mlp_tokens": 4096, "rope": "theta=8e6", "lr": 1e-4},
        {"steps": 3, "attention_scale": "auto", "stages": ("extend",), "checkpoint_every": 0},
    ],
)
def test_a_run_has_the_options_of_the_recipe(options: dict[str, Any]) -> None:
    recipe = TrainRecipe(**options)
    asked = parsed(run_command(Path("my shards"), "model", recipe), "run")
    assert asked.pop("shards") == Path("my shards")
    assert (asked.pop("model"), asked.pop("out")) == ("model", Path("RUN"))
    stages = tuple(asked.pop("stages").split(","))
    assert TrainRecipe(stages=stages, **asked) == recipe
