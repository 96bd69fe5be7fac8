"""A built dataset is read as it is by tools that know nothing of us: the same rows as ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import polars as pl
import pytest

import lrdata
from tests.corpora import some_texts, write_jsonl

KINDS = ("extend", "replay", "holdout")
Rows = list[dict[str, Any]]


def by_polars(folder: Path, kind: str) -> Rows:
    return pl.scan_parquet(folder / kind / "*.parquet").collect().to_dicts()


def by_duckdb(folder: Path, kind: str) -> Rows:
    found = duckdb.sql(f"select * from read_parquet('{folder}/{kind}/*.parquet')")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_datasets(folder: Path, kind: str) -> Rows:
    splits = datasets.load_dataset(str(folder), kind, cache_dir=str(folder.with_name("cache")))
    (split,) = splits.values()
    return list(split)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    root = tmp_path_factory.mktemp("readers")
    corpus = write_jsonl(root / "a.jsonl", some_texts(40))
    recipe = lrdata.BuildRecipe(
        (str(corpus),),
        str(tiny_tokenizer),
        512,
        holdout=0.2,
        replay=(str(corpus),),
        unit_bytes=9_000,
    )
    lrdata.build(recipe, root / "shards", workers=1)
    return root / "shards"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [by_polars, by_duckdb, by_datasets])
def test_rows_are_ours(dataset: Path, kind: str, read: Callable[[Path, str], Rows]) -> None:
    shards = lrdata.open_dataset(dataset)
    found = read(dataset, kind)
    assert len(found) == shards.rows(kind) > 0
    for index, row in enumerate(found):
        ours = shards.read_row(kind, index)
        assert set(row) == {name for name in vars(ours) if name != "lsd"}
        for name, value in row.items():
            expected = getattr(ours, name)
            assert value == (expected.tolist() if hasattr(expected, "tolist") else expected), name
