"""What is put around a question is what transformers' own chat templates put there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import evaluate
from lrtrain.evaluate.needle import Haystack, NeedleTemplate, PromptMaker
from lrtrain.evaluate.prompts import WRAPPINGS, Wrapping
from tests.conftest import generated_text
from tests.fetch import fetch

TEXT = "".join(generated_text(60, seed=7))
NO_BEGINNING = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "<|im_start|>{{ message['content'] | trim }}<|im_end|>"
    "{% else %}\n{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
WITH_BREAK = (
    "{% for message in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def with_template(folder: Path, tokenizer: Path, template: str | None) -> Path:
    shutil.copytree(tokenizer, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    if template is None:
        del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_plain_question_has_the_start_of_text_before_it(
    tiny_tokenizer: Path, tiny_bos_tokenizer: Path
) -> None:
    tokenizer = Tokenizer.load(str(tiny_bos_tokenizer))
    wrapping = Wrapping.plain(tokenizer)
    assert wrapping.before.tolist() == [tokenizer.bos_id]
    assert (wrapping.after.tolist(), wrapping.turns, wrapping.size) == ([], False, 1)
    assert Wrapping.plain(Tokenizer.load(str(tiny_tokenizer))).size == 0


def check_against_transformers(folder: Path) -> None:
    tokenizer, library = Tokenizer.load(str(folder)), AutoTokenizer.from_pretrained(folder)
    wrapping = Wrapping.chat(tokenizer)
    assert wrapping.before.dtype == wrapping.after.dtype == np.int32
    for text in ("What is the pass key?", "A longer one: 7 words, two lines.\nIs it so?"):
        expected = library.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        asked = tokenizer.encode([text])[0]
        assert [*wrapping.before, *asked, *wrapping.after] == expected


@pytest.mark.parametrize("template", ["own", WITH_BREAK])
def test_a_chat_equals_transformers(tiny_tokenizer: Path, tmp_path: Path, template: str) -> None:
    folder = tiny_tokenizer
    if template != "own":
        folder = with_template(tmp_path / "other", tiny_tokenizer, template)
    check_against_transformers(folder)


def test_a_real_chat_equals_transformers() -> None:
    check_against_transformers(fetch("smollm2"))


def test_a_template_without_a_beginning_of_answers_puts_what_is_between(
    tiny_bos_tokenizer: Path, tmp_path: Path
) -> None:
    folder = with_template(tmp_path / "old", tiny_bos_tokenizer, NO_BEGINNING)
    tokenizer, library = Tokenizer.load(str(folder)), AutoTokenizer.from_pretrained(folder)
    wrapping = Wrapping.chat(tokenizer)
    expected = library.apply_chat_template(
        [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
        tokenize=True,
        return_dict=False,
    )
    one, two = (tokenizer.encode([text])[0] for text in ("one", "two"))
    assert [*wrapping.before, *one, *wrapping.after, *two, tokenizer.eot_id] == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ messages | }}", "failed"),
        ("only {{ bos_token }}{% if add_generation_prompt %}!{% endif %}", "write a prompt once"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "once each"),
        ("{{ messages.__class__.__mro__ }}", "failed"),  # the sandbox lets nothing out
    ],
)
def test_a_model_without_a_chat_is_one_line(
    tiny_tokenizer: Path, tmp_path: Path, template: str | None, message: str
) -> None:
    folder = with_template(tmp_path / "other", tiny_tokenizer, template)
    with pytest.raises(LongRecipeError, match=message) as problem:
        Wrapping.chat(Tokenizer.load(str(folder)))
    assert str(problem.value).endswith("leave --prompt chat out")
    assert "\n" not in str(problem.value)


def test_choices_of_the_command_are_those_there_are() -> None:
    (option,) = (one for one in evaluate.params if one.name == "prompt")
    assert list(option.type.choices) == list(WRAPPINGS)
    assert option.default == "base"


# Needles in a chat


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_tokenizer))


def prompt_of(tokenizer: Tokenizer, length: int, prompt: str = "chat", **template: str) -> tuple:
    haystack = Haystack(tokenizer.encode([TEXT])[0], tokenizer)
    wrapping = WRAPPINGS[prompt](tokenizer)
    made = PromptMaker(NeedleTemplate(**template), haystack, tokenizer, wrapping)
    return made.make(0, length, 0.5, 0), wrapping


@pytest.mark.parametrize(
    ("template", "asked", "begun"),
    [
        ({}, "\nWhat is the pass key?", "The pass key is {value}"),
        ({"question": "What is it?"}, "\nWhat is it?", "{value}"),
        ({"question": "The pass key is"}, "\nThe pass key is", "{value}"),
        ({"question": "What? Say\n", "answer": "{value}."}, "\nWhat?", "Say\n{value}."),
    ],
)
def test_the_answer_begins_the_assistants_turn(
    tokenizer: Tokenizer, template: dict[str, str], asked: str, begun: str
) -> None:
    for length in (120, 300):
        prompt, wrapping = prompt_of(tokenizer, length, **template)
        assert prompt.ids.shape == (length,)
        text = tokenizer.decode(prompt.ids)
        ending = f"{asked}<|im_end|>\n<|im_start|>assistant\n{begun.format(value=prompt.value)}"
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith(ending)
        answer = template.get("answer", "{value}").format(value=prompt.value)
        assert tokenizer.decode(prompt.ids[-prompt.answer_tokens :]).strip() == answer
        assert np.array_equal(prompt.ids[: len(wrapping.before)], wrapping.before)
        needle = tokenizer.decode(prompt.ids[prompt.needle_start : prompt.needle_stop])
        assert prompt.value in needle
        assert text.count("<|im_start|>") == 2


def test_a_needle_that_spells_control_tokens_is_text(tokenizer: Tokenizer) -> None:
    prompt, _ = prompt_of(tokenizer, 200, needle="<|im_end|> {value} <|im_start|>")
    start = tokenizer.encode_with_specials("<|im_start|>")
    assert np.isin(prompt.ids, start).sum() == 2


def test_base_prompts_are_what_they_were(tokenizer: Tokenizer) -> None:
    haystack = Haystack(tokenizer.encode([TEXT])[0], tokenizer)
    made = PromptMaker(NeedleTemplate(), haystack, tokenizer).make(0, 200, 0.5, 0)
    prompt, _ = prompt_of(tokenizer, 200, "base")
    assert np.array_equal(made.ids, prompt.ids)
    end = f"\nWhat is the pass key? The pass key is {made.value}"
    assert tokenizer.decode(made.ids).endswith(end)


def test_the_same_values_are_asked_for_in_base_and_chat(tokenizer: Tokenizer) -> None:
    one, other = (prompt_of(tokenizer, 200, prompt)[0] for prompt in WRAPPINGS)
    assert (one.value, one.name) == (other.value, other.name)
