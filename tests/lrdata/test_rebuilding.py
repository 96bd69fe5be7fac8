"""A dataset from its manifest and the sources it names: the same bytes, or the reason why not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lrdata.building import build
from lrdata.cli import main
from lrdata.errors import LongRecipeError
from lrdata.hub import pull
from lrdata.manifest import read_manifest
from lrdata.rebuilding import compare, rebuild
from lrdata.recipe import BuildRecipe
from lrdata.retargeting import retarget
from lrdata.verifying import verify
from tests.conftest import CHAT_TEMPLATE
from tests.corpora import content, some_texts, write_jsonl


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A folder with a corpus, a tokenizer and a dataset built from them elsewhere."""
    root = tmp_path_factory.mktemp("data")
    write_jsonl(root / "books" / "a.jsonl", some_texts(30, 1))
    write_jsonl(root / "books" / "b.jsonl", some_texts(30, 2))
    write_jsonl(root / "chat.jsonl", some_texts(50, 3, longest=3))
    shutil.copytree(tiny_tokenizer, root / "tiny")
    recipe = BuildRecipe(
        (str(root / "books"),),
        str(root / "tiny"),
        512,
        seed=7,
        holdout=0.1,
        replay=(str(root / "chat.jsonl"),),
        licences={"books": "mit"},
        unit_bytes=20_000,
    )
    build(recipe, root / "shards", workers=1)
    return root


@pytest.fixture
def moved(data: Path, tmp_path: Path) -> Path:
    """The same texts and the manifest alone, on another machine."""
    shutil.copytree(data / "books", tmp_path / "books")
    shutil.copy(data / "chat.jsonl", tmp_path)
    shutil.copytree(data / "tiny", tmp_path / "tiny")
    (tmp_path / "published").mkdir()
    shutil.copy(data / "shards" / "manifest.json", tmp_path / "published")
    return tmp_path


def test_the_same_bytes(data: Path, moved: Path) -> None:
    rebuilt = rebuild(moved / "published", moved / "again", root=moved, workers=1)
    assert rebuilt.equal
    assert len(rebuilt.same) == len(read_manifest(data / "shards").files) >= 5
    assert content(moved / "again") == content(data / "shards")


