"""Checkpoints of many ranks: each keeps its rows, and any other number of them reads them."""

import json
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import lrtrain.checkpoint
from lrdata.errors import LongRecipeError
from lrtrain import distributed
from lrtrain.checkpoint import STATE, Checkpoint, Checkpoints
from lrtrain.distributed import Elsewhere, Ranks
from lrtrain.sharded import Rows
from tests.lrtrain.rank_threads import in_threads
from tests.lrtrain.saved import Tensors, any_bits, assert_holds, bits, names

Pieces = list[dict[str, Rows]]
"""Of each rank, which rows of which tensors it has."""


def save_pieces(run: Path, step: int, tensors: Tensors, pieces: Pieces) -> Checkpoint:
    """Each rank's rows of some tensors, and all of the others."""

    def own(ranks: Ranks) -> Checkpoint:
        rows = pieces[ranks.rank]
        parts = {name: tensors[name][first:last] for name, (first, last, _) in rows.items()}
        dealt_out = {name for one in pieces for name in one}
        parts |= {name: tensor for name, tensor in tensors.items() if name not in dealt_out}
        parts |= {f"random.cpu.{ranks.rank}": any_bits(ranks.rank, 9)}
        return Checkpoints(run, "extend", 1, ranks).save(step, parts.items(), rows.get)

    saved = in_threads(len(pieces), own)
    assert len(set(saved)) == 1
    checkpoint: Checkpoint = saved[0]
    return checkpoint


def as_fsdp_does(count: int, rank: int, ranks: int) -> Rows:
    """The rows of a tensor that torch.chunk gives a rank; the last ranks may have none."""
    each = -(-count // ranks)
    return min(rank * each, count), min((rank + 1) * each, count), count


@st.composite
def some_rows(draw: st.DrawFn, seed: int = 0) -> torch.Tensor:
    """A few rows, of one number or some, of any type that a checkpoint has."""
    rows, dtype = draw(st.integers(0, 9)), draw(st.sampled_from([torch.float32, torch.bfloat16]))
    shape = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    if draw(st.booleans()):
        return any_bits(seed, rows, *shape)
    wide = any_bits(seed, rows, *shape[:-1], (shape[-1] if shape else 1) * dtype.itemsize)
    return wide.view(dtype) if shape else wide.view(dtype)[:, 0]


@st.composite
def dealt_out(draw: st.DrawFn, overlapping: bool = True) -> tuple[Tensors, Pieces]:
    """Tensors, one of which is whole, and who has which rows: in any order, of some none, and
    where they may overlap, more than once."""
    ranks = draw(st.integers(1, 5))
    tensors = {f"master.{seed}": draw(some_rows(seed)) for seed in range(draw(st.integers(1, 3)))}
    pieces: Pieces = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        count = len(tensor)
        if draw(st.booleans()):
            for rank in range(ranks):
                pieces[rank][name] = as_fsdp_does(count, rank, ranks)
            continue
        places = st.integers(0, count)
        cuts = sorted(draw(st.lists(places, min_size=ranks - 1, max_size=ranks - 1)))
        order = draw(st.permutations(range(ranks)))
        for rank, first, last in zip(order, [0, *cuts], [*cuts, count], strict=True):
            more = draw(st.integers(0, 2)) if overlapping else 0
            pieces[rank][name] = max(first - more, 0), min(last + more, count), count
    return {**tensors, "steps": torch.tensor(7)}, pieces


@given(
    dealt=dealt_out(),
    bounds=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3),
    file_bytes=st.sampled_from([1, 30, 2**31]),
)
def test_any_rows_come_back_whoever_had_them(
    dealt: tuple[Tensors, Pieces], bounds: list[tuple[int, int]], file_bytes: int
) -> None:
    tensors, pieces = dealt
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lrtrain.checkpoint, "_FILE_BYTES", file_bytes)
        checkpoint = save_pieces(Path(folder), 7, tensors, pieces)
        asked = dict[str, Rows]()
        for (one, other), (name, tensor) in zip(bounds, tensors.items(), strict=False):
            if tensor.dim():
                count = len(tensor)
                asked[name] = min(one, other, count), min(max(one, other), count), count
        random = {f"random.cpu.{rank}": any_bits(rank, 9) for rank in range(len(pieces))}
        assert_holds(checkpoint, {**tensors, **random})
        found = list(checkpoint.tensors(asked.get))
        assert len(found) == len(tensors) + len(random), "each comes once"
        expected = {
            name: tensor[asked[name][0] : asked[name][1]] if name in asked else tensor
            for name, tensor in tensors.items()
        }
        assert {name: bits(tensor) for name, tensor in found} == {
            name: bits(tensor) for name, tensor in (*expected.items(), *random.items())
        }


