"""Models, texts and recipes for the tests of `lrtrain score`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from lrdata.errors import LongRecipeError
from lrdata.manifest import MANIFEST
from lrdata.scores import SCORES, VOCABULARY, Scores
from lrtrain.scoring import ScoreRecipe, score
from tests.conftest import generated_text
from tests.lrtrain.tiny_runs import save_tiny_model

FILES = {MANIFEST, SCORES, VOCABULARY}


def save_model(tokenizer: Path, folder: Path, seed: int) -> str:
    """The tiny model with weights so large that contexts and models differ by whole nats."""
    model = LlamaForCausalLM.from_pretrained(save_tiny_model(tokenizer, folder))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) / 4
        parameter.data = 1 + noise if "norm" in name else noise
    model.save_pretrained(folder)
    return str(folder)


def save_models(tokenizer: Path, root: Path) -> Path:
    """Folders `base` and `long` in a folder."""
    for seed, name in enumerate(("base", "long")):
        save_model(tokenizer, root / name, seed)
    return root


TEXTS = {f"doc {n}": "".join(generated_text(10, seed=n)) for n in range(4)} | {
    "short": "".join(generated_text(1, seed=99))
}


def write_corpus(folder: Path, texts: dict[str, str]) -> str:
    folder.mkdir(parents=True)
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()]
    (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder)


def lsd(corpus: str, models: Path, **options: Any) -> ScoreRecipe:
    values = {"id_field": "id", "tokens": 300, "device": "cpu", **options}
    return ScoreRecipe(corpora=(corpus,), **{"model": str(models / "long"), **values})


def contrast(corpus: str, models: Path, **options: Any) -> ScoreRecipe:
    both = {"model": str(models / "base"), "long_model": str(models / "long")}
    return lsd(corpus, models, **{**both, **options})


RECIPES = {"lsd": lsd, "contrast": contrast}


def quietly(recipe: ScoreRecipe, out: Path) -> Scores:
    return score(recipe, out, lambda line: None)


def refused(recipe: ScoreRecipe, out: Path) -> str:
    with pytest.raises(LongRecipeError) as caught:
        quietly(recipe, out)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Stopped(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, reads: int) -> list[str]:
    """Have the scoring stop before its reading number `reads`, counted from 0; what was read."""
    import lrtrain.scoring.plan as module

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
