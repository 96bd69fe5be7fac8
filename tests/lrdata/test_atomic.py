import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lrdata.atomic import LOCK, clear, locked, remove_partials, replacing, write_json, write_text
from lrdata.errors import LongRecipeError

DYING = (
    "import os, signal, sys; from pathlib import Path; from lrdata.atomic import replacing\n"
    "with replacing(Path(sys.argv[1])) as partial:\n"
    "    partial.write_text('half')\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
)
"""A program that is killed while it writes a file."""


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "shard.parquet"
    with replacing(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        assert partial.parent == path.parent  # so that the rename cannot cross file systems
    assert path.read_bytes() == b"half"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("problem", [OSError("full"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, problem: BaseException
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("new")
            raise problem

    with pytest.raises(type(problem)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_writing_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write_nothing() -> None:
        with replacing(path):
            pass

    with pytest.raises(FileNotFoundError):
        write_nothing()
    assert path.read_text() == "old"


def test_a_killed_process_leaves_no_final_file(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    killed = subprocess.run([sys.executable, "-c", DYING, str(path)], check=False)
    assert killed.returncode < 0
    assert not path.exists()
    write_text(path, "again")  # what is left of it is in nobody's way
    assert path.read_text() == "again"


def test_what_killed_processes_left_half_written_can_be_removed(tmp_path: Path) -> None:
    write_text(tmp_path / "whole", "whole")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "shard")], check=False)
    assert len(os.listdir(tmp_path)) == 3
    remove_partials(tmp_path)
    assert os.listdir(tmp_path) == ["whole"]


def test_processes_of_one_number_do_not_write_to_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they have in two containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "shard"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert (one.read_text(), other.read_text()) == ("one", "other")


def test_the_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append("fsync")
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        done.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a", "text")
    assert done == ["fsync", "rename", "fsync"]  # the file, its name, the folder with the name


def test_json_keeps_order_and_script(tmp_path: Path) -> None:
    value = {"z": [1, 2.5, None], "a": {"text": "日本語 é"}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert list(json.loads(text)) == ["z", "a"]
    assert "日本語" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"z": [float("nan")]}, allow_nan=False)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text


# A folder for one process alone


def test_a_folder_is_locked_once_and_goes_when_it_is_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out / ".build", out):
        with (
            pytest.raises(LongRecipeError, match=rf"another run is at work in {out}"),
            locked(out / ".build", out),
        ):
            pass
        assert (out / ".build").exists()
    assert not out.exists()
    out.mkdir()
    with locked(out / ".build", out):
        pass
    assert os.listdir(out) == []  # it was there before
    with locked(out / ".build", out):
        (out / ".build" / "unit").touch()
        (out / ".build" / "more").mkdir()
    assert sorted(os.listdir(out / ".build")) == ["more", "unit"]
    (out / ".build" / LOCK).touch()  # as a kill leaves it
    with locked(out / ".build", out):
        clear(out / ".build", keep=("unit",))
        assert sorted(os.listdir(out / ".build")) == [LOCK, "unit"]
        clear(out / ".build")
    assert not out.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_locks_nothing_is_one_clear_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lustre without its mount option, or NFS without a lock server."""

    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    out = tmp_path / "out"
    with (
        pytest.raises(LongRecipeError, match=rf"file system of {out}/.build locks no files"),
        locked(out / ".build", out),
    ):
        pass


def test_the_lock_is_one_that_file_systems_tell_other_machines_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and CIFS do so for a file that is open for writing (flock(2)), not for a folder."""
    seen = []
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        writable = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        seen.append((stat.S_ISREG(os.fstat(handle).st_mode), writable))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a", tmp_path):
        pass
    assert seen == [(True, True)]


def test_a_lock_whose_file_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that comes to its end while another one opens the file, and a third that began anew."""
    real = fcntl.flock
    for third in (False, True):

        def late(handle: int, operation: int, third: bool = third) -> None:
            (tmp_path / "a" / LOCK).unlink()
            if third:
                (tmp_path / "a" / LOCK).touch()
            real(handle, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(LongRecipeError, match="another run"), locked(tmp_path / "a", tmp_path):
            pass
        assert (tmp_path / "a" / LOCK).exists() == third
