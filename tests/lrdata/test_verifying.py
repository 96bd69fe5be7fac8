"""A good dataset passes; whatever is spoiled in it, `verify` names the place."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.manifest import TokenizerEntry
from lrdata.shard_writer import writing_shard
from lrdata.shards import LSD_FIELD, SCHEMA, Row, file_sha256
from lrdata.verifying import _SampleIds, verify
from tests.lrdata.made_dataset import (
    BOS,
    MAKERS,
    TARGET,
    TRAIN,
    VOCABULARY,
    extend_row,
    good_rows,
    rows_to_table,
    tokenizer_entry,
    write_dataset,
)

FIRST = "extend/train-00000-of-00002.parquet"
SECOND = "extend/train-00001-of-00002.parquet"
OF_KIND = {
    "extend": FIRST,
    "replay": "replay/train-00000-of-00001.parquet",
    "holdout": "holdout/test-00000-of-00001.parquet",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right dataset, not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    write_dataset(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(good, tmp_path / "shards")
    return tmp_path / "shards"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    """Change the manifest's JSON in place."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refresh(folder: Path, name: str) -> None:
    """Make the manifest agree with the bytes of a file that was changed."""

    def change(manifest: Any) -> None:
        for entry in manifest["files"]:
            if entry["path"] == name:
                entry["bytes"] = (folder / name).stat().st_size
                entry["sha256"] = file_sha256(folder / name)

    edit(folder, change)


@pytest.mark.parametrize("deep", [False, True])
def test_a_good_dataset_has_no_problems(good: Path, deep: bool) -> None:
    assert verify(good, deep=deep) == []


def test_a_dataset_with_a_start_of_text_token_has_no_problems(tmp_path: Path) -> None:
    write_dataset(tmp_path, with_bos(), tokenizer_entry(bos_id=BOS))
    assert verify(tmp_path, deep=True) == []


def test_a_dataset_of_extend_rows_alone_has_no_problems(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"extend": [[extend_row()]]})
    assert verify(tmp_path, deep=True) == []


def write_retargeted(folder: Path, target_len: int = 2 * TARGET) -> None:
    """Good rows of windows of TARGET tokens whose positions are said to span another length."""
    files = {
        kind: [[replace(row, target_len=target_len) for row in rows] for rows in parts]
        for kind, parts in good_rows().items()
    }
    files["extend"][0][0].position_ids[-12:] += target_len - TARGET
    write_dataset(folder, files, retargeted_from=TARGET)
    edit(folder, lambda manifest: manifest.update(target_len=target_len))
    edit(folder, lambda manifest: manifest["recipe"].update(target_len=target_len))


def test_a_retargeted_dataset_has_windows_of_the_first_target(tmp_path: Path) -> None:
    write_retargeted(tmp_path)
    assert verify(tmp_path, deep=True) == []
    edit(tmp_path, lambda manifest: manifest["recipe"].pop("retargeted_from"))
    problems = verify(tmp_path)
    assert f"{FIRST} row 0: its window_tokens is not 128 (and 2 more)" in problems
    assert f"{OF_KIND['holdout']} row 0: its window_tokens is not 128 (and 2 more)" in problems


def test_holdout_windows_fit_in_the_new_target(tmp_path: Path) -> None:
    write_retargeted(tmp_path, TARGET - 8)
    name = OF_KIND["holdout"]
    assert verify(tmp_path) == [f"{name} row 0: a position is not in [0, 56) (and 2 more)"]


@pytest.mark.parametrize("value", ["64", 0, -1, None])
def test_the_first_target_is_a_length(tmp_path: Path, value: Any) -> None:
    write_retargeted(tmp_path)
    edit(tmp_path, lambda manifest: manifest["recipe"].update(retargeted_from=value))
    assert f"manifest.json: retargeted_from {value!r} is not a length" in verify(tmp_path)


def test_scored_rows_have_no_problems(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"extend": [[extend_row()]]})
    rewrite_scored(tmp_path, TRAIN)
    assert verify(tmp_path, deep=True) == []


