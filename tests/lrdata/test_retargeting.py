"""Retargeted rows are the rows of the build with positions that span another window."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lrdata import select
from lrdata.atomic import LOCK
from lrdata.building import build
from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import read_manifest, write_manifest
from lrdata.recipe import BuildRecipe
from lrdata.retargeting import (
    RETARGETABLE,
    Positioner,
    _copy_quarantine,
    default_out,
    retarget,
    segments,
)
from lrdata.shard_writer import writing_shard
from lrdata.shards import LSD_FIELD, SCHEMA, Row, file_sha256
from lrdata.verifying import verify
from tests.conftest import generated_text
from tests.corpora import content

TARGET, NEW = 1024, 4096


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    for name, seed, paragraphs in (("long", 1, 60), ("short", 2, 4)):
        texts = ["".join(generated_text(paragraphs, 100 * seed + i)) for i in range(12)]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, '{"text": 5}', ""]))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path) -> BuildRecipe:
    corpus = write_corpus(tmp_path_factory.mktemp("retarget") / "corpus")
    return BuildRecipe(
        corpora=(str(corpus),),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=TARGET,
        segment_tokens=40,
        holdout=0.2,
        replay=(str(corpus / "short.jsonl"),),
        seed=5,
        unit_bytes=100_000,
    )


@pytest.fixture(scope="module")
def built(recipe: BuildRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of each kind in files of several row groups, and records in quarantine."""
    out = tmp_path_factory.mktemp("built") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrdata.shard_writer.PAGE_TOKENS", (1_000, 1_000))
        patch.setattr("lrdata.shard_writer.GROUP_TOKENS", 2_000)
        build(recipe, out, workers=1)
    assert open_dataset(out).kinds == ["extend", "replay", "holdout"]
    assert (out / "quarantine").is_dir()
    assert any(pq.ParquetFile(path).num_row_groups > 2 for path in out.rglob("*.parquet"))
    return out


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retargeted files have the row groups of the build."""
    monkeypatch.setattr("lrdata.shard_writer.PAGE_TOKENS", (1_000, 1_000))
    monkeypatch.setattr("lrdata.shard_writer.GROUP_TOKENS", 2_000)


def extend_rows(folder: Path) -> list[Row]:
    shards = open_dataset(folder)
    return [shards.read_row("extend", index) for index in range(shards.rows("extend"))]


# The draws of the build


@given(
    sentences=st.lists(st.tuples(st.integers(0, 120), st.booleans()), min_size=1, max_size=60),
    segment_tokens=st.integers(1, 100),
    lead=st.integers(0, 1),
)
def test_segments_are_recovered_from_the_pieces_of_a_row(
    sentences: list[tuple[int, bool]], segment_tokens: int, lead: int
) -> None:
    """Whatever is kept of whichever sentences; `True`: the next tokens are left out."""
    kept = np.array([count for count, _ in sentences if count], np.int64)
    left_out = np.array([gap for count, gap in sentences if count], bool)
    if not len(kept):
        return
    grouped = select.group(kept, segment_tokens)
    grouped[0] += lead
    lengths, kept = np.append(lead, kept + left_out), np.append(lead, kept)
    _, pieces = select.pieces(lengths, kept, grouped)
    assert segments(pieces, segment_tokens, lead).tolist() == grouped.tolist()


@pytest.mark.parametrize("scheme", RETARGETABLE)
@pytest.mark.parametrize("tokenizer", ["tiny_tokenizer", "tiny_bos_tokenizer"])
@pytest.mark.parametrize("impact", ["none", "digits", "random", "returns"])
def test_at_the_target_of_the_build_positions_are_those_of_the_build(
    scheme: str,
    tokenizer: str,
    impact: str,
    recipe: BuildRecipe,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    made = replace(
        recipe,
        positions=scheme,
        tokenizer=str(request.getfixturevalue(tokenizer)),
        impact=impact,
        evidence=-1,
        weights={"corpus": 2.0},
        replay=(),
    )
    build(made, tmp_path / "out", workers=1)
    positioner = Positioner.of(open_dataset(tmp_path / "out"))
    rows = extend_rows(tmp_path / "out")
    assert {row.sample_id.rsplit(":", 1)[1] for row in rows} == {"0", "1"}
    for row in rows:
        assert positioner.positions(row, TARGET).tolist() == row.position_ids.tolist()
        assert positioner.positions(row, NEW).tolist() != row.position_ids.tolist()


# The new dataset


@pytest.mark.parametrize("scheme", RETARGETABLE)
def test_there_and_back_gives_the_same_bytes(
    scheme: str, recipe: BuildRecipe, tmp_path: Path
) -> None:
    build(replace(recipe, positions=scheme), tmp_path / "0" / "shards", workers=1)
    retarget(tmp_path / "0" / "shards", NEW, tmp_path / "1" / "shards")
    retarget(tmp_path / "1" / "shards", TARGET, tmp_path / "2" / "shards")
    assert content(tmp_path / "2") == content(tmp_path / "0")


def test_the_way_does_not_matter(recipe: BuildRecipe, tmp_path: Path) -> None:
    """Without holdout rows a target may be below the window, down to the length of the rows."""
    first, least = tmp_path / "0" / "shards", recipe.train_len
    build(replace(recipe, holdout=0.0), first, workers=1)
    retarget(first, least, tmp_path / "1" / "shards")
    assert verify(tmp_path / "1" / "shards", deep=True) == []
    assert all(
        row.position_ids.tolist() == list(range(least))
        for row in extend_rows(tmp_path / "1" / "shards")
    )
    retarget(tmp_path / "1" / "shards", 3000, tmp_path / "2" / "shards")
    retarget(first, 3000, tmp_path / "3" / "shards")
    assert content(tmp_path / "2") == content(tmp_path / "3")
    assert read_manifest(tmp_path / "3" / "shards").recipe["retargeted_from"] == TARGET


@pytest.mark.parametrize("scheme", RETARGETABLE)
def test_positions_span_the_new_window(scheme: str, recipe: BuildRecipe, tmp_path: Path) -> None:
    build(replace(recipe, positions=scheme), tmp_path / "old", workers=1)
    retarget(tmp_path / "old", NEW, tmp_path / "new")
    assert verify(tmp_path / "new", deep=True) == []
    rows = extend_rows(tmp_path / "new")
    for row in rows:
        assert row.position_ids[0] == 0
        assert (np.diff(row.position_ids) > 0).all()
        assert row.position_ids[-1] < NEW
    last = [int(row.position_ids[-1]) for row in rows]
    assert max(last) > NEW * 3 // 4
    assert np.mean(last) > TARGET


def test_only_positions_and_the_target_change(built: Path, tmp_path: Path) -> None:
    retarget(built, NEW, tmp_path / "new")
    before, after = read_manifest(built), read_manifest(tmp_path / "new")
    for old, new in zip(before.files, after.files, strict=True):
        one = pq.read_table(built / old.path)
        other = pq.read_table(tmp_path / "new" / new.path)
        changed = ["position_ids", "target_len"] if old.kind == "extend" else ["target_len"]
        assert one.drop_columns(changed).equals(other.drop_columns(changed))
        assert set(other["target_len"].to_pylist()) == {NEW}
        if old.kind == "extend":
            pairs = zip(one["position_ids"], other["position_ids"], strict=True)
            assert all(old_ids != new_ids for old_ids, new_ids in pairs)
        assert (old.path, old.rows, old.tokens) == (new.path, new.rows, new.tokens)
    recipe = {**before.recipe, "target_len": NEW, "retargeted_from": TARGET}
    assert after == replace(before, target_len=NEW, recipe=recipe, files=after.files)


def test_the_folder_is_a_dataset_like_a_built_one(built: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "new"
    retarget(built, NEW, out)
    assert set(content(out)) == set(content(built))
    for path in (built / "quarantine").iterdir():
        assert (out / "quarantine" / path.name).read_bytes() == path.read_bytes()
    assert f"{NEW:,} tokens" in (out / "README.md").read_text()
    listed = json.loads((out / "croissant.json").read_text())["distribution"]
    hashes = {entry.get("sha256") for entry in listed}
    assert {entry.sha256 for entry in read_manifest(out).files} <= hashes
    for kind, split in (("extend", "train"), ("replay", "train"), ("holdout", "test")):
        loaded = load_dataset(str(out), kind, split=split, cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == open_dataset(out).rows(kind)
        assert set(loaded["target_len"]) == {NEW}


def test_scores_are_kept(built: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    shutil.copytree(built, scored)
    manifest = read_manifest(scored)
    entry = manifest.files[0]
    rows = extend_rows(scored)[: entry.rows]
    with writing_shard(scored / entry.path, SCHEMA.append(LSD_FIELD)) as shard:
        for row in rows:
            shard.write(replace(row, lsd=(row.input_ids / 7).astype(np.float16)))
    manifest.files[0] = made_again(scored, entry, shard.content.hexdigest())
    write_manifest(scored, manifest)
    retarget(scored, NEW, tmp_path / "new")
    assert verify(tmp_path / "new", deep=True) == []
    one, other = (pq.read_table(folder / entry.path) for folder in (scored, tmp_path / "new"))
    assert other["lsd"].equals(one["lsd"])


def made_again(folder: Path, entry: Any, content_sha256: str) -> Any:
    """The entry of a file that was written anew."""
    return replace(
        entry,
        bytes=(folder / entry.path).stat().st_size,
        sha256=file_sha256(folder / entry.path),
        content_sha256=content_sha256,
    )


# Interrupted


def disks_after(
    run: Callable[[], object], out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """`out` as a kill leaves it: a copy before and after each rename and each removal of `run`."""
    copies: list[Path] = []

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            for step in (lambda: plain(*given, **named), lambda: None):
                if out.exists():
                    copies.append(folder / str(len(copies)) / "shards")
                    shutil.copytree(out, copies[-1])
                step()

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched(os.replace))
        patch.setattr(shutil, "rmtree", watched(shutil.rmtree))
        patch.setattr(Path, "unlink", watched(Path.unlink))
        run()
    return copies


def test_after_a_kill_the_same_call_gives_the_same_bytes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "shards"
    disks = disks_after(lambda: retarget(built, NEW, out), out, tmp_path / "kill", monkeypatch)
    assert len(disks) > 20
    expected = content(out)
    complete = [disk for disk in disks if (disk / "manifest.json").exists()]
    assert 0 < len(complete) < len(disks)
    assert all(verify(disk, deep=True) == [] for disk in complete)
    for disk in disks:
        finish(built, disk, expected)


def finish(built: Path, disk: Path, expected: dict[str, bytes]) -> None:
    """Call it again where there is something left to do: to the same bytes."""
    if not is_done(disk):
        retarget(built, NEW, disk)
    else:  # at most the empty hidden folder is left over, which nobody takes for a plan
        shutil.rmtree(disk / ".retarget", ignore_errors=True)
    assert content(disk) == expected


def is_done(disk: Path) -> bool:
    hidden = {path.name for path in disk.glob(".retarget/*")}
    return (disk / "manifest.json").exists() and hidden <= {LOCK}


def test_no_plan_is_left_where_another_run_may_take_the_lock(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waited would go on by it, and clear what is complete once the plan is gone."""
    out = tmp_path / "out" / "shards"
    disks = disks_after(lambda: retarget(built, NEW, out), out, tmp_path / "kill", monkeypatch)
    freed = [
        disk
        for disk in disks
        if (disk / "manifest.json").exists() and not (disk / ".retarget" / LOCK).exists()
    ]
    assert freed
    for disk in freed:
        assert is_done(disk)
        with pytest.raises(LongRecipeError, match="is not an empty folder"):
            retarget(built, NEW, disk)
        assert verify(disk, deep=True) == []


