"""What is done about activations changes no number; host memory holds layer inputs and no more."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrdata.errors import LongRecipeError
from lrtrain import activations
from lrtrain.activations import Activations, LayerInputs, prepare
from lrtrain.host_memory import host_zeros
from lrtrain.loss import training_loss
from lrtrain.model import load_model
from tests.lrtrain.tiny_models import (
    FAMILIES,
    THETA,
    VOCABULARY,
    WINDOW,
    document_mask,
    reference_model,
    save_tiny,
)

LAYERS, WIDTH, INNER = 3, 48, 80
ROWS = ([40], [12, 4, 7], [40])
"""The documents of three rows, one of another length."""

EXACT = {
    "checkpointing": Activations(checkpointing=True),
    "offload": Activations(checkpointing=True, offload=True),
    "chunks as long as the row": Activations(mlp_tokens=40),
}
"""The same operations in the same order."""
IN_CHUNKS = {
    "chunks": Activations(mlp_tokens=7),
    "checkpointing, chunks": Activations(checkpointing=True, mlp_tokens=7),
    "offload, chunks": Activations(checkpointing=True, offload=True, mlp_tokens=7),
}
"""Sums of other parts: equal but for fp32's last digits."""
WAYS = {**EXACT, **IN_CHUNKS}

OFFLOAD = WAYS["offload"]

Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of each family."""
    root = tmp_path_factory.mktemp("models")
    changes = {"num_hidden_layers": LAYERS, "intermediate_size": INNER}
    return {family: save_tiny(family, root / family, **changes) for family in FAMILIES}


def a_model(folder: str, how: Activations | None = None, dtype: torch.dtype = torch.float32) -> Any:
    model = load_model(folder, dtype=dtype).train()
    if how is not None:
        prepare(model, how)
    return model


def a_row(seq_lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, positions with a gap in the middle, weights with zeros."""
    total = sum(seq_lengths)
    generator = torch.Generator().manual_seed(total)
    ids = torch.randint(0, VOCABULARY, (1, total), generator=generator)
    positions = torch.arange(total)
    positions[total // 2 :] += 9
    weights = torch.rand(total, generator=generator)
    weights[torch.rand(total, generator=generator) < 0.2] = 0
    weights[torch.tensor([0, *seq_lengths[:-1]]).cumsum(0)] = 0
    return ids, positions[None], weights


def loss_of(model: Any, seq_lengths: Sequence[int]) -> torch.Tensor:
    ids, positions, weights = a_row(seq_lengths)
    return training_loss(model, ids, positions, seq_lengths, weights, chunk_tokens=11)


def learn(model: Any, rows: Sequence[Sequence[int]] = ROWS) -> tuple[list[float], Gradients]:
    """The loss of each row, forward and backward one after another, and the gradient of all."""
    model.zero_grad()
    losses = []
    for seq_lengths in rows:
        loss = loss_of(model, seq_lengths)
        loss.backward()
        losses.append(loss.item())
    return losses, {name: p.grad.clone() for name, p in model.named_parameters()}


def far(gradients: Gradients, others: Gradients) -> float:
    """The largest difference of a number, as a share of the largest of its parameter."""
    assert gradients.keys() == others.keys()
    return max(
        float((gradients[name] - other).abs().max() / other.abs().max())
        for name, other in others.items()
    )


def same(one: tuple[list[float], Gradients], two: tuple[list[float], Gradients]) -> bool:
    """Whether two answers of `learn` are equal to the last bit."""
    gradients, others = one[1], two[1]
    assert gradients.keys() == others.keys()
    return one[0] == two[0] and all(torch.equal(gradients[n], others[n]) for n in others)


# The numbers


def dense(folder: str) -> tuple[list[float], Gradients]:
    """`learn` by transformers' own model in float64 with its eager attention."""
    rope = {"rope_type": "default", "rope_theta": THETA}
    model = reference_model(folder, rope, WINDOW)
    losses = []
    for seq_lengths in ROWS:
        ids, positions, weights = a_row(seq_lengths)
        logits = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=document_mask(seq_lengths),
            use_cache=False,
        ).logits[0]
        loss = (F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none") * weights[1:]).sum()
        loss.backward()
        losses.append(loss.item())
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_gives_the_loss_and_gradients_of_a_plain_step(
    folders: dict[str, str], family: str
) -> None:
    plain = learn(a_model(folders[family]))
    losses, gradients = dense(folders[family])
    for name, how in WAYS.items():
        found = learn(a_model(folders[family], how))
        if name in EXACT:
            assert same(found, plain), name
        else:
            assert found[0] == pytest.approx(plain[0], rel=1e-5), name
            assert far(found[1], plain[1]) < 1e-5, name
        assert found[0] == pytest.approx(losses, rel=1e-5), name
        assert far({k: g.double() for k, g in found[1].items()}, gradients) < 1e-4, name


@pytest.mark.parametrize("name", EXACT)
def test_bf16_is_the_same_to_the_last_bit(folders: dict[str, str], name: str) -> None:
    for family in FAMILIES:
        plain = learn(a_model(folders[family], dtype=torch.bfloat16))
        found = learn(a_model(folders[family], EXACT[name], torch.bfloat16))
        assert same(found, plain), family
        assert all(gradient.dtype == torch.bfloat16 for gradient in found[1].values())


@pytest.mark.parametrize("name", IN_CHUNKS)
def test_bf16_in_chunks_is_as_near_to_the_truth(folders: dict[str, str], name: str) -> None:
    """Chunks add up in fp32: they may not be farther from fp32 than one product in bf16 is."""

    def wrong(model: Any) -> float:
        found = {key: gradient.float() for key, gradient in learn(model)[1].items()}
        total = sum(float((found[key] - exact[key]).square().sum()) for key in exact)
        return total**0.5

    model = a_model(folders["llama"], dtype=torch.bfloat16)
    exact = learn(model.float())[1]  # of parameters that bf16 holds
    plain = wrong(a_model(folders["llama"], dtype=torch.bfloat16))
    assert 0 < wrong(a_model(folders["llama"], IN_CHUNKS[name], torch.bfloat16)) < 1.1 * plain


def test_many_small_chunks_add_up_in_bf16(folders: dict[str, str]) -> None:
    """2,000 chunks of equal tokens: a sum in bf16 would stop growing after some hundred."""
    tokens = 2000
    mlps = [
        a_model(folders["llama"], how, torch.bfloat16).model.layers[0].mlp
        for how in (None, Activations(mlp_tokens=1))
    ]
    for mlp in mlps:
        mlp(torch.ones(1, tokens, WIDTH, dtype=torch.bfloat16)).sum().backward()
    for plain, chunked in zip(*(mlp.parameters() for mlp in mlps), strict=True):
        assert (plain.grad - chunked.grad).abs().max() <= 0.02 * plain.grad.abs().max()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 20, 39, 40, 41, 1000])
