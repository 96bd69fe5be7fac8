"""The dataset folder as others see it: `datasets` loads it, and the card is true."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lrdata.building import build
from lrdata.cli import main
from lrdata.manifest import Manifest, SourceEntry, read_manifest
from lrdata.recipe import BuildRecipe
from lrdata.report.card import SOURCES_SHOWN, card
from lrdata.report.command import build_command
from lrdata.report.front_matter import quoted
from lrdata.report.markdown import inert
from lrdata.retargeting import retarget
from tests.corpora import some_texts, write_jsonl
from tests.lrdata.made_dataset import extend_row, write_dataset

_SPLITS = {"extend": "train", "replay": "train", "holdout": "test"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("card")
    recipe = BuildRecipe(
        corpora=(str(write_jsonl(folder / "books.jsonl", some_texts(40, 1))),),
        tokenizer=str(tiny_tokenizer),
        target_len=1024,
        segment_tokens=40,
        holdout=0.2,
        replay=(str(write_jsonl(folder / "short.jsonl", some_texts(200, 3, longest=2))),),
        licences={"books": "cc0-1.0", "short": "Our own"},
    )
    build(recipe, folder / "shards", workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def manifest(built: Path) -> Manifest:
    return read_manifest(built)


def _table(folder: Path, kind: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / kind).iterdir()))


@pytest.mark.parametrize("name", [None, "extend", "replay", "holdout"])
def test_datasets_loads_the_folder_and_rows_equal_the_parquet_rows(
    built: Path, name: str | None, tmp_path: Path
) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(built), name, cache_dir=str(tmp_path))
    kind = name or "extend"
    assert list(loaded) == [_SPLITS[kind]]
    rows = loaded[_SPLITS[kind]].to_list()
    assert rows
    assert rows == _table(built, kind).to_pylist()


def test_datasets_does_not_take_one_folder_for_another_of_the_same_name(tmp_path: Path) -> None:
    """Its cache knows a local folder by its last name and the YAML of its README.md."""
    from datasets import load_dataset

    ids = []
    for number, parent in enumerate(("one", "other")):
        folder = tmp_path / parent / "shards"
        manifest = write_dataset(folder, {"extend": [[extend_row(number)]]})
        (folder / "README.md").write_text(card(manifest), encoding="utf-8")
        loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
        ids.append(loaded[0]["input_ids"])
        assert ids[-1] == extend_row(number).input_ids.tolist()
    assert ids[0] != ids[1]


def _front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_names_configs_and_licences(built: Path) -> None:
    front, _ = _front_matter(built)
    configs = {config["config_name"]: config for config in front["configs"]}
    assert list(configs) == ["extend", "replay", "holdout"]
    assert [name for name in configs if configs[name].get("default")] == ["extend"]
    for name, config in configs.items():
        (files,) = config["data_files"]
        assert files["split"] == _SPLITS[name]
        assert list(built.glob(files["path"])) == list((built / name).iterdir())
    assert front["license"] == ["cc0-1.0", "other"]
    assert front["license_name"] == "Our own"


def test_the_cards_counts_are_those_of_the_files(built: Path, manifest: Manifest) -> None:
    _, text = _front_matter(built)
    for kind in _SPLITS:
        table = _table(built, kind)
        tokens = len(table.column("input_ids").combine_chunks().flatten())
        size = sum(path.stat().st_size for path in (built / kind).iterdir())
        assert f"| `{kind}` | {table.num_rows:,} | {tokens:,} | {size:,} |" in text
    kept = re.search(r"\| = tokens kept \| ([\d,]+) \| ([\d,]+) \|", text)
    assert kept is not None
    assert manifest.replay_ledger is not None
    assert kept[1] == f"{manifest.ledger.kept:,}"
    assert kept[2] == f"{manifest.replay_ledger.kept:,}"


def test_the_cards_commands_are_ones_that_lrdata_takes(built: Path) -> None:
    _, text = _front_matter(built)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lrdata")]
    assert {words[0] for words in commands} == {"verify", "inspect", "build", "rebuild"}
    for words in commands:
        assert CliRunner().invoke(main, [*words, "--help"]).exit_code == 0
        known = CliRunner().invoke(main, [words[0], "--help"]).output
        assert all(flag in known for flag in words if flag.startswith("--"))
    flags = {word for words in commands for word in words if word.startswith("--")}
    assert {"--target-len", "--segment-tokens", "--holdout", "--replay", "--license"} <= flags


def test_the_line_that_rebuilds_it_does_so_to_the_byte(
    built: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    _, text = _front_matter(built)
    line = next(line for line in text.splitlines() if line.startswith("lrdata rebuild"))
    again = tmp_path / "again"
    places = {
        "FOLDER": str(built),
        "SOURCES": str(built.parent),
        "TOKENIZER": str(tiny_tokenizer),
        "REBUILT": str(again),
    }
    words = [places.get(word, word) for word in shlex.split(line)[1:]]
    done = CliRunner().invoke(main, [*words, "--workers", "1"])
    assert done.exit_code == 0, done.output
    ours, theirs = (
        {path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()}
        for each in (built, again)
    )
    assert ours == theirs


def test_licences_come_first_and_what_has_none_is_named(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    first = _text(card(manifest)).split("##")[0]
    assert "the texts are under CC-BY-4.0" in first
    assert "**none was stated for** chat" in first
    assert "| chat | **not stated** | 1 | 567 |" in card(manifest)
    stated = [replace(entry, licence="MIT") for entry in manifest.sources]
    assert "none was stated" not in card(replace(manifest, sources=stated))
    bare = replace(manifest, sources=[replace(entry, licence=None) for entry in stated])
    assert "none was stated for any source" in card(bare)
    assert "license" not in yaml.safe_load(card(bare).split("---\n")[1])


@pytest.mark.parametrize("count", [1, SOURCES_SHOWN, SOURCES_SHOWN + 3])
def test_the_first_sources_are_listed_with_their_hash(tmp_path: Path, count: int) -> None:
    manifest = write_dataset(tmp_path)
    entries = [SourceEntry(f"b/{i}.txt", "b", "MIT", i, f"{i:064x}") for i in range(count)]
    text = card(replace(manifest, sources=entries))
    listed = [entry for entry in entries if f"| {entry.name} | {entry.bytes} |" in text]
    assert listed == entries[:SOURCES_SHOWN]
    assert all(entry.sha256 in text for entry in listed)
    assert ("And 3 more, which `manifest.json` names." in text) == (count > SOURCES_SHOWN)


def test_the_figure_is_there_only_when_it_is(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    assert "![" not in card(manifest)
    shown = _tokens(_text(card(manifest, "report/coverage.png")))
    images = [token.attrGet("src") for token in shown if token.type == "image"]
    assert images == ["report/coverage.png"]


def test_whole_windows_are_not_said_to_be_compressed(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    whole = replace(manifest, train_len=manifest.target_len)
    for text in ("LongRecipe", "leaves out", "compressed to", "lrdata export"):
        assert text in card(manifest)
        assert text not in card(whole)


# What a manifest says stays text


def _text(whole: str) -> str:
    return whole.split("---\n", 2)[2]


def _tokens(text: str) -> Iterator[Token]:
    """Everything that a reader with HTML, tables, links of addresses makes of the text."""
    parser = MarkdownIt("gfm-like", {"html": True})
    assert parser.linkify is not None
    # As GitHub's Markdown has it: no bare names and no `//host`, but `www.` of anything.
    parser.linkify.set({"fuzzy_link": False})
    parser.linkify.add("//", None)
    parser.linkify.add("www.", {"validate": lambda _, text, at: len(text[at:].split(" ")[0])})
    for token in parser.parse(text):
        yield token
        yield from token.children or ()


def _shape(text: str) -> list[str]:
    """The markup alone. A run of text may be cut in several tokens, or be empty."""
    kinds = (token.type for token in _tokens(text))
    return [kind for kind in kinds if kind not in ("text", "text_special")]


_HOSTILE = (
    "<script>alert(1)</script>",
    "![x](http://evil/a.png) [y](javascript:z)",
    "a|b\\|<img src=x>|c",
    "`code` ``` ```sh",
    "x\n\n# heading\n\n- item\n<b>",
    "**bold** _it_ ~~gone~~ &lt; $x$",
    "---\nlicense: mit\n---",
    "\u202egnp.exe\x1b[31m\ud800",
    "https://evil.com HTTP://evil.com/a?b www.evil.com Www.Evil.Com a@evil.com mailto:a@evil.com",
    "ftp://evil.com/@a xhttps://www.evil.com://a@@evil.com",
)


@pytest.mark.parametrize("text", _HOSTILE)
def test_text_of_a_manifest_is_never_markup(tmp_path: Path, text: str) -> None:
    def with_text(word: str) -> Manifest:
        return replace(
            manifest,
            sources=[SourceEntry(word, word, word, 1, word)],
            tokenizer=replace(manifest.tokenizer, name=word, fingerprint=word),
            recipe={**manifest.recipe, "corpora": [word], "tokenizer": word, "eot": word},
            versions={word: word},
        )

    manifest = write_dataset(tmp_path)
    told = card(with_text(text))
    assert _shape(_text(told)) == _shape(_text(card(with_text("plain"))))
    assert "\x1b" not in told
    assert "\u202e" not in told
    front = yaml.safe_load(told.split("---\n")[1])
    assert front["license"] == ["other"]
    assert front["license_name"] == text
    assert told.encode()  # no half of a surrogate pair


def test_an_address_can_still_be_read() -> None:
    assert inert("CC: https://a.org/by/4.0/") == "CC: https: //a.org/by/4.0/"
    assert inert("www.a.org, me@a.org @home") == "www .a.org, me @ a.org @home"


def test_a_parser_of_addresses_would_make_links_of_them() -> None:
    for text in _HOSTILE[-2:]:
        assert "link_open" in _shape(text)


def test_a_corpus_that_looks_like_an_option_is_none() -> None:
    (build_line, *_) = build_command({"corpora": ["-x.jsonl", "books"], "eot": "-x"})
    assert build_line == "lrdata build ./-x.jsonl books"


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_yaml_scalar(text: str) -> None:
    assert yaml.safe_load(f"a: {quoted(text)}\n") == {"a": text}


def test_the_card_of_a_retargeted_dataset_says_how_it_was_made(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    retarget(built, 2048, out)
    text = (out / "README.md").read_text(encoding="utf-8")
    made = (built / "README.md").read_text(encoding="utf-8")
    build_command = re.findall(r"```sh\n(lrdata build.*?)```", made, re.DOTALL)[0]
    assert f"```sh\n{build_command}lrdata retarget FOLDER --target-len 2048\n```" in text
    assert "windows of text have 1,024 tokens" in text
    limit = next(line for line in made.splitlines() if line.startswith("- A row leaves out"))
    assert limit in text.splitlines()
    assert "retarget" not in made
