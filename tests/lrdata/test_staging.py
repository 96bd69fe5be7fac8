"""The folder of a build: gone on with, overwritten, refused, and stated anew."""

import importlib.metadata
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lrdata.building import build
from lrdata.cli import main
from lrdata.corpus import SourceFile
from lrdata.errors import LongRecipeError
from lrdata.hub import pull, push
from lrdata.layout import PAGE, PICTURE
from lrdata.manifest import read_manifest
from lrdata.recipe import BuildRecipe
from lrdata.report.card import card
from lrdata.report.dataset import write_report
from lrdata.unit import Job, Receipt, build_unit
from tests.corpora import content, some_texts, write_jsonl


def test_a_stopped_build_goes_on_to_the_same_bytes(
    built: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    import lrdata.unit

    calls = 0
    whole = lrdata.unit._UnitBuilder.run

    def stops(self):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(lrdata.unit._UnitBuilder, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        build(recipe, out, workers=1)
    assert sorted(path.name for path in out.iterdir()) == [".build"]
    monkeypatch.undo()
    build(recipe, out, workers=1)
    assert content(out) == content(built)


def stop_at(place: str, recipe: BuildRecipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is interrupted where it would call what is named."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, stop)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, out, workers=1)


def test_units_of_another_version_are_not_joined(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is what it is: another version has nothing to add to it."""

    out = tmp_path / "shards"
    stop_at("lrdata.building._manifest", recipe, out, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "99.0")
        with pytest.raises(LongRecipeError, match=r"\(version of .*: '.*', not '99\.0'\)"):
            build(recipe, out, workers=1)
    manifest = build(recipe, out, workers=1)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert build(recipe, out, workers=1) == manifest


def test_units_of_another_library_are_not_joined(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes may differ, and the manifest names one version of each."""
    out = tmp_path / "shards"
    stop_at("lrdata.building._manifest", recipe, out, monkeypatch)
    real = importlib.metadata.version

    def upgraded(name: str) -> str:
        return "99.0" if name == "zstandard" else real(name)

    monkeypatch.setattr("importlib.metadata.version", upgraded)
    with pytest.raises(LongRecipeError, match=r"\(version of zstandard: '.*', not '99\.0'\)"):
        build(recipe, out, workers=1)


def test_who_interrupts_does_not_wait_for_the_rest_of_a_large_file(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hash of 50 GB is being made; nor for processes that are just being started, so it
    happens often, each time at another moment of that."""
    files = [write_jsonl(tmp_path / name, some_texts(2, 1)) for name in ("a.jsonl", "b.jsonl")]
    begun = threading.Event()

    def endless(file: SourceFile, check: Callable[[], object]) -> str:
        if file.name == "a.jsonl":
            begun.wait()
            return "0" * 64
        while True:
            begun.set()
            time.sleep(0.001)
            check()

    def interrupted(*_: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrdata.sources.source_hash", endless)
    monkeypatch.setattr("lrdata.progress.Task.advance", interrupted)
    for _ in range(30):
        begun.clear()
        with pytest.raises(KeyboardInterrupt):
            build(replace(recipe, corpora=tuple(map(str, files))), tmp_path / "shards", workers=2)


def test_units_that_another_build_still_writes_are_not_taken(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does on another machine that does not know that its build was overwritten."""
    out, before = tmp_path / "shards", dict[int, Job]()

    def noted(job: Job) -> Receipt:
        before[job.unit.index] = job
        return build_unit(job)

    def late(job: Job) -> Receipt:
        build_unit(before[job.unit.index])
        return build_unit(job)

    other = replace(recipe, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("lrdata.building.build_unit", noted)
        stop_at("lrdata.building._manifest", recipe, out, monkeypatch)
        patch.setattr("lrdata.building.build_unit", late)
        build(other, out, workers=1, overwrite=True)
    build(other, tmp_path / "alone", workers=1)
    assert content(out) == content(tmp_path / "alone")
    build_unit(before[0])  # later still
    build(other, out, workers=1)
    assert content(out) == content(tmp_path / "alone")


def test_an_unfinished_build_of_before_units_had_a_folder_is_refused(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    stop_at("lrdata.building._manifest", recipe, out, monkeypatch)
    path = out / ".build" / "recipe.json"
    there = json.loads(path.read_text())
    path.write_text(json.dumps({name: there[name] for name in there if "layout" not in name}))
    with pytest.raises(LongRecipeError, match=r"another build \(layout of \.build.*--overwrite"):
        build(recipe, out, workers=1)
    assert build(recipe, out, workers=1, overwrite=True) == read_manifest(out)


def test_a_finished_build_is_left_alone(built: Path, recipe: BuildRecipe) -> None:
    before = content(built)
    times = {path: path.stat().st_mtime_ns for path in built.rglob("*.parquet")}
    build(recipe, built, workers=1)
    assert content(built) == before
    assert times == {path: path.stat().st_mtime_ns for path in built.rglob("*.parquet")}


def test_a_finished_build_that_lost_a_file_is_not_complete(
    built: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    out = shutil.copytree(built, tmp_path / "shards")
    shard = out / read_manifest(out).files[1].path
    for spoil in (lambda: os.truncate(shard, shard.stat().st_size - 1), shard.unlink):
        spoil()
        with pytest.raises(LongRecipeError, match=rf"{shard} is missing, .* --overwrite"):
            build(recipe, out, workers=1)
    build(recipe, out, workers=1, overwrite=True)
    assert content(out) == content(built)


def test_a_part_of_a_build_is_not_complete(
    built: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    pull(built, tmp_path / "part", only=["extend"])
    before = content(tmp_path / "part")
    with pytest.raises(LongRecipeError, match=r"part of this dataset, without (replay|holdout)/"):
        build(recipe, tmp_path / "part", workers=1)
    assert content(tmp_path / "part") == before


def test_another_recipe_in_the_same_folder_is_refused_by_name(
    built: Path, recipe: BuildRecipe
) -> None:
    with pytest.raises(LongRecipeError, match=r"seed: 0, not 1.*--overwrite"):
        build(replace(recipe, seed=1), built, workers=1)


def test_files_of_one_name_are_told_apart(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A file to extend with and one to replay; either may change."""
    paths = [write_jsonl(tmp_path / name / "a.jsonl", some_texts(30, 1)) for name in "er"]
    recipe = BuildRecipe(
        (str(paths[0]),), str(tiny_tokenizer), 1024, replay=(str(paths[1]),), replay_ratio=0.1
    )
    manifest = build(recipe, tmp_path / "out", workers=1)
    assert build(recipe, tmp_path / "out", workers=1) == manifest
    for path, name in zip(paths, ("corpus", "replay's corpus"), strict=True):
        before = path.read_bytes()
        path.write_bytes(before + b'{"text": "One more."}\n')
        with pytest.raises(LongRecipeError, match=rf"another build \({name} file a\.jsonl: "):
            build(recipe, tmp_path / "out", workers=1)
        with pytest.raises(LongRecipeError, match=rf"built from \({name} file a\.jsonl: "):
            build(recipe, tmp_path / "again", workers=1, like=manifest)
        path.write_bytes(before)
    assert build(recipe, tmp_path / "again", workers=1, like=manifest) == manifest


def test_overwrite_removes_only_what_is_ours(recipe: BuildRecipe, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    build(recipe, out, workers=1)
    (out / "notes.txt").write_text("mine")
    manifest = build(replace(recipe, seed=1), out, workers=1, overwrite=True)
    assert (manifest.seed, (out / "notes.txt").read_text()) == (1, "mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("dear")
    for _ in range(2):
        with pytest.raises(LongRecipeError, match="no dataset of ours"):
            build(recipe, other, workers=1, overwrite=True)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_overwrite_where_a_folder_of_it_was_moved_to_another_disk(
    recipe: BuildRecipe, tmp_path: Path
) -> None:
    """The link goes; what it leads to lies elsewhere and stays."""
    out, disk = tmp_path / "shards", tmp_path / "disk"
    build(recipe, out, workers=1)
    before = content(out / "extend")
    (out / "extend").rename(disk)
    (out / "extend").symlink_to(disk)
    (out / "replay" / "notes").symlink_to(disk)
    build(replace(recipe, seed=1), out, workers=1, overwrite=True)
    assert not (out / "extend").is_symlink()
    assert (out / "replay" / "notes").is_symlink()
    assert content(disk) == before
    (out / "replay" / "notes").unlink()
    build(replace(recipe, seed=1), tmp_path / "alone", workers=1)
    assert content(out) == content(tmp_path / "alone")


def test_an_overwrite_that_was_ended_is_to_be_given_again(
    built: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build without it cannot go on with what is half removed."""
    out, other = shutil.copytree(built, tmp_path / "shards"), replace(recipe, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("lrdata.staging._remove_ours", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(other, out, workers=1, overwrite=True)
    for again in (recipe, other):
        with pytest.raises(LongRecipeError, match=r"--overwrite that was ended; give --overwrite"):
            build(again, out, workers=1)
    build(other, out, workers=1, overwrite=True)
    build(other, tmp_path / "alone", workers=1)
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.parametrize(
    "wrong",
    [{"corpora": ("nowhere",)}, {"replay": ("nowhere",)}, {"tokenizer": "./nope"}, {"eot": "<fin>"}]
    + [{"impact": impact} for impact in ("vibes", "lexicon:nowhere", "scores:nowhere")],
)
def test_overwrite_removes_nothing_for_a_slip_of_the_pen(
    wrong: dict[str, Any], built: Path, recipe: BuildRecipe
) -> None:
    before = content(built)
    with pytest.raises(LongRecipeError):
        build(replace(recipe, **wrong), built, workers=1, overwrite=True)
    assert content(built) == before


def test_a_licence_can_be_stated_when_all_is_built(
    built: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the command that goes on with an unfinished build. No row depends on it."""
    stated = replace(recipe, licences={"books": "mit", "short": "cc0-1.0"})
    build(stated, tmp_path / "fresh", workers=1)
    expected = content(tmp_path / "fresh")
    for place in ("lrdata.building._manifest", "lrdata.staging.complete"):
        out = tmp_path / place
        stop_at(place, recipe, out, monkeypatch)
        build(stated, out, workers=1)
        assert content(out) == expected
    out = shutil.copytree(built, tmp_path / "finished")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    stop_at("lrdata.staging.write_manifest", stated, out, monkeypatch)
    for _ in range(2):
        assert build(stated, out, workers=1) == read_manifest(out)
        assert content(out) == expected
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    push(out, tmp_path / "pushed")


def test_a_licence_that_was_stated_stays(
    built: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --license a build takes none back; with one it changes that source's alone."""
    books = replace(recipe, licences={"books": "mit"})
    short = replace(recipe, licences={"short": "cc0-1.0"})
    other = replace(recipe, licences={"short": "odbl"})
    finished = shutil.copytree(built, tmp_path / "finished")
    unfinished = tmp_path / "unfinished"
    build(books, finished, workers=1)
    stop_at("lrdata.staging.complete", books, unfinished, monkeypatch)
    for out in (finished, unfinished):
        for made, expected in (
            (recipe, {"books": "mit"}),
            (short, {"books": "mit", "short": "cc0-1.0"}),
            (other, {"books": "mit", "short": "odbl"}),
            (recipe, {"books": "mit", "short": "odbl"}),
        ):
            manifest = build(made, out, workers=1)
            assert manifest == read_manifest(out)
            assert manifest.recipe["licences"] == expected
            assert {entry.source: entry.licence for entry in manifest.sources if entry.licence} == (
                expected
            )
        build(replace(recipe, licences=expected), tmp_path / f"fresh-{out.name}", workers=1)
        assert content(out) == content(tmp_path / f"fresh-{out.name}")


def test_a_licence_does_not_cost_what_is_in_the_card(
    built: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    """The picture of the report stays; what a person wrote is not written over."""
    out = shutil.copytree(built, tmp_path / "out")
    path, stated = out / "README.md", replace(recipe, licences={"books": "mit"})
    path.write_text(card(read_manifest(out), figure=PICTURE))
    manifest = build(stated, out, workers=1)
    assert path.read_text() == card(manifest, figure=PICTURE)
    path.write_text(path.read_text() + "My own words.\n")
    before = content(out)
    other = replace(recipe, licences={"books": "odbl"})
    with pytest.raises(LongRecipeError, match=r"README\.md is not as it was built.*move it away"):
        build(other, out, workers=1)
    assert content(out) == before
    path.unlink()
    manifest = build(other, out, workers=1)
    assert path.read_text() == card(manifest)


def test_a_report_of_other_licences_goes_and_that_is_said(
    built: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be pushed with them. It goes before the manifest names the new ones."""
    out, pushed = shutil.copytree(built, tmp_path / "out"), tmp_path / "pushed"
    words = [*recipe.corpora, "--config", str(out / "manifest.json"), "--out", str(out)]
    words += ["--tokenizer", recipe.tokenizer, "--replay", recipe.replay[0], "--workers", "1"]
    page, said = out / PAGE, f"{out / PAGE} named other licences and is removed; write it again"

    def building(*options: str) -> str:
        result = CliRunner().invoke(main, ["build", *words, *options])
        assert result.exit_code == 0, result.output
        return result.stderr

    stated = ["--license", "books=mit", "--license", "short=cc0-1.0"]
    building(*stated)
    write_report(out, plots=False)
    assert ">mit<" in page.read_text()
    assert said not in building()
    assert page.exists()
    with monkeypatch.context() as patch:
        stop_at(
            "lrdata.staging.write_manifest",
            replace(recipe, licences={"books": "odbl"}),
            out,
            patch,
        )
    assert not page.exists()
    write_report(out, plots=False)
    assert said in building("--license", "books=odbl")
    assert not page.exists()
    push(out, pushed)
    assert not (pushed / PAGE).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_build_in_the_same_folder_waits_for_nobody(
    overwrite: bool, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    other: list[str] = []

    def meanwhile(*_: object) -> None:
        with pytest.raises(LongRecipeError, match="another run is at work") as problem:
            build(recipe, out, workers=1, overwrite=overwrite)
        other.append(str(problem.value))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lrdata.building.units_of", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, out, workers=1)
    assert len(other) == 1
    build(recipe, out, workers=1)


def test_a_shard_that_no_unit_left_here_is_an_error_that_names_it(
    recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a unit is built on a machine with a folder of its own."""

    def elsewhere(job: Job) -> Receipt:
        receipt = build_unit(job)
        if job.unit.index == 1:
            (job.staging / receipt.files[0].path).unlink()
        return receipt

    out = tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr("lrdata.building.build_unit", elsewhere)
        with pytest.raises(LongRecipeError, match=r"unit-00001\.extend\.parquet is not .*ray"):
            build(recipe, out, workers=1)
    assert [path.name for path in out.iterdir()] == [".build"]
    assert build(recipe, out, workers=1) == read_manifest(out)


def test_a_shard_that_vanished_before_the_manifest_is_an_error_that_names_it(
    built: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    stop_at("lrdata.staging.complete", recipe, out, monkeypatch)
    shard = out / read_manifest(built).files[0].path
    data = shard.read_bytes()
    for spoil in (shard.unlink, lambda: shard.write_bytes(data[:-1])):
        spoil()
        with pytest.raises(LongRecipeError, match=rf"{shard.name} is not .*--overwrite"):
            build(recipe, out, workers=1)
        assert not (out / "manifest.json").exists()
    shard.write_bytes(data)
    build(recipe, out, workers=1)
    assert content(out) == content(built)


def test_a_foreign_folder_is_not_touched(recipe: BuildRecipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(LongRecipeError, match="not an empty folder"):
        build(recipe, tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