def test_sources_elsewhere(data: Path, moved: Path) -> None:
    (moved / "x").mkdir()
    for name in ("books", "chat.jsonl", "tiny"):
        (moved / name).rename(moved / "x" / name)
    done = CliRunner().invoke(
        main,
        [
            *("rebuild", str(moved / "published"), str(moved / "x" / "books")),
            *("--replay", str(moved / "x" / "chat.jsonl")),
            *("--tokenizer", str(moved / "x" / "tiny"), "--out", str(moved / "again")),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "files are the same, byte for byte" in done.stdout
    assert content(moved / "again") == content(data / "shards")


def test_a_retargeted_dataset(data: Path, moved: Path) -> None:
    retarget(data / "shards", 1024, moved / "wide")
    rebuilt = rebuild(moved / "wide", moved / "again", root=moved, workers=1)
    assert rebuilt.equal
    assert content(moved / "again") == content(moved / "wide")
    assert not list(moved.glob(".again*"))


def test_what_is_there_is_not_taken_for_rebuilt(data: Path, moved: Path) -> None:
    copy = shutil.copytree(data / "shards", moved / "copy")
    for out in (copy, moved / "published"):
        with pytest.raises(LongRecipeError, match="holds a dataset already"):
            rebuild(moved / "published", out, root=moved)


def test_a_foreign_folder_is_refused_before_a_retargeted_dataset_is_built(
    data: Path, moved: Path
) -> None:
    """Nothing is built for it, so no hidden copy stays either."""
    retarget(data / "shards", 1024, moved / "wide")
    (moved / "again").mkdir()
    (moved / "again" / "thesis.tex").write_text("dear")
    for out, said in (("again", "is not an empty folder"), ("again/thesis.tex", "is a file")):
        with pytest.raises(LongRecipeError, match=said):
            rebuild(moved / "wide", moved / out, root=moved, workers=1)
    assert not list(moved.rglob("*.rebuild"))
    assert content(moved / "again") == {"thesis.tex": b"dear"}


def test_an_interrupted_rebuild_of_a_retargeted_dataset_goes_on(
    data: Path, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it had built, for the window of the build."""
    retarget(data / "shards", 1024, moved / "wide")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("lrdata.rebuilding.retarget", "lrdata.retargeting._publish"):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            with pytest.raises(KeyboardInterrupt):
                rebuild(moved / "wide", moved / "again", root=moved, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("lrdata.building._build", lambda *_: pytest.fail("it is built anew"))
        assert rebuild(moved / "wide", moved / "again", root=moved, workers=1).equal
    assert content(moved / "again") == content(moved / "wide")
    assert not list(moved.glob(".again*"))


def test_a_path_that_is_there_is_no_glob(data: Path, tmp_path: Path) -> None:
    """Whatever characters it has: of it only the last part is published, as of any other."""
    made = []
    for parent in (tmp_path / "se[cr]et", tmp_path / "hid*den?"):
        shutil.copytree(data / "books", parent / "books")
        shutil.copy(data / "chat.jsonl", parent / "[chat].jsonl")
        shutil.copytree(data / "tiny", parent / "tiny")
        recipe = BuildRecipe(
            (str(parent / "books"),),
            str(parent / "tiny"),
            512,
            replay=(str(parent / "[chat].jsonl"),),
        )
        build(recipe, parent / "shards", workers=1)
        made.append(content(parent / "shards"))
        assert rebuild(parent / "shards", parent / "again", root=parent, workers=1).equal
    assert made[0] == made[1]
    assert not any(name in data for data in made[0].values() for name in (b"se[cr]et", b"hid"))


def test_a_part_is_rebuilt_as_the_whole(data: Path, moved: Path) -> None:
    part = pull(data / "shards", moved / "part", only=["extend"])
    found = compare(read_manifest(data / "shards"), part)
    assert found.equal
    assert len(found.same) == len(read_manifest(data / "shards").files)
    wide = retarget(moved / "part", 1024, moved / "wide")
    assert verify(moved / "wide") == []
    assert {entry.sha256 for entry in wide.left_out} == {""}
    whole = retarget(data / "shards", 1024, moved / "whole")
    found = compare(whole, wide)
    assert found.equal
    assert len(found.same) == len(wide.files)
    assert not compare(replace(whole, files=whole.files[1:]), wide).equal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corpora", ["/etc"]),
        ("corpora", ["../books"]),
        ("corpora", ["~/books"]),
        ("replay", ["x/../../chat.jsonl"]),
        ("tokenizer", "/etc"),
        ("impact", "lexicon:/etc/passwd"),
    ],
)
def test_a_recipe_names_nothing_outside_of_the_root(moved: Path, name: str, value: object) -> None:
    path = moved / "published" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["recipe"][name] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(LongRecipeError, match=r"the recipe names '.*', outside --root"):
        rebuild(moved / "published", moved / "again", root=moved)
    assert not (moved / "again").exists()


@pytest.mark.parametrize("spoiled", ["books/a.jsonl", "tiny/tokenizer.json", "chat.jsonl"])
def test_another_source_is_refused_by_name_before_it_is_built(moved: Path, spoiled: str) -> None:
    path = moved / spoiled
    text = path.read_text(encoding="utf-8")
    if spoiled.startswith("tiny"):
        raw = json.loads(text)
        raw["model"]["merges"] = raw["model"]["merges"][:-20]
        path.write_text(json.dumps(raw), encoding="utf-8")
    else:
        path.write_text(text.replace("e", "a", 1), encoding="utf-8")
    with pytest.raises(LongRecipeError, match="not what the dataset was built from") as found:
        rebuild(moved / "published", moved / "again", root=moved, workers=1)
    name = "tokenizer" if spoiled.startswith("tiny") else spoiled
    assert name in str(found.value)
    assert not list(moved.glob("again/*"))


def configured(root: Path, **changes: object) -> str:
    """The tokenizer with another configuration, in a folder of the same name: a process loads
    what is in one folder once."""
    folder = shutil.copytree(root / "tiny", root / "other" / "tiny")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"eos_token": "<|im_end|>"}, "end of text: 2, not 0"),
        ({"bos_token": "<|im_start|>", "add_bos_token": True}, "start of text: 1, not None"),
    ],
)
def test_another_end_or_start_of_text_is_another_build(
    changes: dict[str, object], name: str, data: Path, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer's table and what it encodes are the same: its configuration alone differs."""
    recipe = BuildRecipe((str(moved / "books"),), str(moved / "tiny"), 512)
    build(recipe, moved / "finished", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("lrdata.building._manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(recipe, moved / "stopped", workers=1)
    other = configured(moved, **changes)
    with pytest.raises(LongRecipeError, match=rf"built from \(tokenizer's {name}"):
        rebuild(moved / "published", moved / "again", root=moved, tokenizer=other, workers=1)
    there, here = name.split(": ")[1].split(", not ")
    for out in ("finished", "stopped"):
        what = rf"another build \(tokenizer's {name.split(':')[0]}: {here}, not {there}"
        with pytest.raises(LongRecipeError, match=what):
            build(replace(recipe, tokenizer=other), moved / out, workers=1)


def test_another_chat_template_is_another_build(moved: Path) -> None:
    """Of a dataset of before its template was noted it is not known."""
    asked = [{"q": f"What is {n} and {n}?", "a": f"It is {2 * n}."} for n in range(400)]
    (moved / "asked.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in asked))
    recipe = BuildRecipe(
        (str(moved / "books"),),
        str(moved / "tiny"),
        512,
        replay=(str(moved / "asked.jsonl"),),
        prompt_field="q",
        response_field="a",
        chat_template=True,
    )
    manifest = build(recipe, moved / "shards", workers=1)
    assert rebuild(moved / "shards", moved / "again", root=moved, workers=1).equal
    other = configured(moved, chat_template=CHAT_TEMPLATE.replace("role'] }}", "role'] }}:"))
    with pytest.raises(LongRecipeError, match=r"built from \(tokenizer's chat template: "):
        rebuild(moved / "shards", moved / "third", root=moved, tokenizer=other, workers=1)
    with pytest.raises(LongRecipeError, match=r"another build \(tokenizer's chat template: "):
        build(replace(recipe, tokenizer=other), moved / "shards", workers=1)
    path = moved / "shards" / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["chat_sha256"]
    path.write_text(json.dumps(raw))
    assert build(recipe, moved / "shards", workers=1) == replace(manifest, chat_sha256=None)
    assert rebuild(moved / "shards", moved / "older", root=moved, workers=1).equal


def test_a_missing_source_is_one_line(moved: Path) -> None:
    shutil.rmtree(moved / "books")
    with pytest.raises(LongRecipeError, match="books does not exist"):
        rebuild(moved / "published", moved / "again", root=moved)


def test_a_recipe_of_another_version(moved: Path) -> None:
    path = moved / "published" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["recipe"]["flavour"] = "sweet"
    path.write_text(json.dumps(raw))
    with pytest.raises(LongRecipeError, match="'flavour', which this version does not know"):
        rebuild(moved / "published", moved / "again", root=moved)


def test_what_differs_is_named(data: Path) -> None:
    there = read_manifest(data / "shards")
    first, second, third, *rest = there.files
    made = replace(
        there,
        files=[replace(first, sha256="0"), replace(second, sha256="0", content_sha256="0"), *rest],
        versions={**there.versions, "pyarrow": "0.1"},
    )
    found = compare(made, there)
    assert found.same == [entry.path for entry in rest]
    assert found.same_content == [first.path]
    assert found.other == [second.path, third.path]
    assert [line.split(":")[0] for line in found.versions] == ["pyarrow"]
    assert not found.equal


def test_a_file_without_a_hash_is_not_the_same(data: Path) -> None:
    made = read_manifest(data / "shards")
    there = replace(made, files=[replace(e, sha256="", content_sha256="") for e in made.files])
    found = compare(made, there)
    assert (found.same, found.other) == ([], [entry.path for entry in made.files])
    assert not found.equal


def test_a_comparison_removes_nothing(data: Path) -> None:
    there = read_manifest(data / "shards")
    recipe = BuildRecipe((str(data / "books"),), str(data / "tiny"), 512)
    with pytest.raises(LongRecipeError, match="not what the dataset was built from"):
        build(recipe, data / "shards", workers=1, overwrite=True, like=there)
    assert read_manifest(data / "shards") == there