def test_starting_again_may_be_killed_too(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "shards"
    disks = disks_after(lambda: retarget(built, NEW, out), out, tmp_path / "1", monkeypatch)
    expected = content(out)
    # The last one without a manifest has the most to remove.
    late = [disk for disk in disks if not (disk / "manifest.json").exists()][-1]
    assert (late / "extend").is_dir()
    again = disks_after(lambda: retarget(built, NEW, late), late, tmp_path / "2", monkeypatch)
    for disk in again:
        finish(built, disk, expected)


def test_files_of_a_half_removed_folder_are_not_taken_over(built: Path, tmp_path: Path) -> None:
    """A kill while the hidden folder is removed may leave anything of it."""
    stale = tmp_path / "out" / ".retarget" / "extend"
    stale.mkdir(parents=True)
    (stale / "train-00007-of-00008.parquet").write_bytes(b"of another dataset")
    retarget(built, NEW, tmp_path / "out")
    assert verify(tmp_path / "out", deep=True) == []


def test_an_interrupted_call_leaves_nothing_behind(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrdata.staging.write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        retarget(built, NEW, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_folder_of_another_target_is_not_touched(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "shards"
    disks = disks_after(lambda: retarget(built, NEW, out), out, tmp_path / "kill", monkeypatch)
    unfinished = disks[len(disks) // 2]
    (unfinished / ".retarget" / LOCK).unlink()  # which anybody may take who comes next
    before = content(unfinished)
    with pytest.raises(LongRecipeError, match=r"holds an unfinished retarget of another"):
        retarget(built, 2 * NEW, unfinished)
    assert content(unfinished) == before


def test_a_second_call_for_the_same_folder_waits_for_nobody(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is to make there."""
    out, others = tmp_path / "out", list[str]()

    def meanwhile(*given: Path) -> None:
        monkeypatch.undo()
        for target in (NEW, 2 * NEW):
            with pytest.raises(LongRecipeError) as problem:
                retarget(built, target, out)
            others.append(str(problem.value))
        _copy_quarantine(*given)

    monkeypatch.setattr("lrdata.retargeting._copy_quarantine", meanwhile)
    retarget(built, NEW, out)
    assert others == [f"another run is at work in {out}; wait for it, or choose another --out"] * 2
    assert verify(out, deep=True) == []


# Refused: one line, an exit code, nothing left behind


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def spoil_last_file(folder: Path) -> None:
    path = sorted((folder / "holdout").iterdir())[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add_a_column(folder: Path) -> None:
    manifest = read_manifest(folder)
    entry = manifest.files[0]
    table = pq.read_table(folder / entry.path)
    pq.write_table(table.append_column("mine", table["source"]), folder / entry.path)
    manifest.files[0] = made_again(folder, entry, entry.content_sha256)
    write_manifest(folder, manifest)


def other_positions(folder: Path) -> None:
    """The last position of the last row is another."""
    manifest = read_manifest(folder)
    number, entry = [pair for pair in enumerate(manifest.files) if pair[1].kind == "extend"][-1]
    rows = extend_rows(folder)[-entry.rows :]
    positions = rows[-1].position_ids.copy()
    positions[-1] += 1 if positions[-1] < TARGET - 1 else -1
    with writing_shard(folder / entry.path) as shard:
        for row in [*rows[:-1], replace(rows[-1], position_ids=positions)]:
            shard.write(row)
    manifest.files[number] = made_again(folder, entry, shard.content.hexdigest())
    write_manifest(folder, manifest)


def drop_holdout(manifest: Any) -> None:
    manifest["files"] = [entry for entry in manifest["files"] if entry["kind"] != "holdout"]


def move_extend_rows(folder: Path) -> None:
    (folder / "extend").rename(folder / "part")
    for entry in (manifest := read_manifest(folder)).files:
        if entry.kind == "extend":
            place = manifest.files.index(entry)
            manifest.files[place] = replace(entry, path=entry.path.replace("extend/", "part/"))
    write_manifest(folder, manifest)


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no dataset": (lambda f: (f / "manifest.json").unlink(), "4k", "is not a built dataset"),
    "the same target": (lambda f: None, "1k", "has positions for --target-len 1024 already"),
    "shorter than a row": (
        lambda f: edit(f, drop_holdout),
        "303",
        "--target-len 303 is too short: ",
    ),
    "shorter than a holdout row": (lambda f: None, "512", "has holdout rows of 1024 tokens"),
    "longer than an int32": (lambda f: None, "2g", "--target-len 2147483648 is too long"),
    "full": (
        lambda f: edit(f, lambda m: m["recipe"].update(positions="full")),
        "4k",
        "has positions of the scheme full, not drawn anew",
    ),
    "source": (
        lambda f: edit(f, lambda m: m["recipe"].update(positions="source")),
        "4k",
        "only longrecipe, pose, randpos can be retargeted",
    ),
    "no segments": (
        lambda f: edit(f, lambda m: m["recipe"].pop("segment_tokens")),
        "4k",
        "does not say how long segments are",
    ),
    "a damaged file": (spoil_last_file, "4k", "is damaged: its sha256 is not the manifest's"),
    "a missing file": (
        lambda f: shutil.rmtree(f / "replay"),
        "4k",
        "named by the manifest but missing",
    ),
    "a foreign column": (add_a_column, "4k", "has the column mine, which this version cannot keep"),
    "another seed": (
        lambda f: edit(f, lambda m: m.update(seed=6)),
        "4k",
        "are not those that longrecipe draws for it",
    ),
    "another position": (other_positions, "4k", "are not those that longrecipe draws for it"),
    "a file elsewhere": (
        move_extend_rows,
        "4k",
        "run `lrdata verify`",
    ),
}


def run(*arguments: object) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr that a person reads."""
    result = CliRunner().invoke(main, ["retarget", *map(str, arguments)])
    return result.exit_code, [line for line in result.stderr.splitlines() if "error" in line]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_clear_line(case: str, built: Path, tmp_path: Path) -> None:
    spoil, target, said = REFUSED[case]
    shutil.copytree(built, tmp_path / "shards")
    spoil(tmp_path / "shards")
    code, lines = run(tmp_path / "shards", "--target-len", target)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_target_that_is_no_size_is_bad_usage(built: Path, tmp_path: Path) -> None:
    code, lines = run(built, "--target-len", "wide", "--out", tmp_path / "new")
    assert (code, len(lines)) == (2, 1)
    assert "'wide' is not a size" in lines[0]


def test_a_folder_or_file_that_is_there_is_not_touched(built: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    for out, said in (
        (tmp_path, "is not an empty folder"),
        (tmp_path / "thesis.tex", "is a file"),
        (built, "is in the dataset"),
        (built / "new", "is in the dataset"),
    ):
        code, lines = run(built, "--target-len", "4k", "--out", out)
        assert (code, len(lines)) == (1, 1)
        assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "dear"
    assert verify(built, deep=True) == []


# The command


def test_the_command_writes_beside_the_dataset_and_names_the_folder(
    built: Path, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "shards")
    result = CliRunner().invoke(main, ["retarget", str(tmp_path / "shards"), "--target-len", "4k"])
    assert result.exit_code == 0, result.output
    out = tmp_path / "shards-4k"
    assert f"{out} is complete" in result.stdout
    assert verify(out, deep=True) == []
    again = CliRunner().invoke(main, ["retarget", str(tmp_path / "shards"), "--target-len", "4k"])
    assert again.exit_code == 1
    assert f"{out} is not an empty folder" in again.stderr


def test_the_default_folder_is_named_by_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert default_out(Path("data/shards/"), 262_144) == Path("data/shards-256k")
    assert default_out(Path("shards"), 200_000) == Path("shards-200000")
    monkeypatch.chdir(Path(__file__).parent)
    assert default_out(Path("."), 4096) == Path(__file__).parent.with_name("lrdata-4k")
