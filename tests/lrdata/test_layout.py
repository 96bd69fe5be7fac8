"""What of a folder is a dataset's, and what `--overwrite` therefore removes."""

from pathlib import Path

import pytest

from lrdata.errors import LongRecipeError
from lrdata.layout import is_ours, is_shard, shard_name
from lrdata.shards import KINDS
from lrdata.staging import Staging
from tests.corpora import content
from tests.lrdata.made_dataset import write_dataset


@pytest.mark.parametrize("kind", KINDS)
def test_shards_have_the_names_that_load_dataset_reads_in_order(kind: str) -> None:
    names = [shard_name(kind, index, 12) for index in range(12)]
    assert names == sorted(names)
    assert all(is_shard(name, kind) and is_ours(name) for name in names)
    assert not any(is_shard(names[0], other) for other in KINDS if other != kind)
    many = [shard_name(kind, index, 123_456) for index in (9, 10, 99_999, 100_000)]
    assert many == sorted(many)
    assert all(is_shard(name, kind) for name in many)


@pytest.mark.parametrize(
    "name",
    [
        *("report/thesis.tex", "report/a/index.html", "extend/.pull", "extend/a.parquet", ".envrc"),
        *("replay/test-00000-of-00001.parquet", "quarantine/.x.jsonl", "a/README.md", "", "extend"),
    ],
)
def test_other_names_are_a_person_s(name: str) -> None:
    assert not is_ours(name)


def test_overwrite_leaves_what_a_person_put_into_a_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/index.html").write_text("ours")
    (tmp_path / "report/thesis.tex").write_text("mine")
    with Staging.open(tmp_path, {}, overwrite=True) as staging:
        staging.remove()
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(left) == ["report", "report/thesis.tex"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dataset", [False, True])
@pytest.mark.parametrize("name", ["debug.yaml", "recipe.json"])
def test_a_staging_folder_of_another_program_is_left_alone(
    name: str, dataset: bool, overwrite: bool, tmp_path: Path
) -> None:
    """SwiftPM has one of that name."""
    if dataset:
        write_dataset(tmp_path)
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build" / name).write_text('{"flour": 1}')
    (tmp_path / "README.md").write_text("mine")
    before = content(tmp_path)
    for _ in range(2):
        with pytest.raises(LongRecipeError), Staging.open(tmp_path, {}, overwrite):
            pass
    Staging(tmp_path).remove_rest()
    assert content(tmp_path) == before


def test_a_build_says_whose_its_staging_folder_is_before_anything_lies_beside_it(
    tmp_path: Path,
) -> None:
    """So an empty one, which any program may leave, does not make what is beside it ours."""
    (tmp_path / ".build").mkdir()
    (tmp_path / "README.md").write_text("mine")
    with (
        pytest.raises(LongRecipeError, match="no dataset of ours"),
        Staging.open(tmp_path, {}, overwrite=True),
    ):
        pass
    assert (tmp_path / "README.md").read_text() == "mine"


def test_overwrite_leaves_the_manifest_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/index.html").write_text("mine")
    (tmp_path / "manifest.json").write_text('{"name": "extension"}')
    with pytest.raises(LongRecipeError), Staging.open(tmp_path, {}, overwrite=True):
        pass
    assert not (tmp_path / ".build").exists(), "it would be taken for ours"
    assert (tmp_path / "report/index.html").exists()
    assert (tmp_path / "manifest.json").exists()
