"""The wheel and the sdist: all that belongs in them; lrdata at work where there is nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.lrdata.test_building import some_texts, write_jsonl

ROOT = Path(__file__).parents[1]


def listed() -> list[str]:
    """The files of the repository; of an unpacked sdist, which is none, nothing."""
    if not (ROOT / ".git").exists():
        return []
    command = ["git", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def sources() -> list[str]:
    if not (found := listed()):
        pytest.skip("no repository to compare with")
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it.

    From a copy: a build writes into its sources, and tests in other processes build too.
    """
    out, tree = (tmp_path_factory.mktemp(name) for name in ("dist", "tree"))
    for name in listed():
        if (ROOT / name).exists():  # or it is about to be removed
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--outdir", out, tree if listed() else ROOT]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, without extras."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt", built["wheel"]], check=True)
    return folder / "bin"


def run(programs: Path, name: str, *words: object, code: int = 0) -> subprocess.CompletedProcess:
    """In a folder that is not the repository, so that only what is installed is found."""
    path = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [programs / name, *map(str, words)],
        cwd=programs,
        env=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_both_hold_all_modules_and_the_sdist_what_a_release_is_made_of(
    built: dict[str, Path], sources: list[str]
) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        in_wheel = set(wheel.namelist())
    with tarfile.open(built["sdist"]) as sdist:
        in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
    modules = {name for name in sources if name.startswith(("lrdata/", "lrtrain/"))}
    assert modules <= in_wheel  # pages' styles and scripts, too
    assert not any(name.startswith(("tests/", "bench/")) for name in in_wheel)
    assert {name for name in sources if not name.startswith(".git")} <= in_sdist


@pytest.mark.slow
def test_lrdata_works_alone(installed: Path, tmp_path: Path, tiny_tokenizer: Path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", some_texts(30))
    shards = tmp_path / "shards"
    run(installed, "lrdata", "--version")
    run(
        installed,
        *("lrdata", "build", corpus, "--tokenizer", tiny_tokenizer, "--target-len", 512),
        *("--out", shards, "--license", "a=mit"),
    )
    assert run(installed, "lrdata", "verify", shards, "--deep").stdout.endswith("is whole\n")
    run(installed, "lrdata", "inspect", shards, "--tokenizer", tiny_tokenizer)
    run(installed, "lrdata", "retarget", shards, "--target-len", "1k", "--out", tmp_path / "wide")
    run(
        installed,
        *("lrdata", "rebuild", tmp_path / "wide", "--root", tmp_path),
        *("--tokenizer", tiny_tokenizer, "--out", tmp_path / "again"),
    )
    run(installed, "lrdata", "report", tmp_path / "again", "--no-plots")
    run(installed, "lrdata", "push", tmp_path / "again", tmp_path / "shared")
    run(installed, "lrdata", "pull", tmp_path / "shared", tmp_path / "part", "--only", "extend")
    run(
        installed,
        *("lrdata", "export", tmp_path / "part", "--format", "trl", "--out", tmp_path / "trl"),
    )
    listed = json.loads(run(installed, "python", "-m", "pip", "list", "--format=json").stdout)
    assert not {"torch", "transformers"} & {package["name"] for package in listed}


@pytest.mark.slow
def test_lrtrain_says_what_it_lacks(installed: Path) -> None:
    run(installed, "lrtrain", "--help")
    done = run(installed, "lrtrain", "run", "shards", "--model", "m", "--out", "o", code=1)
    assert done.stderr.startswith("error: ")
    assert "pip install 'longrecipe[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
