"""Running averages in 8 bits are those of bitsandbytes; where they are kept changes no number."""

import gc
import sys
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrtrain import moments
from lrtrain.host_memory import host_zeros, is_being_made
from lrtrain.moments import BLOCKS, EightBit, Moment, block_of, make_moment, need_bitsandbytes
from lrtrain.optim import AdamW, Storage

CPU = torch.device("cpu")
BLOCK = BLOCKS[0]
N = 20 * BLOCK
WHOLE = slice(0, N)


def values(seed: int, spread: float, block_spread: float) -> torch.Tensor:
    """N numbers over so many powers of ten within a block, and blocks over so many."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(N, generator=generator)
    size = -spread * torch.rand(N, generator=generator)
    scale = block_spread * (torch.rand(N // BLOCK, generator=generator) - 0.5)
    return normal * 10 ** (size + scale.repeat_interleave(BLOCK))


ARRAYS = st.builds(values, st.integers(0, 1000), st.floats(0, 6), st.floats(0, 20))


def of(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """What a moment may hold: the second one is not negative."""
    return values if signed else values.abs()


def a_moment(kind: str = "8bit", offload: bool = False, signed: bool = True) -> Moment:
    return make_moment(N, CPU, BLOCK if kind == "8bit" else 0, offload, signed)


def through_bitsandbytes(values: torch.Tensor, signed: bool) -> torch.Tensor:
    codes, state = bnb.quantize_blockwise(
        values, code=bnb.create_dynamic_map(signed), blocksize=BLOCK
    )
    return bnb.dequantize_blockwise(codes, state)


signs = pytest.mark.parametrize("signed", [True, False])
kinds = pytest.mark.parametrize("kind", ["fp32", "8bit"])
places = pytest.mark.parametrize("offload", [False, True])


@kinds
@places
@signs
def test_it_begins_with_zeros(kind: str, offload: bool, signed: bool) -> None:
    moment = a_moment(kind, offload, signed)
    assert torch.equal(moment.read(WHOLE), torch.zeros(N))
    moment.write(WHOLE, torch.zeros(N))
    assert torch.equal(moment.read(WHOLE), torch.zeros(N)), "zeros do not stay zeros"


@signs
@given(x=ARRAYS)
def test_8_bits_are_read_as_bitsandbytes_reads_them(signed: bool, x: torch.Tensor) -> None:
    """And no number is further off than half the widest step of the map, of its block's largest;
    on a CPU bitsandbytes tells apart 2^16 numbers between -1 and 1 first."""
    written = of(x, signed)
    moment = a_moment(signed=signed)
    moment.write(WHOLE, written.clone())
    found = moment.read(WHOLE)
    assert found.dtype == torch.float32
    assert torch.equal(found, through_bitsandbytes(written, signed))
    error = bnb.create_dynamic_map(signed).diff().max() / 2 + 2**-15
    largest = written.view(-1, BLOCK).abs().amax(1, keepdim=True)
    assert torch.all((found - written).abs().view(-1, BLOCK) <= error * largest)


@places
@given(x=ARRAYS)
def test_fp32_is_read_as_written(offload: bool, x: torch.Tensor) -> None:
    moment = a_moment("fp32", offload)
    part = moment.read(WHOLE)
    part.copy_(x)  # in place, as the optimizer changes it
    moment.write(WHOLE, part)
    assert torch.equal(moment.read(WHOLE), x)


@kinds
@signs
@places
@given(x=ARRAYS, cuts=st.sets(st.integers(1, N // BLOCK - 1)))
def test_parts_at_multiples_of_a_block_are_the_whole(
    kind: str, signed: bool, offload: bool, x: torch.Tensor, cuts: set[int]
) -> None:
    written = of(x, signed)
    whole, parted = (a_moment(kind, offload, signed) for _ in range(2))
    bounds = [0, *(BLOCK * cut for cut in sorted(cuts)), N]
    parts = [slice(*ends) for ends in pairwise(bounds)]
    for moment, slices in ((whole, [WHOLE]), (parted, parts)):
        for part in slices:
            changed = moment.read(part)
            changed.copy_(written[part])
            moment.write(part, changed)
    expected = whole.read(WHOLE)
    assert torch.equal(parted.read(WHOLE), expected)
    for part in parts:
        assert torch.equal(whole.read(part), expected[part])
    for (_, one), (_, other) in zip(whole.tensors(), parted.tensors(), strict=True):
        assert torch.equal(one, other)


@kinds
@signs
@given(x=ARRAYS)
def test_host_memory_holds_the_same_numbers(kind: str, signed: bool, x: torch.Tensor) -> None:
    here, there = a_moment(kind, False, signed), a_moment(kind, True, signed)
    for moment in (here, there):
        part = slice(BLOCK, 3 * BLOCK)
        changed = moment.read(part)
        changed.copy_(of(x, signed)[part])
        moment.write(part, changed)
    assert torch.equal(here.read(WHOLE), there.read(WHOLE))
    for (name, one), (other_name, other) in zip(here.tensors(), there.tensors(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["fp32", "8bit"])
def test_what_is_read_from_host_memory_is_a_copy(kind: str) -> None:
    moment = a_moment(kind, offload=True)
    moment.read(WHOLE).fill_(1.0)
    assert torch.equal(moment.read(WHOLE), torch.zeros(N))


@kinds
@signs
@places
def test_its_tensors_are_all_there_is_of_it(kind: str, signed: bool, offload: bool) -> None:
    """As a checkpoint takes them and gives them back."""
    moment = a_moment(kind, offload, signed)
    moment.write(WHOLE, moment.read(WHOLE).copy_(of(values(0, 3, 3), signed)))
    file = {name: tensor.clone() for name, tensor in moment.tensors()}
    other = a_moment(kind, not offload, signed)
    for name, tensor in other.tensors():
        tensor.copy_(file[name])
    assert torch.equal(other.read(WHOLE), moment.read(WHOLE))


@kinds
def test_a_number_takes_4_bytes_or_1_and_a_64th(kind: str) -> None:
    stored = sum(tensor.nbytes for _, tensor in a_moment(kind).tensors())
    assert stored == {"fp32": 4 * N, "8bit": N + N // 64}[kind]


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((0, 256), 0),
        ((1, 1), 0),
        ((1, 256), 0),
        ((15, 256), 0),
        ((16, 256), 256),
        ((4097, 1), 0),
        ((17, 256), 256),
        ((1000, 1000), 0),
        ((2**12, 2**12), 256),
        ((1, 4096), 256),
        ((8, 512), 256),
        ((4, 2, 512), 256),
        ((16, 2, 128), 256),
        # Smaller ones, for rows that are no multiple of the largest: of SmolLM and Qwen2.5-0.5B.
        ((1536, 576), 64),
        ((896, 896), 128),
        ((32, 128), 128),
        ((256, 256 + 128), 128),
        ((2, 64, 16, 3), 256),
        # As many numbers, and every block would have some of two rows.
        ((256, 16), 0),
        ((256, 257), 0),
        ((4096,), 0),
        ((2**24,), 0),
    ],
    ids=str,
)
def test_short_ones_and_odd_rows_stay_in_fp32(shape: tuple[int, ...], block: int) -> None:
    assert block_of(shape, "8bit") == block
    assert block_of(shape, "fp32") == 0
    n = prod(shape)
    if n < 10**6:
        moment = make_moment(n, CPU, block, offload=False, signed=True)
        assert isinstance(moment, EightBit) == bool(block)
        expected = n + 4 * (n // block) if block else 4 * n
        assert sum(t.nbytes for _, t in moment.tensors()) == expected


@signs
@pytest.mark.parametrize("block", BLOCKS)
@given(x=ARRAYS)
def test_blocks_of_every_size_are_those_of_bitsandbytes(
    signed: bool, block: int, x: torch.Tensor
) -> None:
    written = of(x, signed)
    moment = make_moment(N, CPU, block, offload=False, signed=signed)
    moment.write(WHOLE, written.clone())
    codes, state = bnb.quantize_blockwise(
        written, code=bnb.create_dynamic_map(signed), blocksize=block
    )
    least = 0 if signed else 1
    expected = bnb.dequantize_blockwise(codes.clamp(min=least), state)
    assert torch.equal(moment.read(WHOLE), expected)


@kinds
@signs
@places
@given(x=ARRAYS, cuts=st.sets(st.integers(0, N // BLOCK)))
def test_some_rows_by_themselves_are_those_of_the_whole(
    kind: str, signed: bool, offload: bool, x: torch.Tensor, cuts: set[int]
) -> None:
    """Moments of whole rows of a parameter, as ranks have them; some have none."""
    written = of(x, signed)
    whole = a_moment(kind, offload, signed)
    whole.write(WHOLE, whole.read(WHOLE).copy_(written))
    bounds = [0, *(BLOCK * cut for cut in sorted(cuts)), N]
    found, kept = [], []
    for start, stop in pairwise(bounds):
        own = make_moment(stop - start, CPU, BLOCK if kind == "8bit" else 0, offload, signed)
        if stop > start:  # the optimizer has no part of none
            part = slice(0, stop - start)
            own.write(part, own.read(part).copy_(written[start:stop]))
            found.append(own.read(part))
        kept.append([tensor for _, tensor in own.tensors()])
    assert torch.equal(torch.cat(found), whole.read(WHOLE))
    for (_, tensor), pieces in zip(whole.tensors(), zip(*kept, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), tensor)


# Small squares


def nearest(values: torch.Tensor, code: torch.Tensor, blocksize: int) -> Any:
    """The nearest code, as kernels for GPUs find it. bitsandbytes' for CPUs tells 2^16 numbers
    apart only, and none of them is nearest to zero."""
    largest = values.view(-1, blocksize).abs().amax(1)
    share = (values.view(-1, blocksize) / largest[:, None]).nan_to_num(0.0)
    codes = torch.bucketize(share, (code[1:] + code[:-1]) / 2).to(torch.uint8)
    return codes.view(-1), SimpleNamespace(absmax=largest)


@pytest.fixture
def _nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = SimpleNamespace(
        quantize_blockwise=nearest,
        dequantize_blockwise=bnb.dequantize_blockwise,
        create_dynamic_map=bnb.create_dynamic_map,
    )
    monkeypatch.setattr(moments, "_functional", lambda: functional)


@pytest.mark.usefixtures("_nearest")
def test_a_square_next_to_a_large_one_is_not_lost() -> None:
    """Were it zero, a gradient of zero would make the next step the first moment over epsilon."""
    gradient = torch.ones(N)
    gradient[1::2] = 1e-4
    moment = a_moment(signed=False)
    moment.write(WHOLE, gradient**2)
    found = moment.read(WHOLE)
    assert torch.all(found > 0)
    torch.testing.assert_close(found[::2], gradient[::2] ** 2)
    assert torch.all(found < 1e-6 + gradient**2), "far from what it was"


@pytest.mark.usefixtures("_nearest")
def test_no_step_is_far_beyond_the_rate() -> None:
    """Small gradients between large ones, which then pause: in fp32 no step is above 1.0 rates."""
    model = torch.nn.Linear(BLOCK, 16, bias=False)
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0, Storage(moments="8bit"))
    gradient = torch.ones(16, BLOCK)
    gradient[:, 1::2] = 1e-4
    for step in range(20):
        before = model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        if step % 3:
            model.weight.grad[:, 1::2] = 0.0
        optimizer.step(1.0, optimizer.gradient_norm(), clip=0.0)
        assert (model.weight - before).abs().max() < 1.5e-3


@pytest.mark.usefixtures("_nearest")
def test_blocks_of_zeros_stay_zeros_between_others() -> None:
    for signed in (True, False):
        written = torch.zeros(N)
        written[BLOCK : 2 * BLOCK] = 1.0
        moment = a_moment(signed=signed)
        moment.write(WHOLE, written)
        assert torch.equal(moment.read(WHOLE), written)


# Without bitsandbytes


@pytest.fixture
def _no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        moments._functional.cache_clear()
        moments._map.cache_clear()

    forget()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    yield
    forget()


@pytest.mark.usefixtures("_no_bitsandbytes")
def test_what_to_install_is_said() -> None:
    for _ in range(2):  # each time, not once
        with pytest.raises(LongRecipeError) as problem:
            a_moment("8bit")
        assert str(problem.value) == (
            "--moments 8bit needs bitsandbytes: pip install 'longrecipe[gpu]'"
        )


@pytest.mark.usefixtures("_no_bitsandbytes")
def test_that_it_is_missing_is_said_before_a_run() -> None:
    with pytest.raises(LongRecipeError, match="needs bitsandbytes: pip install"):
        need_bitsandbytes(CPU)


def test_one_that_works_is_taken() -> None:
    need_bitsandbytes(CPU)


@pytest.mark.usefixtures("no_native_library")
def test_one_whose_own_library_is_not_there_is_refused() -> None:
    """It is imported as ever, and would raise after a step."""
    with pytest.raises(LongRecipeError) as problem:
        need_bitsandbytes(CPU)
    message = str(problem.value)
    assert message.startswith("--moments 8bit: bitsandbytes does not work on cpu (")
    assert message.endswith("(python -m bitsandbytes says more) or use --moments fp32")
    assert "\n" not in message


@pytest.mark.parametrize("found", [0.0, 1.1, float("nan")])
def test_one_that_reads_other_numbers_is_refused(
    found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kernels for another card leave what was there, and raise nothing."""
    functional = SimpleNamespace(
        quantize_blockwise=bnb.quantize_blockwise,
        dequantize_blockwise=lambda *given, **more: (
            bnb.dequantize_blockwise(*given, **more) * found
        ),
        create_dynamic_map=bnb.create_dynamic_map,
    )
    monkeypatch.setattr(moments, "_functional", lambda: functional)
    with pytest.raises(LongRecipeError, match="numbers are read back off by"):
        need_bitsandbytes(CPU)


