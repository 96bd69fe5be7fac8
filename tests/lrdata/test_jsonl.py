"""JSON lines and text: what the json module reads of the whole file, whatever the units; damage
costs the damaged line or tail and no more."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lrdata import jsonl, records
from lrdata.corpus import Piece
from lrdata.errors import LongRecipeError
from lrdata.long_text import LongText
from lrdata.records import Fields
from tests.lrdata.reading import read_file

_PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def _write(folder: Path, data: bytes, suffix: str = "", name: str = "c.jsonl") -> Path:
    path = folder / (name + suffix)
    path.write_bytes(_PACK[suffix](data))
    return path


_LINES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": st.text(max_size=15)}).map(json.dumps),
        st.fixed_dictionaries({"text": st.text(max_size=15)}).map(
            lambda record: json.dumps(record, ensure_ascii=False).replace("\u2028", "")
        ),
        st.sampled_from(["", "   ", "{", "[1]", "null", '{"text": 3}', '{"other": "x"}', "\r"]),
    ).filter(lambda line: "\n" not in line),
    max_size=25,
)


def _expected(data: bytes) -> tuple[list[tuple[int, str]], list[int]]:
    """(offset, text) of what the json module accepts, offsets of what it does not."""
    good, bad, offset = [], [], 0
    for line in data.split(b"\n"):
        text = None
        if line.strip():
            try:
                record = json.loads(line)
                text = record.get("text") if isinstance(record, dict) else None
            except ValueError:
                pass
            usable = isinstance(text, str) and text.strip() and "\0" not in text
            try:
                usable = usable and text.encode()
            except UnicodeEncodeError:  # half a surrogate pair
                usable = False
            if usable:
                good.append((offset, text))
            else:
                bad.append(offset)
        offset += len(line) + 1
    return good, bad


@given(
    _LINES, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.integers(1, 300), st.integers(1, 99)
)
def test_units_and_batches_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    final: bool,
    newline: str,
    unit_bytes: int,
    batch_bytes: int,
) -> None:
    """Every record is a document or rejected, once, in order; blank lines are neither."""
    folder = tmp_path_factory.mktemp("c")
    data = newline.join(['{"text": "first"}', *lines, *([""] if final else [])])
    raw = data.encode("utf-8", "surrogatepass")
    path = _write(folder, raw)
    found, rejected = read_file(path, unit_bytes=unit_bytes, batch_bytes=batch_bytes)
    good, bad = _expected(raw)
    assert list(zip(found.records, found.texts, strict=True)) == good
    assert [entry.record for entry in rejected] == bad
    assert found.ids == [f"c.jsonl:{offset}" for offset in found.records]


@given(_LINES, st.sampled_from([".gz", ".zst"]), st.integers(1, 4))
def test_a_compressed_file_reads_as_the_plain_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], suffix: str, members: int
) -> None:
    """Also when it is several members or frames, one after the other."""
    folder = tmp_path_factory.mktemp("c")
    raw = "\n".join(['{"text": "first"}', *lines]).encode("utf-8", "surrogatepass")
    step = -(-len(raw) // members)
    parts = [raw[start : start + step] for start in range(0, len(raw), step)]
    packed = folder / f"c.jsonl{suffix}"
    packed.write_bytes(b"".join(map(_PACK[suffix], parts)))
    plain, refused = read_file(_write(folder, raw))
    found, rejected = read_file(packed)
    assert found.texts == plain.texts
    assert found.records == plain.records
    assert [(e.record, e.reason) for e in rejected] == [(e.record, e.reason) for e in refused]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "text is null"),
        (3, "text is a number, not text"),
        (True, "text is a boolean, not text"),
        (["a"], "text is a list, not text"),
        ({"a": 1}, "text is an object, not text"),
        (" \n", "text is empty"),
        ("a\0b", "text holds a NUL character"),
        ("\u4e2d\0b", "text holds a NUL character"),
        ("\ud800", "text holds half a surrogate pair"),
    ],
)
def test_a_text_that_is_none_is_rejected_with_its_reason(
    tmp_path: Path, value: Any, reason: str
) -> None:
    lines = [json.dumps({"text": text}) for text in ("good", value, "better")]
    found, rejected = read_file(_write(tmp_path, "\n".join(lines).encode()))
    assert found.texts == ["good", "better"]
    assert [entry.reason for entry in rejected] == [reason]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "abc', "not JSON, at character 9 of the line"),
        (b'{"text": "\xff"}', "not UTF-8, at byte 10 of the line"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON that can be read: a number is too long"),
        (b'{"text": ' + b"[" * 200_000, "not JSON that can be read: nested too deeply"),
        (b'["text"]', "not a JSON object"),
        (b'{"tex": "x"}', "text is missing"),
    ],
)
def test_a_line_that_is_no_record_costs_itself_only(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = _write(tmp_path, b'{"text": "a"}\n' + line + b'\n{"text": "b"}')
    found, rejected = read_file(path)
    assert found.texts == ["a", "b"]
    assert [(entry.record, entry.reason) for entry in rejected] == [(14, reason)]


@pytest.mark.parametrize(
    ("beside", "reason"),
    [("[" * 1000 + "]" * 1000, "nested too deeply"), ("9" * 5000, "a number is too long")],
)
def test_a_label_that_python_cannot_read_costs_its_line_only(
    tmp_path: Path, beside: str, reason: str
) -> None:
    """Numbers that are labels are read again by its parser, which takes less than orjson does."""
    lines = ['{"id": 1, "text": "a"}', f'{{"id": 1.5, "text": "b", "x": {beside}}}']
    path = _write(tmp_path, "\n".join([*lines, '{"id": 2.5, "text": "c"}']).encode())
    found, rejected = read_file(path, Fields(id="id"))
    assert found.texts == ["a", "c"]
    assert [entry.reason for entry in rejected] == [f"not JSON that can be read: {reason}"]


def test_a_line_without_end_is_rejected_and_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 2**20)
    long = json.dumps({"text": "x" * 5000})
    path = _write(tmp_path, f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n{long}'.encode())
    found, rejected = read_file(path)
    assert found.texts == ["a", "b"]
    assert [entry.reason for entry in rejected] == ["longer than 1 MB"] * 2


def test_a_long_text_inside_objects_is_read_as_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a dotted name leads to, and beside a field that holds the word that stands in."""
    texts = ["word " * 30 + f"of \\ {number}" for number in range(3)]
    records = [
        {"long0": "long0", "doc": {"text": text, "meta": {"asked": text[::-1], "n": ["long0"]}}}
        for text in texts
    ]
    path = _write(tmp_path, "\n".join(map(json.dumps, records)).encode())
    monkeypatch.setattr(jsonl, "LONG_BYTES", 100)
    found, rejected = read_file(path, Fields(text="doc.text"))
    assert [str(text) for text in found.texts] == texts
    assert {type(text) for text in found.texts} == {LongText}
    both, _ = read_file(path, Fields(prompt="doc.meta.asked", response="doc.text"))
    assert [str(text) for text in both.texts] == texts
    assert both.prompts == [text[::-1] for text in texts]
    assert not rejected


