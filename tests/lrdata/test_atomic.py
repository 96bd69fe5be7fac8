import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrdata.atomic import replacing, write_json, write_text


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
    program = (
        "import os, signal, sys; from pathlib import Path; from lrdata.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "shard.parquet"
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode < 0
    assert not path.exists()
    write_text(path, "again")  # what is left of it is in nobody's way
    assert path.read_text() == "again"


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
