"""Fixtures that several tests of lrdata share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
