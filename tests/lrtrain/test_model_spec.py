"""Models as they are written on a command line."""

from pathlib import Path

import pytest

from lrdata.errors import LongRecipeError
from lrtrain.model_spec import ModelSpec, parse_models


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["a/b/merged"], [ModelSpec("merged", "a/b/merged")]),
        (["x=a/b"], [ModelSpec("x", "a/b")]),
        (["me/Llama@theta=8e6"], [ModelSpec("Llama@theta=8e6", "me/Llama", "theta=8e6")]),
        (["a@target=2k"], [ModelSpec("a@target=2k", "a", "auto", 2048)]),
        (["n=a@yarn,target=2048"], [ModelSpec("n", "a", "yarn", 2048)]),
        (
            ["r1/merged", "r2/merged", "r1/extend"],
            [
                ModelSpec("r1/merged", "r1/merged"),
                ModelSpec("r2/merged", "r2/merged"),
                ModelSpec("r1/extend", "r1/extend"),
            ],
        ),
        (
            ["m", "m@theta=1e6"],
            [ModelSpec("m", "m"), ModelSpec("m@theta=1e6", "m", "theta=1e6")],
        ),
        (["runs/lr=1/m"], [ModelSpec("m", "runs/lr=1/m")]),
    ],
)
def test_models_as_they_are_written(written: list[str], expected: list[ModelSpec]) -> None:
    assert parse_models(written) == expected


def test_a_folder_that_is_there_is_a_path_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lr=1@theta=2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_models(["lr=1@theta=2"]) == [ModelSpec("lr=1@theta=2", "lr=1@theta=2")]
    assert parse_models(["lr=1@theta=2@theta=5"])[0].path == "lr=1@theta=2"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("a@yarn,theta=8e6", "says it twice"),
        ("a@target=64k,target=128k", "says it twice"),
        ("a@yarn", "write @yarn,target=128k"),
        ("a@auto", "write @auto,target=128k"),
    ],
)
def test_a_rope_that_means_nothing_is_one_line(written: str, message: str) -> None:
    with pytest.raises(LongRecipeError, match=message) as problem:
        parse_models([written])
    assert "\n" not in str(problem.value)
