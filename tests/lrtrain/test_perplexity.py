"""Perplexity equals a plain full computation, on the same targets at every context length."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import spell
from lrtrain.evaluation.models import LoadedModel
from lrtrain.evaluation.perplexity import (
    PerplexityCell,
    PerplexitySuite,
    Span,
    measure,
    span_nats,
    stride_for,
    target_spans,
    window,
)
from lrtrain.evaluation.spelling import spelled_as_is
from lrtrain.evaluation.text import Text
from lrtrain.model_spec import ModelSpec
from tests.conftest import generated_text


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("length", "stride"), [(12, 6), (40, 1), (600, 300)])
def test_nats_equal_the_loss_of_transformers(
    model: LlamaForCausalLM, length: int, stride: int
) -> None:
    ids = torch.randint(0, 1100, (3, length))
    text = torch.ones((3, stride), dtype=torch.bool)
    text[0, 1::3] = text[1, 1:] = False
    labels = ids.clone()
    labels[:, :-stride] = -100
    labels[:, -stride:][~text] = -100
    with torch.no_grad():
        losses = [model(ids[row : row + 1], labels=labels[row : row + 1]).loss for row in range(3)]
    expected = [float(loss) * int(row.sum()) for loss, row in zip(losses, text, strict=True)]
    assert span_nats(model, ids, text) == pytest.approx(expected, rel=1e-5)


def blank(input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
    """A model that knows nothing: all of 1,000 tokens are as likely."""
    return SimpleNamespace(logits=torch.zeros(len(input_ids), logits_to_keep, 1000))


def test_a_model_that_knows_nothing_pays_log_vocabulary() -> None:
    text = torch.ones((2, 7), dtype=torch.bool)
    text[1, :3] = False
    found = span_nats(blank, torch.randint(0, 1000, (2, 20)), text)
    assert found == pytest.approx([7 * np.log(1000), 4 * np.log(1000)], rel=1e-6)


def test_only_text_is_counted(tiny_bos_tokenizer: Path) -> None:
    """Nats per byte are those of the documents: what ends them is neither predicted nor spelled."""
    tokenizer = Tokenizer.load(str(tiny_bos_tokenizer))
    text = Text([f"{number} is a number." for number in range(400)], "made up", "0" * 64)
    model: Any = blank
    loaded = LoadedModel(
        ModelSpec("m", "m"), model, tokenizer, torch.device("cpu"), 512, None, "default", 0
    )
    (cell,) = PerplexitySuite(text, [64], 1000).cells(loaded)
    (stream,) = text.streams(tokenizer)
    read = stream[63 - 32 : 63 + 32 * (len(cell.nats) - 1)]
    kept = read[read != tokenizer.eot_id]
    assert len(read) - len(kept) > 200
    assert sum(cell.tokens) == len(kept)
    assert sum(cell.bytes) == len(spell(kept, tokenizer.token_bytes))
    assert sum(cell.nats) == pytest.approx(len(kept) * np.log(1000), rel=1e-6)


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    special=st.sets(st.integers(0, 299)) | st.just(set(range(50, 250))),
    longest=st.integers(2, 200),
    stride=st.integers(1, 100),
    count=st.integers(1, 40),
    bos=st.booleans(),
)
def test_spans_have_room_and_do_not_overlap(
    sizes: list[int], special: set[int], longest: int, stride: int, count: int, bos: bool
) -> None:
    stride = min(stride, longest // 2)
    text = [np.array([at not in special for at in range(size)], bool) for size in sizes]
    there = sum(
        row[stop - stride : stop].any()
        for row in text
        for stop in range(longest - bos, len(row) + 1, stride)
    )
    if not there:
        with pytest.raises(LongRecipeError, match="fewer than the"):
            target_spans(text, longest, stride, count, bos=bos, where="x")
        return
    spans = target_spans(text, longest, stride, count, bos=bos, where="x")
    assert len(spans) == min(count, there)
    for span in spans:
        assert longest - bos <= span.stop <= sizes[span.stream]
        assert text[span.stream][span.stop - stride : span.stop].any()
    for one, other in itertools.pairwise(spans):
        assert one.stream < other.stream or one.stop + stride <= other.stop


def test_asking_for_enough_spans_slides_over_the_whole_text() -> None:
    text = [np.ones(1000, bool)]
    spans = target_spans(text, 100, 50, 10_000, bos=False, where="x")
    assert [span.stop for span in spans] == list(range(100, 1001, 50))


@given(
    stop=st.integers(100, 150),
    lengths=st.tuples(st.integers(20, 100), st.integers(20, 100)),
    bos_id=st.sampled_from([None, 7]),
)
def test_every_length_has_the_same_targets(
    stop: int, lengths: tuple[int, int], bos_id: int | None
) -> None:
    stream = np.arange(1000, 1150, dtype=np.int32)
    stride = stride_for(list(lengths))
    windows = [window(stream, stop, length, bos_id) for length in lengths]
    for ids, length in zip(windows, lengths, strict=True):
        assert ids.shape == (length,)
        assert ids.dtype == np.int64
        assert np.array_equal(ids[-stride:], stream[stop - stride : stop])
        assert bos_id is None or ids[0] == bos_id


def test_a_cell_equals_a_plain_loop(model: LlamaForCausalLM, tiny_bos_tokenizer: Path) -> None:
    """Of documents with the end of text between them, which is context but no target."""
    tokenizer = Tokenizer.load(str(tiny_bos_tokenizer))
    text = Text(list(generated_text(30, seed=9)), "made up", "0" * 64)
    (stream,) = text.streams(tokenizer)
    spans = [Span(0, stop) for stop in range(200, 521, 32)]
    read = [spelled_as_is(stream, tokenizer)]
    steps = list(measure(model, "cpu", "m", read, spans, 64, 32, tokenizer.bos_id))
    assert sum(count for count, _ in steps) == len(spans)
    cell = steps[-1][1]
    assert isinstance(cell, PerplexityCell)

    double = AutoModelForCausalLM.from_config(model.config, dtype=torch.float64).eval()
    double.load_state_dict(model.state_dict())
    for index, span in enumerate(spans):
        ids = [tokenizer.bos_id, *stream[span.stop - 63 : span.stop].tolist()]
        with torch.no_grad():
            losses = cross_entropy(
                double(torch.tensor([ids])).logits[0, 31:-1],
                torch.tensor(ids[32:]),
                reduction="none",
            )
        targets = [at for at, id_ in enumerate(ids[32:]) if id_ != tokenizer.eot_id]
        assert cell.nats[index] == pytest.approx(float(losses[targets].sum()), rel=1e-5)
        kept = np.array(ids[32:])[targets]
        assert cell.bytes[index] == len(spell(kept, tokenizer.token_bytes))
        assert cell.tokens[index] == len(targets)
    assert min(cell.tokens) < max(cell.tokens) == 32