def with_bos() -> dict[str, list[list[Row]]]:
    """Good rows whose extend and holdout windows begin with a start-of-text token."""
    files = good_rows()
    for kind in ("extend", "holdout"):
        files[kind] = [[led(row) for row in part] for part in files[kind]]
    return files


def led(row: Row) -> Row:
    ids, lengths = row.input_ids.copy(), row.doc_lengths.copy()
    ids[0] = BOS
    lengths[0] -= 1
    return replace(row, input_ids=ids, doc_lengths=lengths)


def rewrite_scored(folder: Path, scores: int) -> None:
    """Write the only shard anew with so many `lsd` values in its row."""
    path = folder / "extend/train-00000-of-00001.parquet"
    row = extend_row(lsd=np.zeros(scores, np.float16))
    with writing_shard(path, SCHEMA.append(LSD_FIELD)) as shard:
        shard.write(row)
    refresh(folder, "extend/train-00000-of-00001.parquet")
    content = shard.content.hexdigest()
    edit(folder, lambda manifest: manifest["files"][0].update(content_sha256=content))


# A spoiled row. The second of three is spoiled, with a manifest that agrees with the file.

GOOD = {kind: make(1) for kind, make in MAKERS.items()}


def changed(kind: str, column: str, index: int, value: int | bool) -> dict[str, Any]:
    """The column of a good row with one value changed."""
    array = getattr(GOOD[kind], column).copy()
    array[index] = value
    return {column: array}


def shorter(kind: str, column: str) -> dict[str, Any]:
    return {column: getattr(GOOD[kind], column)[:-1]}


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def longer(kind: str, length: int) -> dict[str, Any]:
    """A consistent row of another length: one segment, one attention document."""
    row = MAKERS[kind](1)
    return {
        "input_ids": np.full(length, 7, np.int32),
        "position_ids": np.arange(length, dtype=np.int32),
        "seq_lengths": i32(length),
        "impact_mask": np.zeros(length, bool),
        "loss_mask": np.ones(length, bool),
        "segment_starts": i32(0),
        "segment_lengths": i32(length),
        **(
            {"window_tokens": length, "doc_lengths": i32(10, length - 10)}
            if kind == "replay"
            else {"doc_lengths": row.doc_lengths}
        ),
    }


