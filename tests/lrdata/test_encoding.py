"""Documents -> tokens: as if each were encoded alone and whole, however batches and pieces fall."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from lrdata import columnar, encoding, jsonl, long_text
from lrdata.building import build
from lrdata.encoding import DocumentEncoder
from lrdata.errors import LongRecipeError
from lrdata.long_text import LongText
from lrdata.manifest import Manifest
from lrdata.recipe import BuildRecipe
from lrdata.records import Documents
from lrdata.sentences import sentence_ends
from lrdata.tokenizer import Encoded, Encoder, Tokenizer, UnencodableError
from lrdata.windows import Tokens
from tests.conftest import generated_text

SENTENCES = ["Dr. Who came.", "It cost 3.5 e.g. here!", "\u3053\u308c\u3002", "a\n  b\n\nC.", "No"]
TEXTS = st.lists(st.sampled_from([*SENTENCES, " ", "\n", "\r\n", "x y"]), min_size=1).map("".join)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Path) -> DocumentEncoder:
    return DocumentEncoder(Tokenizer.load(str(tiny_tokenizer)))


def documents(texts: list[str]) -> Documents:
    numbers = list(range(len(texts)))
    labels = [str(number) for number in numbers]
    return Documents(list(texts), labels, ["s"] * len(texts), ["f"] * len(texts), numbers)


def encoded(encoder: DocumentEncoder, texts: list[str]) -> list[Tokens]:
    tokens, starts = encoder.encode(documents(texts))
    assert len(starts) == len(texts) + 1
    return [tokens.part(start, stop) for start, stop in pairwise(starts)]


@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_a_batch_is_its_documents_one_by_one(encoder: DocumentEncoder, texts: list[str]) -> None:
    tokenizer = encoder.tokenizer
    for text, tokens in zip(texts, encoded(encoder, texts), strict=True):
        expected = [*tokenizer.encode_reference([text])[0].tolist(), tokenizer.eot_id]
        assert tokens.ids.tolist() == expected
        alone = sentence_ends(np.array(expected), encoder.tables)
        np.testing.assert_array_equal(tokens.sentence_ends, alone)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, size=st.integers(3, 20))
def test_a_text_in_pieces_is_the_text_whole(
    encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", size)
    parts = encoder.encode_long(LongText(memoryview(text.encode())))
    assert not isinstance(parts, str)
    pieces = Tokens.joined(list(parts))
    (whole,) = encoded(encoder, [text])
    assert pieces.ids.tolist() == whole.ids.tolist()
    assert pieces.sentence_ends.tolist() == whole.sentence_ends.tolist()


def write(folder: Path, form: str, texts: list[str]) -> Path:
    folder.mkdir(parents=True)
    path = folder / f"c.{form}"
    if form == "txt":
        path.write_bytes("".join(texts).replace("\n", "\r\n").encode())
    elif form == "parquet":
        pq.write_table(pa.table({"id": [str(i) for i in range(len(texts))], "text": texts}), path)
    else:
        ascii_only = folder.name == "escaped"
        records = [{"id": i, "text": text, "meta": [text[:9]]} for i, text in enumerate(texts)]
        lines = [json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records]
        path.write_text("".join(lines), encoding="utf-8")
    return path


def contents(manifest: Manifest) -> list[str]:
    return [entry.content_sha256 for entry in manifest.files]


@pytest.mark.parametrize("form", ["jsonl", "escaped", "parquet", "txt"])
def test_long_texts_give_the_same_dataset(
    form: str, tiny_bos_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["".join(generated_text(3 + 40 * (i % 3), i)) for i in range(9)]
    path = write(tmp_path / form, "jsonl" if form == "escaped" else form, texts)
    recipe = BuildRecipe(
        corpora=(str(path),),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=512,
        weights={"c": 2.0},
        min_doc_tokens=200,
        replay=(str(path),),
    )
    whole = build(recipe, tmp_path / "whole", workers=1)
    monkeypatch.setattr(long_text, "PIECE_BYTES", 700)
    for module in (jsonl, columnar):
        monkeypatch.setattr(module, "LONG_BYTES", 3000)
    in_pieces = build(recipe, tmp_path / "pieces", workers=1)
    assert contents(in_pieces) == contents(whole)
    assert in_pieces.ledger == whole.ledger
    assert whole.ledger.rows > 20 or form == "txt"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("a\\ud800b", "text holds half a surrogate pair"),
        ("a\\u0000b", "text holds a NUL character"),
        ("a\\x", "not JSON"),
        ("a\tb", "not JSON"),
        ("a\udcff", "text is not UTF-8"),
    ],
)
def test_a_fault_at_the_end_of_a_long_text_rejects_all_of_it(
    last: str, reason: str, tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LONG_BYTES", 3000)
    monkeypatch.setattr(long_text, "PIECE_BYTES", 700)
    good = json.dumps({"text": "".join(generated_text(40))})
    bad = '{"text": "' + "word and " * 2000 + last + '"}'
    path = tmp_path / "c.jsonl"
    path.write_bytes(f"{good}\n{bad}\n{good}\n".encode(errors="surrogateescape"))
    out = tmp_path / "out"
    ledger = build(BuildRecipe((str(path),), str(tiny_tokenizer), 512), out, workers=1).ledger
    (line,) = (out / "quarantine" / "unit-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == reason
    assert (ledger.records_built, ledger.records_quarantined) == (2, 1)
    assert ledger.problems() == []


def test_a_long_text_of_a_tokenizer_that_cannot_cut_is_set_aside(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((tiny_tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    raw["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    folder = tmp_path / "strips"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    monkeypatch.setattr(jsonl, "LONG_BYTES", 3000)
    monkeypatch.setattr(encoding, "MAX_WHOLE_BYTES", 20_000)
    texts = ["".join(generated_text(count, count)) for count in (10, 60, 300)]
    path = write(tmp_path / "c", "jsonl", texts)
    recipe = BuildRecipe((str(path),), str(folder), 512, eot="<|endoftext|>")
    ledger = build(recipe, tmp_path / "out", workers=1).ledger
    assert (ledger.records_built, ledger.records_quarantined) == (2, 1)
    line = (tmp_path / "out" / "quarantine" / "unit-00000.jsonl").read_text()
    assert "cannot" not in line
    assert "the tokenizer's normalizer may reach across a cut" in line


@pytest.mark.parametrize("library", ["fastokens", "tokenizers"])
def test_a_long_text_without_a_place_to_cut_is_set_aside(
    library: Encoder, tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be encoded whole, as in replay every text is."""
    monkeypatch.setattr(jsonl, "LONG_BYTES", 3000)
    monkeypatch.setattr(long_text, "PIECE_BYTES", 700)
    monkeypatch.setattr(encoding, "MAX_WHOLE_BYTES", 20_000)
    texts = ["".join(generated_text(40, 1)), "ACGT" * 4000, "\u4e2d\u6587\u5b57" * 2500]
    texts.append("".join(generated_text(2000, 2)))
    path = write(tmp_path / "c", "jsonl", texts)
    recipe = BuildRecipe((str(path),), str(tiny_tokenizer), 512, encoder=library)
    recipe = replace(recipe, replay=(str(path),), replay_ratio=0.44)  # nearly all there is
    manifest = build(recipe, tmp_path / "out", workers=1)
    lines = path.read_bytes().splitlines(keepends=True)
    first, last = (sum(map(len, lines[:before])) for before in (2, 3))
    uncut = "longer than 0 MB, and has no place where it could be cut"
    whole = "longer than 0 MB, and replay is not encoded in pieces"
    assert rejections(tmp_path / "out", "unit-00000") == [(f"c.jsonl:{first}", uncut)]
    refused = rejections(tmp_path / "out", "replay")  # those that were drawn
    assert refused
    assert {*refused} <= {(f"c.jsonl:{first}", whole), (f"c.jsonl:{last}", whole)}
    for ledger, built in ((manifest.ledger, 3), (manifest.replay_ledger, 2)):
        assert ledger is not None
        assert (ledger.records_built, ledger.problems()) == (built, [])


