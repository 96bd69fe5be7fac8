"""A step's loss and gradient are those of a dense float64 reference, however its rows are split."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lrdata.shards import Row
from lrtrain.loader import Batch, to_batch
from lrtrain.model import load_model
from lrtrain.optim import AdamW, Storage
from lrtrain.step import LossOptions, Stopped, accumulate, batch_loss
from lrtrain.weights import longce
from tests.lrtrain.tiny_models import (
    THETA,
    VOCABULARY,
    WINDOW,
    document_mask,
    reference_model,
    save_tiny,
)

ROWS = ([9], [4, 5], [16], [1, 7], [12])
"""The documents of five rows."""
UNCOUNTED = 3
"""The row whose tokens are all masked."""
OPTIONS = LossOptions(torch.device("cpu"), chunk_tokens=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


def a_row(seq_lengths: Sequence[int], seed: int) -> Row:
    """Random tokens, positions with gaps, masks; every token has a different lsd."""
    draw = np.random.default_rng(seed)
    tokens = sum(seq_lengths)
    none = np.zeros(0, np.int32)
    positions = [np.sort(draw.choice(WINDOW, length, replace=False)) for length in seq_lengths]
    loss_mask = draw.random(tokens) < 0.7
    loss_mask[-1] = True
    return Row(
        input_ids=draw.integers(0, VOCABULARY, tokens, dtype=np.int32),
        position_ids=np.concatenate(positions).astype(np.int32),
        seq_lengths=np.array(seq_lengths, np.int32),
        impact_mask=draw.random(tokens) < 0.5,
        loss_mask=loss_mask & (seed != UNCOUNTED),
        segment_starts=none,
        segment_lengths=none,
        doc_ids=[],
        doc_offsets=none.astype(np.int64),
        doc_lengths=none,
        sample_id=f"row {seed}",
        source="made up",
        kind="extend",
        window_tokens=WINDOW,
        target_len=WINDOW,
        lsd=draw.normal(0, 2, tokens).astype(np.float16),
    )


def the_rows() -> list[Row]:
    return [a_row(seq_lengths, seed) for seed, seq_lengths in enumerate(ROWS)]


def splits(rows: list[Row]) -> Iterator[list[list[Row]]]:
    """All the ways to cut rows into batches, from one batch to a batch a row."""
    for cuts in product([False, True], repeat=len(rows) - 1):
        groups = [[rows[0]]]
        for row, cut in zip(rows[1:], cuts, strict=True):
            if cut:
                groups.append([])
            groups[-1].append(row)
        yield groups


def dense(folder: str, rows: list[Row], weighted: Any, scale: float = 1.0) -> Any:
    """sum(w * CE) and sum(w) of rows one by one, and a model that holds the gradient of the former:
    transformers' own in float64, with its eager attention and a mask of all pairs."""
    rope = {"rope_type": "default", "rope_theta": THETA}
    model = reference_model(folder, rope, WINDOW)
    for layer in model.model.layers:
        layer.self_attn.scaling *= scale
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for row in rows:
        ids = torch.from_numpy(row.input_ids).long()
        weights = torch.from_numpy(weighted(row).astype(np.float64) * row.loss_mask)
        start = 0
        for length in row.seq_lengths:  # nothing precedes a document's first token
            weights[start] = 0
            start += length
        logits = model(
            input_ids=ids[None],
            position_ids=torch.from_numpy(row.position_ids).long()[None],
            attention_mask=document_mask(row.seq_lengths.tolist()),
            use_cache=False,
        ).logits[0]
        losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
        total = total + (losses * weights[1:]).sum()
        weight += float(weights.sum())
    total.backward()
    return total.detach(), weight, model


def evenly(row: Row) -> np.ndarray:
    return np.ones(len(row.input_ids), np.float32)


def impactful(row: Row) -> np.ndarray:
    """Three times as much for tokens that need context."""
    return np.where(row.impact_mask, 3.0, 1.0).astype(np.float32)


