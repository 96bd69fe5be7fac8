"""Fixtures that several tests of lrdata share."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from lrdata.building import build
from lrdata.recipe import BuildRecipe
from tests.corpora import some_texts, write_jsonl
from tests.lrdata.hub_datasets import TOKEN, made
from tests.lrdata.hub_server import HubServer, at_loopback


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of all kinds, to be pushed and not to be changed."""
    return made(tmp_path_factory.mktemp("made") / "shards")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """What HF_ENDPOINT leads to, with a token that may write."""
    with at_loopback(monkeypatch, tmp_path / "cache", TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "books" / "a.jsonl", some_texts(40, 1))
    text = write_jsonl(folder / "b.jsonl", some_texts(30, 2)).read_bytes()
    (folder / "books" / "b.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "books" / "c.jsonl.zst").write_bytes(zstandard.compress(text.replace(b"b-", b"c-")))
    write_jsonl(folder / "short.jsonl", some_texts(200, 3, longest=2))
    return folder


@pytest.fixture(scope="module")
def recipe(corpus: Path, tiny_bos_tokenizer: Path) -> BuildRecipe:
    return BuildRecipe(
        corpora=(str(corpus / "books"), str(corpus / "short.jsonl")),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=1024,
        segment_tokens=40,
        holdout=0.2,
        id_field="id",
        replay=(str(corpus / "short.jsonl"),),
        unit_bytes=60_000,
    )


@pytest.fixture(scope="module")
def built(recipe: BuildRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "shards"
    build(recipe, out, workers=1)
    return out
