"""Our RULER tasks against those of lm-evaluation-harness, whose code runs here.

How its code is had, and what stubs stand for: tests.lrtrain.lm_eval_ruler. Scores are the same.
Prompts have the same structure by its own settings; given its words and what it drew, our builders
make its prompts, word for word (white space aside, but for haystacks of lines).

Where it differs from RULER's own code and paper, we follow those:
  - it puts no worked example before a cwe list, though it makes one: that one is compared;
  - it sizes fwe without the room for an answer, and all tasks without the prefix of the answer.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.needle import Haystack
from lrtrain.evaluation.prompts import Wrapping
from lrtrain.evaluation.ruler import (
    TASKS,
    Prompt,
    PromptMaker,
    Source,
    haystack_of,
    score,
)
from lrtrain.evaluation.ruler.counting import CodeDraw, Common, Frequent, ListDraw
from lrtrain.evaluation.ruler.niah import Niah, NiahDraw
from lrtrain.evaluation.ruler.question import Question
from lrtrain.evaluation.ruler.texts import Texts
from lrtrain.evaluation.ruler.tracking import Chain, Tracking, worked
from lrtrain.evaluation.text import Text
from tests.fetch import fetch
from tests.lrtrain.lm_eval_ruler import (
    FOLDER,
    Harness,
    Sample,
    essay,
    harness,
    prompt_of,
    split_sentences,
)
from tests.lrtrain.ruler_reading import (
    ChainPrompt,
    NiahPrompt,
    read_chains,
    read_code,
    read_lists,
    read_niah,
)

NIAH = [name for name in TASKS if name.startswith("niah")]
both_lengths = pytest.mark.parametrize("length", [1024, 4096])


@pytest.fixture(scope="module")
def lm_eval() -> Iterator[Harness]:
    with harness() as loaded:
        yield loaded


@pytest.fixture(scope="module")
def texts(lm_eval: Harness) -> Texts:
    """Its words, for our builders."""
    return lm_eval.texts()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(fetch("smollm2")))


@pytest.fixture(scope="module")
def ours(tokenizer: Tokenizer) -> PromptMaker:
    source = Source(haystack_of(Text([essay()], "generated", ""), tokenizer), tokenizer)
    return PromptMaker(source, Wrapping.plain(tokenizer))


# Scores


@given(
    data=st.data(),
    references=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_scores_are_the_same(lm_eval: Harness, data: st.DataObject, references: list[str]) -> None:
    common = lm_eval.module("common_utils")
    piece = st.one_of(
        st.sampled_from(references), st.text(max_size=4), st.sampled_from("\n\t\x00 ")
    )
    answer = "".join(data.draw(st.lists(piece, max_size=8)))
    answer = data.draw(st.sampled_from([answer, answer.upper(), answer.lower()]))
    expected = common.string_match_all(common.postprocess_pred([answer]), [references])
    assert score(answer, references) == expected
    results = common.process_results({"max_length": 4096, "outputs": references}, [answer])
    assert results == {"4096": expected}


# Structure


def test_tasks_and_the_room_for_their_answers() -> None:
    settings = dict[str, dict[str, str]]()
    for file in (fetch("lm-eval-ruler") / FOLDER).glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        found = dict(
            re.findall(r"^ *(task|include|process_results|max_gen_toks): (.+)$", text, re.M)
        )
        settings[file.name] = found
    names = {found.get("task", ""): found for found in settings.values()}
    for name, task in TASKS.items():
        found = names[name if name.startswith("niah") else f"ruler_{name}"]
        found = settings.get(found.get("include", ""), {}) | found
        assert task.answer_tokens == int(found["max_gen_toks"])
        assert found["process_results"] == "!function common_utils.process_results"
    others = {"", "ruler_qa_squad", "ruler_qa_hotpot"}
    assert len(names) == len(TASKS) + len(others)
    assert others < set(names)


@both_lengths
@pytest.mark.parametrize("name", NIAH)
def test_needles_are_as_many_and_of_the_same_kinds(
    lm_eval: Harness,
    ours: PromptMaker,
    texts: Texts,
    name: str,
    length: int,
) -> None:
    for index, sample in enumerate(lm_eval.samples(name, length)):
        prompt = ours.make(TASKS[name], 0, length, index)
        mine = read_niah(ours.source.tokenizer.decode(prompt.ids), Texts())
        read = read_niah(prompt_of(sample), texts)
        facts = read.facts(texts, tuple(sample["outputs"]))
        assert facts == mine.facts(Texts(), prompt.references)
        check_lengths(name, length, prompt, sample)
        if facts.haystack == "needles":
            sizes = [
                (total - 128) / len(found.needles)
                for total, found in ((length, mine), (sample["length"], read))
            ]
            assert 0.7 < sizes[0] / sizes[1] < 1.4  # tokens for each needle


def check_lengths(name: str, length: int, prompt: Prompt, sample: Sample) -> None:
    """Ours fits exactly; theirs more or less, as it goes by steps of up to 1,800 tokens."""
    answer = TASKS[name].answer_tokens
    assert len(prompt.ids) + answer == length
    assert length / 2 < sample["length"] <= length + (answer if name == "fwe" else 0)


@both_lengths
def test_chains_are_as_long(lm_eval: Harness, ours: PromptMaker, texts: Texts, length: int) -> None:
    for sample, their_sample in enumerate(lm_eval.samples("vt", length)):
        prompt = ours.make(TASKS["vt"], 0, length, sample)
        own = read_chains(ours.source.tokenizer.decode(prompt.ids), Texts())
        read = read_chains(prompt_of(their_sample), texts)
        assert len(own) == len(read) == 2
        for mine, other in zip(own, read, strict=True):
            assert len(mine.given) == len(other.given) == mine.count == other.count
            assert [len(name) for name, _ in mine.given] == [len(name) for name, _ in other.given]
            assert len(mine.value) == len(other.value)
        assert len(prompt.references) == len(their_sample["outputs"])
        assert read[1].given[0][1] == read[1].value
        check_lengths("vt", length, prompt, their_sample)


@both_lengths
def test_words_of_lists_come_as_often(
    lm_eval: Harness, ours: PromptMaker, texts: Texts, length: int
) -> None:
    for sample, their_sample in enumerate(lm_eval.samples("cwe", length)):
        prompt = ours.make(TASKS["cwe"], 0, length, sample)
        example, own = read_lists(ours.source.tokenizer.decode(prompt.ids), Texts())
        (read,) = read_lists(prompt_of(their_sample), texts)
        (their_example,) = read_lists(their_sample["input_example"], texts)
        assert example.repeats == their_example.repeats
        assert len(example.answer) == len(their_example.answer)
        assert len(prompt.references) == len(their_sample["outputs"]) == 10
        counts, their_counts = Counter(own.words), Counter(read.words)
        assert {counts[word] for word in prompt.references} == {
            their_counts[word] for word in their_sample["outputs"]
        }
        assert counts.most_common(11)[10][1] == their_counts.most_common(11)[10][1]
        check_lengths("cwe", length, prompt, their_sample)


@both_lengths
def test_code_words_come_as_often(
    lm_eval: Harness, ours: PromptMaker, texts: Texts, length: int
) -> None:
    for sample, their_sample in enumerate(lm_eval.samples("fwe", length)):
        prompt = ours.make(TASKS["fwe"], 0, length, sample)
        own = Counter(read_code(ours.source.tokenizer.decode(prompt.ids), Texts()))
        read = Counter(read_code(prompt_of(their_sample), texts))
        dots = [found["..."] / found.total() for found in (own, read)]
        assert 0.6 < min(dots) <= max(dots) < 0.7
        del own["..."], read["..."]
        assert {len(word) for word in own} == {len(word) for word in read} == {6}
        assert tuple(word for word, _ in own.most_common(3)) == prompt.references
        assert [word for word, _ in read.most_common(3)] == their_sample["outputs"]
        shares = [
            np.array([count for _, count in found.most_common(3)]) / found.total()
            for found in (own, read)
        ]
        assert np.allclose(*shares, rtol=0.15)
        check_lengths("fwe", length, prompt, their_sample)


# Word for word: its words and its draws, our builders


def built(question: Question, source: Source, room: int) -> str:
    """Our prompt with a filler of `room` tokens."""
    filler = source.tokenizer.decode(question.fill(room))
    return f"{question.frame.head}{filler}{question.frame.question} {question.frame.prefix}"


def sized(source: Source, pieces: Sequence[str]) -> int:
    """Tokens of all pieces."""
    return sum(map(len, source.encode_all(pieces)))


def source_of(text: str, tokenizer: Tokenizer, texts: Texts) -> Source:
    return Source(Haystack(tokenizer.encode([f" {text}"])[0], tokenizer), tokenizer, texts)


@both_lengths
@pytest.mark.parametrize("name", [name for name in NIAH if TASKS[name].maker.haystack == "text"])
def test_our_needles_in_text_in_its_words_are_its_prompts(
    lm_eval: Harness, tokenizer: Tokenizer, texts: Texts, name: str, length: int
) -> None:
    task = niah(name)
    for sample in lm_eval.samples(name, length):
        whole = prompt_of(sample)
        read = read_niah(whole, texts)
        source = source_of(read.rest, tokenizer, texts)
        said = [
            texts.needle.format(kinds=kinds(task, texts), key=key, value=value)
            for key, value in read.needles
        ]
        keys = list(dict.fromkeys(key for key, _ in read.needles))
        values = [values_of(key, read, sample) for key in keys]
        flat = [(key, value) for key, of in zip(keys, values, strict=True) for value in of]
        drawn = NiahDraw(
            keys=keys,
            values=values,
            order=[flat.index(pair) for pair in read.needles],
            asked=[keys.index(key) for key in read.asked],
            end=0,  # of a circle
            depths=depths(re.split("|".join(map(re.escape, said)), context(whole))),
            places=lambda lines: [],
            others=[],
        )
        question = task.question(drawn, source)
        room = len(source.haystack.ids) + sized(source, [*(f" {one}" for one in said), "\n"])
        assert built(question, source, room).split() == whole.split()
        assert list(question.references) == sample["outputs"]


@both_lengths
@pytest.mark.parametrize("name", [name for name in NIAH if TASKS[name].maker.haystack != "text"])
def test_our_needles_in_lines_in_its_words_are_its_prompts(
    lm_eval: Harness, tokenizer: Tokenizer, texts: Texts, name: str, length: int
) -> None:
    task = niah(name)
    for sample in lm_eval.samples(name, length):
        whole = prompt_of(sample)
        read, lines = read_niah(whole, texts), context(whole).split("\n")
        (place,) = (at for at, line in enumerate(lines) if f" {read.asked[0]} " in line)
        source = source_of("none", tokenizer, texts)
        drawn = NiahDraw(
            keys=read.asked,
            values=[values_of(read.asked[0], read, sample)],
            order=[0],
            asked=[0],
            end=0,
            depths=[],
            places=partial(checked, [place], len(lines) - 1),
            others=[pair for pair in read.needles if pair[0] not in read.asked],
        )
        question = task.question(drawn, source)
        room = sized(source, [f"{line}\n" for line in lines])
        assert built(question, source, room) == whole
        assert list(question.references) == sample["outputs"]


def niah(name: str) -> Niah:
    task = TASKS[name].maker
    assert isinstance(task, Niah)
    return task


def kinds(task: Niah, texts: Texts) -> str:
    return (texts.number if task.value == "number" else texts.uuid).many


def context(whole: str) -> str:
    """What is between the first line and the question."""
    return whole.partition("\n")[2].rpartition("\n")[0]


def values_of(key: str, read: NiahPrompt, sample: Sample) -> list[str]:
    """In the order in which they are expected."""
    found = [value for name, value in read.needles if name == key]
    return sorted(found, key=sample["outputs"].index) if key in read.asked else found


def depths(pieces: list[str]) -> list[float]:
    """Depths of RULER's that put needles between such pieces of text."""
    counts = [len(split_sentences(piece.strip())) if piece.strip() else 0 for piece in pieces]
    grid = np.round(np.linspace(0, 100, 40)) / 100
    return [
        next(float(depth) for depth in grid if int(sum(counts) * depth) == before)
        for before in accumulate(counts[:-1])
    ]


