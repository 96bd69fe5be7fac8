"""Exports are read back by the libraries they are for, and what those do with gaps is shown."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import trl
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.cli_export import export as command
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.exporting import TRAINERS, export
from lrdata.exporting.documents import Tally, documents_of
from lrdata.manifest import read_manifest
from lrdata.rules import RowGroup
from lrdata.shards import Row
from lrtrain.loader import to_batch
from tests.lrdata.made_dataset import (
    TRAIN,
    VOCABULARY,
    extend_row,
    good_rows,
    holdout_row,
    replay_row,
    rows_to_table,
    write_dataset,
)
from tests.lrtrain.tiny_models import save_tiny

KINDS = ["extend", "replay", "holdout"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with gaps (extend), of several documents (replay), whole windows (holdout)."""
    folder = tmp_path_factory.mktemp("built") / "shards"
    write_dataset(folder)
    return folder


def _documents(rows: Sequence[Row]) -> Iterator[dict[str, list[int]]]:
    """What the contract says, document by document."""
    for row in rows:
        start = 0
        for length in row.seq_lengths.tolist():
            part = slice(start, start + length)
            ids = row.input_ids[part].tolist()
            counts = [False, *row.loss_mask[part].tolist()[1:]]
            start += length
            if any(counts):
                yield {
                    "input_ids": ids,
                    "attention_mask": [1] * length,
                    "labels": [i if on else -100 for i, on in zip(ids, counts, strict=True)],
                    "position_ids": row.position_ids[part].tolist(),
                }


def _expected(kind: str) -> list[dict[str, list[int]]]:
    return list(_documents([row for rows in good_rows()[kind] for row in rows]))


# The columns


@st.composite
def _rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for number in range(draw(st.integers(1, 4))):
        lengths = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)), np.int32)
        tokens = int(lengths.sum())
        steps = draw(st.lists(st.integers(1, 3), min_size=tokens, max_size=tokens))
        mask = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
        changes = {
            "input_ids": np.arange(tokens, dtype=np.int32) + 100 * number,
            "position_ids": np.cumsum(steps).astype(np.int32),
            "loss_mask": np.array(mask),
            "impact_mask": np.zeros(tokens, bool),
        }
        rows.append(extend_row(number, seq_lengths=lengths, **changes))
    return rows


@settings(max_examples=60)
@given(rows=_rows())
def test_documents_are_those_of_the_rows_and_their_targets_are_the_trainers(
    rows: list[Row],
) -> None:
    tally = Tally()
    manifest: Any = None
    table = documents_of(RowGroup.of(rows_to_table(rows), 0, "extend", manifest), tally)
    made, expected = table.to_pylist(), list(_documents(rows))
    assert made == expected

    positions = [document["position_ids"] for document in expected]
    assert tally.rows == len(rows)
    assert tally.documents == len(expected)
    assert tally.tokens == sum(map(len, positions))
    assert tally.longest == max(map(len, positions), default=0)
    assert tally.gapped == sum(p != list(range(p[0], p[0] + len(p))) for p in positions)
    assert tally.reach == max((p[-1] - p[0] for p in positions), default=0)
    assert tally.tokens + tally.left_out_tokens == sum(len(row.input_ids) for row in rows)

    weights = to_batch(rows).weights
    assert tally.targets == int((weights > 0).sum())
    trained = torch.cat([row.reshape(-1) for row in map(_ids, rows)])[weights > 0].tolist()
    assert trained == [label for document in made for label in document["labels"] if label >= 0]


def _ids(row: Row) -> torch.Tensor:
    return torch.from_numpy(row.input_ids.copy())


# What is written


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_datasets_reads_it_as_it_is(built: Path, trainer: str, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = export(built, trainer, out, kind)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].to_list() == _expected(kind)
    assert made.tally.documents == len(loaded["train"])
    # axolotl tries this first, and goes on to load_dataset on this error alone.
    with pytest.raises(FileNotFoundError):
        datasets.load_from_disk(str(out))


