"""Rows of a dataset against the texts they were built from; of ours only the columns are used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tokenizers

from lrdata.manifest import Manifest
from tests.lrdata.damage import Damaged

Row = dict[str, Any]


def problems_of_rows(
    out: Path, corpus: Damaged, manifest: Manifest, library: tokenizers.Tokenizer
) -> list[str]:
    """What is wrong with the rows of a folder, a line each."""
    rebuilder = _Rebuilder(corpus, manifest, library)
    return [
        f"{path.name} row {number}: {problem}"
        for path in sorted(out.glob("*/*.parquet"))
        for number, row in enumerate(pq.read_table(path).to_pylist())
        for problem in rebuilder.problems(row)
    ]


class _Rebuilder:
    def __init__(self, corpus: Damaged, manifest: Manifest, library: tokenizers.Tokenizer) -> None:
        self.corpus, self.library = corpus, library
        self.eot, self.bos = manifest.tokenizer.eot_id, manifest.tokenizer.bos_id
        self._tokens: dict[str, list[int]] = {}
        self._bytes = _bytes_of_tokens(library)

    def problems(self, row: Row) -> Iterator[str]:
        unknown = [name for name in row["doc_ids"] if name not in self.corpus.texts]
        if not unknown:
            if row["input_ids"] != self._kept(row):
                yield "its ids are not those of its documents"
        elif self.corpus.raw is None:
            yield f"{unknown[0]} is no readable document"
        else:
            known = b"".join(text.encode() for text in self.corpus.texts.values())
            yield from self._strangers(row, self.corpus.raw + known)

    def _kept(self, row: Row) -> list[int]:
        """input_ids as the texts and the row's own columns tell them."""
        window = [] if self.bos is None else [self.bos]
        columns = (row["doc_ids"], row["doc_offsets"], row["doc_lengths"])
        for name, start, length in zip(*columns, strict=True):
            window += self._encoded(name)[start : start + length]
        pieces = zip(row["segment_starts"], row["segment_lengths"], strict=True)
        return [token for start, length in pieces for token in window[start : start + length]]

    def _encoded(self, name: str) -> list[int]:
        if name not in self._tokens:
            text = self.corpus.texts[name]
            ids = self.library.encode(text, add_special_tokens=False).ids
            self._tokens[name] = [*ids, self.eot]
        return self._tokens[name]

    def _strangers(self, row: Row, allowed: bytes) -> Iterator[str]:
        """Runs of text, within a segment and a document, that stand nowhere in the corpus."""
        at = 0
        for length in row["segment_lengths"]:
            run = b""
            for token in (*row["input_ids"][at : at + length], self.eot):
                if token not in (self.eot, self.bos):
                    run += self._bytes[token]
                elif run not in allowed:
                    yield f"{run[:60]!r} is not in the corpus"
                    run = b""
                else:
                    run = b""
            at += length


def _bytes_of_tokens(library: tokenizers.Tokenizer) -> dict[int, bytes]:
    """What each token of a byte-level vocabulary stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + at): byte for at, byte in enumerate(others)}
    return {
        token: bytes(byte_of.get(character, 0) for character in text)
        for text, token in library.get_vocab().items()
    }
