"""The dataset folder as others see it: `datasets` loads it, card and croissant.json are true."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lrdata.building import build
from lrdata.manifest import Manifest, read_manifest
from lrdata.recipe import BuildRecipe
from lrdata.retargeting import retarget
from lrdata.shards import SCHEMA
from tests.lrdata.test_building import some_texts, write_jsonl

_SPLITS = {"extend": "train", "replay": "train", "holdout": "test"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("card")
    recipe = BuildRecipe(
        corpora=(str(write_jsonl(folder / "books.jsonl", some_texts(40, 1))),),
        tokenizer=str(tiny_tokenizer),
        target_len=1024,
        segment_tokens=40,
        holdout=0.2,
        replay=(str(write_jsonl(folder / "short.jsonl", some_texts(200, 3, longest=2))),),
        licences={"books": "cc0-1.0", "short": "Our own"},
    )
    build(recipe, folder / "shards", workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def manifest(built: Path) -> Manifest:
    return read_manifest(built)


def _table(folder: Path, kind: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / kind).iterdir()))


@pytest.mark.parametrize("name", [None, "extend", "replay", "holdout"])
def test_datasets_loads_the_folder_and_rows_equal_the_parquet_rows(
    built: Path, name: str | None, tmp_path: Path
) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(built), name, cache_dir=str(tmp_path))
    kind = name or "extend"
    assert list(loaded) == [_SPLITS[kind]]
    rows = loaded[_SPLITS[kind]].to_list()
    assert rows
    assert rows == _table(built, kind).to_pylist()


def _front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_names_configs_and_licences(built: Path) -> None:
    front, _ = _front_matter(built)
    configs = {config["config_name"]: config for config in front["configs"]}
    assert list(configs) == ["extend", "replay", "holdout"]
    assert [name for name in configs if configs[name].get("default")] == ["extend"]
    for name, config in configs.items():
        (files,) = config["data_files"]
        assert files["split"] == _SPLITS[name]
        assert list(built.glob(files["path"])) == list((built / name).iterdir())
    assert front["license"] == ["cc0-1.0", "other"]
    assert front["license_name"] == "Our own"


def test_the_cards_counts_are_those_of_the_files(built: Path, manifest: Manifest) -> None:
    _, text = _front_matter(built)
    for kind in _SPLITS:
        table = _table(built, kind)
        tokens = len(table.column("input_ids").combine_chunks().flatten())
        size = sum(path.stat().st_size for path in (built / kind).iterdir())
        assert f"| `{kind}` | {table.num_rows:,} | {tokens:,} | {size:,} |" in text
    kept = re.search(r"\| = tokens kept \| ([\d,]+) \| ([\d,]+) \|", text)
    assert kept is not None
    assert manifest.replay_ledger is not None
    assert kept[1] == f"{manifest.ledger.kept:,}"
    assert kept[2] == f"{manifest.replay_ledger.kept:,}"


def test_the_cards_command_is_one_that_lrdata_takes(built: Path) -> None:
    import shlex

    from click.testing import CliRunner

    from lrdata.cli import main

    _, text = _front_matter(built)
    blocks = re.findall(r"```sh\n(lrdata build.*?)```", text, re.DOTALL)
    words = shlex.split(blocks[0].replace("\\\n", " "))
    assert CliRunner().invoke(main, [*words[1:], "--help"]).exit_code == 0
    flags = {word for word in words if word.startswith("--")}
    assert {"--target-len", "--segment-tokens", "--holdout", "--replay", "--license"} <= flags
    known = CliRunner().invoke(main, ["build", "--help"]).output
    assert all(flag in known for flag in flags)


def test_croissant_names_every_file_and_column(built: Path, manifest: Manifest) -> None:
    found = json.loads((built / "croissant.json").read_text(encoding="utf-8"))
    objects = [item for item in found["distribution"] if item["@type"] == "cr:FileObject"]
    assert {item["contentUrl"] for item in objects} == {entry.path for entry in manifest.files}
    for item in objects:
        data = (built / item["contentUrl"]).read_bytes()
        assert item["sha256"] == hashlib.sha256(data).hexdigest()
        assert item["contentSize"] == f"{len(data)} B"
    sets = {item["@id"]: item for item in found["distribution"] if item["@type"] == "cr:FileSet"}
    for records in found["recordSet"]:
        assert [field["name"] for field in records["field"]] == SCHEMA.names
        for field, column in zip(records["field"], SCHEMA, strict=True):
            files = sets[field["source"]["fileSet"]["@id"]]
            assert list(built.glob(files["includes"])) == list((built / records["name"]).iterdir())
            assert field.get("repeated", False) == pa.types.is_list(column.type)
            kind = column.type.value_type if field.get("repeated") else column.type
            name = {"string": "text", "bool": "boolean"}.get(str(kind), str(kind))
            assert field["dataType"].split(":")[1].lower() == name


def test_the_card_of_a_retargeted_dataset_says_how_it_was_made(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    retarget(built, 2048, out)
    text = (out / "README.md").read_text(encoding="utf-8")
    made = (built / "README.md").read_text(encoding="utf-8")
    build_command = re.findall(r"```sh\n(lrdata build.*?)```", made, re.DOTALL)[0]
    assert f"```sh\n{build_command}lrdata retarget FOLDER --target-len 2048\n```" in text
    assert "windows of text have 1,024 tokens" in text
    limit = next(line for line in made.splitlines() if line.startswith("- A row leaves out"))
    assert limit in text.splitlines()
    assert "retarget" not in made
