"""Short skills equal plain computations on full logits, on the same text for every tokenizer."""

import itertools
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import spell
from lrtrain.evaluation import evaluate
from lrtrain.evaluation.models import LoadedModel, OpenModel, open_model
from lrtrain.evaluation.short import (
    ShortCell,
    ShortSuite,
    Windows,
    drift_positions,
    kl_divergence,
    outcome,
    pick_windows,
    read_rows,
)
from lrtrain.evaluation.spelling import spelled_as_is
from lrtrain.evaluation.text import Text
from lrtrain.model_spec import ModelSpec
from tests.conftest import generated_text
from tests.fetch import fetch
from tests.lrtrain.scoring import save_model

DOCUMENTS = ["".join(generated_text(1, seed)) for seed in range(30)]
TEXT = Text(DOCUMENTS, "made up", "0" * 64)


@pytest.fixture(scope="module")
def models(
    tiny_tokenizer: Path, tiny_bos_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folders one and two, and bos, whose tokenizer is another."""
    root = tmp_path_factory.mktemp("models")
    save_model(tiny_tokenizer, root / "one", 0)
    save_model(tiny_tokenizer, root / "two", 1)
    save_model(tiny_bos_tokenizer, root / "bos", 2)
    return root


def loaded(folder: Path, name: str | None = None) -> LoadedModel:
    return opened(folder, name).load()


def opened(folder: Path, name: str | None = None, dtype: str = "float32") -> OpenModel:
    spec = ModelSpec(name or folder.name, str(folder))
    return open_model(spec, dtype=dtype, device="cpu")


@cache
def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.load(str(folder))


def suite_of(base: str, tokens: int = 64, windows: int = 5, text: Text = TEXT) -> ShortSuite:
    return ShortSuite(text, tokens, windows, 0, base)


def measured(suite: ShortSuite, folder: Path, name: str | None = None) -> ShortCell:
    (cell,) = suite.cells(loaded(folder, name))
    return cell


def plain_logits(folder: Path, row: list[int]) -> torch.Tensor:
    """All logits of transformers' own model in float64: [len(row) - 1, ids]."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor([row[:-1]])).logits[0]


# Against plain computations


@pytest.mark.parametrize("name", ["one", "bos"])
def test_nats_equal_cross_entropy_on_full_logits(models: Path, name: str) -> None:
    folder, tokenizer = models / name, Tokenizer.load(str(models / name))
    cell = measured(suite_of(name), folder)
    asked = Windows(TEXT, 64, 5, 0, tokenizer)
    sizes = np.diff(tokenizer.token_bytes[1])
    assert cell.windows == (0, 1, 2, 3, 4)
    assert cell.context == (64,) * 5
    assert any(tokenizer.eot_id in read.ids for read in asked.read)
    for at, read in enumerate(asked.read):
        lead = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        row = [*lead, *read.ids.tolist()]
        losses = cross_entropy(plain_logits(folder, row), torch.tensor(row[1:]), reduction="none")
        text = torch.tensor(row[1:]) != tokenizer.eot_id  # it is context, and no target
        assert cell.nats[at] == pytest.approx(float(losses[text].sum()), rel=1e-5)
        assert cell.tokens[at] == int(text.sum())
        assert cell.bytes[at] == sizes[torch.tensor(row[1:])[text].numpy()].sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drift_equals_kl_div_on_full_logits(models: Path, dtype: str) -> None:
    suite = suite_of("one")
    cells = [
        *suite.cells(opened(models / "one", dtype=dtype).load()),
        *suite.cells(opened(models / "two", dtype=dtype).load()),
    ]
    tokenizer = Tokenizer.load(str(models / "one"))
    asked = Windows(TEXT, 64, 5, 0, tokenizer)
    assert cells[0].drift == (0.0,) * 5
    assert cells[0].positions == cells[1].positions == (63,) * 5
    assert cells[1].drift is not None
    for at, read in enumerate(asked.read):
        row = read.ids.tolist()
        one, two = (
            plain_logits(models / name, row)[:, : tokenizer.vocab_size].log_softmax(-1)
            for name in ("one", "two")
        )
        expected = kl_div(two, one, log_target=True, reduction="none").sum(-1)[asked.positions[at]]
        within = 1e-5 if dtype == "float32" else 0.1
        assert cells[1].drift[at] == pytest.approx(float(expected.sum()), rel=within)
    assert max(cells[1].drift) > 60  # far from nothing


def test_only_ids_of_the_tokenizer_count_in_drift(models: Path, tmp_path: Path) -> None:
    """A model's outputs are often padded to a round number; what is there says nothing."""
    model = AutoModelForCausalLM.from_pretrained(models / "two")
    rows, ids = model.lm_head.weight.shape[0], Tokenizer.load(str(models / "two")).vocab_size
    assert rows > ids
    model.lm_head.weight.data[ids:] = 3.0
    model.save_pretrained(tmp_path / "padded")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "padded" / file).write_bytes((models / "two" / file).read_bytes())
    suite = suite_of("one")
    measured(suite, models / "one")
    plain, padded = (measured(suite, path) for path in (models / "two", tmp_path / "padded"))
    assert padded.drift == pytest.approx(plain.drift)
    assert padded.nats != plain.nats


