"""The suite ruler: the same prompts for all models, answers written and scored, a report."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import lrtrain.evaluation.ruler.suite
from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.generate import generate
from lrtrain.evaluation.models import LoadedModel, open_model
from lrtrain.evaluation.prompts import WRAPPINGS
from lrtrain.evaluation.ruler import (
    TASKS,
    Prompt,
    PromptMaker,
    RulerCell,
    RulerSuite,
    Source,
    haystack_of,
    parse_tasks,
    score,
)
from lrtrain.evaluation.ruler.suite import stop_tokens
from lrtrain.evaluation.suite import seed_of_each
from lrtrain.evaluation.text import Text
from lrtrain.model_spec import parse_models
from tests.conftest import CHAT_TOKENS, generated_text
from tests.lrtrain.tiny_models import save_tiny

NAMES = ["niah_single_1", "niah_multiquery", "fwe"]
TEXT = Text(list(generated_text(200, seed=5)), "generated", "")


def suite_of(**changes: Any) -> RulerSuite:
    values: dict[str, Any] = {
        "haystack": TEXT,
        "lengths": [1400, 2000],
        "samples": 2,
        "tasks": parse_tasks(NAMES),
        "seeds": [0, 1],
    }
    return RulerSuite(**values | changes)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path) -> LoadedModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny("llama", folder, vocab_size=1000, max_position_embeddings=1024)
    for file in tiny_bos_tokenizer.iterdir():
        shutil.copy(file, folder)
    (spec,) = parse_models([str(folder)])
    return open_model(spec, dtype="float32", device="cpu").load()


def prompts_of(suite: RulerSuite, tokenizer: Tokenizer) -> dict[bytes, Prompt]:
    """All prompts of a suite by their ids."""
    source = Source(haystack_of(suite.haystack, tokenizer), tokenizer)
    maker = PromptMaker(source, WRAPPINGS[suite.prompt](tokenizer))
    prompts = (
        maker.make(task, seed, length, sample)
        for task in suite.tasks
        for length in suite.lengths
        for seed in suite.seeds
        for sample in range(suite.samples)
    )
    return {prompt.ids.astype(np.int64).tobytes(): prompt for prompt in prompts}


class Scripted:
    """A model that answers each prompt as it is told to, then with a token that ends it."""

    config = generation_config = LlamaConfig(num_hidden_layers=1, eos_token_id=None)

    def __init__(self, answers: dict[bytes, Sequence[int]], end: int) -> None:
        self.answers, self.end, self.batches = answers, end, list[tuple[int, int]]()
        self.left, self.length, self.reading = list[list[int]](), 0, False

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        reading, (count, length) = input_ids.shape[1] > 1, input_ids.shape
        if reading:
            before = self.left if self.reading else []
            read = [list(self.answers[row.tobytes()]) for row in input_ids.numpy()]
            self.left, self.length = before + read, length
        elif self.reading:
            self.batches.append((count, self.length))
        self.reading = reading
        logits = torch.zeros(count, 1, 1000)
        for row, left in enumerate(self.left[-count:]):
            logits[row, 0, left.pop(0) if left else self.end] = 1
        return SimpleNamespace(logits=logits)


def scripted(loaded: LoadedModel, suite: RulerSuite, right: Sequence[bool]) -> LoadedModel:
    """Answers with the references for which `right` says so, in turn; with others for the rest."""
    tokenizer, answers = loaded.tokenizer, dict[bytes, list[int]]()
    for key, prompt in prompts_of(suite, tokenizer).items():
        kept = [
            reference if good else "no"
            for reference, good in zip(prompt.references, right * 5, strict=False)
        ]
        answers[key] = tokenizer.encode([" They are: " + ", ".join(kept).lower()])[0].tolist()
    model = Scripted(answers, tokenizer.eot_id)
    return LoadedModel(**vars(loaded) | {"model": model})


def test_answers_are_scored(loaded: LoadedModel) -> None:
    suite = suite_of()
    for right, expected in (([True], 1.0), ([False], 0.0)):
        cells = list(suite.cells(scripted(loaded, suite, right)))
        assert [(cell.length, cell.task) for cell in cells] == [
            (length, name) for length in suite.lengths for name in NAMES
        ]
        for cell in cells:
            assert cell.score == (expected,) * 4
            assert cell.model == "tiny"
            assert cell.tokens_read == 4 * (cell.length - TASKS[cell.task].answer_tokens)
            assert cell.longest_read == cell.length
            assert seed_of_each(len(cell.score), cell.seeds) == [0, 0, 1, 1]
            assert all(answer.startswith(" They are: ") for answer in cell.answers)
    half = suite_of(tasks=parse_tasks(["niah_multiquery"]))
    for cell in half.cells(scripted(loaded, half, [True, False])):
        assert cell.score == (0.5,) * 4


def test_prompts_of_a_task_are_asked_together(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lrtrain.evaluation.ruler.suite, "_ANSWERED_TOKENS", 8192)
    suite = suite_of(samples=5)
    model = scripted(loaded, suite, [True])
    list(suite.cells(model))
    assert model.model.batches == [
        (batch, length - TASKS[name].answer_tokens)
        for length in suite.lengths
        for name in NAMES
        for batch in ([5, 5] if length == 1400 else [4, 4, 2])
    ]


def test_a_real_model_writes_what_it_generates_for_each_prompt(loaded: LoadedModel) -> None:
    suite = suite_of(lengths=[1400], samples=3, tasks=parse_tasks(["vt"]), seeds=[4])
    (cell,) = suite.cells(loaded)
    assert list(suite.cells(loaded)) == [cell]
    found = prompts_of(suite, loaded.tokenizer)
    for (key, prompt), answer, value in zip(found.items(), cell.answers, cell.score, strict=True):
        ids = torch.from_numpy(np.frombuffer(key, np.int64).copy())[None]
        alone = generate(loaded.model, ids, 30, {loaded.tokenizer.eot_id})[0]
        assert loaded.tokenizer.decode(alone) == answer
        assert score(answer, prompt.references) == value


def test_what_has_no_room_is_said_before_the_work(loaded: LoadedModel) -> None:
    suite = suite_of(lengths=[300, 1400])
    with pytest.raises(LongRecipeError, match="300 tokens has no room for"):
        next(suite.cells(scripted(loaded, suite_of(), [True])))


def test_an_answer_ends_where_the_model_or_the_template_ends_it(loaded: LoadedModel) -> None:
    tokenizer, model = loaded.tokenizer, Scripted({}, 0)
    end_of_turn = int(tokenizer.encode_with_specials(CHAT_TOKENS[1])[0])
    assert stop_tokens(model, tokenizer, chat=False) == {tokenizer.eot_id}
    assert stop_tokens(model, tokenizer, chat=True) == {tokenizer.eot_id, end_of_turn}
    model.config = SimpleNamespace(eos_token_id=7)
    model.generation_config = SimpleNamespace(eos_token_id=[8, 9])
    assert stop_tokens(model, tokenizer, chat=False) == {tokenizer.eot_id, 7, 8, 9}


def test_settings_are_enough_to_repeat_it(loaded: LoadedModel) -> None:
    suite = suite_of(lengths=[1400], samples=1, tasks=parse_tasks(["vt", "niah_single_2"]))
    said: Any = suite.settings()
    again = suite_of(
        lengths=[1400],
        samples=said["samples"],
        tasks=parse_tasks(said["tasks"]),
        seeds=said["seeds"],
        prompt=said["prompt"],
    )
    cells: list[RulerCell] = list(suite.cells(loaded))
    assert list(again.cells(loaded)) == cells
    chat = suite_of(lengths=[1400], samples=1, tasks=parse_tasks(["vt"]), prompt="chat")
    assert [cell.references for cell in chat.cells(loaded)] == [
        cell.references for cell in cells if cell.task == "vt"
    ]
