"""What the packages give: what the type checker sees is what is there, and only when asked for."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

import lrdata
from lrdata.cli import main
from tests.corpora import some_texts, write_jsonl


def promised(package: str) -> set[str]:
    """The names that `if TYPE_CHECKING` imports."""
    file = importlib.import_module(package).__file__
    assert file is not None
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
    return {str(alias.asname) for node in imports for alias in node.names}


@pytest.mark.parametrize("package", ["lrdata", "lrtrain"])
def test_every_promised_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert set(dir(module)) == promised(package)
    for name in promised(package):
        found = getattr(module, name)
        assert found.__name__ == name
        assert found.__doc__
        assert found.__module__.startswith(package)
    assert module.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute 'cook'"):
        module.cook  # noqa: B018


@pytest.mark.parametrize("package", ["lrdata", "lrtrain"])
def test_a_type_checker_sees_the_promised_names_alone(package: str) -> None:
    """To it a module with `__getattr__` has every name, misspelt ones too."""
    file = importlib.import_module(package).__file__
    assert file is not None
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "not TYPE_CHECKING"):
            assert "__getattr__" not in ast.unparse(node)


def test_a_name_is_the_function_whatever_was_imported_before() -> None:
    import lrdata.building
    import lrtrain.scoring

    assert lrdata.build is lrdata.building.build
    assert lrtrain.score is lrtrain.scoring.score


def test_import_reads_nothing_heavy() -> None:
    code = "import lrdata, lrtrain, sys; print([m for m in ('numpy','torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lrdata_never_reads_torch() -> None:
    code = (
        "import lrdata, sys\n"
        "for name in dir(lrdata): getattr(lrdata, name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_tutorial_of_the_docstring_runs(tmp_path: Path, tiny_tokenizer: Path) -> None:
    write_jsonl(tmp_path / "books" / "a.jsonl", some_texts(30))
    recipe = lrdata.BuildRecipe(
        corpora=(str(tmp_path / "books"),), tokenizer=str(tiny_tokenizer), target_len=512
    )
    manifest = lrdata.build(recipe, str(tmp_path / "shards"), workers=1)
    assert lrdata.verify(str(tmp_path / "shards")) == []
    row = lrdata.open_dataset(str(tmp_path / "shards")).read_row("extend", 0)
    assert len(row.input_ids) == manifest.train_len
    wide = lrdata.retarget(str(tmp_path / "shards"), 1024, str(tmp_path / "wide"))
    assert wide.target_len == 1024


@pytest.mark.parametrize("guarded", [True, False])
def test_the_tutorial_runs_as_a_script(guarded: bool, tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Its processes import the script again: without the guard they are told to begin anew."""
    write_jsonl(tmp_path / "books" / "a.jsonl", some_texts(30))
    indented = re.search(r"(?:^    .*\n|^\n)+", lrdata.__doc__ or "", re.MULTILINE)
    assert indented is not None
    code = textwrap.dedent(indented[0])
    assert "./llama3-8b" in code
    code = code.replace("./llama3-8b", str(tiny_tokenizer)).replace("131072", "512")
    code = code.replace('"shards")\n', '"shards", workers=2)\n', 1)
    if not guarded:
        code = re.sub("^if __name__.*$", "if True:", code, flags=re.MULTILINE)
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(lrdata.__path__[0]).parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode == 0) == guarded, done.stderr
    if guarded:
        assert lrdata.open_dataset(tmp_path / "shards").rows("extend") > 0
    else:
        assert "a script builds outside of if __name__ == '__main__':" in done.stderr


def test_json_and_version(tmp_path: Path, tiny_tokenizer: Path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", some_texts(30))
    out = tmp_path / "shards"
    words = [str(corpus), "--tokenizer", str(tiny_tokenizer), "--target-len", "512", "--json"]
    planned = printed("plan", *words)
    built = printed("build", *words, "--out", str(out), "--workers", "1")
    assert planned["rows"] > 0
    assert planned["units"] == 1
    assert built == json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert printed("verify", str(out), "--json") == {"folder": str(out), "problems": []}
    next(out.glob("extend/*")).unlink()
    done = CliRunner().invoke(main, ["verify", str(out), "--json"])
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["problems"]) == 1
    shown = CliRunner().invoke(main, ["--version"])
    assert shown.stdout == f"longrecipe {lrdata.__version__}\n"


def printed(*words: str) -> dict:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
