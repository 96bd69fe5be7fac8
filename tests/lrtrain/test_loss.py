"""The chunked loss is torch's cross-entropy, in value and gradients, with one chunk of logits."""

import gc
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lrdata.shards import Row
from lrtrain.loader import to_batch
from lrtrain.loss import (
    chunked_log_probs,
    chunked_weighted_cross_entropy,
    piece_loss,
    training_loss,
)


def _problem(
    tokens: int, width: int, vocabulary: int, zeros: float, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [N, D], weight [V, D], targets [N], weights [N]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) * 3
    weights[torch.rand(tokens, generator=generator) < zeros] = 0
    return hidden, weight, targets, weights


def _torch_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and gradients of the full computation in float64."""
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    losses = F.cross_entropy(exact_hidden @ exact_weight.T, targets, reduction="none")
    loss = (losses * weights.double()).sum()
    loss.backward()
    assert exact_hidden.grad is not None
    assert exact_weight.grad is not None
    return loss.detach(), exact_hidden.grad, exact_weight.grad


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm (0 for two zeros)."""
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12))


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 24),
    vocabulary=st.integers(1, 60),
    chunk_tokens=st.integers(1, 50),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    factor=st.sampled_from([1.0, 0.01, -2.0]),
)
def test_equals_torch_in_value_and_gradients(
    tokens: int, width: int, vocabulary: int, chunk_tokens: int, zeros: float, factor: float
) -> None:
    problem = _problem(tokens, width, vocabulary, zeros, torch.float32)
    loss = chunked_weighted_cross_entropy(*problem, chunk_tokens=chunk_tokens)
    (factor * loss).backward()
    expected, grad_hidden, grad_weight = _torch_loss(*problem)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-4)
    assert problem[0].grad is not None
    assert problem[1].grad is not None
    torch.testing.assert_close(problem[0].grad.double(), factor * grad_hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(problem[1].grad.double(), factor * grad_weight, rtol=1e-4, atol=1e-4)
    assert problem[3].grad is None


@pytest.mark.parametrize("chunk_tokens", [7, 64, 1000])
def test_bf16_is_as_near_as_torchs_full_computation(chunk_tokens: int) -> None:
    problem = _problem(300, 64, 500, 0.3, torch.bfloat16)
    loss = chunked_weighted_cross_entropy(*problem, chunk_tokens=chunk_tokens)
    loss.backward()
    expected, *exact = _torch_loss(*problem)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)

    hidden, weight = (tensor.detach().clone().requires_grad_() for tensor in problem[:2])
    losses = F.cross_entropy((hidden @ weight.T).float(), problem[2], reduction="none")
    (losses * problem[3]).sum().backward()
    for ours, theirs, right in zip(problem[:2], (hidden, weight), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.bfloat16
        assert _relative_error(ours.grad, right) < 1.1 * _relative_error(theirs.grad, right)


def test_logits_far_from_zero_stay_finite() -> None:
    """exp() of the logits themselves would overflow."""
    hidden, weight, targets, weights = _problem(20, 8, 30, 0.0, torch.float32)
    large = (hidden.detach() * 300).requires_grad_()
    loss = chunked_weighted_cross_entropy(large, weight, targets, weights, chunk_tokens=6)
    loss.backward()
    expected, grad_hidden, grad_weight = _torch_loss(large, weight, targets, weights)
    assert expected > 1e4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert large.grad is not None
    assert weight.grad is not None
    assert _relative_error(large.grad, grad_hidden) < 1e-4
    assert _relative_error(weight.grad, grad_weight) < 1e-4


def test_the_gradient_of_the_embedding_does_not_lose_small_chunks_in_bf16() -> None:
    """4,000 chunks of one token: a sum in bf16 stops growing after some hundred."""
    tokens = 4_000
    hidden = torch.ones(tokens, 4, dtype=torch.bfloat16)
    weight = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
    targets, weights = torch.zeros(tokens, dtype=torch.int64), torch.ones(tokens)
    chunked_weighted_cross_entropy(hidden, weight, targets, weights, chunk_tokens=1).backward()
    assert weight.grad is not None
    assert weight.grad[0, 0].item() == pytest.approx(-tokens * 7 / 8, rel=2**-8)


def test_targets_without_weight_change_nothing() -> None:
    hidden, weight, targets, weights = _problem(30, 8, 20, 0.5, torch.float32)
    counted = weights > 0
    loss = chunked_weighted_cross_entropy(hidden, weight, targets, weights, chunk_tokens=8)
    loss.backward()
    alone, *_ = _torch_loss(hidden[counted], weight, targets[counted], weights[counted])
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    assert hidden.grad is not None
    assert hidden.grad[~counted].eq(0).all()


@pytest.mark.parametrize("trained", ["hidden", "weight", "neither"])
def test_only_the_gradients_that_are_wanted(trained: str) -> None:
    problem = _problem(20, 8, 30, 0.2, torch.float32)
    problem[0].requires_grad_(trained == "hidden")
    problem[1].requires_grad_(trained == "weight")
    loss = chunked_weighted_cross_entropy(*problem, chunk_tokens=6)
    expected, grad_hidden, grad_weight = _torch_loss(*problem)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.requires_grad == (trained != "neither")
    if loss.requires_grad:
        loss.backward()
    for name, tensor, grad in zip(
        ("hidden", "weight"), problem[:2], (grad_hidden, grad_weight), strict=True
    ):
        if name == trained:
            assert tensor.grad is not None
            assert _relative_error(tensor.grad, grad) < 1e-5
        else:
            assert tensor.grad is None


class _LogitMemory(TorchDispatchMode):
    """Most elements of [.., V] tensors that were alive at once, after any operation.

    A tensor counts as logits when one of its sizes is V and it is not shaped like the output
    embedding; views count once, through the memory that they share.
    """

    def __init__(self, vocabulary: int, embedding: torch.Size) -> None:
        super().__init__()
        self.vocabulary, self.embedding = vocabulary, embedding
        self.bytes_at_peak = 0
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and self.is_logits(tensor):
                self._alive.append(weakref.ref(tensor))
        self.bytes_at_peak = max(self.bytes_at_peak, self.bytes_alive())
        return result

    def is_logits(self, tensor: torch.Tensor) -> bool:
        return self.vocabulary in tensor.shape and tensor.shape not in (
            self.embedding,
            self.embedding[::-1],
        )

    def bytes_alive(self) -> int:
        tensors = [tensor for reference in self._alive if (tensor := reference()) is not None]
        self._alive = [weakref.ref(tensor) for tensor in tensors]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())


