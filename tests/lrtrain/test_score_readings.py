"""What is read of each token equals one plain forward of transformers after exactly its context."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lrtrain.loss import chunked_log_probs
from lrtrain.model import load_model
from lrtrain.scoring.readings import Block, read_short, read_whole, short_blocks
from tests.lrtrain.tiny_models import FAMILIES, VOCABULARY, WINDOW, save_tiny

BOS = 3
CHUNK, BATCH = 512, 8192


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders: dict[str, str]) -> dict[str, Any]:
    return {
        family: load_model(folder, dtype=torch.float32).eval() for family, folder in folders.items()
    }


@pytest.fixture(scope="module")
def plain(folders: dict[str, str]) -> dict[str, Any]:
    """The same models as transformers makes them, with its own eager attention."""
    return {
        family: AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for family, folder in folders.items()
    }


def random_ids(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, tokens).astype(np.int32)


@torch.no_grad()
def after(model: Any, context: Sequence[int], token: int) -> tuple[float, float]:
    """log P of a token after a context, and its logit: a forward for it alone."""
    logits = model(input_ids=torch.tensor([[*context]]), use_cache=False).logits[0, -1]
    return float(logits.log_softmax(-1)[token]), float(logits[token])


@torch.no_grad()
def whole_reference(model: Any, ids: np.ndarray, bos_id: int | None) -> np.ndarray:
    """One forward of all; without a start of text the first token has no context."""
    lead = [] if bos_id is None else [bos_id]
    row = torch.tensor([[*lead, *ids.tolist()]])
    logits = model(input_ids=row, use_cache=False).logits[0, :-1]
    targets = row[0, 1:, None]
    both = [logits.log_softmax(-1).gather(1, targets), logits.gather(1, targets)]
    found = torch.stack([values[:, 0] for values in both]).numpy()
    nothing = np.full((2, 1 - len(lead)), np.nan, np.float32)
    return np.concatenate([nothing, found], 1)


def short_reference(
    model: Any, ids: np.ndarray, bos_id: int | None, short_context: int, stride: int
) -> np.ndarray:
    """A forward for each target by itself; contexts by counting, not by `short_blocks`."""
    lead = [] if bos_id is None else [bos_id]
    found = np.full((2, len(ids)), np.nan, np.float32)
    for target in range(short_context + stride, len(ids)):
        start = (target - short_context) // stride * stride
        context = [*lead, *ids[start:target].tolist()]
        found[:, target] = after(model, context, int(ids[target]))
    return found


def assert_equal(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)  # NaN equals only NaN


# Which tokens, after which context


@settings(max_examples=300)
@given(tokens=st.integers(1, 400), short_context=st.integers(1, 120), stride=st.integers(1, 120))
def test_every_token_beyond_the_first_contexts_is_a_target_once(
    tokens: int, short_context: int, stride: int
) -> None:
    """K to K + stride - 1 tokens before it, fewer than in the window: never its long context."""
    blocks = short_blocks(tokens, short_context, stride)
    targets = [target for block in blocks for target in range(block.first, block.stop)]
    assert targets == list(range(short_context + stride, tokens))
    for start, first, stop in blocks:
        assert 0 < start < first < stop <= tokens
        for target in range(first, stop):
            assert short_context <= target - start < short_context + stride


@given(tokens=st.integers(1, 200), short_context=st.integers(1, 50), stride=st.integers(1, 50))
def test_only_the_last_block_has_fewer_targets(
    tokens: int, short_context: int, stride: int
) -> None:
    blocks = short_blocks(tokens, short_context, stride)
    counts = [block.stop - block.first for block in blocks]
    assert all(count == stride for count in counts[:-1])
    assert all(other.start - one.start == stride for one, other in pairwise(blocks))
    assert len(blocks) == max(0, -(-(tokens - short_context - stride) // stride))


# All that is before each token


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_reading_equals_transformers(
    family: str, bos_id: int | None, models: dict[str, Any], plain: dict[str, Any]
) -> None:
    ids = random_ids(WINDOW - 1)
    expected = whole_reference(plain[family], ids, bos_id)
    found = read_whole(models[family], ids, bos_id, CHUNK)
    assert_equal(found, expected)
    assert np.isnan(found[:, 0]).all() == (bos_id is None)
    assert np.isfinite(found[:, 1:]).all()
    assert np.nanmax(found[0]) < 0
    assert np.nanstd(found[0]) > 0.5, "the models say too little for a mistake to show"


@pytest.mark.parametrize("bos_id", [None, BOS])
def test_a_window_of_two_tokens_is_read(
    bos_id: int | None, models: dict[str, Any], plain: dict[str, Any]
) -> None:
    ids = random_ids(2)
    expected = whole_reference(plain["llama"], ids, bos_id)
    assert_equal(read_whole(models["llama"], ids, bos_id, CHUNK), expected)


@pytest.mark.parametrize("bos_id", [None, BOS])
def test_what_follows_a_token_does_not_matter(bos_id: int | None, models: dict[str, Any]) -> None:
    ids = random_ids(50)
    other = np.concatenate([ids[:30], random_ids(20, seed=1)])
    found = [read_whole(models["llama"], each, bos_id, CHUNK)[:, :30] for each in (ids, other)]
    assert_equal(found[0], found[1])


# After the last K tokens


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_short_reading_equals_a_forward_for_each_token(
    family: str, bos_id: int | None, models: dict[str, Any], plain: dict[str, Any]
) -> None:
    """Four blocks of seven targets and one of two, which are read together."""
    ids = random_ids(49)
    blocks = short_blocks(len(ids), 12, 7)
    assert [block.stop - block.first for block in blocks] == [7, 7, 7, 7, 2]
    expected = short_reference(plain[family], ids, bos_id, 12, 7)
    assert_equal(read_short(models[family], ids, bos_id, blocks, BATCH, CHUNK), expected)
    assert np.isnan(expected[:, :19]).all()
    assert np.isfinite(expected[:, 19:]).all()


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize(
    ("tokens", "short_context", "stride"),
    [(40, 8, 8), (40, 8, 16), (40, 1, 1), (40, 1, 9), (40, 30, 9), (40, 30, 10), (40, 35, 1)],
)
def test_any_context_and_stride_equal_a_forward_for_each_token(
    tokens: int,
    short_context: int,
    stride: int,
    bos_id: int | None,
    models: dict[str, Any],
    plain: dict[str, Any],
) -> None:
    """Also where only one token, or none, is far enough from the window's start."""
    ids = random_ids(tokens, seed=2)
    expected = short_reference(plain["llama"], ids, bos_id, short_context, stride)
    blocks = short_blocks(tokens, short_context, stride)
    assert_equal(read_short(models["llama"], ids, bos_id, blocks, BATCH, CHUNK), expected)


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("batch_tokens", [1, 19, 20, 40, 57, 58, 100])
def test_how_many_blocks_are_read_together_does_not_matter(
    batch_tokens: int, bos_id: int | None, models: dict[str, Any], plain: dict[str, Any]
) -> None:
    """From each block alone, the last one shorter, to all at once."""
    ids = random_ids(49)
    expected = short_reference(plain["llama"], ids, bos_id, 12, 7)
    blocks = short_blocks(len(ids), 12, 7)
    found = read_short(models["llama"], ids, bos_id, blocks, batch_tokens, CHUNK)
    assert_equal(found, expected)