STEPS = "\u2d63" * 2000
"""So many steps to a pattern of `stumbling` that the library panics."""


@pytest.fixture(scope="module")
def stumbling(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer with a pattern that backtracks, which does not allow cutting."""
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    pattern = tokenizers.Regex("(\u2d63+)+$b")
    split = pre_tokenizers.Split(pattern, "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, made.pre_tokenizer])
    folder = tmp_path_factory.mktemp("stumbling")
    made.save(str(folder / "tokenizer.json"))
    return folder


def rejections(out: Path, name: str) -> list[tuple[str, str]]:
    lines = (out / "quarantine" / f"{name}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(f"{entry['file']}:{entry['record']}", entry["reason"]) for entry in found]


@pytest.mark.parametrize("long_bytes", [2**20, 3000])
def test_a_text_that_nothing_can_encode_is_set_aside(
    long_bytes: int, stumbling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, alone as a long text, and in replay."""
    monkeypatch.setattr(jsonl, "LONG_BYTES", long_bytes)
    texts = ["".join(generated_text(40, seed)) for seed in range(5)]
    path = write(tmp_path / "c", "jsonl", [*texts[:2], f"a {STEPS} b", *texts[2:]])
    place = sum(map(len, path.read_bytes().splitlines(keepends=True)[:2]))
    recipe = BuildRecipe(
        (str(path),),
        str(stumbling),
        512,
        eot="<|endoftext|>",
        encoder="tokenizers",
        replay=(str(path),),
        replay_ratio=3.0,  # all that can be encoded
        seed=1,  # and what cannot is not drawn last, when there is enough
    )
    manifest = build(recipe, tmp_path / "out", workers=1)
    whole = write(tmp_path / "without", "jsonl", texts)
    alone = replace(recipe, corpora=(str(whole),), replay=())
    expected = build(alone, tmp_path / "expected", workers=1).ledger
    assert (manifest.ledger.rows, manifest.ledger.encoded) == (expected.rows, expected.encoded)
    for ledger in (manifest.ledger, manifest.replay_ledger):
        assert ledger is not None
        assert (ledger.records_built, ledger.records_quarantined) == (5, 1)
        assert ledger.problems() == []
    for name in ("unit-00000", "replay"):
        assert rejections(tmp_path / "out", name) == [(f"c.jsonl:{place}", encoding.UNENCODABLE)]


@pytest.mark.parametrize("uncut", [True, False])
def test_a_piece_of_a_long_text_that_nothing_can_encode(
    uncut: bool, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found before a token of the text is in a window where it is a piece that has no place
    to be cut; else it stops the build, and is named."""
    monkeypatch.setattr(jsonl, "LONG_BYTES", 3000)
    monkeypatch.setattr(long_text, "PIECE_BYTES", 700 if uncut else 7000)
    plain = Tokenizer._encode_slowly

    def stumbles(self: Tokenizer, texts: list[str], specials: bool) -> Encoded:
        if any(STEPS in text for text in texts):
            raise UnencodableError("too many steps")
        return plain(self, texts, specials)

    monkeypatch.setattr(Tokenizer, "_encode_slowly", stumbles)
    texts = ["".join(generated_text(80, seed)) for seed in range(3)]
    path = write(tmp_path / "c", "jsonl", [texts[0], texts[1] + STEPS + texts[2], texts[2]])
    place = len(path.read_bytes().splitlines(keepends=True)[0])
    recipe = BuildRecipe((str(path),), str(tiny_tokenizer), 512, encoder="tokenizers")
    if uncut:
        ledger = build(recipe, tmp_path / "out", workers=1).ledger
        assert (ledger.records_built, ledger.problems()) == (2, [])
        found = rejections(tmp_path / "out", "unit-00000")
        assert found == [(f"c.jsonl:{place}", encoding.UNENCODABLE)]
        return
    with pytest.raises(LongRecipeError, match=rf"^c\.jsonl record {place}: too many steps"):
        build(recipe, tmp_path / "out", workers=1)
