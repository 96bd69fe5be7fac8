"""RULER's tasks hold and ask what their definitions say, in exactly as many tokens as they should.

That they agree with another implementation of RULER: test_ruler_lm_eval.py.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.prompts import Wrapping
from lrtrain.evaluation.ruler import (
    TASKS,
    Prompt,
    PromptMaker,
    Source,
    haystack_of,
    parse_tasks,
    score,
)
from lrtrain.evaluation.ruler.counting import zipf_counts
from lrtrain.evaluation.ruler.texts import Texts
from lrtrain.evaluation.text import Text
from tests.conftest import generated_text
from tests.fetch import fetch
from tests.lrtrain.ruler_reading import (
    ChainPrompt,
    NiahFacts,
    read_chains,
    read_code,
    read_lists,
    read_niah,
)

TEXTS = Texts()
NIAH = [name for name in TASKS if name.startswith("niah")]
LENGTH = 1400


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(list(generated_text(300, seed=5)), "generated", "")


@pytest.fixture(scope="module")
def make(tiny_bos_tokenizer: Path, text: Text) -> PromptMaker:
    return maker_of(tiny_bos_tokenizer, text)


@pytest.fixture(scope="module")
def smollm2(text: Text) -> PromptMaker:
    return maker_of(fetch("smollm2"), text)


def maker_of(
    folder: Path, text: Text, wrap: Callable[[Tokenizer], Wrapping] = Wrapping.plain
) -> PromptMaker:
    tokenizer = Tokenizer.load(str(folder))
    return PromptMaker(Source(haystack_of(text, tokenizer), tokenizer), wrap(tokenizer))


def written(maker: PromptMaker, prompt: Prompt) -> str:
    """The prompt as text, without what is put around it."""
    return maker.source.tokenizer.decode(prompt.ids[len(maker.wrapping.before) :])


# All tasks


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(TASKS)),
    length=st.integers(LENGTH, 5000),
    sample=st.integers(0, 50),
    seed=st.integers(0, 5),
)
def test_a_prompt_leaves_exactly_the_room_for_its_answer(
    make: PromptMaker, name: str, length: int, sample: int, seed: int
) -> None:
    task = TASKS[name]
    prompt = make.make(task, seed, length, sample)
    assert prompt.ids.dtype == np.int32
    assert len(prompt.ids) == length - task.answer_tokens
    assert prompt.ids[0] == make.source.tokenizer.bos_id
    assert len(set(prompt.references)) == len(prompt.references)
    assert score(written(make, prompt), prompt.references) == 1  # it can be answered
    assert score(make.source.tokenizer.decode(prompt.ids[-30:]), prompt.references) == 0


@pytest.mark.parametrize("name", TASKS)
def test_prompts_depend_on_their_four_values_only(make: PromptMaker, name: str) -> None:
    keys = [(0, LENGTH, 0), (0, LENGTH, 1), (1, LENGTH, 0), (0, LENGTH + 1, 0)]
    first = [make.make(TASKS[name], *key) for key in keys]
    again = [make.make(TASKS[name], *key) for key in reversed(keys)][::-1]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.ids, b.ids)
        assert a.references == b.references
    assert len({prompt.references for prompt in first}) == len(keys)


def test_tasks_do_not_share_draws(make: PromptMaker) -> None:
    found = [make.make(TASKS[name], 0, LENGTH, 0).references for name in NIAH]
    assert len(set(found)) == len(NIAH)


@pytest.mark.parametrize("name", TASKS)
def test_in_a_chat_the_prefix_of_the_answer_begins_the_turn(
    make: PromptMaker, tiny_bos_tokenizer: Path, text: Text, name: str
) -> None:
    plain = written(make, make.make(TASKS[name], 0, LENGTH, 0))
    chat = maker_of(tiny_bos_tokenizer, text, Wrapping.chat)
    prompt = chat.make(TASKS[name], 0, LENGTH, 0)
    assert len(prompt.ids) == LENGTH - TASKS[name].answer_tokens
    whole = chat.source.tokenizer.decode(prompt.ids)
    found = re.fullmatch(
        r"<\|im_start\|>user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n(.*)", whole, re.DOTALL
    )
    assert found
    question, prefix = found.groups()
    assert plain.endswith(f" {prefix}")
    assert question.endswith(plain.removesuffix(f" {prefix}")[-60:])


@pytest.mark.parametrize("name", TASKS)
def test_a_length_without_room_is_an_error_that_says_how_much_it_takes(
    make: PromptMaker, name: str
) -> None:
    task = TASKS[name]
    with pytest.raises(LongRecipeError, match=f"100 tokens has no room for {name}") as problem:
        make.make(task, 0, 100, 0)
    least = int(str(problem.value).split("takes ")[1].split()[0])
    assert least > 100
    lengths = range(100, LENGTH + 1, 10)
    fits = [length for length in lengths if fits_in(make, name, length)]
    assert fits[0] >= least - 10
    assert {length for length in lengths if length > fits[0] + 50} <= set(fits)


def fits_in(make: PromptMaker, name: str, length: int) -> bool:
    try:
        make.make(TASKS[name], 0, length, 0)
    except LongRecipeError:
        return False
    return True


@pytest.mark.parametrize("tokenizer", ["llama3", "qwen", "mistral-tekken", "deepseek"])
def test_with_real_tokenizers_few_tokens_are_cut_otherwise_than_in_running_text(
    text: Text, tokenizer: str
) -> None:
    maker = maker_of(fetch(tokenizer), text)
    for task in TASKS.values():
        prompt = maker.make(task, 0, 4096, 0)
        whole = maker.source.encode(written(maker, prompt))
        joined = len(prompt.ids) - len(maker.wrapping.before)
        assert 0 <= joined - len(whole) <= 2 + 2 * len(prompt.references)


def test_parse_tasks() -> None:
    assert [task.name for task in parse_tasks(["all"])] == list(TASKS)
    names = [task.name for task in parse_tasks(["vt", "niah_single_1"])]
    assert names == ["niah_single_1", "vt"]
    for wrong in ([], ["niah"], ["all", "nothing"]):
        with pytest.raises(LongRecipeError, match="choose all, or from niah_single_1"):
            parse_tasks(wrong)


# Needles

DEFINED = {
    "niah_single_1": NiahFacts("noise", 1, 1, 1, 1, ("word", "number"), True),
    "niah_single_2": NiahFacts("text", 1, 1, 1, 1, ("word", "number"), True),
    "niah_single_3": NiahFacts("text", 1, 1, 1, 1, ("word", "uuid"), True),
    "niah_multikey_1": NiahFacts("text", 4, 1, 1, 1, ("word", "number"), True),
    "niah_multikey_2": NiahFacts("needles", 1, 1, 1, 1, ("word", "number"), True),
    "niah_multikey_3": NiahFacts("needles", 1, 1, 1, 1, ("uuid", "uuid"), True),
    "niah_multivalue": NiahFacts("text", 1, 1, 4, 4, ("word", "number"), False),
    "niah_multiquery": NiahFacts("text", 4, 4, 1, 4, ("word", "number"), False),
}
"""By table 5 of the paper."""


@pytest.mark.parametrize("name", NIAH)
@pytest.mark.parametrize("sample", range(4))
def test_needles_are_hidden_as_the_task_is_defined(
    smollm2: PromptMaker, name: str, sample: int
) -> None:
    prompt = smollm2.make(TASKS[name], 0, LENGTH, sample)
    read = read_niah(written(smollm2, prompt), TEXTS)
    facts = read.facts(TEXTS, prompt.references)
    assert facts == DEFINED[name]
    assert TASKS[name].answer_tokens == 128
    if facts.haystack == "needles":
        assert len(read.needles) > 10
        assert len({key for key, _ in read.needles}) == len(read.needles)
    else:
        assert len(read.needles) == facts.keys * facts.values


def test_needles_stand_between_sentences(smollm2: PromptMaker) -> None:
    for name in ("niah_single_2", "niah_multivalue"):
        for sample in range(20):
            text = written(smollm2, smollm2.make(TASKS[name], 1, LENGTH, sample))
            for match in re.finditer(r"(.)\s+A secret number of \S+ is: \d{7}\.(.)", text):
                assert match[1] in ".?!"
                assert match[2] in " \n"


def depths(maker: PromptMaker, name: str, length: int) -> np.ndarray:
    """Where the first needle that is asked for stands in each of 400 prompts, as a share."""
    found = []
    for sample in range(400):
        prompt = maker.make(TASKS[name], 0, length, sample)
        text = written(maker, prompt)
        found.append(text.index(f"is: {prompt.references[0]}") / len(text))
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "length"),
    [("niah_single_1", 4096), ("niah_single_2", 4096), ("niah_multikey_2", 4096)],
)
def test_needles_stand_everywhere(smollm2: PromptMaker, name: str, length: int) -> None:
    found = depths(smollm2, name, length)
    quarters = np.histogram(found, 4, (0, 1))[0]
    assert quarters.min() > 60  # of 100
    assert found.min() < 0.08
    assert found.max() > 0.92


def test_needles_of_a_prompt_stand_apart_in_any_order(smollm2: PromptMaker) -> None:
    orders = set()
    for sample in range(60):
        prompt = smollm2.make(TASKS["niah_multiquery"], 0, LENGTH, sample)
        read = read_niah(written(smollm2, prompt), TEXTS)
        orders.add(tuple(read.asked.index(key) for key, _ in read.needles))
    assert len(orders) > 20  # of 24


# Variables


@pytest.mark.parametrize("length", [LENGTH, 4096])
@pytest.mark.parametrize("sample", range(4))
def test_a_chain_of_variables_is_followed_after_an_example(
    smollm2: PromptMaker, length: int, sample: int
) -> None:
    prompt = smollm2.make(TASKS["vt"], 0, length, sample)
    text = written(smollm2, prompt)
    example, asked = read_chains(text, TEXTS)
    for read, size in ((example, 3), (asked, 5)):
        names = [name for name, _ in read.given]
        assert len(set(names)) == 5 == read.count
        assert {len(name) for name in names} == {size}
        assert [other for _, other in read.given] == [read.value, *names[:-1]]
        assert len(set(read.places)) == 5
        assert 10_000 <= int(read.value) <= 99_998
    assert example.answer == [name for name, _ in example.given]
    assert asked.answer == []
    assert prompt.references == tuple(name for name, _ in asked.given)

    worked = text[: text.rindex(TEXTS.variables.head)]
    tokens = len(smollm2.source.encode(worked))
    line = len(smollm2.source.encode(TEXTS.noise))
    room = min(500, length // 4) - TASKS["vt"].answer_tokens
    assert TASKS["vt"].answer_tokens == 30
    assert room - line < tokens <= room or example.noise == 5


def test_variables_are_given_anywhere(smollm2: PromptMaker) -> None:
    found = list[ChainPrompt]()
    for sample in range(300):
        text = written(smollm2, smollm2.make(TASKS["vt"], 0, LENGTH, sample))
        found.append(read_chains(text, TEXTS)[1])
    lines = min(read.noise for read in found)
    assert lines > 20
    assert max(read.noise for read in found) <= lines + 1
    places = Counter(place for read in found for place in read.places)
    assert min(places[line] for line in range(lines)) > 300 * 5 / lines / 2


# Words


@pytest.mark.parametrize(
    ("length", "common", "others", "example"),
    [(2000, 6, 1, [(3, 10), (1, 10)]), (6000, 30, 3, [(10, 10), (3, 30)])],
)
@pytest.mark.parametrize("sample", range(3))
def test_ten_words_of_a_list_come_often(
    smollm2: PromptMaker, length: int, common: int, others: int, example: list, sample: int
) -> None:
    prompt = smollm2.make(TASKS["cwe"], 0, length, sample)
    worked, asked = read_lists(written(smollm2, prompt), TEXTS)
    assert worked.repeats == example
    assert worked.numbers == list(range(1, len(worked.words) + 1))
    often = {word for word, count in Counter(worked.words).items() if count == example[0][0]}
    assert set(worked.answer) == often

    counts = Counter(asked.words)
    assert len(prompt.references) == 10
    assert TASKS["cwe"].answer_tokens == 120
    assert {counts.pop(word) for word in prompt.references} == {common}
    assert Counter(counts.values())[others] >= 10
    rare = [word for word, count in counts.items() if count != others]
    assert len(rare) <= 1  # the one whose entries take what room was left
    assert asked.numbers == list(range(asked.numbers[0], asked.numbers[-1] + 1))
    assert asked.numbers[0] <= 2  # the first entry may have lost its beginning
    assert asked.answer == []
    assert not {word[::-1] for word in rare} & set(prompt.references)


@pytest.mark.parametrize("length", [600, 1000, 4096, 20_000])
@pytest.mark.parametrize("sample", range(3))
def test_code_words_come_by_zipf(smollm2: PromptMaker, length: int, sample: int) -> None:
    prompt = smollm2.make(TASKS["fwe"], 0, length, sample)
    words = read_code(written(smollm2, prompt), TEXTS)
    counts = Counter(words)
    dots = counts.pop("...")
    ranked = counts.most_common()
    assert tuple(word for word, _ in ranked[:3]) == prompt.references
    assert ranked[2][1] > ranked[3][1]
    assert TASKS["fwe"].answer_tokens == 50
    assert all(re.fullmatch("[a-z]{6}", word) for word in counts)

    size = length // 50
    more = [
        dots - int(expected[0])
        for expected in (zipf_counts(size, total) for total in range(2 * len(words)))
        if expected[expected > 0][1:].tolist() == [count for _, count in ranked]
    ]
    assert any(0 <= extra < 40 for extra in more)  # dots also take what room was left


@given(words=st.integers(1, 500), total=st.integers(0, 100_000))
def test_zipf_counts(words: int, total: int) -> None:
    counts = zipf_counts(words, total)
    assert counts.dtype == np.int64
    assert counts.shape == (words,)
    assert counts.sum() <= total
    assert (np.diff(counts) <= 0).all()
    exact = total / np.arange(1, words + 1) ** 2 * 6 / np.pi**2
    assert (abs(counts + 0.5 - exact) <= 0.5 + 1e-6).all()


# Scores


def test_score() -> None:
    assert score(" 1. Bolun 2. natok\x00", ["bolun", "natok"]) == 1
    assert score("bol\nun", ["bolun", "natok", "un", "x"]) == 0.25
    assert score("", ["a"]) == 0
    assert score("it is 1234567, I think", ["1234567"]) == 1


@given(
    answer=st.text(),
    references=st.lists(st.text(min_size=1), min_size=1),
    around=st.tuples(st.text(" \n\t"), st.text(" \n\t")),
)
def test_a_score_is_a_share_and_grows_with_the_answer(
    answer: str, references: list[str], around: tuple[str, str]
) -> None:
    found = score(answer, references)
    assert 0 <= found <= 1
    assert score(around[0] + answer + around[1], references) == found
    assert score(answer.lower(), references) == found
    # Between spaces, as "ΑΣ" ends in another small letter than "ΑΣΑ" has inside.
    everything = " ".join(reference.strip() for reference in references)
    plain = [reference for reference in references if reference == reference.strip()]
    if plain and not re.search(r"[\x00-\x1f]", everything):
        assert score(f"{answer} {everything}", plain) == 1
