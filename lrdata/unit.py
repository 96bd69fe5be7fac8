"""A unit of the corpus -> its shards and a receipt: the whole flow for one piece of work.

A unit's output depends on its bytes, the recipe and the pinned libraries alone, so it does not
matter when, where or how often it runs. Its files appear in the staging folder under their unit's
number, the receipt last: a unit with a valid receipt is done.
"""

import json
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from lrdata.atomic import write_json
from lrdata.chat import template_conversation
from lrdata.corpus import Unit
from lrdata.draws import Draws
from lrdata.encoding import DocumentEncoder, sifted
from lrdata.errors import LongRecipeError
from lrdata.impact import Scorer, impact_sha256, open_scorer
from lrdata.long_text import LongText
from lrdata.manifest import FileEntry, Ledger, TokenizerEntry
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from lrdata.records import Documents, Fields, Rejected
from lrdata.rows import Compressor
from lrdata.shelf import Shelf
from lrdata.stopwatch import Stopwatch
from lrdata.tokenizer import Encoder, Tokenizer, UnencodableError
from lrdata.windows import Document, Tokens, Window, WindowJoiner


@dataclass(frozen=True)
class Means:
    """What units are built with, as the manifest names it: the tokenizer, and the sha256 of what
    `--impact` reads."""

    tokenizer: TokenizerEntry
    impact: str | None

    def refuse_other(self, recipe: BuildRecipe, tokenizer: Tokenizer, impact: str | None) -> None:
        """Raise LongRecipeError unless they are those that a worker found: hours later, or on
        another machine."""
        if TokenizerEntry.of(tokenizer).identity() != self.tokenizer.identity():
            raise LongRecipeError(
                f"{recipe.tokenizer} is another tokenizer here than where the build began: all "
                "machines need the same files, and the same versions of libraries"
            )
        if impact != self.impact:
            raise LongRecipeError(
                f"--impact {recipe.impact} is not what it was when the build began; put that back, "
                "and the same command goes on, or choose another --out"
            )


@dataclass(frozen=True)
class Job:
    """What a worker needs to build a unit. `row_limit` stops it early (`--max-rows`), `read_limit`
    after about so many bytes of text (`lrdata plan`, which names no `means`)."""

    unit: Unit
    recipe: BuildRecipe
    staging: Path
    means: Means | None = None
    row_limit: int | None = None
    read_limit: int | None = None


@dataclass(frozen=True)
class Receipt:
    """What a unit came to. File paths are relative to the staging folder.

    `bytes_read`: what its records took up in their files.
    `seconds`: processor time by stage, of the run that built it. `fresh`: this is that run.
    """

    unit: int
    ledger: Ledger
    files: tuple[FileEntry, ...]
    bytes_read: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    fresh: bool = False


def unit_stem(unit: int) -> str:
    """What the names of a unit's files in the staging folder begin with."""
    return f"unit-{unit:05d}"


def build_unit(job: Job) -> Receipt:
    """Build one unit, or return the receipt of an earlier run whose files are still there."""
    done = read_receipt(job)
    if done is not None:
        return done
    recipe = job.recipe
    tokenizer, impact = open_tokenizer(recipe), impact_sha256(recipe.impact)
    if job.means is not None:
        job.means.refuse_other(recipe, tokenizer, impact)
    encoder = _open_encoder(tokenizer)
    compressor = _open_compressor(recipe, tokenizer, impact)
    watch = Stopwatch()
    with Shelf(job.staging, unit_stem(job.unit.index), watch, compressor.schema) as shelf:
        builder = _UnitBuilder(job, encoder, compressor, shelf, watch)
        ledger = builder.run()
    files = tuple(shelf.entries)
    receipt = Receipt(job.unit.index, ledger, files, builder.bytes_read, watch.seconds)
    write_json(_receipt_path(job), asdict(receipt))
    return replace(receipt, fresh=True)


