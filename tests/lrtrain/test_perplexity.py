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
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluate.perplexity import (
    PerplexityCell,
    Span,
    measure,
    span_nats,
    stride_for,
    target_spans,
    window,
)
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
    labels = ids.clone()
    labels[:, :-stride] = -100
    with torch.no_grad():
        losses = [model(ids[row : row + 1], labels=labels[row : row + 1]).loss for row in range(3)]
    expected = [float(loss) * stride for loss in losses]
    assert span_nats(model, ids, stride) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_pays_log_vocabulary() -> None:
    def blank(input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        return SimpleNamespace(logits=torch.zeros(len(input_ids), logits_to_keep, 50))

    found = span_nats(blank, torch.randint(0, 50, (2, 20)), 7)
    assert found == pytest.approx([7 * np.log(50)] * 2, rel=1e-6)


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    longest=st.integers(2, 200),
    stride=st.integers(1, 100),
    count=st.integers(1, 40),
    bos=st.booleans(),
)
def test_spans_have_room_and_do_not_overlap(
    sizes: list[int], longest: int, stride: int, count: int, bos: bool
) -> None:
    stride = min(stride, longest // 2)
    if max(sizes) < longest - bos:
        with pytest.raises(LongRecipeError, match="fewer than the"):
            target_spans(sizes, longest, stride, count, bos=bos, where="x")
        return
    spans = target_spans(sizes, longest, stride, count, bos=bos, where="x")
    assert 1 <= len(spans) <= count
    for span in spans:
        assert longest - bos <= span.stop <= sizes[span.stream]
    for one, other in itertools.pairwise(spans):
        assert one.stream < other.stream or one.stop + stride <= other.stop


def test_asking_for_enough_spans_slides_over_the_whole_text() -> None:
    spans = target_spans([1000], 100, 50, 10_000, bos=False, where="x")
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
    tokenizer = Tokenizer.load(str(tiny_bos_tokenizer))
    stream = tokenizer.encode(["".join(generated_text(30, seed=9))])[0]
    spans = [Span(0, stop) for stop in range(200, 521, 32)]
    steps = list(measure(model, "cpu", "m", [stream], spans, 64, 32, tokenizer))
    assert sum(count for count, _ in steps) == len(spans)
    cell = steps[-1][1]
    assert isinstance(cell, PerplexityCell)

    double = AutoModelForCausalLM.from_config(model.config, dtype=torch.float64).eval()
    double.load_state_dict(model.state_dict())
    for index, span in enumerate(spans):
        ids = [tokenizer.bos_id, *stream[span.stop - 63 : span.stop].tolist()]
        with torch.no_grad():
            scores = double(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats = -sum(float(scores[at - 1, ids[at]]) for at in range(32, 64))
        assert cell.nats[index] == pytest.approx(nats, rel=1e-5)
        text = b"".join(
            bytes(tokenizer.token_bytes[0][slice(*tokenizer.token_bytes[1][[id_, id_ + 1]])])
            for id_ in stream[span.stop - 32 : span.stop]
        )
        assert cell.bytes[index] == len(text)
        assert cell.tokens[index] == 32