def test_words_of_a_real_model_are_right_where_transformers_says_so() -> None:
    """Word by word: spans from a regular expression, tokens from `tokenizers`' own offsets."""
    folder = fetch("smollm2")
    suite = suite_of("real", tokens=96, windows=4, text=Text([ENGLISH], "made up", ""))
    cell = measured(suite, folder, "real")
    library = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.load(str(folder))
    for at, read in enumerate(Windows(Text([ENGLISH], "", ""), 96, 4, 0, tokenizer).read):
        text = library.decode(read.ids)
        whole = library(text, return_offsets_mapping=True, add_special_tokens=False)
        assert whole["input_ids"] == read.ids.tolist()
        with torch.no_grad():
            choices = model(torch.tensor([whole["input_ids"]])).logits[0].argmax(-1).tolist()
        right, words = 0, 0
        for match in regex.finditer(r"(?<= )\p{L}{4,}(?=\P{L})", text):
            if match.start() * 2 < len(text):
                continue
            tokens = [
                index
                for index, (start, stop) in enumerate(whole["offset_mapping"])
                if start < match.end() and match.start() < stop
            ]
            words += 1
            right += all(choices[token - 1] == whole["input_ids"][token] for token in tokens)
        assert (cell.words[at], cell.right[at]) == (words, right)
    assert sum(cell.words) > 40
    assert 0 < sum(cell.right) < sum(cell.words)


ENGLISH = (
    "The museum opens at nine in the morning and closes at five in the afternoon. Visitors can "
    "buy tickets at the entrance or on the website of the museum. Children under the age of twelve "
    "do not pay, and students with a valid card get a discount. Please do not touch the paintings, "
    "and leave large bags in the wardrobe on the ground floor. There is a small restaurant beside "
    "the garden, where you can have lunch and a cup of coffee. On the first Sunday of every month "
    "there is a guided tour for families. The tour takes about an hour and ends in the workshop, "
    "where the children can paint something of their own and take it home. "
) * 3


