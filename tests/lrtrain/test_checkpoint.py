"""A checkpoint is there whole or not at all, and what it gives back is what it was given."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import lrtrain.checkpoint
from lrdata.errors import LongRecipeError
from lrtrain.checkpoint import (
    STATE,
    Checkpoints,
    random_state,
    set_random_state,
)
from tests.lrtrain.saved import Tensors, any_bits, assert_holds, names


def some_tensors(seed: int = 0) -> Tensors:
    return {
        "master.fp32": any_bits(seed, 6, 40).view(torch.float32),
        "master.bf16": any_bits(seed + 1, 8, 6).view(torch.bfloat16),
        "master.turned": any_bits(seed + 2, 4, 12).view(torch.float32).T,
        "exp_avg.none": torch.empty(0, 3),
        "step.fp32": torch.tensor(3.0),
        "random.cpu.0": any_bits(seed + 3, 501),
    }


def save(checkpoints: Checkpoints, step: int) -> Tensors:
    """Save tensors that no other step has."""
    tensors = some_tensors(1000 * step)
    checkpoints.save(step, tensors.items())
    return tensors


def died_while_saving(checkpoints: Checkpoints, step: int) -> None:
    """What a kill leaves: some files have been written, others have not."""
    kept = checkpoints.folder.with_name("as at the kill")

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for place in range(5):
            yield f"master.{place}", any_bits(place, 100)
        shutil.copytree(checkpoints.folder, kept)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        checkpoints.save(step, tensors())
    shutil.copytree(kept, checkpoints.folder, dirs_exist_ok=True)
    shutil.rmtree(kept)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has room for 300 bytes of tensors."""
    monkeypatch.setattr(lrtrain.checkpoint, "_FILE_BYTES", 300)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "extend", keep=1)
    assert checkpoints.latest() is None
    tensors = save(checkpoints, 3)
    latest = Checkpoints(tmp_path, "extend", keep=1).latest()
    assert_holds(latest, tensors)
    assert latest is not None
    assert latest.step == 3
    assert latest.folder == tmp_path / "checkpoints" / "extend-000003"
    assert len(list(latest.folder.glob("*.safetensors"))) == 1


def test_what_a_model_trains_is_kept_as_it_is(tmp_path: Path) -> None:
    """Parameters with a gradient history, and nothing of the history."""
    weight = torch.nn.Linear(3, 4).weight
    checkpoint = Checkpoints(tmp_path, "extend", keep=1).save(1, [("master.weight", weight)])
    ((_, found),) = checkpoint.tensors()
    assert torch.equal(found, weight)
    assert not found.requires_grad


@pytest.mark.usefixtures("small_files")
def test_tensors_that_do_not_fit_into_one_file_are_in_several(tmp_path: Path) -> None:
    """One that is larger than a file has a file of its own; none is cut."""
    tensors = {
        f"master.{place}": any_bits(place, size) for place, size in enumerate((100, 150, 900, 5))
    }
    checkpoint = Checkpoints(tmp_path, "extend", keep=1).save(1, tensors.items())
    sizes = [path.stat().st_size for path in sorted(checkpoint.folder.glob("*.safetensors"))]
    assert len(sizes) == 3
    assert sizes[1] == max(sizes)
    assert_holds(checkpoint, tensors)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_ones_stay(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "extend", keep)
    saved = {step: save(checkpoints, step) for step in (2, 4, 6, 7)}
    last = list(saved)[-keep:]
    assert [checkpoint.step for checkpoint in checkpoints.all()] == last
    assert names(checkpoints.folder) == {f"extend-{step:06d}" for step in last}
    for checkpoint in checkpoints.all():
        assert_holds(checkpoint, saved[checkpoint.step])


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "extend", keep=2)
    save(checkpoints, 999_998)
    save(checkpoints, 999_999)
    tensors = save(checkpoints, 1_000_000)
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [999_999, 1_000_000]
    assert_holds(checkpoints.latest(), tensors)


def test_the_checkpoints_of_another_stage_are_left_alone(tmp_path: Path) -> None:
    extend, anneal = (Checkpoints(tmp_path, stage, keep=1) for stage in ("extend", "anneal"))
    tensors = save(extend, 8)
    assert anneal.latest() is None
    save(anneal, 2)
    save(anneal, 4)
    assert names(extend.folder) == {"extend-000008", "anneal-000004"}
    died_while_saving(extend, 9)
    anneal.remove()
    assert anneal.latest() is None
    assert_holds(extend.latest(), tensors)


def test_nothing_stays_when_all_stages_are_done(tmp_path: Path) -> None:
    extend, anneal = (Checkpoints(tmp_path, stage, keep=2) for stage in ("extend", "anneal"))
    for checkpoints in (extend, anneal):
        save(checkpoints, 1)
        save(checkpoints, 2)
        died_while_saving(checkpoints, 3)
    extend.remove()
    anneal.remove()
    assert names(tmp_path) == set()
    anneal.remove()  # there were none
    assert names(tmp_path) == set()


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "extend", keep=1)
    save(checkpoints, 1)
    (checkpoints.folder / "notes.txt").write_text("step 1 looks good")
    save(checkpoints, 2)
    checkpoints.remove()
    assert names(checkpoints.folder) == {"notes.txt"}


# Saves that died


@pytest.mark.usefixtures("small_files")
def test_a_save_that_died_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "extend", keep=1)
    died_while_saving(checkpoints, 2)
    assert checkpoints.latest() is None
    tensors = save(checkpoints, 2)
    died_while_saving(checkpoints, 4)
    assert any(names(checkpoints.folder) - {"extend-000002"}), "nothing was half written"
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [2]
    assert_holds(checkpoints.latest(), tensors)