class Calls:
    """A model that notes lengths and positions of the documents that it is given together."""

    def __init__(self, model: Any) -> None:
        self.real, self.lm_head, self.device = model, model.lm_head, model.device
        self.lengths: list[list[int]] = []
        self.positions: list[list[int]] = []

    def model(self, **arguments: Any) -> Any:
        self.lengths.append(list(arguments["seq_lengths"]))
        self.positions.append(arguments["position_ids"][0].tolist())
        return self.real.model(**arguments)


@settings(max_examples=40)
@given(
    tokens=st.integers(2, 60),
    short_context=st.integers(1, 20),
    stride=st.integers(1, 20),
    batch_tokens=st.integers(1, 120),
)
def test_no_more_tokens_than_asked_for_are_read_together(
    tokens: int, short_context: int, stride: int, batch_tokens: int, models: dict[str, Any]
) -> None:
    """Only a block that is longer by itself is more. Each begins at position 0."""
    calls = Calls(models["llama"])
    blocks = short_blocks(tokens, short_context, stride)
    read_short(calls, random_ids(tokens), None, blocks, batch_tokens, CHUNK)
    together = calls.lengths
    read = [length for lengths in together for length in lengths]
    assert read == [block.stop - block.start for block in blocks]
    assert all(len(lengths) == 1 or sum(lengths) <= batch_tokens for lengths in together)
    for lengths, positions in zip(together, calls.positions, strict=True):
        assert positions == [at for length in lengths for at in range(length)]
    for one, other in pairwise(together):  # and no fewer
        assert sum(one) + other[0] > batch_tokens