# The pure parts


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    size=st.integers(1, 60),
    count=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_windows_are_inside_apart_and_spread(
    sizes: list[int], size: int, count: int, seed: int
) -> None:
    picked = pick_windows(sizes, size, count, seed)
    there = sum(tokens // size for tokens in sizes)
    assert len(picked) == min(count, there)
    assert picked == pick_windows(sizes, size, count, seed)
    for stream, first in picked:
        assert 0 <= first <= sizes[stream] - size
    for one, other in itertools.pairwise(picked):
        assert one[0] < other[0] or one[1] + size <= other[1]
    before = np.cumsum([0, *(tokens // size for tokens in sizes)])
    for index, (stream, first) in enumerate(picked):  # one in every part of the text
        slot = before[stream] + first // size
        assert index * there // len(picked) <= slot < (index + 1) * there // len(picked)


def test_another_seed_is_another_sample() -> None:
    assert len({tuple(pick_windows([100_000], 50, 20, seed)) for seed in range(5)}) == 5


@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=40), most=st.integers(1, 600))
def test_drift_is_measured_at_few_positions_spread_over_the_windows(
    sizes: list[int], most: int
) -> None:
    found = drift_positions(sizes, most)
    assert sum(map(len, found)) <= most
    for positions, size in zip(found, sizes, strict=True):
        assert positions.dtype == np.int64
        assert len(positions) in (min(size, most // len(sizes)), min(size, -(-most // len(sizes))))
        assert all(0 <= position < size for position in positions)
        for index, position in enumerate(positions.tolist()):  # one in every part of the window
            assert index * size // len(positions) <= position <= (index + 1) * size / len(positions)
        assert len(set(positions.tolist())) == len(positions)


@given(
    text=st.text("abcd é的😀.", min_size=1, max_size=60),
    draw=st.randoms(use_true_random=False),
)
def test_a_window_is_what_is_predicted_of_its_bytes(
    tiny_tokenizer: Path, text: str, draw: Any
) -> None:
    """With tokens that cut characters, and any first choices: word by word."""
    tokenizer = tokenizer_of(tiny_tokenizer)
    ids = tokenizer.encode([text])[0]
    read = spelled_as_is(ids, tokenizer)
    right = [draw.random() < 0.7 for _ in ids[1:]]
    nats = np.array([draw.random() for _ in ids[1:]])
    words = [
        [len(text[: match.start()].encode()), len(text[: match.end()].encode())]
        for match in regex.finditer(r"(?<= )\p{L}{4,}(?=\P{L})", text)
    ]
    reading = SimpleNamespace(nats=nats, right=np.array(right, bool), log_probs=[])
    found = outcome(read, np.array(words, np.int64).reshape(-1, 2), reading, None)
    edges, flags = read.edges.tolist(), [False, *right]
    expected = sum(
        all(
            flag
            for flag, (first, last) in zip(flags, itertools.pairwise(edges), strict=True)
            if first < stop and start < last
        )
        for start, stop in words
    )
    assert (found.words, found.right) == (len(words), expected)
    assert found.nats == pytest.approx(nats.sum())
    assert found.bytes == len(text.encode()) - edges[1]
    assert (found.context, found.tokens) == (len(ids), len(ids) - 1)


def test_kl_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn((40, 300), generator=generator).log_softmax(-1) for _ in range(2))
    expected = float(kl_div(two, one, log_target=True, reduction="sum"))
    assert kl_divergence(one, two) == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(one, one) == 0.0


def test_rows_of_several_lengths_share_a_pass(models: Path) -> None:
    model = loaded(models / "one").model
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 900, size) for size in (30, 7, 19)]
    positions = [np.array([0, 28]), np.array([3]), np.array([], np.int64)]
    together = read_rows(model, "cpu", rows, positions, 1000)
    for row, wanted, reading in zip(rows, positions, together, strict=True):
        (alone,) = read_rows(model, "cpu", [row], [wanted], 1000)
        assert len(reading.nats) == len(reading.right) == len(row) - 1
        assert reading.nats == pytest.approx(alone.nats, rel=1e-4)
        assert np.array_equal(reading.right, alone.right)
        assert reading.log_probs.dtype == torch.float32
        assert reading.log_probs.shape == (len(wanted), 1000)
        assert torch.allclose(reading.log_probs, alone.log_probs, atol=1e-4)


# Several models


def test_another_tokenizer_is_asked_for_the_same_words_of_the_same_text(
    models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    save_model(models / "one", folder, 3)
    for file in fetch("smollm2").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(Tokenizer.load(str(folder)).vocab_size)
    model.save_pretrained(folder)
    suite = suite_of("one")
    base, other = measured(suite, models / "one"), measured(suite, folder)
    assert other.windows == base.windows
    assert other.words == base.words
    assert sum(other.words) > 10
    assert other.drift is None
    assert other.positions == (0,) * 5
    own, asked = (
        Tokenizer.load(str(folder)),
        Windows(TEXT, 64, 5, 0, loaded(models / "one").tokenizer),
    )
    for at, read in asked.of(own).items():
        text = spell(read.ids[~own.special[read.ids]], own.token_bytes)
        first = len(spell(read.ids[:1], own.token_bytes))
        assert other.bytes[at] == len(text) - first
        reference = asked.read[at]
        assert text in spell(
            reference.ids[~asked.tokenizer.special[reference.ids]], asked.tokenizer.token_bytes
        )


def test_predictions_of_other_tokens_are_not_compared(models: Path, tmp_path: Path) -> None:
    """The same vocabulary with a start of text has one prediction more."""
    folder = tmp_path / "started"
    save_model(models / "one", folder, 3)
    reads = tokenizers.Tokenizer.from_file(str(models / "one" / "tokenizer.json"))
    start = "<|im_start|>"
    reads.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, reads.token_to_id(start))]
    )
    reads.save(str(folder / "tokenizer.json"))
    suite = suite_of("one")
    base, other = measured(suite, models / "one"), measured(suite, folder)
    assert tokenizer_of(folder).fingerprint == tokenizer_of(models / "one").fingerprint
    assert (base.words, base.windows) == (other.words, other.windows)
    assert other.tokens == tuple(count + 1 for count in base.tokens)
    assert base.drift is not None
    assert other.drift is None