@pytest.mark.usefixtures("_no_bitsandbytes")
def test_fp32_needs_nothing_installed() -> None:
    assert torch.equal(a_moment("fp32").read(WHOLE), torch.zeros(N))
    short = make_moment(100, CPU, block_of((10, 10), "8bit"), offload=False, signed=True)
    assert torch.equal(short.read(slice(0, 100)), torch.zeros(100))


# Host memory


class Driver:
    """Stands for CUDA: which addresses are locked."""

    def __init__(self, answer: int = 0) -> None:
        self.locked: dict[int, int] = {}
        self.answer = answer

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if not self.answer:
            self.locked[address] = size
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


def test_host_memory_is_locked_as_long_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte, and while a view of it is left."""
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    tensor = host_zeros(1000, torch.int16, torch.device("cuda"))
    assert tensor.device == CPU
    assert torch.equal(tensor, torch.zeros(1000, dtype=torch.int16))
    assert driver.locked == {tensor.data_ptr(): 2000}
    view = tensor.data[10:20]
    del tensor
    gc.collect()
    assert driver.locked
    del view
    gc.collect()
    assert not driver.locked


def test_host_memory_that_cannot_be_locked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Driver(answer=2))
    with pytest.raises(LongRecipeError) as problem:
        host_zeros((2, 1 << 20), torch.float32, torch.device("cuda"))
    assert str(problem.value) == (
        "cannot lock 8.4 MB of host memory (CUDA error 2); `lrtrain plan` says how much is needed: "
        "free some, or offload less"
    )
    assert not is_being_made()


def test_nothing_is_locked_for_a_cpu_or_for_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(answer=1)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    assert host_zeros(1000, torch.float32, CPU).shape == (1000,)
    assert host_zeros(0, torch.float32, torch.device("cuda")).shape == (0,)
