"""What is put around a question is what transformers' own chat templates put there."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from lrdata.chat import template_conversation
from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.cli import evaluate
from lrtrain.evaluation.models import LoadedModel
from lrtrain.evaluation.needle import Haystack, NeedleSuite, NeedleTemplate, PromptMaker
from lrtrain.evaluation.prompts import WRAPPINGS, Wrapping
from lrtrain.evaluation.text import Text
from lrtrain.model_spec import ModelSpec
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


UNADDED_START = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}"
"""Spells a start of text that the tokenizer adds to no other text."""
MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% else %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


WITH_TOOLS = (
    "{% if tools is not none %}tools{% endif %}{{ {'<é>': [1]} | tojson }}"
    "{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}"
)


@pytest.mark.parametrize("template", ["own", WITH_BREAK, UNADDED_START, MARKED, WITH_TOOLS])
def test_a_chat_equals_transformers(tiny_tokenizer: Path, tmp_path: Path, template: str) -> None:
    folder = tiny_tokenizer
    if template != "own":
        folder = with_template(tmp_path / "other", tiny_tokenizer, template)
    check_against_transformers(folder)


LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def as_sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts a space before every text, as those of Llama 2 and Mistral 7B do."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, show_progress=False, max_token_length=8
    )
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")  # no entry spans words
    made.train_from_iterator([*generated_text(100), "[INST] What? [/INST]"], trainer)
    state = {**json.loads(made.to_str()), "pre_tokenizer": None}
    state["added_tokens"] = state["added_tokens"][:3]
    folder = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA_2}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_chat_of_a_tokenizer_that_adds_spaces_equals_transformers(
    as_sentencepiece: Path, tmp_path: Path
) -> None:
    """Of a prompt and of an answer. Where it cannot, that is said."""
    check_against_transformers(as_sentencepiece)
    tokenizer = Tokenizer.load(str(as_sentencepiece))
    library = AutoTokenizer.from_pretrained(as_sentencepiece)
    conversation = template_conversation(tokenizer)
    for asked, answered in (("one", "two"), ("Is it so?", "It is: 7\nwords.")):
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
        expected = library.apply_chat_template(messages, tokenize=True, return_dict=False)
        parts = (tokenizer.encode([text])[0] for text in (asked, answered))
        ids, mask = conversation.tokens(*parts)
        assert ids.tolist() == expected
        assert tokenizer.decode(ids[mask]) == f"{answered} </s>"
    zephyr = Tokenizer.load(str(with_template(tmp_path / "zephyr", as_sentencepiece, ZEPHYR)))
    for make in (Wrapping.chat, template_conversation):
        with pytest.raises(LongRecipeError, match=r"begins every text with a space, .*; leave --"):
            make(zephyr)


def test_a_template_that_asks_for_the_date_gets_the_same_every_day(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}{% if add_generation_prompt %}"
    )
    folder = with_template(tmp_path / "dated", tiny_tokenizer, template + "!{% endif %}")
    tokenizer = Tokenizer.load(str(folder))
    assert tokenizer.decode(Wrapping.chat(tokenizer).before) == "26 Jul 2024 "


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


class Listener:
    """A model that keeps what it reads, and says nothing."""

    def __init__(self) -> None:
        self.read = list[np.ndarray]()

    def __call__(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        self.read += list(input_ids.numpy())
        return SimpleNamespace(logits=torch.zeros(len(input_ids), logits_to_keep, 1000))


@pytest.mark.parametrize("eot", ["<|endoftext|>", "<|im_end|>"])
@pytest.mark.parametrize("prompt", WRAPPINGS)
def test_the_filler_of_a_chat_does_not_end_the_users_turn(
    tiny_tokenizer: Path, prompt: str, eot: str
) -> None:
    """Documents of a haystack have the end of text between them, but are one text in a chat."""
    tokenizer = Tokenizer.load(str(tiny_tokenizer), eot=eot)
    model: Any = Listener()
    loaded = LoadedModel(
        ModelSpec("m", "m"), model, tokenizer, torch.device("cpu"), 512, None, "default", 0
    )
    text = Text(list(generated_text(60, seed=7)), "generated", "")
    suite = NeedleSuite(text, [300], [0.0, 0.5, 1.0], 3, NeedleTemplate(), [0], prompt)
    list(suite.cells(loaded))
    wrapping = WRAPPINGS[prompt](tokenizer)
    around = np.concatenate([wrapping.before, wrapping.after])
    words = {word for document in text.documents for word in document.split()}
    assert len(model.read) == 9
    for ids in model.read:
        special = ids[tokenizer.special[ids]]
        if prompt == "base":
            assert set(special.tolist()) == {tokenizer.eot_id}
            continue
        assert special.tolist() == around[tokenizer.special[around]].tolist()
        filler = tokenizer.decode(ids[60:110])  # between the needles of all depths
        assert set(filler.split()[1:-1]) <= words  # documents are apart from each other


def test_the_same_values_are_asked_for_in_base_and_chat(tokenizer: Tokenizer) -> None:
    one, other = (prompt_of(tokenizer, 200, prompt)[0] for prompt in WRAPPINGS)
    assert (one.value, one.name) == (other.value, other.name)