def test_a_model_is_measured_alike_whatever_is_beside_it(models: Path) -> None:
    suite = suite_of("one")
    found = [measured(suite, models / name) for name in ("one", "two", "bos")]
    again = suite_of("one")
    measured(again, models / "one")
    assert measured(again, models / "bos") == found[2]
    assert measured(again, models / "two") == found[1]
    assert measured(suite_of("two"), models / "two").nats == found[1].nats
    twin = measured(suite, models / "one", "twin")
    assert twin.drift == (0.0,) * 5
    assert twin.nats == found[0].nats


def test_the_base_comes_first_and_is_what_others_are_compared_with(
    models: Path, tmp_path: Path
) -> None:
    names = [f"{name}={models / name}" for name in ("bos", "two", "one")]
    asked: dict[str, Any] = {"suites": ["short"], "lengths": [64, 128], "device": "cpu"}
    report = evaluate(names, base="one", windows=4, out=tmp_path, **asked)
    assert [model.name for model in report.models] == ["one", "bos", "two"]
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["settings"]["base"] == "one"
    assert written["settings"]["short_tokens"] == 64
    one, bos, two = written["short"]["cells"]
    assert (one["kl"], one["nats_per_byte_less_base"], one["cloze_of_base"]) == (
        [0] * 3,
        None,
        None,
    )
    assert bos["kl"] is bos["window_kl"] is None
    less = bos["nats_per_byte_less_base"][0]
    assert less == pytest.approx(bos["nats_per_byte"][0] - one["nats_per_byte"][0], abs=2e-6)
    assert two["kl"][0] == pytest.approx(
        sum(two["window_kl"]) / sum(two["window_positions"]), rel=1e-5
    )
    for cell in (one, bos, two):
        per_token = sum(cell["window_nats"]) / sum(cell["window_tokens"])
        assert cell["nats_per_token"][0] == pytest.approx(per_token, abs=1e-6)
        assert cell["perplexity"][0] == pytest.approx(np.exp(per_token), rel=1e-5)
        assert cell["cloze"][0] == pytest.approx(
            sum(cell["window_right"]) / sum(cell["window_words"])
        )
        assert len(cell["window_nats"]) == 4
    assert report.models[0].tokens == 4 * 64
    with pytest.raises(LongRecipeError, match="--base three is none of the models") as problem:
        evaluate(names, base="three", out=tmp_path)
    assert "one, bos, two" not in str(problem.value)  # in the order in which they were written
    assert "bos, two, one" in str(problem.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"short_tokens": 7}, "short windows of 7 tokens"),
        ({"short_tokens": 5000}, "8 to 4096 with --short-tokens"),
        ({"text": Path("tiny.txt")}, "fewer than the 64 of a short window"),
    ],
)
def test_windows_that_cannot_be_read_are_one_line(
    models: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    (tmp_path / "tiny.txt").write_text("too little text\n")
    if "text" in changed:
        changed["text"] = tmp_path / changed["text"]
    asked = {"suites": ["short"], "lengths": [64], "out": tmp_path / "out", **changed}
    with pytest.raises(LongRecipeError, match=message) as problem:
        evaluate([str(models / "one")], **asked)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "out").exists()


def test_text_without_words_has_no_cloze(models: Path, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1 22 333. " * 200)
    evaluate(
        [str(models / name) for name in ("one", "two")],
        suites=["short"],
        text=tmp_path / "numbers.txt",
        lengths=[64],
        device="cpu",
        out=tmp_path,
    )
    for cell in json.loads((tmp_path / "eval.json").read_text())["short"]["cells"]:
        assert cell["cloze"] is cell["cloze_of_base"] is None
        assert cell["words"] == 0
    assert (tmp_path / "short.png").exists()