def checked(places: list[int], expected: int, lines: int) -> list[int]:
    """The places, where there are as many lines as expected; any others, where not."""
    return places if lines == expected else list(range(len(places)))


@both_lengths
def test_our_chains_in_its_words_are_its_prompts(
    lm_eval: Harness, tokenizer: Tokenizer, texts: Texts, length: int
) -> None:
    source = source_of("none", tokenizer, texts)
    for sample in lm_eval.samples("vt", length):
        whole = prompt_of(sample)
        example, asked = read_chains(whole, texts)
        chains = chain_of(example), chain_of(asked)
        tokens = sized(source, [worked(chains[0], example.noise, texts)]) + 30
        question = Tracking(example_tokens=tokens).question(*chains, source, 4 * tokens)
        room = sized(source, [*[texts.noise] * asked.noise, *chains[1].lines(texts)])
        assert built(question, source, room).split() == whole.split()
        assert list(question.references) == sample["outputs"]


def chain_of(read: ChainPrompt) -> Chain:
    names = [name for name, _ in read.given]
    return Chain(names, read.value, partial(checked, read.places, read.noise))


def order_of(listed: Sequence[str], wanted: Sequence[str], count: int) -> list[int]:
    """The order that makes `wanted` of `listed`; any, for another number of words."""
    if count != len(wanted):
        return list(range(count))
    places = {word: deque[int]() for word in listed}
    for index, word in enumerate(listed):
        places[word].append(index)
    return [places[word].popleft() for word in wanted]


