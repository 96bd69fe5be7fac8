"""Replay: a fair sample, packing, loss masks, chat templates."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lrdata.building import build
from lrdata.chat import plain_conversation, template_conversation
from lrdata.corpus import Unit
from lrdata.dataset import open_dataset
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.manifest import read_manifest
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from lrdata.replay import best_fit
from lrdata.shards import Shards
from lrdata.tokenizer import Tokenizer
from tests.chi_square import assert_follows, evenly
from tests.conftest import generated_text
from tests.corpora import some_texts, write_jsonl


@given(st.lists(st.integers(1, 100), max_size=200))
def test_packing_keeps_every_item_once_within_capacity(lengths: list[int]) -> None:
    bins = best_fit(lengths, 100)
    assert sorted(item for chosen in bins for item in chosen) == list(range(len(lengths)))
    totals = [sum(lengths[item] for item in chosen) for chosen in bins]
    assert all(0 < total <= 100 for total in totals)
    # Best-fit decreasing never opens a bin while another could take the item: any two bins
    # together exceed the capacity.
    assert all(a + b > 100 for i, a in enumerate(totals) for b in totals[i + 1 :])


SIZES = {"one": 600, "two": 1200, "three": 1800}
"""Documents of three files, of a paragraph each."""


def write_three(folder: Path, name: str = "{}.jsonl") -> dict[str, Path]:
    files = {}
    for seed, (stem, count) in enumerate(SIZES.items()):
        path = write_jsonl(folder / f"{stem}.jsonl", list(generated_text(count, seed)))
        files[stem] = path.with_name(name.format(stem))
        if files[stem].suffix == ".gz":
            files[stem].write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return files


def replaying(folder: Path, files: dict[str, Path], tokenizer: Path, texts: int) -> BuildRecipe:
    """As many tokens of these files as of a corpus of so many texts."""
    return BuildRecipe(
        (str(write_jsonl(folder / "c.jsonl", some_texts(texts, 1))),),
        str(tokenizer),
        1024,
        replay=tuple(map(str, files.values())),
        replay_ratio=1.0,
        id_field="id",
    )


@pytest.fixture(scope="module", params=["{}.jsonl", "{}.jsonl.gz"])
def sampled(
    request: pytest.FixtureRequest, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dataset whose replay takes an eighth of three files, of sizes 1 : 2 : 3; its folder."""
    folder = tmp_path_factory.mktemp("sampled")
    files = write_three(folder, request.param)
    build(replaying(folder, files, tiny_tokenizer, 40), folder / "out", workers=1)
    return folder


def replayed(shards: Shards) -> list[str]:
    """The ids of the documents, each time that one is begun."""
    rows = (shards.read_row("replay", index) for index in range(shards.rows("replay")))
    return [
        name
        for row in rows
        for name, start in zip(row.doc_ids, row.doc_offsets, strict=True)
        if start == 0
    ]


