"""A unit of the corpus -> its shards and a receipt: the whole flow for one piece of work.

A unit's output depends on its bytes, the recipe and the pinned libraries alone, so it does not
matter when, where or how often it runs. Its files appear in the staging folder under their unit's
number, the receipt last: a unit with a valid receipt is done.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lrdata.atomic import write_json
from lrdata.corpus import Unit
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.manifest import FileEntry, Ledger
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from lrdata.records import Documents, Fields, Rejected
from lrdata.rows import Compressor
from lrdata.shelf import Shelf
from lrdata.tokenizer import Encoder, Tokenizer
from lrdata.windows import Document, Window, WindowJoiner

_COMPARED_CHARACTERS = 20_000
"""Of each batch this much is encoded twice, by the fast encoder and by the reference."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to build a unit; `row_limit` stops it early (`--max-rows`)."""

    unit: Unit
    recipe: BuildRecipe
    staging: Path
    row_limit: int | None = None


@dataclass(frozen=True)
class Receipt:
    """What a unit came to. File paths are relative to the staging folder."""

    unit: int
    ledger: Ledger
    files: tuple[FileEntry, ...]


def build_unit(job: Job) -> Receipt:
    """Build one unit, or return the receipt of an earlier run whose files are still there."""
    done = read_receipt(job)
    if done is not None:
        return done
    tokenizer = open_tokenizer(job.recipe)
    compressor = _open_compressor(job.recipe)
    with Shelf(job.staging, f"unit-{job.unit.index:05d}") as shelf:
        ledger = _UnitBuilder(job, tokenizer, compressor, shelf).run()
    receipt = Receipt(job.unit.index, ledger, tuple(shelf.entries))
    write_json(_receipt_path(job), asdict(receipt))
    return receipt


def read_receipt(job: Job) -> Receipt | None:
    """The receipt of a finished unit, or None."""
    path = _receipt_path(job)
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    files = tuple(FileEntry(**entry) for entry in raw["files"])
    receipt = Receipt(raw["unit"], Ledger(**raw["ledger"]), files)
    whole = all(
        (job.staging / entry.path).exists()
        and (job.staging / entry.path).stat().st_size == entry.bytes
        for entry in files
    )
    too_long = job.row_limit is not None and receipt.ledger.rows > job.row_limit
    return receipt if whole and not too_long else None


def _receipt_path(job: Job) -> Path:
    return job.staging / f"unit-{job.unit.index:05d}.json"


@lru_cache(maxsize=1)
def _load_tokenizer(name: str, eot: str | None, encoder: Encoder) -> Tokenizer:
    return Tokenizer.load(name, eot=eot, encoder=encoder)


def open_tokenizer(recipe: BuildRecipe) -> Tokenizer:
    """The recipe's tokenizer, loaded once in each process."""
    return _load_tokenizer(recipe.tokenizer, recipe.eot, recipe.encoder)


_compressors: dict[str, Compressor] = {}


def _open_compressor(recipe: BuildRecipe) -> Compressor:
    key = repr(recipe)
    if key not in _compressors:
        _compressors.clear()
        _compressors[key] = Compressor.open(recipe, open_tokenizer(recipe))
    return _compressors[key]


def encode_documents(documents: Documents, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids and offsets of a batch; a part of it is encoded twice and compared.

    Raises LongRecipeError when the fast encoder differs from the tokenizer's own library.
    """
    if documents.texts and tokenizer.encoder != "tokenizers":
        sample = [documents.texts[0][:_COMPARED_CHARACTERS]]
        if not np.array_equal(tokenizer.encode(sample)[0], tokenizer.encode_reference(sample)[0]):
            raise LongRecipeError(
                f"{documents.files[0]} record {documents.records[0]}: {tokenizer.encoder} encodes "
                "it differently from tokenizers; report it, and build with --encoder tokenizers"
            )
    return tokenizer.encode(documents.texts)


class _UnitBuilder:
    """The state of one unit while it is built: joiners, writers, ledger."""

    def __init__(
        self, job: Job, tokenizer: Tokenizer, compressor: Compressor, shelf: Shelf
    ) -> None:
        self.unit, self.recipe, self.limit = job.unit, job.recipe, job.row_limit
        self.tokenizer, self.compressor, self.shelf = tokenizer, compressor, shelf
        self.ledger = Ledger()
        self.joiners: dict[tuple[str, int], WindowJoiner] = {}

    def run(self) -> Ledger:
        for documents, rejected in read_unit(self.unit, fields_of(self.recipe)):
            self._set_aside(rejected)
            for document in self._encode(documents):
                self._add(document)
                if self._full():
                    break
            if self._full():
                break
        self.ledger.tail += sum(joiner.tail_tokens() for joiner in self.joiners.values())
        return self.ledger

    def _full(self) -> bool:
        return self.limit is not None and self.ledger.rows >= self.limit

    def _set_aside(self, rejected: list[Rejected]) -> None:
        for entry in rejected:
            self.ledger.records_read += entry.count
            self.ledger.records_quarantined += entry.count
            self.shelf.reject(entry)

    def _encode(self, documents: Documents) -> Iterator[Document]:
        ids, offsets = encode_documents(documents, self.tokenizer)
        for index in range(len(documents)):
            tokens = ids[offsets[index] : offsets[index + 1]]
            yield Document(
                doc_id=documents.ids[index],
                source=documents.sources[index],
                file=documents.files[index],
                record=documents.records[index],
                tokens=np.append(tokens, np.int32(self.tokenizer.eot_id)),
            )

    def _add(self, document: Document) -> None:
        recipe, ledger = self.recipe, self.ledger
        draws = Draws(recipe.seed, document.file, document.record)
        held_out = draws.share("holdout") < recipe.holdout
        weight = 1.0 if held_out else recipe.weights.get(document.source, 1.0)
        copies = int(weight) + (draws.share("weight") < weight % 1)
        length = len(document.tokens) - 1
        if length < recipe.min_doc_tokens or not copies:
            ledger.records_filtered += 1
            ledger.tokens_filtered += length
            return
        ledger.records_read += 1
        ledger.records_built += 1
        for copy in range(copies):
            ledger.encoded += length
            ledger.inserted += 1
            kind = "holdout" if held_out else "extend"
            if (kind, copy) not in self.joiners:
                self.joiners[kind, copy] = WindowJoiner(recipe.target_len, self.tokenizer.bos_id)
            part = document if not copy else replace(document, copy=copy)
            for window in self.joiners[kind, copy].add(part):
                self._write(kind, window)

    def _write(self, kind: str, window: Window) -> None:
        ledger = self.ledger
        if kind == "extend" and self._full():
            ledger.tail += len(window.ids) - window.lead
            return
        ledger.inserted += window.lead
        if kind == "holdout":
            self.shelf.write(self.compressor.holdout_row(window))
            ledger.held_out += len(window.ids)
            ledger.holdout_rows += 1
            return
        row = self.compressor.row(window)
        self.shelf.write(row)
        ledger.rows += 1
        ledger.kept += len(row.input_ids)
        ledger.dropped += len(window.ids) - len(row.input_ids)


def fields_of(recipe: BuildRecipe) -> Fields:
    """Where extend documents keep their text."""
    return Fields(text=recipe.text_field, id=recipe.id_field, source=recipe.source_field)
