"""Attention stops at document ends, never at gaps in the positions, and is exact."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lrdata.errors import LongRecipeError
from lrtrain.attention import (
    IMPLEMENTATION,
    choose_backend,
    packed_causal_attention,
    register,
)
from lrtrain.attention_backends import ON_CPU, load_backend, sdpa
from lrtrain.model import load_model
from tests.lrtrain.tiny_models import VOCABULARY, save_tiny


def _reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """The definition, token by token: [1, Hq, S, D] and [1, Hkv, S, D] -> [1, S, Hq, D]."""
    starts = [sum(seq_lengths[:i]) for i, n in enumerate(seq_lengths) for _ in range(n)]
    group = query.shape[1] // key.shape[1]
    rows = []
    for token, start in enumerate(starts):
        heads = []
        for head in range(query.shape[1]):
            keys = key[0, head // group, start : token + 1]
            weights = (keys @ query[0, head, token] * scale).softmax(0)
            heads.append(weights @ value[0, head // group, start : token + 1])
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


def _draw(
    tokens: int, heads: tuple[int, int], width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key and value that want gradients; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(tokens * 31 + width)
    query_heads, key_heads = heads
    query, key, value = (
        torch.randn(1, h, tokens, width, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for h in (query_heads, key_heads, key_heads)
    )
    return query, key, value


# Repeated lengths are what backends batch: make them common.
_LENGTHS = st.lists(st.sampled_from([1, 2, 3, 5, 9, 17]), min_size=1, max_size=6)


@pytest.mark.parametrize("backend", ON_CPU)
@settings(max_examples=40)
@given(
    seq_lengths=_LENGTHS,
    key_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([4, 16]),
    scale=st.floats(0.05, 2.0),
)
def test_every_backend_equals_the_definition(
    backend: str, seq_lengths: list[int], key_heads: int, group: int, width: int, scale: float
) -> None:
    tokens, heads = sum(seq_lengths), (key_heads * group, key_heads)
    exact = _draw(tokens, heads, width, torch.float64)
    single = _draw(tokens, heads, width, torch.float32)

    expected = _reference(*exact, seq_lengths, scale)
    actual = packed_causal_attention(*single, seq_lengths, scale, load_backend(backend))
    assert actual.shape == (1, tokens, heads[0], width)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)

    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * outer).sum().backward()
    (actual * outer).sum().backward()
    for one, other in zip(single, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("seq_lengths", [[6, 6, 6], [6, 4, 8], [18]])
def test_a_token_is_seen_by_the_rest_of_its_document_and_by_nothing_else(
    backend: str, seq_lengths: list[int]
) -> None:
    query, key, value = (x.detach() for x in _draw(18, (4, 2), 8, torch.float32))
    function = load_backend(backend)
    before = packed_causal_attention(query, key, value, seq_lengths, 0.3, function)
    for changed in range(18):
        key2, value2 = key.clone(), value.clone()
        key2[:, :, changed] += 1
        value2[:, :, changed] += 1
        after = packed_causal_attention(
            query, key2, value2, seq_lengths, 0.3, load_backend(backend)
        )
        difference = (after - before).abs().amax((0, 2, 3))
        ends = [sum(seq_lengths[: i + 1]) for i in range(len(seq_lengths))]
        end = next(end for end in ends if changed < end)
        assert difference[:changed].eq(0).all()
        assert difference[changed:end].gt(0).all()
        assert difference[end:].eq(0).all()


def test_lengths_that_do_not_cover_the_row_are_refused() -> None:
    query, key, value = _draw(10, (2, 2), 4, torch.float32)
    with pytest.raises(LongRecipeError, match="sum to 9, the row has 10 tokens"):
        packed_causal_attention(query, key, value, [4, 5], 1.0, sdpa)
    longer = _draw(12, (2, 2), 4, torch.float32)[1]
    with pytest.raises(LongRecipeError, match="12 keys"):
        packed_causal_attention(query, longer, longer, [10], 1.0, sdpa)


def test_a_batch_of_several_rows_is_refused() -> None:
    two = torch.zeros(2, 2, 5, 4)
    with pytest.raises(LongRecipeError, match="batch of 1"):
        packed_causal_attention(two, two, two, [5], 1.0, sdpa)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LongRecipeError, match=r"flash9 is unknown.*sdpa"):
        choose_backend("flash9")
    assert choose_backend("dense") == "dense"
    assert choose_backend("auto") == "sdpa"
    with pytest.raises(LongRecipeError, match="flash4 needs a GPU; choose sdpa, dense"):
        choose_backend("flash4")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


def test_a_model_called_without_documents_is_an_error(llama: str) -> None:
    model = load_model(llama, dtype=torch.float32)
    ids = torch.arange(8)[None]
    with pytest.raises(LongRecipeError, match="without seq_lengths"):
        model(input_ids=ids, use_cache=False)
    cache = model(input_ids=ids, seq_lengths=[8], use_cache=True).past_key_values
    with pytest.raises(LongRecipeError, match="without a cache"):
        model(input_ids=ids, seq_lengths=[8], past_key_values=cache, use_cache=True)


def test_attention_dropout_is_an_error(llama: str) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation=IMPLEMENTATION)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(LongRecipeError, match="attention_dropout must be 0"):
        model.train()(input_ids=torch.arange(8)[None], seq_lengths=[8], use_cache=False)


def test_register_twice_is_fine(llama: str) -> None:
    register()
    register()
    load_model(llama, dtype=torch.float32)


def _gap_row() -> tuple[torch.Tensor, torch.Tensor]:
    """A row of 16 tokens with a gap of 30 positions in the middle."""
    ids = torch.randint(0, VOCABULARY, (1, 16), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(8), torch.arange(8) + 38])[None]
    return ids, positions


def _change_after_the_gap(model: torch.nn.Module, **arguments: object) -> float:
    """How much the logits behind the gap move when token 3, before it, changes."""
    ids, positions = _gap_row()
    other = ids.clone()
    other[0, 3] = (other[0, 3] + 1) % VOCABULARY
    with torch.no_grad():
        one, two = (
            model(input_ids=x, position_ids=positions, **arguments).logits for x in (ids, other)
        )
    return float((one - two)[0, 8:].abs().max())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_trap_is_real_plain_transformers_cuts_at_a_gap(llama: str, implementation: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation=implementation)
    assert _change_after_the_gap(model, use_cache=True) > 1e-3
    assert _change_after_the_gap(model, use_cache=False) == 0.0, (
        "this transformers no longer takes a gap in position_ids for the start of a document: "
        "good news, the note in lrtrain/attention.py can go"
    )


@pytest.mark.parametrize("backend", ON_CPU)
def test_the_trainers_attention_crosses_the_same_gap(llama: str, backend: str) -> None:
    model = load_model(llama, dtype=torch.float32)
    choose_backend(backend)
    assert _change_after_the_gap(model, seq_lengths=[16], use_cache=False) > 1e-3
    assert _change_after_the_gap(model, seq_lengths=[8, 8], use_cache=False) == 0.0