SPOILED_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("extend", longer("extend", 0), "it has no tokens"),
    ("extend", changed("extend", "input_ids", 4, VOCABULARY), "an id is not in [0, 1000)"),
    ("replay", changed("replay", "input_ids", 0, -1), "an id is not in [0, 1000)"),
    ("extend", shorter("extend", "position_ids"), "position_ids is not as long as input_ids"),
    ("extend", shorter("extend", "impact_mask"), "impact_mask is not as long as input_ids"),
    ("holdout", shorter("holdout", "loss_mask"), "loss_mask is not as long as input_ids"),
    (
        "extend",
        shorter("extend", "segment_starts"),
        "segment_lengths is not as long as segment_starts",
    ),
    ("extend", shorter("extend", "doc_offsets"), "doc_offsets is not as long as doc_ids"),
    ("replay", shorter("replay", "doc_lengths"), "doc_lengths is not as long as doc_ids"),
    ("extend", {"seq_lengths": i32(20, 11)}, "seq_lengths does not sum to the row's length"),
    ("extend", {"seq_lengths": i32(32, 0)}, "seq_lengths has an entry below 1"),
    ("replay", {"seq_lengths": i32(10, 16)}, "seq_lengths does not sum to the row's length"),
    ("extend", {"segment_lengths": i32(8, 12, 13)}, "segment_lengths does not sum to the"),
    ("extend", {"segment_lengths": i32(32, -1, 1)}, "segment_lengths has an entry below 1"),
    ("extend", longer("extend", TRAIN + 1), f"it is longer than train_len {TRAIN}"),
    ("replay", longer("replay", TRAIN + 1), f"it is longer than train_len {TRAIN}"),
    ("holdout", longer("holdout", TARGET + 1), f"it is longer than a window of {TARGET}"),
    ("holdout", longer("holdout", TARGET - 1), "it is not a whole window"),
    ("extend", {"kind": "replay"}, "its kind is not extend"),
    ("holdout", {"kind": "extend"}, "its kind is not holdout"),
    ("extend", {"target_len": 128}, "its target_len is not 64"),
    ("replay", {"target_len": 128}, "its target_len is not 64"),
    ("extend", {"window_tokens": 63, "doc_lengths": i32(30, 33)}, "its window_tokens is not 64"),
    ("replay", {"window_tokens": 26, "doc_lengths": i32(10, 16)}, "its window_tokens is not its"),
    ("extend", changed("extend", "position_ids", 0, -1), "a position is not in [0, 64)"),
    ("extend", changed("extend", "position_ids", -1, TARGET), "a position is not in [0, 64)"),
    ("extend", changed("extend", "position_ids", 8, 7), "positions are not strictly increasing"),
    ("extend", changed("extend", "position_ids", 20, 3), "positions are not strictly increasing"),
    ("extend", changed("extend", "position_ids", 31, 60), "positions jump inside a segment"),
    ("replay", changed("replay", "position_ids", 10, 10), "positions do not count from 0 in each"),
    ("replay", {"seq_lengths": i32(25)}, "positions do not count from 0 in each document"),
    ("replay", {"seq_lengths": i32(11, 14)}, "positions do not count from 0 in each document"),
    ("holdout", changed("holdout", "position_ids", 9, 8), "positions are not 0, 1, 2, ..."),
    ("extend", {"segment_starts": i32(-1, 20, 40)}, "a segment leaves the window"),
    ("extend", {"segment_starts": i32(0, 20, 53)}, "a segment leaves the window"),
    ("extend", {"segment_starts": i32(0, 7, 40)}, "segments overlap or are out of order"),
    ("extend", {"segment_starts": i32(20, 0, 40)}, "segments overlap or are out of order"),
    ("extend", changed("extend", "doc_offsets", 1, -1), "doc_offsets has an entry below 0"),
    ("extend", {"doc_lengths": i32(64, 0)}, "doc_lengths has an entry below 1"),
    ("extend", {"doc_lengths": i32(30, 33)}, "doc_lengths does not sum to window_tokens"),
    ("replay", {"doc_lengths": i32(10, 16)}, "doc_lengths does not sum to window_tokens"),
    ("extend", changed("extend", "loss_mask", 3, False), "loss_mask is not all true"),
    ("holdout", changed("holdout", "loss_mask", 3, False), "loss_mask is not all true"),
    ("replay", changed("replay", "impact_mask", 3, True), "impact_mask is not all false"),
    ("extend", {"sample_id": extend_row(0).sample_id}, "its sample_id was there before"),
]


@pytest.mark.parametrize(
    ("kind", "changes", "said"), SPOILED_ROWS, ids=[f"{k}: {s}" for k, _, s in SPOILED_ROWS]
)
def test_a_spoiled_row_is_named(
    tmp_path: Path, kind: str, changes: dict[str, Any], said: str
) -> None:
    files = good_rows()
    files[kind][0][1] = replace(GOOD[kind], **changes)
    write_dataset(tmp_path, files)
    problems = verify(tmp_path)
    assert f"{OF_KIND[kind]} row 1: {said}" in "\n".join(problems)
    assert all(line.startswith(f"{OF_KIND[kind]} row 1: ") for line in problems), problems


def test_the_other_rows_of_a_group_are_checked_behind_a_spoiled_one(tmp_path: Path) -> None:
    """Lengths that do not fit must not shift the values of the rows behind them."""
    files = good_rows()
    files["extend"][0][0] = replace(extend_row(0), **shorter("extend", "position_ids"))
    files["extend"][0][2] = extend_row(2, **changed("extend", "input_ids", 0, -1))
    write_dataset(tmp_path, files)
    assert verify(tmp_path) == [
        f"{FIRST} row 0: position_ids is not as long as input_ids",
        f"{FIRST} row 2: an id is not in [0, 1000)",
    ]