def test_equal_datasets_give_equal_bytes_a_file_a_shard(built: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "one", tmp_path / "two"
    export(built, "trl", one)
    two.mkdir()  # an empty folder may be there
    export(built, "trl", two)
    content = [{path.name: path.read_bytes() for path in each.iterdir()} for each in (one, two)]
    assert content[0] == content[1]
    assert sorted(content[0]) == [
        "README.md",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_row_groups_are_those_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is in memory at a time."""
    monkeypatch.setattr("lrdata.shard_writer.PAGE_TOKENS", (10, 40))
    monkeypatch.setattr("lrdata.shard_writer.GROUP_TOKENS", 40)
    write_dataset(tmp_path / "shards", {"extend": [[extend_row(n) for n in range(6)]]})
    export(tmp_path / "shards", "axolotl", tmp_path / "out")
    groups = [
        pq.ParquetFile(next((tmp_path / each).glob("train*"))).metadata.num_row_groups
        for each in ("shards/extend", "out")
    ]
    assert groups[0] == groups[1] > 1


def test_documents_without_a_target_are_left_out_and_counted(tmp_path: Path) -> None:
    row = replay_row(loss_mask=np.arange(25) >= 10)
    write_dataset(tmp_path / "shards", {"extend": [[extend_row()]], "replay": [[row]]})
    made = export(tmp_path / "shards", "trl", tmp_path / "out", "replay")
    assert (made.tally.left_out, made.tally.left_out_tokens) == (1, 10)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "no token is a target: 1, of 10 tokens" in text


# What is refused


def test_a_killed_export_is_begun_anew_and_a_failed_one_leaves_nothing(
    built: Path, tmp_path: Path
) -> None:
    left = tmp_path / ".out.export"
    left.mkdir()
    (left / "train-00009-of-00010.parquet").write_bytes(b"half")
    export(built, "trl", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not (tmp_path / "out" / "train-00009-of-00010.parquet").exists()

    spoiled = tmp_path / "shards"
    write_dataset(spoiled)
    second = spoiled / open_dataset(spoiled).files("extend")[1].path
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    with pytest.raises(LongRecipeError, match=f"{second.name} is damaged"):
        export(spoiled, "trl", tmp_path / "none")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "shards"}


def test_what_is_not_ours_stays(built: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(LongRecipeError, match="not an empty folder"):
        export(built, "trl", tmp_path / "full")
    with pytest.raises(LongRecipeError, match="is a file"):
        export(built, "trl", tmp_path / "full" / "thesis.tex")
    (tmp_path / ".new.export").mkdir()
    (tmp_path / ".new.export" / "thesis.tex").write_text("mine")
    with pytest.raises(LongRecipeError, match=r"holds thesis.tex, not ours"):
        export(built, "trl", tmp_path / "new")
    assert len(list(tmp_path.rglob("thesis.tex"))) == 2
    with pytest.raises(LongRecipeError, match="in the dataset"):
        export(built, "trl", built / "trl")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "shards", {"extend": [[extend_row()]]})
    with pytest.raises(LongRecipeError, match="no replay rows; it has extend"):
        export(tmp_path / "shards", "trl", tmp_path / "out", "replay")
    with pytest.raises(LongRecipeError, match="choose one of axolotl, trl"):
        export(tmp_path / "shards", "torchtune", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_lengths": np.array([TRAIN - 1], np.int32)}, "seq_lengths does not sum"),
        ({"seq_lengths": np.array([0, TRAIN], np.int32)}, "seq_lengths has an entry below 1"),
        ({"loss_mask": np.ones(TRAIN + 1, bool)}, "loss_mask is not as long"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rows = [[extend_row(), extend_row(1, **changes)]]
    write_dataset(tmp_path / "shards", {"extend": rows})
    with pytest.raises(LongRecipeError, match=f"row 1: .*{message}.*; see `lrdata verify`"):
        export(tmp_path / "shards", "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, {"extend": [[extend_row()]]})
    (entry,) = manifest.files
    table = pq.read_table(tmp_path / entry.path)
    wide = table.column("position_ids").cast(pa.list_(pa.int64()))
    pq.write_table(table.set_column(1, "position_ids", wide), tmp_path / entry.path)
    data = (tmp_path / entry.path).read_bytes()
    _rewrite(tmp_path, data)
    with pytest.raises(LongRecipeError, match="position_ids is not as it should be"):
        export(tmp_path, "trl", tmp_path.with_name("out-of-it"))


def _rewrite(folder: Path, data: bytes) -> None:
    """Have the manifest say that these bytes are right."""
    import hashlib

    from lrdata.manifest import write_manifest

    manifest = read_manifest(folder)
    entry = replace(manifest.files[0], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_manifest(folder, replace(manifest, files=[entry]))


# What it says


@pytest.mark.parametrize("trainer", TRAINERS)
def test_it_warns_of_gaps_on_stderr_and_in_the_readme(
    built: Path, trainer: str, tmp_path: Path
) -> None:
    arguments = [str(built), "--format", trainer, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
    assert "6 of 6 rows wrongly" in warning
    assert "lrtrain run" in warning
    assert "--positions full" in warning
    assert "attention_mask" in warning
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"> **Warning:** {warning.removeprefix('warning: ')}." in text
    assert "Safe" not in text
    for lost in ("seq_lengths", "impact_mask", "lsd"):
        assert lost in text.split("## What is not here")[1]


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("kind", ["replay", "holdout", "full"])
def test_without_gaps_it_says_that_all_is_well(trainer: str, kind: str, tmp_path: Path) -> None:
    whole = [[replace(holdout_row(n), kind="extend") for n in range(2)]]
    write_dataset(
        tmp_path / "shards", {**good_rows(), **({"extend": whole} if kind == "full" else {})}
    )
    arguments = ["--format", trainer, "--kind", "extend" if kind == "full" else kind]
    out = tmp_path / "out"
    done = CliRunner().invoke(command, [str(tmp_path / "shards"), *arguments, "--out", str(out)])
    assert done.exit_code == 0
    assert "warning" not in done.stderr
    assert "no gaps" in done.stdout
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "**Safe:**" in text
    assert "Warning" not in text


def _block(folder: Path, language: str) -> str:
    text = (folder / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(block)


@pytest.mark.parametrize("kind", KINDS)
def test_axolotls_settings_drop_no_row_mix_none_and_keep_its_hands_off_gaps(
    built: Path, kind: str, tmp_path: Path
) -> None:
    made = export(built, "axolotl", tmp_path / "out", kind)
    given = yaml.safe_load(_block(tmp_path / "out", "yaml"))
    assert given["datasets"] == [{"path": "DIR", "split": "train", "type": None}]
    assert given["sequence_len"] == max(len(row["input_ids"]) for row in _expected(kind))
    assert given["excess_length_strategy"] == "raise"
    assert given["sample_packing"] is (made.tally.gapped == 0)
    # bench/axolotl_check.py: without a backend, packed rows attend to each other.
    assert given.get("attn_implementation") == ("sdpa" if given["sample_packing"] else None)


# What TRL makes of it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny("llama", folder, vocab_size=VOCABULARY)
    for path in tiny_tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


_HERE: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": []}


def _run(
    folder: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """Run the script of an export's README; the trainer and the batches that its model got."""
    trainers: list[Any] = []
    batches: list[dict[str, torch.Tensor]] = []

    class Watched(trl.SFTTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append({name: value.clone() for name, value in inputs.items()})
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trl, "SFTTrainer", Watched)
    monkeypatch.setattr(trl, "SFTConfig", partial(trl.SFTConfig, **_HERE, max_steps=steps))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    script = _block(folder, "python")
    for name, value in (("MODEL", model), ("DIR", str(folder)), ("OUT", str(tmp_path / "run"))):
        script = script.replace(f'"{name}"', repr(value))
    exec(compile(script, "README.md", "exec"), {})
    return trainers[0], batches


@pytest.mark.parametrize("kind", ["extend", "replay"])
def test_trl_trains_on_our_tokens_labels_and_positions(
    built: Path, kind: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(built, "trl", tmp_path / "out", kind)
    _, batches = _run(tmp_path / "out", model, tmp_path, monkeypatch, len(_expected(kind)))
    seen = [{name: value[0].tolist() for name, value in batch.items()} for batch in batches]
    expected = _expected(kind)
    if kind == "replay":  # counted by the model: 0, 1, 2, ...
        assert all(row.pop("position_ids") == list(range(len(row["labels"]))) for row in expected)
    order = {tuple(row["input_ids"]): row for row in expected}
    assert {tuple(row["input_ids"]) for row in seen} == set(order)
    for row in seen:
        assert row == order[tuple(row["input_ids"])]


def test_under_trl_attention_crosses_gaps_and_it_would_not_without_the_mask(
    built: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(built, "trl", tmp_path / "out")
    trainer, batches = _run(tmp_path / "out", model, tmp_path, monkeypatch, 1)
    batch = {name: batches[0][name] for name in ("input_ids", "attention_mask", "position_ids")}
    (gaps,) = np.nonzero(np.diff(batch["position_ids"][0].numpy()) != 1)

    def change(**arguments: torch.Tensor) -> float:
        """How much the logits behind the last gap move when the first token changes."""
        other = {**arguments, "input_ids": arguments["input_ids"].clone()}
        other["input_ids"][0, 0] = (other["input_ids"][0, 0] + 1) % VOCABULARY
        with torch.no_grad():
            one, two = (
                trainer.model.eval()(**each, use_cache=False).logits for each in (arguments, other)
            )
        return float((one - two)[0, gaps[-1] + 1 :].abs().max())

    assert change(**batch) > 1e-4
    del batch["attention_mask"]
    assert change(**batch) == 0.0


def test_trl_as_it_is_drops_positions(built: Path, model: str, tmp_path: Path) -> None:
    export(built, "trl", tmp_path / "out")
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "c"))["train"]
    for padding_free in (False, True):
        config = trl.SFTConfig(
            output_dir=str(tmp_path / "run"),
            max_length=None,
            padding_free=padding_free,
            per_device_train_batch_size=2,
            **_HERE,
        )
        trainer = trl.SFTTrainer(model=model, train_dataset=rows, args=config)
        batch = next(iter(trainer.get_train_dataloader()))
        told = "TRL keeps position_ids now: good news, tell users so in lrdata/exporting/trl.py"
        if padding_free:
            assert batch["position_ids"].tolist() == [[*range(TRAIN), *range(TRAIN)]], told
        else:
            assert "position_ids" not in batch, told