def test_no_more_tokens_than_asked_are_in_an_mlp_at_once(
    folders: dict[str, str], tokens: int, checkpointing: bool
) -> None:
    rows = [[40]]
    plain = learn(a_model(folders["qwen2"]), rows)
    model = a_model(folders["qwen2"], Activations(checkpointing, mlp_tokens=tokens))
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, given: seen.append(len(given[0][0]))
        )
    found = learn(model, rows)
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert far(found[1], plain[1]) < 1e-5
    whole, rest = divmod(40, tokens)
    once = [*[tokens] * whole, *[rest] * (rest > 0)]
    # Forward, again for the chunk's gradient, and once more where the whole layer is recomputed.
    times = 1 + (tokens < 40) + checkpointing
    assert sorted(seen) == sorted(once * times * LAYERS)


def test_an_mlp_in_chunks_keeps_its_input_alone(folders: dict[str, str]) -> None:
    """Nothing of [tokens, INNER] outlives the forward pass."""
    for how, kept in ((None, True), (Activations(mlp_tokens=7), False)):
        model = a_model(folders["llama"], how)
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, into=shapes: into.append(x.shape) or x, lambda x: x
        ):
            loss_of(model, [40])
        assert any(shape[-1] == INNER and len(shape) == 3 for shape in shapes) is kept