TOKENS, WIDTH, VOCABULARY, CHUNK = 96, 8, 512, 12


def _logit_bytes(loss_of: Any, problem: tuple[torch.Tensor, ...]) -> tuple[int, int]:
    """Bytes of logits alive at the peak of forward and backward, and between the two."""
    gc.collect()
    with _LogitMemory(VOCABULARY, torch.Size([VOCABULARY, WIDTH])) as memory:
        loss = loss_of(*problem)
        between = memory.bytes_alive()
        loss.backward()
    return memory.bytes_at_peak, between


@pytest.mark.parametrize(
    ("dtype", "bytes_per_logit"), [(torch.float32, 4), (torch.bfloat16, 4 + 2)], ids=str
)
def test_never_more_than_one_chunk_of_logits_is_alive(
    dtype: torch.dtype, bytes_per_logit: int
) -> None:
    """In bf16 a chunk lives for a moment in both precisions."""
    problem = _problem(TOKENS, WIDTH, VOCABULARY, 0.0, dtype)
    loss_of = partial(chunked_weighted_cross_entropy, chunk_tokens=CHUNK)
    peak, between = _logit_bytes(loss_of, problem)
    assert 0 < peak <= CHUNK * VOCABULARY * bytes_per_logit
    assert between == 0


def test_the_measure_of_memory_sees_full_logits() -> None:
    """So the test above can fail."""
    problem = _problem(TOKENS, WIDTH, VOCABULARY, 0.0, torch.float32)

    def full(hidden: Any, weight: Any, targets: Any, weights: Any) -> torch.Tensor:
        return (F.cross_entropy(hidden @ weight.T, targets, reduction="none") * weights).sum()

    peak, between = _logit_bytes(full, problem)
    assert peak >= 2 * TOKENS * VOCABULARY * 4
    assert between >= TOKENS * VOCABULARY * 4


