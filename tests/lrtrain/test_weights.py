"""Weights are the papers' formulas; the chunked loss with them is torch's, weighted."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrdata.errors import LongRecipeError
from lrdata.shards import Row
from lrtrain.cli import run
from lrtrain.loader import to_batch
from lrtrain.loss import training_loss
from lrtrain.model import load_model
from lrtrain.rope import Rope
from lrtrain.weights import NEED_LSD, WEIGHTS, impact, longce, none, ukp
from tests.lrtrain.tiny_models import VOCABULARY, document_mask, reference_model, save_tiny

TARGET, NEW_THETA = 512, 400_000.0


def _row(lsd: np.ndarray | None, **columns: np.ndarray) -> Row:
    """A row of as many tokens as there are lsd (or tokens); what weights do not read is made up."""
    tokens = len(columns["input_ids"] if lsd is None else lsd)
    given: dict[str, Any] = {
        "input_ids": np.zeros(tokens, np.int32),
        "position_ids": np.arange(tokens, dtype=np.int32),
        "seq_lengths": np.array([tokens], np.int32),
        "impact_mask": np.zeros(tokens, bool),
        "loss_mask": np.ones(tokens, bool),
        **columns,
    }
    empty32, empty64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return Row(
        **given,
        segment_starts=empty32,
        segment_lengths=empty32,
        doc_ids=[],
        doc_offsets=empty64,
        doc_lengths=empty32,
        sample_id="row",
        source="",
        kind="extend",
        window_tokens=tokens,
        target_len=TARGET,
        lsd=lsd,
    )


# The formulas once more, a token at a time in float64


def _longce_of(lsd: list[float]) -> list[float]:
    weights = []
    for value in lsd:
        if math.isnan(value):
            weights.append(1.0)
        else:
            weights.append(5.0 if value > math.log(5) else math.exp(value))
    return weights


def _ukp_of(lsd: list[float]) -> list[float]:
    gains = [min(abs(value), 5.0) for value in lsd if not math.isnan(value)]
    weights = []
    for value in lsd:
        if math.isnan(value) or not sum(gains):
            weights.append(1.0)
        else:
            mean = sum(gains) / len(gains)
            weights.append(0.75 + 0.25 * min(abs(value), 5.0) / mean)
    return weights


EXPECTED: dict[str, Callable[[Row], list[float]]] = {
    "none": lambda row: [1.0] * len(row.input_ids),
    "impact": lambda row: [2.0 if hit else 1.0 for hit in row.impact_mask],
    "longce": lambda row: _longce_of([] if row.lsd is None else row.lsd.tolist()),
    "ukp": lambda row: _ukp_of([] if row.lsd is None else row.lsd.tolist()),
}

# Any float16, and more often what is measured; zeros are what two equal contexts give.
GAINS = arrays(
    np.float16,
    st.integers(1, 60),
    elements=st.one_of(
        st.floats(width=16), st.floats(-8, 8, width=16), st.just(math.nan), st.just(0.0)
    ),
)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
@given(lsd=GAINS, seed=st.integers(0, 100))
def test_weights_are_the_formula_a_token_at_a_time(name: str, lsd: np.ndarray, seed: int) -> None:
    row = _row(lsd, impact_mask=np.random.default_rng(seed).random(len(lsd)) < 0.3)
    before = lsd.copy()
    weights = WEIGHTS[name](row)
    assert weights.dtype == np.float32
    assert weights.shape == lsd.shape
    np.testing.assert_allclose(weights, EXPECTED[name](row), rtol=1e-5)
    assert np.array_equal(lsd, before, equal_nan=True)


@given(lsd=GAINS)
def test_weights_are_bounded_and_what_is_not_measured_weighs_one(lsd: np.ndarray) -> None:
    row = _row(lsd)
    measured = ~np.isnan(lsd)
    for weighting in (longce, ukp):
        weights = weighting(row)
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
        assert (weights[~measured] == 1).all()
    assert longce(row).max() <= 5
    assert ukp(row).min() >= 0.75
    if measured.any():
        assert ukp(row)[measured].mean(dtype=np.float64) == pytest.approx(1, rel=1e-6)


@given(lsd=GAINS, scale=st.sampled_from([0.25, 0.5, 2.0]))
def test_ukp_weighs_by_size_alone_and_longce_by_sign(lsd: np.ndarray, scale: float) -> None:
    """Gains that are all a half as large weigh the same; harm weighs as much as gain."""
    small = np.clip(lsd, -2, 2).astype(np.float32)
    weights = ukp(_row(small))
    np.testing.assert_allclose(ukp(_row(small * np.float32(scale))), weights, rtol=1e-6)
    assert np.array_equal(ukp(_row(-small)), weights)
    both = longce(_row(small / 2)) * longce(_row(-small / 2))  # exp(a) exp(-a)
    np.testing.assert_allclose(both, 1, rtol=1e-6)


def test_no_gain_is_plain_cross_entropy() -> None:
    for lsd in (np.zeros(9, np.float16), np.full(9, np.nan, np.float16)):
        for name in WEIGHTS:
            assert (WEIGHTS[name](_row(lsd)) == 1).all()


@pytest.mark.parametrize("name", NEED_LSD)
def test_a_row_without_scores_is_refused_by_name(name: str) -> None:
    row = _row(None, input_ids=np.zeros(4, np.int32))
    with pytest.raises(LongRecipeError, match=r"row row has no lsd; build .*--impact scores:DIR"):
        WEIGHTS[name](row)
    assert (none(row) == 1).all()
    assert (impact(row) == 1).all()


def test_the_command_offers_them_all() -> None:
    option = next(option for option in run.params if option.name == "token_weights")
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(WEIGHTS)


# A training step with them


def _training_row(seq_lengths: list[int], seed: int) -> Row:
    """Random tokens at positions with gaps; some of each: not measured, impactful, not counted."""
    draw, tokens = np.random.default_rng(seed), sum(seq_lengths)
    positions = [np.sort(draw.choice(TARGET, length, replace=False)) for length in seq_lengths]
    lsd = draw.normal(0, 2, tokens).astype(np.float16)
    lsd[draw.random(tokens) < 0.3] = np.nan
    return _row(
        lsd,
        input_ids=draw.integers(0, VOCABULARY, tokens).astype(np.int32),
        position_ids=np.concatenate(positions).astype(np.int32),
        seq_lengths=np.array(seq_lengths, np.int32),
        impact_mask=draw.random(tokens) < 0.3,
        loss_mask=draw.random(tokens) < 0.8,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


ROWS = [_training_row([50], seed=1), _training_row([12, 1, 7, 30], seed=2)]


def _reference_step(folder: str, name: str) -> tuple[float, dict[str, torch.Tensor]]:
    """sum(w * CE) / sum(w) and gradients in float64: full logits, transformers' eager attention."""
    rope = {"rope_type": "default", "rope_theta": NEW_THETA}
    model = reference_model(folder, rope, TARGET)
    total: torch.Tensor | float = 0.0
    weight = 0.0
    for row in ROWS:
        ids, positions = (
            torch.from_numpy(column.astype(np.int64))[None]
            for column in (row.input_ids, row.position_ids)
        )
        lengths = row.seq_lengths.tolist()
        logits = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=document_mask(lengths),
            use_cache=False,
        ).logits[0]
        weights = torch.tensor(EXPECTED[name](row), dtype=torch.float64)
        weights *= torch.from_numpy(row.loss_mask)
        for start in np.cumsum([0, *lengths[:-1]]):
            weights[start] = 0
        losses = F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        total = total + (losses * weights[1:]).sum()
        weight += float(weights.sum())
    loss = total / weight
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return loss.item(), {key: value.grad for key, value in model.named_parameters()}