@both_lengths
def test_our_lists_in_its_words_are_its_prompts(
    lm_eval: Harness, tokenizer: Tokenizer, texts: Texts, length: int
) -> None:
    source = source_of("none", tokenizer, texts)
    for sample in lm_eval.samples("cwe", length):
        whole = spaced(f"{sample['input_example']}\n{prompt_of(sample)}")
        example, asked = read_lists(whole, texts)
        listed = " ".join(f"{at}. {word}" for at, word in enumerate(asked.words, 1))
        draws = [
            drawn_list(example.words, example.answer),
            drawn_list(asked.words, sample["outputs"]),
        ]
        question = Common().question(*draws, source, length)
        found = built(question, source, sized(source, [listed]))
        assert found.split() == whole.split()
        assert list(question.references) == sample["outputs"]


def drawn_list(listed: list[str], common: list[str]) -> ListDraw:
    words = [*common, *dict.fromkeys(word for word in listed if word not in common)]
    counts = Counter(listed)
    repeats = counts[common[0]], counts[words[-1]]

    def more(count: int) -> list[str]:
        return [*words, *(f"more{at}" for at in range(count))][:count]

    mixed = [*words[:10] * repeats[0], *words[10:] * repeats[1]]
    return ListDraw(more, partial(order_of, mixed, listed))


def spaced(text: str) -> str:
    """With a space before the answer of the worked example, as before any other answer."""
    return re.sub(r":1\. ", ": 1. ", text)


@both_lengths
def test_our_code_words_in_its_words_are_its_prompts(
    lm_eval: Harness, tokenizer: Tokenizer, texts: Texts, length: int
) -> None:
    source = source_of("none", tokenizer, texts)
    for sample in lm_eval.samples("fwe", length):
        whole = prompt_of(sample)
        coded = read_code(whole, texts)
        ranked = [word for word, _ in Counter(coded).most_common()]
        unused = [f"unused{at}" for at in range(length // 50 - len(ranked))]
        listed = [word for word in ranked for _ in range(Counter(coded)[word])]

        question = Frequent().question(
            CodeDraw([*ranked, *unused], partial(order_of, listed, coded)), source
        )
        room = sized(source, ["".join(f" {word}" for word in coded)])
        assert built(question, source, room).split() == whole.split()
        assert list(question.references) == sample["outputs"]
