"""A run on shards that lie on a hub is the run on the same shards in a folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lrdata.errors import LongRecipeError
from lrdata.hub import push
from lrdata.manifest import read_manifest
from lrtrain.cli import main
from lrtrain.doctor import examine
from lrtrain.metrics import read_metrics
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run
from tests.lrdata.hub_server import HubServer, at_loopback
from tests.lrtrain.tiny_runs import build_shards, save_tiny_model

ADDRESS = "hf://datasets/me/rows"
RECIPE = TrainRecipe(
    stages=("extend", "anneal"),
    steps=2,
    anneal_steps=1,
    rows_per_step=3,
    dtype="fp32",
    device="cpu",
)


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def hub(shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with the shards at ADDRESS."""
    with at_loopback(monkeypatch, tmp_path / "cache") as server:
        push(shards, ADDRESS, allow_unlicensed=True)
        yield server


def test_a_run_from_an_address_is_the_run_from_the_folder(
    hub: HubServer, shards: Path, model: Path, tmp_path: Path
) -> None:
    for where, out in ((shards, "local"), (ADDRESS, "remote")):
        run(where, str(model), tmp_path / out, RECIPE, lambda _: None)
    local, remote = tmp_path / "local", tmp_path / "remote"
    for name in ("recipe.json", "extend/model.safetensors", "anneal/model.safetensors"):
        assert (local / name).read_bytes() == (remote / name).read_bytes()
    losses = [
        [line["loss"] for line in read_metrics(out / "metrics.jsonl")] for out in (local, remote)
    ]
    assert losses[0] == losses[1]
    # The last step measures holdout windows, so all files were needed, and each came once.
    asked = [hub.storage.downloads[entry.sha256] for entry in read_manifest(shards).files]
    assert set(asked) == {1}


def test_the_commands_take_an_address(
    hub: HubServer, shards: Path, model: Path, tmp_path: Path
) -> None:
    options = ("--model", model, "--out", tmp_path / "run", "--steps", 1, "--rows-per-step", 1)
    arguments = [
        "run",
        ADDRESS,
        *options,
        "--stages",
        "extend",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
    ]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    named = json.loads((tmp_path / "run/recipe.json").read_text())["shards"]
    assert named == [entry.sha256 for entry in read_manifest(shards).files]
    first = next(examine(ADDRESS, str(model), RECIPE))
    assert first.ok
    assert "each file is checked when it is fetched" in first.said


def test_a_shard_that_came_damaged_stops_the_run_by_its_name(
    hub: HubServer, shards: Path, model: Path, tmp_path: Path
) -> None:
    (entry,) = [entry for entry in read_manifest(shards).files if entry.kind == "extend"]
    good = hub.storage.files[f"blob/{entry.sha256}"]
    hub.storage.files[f"blob/{entry.sha256}"] = bytes(len(good))
    with pytest.raises(LongRecipeError, match=f"{entry.path} is damaged: its sha256"):
        run(ADDRESS, str(model), tmp_path / "run", RECIPE, lambda _: None)