def test_many_bad_rows_are_one_line(tmp_path: Path) -> None:
    rows = [extend_row(n, target_len=2 * TARGET) for n in range(5)]
    write_dataset(tmp_path, {"extend": [[extend_row(5), *rows]]})
    assert verify(tmp_path) == [
        "extend/train-00000-of-00001.parquet row 1: its target_len is not 64 (and 4 more)"
    ]


def test_row_numbers_go_on_over_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrdata.shard_writer.PAGE_TOKENS", (1, 1))
    monkeypatch.setattr("lrdata.shard_writer.GROUP_TOKENS", 1)  # a group for each row
    rows = [extend_row(n) for n in range(4)]
    rows[3] = extend_row(0, **changed("extend", "input_ids", 0, -1))
    write_dataset(tmp_path, {"extend": [rows]})
    name = "extend/train-00000-of-00001.parquet"
    assert pq.ParquetFile(tmp_path / name).num_row_groups == 4
    assert sorted(verify(tmp_path, deep=True)) == [
        f"{name} row 3: an id is not in [0, 1000)",
        f"{name} row 3: its sample_id was there before",
    ]


def test_a_repeated_sample_is_found_in_another_file(tmp_path: Path) -> None:
    files = good_rows()
    files["extend"][1][2] = extend_row(0)
    write_dataset(tmp_path, files)
    assert verify(tmp_path) == [f"{SECOND} row 2: its sample_id was there before"]


def test_sample_ids_are_told_apart_whatever_their_hashes_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrdata.verifying.hash", lambda name: len(name) % 2, raising=False)
    files = good_rows()
    write_dataset(tmp_path / "good", files)
    assert verify(tmp_path / "good") == []
    files["extend"][0][1] = extend_row(0)
    files["extend"][1] += [extend_row(3), extend_row(0)]
    write_dataset(tmp_path / "bad", files)
    assert verify(tmp_path / "bad") == [
        f"{FIRST} row 1: its sample_id was there before",
        f"{SECOND} row 3: its sample_id was there before (and 1 more)",
    ]


def test_what_is_kept_of_a_row_are_a_few_bytes(tmp_path: Path) -> None:
    ids, rows = _SampleIds(tmp_path), 100_000
    tracemalloc.start()
    for start in range(0, rows, 100):
        names = [f"books/{number:09d}.jsonl:0:0:0" for number in range(start, start + 100)]
        ids.add(pa.table({"sample_id": names}))
    held, _ = tracemalloc.get_traced_memory()
    assert list(ids.repeated()) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (held < 10 * rows, peak < 32 * rows) == (True, True)


def test_the_start_of_text_token_is_first(tmp_path: Path) -> None:
    files = with_bos()
    ids = files["extend"][0][1].input_ids.copy()
    ids[0] = 99
    files["extend"][0][1] = replace(files["extend"][0][1], input_ids=ids)
    write_dataset(tmp_path, files, tokenizer_entry(bos_id=BOS))
    assert verify(tmp_path) == [
        f"{FIRST} row 1: it does not begin with the start-of-text token {BOS}"
    ]


def test_documents_leave_room_for_the_start_of_text_token(tmp_path: Path) -> None:
    files = with_bos()
    files["holdout"][0][2] = replace(files["holdout"][0][2], doc_lengths=i32(TARGET))
    write_dataset(tmp_path, files, tokenizer_entry(bos_id=BOS))
    assert verify(tmp_path) == [
        f"{OF_KIND['holdout']} row 2: doc_lengths does not sum to window_tokens, "
        "the start-of-text token left out"
    ]