def read_receipt(job: Job) -> Receipt | None:
    """The receipt of a finished unit, or None."""
    path = _receipt_path(job)
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    files = tuple(FileEntry(**entry) for entry in raw["files"])
    receipt = Receipt(
        raw["unit"], Ledger(**raw["ledger"]), files, raw["bytes_read"], raw["seconds"]
    )
    whole = all(
        (job.staging / entry.path).exists()
        and (job.staging / entry.path).stat().st_size == entry.bytes
        for entry in files
    )
    too_long = job.row_limit is not None and receipt.ledger.rows > job.row_limit
    return receipt if whole and not too_long else None


def _receipt_path(job: Job) -> Path:
    return job.staging / f"{unit_stem(job.unit.index)}.json"


def open_tokenizer(recipe: BuildRecipe) -> Tokenizer:
    """The recipe's tokenizer, loaded once in each process."""
    return _load(recipe.tokenizer, recipe.eot, recipe.encoder)


def describe_tokenizer(recipe: BuildRecipe) -> tuple[TokenizerEntry, str | None]:
    """What the manifest says of the recipe's tokenizer and of its chat template, if replay goes
    through it; with all that a unit needs loaded."""
    tokenizer = warm_up(recipe.tokenizer, recipe.eot, recipe.encoder)
    templated = recipe.replay and recipe.chat_template
    chat = template_conversation(tokenizer).sha256 if templated else None
    return TokenizerEntry.of(tokenizer), chat


def warm_up(name: str, eot: str | None, encoder: Encoder) -> Tokenizer:
    """Load a tokenizer and all its tables before there is a unit to build."""
    tokenizer = _load(name, eot, encoder)
    _open_encoder(tokenizer)
    return tokenizer


# Loaded once in each process, and no more than the last two of them kept.


@lru_cache(2)
def _load(name: str, eot: str | None, encoder: Encoder) -> Tokenizer:
    return Tokenizer.load(name, eot=eot, encoder=encoder)


@lru_cache(2)
def _open_encoder(tokenizer: Tokenizer) -> DocumentEncoder:
    return DocumentEncoder(tokenizer)


@lru_cache(2)
def _open_scorer(
    impact: str, sha256: str | None, tokenizer: Tokenizer, join: str, thread: int
) -> Scorer:
    """sha256: of what it reads, which may change. thread: whose it is, as it may write to tables
    of its own."""
    return open_scorer(impact, tokenizer, join)


def _open_compressor(recipe: BuildRecipe, tokenizer: Tokenizer, sha256: str | None) -> Compressor:
    thread = threading.get_ident()
    return Compressor(recipe, _open_scorer(recipe.impact, sha256, tokenizer, recipe.join, thread))


