"""The bytes of each id, and the fingerprint of the table."""

import hashlib
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import read_vocabulary, table_fingerprint
from tests.conftest import EOT, generated_text
from tests.fetch import fetch

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def pieces_of(made: tokenizers.Tokenizer) -> list[bytes]:
    (values, offsets), special = read_vocabulary(made)
    assert (values.dtype, offsets.dtype, special.dtype) == (np.uint8, np.int64, np.bool_)
    assert len(offsets) == len(special) + 1
    return [values[a:b].tobytes() for a, b in pairwise(offsets)]


def sentencepiece_like() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral have it: `▁` for a space, a piece for each byte."""
    options: dict[str, Any] = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    trained = tokenizers.Tokenizer(models.BPE(**options))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*specials, *BYTES], show_progress=False
    )
    trained.train_from_iterator(generated_text(60), trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    made = tokenizers.Tokenizer(
        models.BPE(trained.get_vocab(), [(left, right) for left, right in merges], **options)
    )
    made.add_special_tokens(specials)  # not the bytes
    made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def test_sentencepiece_with_byte_fallback(tmp_path: Path) -> None:
    made = sentencepiece_like()
    pieces = pieces_of(made)
    ids = made.get_vocab()
    assert pieces[ids["<0x0A>"]] == b"\n"
    assert pieces[ids["<0xFE>"]] == b"\xfe"
    assert pieces[ids["▁the"]] == b" the"
    assert pieces[ids["</s>"]] == b"</s>"
    text = "the water said: 😀 日本\n of it"
    expected = made.encode(text, add_special_tokens=False).ids
    assert b"".join(pieces[id_] for id_ in expected) == text.encode()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.encode([text])[0].tolist() == expected


def test_every_piece_is_what_the_library_decodes(tiny_tokenizer: Path) -> None:
    for folder in (tiny_tokenizer, fetch("llama3"), fetch("deepseek")):
        made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        pieces = pieces_of(made)
        for id_ in range(0, len(pieces), max(1, len(pieces) // 3000)):
            found = pieces[id_].decode("utf-8", errors="replace")
            assert made.decode([id_], skip_special_tokens=False) == found


def test_a_piece_outside_the_byte_alphabet_is_text() -> None:
    made = tokenizers.Tokenizer(models.BPE({"Ġa": 0, "á b": 1, "的": 2, "é": 3}, []))
    made.decoder = decoders.ByteLevel()
    assert pieces_of(made) == [b" a", "á b".encode(), "的".encode(), b"\xe9"]


def test_unused_ids_and_special_flags() -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    made.add_special_tokens(["<|x▁|>"])
    made.add_tokens(["word"])
    assert pieces_of(made) == [b"a", b"", "<|x▁|>".encode(), b"word", b"", b"b"]
    _, special = read_vocabulary(made)
    assert np.flatnonzero(special).tolist() == [2]


def test_fingerprint_is_the_documented_hash(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    values, offsets = tokenizer.token_bytes
    framed = struct.pack("<Q", tokenizer.vocab_size)
    framed += b"".join(struct.pack("<I", length) for length in np.diff(offsets))
    framed += bytes(tokenizer.special.tolist()) + values.tobytes()
    assert tokenizer.fingerprint == hashlib.sha256(framed).hexdigest()


@pytest.mark.parametrize("change", ["piece", "border", "flag", "size"])
def test_fingerprint_tells_tables_apart(change: str) -> None:
    values, offsets = np.frombuffer(b"abcdef", np.uint8), np.array([0, 2, 4, 6])
    special = np.array([True, False, False])
    other = values.copy(), offsets.copy(), special.copy()
    if change == "piece":
        other[0][3] = ord("x")
    elif change == "border":
        other[1][1] = 1
    elif change == "flag":
        other[2][1] = True
    else:
        other = values, np.array([0, 2, 4, 6, 6]), np.array([True, False, False, False])
    first = table_fingerprint((values, offsets), special)
    assert first != table_fingerprint(other[:2], other[2])


def test_fingerprint_does_not_depend_on_how_it_is_saved(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """transformers writes tokenizer.json anew when a model is saved: it is still the same."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(tmp_path)
    first, second = Tokenizer.load(str(tiny_tokenizer)), Tokenizer.load(str(tmp_path))
    assert first.fingerprint == second.fingerprint
    assert first.probe_fingerprint == second.probe_fingerprint
    assert first.decode([second.eot_id]) == EOT
