"""`lrdata inspect` shows the kept text, skips, edges of documents; and says what it cannot show."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.inspecting.spelling import open_tokenizer
from lrdata.inspecting.terminal import show
from lrdata.tokenizer import Tokenizer
from tests.lrdata.made_dataset import extend_row, tokenizer_entry, write_dataset


def _shown(folder: Path, kind: str, row: int, tokenizer: Tokenizer | None, full: bool) -> str:
    console = Console(file=io.StringIO(), width=100)
    show(folder, kind, row, tokenizer, console, full)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_text_skips_and_documents_are_shown(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    texts = [" first piece", " second piece", " third piece"]
    ids, offsets = tokenizer.encode(texts)
    lengths = np.diff(offsets).astype(np.int32)
    starts = np.array([0, 20, 40], np.int32)
    total = int(lengths.sum())
    row = extend_row(
        input_ids=np.asarray(ids, np.int32),
        position_ids=(np.arange(total) + np.repeat([0, 7, 7], lengths)).astype(np.int32),
        seq_lengths=np.array([total], np.int32),
        impact_mask=np.zeros(total, bool),
        loss_mask=np.ones(total, bool),
        segment_starts=starts,
        segment_lengths=lengths,
    )
    entry = tokenizer_entry(fingerprint=tokenizer.fingerprint)
    write_dataset(tmp_path, {"extend": [[row]]}, entry)
    shown = _shown(tmp_path, "extend", 0, tokenizer, full=False)
    assert " first piece⟨+7⟩ second piece" in shown
    assert re.search(r"second piece⟨…⟩\s*-- end of a; b0 --\s*third piece", shown)
    assert f"row of {total}" in shown
    blind = _shown(tmp_path, "extend", 0, None, full=False)
    assert "Pass --tokenizer" in blind
    assert f"[{lengths[0]}]⟨+7⟩[{lengths[1]}]" in blind


def test_a_long_row_is_cut_unless_all_of_it_is_wanted(tmp_path: Path) -> None:
    count = 2000
    row = extend_row(
        input_ids=np.full(count, 5, np.int32),
        position_ids=np.arange(count, dtype=np.int32),
        impact_mask=np.zeros(count, bool),
        loss_mask=np.ones(count, bool),
        seq_lengths=np.array([count], np.int32),
        segment_starts=np.array([0], np.int32),
        segment_lengths=np.array([count], np.int32),
        doc_lengths=np.array([30, count - 30], np.int32),
        window_tokens=count,
        target_len=count,
    )
    write_dataset(tmp_path, {"extend": [[row]]})
    assert "1,300 tokens not shown" in _shown(tmp_path, "extend", 0, None, full=False)
    assert "not shown" not in _shown(tmp_path, "extend", 0, None, full=True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(["--row", "99"], "there is no row 99"), (["--tokenizer", "nowhere"], "nowhere")],
)
def test_what_cannot_be_shown_is_said_in_a_line(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    write_dataset(tmp_path)
    done = CliRunner().invoke(main, ["inspect", str(tmp_path), *arguments])
    assert done.exit_code == 1
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_is_no_dataset_and_another_tokenizer(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    done = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert "is not a built dataset" in done.stderr
    write_dataset(tmp_path)
    assert open_dataset(tmp_path).rows("extend")
    with pytest.raises(LongRecipeError, match="not the tokenizer of the dataset"):
        _shown(tmp_path, "extend", 0, Tokenizer.load(str(tiny_tokenizer)), full=False)


@pytest.mark.parametrize("name", ["[link=http://evil]here[/link]", "a[/x]b", "[bold]\x1b[31m"])
def test_a_name_is_no_markup_of_the_terminal(tmp_path: Path, name: str) -> None:
    entry = replace(tokenizer_entry(), name=name)
    write_dataset(tmp_path, {"extend": [[extend_row()]]}, entry)
    shown = "".join(_shown(tmp_path, "extend", 0, None, full=False).split("\n"))
    assert f"hub id of {name.replace(chr(27), '␛')}) to see" in shown


def _no_network(*_: object, **__: object) -> None:
    pytest.fail("the hub is asked")


def test_the_hub_is_not_asked_for_a_name_of_a_manifest(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a folder and the hub's cache are looked at, unless the user names the tokenizer."""
    fingerprint = Tokenizer.load(str(tiny_tokenizer)).fingerprint
    write_dataset(tmp_path / "made", tokenizer=tokenizer_entry(fingerprint=fingerprint))
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _no_network)
    monkeypatch.chdir(tmp_path)
    assert open_tokenizer(tmp_path / "made", None) is None
    with pytest.raises(pytest.fail.Exception, match="the hub is asked"):
        open_tokenizer(tmp_path / "made", "me/tiny")
    model = cache / "models--me--tiny"
    shutil.copytree(tiny_tokenizer, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    found = open_tokenizer(tmp_path / "made", None)
    assert found is not None
    assert found.fingerprint == fingerprint
    shutil.rmtree(cache)
    shutil.copytree(tiny_tokenizer, tmp_path / "me" / "tiny")
    assert open_tokenizer(tmp_path / "made", None) is not None


@pytest.mark.parametrize(
    "name", ["", "a\0b", "~nobody/x", "x" * 300, "a/b/c", "../..", "/dev/zero"]
)
def test_a_name_that_is_none_is_not_at_hand(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path, tokenizer=replace(tokenizer_entry(), name=name))
    assert open_tokenizer(tmp_path, None) is None