@given(count=st.integers(0, 13), saved=st.integers(1, 6), read=st.integers(1, 6))
def test_any_number_of_ranks_goes_on_from_any_other(count: int, saved: int, read: int) -> None:
    """Alone too, which says of its rows that they are all."""
    tensors = {"master.weight": any_bits(count, count, 4).view(torch.float32)}
    pieces = [{"master.weight": as_fsdp_does(count, rank, saved)} for rank in range(saved)]
    with TemporaryDirectory() as folder:
        checkpoint = save_pieces(Path(folder), 7, tensors, pieces)
        found = [
            dict(checkpoint.tensors({"master.weight": as_fsdp_does(count, rank, read)}.get))
            for rank in range(read)
        ]
    for rank, own in enumerate(found):
        first, last, _ = as_fsdp_does(count, rank, read)
        assert own["master.weight"].shape == (last - first, 1)
    whole = torch.cat([own["master.weight"] for own in found])
    assert bits(whole) == bits(tensors["master.weight"])


@given(count=st.integers(0, 9), bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_any_rows_come_of_what_one_process_saved(count: int, bounds: tuple[int, int]) -> None:
    """Without a word of rows, as a file has it that knows of none."""
    tensor = any_bits(count, count, 3)
    asked = min(*bounds, count), min(max(bounds), count), count
    with TemporaryDirectory() as folder:
        checkpoint = Checkpoints(Path(folder), "extend", 1).save(7, [("master.weight", tensor)])
        ((_, found),) = checkpoint.tensors(lambda name: asked)
    assert bits(found) == bits(tensor[asked[0] : asked[1]])


@given(dealt=dealt_out(overlapping=False), data=st.data())
def test_rows_that_are_missing_are_damage_for_who_needs_them(
    dealt: tuple[Tensors, Pieces], data: st.DataObject
) -> None:
    """A rank's files are not those of this checkpoint, though the others' are."""
    tensors, pieces = dealt
    name = data.draw(st.sampled_from([name for name, tensor in tensors.items() if tensor.dim()]))
    count = len(tensors[name])
    lost = data.draw(st.integers(0, len(pieces) - 1))
    first, last, _ = pieces[lost].pop(name)
    if not any(name in one for one in pieces):
        return  # who saved it alone says nothing of rows, and it is not there
    with TemporaryDirectory() as folder:
        checkpoint = save_pieces(Path(folder), 7, tensors, pieces)
        for start in range(count + 1):
            for stop in range(start, count + 1):
                asked = {name: (start, stop, count)}
                if max(start, first) < min(stop, last):
                    with pytest.raises(LongRecipeError) as problem:
                        list(checkpoint.tensors(asked.get))
                    message = str(problem.value)
                    assert message.startswith(f"{checkpoint.folder} is damaged (rows ")
                    assert f" of {name} are missing" in message
                    assert "\n" not in message
                else:
                    found = dict(checkpoint.tensors(asked.get))[name]
                    assert bits(found) == bits(tensors[name][start:stop])


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("asked", [(0, 2, 4), (2, 4, 4), (4, 4, 4), (0, 8, 8), (5, 8, 8)])
def test_rows_of_a_tensor_that_had_more_or_fewer_are_refused(
    ranks: int, asked: Rows, tmp_path: Path
) -> None:
    """Of another model, whose rows would fit in number; all of it is left to who asked, who sees
    its shape."""
    tensors = {"master.weight": any_bits(0, 6, 3)}
    pieces = [{"master.weight": as_fsdp_does(6, rank, ranks)} for rank in range(ranks)]
    for checkpoint in (
        save_pieces(tmp_path / "many", 7, tensors, pieces),
        Checkpoints(tmp_path / "alone", "extend", 1).save(7, tensors.items()),
    ):
        if asked[:2] == (0, asked[2]):
            found = dict(checkpoint.tensors(lambda name: asked if "master" in name else None))
            assert bits(found["master.weight"]) == bits(tensors["master.weight"])
        else:
            with pytest.raises(LongRecipeError) as problem:
                list(checkpoint.tensors(lambda name: asked if "master" in name else None))
            assert "of another model" in str(problem.value)
            assert f"6 rows of master.weight, not {asked[2]}" in str(problem.value)
            assert "\n" not in str(problem.value)


def test_files_that_do_not_agree_on_how_many_rows_there_are_are_damage(tmp_path: Path) -> None:
    tensors = {"master.weight": any_bits(0, 4, 3)}
    pieces: Pieces = [{"master.weight": (0, 2, 4)}, {"master.weight": (2, 4, 5)}]
    checkpoint = save_pieces(tmp_path, 7, tensors, pieces)
    with pytest.raises(LongRecipeError, match="is damaged"):
        list(checkpoint.tensors())


def test_files_are_as_the_format_says(tmp_path: Path) -> None:
    """What ranks have, each in files of its own, and which rows they are."""
    tensors = {"master.weight": any_bits(0, 3, 2), "steps": torch.tensor(7)}
    pieces = [{"master.weight": as_fsdp_does(3, rank, 3)} for rank in range(3)]
    folder = save_pieces(tmp_path, 7, tensors, pieces).folder
    files = [f"rank-{rank:03d}-00001.safetensors" for rank in range(3)]
    assert names(folder) == {STATE, *files}
    state = json.loads((folder / STATE).read_text())
    assert state == {"stage": "extend", "step": 7, "files": files}
    for rank, file in enumerate(files):
        with safe_open(folder / file, framework="pt") as opened:
            assert json.loads(opened.metadata()["rows"]) == {"master.weight": [rank, rank + 1, 3]}
            assert set(opened.keys()) == {"master.weight", "steps", f"random.cpu.{rank}"}
    # And from files that are written by the format alone.
    save_file({"a": any_bits(1, 2, 5)}, folder / "one.safetensors", {"rows": '{"a": [3, 5, 5]}'})
    save_file({"a": any_bits(2, 3, 5)}, folder / "two.safetensors", {"rows": '{"a": [0, 3, 5]}'})
    (folder / STATE).write_text('{"files": ["one.safetensors", "two.safetensors"]}')
    ((_, found),) = Checkpoint(folder, 7).tensors(lambda name: (2, 4, 5))
    assert torch.equal(found, torch.cat([any_bits(2, 3, 5), any_bits(1, 2, 5)])[2:4])


def test_many_ranks_keep_the_last_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    pieces = [{"master.weight": as_fsdp_does(5, rank, 3)} for rank in range(3)]
    for step in (2, 4, 6):
        checkpoint = save_pieces(tmp_path, step, {"master.weight": any_bits(step, 5, 2)}, pieces)
    assert names(tmp_path / "checkpoints") == {"extend-000006"}

    def latest(ranks: Ranks) -> Checkpoint | None:
        return Checkpoints(tmp_path, "extend", 1, ranks).latest()

    assert in_threads(3, latest) == [checkpoint] * 3


def test_what_another_host_wrote_is_waited_for(tmp_path: Path) -> None:
    """A file system may remember for a while that it was not there."""

    def latest(ranks: Ranks) -> Checkpoint | None:
        folder = tmp_path / f"host {ranks.rank}"
        alone = Checkpoints(folder, "extend", 1)
        what = (4, [("steps", torch.tensor(4))])
        if ranks.first:
            alone.save(*what)
        else:
            threading.Timer(0.3, alone.save, what).start()
        return Checkpoints(folder, "extend", 1, ranks).latest()

    found = in_threads(2, latest)
    assert [checkpoint.step for checkpoint in found] == [4, 4]


def test_hosts_that_share_no_folder_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first rank, before anything is lost, and when one goes on from a checkpoint that the
    others do not see in time."""
    monkeypatch.setattr(distributed, "_SEEN_WITHIN", 0.1)

    def of_its_own(ranks: Ranks) -> Checkpoints:
        return Checkpoints(tmp_path / f"host {ranks.rank}", "extend", 1, ranks)

    def save(ranks: Ranks) -> Checkpoint:
        return of_its_own(ranks).save(2, [(f"random.cpu.{ranks.rank}", any_bits(0, 9))])

    def said(ended: list[Any]) -> str:
        assert isinstance(ended[0], LongRecipeError)
        assert [type(one) for one in ended[1:]] == [Elsewhere] * 2
        return str(ended[0])

    assert "--out must be a folder that all hosts share" in said(in_threads(3, save))
    assert not any(path.name == STATE for path in tmp_path.rglob("*"))
    save_pieces(tmp_path / "host 1", 4, {"steps": torch.tensor(4)}, [{}])
    message = said(in_threads(3, lambda ranks: of_its_own(ranks).latest()))
    assert message.startswith(str(tmp_path / "host 0" / "checkpoints" / "extend-000004"))
    assert "--out must be a folder that all hosts share" in message