def test_positions_of_the_source_scheme_are_offsets_in_the_window(tmp_path: Path) -> None:
    lengths = i32(8, 12, 12)
    offsets = (np.arange(TRAIN) + np.repeat([0, 12, 20], lengths)).astype(np.int32)
    rows = [extend_row(0, position_ids=offsets), extend_row(1)]
    write_dataset(tmp_path, {"extend": [rows]}, positions="source")
    assert verify(tmp_path) == [
        "extend/train-00000-of-00001.parquet row 1: "
        "positions are not the tokens' offsets in the window"
    ]


def test_positions_of_the_full_scheme_count_up(tmp_path: Path) -> None:
    rows = [extend_row(0, position_ids=np.arange(TRAIN, dtype=np.int32)), extend_row(1)]
    write_dataset(tmp_path, {"extend": [rows]}, positions="full")
    assert verify(tmp_path) == [
        "extend/train-00000-of-00001.parquet row 1: positions are not 0, 1, 2, ..."
    ]


def test_positions_of_other_schemes_may_jump_anywhere(tmp_path: Path) -> None:
    positions = np.arange(0, 2 * TRAIN, 2, dtype=np.int32)
    write_dataset(tmp_path, {"extend": [[extend_row(position_ids=positions)]]}, positions="randpos")
    assert verify(tmp_path) == []


def test_scores_have_the_row_s_length(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"extend": [[extend_row()]]})
    rewrite_scored(tmp_path, TRAIN - 1)
    assert verify(tmp_path) == [
        "extend/train-00000-of-00001.parquet row 0: lsd is not as long as input_ids"
    ]


# A spoiled file


@settings(max_examples=60)
@given(data=st.data())
def test_one_changed_byte_anywhere_in_a_shard_is_found(good: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*OF_KIND.values(), SECOND]))
    content = bytearray((good / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    folder = good.parent / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / name).write_bytes(content)
    assert verify(folder) == [f"{name}: its sha256 is not the manifest's; the bytes were changed"]


def test_a_truncated_file_is_named(copy: Path) -> None:
    data = (copy / FIRST).read_bytes()
    (copy / FIRST).write_bytes(data[:-10])
    assert verify(copy) == [f"{FIRST}: has {len(data) - 10} bytes, the manifest says {len(data)}"]


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / SECOND).unlink()
    assert verify(copy) == [f"{SECOND}: missing"]


def test_a_stray_file_is_named(copy: Path) -> None:
    shutil.copy(copy / FIRST, copy / "extend/train-00002-of-00002.parquet")
    assert verify(copy) == ["extend/train-00002-of-00002.parquet: not named by the manifest"]


def test_hidden_folders_are_no_part_of_a_dataset(copy: Path) -> None:
    (copy / ".cache").mkdir()
    shutil.copy(copy / FIRST, copy / ".cache/train.parquet")
    assert verify(copy) == []


def test_an_unreadable_file_does_not_hide_the_next_one(tmp_path: Path) -> None:
    files = good_rows()
    files["extend"][1][0] = extend_row(3, kind="replay")
    write_dataset(tmp_path, files)
    (tmp_path / FIRST).write_bytes(b"not Parquet at all")
    refresh(tmp_path, FIRST)
    first, second = verify(tmp_path)
    assert first.startswith(f"{FIRST}: cannot be read (")
    assert second == f"{SECOND} row 0: its kind is not extend"


def spoil_table(folder: Path, change: Callable[[pa.Table], pa.Table]) -> list[str]:
    pq.write_table(change(rows_to_table([extend_row(n) for n in range(3)])), folder / FIRST)
    refresh(folder, FIRST)
    return verify(folder)


def test_a_missing_column_is_named(copy: Path) -> None:
    problems = spoil_table(copy, lambda table: table.drop_columns(["loss_mask"]))
    assert problems == [f"{FIRST}: lacks the column loss_mask"]


def test_an_unknown_column_is_named(copy: Path) -> None:
    problems = spoil_table(copy, lambda table: table.append_column("extra", table["source"]))
    assert problems == [f"{FIRST}: has an unknown column extra"]