def test_what_is_before_the_short_context_does_not_matter(models: dict[str, Any]) -> None:
    ids = random_ids(40)
    blocks = [Block(20, 28, 36)]
    other = ids.copy()
    other[:20] = random_ids(20, seed=1)
    other[36:] = random_ids(4, seed=2)
    first, second = (
        read_short(models["llama"], each, BOS, blocks, BATCH, CHUNK) for each in (ids, other)
    )
    assert np.isfinite(first[:, 28:36]).all()
    assert np.isnan(first[:, :28]).all()
    assert np.isnan(first[:, 36:]).all()
    np.testing.assert_array_equal(first, second)


# Memory


@pytest.mark.parametrize("bos_id", [None, BOS])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 31, 1000])
def test_how_many_logits_are_in_memory_at_once_does_not_matter(
    chunk_tokens: int, bos_id: int | None, models: dict[str, Any], plain: dict[str, Any]
) -> None:
    ids = random_ids(49)
    found = read_whole(models["qwen3"], ids, bos_id, chunk_tokens)
    assert_equal(found, whole_reference(plain["qwen3"], ids, bos_id))
    blocks = short_blocks(len(ids), 12, 7)
    found = read_short(models["qwen3"], ids, bos_id, blocks, BATCH, chunk_tokens)
    assert_equal(found, short_reference(plain["qwen3"], ids, bos_id, 12, 7))


# Products of bf16


@pytest.mark.parametrize("vocabulary_slice", [1, 37, 300, 10_000])
def test_bf16_is_multiplied_as_exactly_as_fp32(
    vocabulary_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64, and equal to torch's float32 product of the same numbers. Logits near 20 in
    bf16 would be off by a sixteenth."""
    monkeypatch.setattr("lrtrain.loss._VOCABULARY_SLICE", vocabulary_slice)
    generator = torch.Generator().manual_seed(0)
    hidden = (2 * torch.randn(50, 64, generator=generator)).bfloat16()
    weight = torch.randn(300, 64, generator=generator).bfloat16()
    targets = torch.randint(0, 300, (50,), generator=generator)
    logits = hidden.double() @ weight.double().T
    assert logits.abs().max() > 40
    at = targets[:, None]
    expected = torch.cat([logits.log_softmax(-1).gather(1, at), logits.gather(1, at)], 1).T
    rounded = (hidden @ weight.T).double()
    assert (rounded.log_softmax(-1).gather(1, at)[:, 0] - expected[0]).abs().max() > 0.01
    for chunk_tokens in (7, 1000):
        found = chunked_log_probs(hidden, weight, targets, chunk_tokens)
        assert found.dtype == torch.float32
        assert (found.double() - expected).abs().max() < 1e-4
        wide = chunked_log_probs(hidden.float(), weight.float(), targets, chunk_tokens)
        torch.testing.assert_close(found, wide, rtol=1e-6, atol=1e-5)


def test_no_more_than_a_slice_of_the_weights_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrtrain.loss._VOCABULARY_SLICE", 32)
    widened: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            wide = isinstance(found, torch.Tensor) and found.dtype == torch.float32
            if wide and 64 in found.shape:
                widened.append(found.numel())
            return found

    hidden, weight = torch.ones(5, 64).bfloat16(), torch.ones(300, 64).bfloat16()
    with Sizes():
        chunked_log_probs(hidden, weight, torch.zeros(5, dtype=torch.int64))
    assert max(widened) == 32 * 64