@pytest.mark.usefixtures("small_files")
def test_a_save_that_died_is_replaced(tmp_path: Path) -> None:
    """By one of fewer files, none of which is of the other."""
    checkpoints = Checkpoints(tmp_path, "extend", keep=1)
    died_while_saving(checkpoints, 4)
    tensors = {"master.weight": any_bits(9, 10)}
    checkpoint = checkpoints.save(4, tensors.items())
    assert_holds(checkpoints.latest(), tensors)
    assert len(list(checkpoint.folder.glob("*.safetensors"))) == 1
    assert names(checkpoints.folder) == {"extend-000004"}


@pytest.mark.usefixtures("small_files")
def test_a_save_that_died_does_not_keep_its_place_on_the_disk(tmp_path: Path) -> None:
    """One at a signal, say at step 37, which no later run will save: it has the size of three
    models."""
    checkpoints = Checkpoints(tmp_path, "extend", keep=1)
    died_while_saving(checkpoints, 37)
    save(checkpoints, 40)
    assert names(checkpoints.folder) == {"extend-000040"}


def test_a_disk_without_room_is_said_and_gets_its_room_back(tmp_path: Path) -> None:
    """By the real error of the real library, in a process that may write no file of over 4 kB."""
    script = f"""
import resource, signal, torch
from pathlib import Path
from lrtrain.checkpoint import Checkpoints
checkpoints = Checkpoints(Path({str(tmp_path)!r}), "extend", 1)
checkpoints.save(1, [("small", torch.zeros(10))])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoints.save(2, [("large", torch.zeros(10_000))])
except OSError as problem:
    assert (problem.errno, Path(problem.filename).name) == (27, "rank-000-00001.safetensors")
else:
    raise SystemExit("it was saved")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["extend-000001"]
    for path in (folder / "extend-000001").iterdir():
        assert path.stat().st_mode & 0o777 == folder.stat().st_mode & 0o666


def test_one_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole, and whoever removed it would lose hours."""
    checkpoints = Checkpoints(tmp_path, "extend", 1)
    save(checkpoints, 7)

    def refused(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(lrtrain.checkpoint, "open", refused, raising=False)
    latest = checkpoints.latest()
    assert latest is not None
    with pytest.raises(LongRecipeError, match=r"extend-000007 cannot be read .*Permission denied"):
        list(latest.tensors())


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    """An old one that was half removed: the one before or after it counts."""
    checkpoints = Checkpoints(tmp_path, "extend", keep=2)
    tensors = save(checkpoints, 2)
    (checkpoints.save(4, some_tensors().items()).folder / STATE).unlink()
    assert_holds(checkpoints.latest(), tensors)
    tensors = save(checkpoints, 4)
    assert_holds(checkpoints.latest(), tensors)


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gibberish(path: Path) -> None:
    path.write_bytes(b"\xff\x00" * 100)


def other_json(path: Path) -> None:
    path.write_text('{"stage": "extend", "step": 3, "files": null}')


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("rank-000-00001.safetensors", Path.unlink),
        ("rank-000-00002.safetensors", Path.unlink),
        ("rank-000-00001.safetensors", cut),
        ("rank-000-00002.safetensors", cut),
        ("rank-000-00002.safetensors", empty),
        ("rank-000-00002.safetensors", gibberish),
        (STATE, cut),
        (STATE, empty),
        (STATE, gibberish),
        (STATE, other_json),
    ],
)
def test_damage_is_one_line_that_names_the_folder(
    file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, "extend", keep=2)
    before = save(checkpoints, 2)
    save(checkpoints, 3)
    damaged = checkpoints.latest()
    assert damaged is not None
    damage(damaged.folder / file)
    assert checkpoints.latest() == damaged, "what is damaged is told, not passed over"
    with pytest.raises(LongRecipeError) as problem:
        list(damaged.tensors())
    assert str(problem.value).startswith(f"{damaged.folder} is damaged")
    assert "\n" not in str(problem.value)
    for path in damaged.folder.iterdir():  # what the line says to do
        path.unlink()
    damaged.folder.rmdir()
    assert_holds(checkpoints.latest(), before)


def test_one_that_is_removed_by_half_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed meanwhile leaves nothing that looks whole, whatever goes first."""
    checkpoints = Checkpoints(tmp_path, "extend", keep=1)
    save(checkpoints, 2)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lrtrain.checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove()
    assert checkpoints.all() == []
    assert checkpoints.latest() is None


# Random numbers


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    checkpoint = Checkpoints(tmp_path, "extend", keep=1).save(1, random_state())
    expected = torch.rand(8), torch.randn(8), torch.randperm(50)
    torch.manual_seed(6)
    for name, state in checkpoint.tensors():
        set_random_state(name, state)
    found = torch.rand(8), torch.randn(8), torch.randperm(50)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_the_state_of_a_gpu_that_is_not_here_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_rng_state()
    set_random_state("random.cuda.0", torch.zeros(16, dtype=torch.uint8))
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(random_state()).keys() == {"random.cpu.0"}


def test_each_rank_has_random_numbers_of_its_own() -> None:
    """That of others is passed over, where there is none it stays as it is."""
    states = dict[str, torch.Tensor]()
    expected = list[torch.Tensor]()
    for rank in (0, 1, 11):
        torch.manual_seed(rank)
        states |= dict(random_state(rank))
        expected.append(torch.rand(8))
    assert {f"random.cpu.{rank}" for rank in (0, 1, 11)} <= states.keys()
    for rank, numbers in zip((0, 1, 11), expected, strict=True):
        for name, state in states.items():
            set_random_state(name, state, rank)
        assert torch.equal(torch.rand(8), numbers)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, state in states.items():
        set_random_state(name, state, 2)
    assert torch.equal(torch.get_rng_state(), before)
