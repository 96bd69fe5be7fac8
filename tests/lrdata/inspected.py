"""A small dataset with the corpus that it was built from, and its rows as pages, for tests."""

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from lrdata.building import build
from lrdata.inspecting.page import write_page
from lrdata.recipe import BuildRecipe
from lrdata.shards import Row
from lrdata.tokenizer import Tokenizer
from tests.conftest import BOS, EOT, generated_text
from tests.lrdata.pages import Element, Page
from tests.lrdata.rebuilding import _bytes_of_tokens

TARGET = 512


@dataclass
class Built:
    """A dataset, what it was built from, and the text of each document by its id."""

    folder: Path
    corpora: list[str]
    texts: dict[str, str]
    tokenizer: Tokenizer
    library: tokenizers.Tokenizer
    eot: str = EOT

    def window(self, row: Row) -> list[int]:
        """The ids of a row's window from texts and provenance columns, and nothing of ours."""
        bos = self.library.token_to_id(BOS)
        window = [bos] if bos is not None else []
        for name, start, length in zip(row.doc_ids, row.doc_offsets, row.doc_lengths, strict=True):
            ids = self.library.encode(self.texts[name], add_special_tokens=False).ids
            window += [*ids, self._end][start : start + length]
        return window

    @property
    def _end(self) -> int:
        id_ = self.library.token_to_id(self.eot)
        assert id_ is not None
        return id_

    def spell(self, ids: list[int]) -> str:
        table = _bytes_of_tokens(self.library)
        special = {self.library.token_to_id(name): name.encode() for name in (BOS, self.eot)}
        return b"".join(special.get(token, table[token]) for token in ids).decode(errors="replace")


def _texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    pieces = ("".join(generated_text(draw.randint(1, 20), seed + n)) for n in range(count))
    return [
        f"{piece} 😀 <b>{n} & 1</b> 的一是 🤷🏽 {'x' * draw.randint(0, 9)}"
        for n, piece in enumerate(pieces)
    ]


def _write_corpus(folder: Path) -> dict[str, str]:
    """Five formats; the text of each record by the id that it has without one of its own."""
    folder.mkdir()
    texts = {}
    for name in ("a.jsonl", "b.jsonl.gz"):
        lines, size = [], 0
        for at, text in enumerate(_texts(15, len(name))):
            texts[f"books/{name}:{size}"] = text
            record = {"text": text, "name": f"{name}-{at}", "kind": f"k{at % 2}"}
            lines.append(json.dumps(record).encode() + b"\n")
            size += len(lines[-1])
        data = b"".join(lines)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for name in ("c.parquet", "f.arrow"):
        rows, numbers = _texts(15, ord(name[0])), range(15)
        columns = {"text": rows, "name": [f"{name[0]}-{at}" for at in numbers]}
        table = pa.table({**columns, "kind": [f"k{at % 2}" for at in numbers]})
        if name == "c.parquet":
            pq.write_table(table, folder / name, row_group_size=4)
        else:
            with pa.ipc.new_file(folder / name, table.schema) as writer:
                writer.write_table(table, max_chunksize=6)
        texts |= {f"books/{name}:{at}": text for at, text in enumerate(rows)}
    for name in ("d.txt", "e.txt"):
        texts[f"books/{name}:0"] = _texts(1, ord(name[0]))[0]
        (folder / name).write_text(texts[f"books/{name}:0"], encoding="utf-8")
    return texts


def build_books(folder: Path, tokenizer: Path, **options: Any) -> Built:
    """The corpus and its dataset in a folder; options of the recipe."""
    texts = _write_corpus(folder / "books")
    corpora = (str(folder / "books"),)
    recipe = BuildRecipe(
        corpora=corpora,
        tokenizer=str(tokenizer),
        target_len=TARGET,
        segment_tokens=30,
        **options,
    )
    build(recipe, folder / "shards", workers=1)
    return Built(
        folder / "shards",
        list(corpora),
        texts,
        Tokenizer.load(str(tokenizer), eot=recipe.eot, encoder="tokenizers"),
        tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json")),
        recipe.eot or EOT,
    )


def page_of(built: Built, kind: str, row: int, out: Path, whole: bool, rows: int = 1) -> Page:
    corpora = built.corpora if whole else []
    write_page(built.folder, kind, row, out / "row.html", built.tokenizer, corpora, rows)
    return Page((out / "row.html").read_text(encoding="utf-8"))


def spans_of(page: Page) -> list[Element]:
    return [element for element in page.elements if "data-t" in element.attributes]


def units_of(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def offsets_of(row: Row) -> list[int]:
    pieces = zip(row.segment_starts.tolist(), row.segment_lengths.tolist(), strict=True)
    return [at for start, length in pieces for at in range(start, start + length)]