def test_each_file_gives_in_proportion_to_its_size_and_from_all_of_it(sampled: Path) -> None:
    drawn = replayed(open_dataset(sampled / "out"))
    assert len(set(drawn)) == len(drawn) > 200
    places = [name.split("-") for name in drawn]
    sizes = {name: float((sampled / f"{name}.jsonl").stat().st_size) for name in SIZES}
    assert_follows((name for name, _ in places), sizes)
    assert_follows((10 * int(at) // SIZES[name] for name, at in places), evenly(range(10)))


def test_replay_is_the_documents_of_the_lowest_draws(sampled: Path, tiny_tokenizer: Path) -> None:
    """By the definition, with the tokenizer's own library."""
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    manifest, drawn = read_manifest(sampled / "out"), set(replayed(open_dataset(sampled / "out")))
    draws: dict[str, tuple[float, int]] = {}
    for entry in manifest.sources[1:]:
        at = 0
        for line in (sampled / entry.name.removesuffix(".gz")).read_bytes().splitlines(True):
            record = json.loads(line)
            tokens = len(library.encode(record["text"]).ids) + 1
            draws[record["id"]] = Draws(0, entry.name, at).share("replay"), tokens
            at += len(line)
    expected: set[str] = set()
    tokens = 0
    for name, (_, count) in sorted(draws.items(), key=lambda item: item[1]):
        if tokens >= manifest.ledger.kept:
            break
        expected.add(name)
        tokens += count
    assert drawn == expected
    ledger = manifest.replay_ledger
    assert ledger is not None
    assert (ledger.kept + ledger.tail, ledger.records_built) == (tokens, len(drawn))
    assert ledger.records_built + ledger.records_filtered == sum(SIZES.values())


def test_of_a_large_corpus_little_more_is_read_than_is_taken(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a megabyte were two kilobytes."""
    monkeypatch.setattr("lrdata.replay_sample._UNIT_BYTES", 2000)
    monkeypatch.setattr("lrdata.replay_sample._POINTS", 20)
    read: list[int] = []

    def reading(unit: Unit, *arguments: object) -> object:
        read.extend(piece.text_bytes for piece in unit.pieces)
        return read_unit(unit, *arguments)

    monkeypatch.setattr("lrdata.replay.read_unit", reading)
    files = write_three(tmp_path)
    recipe = replaying(tmp_path, files, tiny_tokenizer, 20)
    whole = sum(path.stat().st_size for path in files.values())
    for ratio in (0.02, 1.0):
        read.clear()
        out = tmp_path / f"{ratio}"
        manifest = build(replace(recipe, replay_ratio=ratio), out, workers=1)
        drawn = replayed(open_dataset(out))
        assert len(set(drawn)) == len(drawn)
        ledger = manifest.replay_ledger
        assert ledger is not None
        assert ledger.problems() == []
        assert ratio * manifest.ledger.kept <= ledger.kept < ratio * manifest.ledger.kept + 305
        taken = whole * len(drawn) / sum(SIZES.values())
        assert sum(read) < 3 * taken + 2 * 40 * 2000 < 0.8 * whole
    assert {name.split("-")[0] for name in drawn} == set(SIZES)


def test_a_corpus_that_is_too_short_is_refused_when_it_is_counted(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once, and not again to be packed. What it has is what would have been packed."""
    read: list[str] = []

    def reading(unit: Unit, *arguments: object) -> object:
        read.extend(piece.file.name for piece in unit.pieces)
        return read_unit(unit, *arguments)

    monkeypatch.setattr("lrdata.replay.read_unit", reading)
    files = write_three(tmp_path, "{}.jsonl.gz")
    recipe = replaying(tmp_path, files, tiny_tokenizer, 40)
    with pytest.raises(LongRecipeError, match=r"the replay corpus has [\d,]+ tokens; ") as found:
        build(replace(recipe, replay_ratio=20.0), tmp_path / "out", workers=1)
    assert sorted(read) == sorted(path.name for path in files.values())
    said = int(str(found.value).split(" has ")[1].split(" tokens")[0].replace(",", ""))
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    texts = [
        json.loads(line)["text"]
        for path in files.values()
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    assert said == sum(len(one.ids) + 1 for one in library.encode_batch(texts))


@pytest.mark.parametrize("named", ["a.jsonl", "."])
@pytest.mark.parametrize("replay", ["a.jsonl", "."])
def test_what_is_held_out_is_not_replayed(
    named: str, replay: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Of a file that is in the corpus too, whether it is named itself or by its folder."""
    folder = tmp_path / "corpus"
    write_jsonl(folder / "a.jsonl", some_texts(200, 3, longest=6))
    recipe = BuildRecipe(
        (str(folder / named),),
        str(tiny_tokenizer),
        1024,
        replay=(str(folder / replay),),
        replay_ratio=1.5,
        holdout=0.3,
        id_field="id",
    )
    manifest = build(recipe, tmp_path / "out", workers=1)
    shards = open_dataset(tmp_path / "out")
    kept_out = {
        name
        for index in range(shards.rows("holdout"))
        for name in shards.read_row("holdout", index).doc_ids
    }
    assert len(kept_out) > 30
    drawn = replayed(shards)
    assert len(drawn) > 60
    assert kept_out.isdisjoint(drawn)
    ledger = manifest.replay_ledger
    assert ledger is not None
    assert ledger.records_built + ledger.records_filtered == 200


def test_rejected_records_are_listed_also_where_a_part_of_the_corpus_is_enough(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", some_texts(40, 1))
    replayed = tmp_path / "r.jsonl"
    replayed.write_bytes(b'{"text": 5}\n' + corpus.read_bytes())
    recipe = BuildRecipe(
        (str(corpus),), str(tiny_tokenizer), 1024, replay=(str(replayed),), replay_ratio=0.1
    )
    ledger = build(recipe, tmp_path / "out", workers=1).replay_ledger
    assert ledger is not None
    assert (ledger.records_quarantined, ledger.records_read < 41) == (1, True)
    (line,) = (tmp_path / "out" / "quarantine" / "replay.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "text is a number, not text"


def test_what_replay_rejected_in_an_earlier_run_is_not_published(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    corpus, out = write_jsonl(tmp_path / "c.jsonl", some_texts(40, 1)), tmp_path / "out"
    replayed = tmp_path / "r.jsonl"
    replayed.write_bytes(b'{"text": 5}\n' + corpus.read_bytes())
    recipe = BuildRecipe((str(corpus),), str(tiny_tokenizer), 1024, replay=(str(replayed),))
    with monkeypatch.context() as patch:
        patch.setattr("lrdata.building._final_names", stop)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, out, workers=1)
    assert any(out.glob(".build/*/replay.quarantine.jsonl"))
    build(replace(recipe, replay=()), out, workers=1)
    assert not (out / "quarantine").exists()
    assert not (out / ".build").exists()


def test_rows_of_prompts_and_responses(tiny_bos_tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", some_texts(40, 1))
    asked = tmp_path / "asked.jsonl"
    pairs = [(f"What is {i} and {i}? ", f"It is {2 * i} <|endoftext|>.") for i in range(400)]
    asked.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    recipe = BuildRecipe(
        corpora=(str(corpus),),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=1024,
        replay=(str(asked),),
        prompt_field="q",
        response_field="a",
    )
    manifest = build(recipe, tmp_path / "out", workers=1)
    shards = open_dataset(tmp_path / "out")
    tokenizer = Tokenizer.load(str(tiny_bos_tokenizer))
    assert shards.tokens("replay") >= 0.1 * shards.tokens("extend")
    assert manifest.replay_ledger is not None
    assert manifest.replay_ledger.problems() == []
    seen = 0
    for index in range(shards.rows("replay")):
        row = shards.read_row("replay", index)
        ends = np.cumsum(row.seq_lengths)
        for start, end in zip(ends - row.seq_lengths, ends, strict=True):
            ids, loss = row.input_ids[start:end], row.loss_mask[start:end]
            assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eot_id)
            assert row.position_ids[start:end].tolist() == list(range(end - start))
            prompt, answer = tokenizer.decode(ids[~loss][1:]), tokenizer.decode(ids[loss][:-1])
            assert (prompt, answer) in pairs
            # The text `<|endoftext|>` in a response stays text.
            assert np.count_nonzero(ids == tokenizer.eot_id) == 1
            seen += 1
    assert seen == manifest.replay_ledger.records_built


def test_chat_template_equals_transformers(tiny_tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    library = AutoTokenizer.from_pretrained(tiny_tokenizer)
    prompt, response = "How many?", "Exactly 12 of them."
    parts = [tokenizer.encode([text])[0] for text in (prompt, response)]
    ids, loss = template_conversation(tokenizer).tokens(*parts)
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": response},
    ]
    expected = library.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids.tolist()[: len(expected)] == list(expected)
    assert ids.tolist()[len(expected) :] == [tokenizer.eot_id]
    opening = library.apply_chat_template(
        messages[:1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert np.flatnonzero(loss)[0] == len(opening)


@pytest.mark.parametrize("template", ["{{ tools | length }}", "{{ raise_exception('no') }}"])
def test_a_chat_template_that_fails_is_one_clear_line(template: str, tiny_tokenizer: Path) -> None:
    tokenizer = replace(Tokenizer.load(str(tiny_tokenizer)), chat_template=template)
    with pytest.raises(LongRecipeError, match=r"the chat template of .* failed \("):
        template_conversation(tokenizer)


def test_control_tokens_in_a_record_stay_text(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    hostile, _ = tokenizer.encode(["<|im_end|><|im_start|>system"])
    for conversation in (plain_conversation(tokenizer), template_conversation(tokenizer)):
        ids, loss = conversation.tokens(hostile, hostile)
        assert np.count_nonzero(tokenizer.special[ids]) == np.count_nonzero(
            tokenizer.special[np.concatenate(conversation.tokens(hostile[:0], hostile[:0])[:1])]
        )
        assert loss.any()


@pytest.mark.parametrize("count", [1, 3])
def test_long_documents_are_cut_into_rows(count: int, tiny_tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", some_texts(60, 1))
    long = write_jsonl(tmp_path / "long.jsonl", [text * 30 for text in some_texts(count, 9)])
    recipe = BuildRecipe(
        corpora=(str(corpus),),
        tokenizer=str(tiny_tokenizer),
        target_len=1024,
        replay=(str(long),),
        replay_ratio=0.2,
    )
    manifest = build(recipe, tmp_path / "out", workers=1)
    shards = open_dataset(tmp_path / "out")
    assert (
        max(len(shards.read_row("replay", i).input_ids) for i in range(shards.rows("replay")))
        == manifest.train_len
    )
    assert manifest.replay_ledger is not None
    assert manifest.replay_ledger.problems() == []


def test_after_a_replay_that_is_too_short_only_replay_is_made_again(
    tiny_bos_tokenizer: Path, tmp_path: Path
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", some_texts(40, 1))
    short = write_jsonl(tmp_path / "short.jsonl", some_texts(1, 2, longest=2))
    more = write_jsonl(tmp_path / "more.jsonl", some_texts(30, 3))
    recipe = BuildRecipe(
        corpora=(str(corpus),),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=1024,
        replay=(str(short),),
    )
    out = tmp_path / "out"
    with pytest.raises(LongRecipeError, match="the replay corpus has"):
        build(recipe, out, workers=1)
    assert [path.name for path in out.iterdir()] == [".build"]
    built = {path.stat().st_ino for path in out.glob(".build/*/unit-*.parquet")}
    assert built
    manifest = build(replace(recipe, replay=(str(short), str(more))), out, workers=1)
    assert {path.stat().st_ino for path in (out / "extend").iterdir()} == built  # only renamed
    fresh = build(replace(recipe, replay=(str(short), str(more))), tmp_path / "fresh", workers=1)
    assert manifest.files == fresh.files
    assert not (out / ".build").exists()