@pytest.mark.parametrize("joined", [True, False], ids=["one batch", "two batches"])
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_a_weighted_step_equals_the_float64_reference(folder: str, name: str, joined: bool) -> None:
    expected, gradients = _reference_step(folder, name)
    model = load_model(
        folder, dtype=torch.float32, rope=Rope("theta", NEW_THETA), target_len=TARGET
    ).train()
    groups = [ROWS] if joined else [[row] for row in ROWS]
    batches = [to_batch(group, WEIGHTS[name]) for group in groups]
    weight = sum(float(batch.weights.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = training_loss(
            model,
            batch.input_ids,
            batch.position_ids,
            batch.seq_lengths,
            batch.weights,
            chunk_tokens=11,
        )
        (loss / weight).backward()
        total += float(loss.detach()) / weight
        assert batch.weights.grad is None
    assert total == pytest.approx(expected, rel=1e-5)
    for key, parameter in model.named_parameters():
        assert gradients[key].abs().max() > 0
        error = (parameter.grad.double() - gradients[key]).abs().max()
        assert error <= 1e-4 * gradients[key].abs().max(), key


def test_each_weighting_is_another_loss(folder: str) -> None:
    """So that the test above tells them apart."""
    losses = {_reference_step(folder, name)[0] for name in WEIGHTS}
    assert len(losses) == len(WEIGHTS)


def test_a_long_row_makes_no_object_for_each_token() -> None:
    """A float object is 24 bytes and the reference to it 8."""
    lsd = np.random.default_rng(0).normal(0, 2, 1_000_000).astype(np.float16)
    row = _row(lsd)
    tracemalloc.start()
    for weighting in WEIGHTS.values():
        weighting(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * len(lsd)
