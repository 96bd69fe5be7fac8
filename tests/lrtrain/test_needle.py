"""Needle prompts are what they claim to be, and scores are right in both directions."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.needle import (
    Haystack,
    NeedleSuite,
    NeedleTemplate,
    PromptMaker,
    answers_right,
    measure,
)
from lrtrain.evaluation.text import Text
from tests.conftest import generated_text
from tests.fetch import fetch

TEXT = "".join(generated_text(120, seed=5))


def maker_of(tokenizer: Tokenizer, **template: Any) -> PromptMaker:
    haystack = Haystack(tokenizer.encode([TEXT])[0], tokenizer)
    return PromptMaker(NeedleTemplate(**template), haystack, tokenizer)


@pytest.fixture(scope="module")
def maker(tiny_bos_tokenizer: Any) -> PromptMaker:
    return maker_of(Tokenizer.load(str(tiny_bos_tokenizer)))


class Oracle:
    """Answers from the last `sight` tokens: continues the longest repeated suffix it finds there.

    The first position that follows the longest match wins. `spoil` makes its last word wrong.
    """

    def __init__(self, sight: int, spoil: bool = False) -> None:
        self.sight, self.spoil = sight, spoil

    def __call__(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        assert not use_cache
        logits = torch.zeros(len(input_ids), logits_to_keep, 1100)
        for row, ids in enumerate(input_ids.tolist()):
            for kept in range(logits_to_keep):
                end = len(ids) - logits_to_keep + kept + 1
                choice = self._continue(ids[max(0, end - self.sight) : end])
                wrong = self.spoil and kept == logits_to_keep - 2
                logits[row, kept, (choice + wrong) % 1100] = 1.0
        return SimpleNamespace(logits=logits)

    @staticmethod
    def _continue(seen: list[int]) -> int:
        best, choice = 0, 0
        for place in range(1, len(seen)):
            match = 0
            while match < place and seen[place - 1 - match] == seen[-1 - match]:
                match += 1
            if match > best:
                best, choice = match, seen[place]
        return choice


@settings(max_examples=60)
@given(
    length=st.integers(90, 700),
    depth=st.floats(0, 1),
    sample=st.integers(0, 50),
    seed=st.integers(0, 5),
)
def test_a_prompt_has_exactly_its_length_and_holds_the_needle_at_its_depth(
    maker: PromptMaker, length: int, depth: float, sample: int, seed: int
) -> None:
    prompt = maker.make(seed, length, depth, sample)
    decode = maker.tokenizer.decode
    ids = prompt.ids
    assert ids.dtype == np.int32
    assert ids.shape == (length,)
    assert ids[0] == maker.tokenizer.bos_id
    needle = ids[prompt.needle_start : prompt.needle_stop]
    assert decode(needle) == f"\nThe pass key is {prompt.value}. Remember it.\n"
    ending = f"\nWhat is the pass key? The pass key is {prompt.value}"
    assert decode(ids).endswith(ending)
    assert decode(ids[-prompt.answer_tokens :]).strip() == prompt.value

    fill = length - 1 - len(needle) - len(maker.tokenizer.encode([ending])[0])
    before = prompt.needle_start - 1
    assert abs(before - depth * fill) <= fill / 16 + 1
    if depth in (0, 1):
        assert before == depth * fill


@pytest.mark.parametrize(("depth", "before"), [(0.0, 0), (1.0, None)])
def test_the_ends_are_exact(maker: PromptMaker, depth: float, before: int | None) -> None:
    prompt = maker.make(0, 300, depth, 0)
    after = maker.tokenizer.decode(prompt.ids[prompt.needle_stop :])
    assert prompt.needle_start == 1 if before == 0 else after.startswith("\nWhat is the pass key?")


def test_filler_is_the_haystack_read_in_a_circle_from_a_sentence_start(maker: PromptMaker) -> None:
    size = len(maker.haystack.ids)
    length = size + 500
    prompt = maker.make(1, length, 0.5, 0)
    question = f"\nWhat is the pass key? The pass key is {prompt.value}"
    ending = len(maker.tokenizer.encode([question])[0])
    parts = prompt.ids[1 : prompt.needle_start], prompt.ids[prompt.needle_stop : length - ending]
    filler = np.concatenate(parts)
    circle = np.concatenate([maker.haystack.ids] * 3)
    starts = maker.haystack.starts
    assert any(np.array_equal(circle[at : at + len(filler)], filler) for at in starts)


def test_a_needle_stands_between_sentences_where_one_ends_nearby(maker: PromptMaker) -> None:
    for sample in range(20):
        prompt = maker.make(3, 600, 0.5, sample)
        before = maker.tokenizer.decode(prompt.ids[1 : prompt.needle_start])
        assert before.rstrip(" ")[-1] in ".?!\n"


def test_prompts_depend_on_their_four_numbers_only(maker: PromptMaker) -> None:
    keys = [
        (0, 200, 0.5, 0),
        (0, 200, 0.5, 1),
        (1, 200, 0.5, 0),
        (0, 201, 0.5, 0),
        (0, 200, 0.6, 0),
    ]
    first = [maker.make(*key) for key in keys]
    again = [maker.make(*key) for key in reversed(keys)][::-1]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert len({prompt.value for prompt in first}) == len(keys)


def test_a_length_without_room_is_an_error(maker: PromptMaker) -> None:
    with pytest.raises(LongRecipeError, match="20 tokens has no room"):
        maker.make(0, 20, 0.5, 0)
    least = 0
    try:
        maker.make(0, 5, 0.0, 0)
    except LongRecipeError as problem:
        least = int(str(problem).split("take ")[1].split(";")[0])
    assert len(maker.make(0, least + 8, 0.0, 0).ids) == least + 8


@pytest.mark.parametrize("name", ["llama3", "qwen", "smollm2", "mistral-tekken"])
def test_with_real_tokenizers_the_answer_is_written_as_in_the_needle(name: str) -> None:
    tokenizer = Tokenizer.load(str(fetch(name)))
    prompt = maker_of(tokenizer).make(0, 256, 0.5, 0)
    answer = prompt.ids[-prompt.answer_tokens :].tolist()
    needle = prompt.ids[prompt.needle_start : prompt.needle_stop].tolist()
    places = range(len(needle) - len(answer) + 1)
    assert any(needle[at : at + len(answer)] == answer for at in places)
    assert tokenizer.decode(answer) == prompt.value  # the blank before it is not to be retrieved


def test_names_are_asked_for(tiny_tokenizer: Any) -> None:
    maker = maker_of(
        Tokenizer.load(str(tiny_tokenizer)),
        needle="The code of {name} is {value}.",
        question="The code of {name} is",
        value_alphabet=["red ", "blue "],
        value_length=3,
    )
    prompt = maker.make(0, 150, 0.3, 0)
    text = maker.tokenizer.decode(prompt.ids)
    assert text.count(f"The code of {prompt.name} is {prompt.value}") == 2
    assert set(prompt.value.split()) <= {"red", "blue"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"needle": "no slot"}, "the needle 'no slot' has no {value}"),
        ({"answer": "{name}"}, "the answer"),
        ({"question": "is it {value}?"}, "tells the {value}"),
        ({"needle": "{value} {other}"}, "{value} and {name} only"),
        ({"needle": "{value"}, "is no template"),
        ({"needle": "{value} {}"}, "{value} and {name} only"),
        ({"value_length": 0}, "alphabet"),
        ({"value_alphabet": "7"}, "alphabet"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template: dict[str, Any], message: str) -> None:
    with pytest.raises(LongRecipeError) as problem:
        NeedleTemplate(**template)
    assert message in str(problem.value)


def cells_of(model: Any, maker: PromptMaker, length: int, depths: Sequence[float]) -> list[Any]:
    cells = []
    for depth in depths:
        prompts = [maker.make(0, length, depth, sample) for sample in range(3)]
        found = list(measure(model, "cpu", "oracle", prompts, length, depth))
        assert sum(count for count, _ in found) == len(prompts)
        cells.append(found[-1][1])
    return cells


def test_a_model_that_copies_finds_every_needle(maker: PromptMaker) -> None:
    for length in (96, 160):
        for cell in cells_of(Oracle(sight=length), maker, length, [0.0, 0.5, 1.0]):
            assert cell.exact == (True,) * 3
            assert cell.share == (1.0,) * 3


def test_a_model_with_a_short_sight_finds_the_near_needles_only(maker: PromptMaker) -> None:
    far, near = cells_of(Oracle(sight=100), maker, 260, [0.0, 1.0])
    assert near.exact == (True,) * 3
    assert far.exact == (False,) * 3
    assert max(far.share) < 1.0


def test_one_wrong_token_costs_exact_and_its_part_of_the_share(maker: PromptMaker) -> None:
    (cell,) = cells_of(Oracle(sight=160, spoil=True), maker, 160, [0.5])
    answers = [maker.make(0, 160, 0.5, sample).answer_tokens for sample in range(3)]
    assert cell.exact == (False,) * 3
    assert cell.share == pytest.approx([(count - 1) / count for count in answers])


def test_exact_is_what_greedy_generation_does() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,  # so that its choices depend on what it reads
        attn_implementation="sdpa",
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    seen = set()
    for trial in range(24):
        prefix = torch.randint(1, 61, (1, 20 + trial))
        count = 2 + trial % 3
        greedy = model.generate(prefix, max_new_tokens=count, do_sample=False)[0, -count:]
        answer = greedy.clone()
        if trial % 2:
            answer[trial % count] = (answer[trial % count] + 1) % 61
        ids = torch.cat([prefix[0], answer])[None]
        (right,) = answers_right(model, ids, [count])
        assert right.all() == torch.equal(greedy, answer)
        # Up to the first mistake generation and teacher forcing read the same.
        first = int(right.argmin()) if not right.all() else count
        assert torch.equal(greedy[:first], answer[:first])
        assert first == count or greedy[first] != answer[first]
        seen.add(bool(right.all()))
    assert seen == {True, False}


def test_answers_of_several_lengths_share_a_batch(maker: PromptMaker) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=1100, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 1100, (3, 30))
    counts = [2, 5, 3]
    together = answers_right(model, ids, counts)
    alone = [answers_right(model, ids[row : row + 1], [counts[row]])[0] for row in range(3)]
    assert [len(right) for right in together] == counts
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    choices = model(ids).logits.argmax(-1)
    for row, count in enumerate(counts):
        expected = choices[row, -count - 1 : -1] == ids[row, -count:]
        assert np.array_equal(together[row], expected.numpy())


def test_a_length_has_room_for_each_prompt_of_a_suite(tiny_bos_tokenizer: Any) -> None:
    """Values may be words of any length: the first prompt tells nothing of the others."""
    tokenizer = Tokenizer.load(str(tiny_bos_tokenizer))
    words = ("a", "an " * 20 + "end")
    template = NeedleTemplate(value_alphabet=words, value_length=1)
    maker = maker_of(tokenizer, value_alphabet=words, value_length=1)
    lengths = [(seed, length) for length in range(20, 200) for seed in range(9)]
    seed, length = next(one for one in lengths if _fits(maker, *one))
    text = Text([TEXT], "generated", "")
    opened: Any = SimpleNamespace(tokenizer=tokenizer)
    NeedleSuite(text, [length], [0.0], 1, template, [seed]).check(opened)
    with pytest.raises(LongRecipeError, match=f"{length} tokens has no room"):
        NeedleSuite(text, [length], [0.0, 1.0], 20, template, [seed, seed + 1]).check(opened)


def _fits(maker: PromptMaker, seed: int, length: int) -> bool:
    try:
        maker.make(seed, length, 0.0, 0)
    except LongRecipeError:
        return False
    return True