def test_a_column_of_another_type_is_named(copy: Path) -> None:
    wide = pa.field("target_len", pa.int64(), nullable=False)
    place = SCHEMA.get_field_index("target_len")
    problems = spoil_table(copy, lambda table: table.cast(SCHEMA.set(place, wide)))
    assert problems == [f"{FIRST}: column target_len is int64 not null, not int32 not null"]


@pytest.mark.parametrize("name", ["source", "input_ids"])
def test_a_column_that_allows_nulls_is_named(copy: Path, name: str) -> None:
    place = SCHEMA.get_field_index(name)
    schema = SCHEMA.set(place, SCHEMA.field(name).with_nullable(True))
    problems = spoil_table(copy, lambda table: table.cast(schema))
    assert len(problems) == 1
    assert problems[0].startswith(f"{FIRST}: column {name} is ")


def test_list_items_that_allow_nulls_are_named(copy: Path) -> None:
    loose = pa.field("input_ids", pa.list_(pa.int32()), nullable=False)
    place = SCHEMA.get_field_index("input_ids")
    problems = spoil_table(copy, lambda table: table.cast(SCHEMA.set(place, loose)))
    assert len(problems) == 1
    assert problems[0].startswith(f"{FIRST}: column input_ids is ")


def test_columns_in_another_order_are_named(copy: Path) -> None:
    names = [*SCHEMA.names[1:], SCHEMA.names[0]]
    problems = spoil_table(copy, lambda table: table.select(names))
    assert problems == [f"{FIRST}: its columns are not in the order {', '.join(SCHEMA.names)}"]


def test_other_rows_under_a_right_sha256_are_found_by_a_deep_check(copy: Path) -> None:
    with writing_shard(copy / FIRST) as shard:
        for number in (0, 1, 7):
            shard.write(extend_row(number))
    refresh(copy, FIRST)
    assert verify(copy) == []
    assert verify(copy, deep=True) == [f"{FIRST}: its content_sha256 is not the manifest's"]


# A spoiled manifest


def entry_of(manifest: Any, name: str = FIRST) -> Any:
    return next(entry for entry in manifest["files"] if entry["path"] == name)


def add(where: Any, name: str, number: int) -> None:
    where[name] += number


SPOILED_MANIFESTS: list[tuple[Callable[[Any], object], list[str]]] = [
    (
        lambda m: add(m["ledger"], "records_built", 1),
        ["manifest.json ledger: records read 10 != built 10 + quarantined 1"],
    ),
    (
        lambda m: add(m["ledger"], "dropped", 1),
        [
            "manifest.json ledger: tokens encoded 689 + inserted 20 != kept 192 + dropped 301 "
            "+ tail 25 + held out 192"
        ],
    ),
    (
        lambda m: (add(m["ledger"], "tail", -30), add(m["ledger"], "dropped", 30)),
        ["manifest.json ledger: tail is -5, below 0"],
    ),
    (
        lambda m: (add(m["ledger"], "kept", -1), add(m["ledger"], "dropped", 1)),
        ["manifest.json ledger: kept is 191, the files hold 192"],
    ),
    (
        lambda m: add(m["ledger"], "rows", 1),
        ["manifest.json ledger: rows is 7, the files hold 6"],
    ),
    (
        lambda m: add(m["ledger"], "holdout_rows", -1),
        ["manifest.json ledger: holdout_rows is 2, the files hold 3"],
    ),
    (
        lambda m: (add(m["ledger"], "held_out", 1), add(m["ledger"], "tail", -1)),
        ["manifest.json ledger: held_out is 193, the files hold 192"],
    ),
    (
        lambda m: add(m["replay_ledger"], "encoded", 1),
        [
            "manifest.json replay_ledger: tokens encoded 76 + inserted 0 != kept 75 + dropped 0 "
            "+ tail 0 + held out 0"
        ],
    ),
    (
        lambda m: add(m["replay_ledger"], "rows", 1),
        ["manifest.json replay_ledger: rows is 4, the files hold 3"],
    ),
    (
        lambda m: m.update(replay_ledger=None),
        [
            "manifest.json replay_ledger: rows is 0, the files hold 3",
            "manifest.json replay_ledger: kept is 0, the files hold 75",
        ],
    ),
    (
        lambda m: (add(entry_of(m), "rows", 1), add(entry_of(m, SECOND), "rows", -1)),
        [
            f"{FIRST}: holds 3 rows, the manifest says 4",
            f"{SECOND}: holds 3 rows, the manifest says 2",
        ],
    ),
    (
        lambda m: (add(entry_of(m), "tokens", 1), add(entry_of(m, SECOND), "tokens", -1)),
        [
            f"{FIRST}: holds 96 tokens, the manifest says 97",
            f"{SECOND}: holds 96 tokens, the manifest says 95",
        ],
    ),
    (
        lambda m: m["recipe"].update(target_len=128),
        ["manifest.json: target_len is 64, the recipe says 128"],
    ),
    (
        lambda m: m["recipe"].update(seed=4),
        ["manifest.json: seed is 3, the recipe says 4"],
    ),
    (
        lambda m: (m.update(train_len=65), m["recipe"].update(train_len=65)),
        ["manifest.json: train_len 65 is not in [1, 64]"],
    ),
    (
        lambda m: m["tokenizer"].update(eot_id=1000),
        ["manifest.json: eot_id 1000 is outside the vocabulary of 1000 ids"],
    ),
    (
        lambda m: m["files"].reverse(),
        ["extend: the manifest does not name the files in the order of their names"],
    ),
]