@pytest.mark.parametrize("how", [*WAYS.values(), Activations(compile=True)], ids=str)
def test_a_prepared_model_is_saved_as_it_was(
    folders: dict[str, str], how: Activations, tmp_path: Path
) -> None:
    model = a_model(folders["qwen3"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepare(model, how)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    files = [Path(folder) / "model.safetensors" for folder in (folders["qwen3"], tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


# Host memory


@dataclass
class _Watch:
    """What goes to host memory and comes back."""

    inputs: list[LayerInputs]
    buffers: list[weakref.ref[torch.Tensor]]
    """In the order in which they were made."""
    moved: list[tuple[torch.Tensor, weakref.ref[Any]]]
    """What was moved, copied, and what autograd keeps for it."""
    stayed: list[tuple[torch.Size, torch.dtype, bool]]
    """Shape, dtype, whether it is a leaf."""
    sent_for: list[weakref.ref[Any]]
    """What was kept, in the order in which it is copied back."""
    came: list[tuple[weakref.ref[Any], bool, int]]
    """What was unpacked; whether it had been sent for before, and how many are on the device."""

    def alive(self) -> int:
        return sum(kept() is not None for _, kept in self.moved)

    def there(self) -> int:
        """Buffers that exist."""
        return sum(buffer() is not None for buffer in self.buffers)

    def forget(self) -> None:
        for seen in (self.moved, self.stayed, self.sent_for, self.came):
            seen.clear()  # type: ignore[attr-defined]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Watch]:
    """Models that are prepared in the test are watched. Reference counts alone free things."""
    seen = _Watch([], [], [], [], [], [])

    class Watched(LayerInputs):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.inputs.append(self)

        def pack(self, tensor: torch.Tensor) -> Any:
            packed = super().pack(tensor)
            if isinstance(packed, torch.Tensor):
                assert packed.data_ptr() == tensor.data_ptr()
                seen.stayed.append((tensor.shape, tensor.dtype, tensor.is_leaf))
            else:
                assert packed.host.data_ptr() != tensor.data_ptr()
                assert torch.equal(packed.host, tensor)
                seen.moved.append((tensor.detach().clone(), weakref.ref(packed)))
            return packed

        def unpack(self, packed: Any) -> torch.Tensor:
            if isinstance(packed, torch.Tensor):
                return super().unpack(packed)
            before = packed.fetched is not None
            tensor = super().unpack(packed)
            kept = (one() for _, one in seen.moved)
            on_device = sum(one is not None and one.fetched is not None for one in kept)
            seen.came.append((weakref.ref(packed), before, on_device))
            return tensor

        def _fetch(self, waiting: Any) -> None:
            if waiting.fetched is None:
                seen.sent_for.append(weakref.ref(waiting))
            super()._fetch(waiting)

    def made(*args: Any) -> torch.Tensor:
        buffer = host_zeros(*args)
        seen.buffers.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(activations, "LayerInputs", Watched)
    monkeypatch.setattr(activations, "host_zeros", made)
    gc.collect()
    gc.disable()
    yield seen
    gc.enable()


def inputs_of_layers(model: Any, seq_lengths: Sequence[int]) -> list[torch.Tensor]:
    """What each layer is given in a forward pass."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0].detach().clone()))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        loss_of(model, seq_lengths)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_of_every_layer_goes_to_host_memory(
    folders: dict[str, str], family: str, dtype: torch.dtype, watch: _Watch
) -> None:
    """One a layer, and of the last norm what looks like one; nothing else."""
    model = a_model(folders[family], OFFLOAD, dtype)
    inputs = inputs_of_layers(model, [40])
    assert not watch.moved
    loss_of(model, [40]).backward()
    moved = [tensor for tensor, _ in watch.moved]
    assert len(inputs) == LAYERS
    for given, tensor in zip(inputs, moved, strict=False):
        assert torch.equal(given, tensor)
    assert len(moved) - LAYERS == (3 if dtype == torch.float32 else 1), "of the last norm"
    assert all(tensor.shape == (1, 40, WIDTH) for tensor in moved)
    assert watch.stayed
    for shape, kind, is_leaf in watch.stayed:
        assert is_leaf or shape != (1, 40, WIDTH) or kind != dtype


def test_what_is_no_layer_input_stays_where_it_is() -> None:
    inputs = LayerInputs(torch.device("cpu"), torch.bfloat16, 8)

    def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=True) * 2

    leaf = torch.randn(1, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    others = leaf, made(5, 8), made(1, 5, 4), made(1, 2, 5, 8), made(1, 5, 8, dtype=torch.float32)
    for tensor in others:
        kept = inputs.pack(tensor)
        assert inputs.unpack(kept) is kept
        assert kept.data_ptr() == tensor.data_ptr()
    moved = made(1, 5, 8)
    packed = inputs.pack(moved)
    assert packed is not moved
    assert torch.equal(inputs.unpack(packed), moved)
    assert inputs.unpack(packed).data_ptr() != moved.data_ptr()


def test_they_come_back_in_reverse_each_while_the_one_above_is_used(
    folders: dict[str, str], watch: _Watch
) -> None:
    model = a_model(folders["llama"], OFFLOAD)
    for seq_lengths in ROWS:
        watch.forget()
        loss_of(model, seq_lengths).backward()
        kept = [one for _, one in watch.moved]
        assert watch.sent_for == kept[::-1]
        assert [one for one, _, _ in watch.came] == kept[::-1]
        sent_before = [before for _, before, _ in watch.came]
        assert sent_before == [False] + [True] * (len(kept) - 1)
        on_device = [count for _, _, count in watch.came]
        assert on_device == [2] * (len(kept) - 1) + [1]


def test_buffers_serve_every_row_that_they_hold_and_grow_with_the_longest(
    folders: dict[str, str], watch: _Watch
) -> None:
    model = a_model(folders["llama"], OFFLOAD)
    loss_of(model, [40]).backward()
    moved = len(watch.moved)
    assert watch.there() == len(watch.buffers) == moved
    for documents in ([40], [10, 30], [23], [1], [40]):
        loss_of(model, documents).backward()
        assert len(watch.buffers) == moved, "those of the row before"
    loss_of(model, [60]).backward()
    assert watch.there() == moved, "for each that is new one that is too small goes"
    assert len(watch.buffers) == 2 * moved
    assert {len(buffer) for buffer in watch.inputs[0]._free} == {60 * WIDTH}


def test_nothing_waits_after_a_backward_pass(folders: dict[str, str], watch: _Watch) -> None:
    model = a_model(folders["llama"], OFFLOAD)
    for seq_lengths in ROWS:
        watch.forget()
        loss = loss_of(model, seq_lengths)
        assert watch.alive() == len(watch.moved) > LAYERS
        assert not watch.sent_for
        loss.backward()
        assert watch.alive() == 0
        assert len(watch.inputs[0]._free) == len(watch.moved)


class _Broken(Exception):
    pass


def _forward_alone(model: Any) -> None:
    loss_of(model, [40])


def _broken_before_backward(model: Any) -> None:
    loss = loss_of(model, [40])
    assert loss.requires_grad
    raise _Broken


def _broken_in_a_layer(model: Any) -> None:
    def fail(*_: Any) -> None:
        raise _Broken

    hook = model.model.layers[-1].register_forward_pre_hook(fail)
    try:
        loss_of(model, [40])
    finally:
        hook.remove()


def _broken_in_backward(model: Any) -> None:
    def fail(_: torch.Tensor) -> None:
        raise _Broken

    hook = model.model.layers[1].mlp.up_proj.weight.register_hook(fail)
    try:
        loss_of(model, [40]).backward()
    finally:
        hook.remove()


@pytest.mark.parametrize("broken", [_forward_alone, _broken_before_backward, _broken_in_a_layer])
def test_a_row_that_is_given_up_leaves_nothing(
    folders: dict[str, str], watch: _Watch, broken: Any
) -> None:
    """However often: its buffers are used again, and the next row learns what it should."""
    model = a_model(folders["llama"], OFFLOAD)
    whole = learn(model, [[40]])
    made = len(watch.buffers)
    for _ in range(3):
        with suppress(_Broken):
            broken(model)
        assert watch.alive() == 0
    assert len(watch.buffers) == made
    watch.forget()
    assert same(learn(model, [[40]]), whole)
    assert watch.sent_for == [one for _, one in reversed(watch.moved)]
    assert len(watch.buffers) == made


def test_a_backward_pass_that_breaks_leaves_no_more_each_time(
    folders: dict[str, str], watch: _Watch
) -> None:
    """torch itself keeps what a broken backward pass has left until the next one."""
    model = a_model(folders["llama"], OFFLOAD)
    whole = learn(model, [[40]])
    made = []
    for _ in range(5):
        with suppress(_Broken):
            _broken_in_backward(model)
        made.append(len(watch.buffers))
    assert made[1:] == made[1:2] * 4
    assert same(learn(model, [[40]]), whole)
    assert watch.alive() == 0


def test_two_rows_may_go_forward_before_they_go_back(
    folders: dict[str, str], watch: _Watch
) -> None:
    rows = [[40], [12, 4, 7]]
    plain = learn(a_model(folders["llama"]), rows)
    for order in ((0, 1), (1, 0)):
        model = a_model(folders["llama"], OFFLOAD)
        losses = [loss_of(model, row) for row in rows]
        for place in order:
            losses[place].backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        assert [loss.item() for loss in losses] == plain[0]
        assert far(found, plain[1]) < 1e-6
        assert watch.alive() == 0


def test_without_gradients_nothing_is_moved(folders: dict[str, str], watch: _Watch) -> None:
    model = a_model(folders["llama"], OFFLOAD)
    plain = loss_of(a_model(folders["llama"]), [40])
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            assert torch.equal(loss_of(model, [40]), plain)
    assert not watch.moved
    assert not watch.buffers


def test_host_memory_is_zeros_of_a_cpu() -> None:
    tensor = host_zeros((3, 5), torch.bfloat16, torch.device("cpu"))
    assert torch.equal(tensor, torch.zeros(3, 5, dtype=torch.bfloat16))


class _Cuda:
    """The part of CUDA that locks memory, and how it answers."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if not self.answer:
            self.locked[address] = size
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


def test_memory_for_a_gpu_is_locked_as_long_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Cuda(answer=0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: library)
    tensor = host_zeros(1000, torch.float32, torch.device("cuda"))
    assert library.locked == {tensor.data_ptr(): 4000}, "not a byte more"
    other = torch.empty(0).set_(tensor.untyped_storage())
    del tensor
    assert library.locked, "another tensor still needs it"
    del other
    assert not library.locked
    host_zeros(0, torch.float32, torch.device("cuda"))


def test_memory_that_cannot_be_locked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: _Cuda(answer=2))
    with pytest.raises(LongRecipeError) as problem:
        host_zeros(10**6, torch.float32, torch.device("cuda"))
    assert str(problem.value) == (
        "cannot lock 4.0 MB of host memory (CUDA error 2); `lrtrain plan` says how much is needed: "
        "free some, or offload less"
    )


# Compiled


@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers_and_share_their_graphs(tmp_path: Path) -> None:
    """Twelve layers are more than torch would compile one by one: it would give up at eight."""
    from torch._dynamo.utils import counters

    graphs: dict[str, list[int]] = {}
    for layers in (2, 12):
        folder = save_tiny("llama", tmp_path / str(layers), num_hidden_layers=layers)
        plain = learn(a_model(folder))
        for name, how in (
            ("all", Activations(compile=True)),
            ("checkpointing", Activations(checkpointing=True, compile=True)),
            ("every option", Activations(True, True, 7, True)),
        ):
            torch._dynamo.reset()
            counters.clear()
            found = learn(a_model(folder, how))
            assert found[0] == pytest.approx(plain[0], rel=1e-5), name
            assert far(found[1], plain[1]) < 1e-4, name
            graphs.setdefault(name, []).append(counters["stats"]["unique_graphs"])
            assert not counters["graph_break"], name
    for name, (few, many) in graphs.items():
        assert 0 < few == many, name
    torch._dynamo.reset()


def test_modules_that_are_compiled_are_the_small_ones(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def mark(forward: Any) -> Any:
        compiled.append(forward.__self__)
        return forward

    monkeypatch.setattr(torch, "compile", mark)
    model = a_model(folders["llama"], Activations(compile=True))
    assert compiled == [
        module
        for layer in model.model.layers
        for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
    ]