@pytest.mark.parametrize("weighted", [evenly, impactful, longce])
def test_any_split_of_the_rows_is_the_dense_reference(folder: str, weighted: Any) -> None:
    total, weight, reference = dense(folder, the_rows(), weighted)
    gradients = [p.grad / weight for p in reference.parameters()]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    model = load_model(folder, dtype=torch.float32).train()
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0)
    for groups in splits(the_rows()):
        model.zero_grad()
        batches = [to_batch(group, weighted) for group in groups]
        loss, found = accumulate(model, batches, optimizer, OPTIONS)
        assert loss.dtype == found.dtype == torch.float32
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(float(total) / weight, rel=1e-5)
        assert found.item() == pytest.approx(float(norm), rel=1e-4)
        for ours, exact in zip(optimizer.gradients(), gradients, strict=True):
            assert (ours - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_the_gradient_of_bf16_is_in_the_optimizers_buffers(folder: str) -> None:
    total, weight, reference = dense(folder, the_rows(), evenly)
    model = load_model(folder, dtype=torch.bfloat16).train()
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0)
    loss, norm = accumulate(model, [to_batch([row]) for row in the_rows()], optimizer, OPTIONS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(total) / weight, rel=2e-2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(gradient.dtype == torch.float32 for gradient in optimizer.gradients())
    exact = torch.cat([p.grad.flatten() / weight for p in reference.parameters()])
    ours = torch.cat([gradient.flatten() for gradient in optimizer.gradients()])
    assert norm.item() == pytest.approx(float(ours.norm()), rel=1e-5)
    assert F.cosine_similarity(ours.double(), exact, dim=0) > 0.99


def test_a_factor_on_all_weights_changes_nothing(folder: str) -> None:
    def learned(weighted: Any) -> list[torch.Tensor]:
        model = load_model(folder, dtype=torch.float32).train()
        optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0)
        batches = [to_batch([row], weighted) for row in the_rows()]
        return [*accumulate(model, batches, optimizer, OPTIONS), *optimizer.gradients()]

    for one, two in zip(learned(impactful), learned(lambda row: 4 * impactful(row)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_it_stops_between_two_micro_batches(folder: str) -> None:
    """Before the first as well; the parameters, the optimizer's state and what is drawn next are
    as they were."""
    batches = [to_batch([row]) for row in the_rows()]
    for after in range(len(batches) + 1):
        model = load_model(folder, dtype=torch.bfloat16).train()
        optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0, Storage(gradients="bf16"))
        before = {name: tensor.clone() for name, tensor in optimizer.state()}
        drawn = torch.get_rng_state()
        rows: list[int] = []
        model.model.register_forward_pre_hook(lambda *_, rows=rows: rows.append(len(rows)))
        if after == len(batches):
            accumulate(model, batches, optimizer, OPTIONS, lambda: False)
        else:
            with pytest.raises(Stopped):
                accumulate(
                    model, batches, optimizer, OPTIONS, lambda rows=rows, n=after: len(rows) == n
                )
        assert len(rows) == after
        assert torch.equal(torch.get_rng_state(), drawn) == (after < len(batches))
        state = dict(optimizer.state())
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("scale", [1.0, 0.75])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
def test_the_loss_of_a_batch_with_masks_is_dense(
    folder: str, chunk_tokens: int, scale: float
) -> None:
    model = load_model(folder, dtype=torch.float32)
    options = LossOptions(torch.device("cpu"), scale, chunk_tokens)
    for rows in (the_rows()[:1], the_rows()[1:3], the_rows()):
        batch = to_batch(rows, impactful)
        assert 0 < batch.weights.count_nonzero() < batch.tokens - 1
        with torch.no_grad():
            loss = batch_loss(model, batch, options)
        total, _, _ = dense(folder, rows, impactful, scale)
        assert loss.item() == pytest.approx(float(total), rel=1e-5)


def test_the_scale_of_attention_matters(folder: str) -> None:
    """The equality above is not blind."""
    model, batch = load_model(folder, dtype=torch.float32), to_batch(the_rows())
    with torch.no_grad():
        losses = [
            float(batch_loss(model, batch, replace(OPTIONS, attention_scale=scale)))
            for scale in (1.0, 0.75)
        ]
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


def test_a_batch_of_which_nothing_counts_has_no_loss(folder: str) -> None:
    model = load_model(folder, dtype=torch.float32)
    batch: Batch = to_batch([the_rows()[UNCOUNTED]])
    loss = batch_loss(model, batch, OPTIONS)
    loss.backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert not any(gradient.any() for gradient in gradients)


def test_nothing_is_learned_from_masked_tokens(folder: str) -> None:
    """Another token in a place whose loss is masked, last of its row, changes nothing."""
    model = load_model(folder, dtype=torch.float32)
    row = the_rows()[2]
    row.loss_mask[-1] = False
    other = replace(row, input_ids=row.input_ids.copy())
    other.input_ids[-1] = (row.input_ids[-1] + 1) % VOCABULARY
    with torch.no_grad():
        one, two = (batch_loss(model, to_batch([each]), OPTIONS) for each in (row, other))
    assert torch.equal(one, two)
