"""Attention crosses gaps in the positions and stops at documents, for every backend and family."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lrdata.errors import LongRecipeError
from lrtrain.attention import BACKENDS, choose_backend, packed_causal_attention
from lrtrain.loss import training_loss
from lrtrain.model import load_model
from lrtrain.rope import Rope
from tests.lrtrain.tiny_models import FAMILIES, document_mask, save_family

TARGET = 512


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float
) -> torch.Tensor:
    """float64, every document alone, written out: [1, H, S, D] -> [1, S, H, D]."""
    groups = q.shape[1] // k.shape[1]
    outputs = []
    for head in range(q.shape[1]):
        start, parts = 0, []
        for length in lengths:
            span = slice(start, start + length)
            scores = q[0, head, span] @ k[0, head // groups, span].T * scale
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            parts.append(scores.softmax(-1) @ v[0, head // groups, span])
            start += length
        outputs.append(torch.cat(parts))
    return torch.stack(outputs, 1)[None]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (4, 2), (4, 4), (6, 1)]),
    scale=st.floats(0.05, 2.0),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_the_definition(
    backend: str, lengths: list[int], heads: tuple[int, int], scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    size = sum(lengths)
    shapes = [(1, heads[0], size, 8), (1, heads[1], size, 8), (1, heads[1], size, 8)]
    exact = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    single = [tensor.detach().float().requires_grad_() for tensor in exact]
    outer = torch.randn(1, size, heads[0], 8, dtype=torch.float64)
    wanted = reference(*exact, lengths, scale)
    (wanted * outer).sum().backward()
    found = packed_causal_attention(*single, lengths, scale, backend)
    (found * outer.float()).sum().backward()
    assert torch.allclose(found.double(), wanted, atol=1e-4)
    for one, other in zip(single, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad.double(), other.grad, atol=1e-4)


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(request.param, tmp_path_factory.mktemp("models") / request.param)


def a_row() -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """Two documents with gaps in their positions: 40 tokens, ids, positions, weights."""
    torch.manual_seed(2)
    ids = torch.randint(0, 97, (1, 40))
    first = torch.cat([torch.arange(0, 9), torch.arange(200, 210), torch.arange(480, 485)])
    second = torch.cat([torch.arange(0, 6), torch.arange(77, 87)])
    weights = torch.rand(40)
    weights[[0, 24]] = 0.0
    weights[10] = 0.0
    return ids, torch.cat([first, second])[None], [24, 16], weights


def hidden_change(model: object, changed: int, backend: str) -> torch.Tensor:
    """How much every token's hidden state moves when one token is another: float [40]."""
    choose_backend(backend)
    ids, positions, lengths, _ = a_row()
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % 97

    def run(row: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            states = model.model(  # type: ignore[attr-defined]
                row, position_ids=positions, seq_lengths=lengths, use_cache=False
            )
        return states.last_hidden_state[0]

    return (run(ids) - run(other)).abs().amax(-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_see_over_gaps_and_never_into_the_next_document(folder: Path, backend: str) -> None:
    model = load_model(str(folder), dtype=torch.float32, rope=Rope("auto"), target_len=TARGET)
    change = hidden_change(model, 3, backend)
    assert (change[:3] == 0).all()
    assert (change[9:24] > 1e-4).all()  # after the gaps at 9 and 19
    assert (change[24:] == 0.0).all()  # another document: nothing at all
    change = hidden_change(model, 30, backend)
    assert (change[:30] == 0).all()
    assert (change[31:] > 1e-4).all()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_training_step_is_that_of_dense_float64(
    folder: Path, backend: str, checkpointing: bool
) -> None:
    """Loss and every gradient, against transformers' eager attention and torch's cross-entropy."""
    ids, positions, lengths, weights = a_row()
    choose_backend(backend)
    model = load_model(str(folder), dtype=torch.float32, rope=Rope("auto"), target_len=TARGET)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss = training_loss(model, ids, positions, lengths, weights, chunk_tokens=7)
    loss.backward()

    exact = AutoModelForCausalLM.from_pretrained(
        folder, config=model.config, dtype=torch.float64, attn_implementation="eager"
    )
    logits = exact(
        ids,
        position_ids=positions,
        attention_mask=document_mask(lengths, torch.float64),
        use_cache=False,
    ).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    wanted = (each * weights[1:].double()).sum()
    wanted.backward()

    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    theirs = dict(exact.named_parameters())
    for name, parameter in model.named_parameters():
        gradient, expected = parameter.grad.double(), theirs[name].grad
        assert (gradient - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_the_attention_scale_multiplies_the_logits(folder: Path) -> None:
    """As if all queries were smaller: the query projection times the factor gives the same."""
    choose_backend("auto")
    ids, positions, lengths, weights = a_row()
    model = load_model(str(folder), dtype=torch.float32)
    with torch.no_grad():
        scaled = training_loss(model, ids, positions, lengths, weights, attention_scale=0.5)
        for layer in model.model.layers:
            attention = layer.self_attn
            if hasattr(attention, "q_norm"):
                attention.q_norm.weight *= 0.5
            else:
                attention.q_proj.weight *= 0.5
                if attention.q_proj.bias is not None:
                    attention.q_proj.bias *= 0.5
        shrunk = training_loss(model, ids, positions, lengths, weights)
    assert float(scaled) == pytest.approx(float(shrunk), rel=1e-5)


def test_plain_transformers_is_cut_at_gaps(folder: Path) -> None:
    """Why the trainer has its own: when this fails, transformers has changed; ours need not."""
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
    ids, _, _, _ = a_row()
    positions = torch.cat([torch.arange(0, 9), torch.arange(20, 51)])[None]
    other = ids.clone()
    other[0, 3] = (other[0, 3] + 1) % 97

    def states(row: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return plain.model(row, position_ids=positions, use_cache=False).last_hidden_state[0]

    change = (states(ids) - states(other)).abs().amax(-1)
    assert (change[4:9] > 1e-4).all()
    assert (change[9:] == 0.0).all()


def some_row(size: int = 6) -> list[torch.Tensor]:
    return [torch.randn(1, 2, size, 4) for _ in range(3)]


def test_documents_must_cover_the_row() -> None:
    with pytest.raises(LongRecipeError, match="seq_lengths sum to 5"):
        packed_causal_attention(*some_row(), [2, 3], 1.0, "sdpa")


def test_rows_are_flat() -> None:
    q = torch.randn(2, 2, 6, 4)
    with pytest.raises(LongRecipeError, match="rows are flat"):
        packed_causal_attention(q, q, q, [6], 1.0, "sdpa")


def test_a_call_without_documents_is_refused(folder: Path) -> None:
    model = load_model(str(folder), dtype=torch.float32)
    with pytest.raises(LongRecipeError, match="without seq_lengths"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(LongRecipeError, match="choose auto"):
        choose_backend("magic")