@pytest.mark.parametrize(
    ("change", "said"), SPOILED_MANIFESTS, ids=[said[0] for _, said in SPOILED_MANIFESTS]
)
def test_a_spoiled_manifest_is_found(
    copy: Path, change: Callable[[Any], object], said: list[str]
) -> None:
    edit(copy, change)
    assert verify(copy) == said


def test_a_file_named_twice_is_found(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["files"].append(manifest["files"][0]))
    assert f"{FIRST}: the manifest names it twice" in verify(copy)


def test_a_file_where_no_reader_looks_is_found(copy: Path) -> None:
    (copy / FIRST).rename(copy / "extend/part.parquet")
    edit(copy, lambda manifest: entry_of(manifest).update(path="extend/part.parquet"))
    assert "extend/part.parquet: not a name of extend rows; extend/train-*.parquet is" in (
        verify(copy)
    )


def test_an_unknown_kind_is_found(copy: Path) -> None:
    edit(copy, lambda manifest: entry_of(manifest).update(kind="extra"))
    assert f"{FIRST}: unknown kind 'extra'" in verify(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format_version="2.0"), "has format version 2.0; this longrecipe reads"),
        (lambda m: entry_of(m).update(path="../up.parquet"), "outside its folder; not opened"),
        (lambda m: entry_of(m).update(path="/etc/passwd"), "outside its folder; not opened"),
        (lambda m: m.pop("ledger"), "is damaged (no 'ledger')"),
    ],
)
def test_a_manifest_that_is_not_read_is_the_only_problem(
    copy: Path, change: Callable[[Any], object], said: str
) -> None:
    edit(copy, change)
    (problem,) = verify(copy)
    assert said in problem
    assert "\n" not in problem


def test_a_folder_without_manifest_is_no_dataset(tmp_path: Path) -> None:
    assert verify(tmp_path) == [
        f"{tmp_path} is not a built dataset (no manifest.json); run `lrdata build`"
    ]


def test_the_vocabulary_is_the_manifest_s(tmp_path: Path) -> None:
    small = TokenizerEntry("small", "f" * 64, "e" * 64, 8, 0, None)
    write_dataset(tmp_path, {"extend": [[extend_row()]]}, small)
    assert verify(tmp_path) == ["extend/train-00000-of-00001.parquet row 0: an id is not in [0, 8)"]