class _UnitBuilder:
    """The state of one unit while it is built: joiners, writers, ledger."""

    def __init__(
        self,
        job: Job,
        encoder: DocumentEncoder,
        compressor: Compressor,
        shelf: Shelf,
        watch: Stopwatch,
    ) -> None:
        self.unit, self.recipe = job.unit, job.recipe
        self.limit = job.row_limit
        self.read_limit = math.inf if job.read_limit is None else job.read_limit
        self.encoder, self.compressor, self.shelf = encoder, compressor, shelf
        self.watch = watch
        self.bytes_read = 0
        self.ledger = Ledger()
        self.joiners: dict[tuple[str, int], WindowJoiner] = {}
        self._chosen = job.recipe.holdout > 0 or bool(job.recipe.weights)

    def run(self) -> Ledger:
        batches = self.watch.each("read", read_unit(self.unit, fields_of(self.recipe)))
        for documents, rejected in batches:
            self._set_aside(rejected)
            self.bytes_read += documents.size
            if documents.long is None:
                with self.watch("encode"):
                    made, documents, rejected = sifted(self.encoder.encode, documents)
                self._set_aside(rejected)
                with self.watch("join"):
                    self._add(documents, *made)
            else:
                try:
                    self._add_long(documents, documents.long)
                except UnencodableError as problem:  # when some of it is in windows already
                    where = f"{documents.files[0]} record {documents.records[0]}"
                    raise LongRecipeError(f"{where}: {problem}") from None
            with self.watch("join"):
                for joiner in self.joiners.values():
                    joiner.own()
            if self._full() or self.bytes_read >= self.read_limit:
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

    def _add(self, documents: Documents, tokens: Tokens, starts: list[int]) -> None:
        """Join the documents of a batch, whose tokens begin at `starts`, to windows."""
        ledger, least = self.ledger, self.recipe.min_doc_tokens
        for place, (start, stop) in zip(documents.places(), pairwise(starts), strict=True):
            document = Document(*place)
            kind, copies = self._uses(document) if self._chosen else ("extend", 1)
            length = stop - start - 1
            if length < least or not copies:
                ledger.records_filtered += 1
                ledger.tokens_filtered += length
                continue
            ledger.records_read += 1
            ledger.records_built += 1
            ledger.encoded += copies * length
            ledger.inserted += copies
            for copy in range(copies):
                use = document._replace(copy=copy) if copy else document
                for window in self._joiner(kind, copy).add(use, tokens, start, stop):
                    self._write(kind, window)
            if self._full():
                return

    def _add_long(self, documents: Documents, text: LongText) -> None:
        """The same for the one document of a batch, whose tokens come in parts."""
        recipe, ledger = self.recipe, self.ledger
        (document,) = (Document(*place) for place in documents.places())
        kind, copies = self._uses(document)
        with self.watch("encode"):
            parts = self.encoder.encode_long(text)
        if isinstance(parts, str):
            self._set_aside([Rejected(document.file, document.record, parts)])
            return
        length = _length_below(recipe.min_doc_tokens if copies else None, self._encoded(parts))
        if length is not None:
            ledger.records_filtered += 1
            ledger.tokens_filtered += length
            return
        ledger.records_read += 1
        ledger.records_built += 1
        ledger.encoded -= copies
        ledger.inserted += copies
        for copy in range(copies):
            counted = map(self._counted, self._encoded(parts))
            joiner, use = self._joiner(kind, copy), document._replace(copy=copy)
            for window in joiner.add_parts(use, counted):
                self._write(kind, window)

    def _encoded(self, parts: Iterable[Tokens]) -> Iterator[Tokens]:
        return self.watch.each("encode", parts)

    def _joiner(self, kind: str, copy: int) -> WindowJoiner:
        joiner = self.joiners.get((kind, copy))
        if joiner is None:
            joiner = WindowJoiner(self.recipe.target_len, self.encoder.tokenizer.bos_id)
            self.joiners[kind, copy] = joiner
        return joiner

    def _uses(self, document: Document) -> tuple[str, int]:
        """Of which kind a document's windows are, and how often it is used."""
        weight = self.recipe.weights.get(document.source, 1.0)
        if not weight or (self.recipe.holdout <= 0 and not weight % 1):
            return "extend", int(weight)
        if held_out(self.recipe, document.file, document.record):
            return "holdout", 1
        draws = Draws(self.recipe.seed, document.file, document.record)
        return "extend", int(weight) + (draws.share("weight") < weight % 1)

    def _counted(self, part: Tokens) -> Tokens:
        self.ledger.encoded += len(part.ids)
        return part

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
        with self.watch("select"):
            row = self.compressor.row(window)
        self.shelf.write(row)
        ledger.rows += 1
        ledger.kept += len(row.input_ids)
        ledger.dropped += len(window.ids) - len(row.input_ids)
        if row.lsd is not None:
            ledger.scored += int(np.isfinite(row.lsd).sum())


def _length_below(limit: int | None, parts: Iterable[Tokens]) -> int | None:
    """A document's tokens, the end of text left out, if there are fewer than `limit`; else None."""
    length = -1
    for part in parts:
        length += len(part.ids)
        if limit is not None and length >= limit:
            return None
    return length


def held_out(recipe: BuildRecipe, file: str, record: int) -> bool:
    """Whether the document at this place is kept out of training."""
    return Draws(recipe.seed, file, record).share("holdout") < recipe.holdout


def fields_of(recipe: BuildRecipe) -> Fields:
    """Where extend documents keep their text."""
    return Fields(text=recipe.text_field, id=recipe.id_field, source=recipe.source_field)