def test_nothing_with_a_row_for_each_target_and_vocabulary_is_saved_for_backward() -> None:
    saved: list[tuple[int, ...]] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    problem = _problem(TOKENS, WIDTH, VOCABULARY, 0.0, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        chunked_weighted_cross_entropy(*problem, chunk_tokens=CHUNK)
    assert {(TOKENS, WIDTH), (VOCABULARY, WIDTH)} >= {s for s in saved if len(s) == 2}
    assert saved


class _Bigrams(torch.nn.Module):
    """A causal model whose prediction after a token is a row of a table: [V, V] of logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(len(logits), logits.shape[1], bias=False)
        self.lm_head.weight = torch.nn.Parameter(logits.T.clone())
        self.seen: dict[str, Any] = {}

    def model(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        self.seen = arguments
        hidden = F.one_hot(input_ids, self.lm_head.in_features).float()
        return type("Output", (), {"last_hidden_state": hidden})


@settings(max_examples=40)
@given(ids=st.lists(st.integers(0, 6), min_size=2, max_size=12), data=st.data())
def test_a_weight_belongs_to_its_token_as_the_target(ids: list[int], data: st.DataObject) -> None:
    """Token i is predicted from token i - 1 and costs weights[i], whatever weights[0] is."""
    weights = data.draw(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=len(ids), max_size=len(ids))
    )
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    log_probability = table.double().log_softmax(-1)
    expected = -sum(
        weights[i] * float(log_probability[ids[i - 1], ids[i]]) for i in range(1, len(ids))
    )
    model = _Bigrams(table)
    row, positions = torch.tensor([ids]), torch.arange(len(ids))[None] * 3
    loss = training_loss(model, row, positions, [len(ids)], torch.tensor(weights), 0.7, 4)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert model.seen["position_ids"] is positions
    assert model.seen["seq_lengths"] == [len(ids)]
    assert model.seen["attention_scale"] == 0.7
    assert model.seen["use_cache"] is False


@settings(max_examples=40)
@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    data=st.data(),
    chunk_tokens=st.sampled_from([1, 4, 100]),
)
def test_a_token_of_a_piece_predicts_its_target(
    ids: list[int], data: st.DataObject, chunk_tokens: int
) -> None:
    """Any target, which need not be the token after it; those without one predict nothing. Where
    nothing weighs nothing changes when it is left out."""
    n = data.draw(st.integers(0, len(ids)))
    targets = data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    drawn = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=n, max_size=n)
    weights = torch.tensor(data.draw(drawn), dtype=torch.float32)
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    log_probability = table.double().log_softmax(-1)
    expected = -sum(float(weights[i] * log_probability[ids[i], targets[i]]) for i in range(n))
    model = _Bigrams(table)
    row, positions = torch.tensor([ids]), torch.arange(len(ids))[None] * 3
    lengths = [3 * len(ids), 5]  # of the whole row
    for counted in (None, torch.nonzero(weights)[:, 0]):
        loss = piece_loss(
            model,
            row,
            positions,
            lengths,
            torch.tensor(targets, dtype=torch.int64),
            weights,
            0.7,
            chunk_tokens,
            counted,
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        loss.backward()
        assert model.seen["position_ids"] is positions
        assert model.seen["seq_lengths"] is lengths
        assert model.seen["attention_scale"] == 0.7
        assert model.seen["use_cache"] is False


def _row(ids: np.ndarray, seq_lengths: list[int], loss_mask: np.ndarray) -> Row:
    """A replay row; only the columns that training reads are filled."""
    positions = np.concatenate([np.arange(n) for n in seq_lengths])
    none32, none64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return Row(
        input_ids=ids.astype(np.int32),
        position_ids=positions.astype(np.int32),
        seq_lengths=np.array(seq_lengths, np.int32),
        impact_mask=np.zeros(len(ids), bool),
        loss_mask=loss_mask,
        segment_starts=none32,
        segment_lengths=none32,
        doc_ids=[],
        doc_offsets=none64,
        doc_lengths=none32,
        sample_id="row",
        source="",
        kind="replay",
        window_tokens=len(ids),
        target_len=64,
    )


@given(
    documents=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_the_first_token_of_a_document_never_counts(documents: list[list[int]], seed: int) -> None:
    """Rows of packed documents: the loss is the sum over each document on its own."""
    generator = np.random.default_rng(seed)
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    log_probability = table.double().log_softmax(-1)
    rows, expected = [], 0.0
    for seq_lengths in documents:
        ids = generator.integers(0, 7, sum(seq_lengths))
        mask = generator.random(len(ids)) < 0.7
        rows.append(_row(ids, seq_lengths, mask))
        ends = np.cumsum(seq_lengths)
        for start, end in zip(ends - seq_lengths, ends, strict=True):
            for i in range(start + 1, end):
                expected -= float(mask[i] * log_probability[ids[i - 1], ids[i]])
    batch = to_batch(rows)
    loss = training_loss(
        _Bigrams(table),
        batch.input_ids.long(),
        batch.position_ids,
        batch.seq_lengths,
        batch.weights,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.gpu
def test_log_probs_of_bf16_are_those_of_float64_on_a_gpu() -> None:
    """The products of bf16 are exact in fp32, and so are sums that tensor cores keep there."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 512, generator=generator).bfloat16().cuda()
    weight = torch.randn(40_000, 512, generator=generator).bfloat16().cuda()
    targets = torch.randint(0, 40_000, (300,), generator=generator).cuda()
    logits = hidden.double() @ weight.double().T
    own = logits.gather(1, targets[:, None])[:, 0]
    wanted = torch.stack([own - logits.logsumexp(-1), own])
    found = chunked_log_probs(hidden, weight, targets, chunk_tokens=128)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