def test_a_number_as_id_of_a_broken_long_text_costs_that_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = '{"id": 1.5, "text": "' + "word " * 30 + '\\x"}'
    path = _write(tmp_path, f'{{"text": "a"}}\n{broken}\n{{"text": "b"}}'.encode())
    monkeypatch.setattr(jsonl, "LONG_BYTES", 100)
    found, rejected = read_file(path, Fields(id="id"))
    assert found.texts == ["a", "b"]
    assert [entry.reason for entry in rejected] == ["not JSON"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_of_a_damaged_file_everything_before_the_damage_is_kept(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    texts = [f"{number} {zlib.crc32(bytes([number % 256])):x}" * 20 for number in range(3000)]
    raw = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    data = bytearray(_PACK[suffix](raw))
    if damage == "truncated":
        del data[len(data) * 2 // 3 :]
    else:
        data[len(data) * 2 // 3] ^= 0xFF
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes(data)
    found, rejected = read_file(path)
    assert found.texts == texts[: len(found)]
    if damage == "truncated":
        assert len(found) > 1000
    assert rejected[-1].reason.split(":")[0] in ("truncated", "damaged")
    assert len(rejected) == 1


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("end", "cut"),
    [(b"", False), (b'{"text": "c"', True), (b'{"te', True), (b'{"text": "c"}', False)],
)
def test_a_rejected_record_before_the_damage_costs_itself_only(
    tmp_path: Path, suffix: str, end: bytes, cut: bool
) -> None:
    """Of a truncated file the line that is cut is the file's damage, and no other line is."""
    lines = [b'{"text": "a"}', b'{"text": 5}', b'{"text": "b"}', b"{", end]
    whole = b"\n".join(lines)
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes(_truncated(suffix, whole))
    found, rejected = read_file(path)
    assert found.texts == ["a", "b", *(["c"] if end and not cut else [])]
    assert [entry.record for entry in rejected] == [14, 40, len(whole)]
    assert rejected[-1].reason == "truncated: the compressed file ends too early"


def _truncated(suffix: str, data: bytes) -> bytes:
    """A compressed file that ends too early, of which just `data` can be read."""
    if suffix == ".gz":
        packer: Any = zlib.compressobj(wbits=31)
        return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    found, rejected = read_file(_write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n'))
    assert found.texts == ["a"]
    assert not rejected


def test_a_field_in_no_record_is_an_error_and_one_in_a_single_record_is_not(
    tmp_path: Path,
) -> None:
    lines = [json.dumps({"text": "a", "n": number}) for number in range(50)]
    path = _write(tmp_path, "\n".join(lines).encode())
    with pytest.raises(LongRecipeError, match=r"no field 'body' in any record; .*: text, n"):
        read_file(path, Fields(text="body"), unit_bytes=100)
    path = _write(tmp_path, "\n".join([*lines, '{"body": "b"}']).encode())
    found, rejected = read_file(path, Fields(text="body"), unit_bytes=100)
    assert found.texts == ["b"]
    assert len(rejected) == 50


def test_a_field_that_begins_late_is_looked_for_once_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units that lack it are many where a corpus was joined from two."""
    asked = []
    real = jsonl._occurs

    def occurs(piece: Piece, name: str) -> bool:
        asked.append(piece.start)
        return real(piece, name)

    monkeypatch.setattr(jsonl, "_occurs", occurs)
    lines = [json.dumps({"text": "a", "n": number}) for number in range(100)]
    lines += [json.dumps({"body": "b", "n": number}) for number in range(100)]
    path = _write(tmp_path, "\n".join(lines).encode())
    found, rejected = read_file(path, Fields(text="body"), unit_bytes=200)
    assert len(found.texts) == len(rejected) == 100
    assert asked == [0]


def test_a_json_array_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = _write(tmp_path, json.dumps([{"text": "a"}], indent=1).encode(), name="a.json")
    with pytest.raises(LongRecipeError, match="not JSON lines; convert it with jq"):
        read_file(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    text = "Zeile 1\r\nжук 漢字\n\n" * 2000
    path = _write(tmp_path, b"\xef\xbb\xbf" + text.encode(), suffix, "story.txt")
    found, rejected = read_file(path, unit_bytes=10)
    assert found.texts == [text.replace("\r\n", "\n")]
    assert (found.ids, found.sources, rejected) == ([f"{path.name}:0"], ["story"], [])


def test_a_text_file_that_is_not_utf8_or_is_cut_is_rejected(tmp_path: Path) -> None:
    _, rejected = read_file(_write(tmp_path, "Müller".encode("latin-1"), name="l.txt"))
    assert [entry.reason for entry in rejected] == ["text is not UTF-8"]
    packed = gzip.compress("ж".encode() * 100_000, compresslevel=0)
    path = tmp_path / "cut.txt.gz"
    for size in (len(packed) // 2, len(packed) // 2 + 1):  # one of them ends in half a character
        path.write_bytes(packed[:size])
        found, rejected = read_file(path)
        assert set(found.texts[0]) == {"ж"}
        assert [entry.reason for entry in rejected] == [
            "truncated: the compressed file ends too early"
        ]
