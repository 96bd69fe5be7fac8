"""A model whose logits are not finite is refused, by all that reads logits: it has no figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import main
from lrtrain.evaluation import SUITES, evaluate
from lrtrain.evaluation.finished import CELLS_NAME
from lrtrain.model import copy_tokenizer
from tests.conftest import generated_text
from tests.lrtrain.scoring import TEXTS, lsd, refused, save_model, write_corpus
from tests.lrtrain.test_longppl import window_of, write_scores

SCALED = ("embed_tokens", "o_proj", "down_proj")
"""All that writes to the residual stream, which is normalised wherever it is read."""


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders plain; huge, which is the same function and too large for float16; and broken."""
    root = tmp_path_factory.mktemp("models")
    save_model(tiny_tokenizer, root / "plain", 0)
    for name in ("huge", "broken"):
        model = AutoModelForCausalLM.from_pretrained(root / "plain", dtype=torch.float32)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name == "huge" and any(part in key for part in SCALED):
                    parameter *= 2e5
            if name == "broken":
                model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
        model.save_pretrained(root / name)
        copy_tokenizer(str(tiny_tokenizer), root / name, None)
    return root


@pytest.fixture(scope="module")
def asked(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The least of every suite."""
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    ids = tokenizer.encode(["".join(generated_text(10, seed=5))])[0][:100]
    keys = tmp_path_factory.mktemp("scores") / "keys"
    write_scores(keys, tokenizer, [window_of(ids, [40, 80])])
    return {
        "lengths": [640],
        "depths": [0.5],
        "samples": 1,
        "windows": 2,
        "tasks": ["niah_single_1"],
        "short_tokens": 64,
        "keys": keys,
        "device": "cpu",
        "plots": False,
    }


def of_suite(asked: dict[str, Any], suite: str) -> dict[str, Any]:
    return {**asked, "suites": [suite], "keys": asked["keys"] if suite == "longppl" else None}


def test_what_overflows_is_a_model_like_any_other_in_float32(
    models: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    plain, huge = (
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32)
        for name in ("plain", "huge")
    )
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(plain(ids).logits, huge(ids).logits, rtol=1e-3, atol=1e-2)
    report = evaluate(
        [str(models / "huge")], dtype="float32", out=tmp_path, **{**asked, "suites": SUITES}
    )
    assert len(report.cells) == len(SUITES)


@pytest.mark.parametrize(("name", "dtype"), [("huge", "float16"), ("broken", "float32")])
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_refuses_logits_that_are_no_numbers(
    models: Path, asked: dict[str, Any], tmp_path: Path, suite: str, name: str, dtype: str
) -> None:
    with pytest.raises(LongRecipeError, match=f"not finite in {dtype}: .* --dtype") as problem:
        evaluate([f"mine={models / name}"], dtype=dtype, out=tmp_path, **of_suite(asked, suite))
    assert str(problem.value).startswith("mine: ")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / CELLS_NAME).read_text(encoding="utf-8")
    assert not (tmp_path / "eval.json").exists()


def test_the_command_says_it_in_one_line(models: Path, tmp_path: Path) -> None:
    words = ["--suite", "ppl", "--lengths", "64", "--device", "cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, ["eval", str(models / "broken"), *words])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("error: broken: its logits are not finite")


def test_scores_of_such_a_model_are_refused(models: Path, tmp_path: Path) -> None:
    """They would be null in all of its columns: measured nowhere."""
    corpus = write_corpus(tmp_path / "books", TEXTS)
    recipe = lsd(corpus, models, model=str(models / "broken"))
    message = refused(recipe, tmp_path / "scores")
    assert f"{models / 'broken'}: its logits are not finite in float32" in message
    assert not list(tmp_path.rglob("scores.parquet"))
    assert not list(tmp_path.rglob("*.npy"))


def test_cells_of_an_earlier_version_that_are_no_numbers_are_not_taken(
    models: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    only = of_suite(asked, "ppl")
    evaluate([str(models / "plain")], out=tmp_path, **only)
    lines = (tmp_path / CELLS_NAME).read_text(encoding="utf-8").splitlines()
    cell = json.loads(lines[-1])
    cell["cell"]["nats"][0] = float("nan")
    (tmp_path / CELLS_NAME).write_text("\n".join([*lines[:-1], json.dumps(cell), ""]))
    with pytest.raises(LongRecipeError, match=r"is damaged \(it holds NaN\).*--overwrite"):
        evaluate([str(models / "plain")], out=tmp_path, **only)
