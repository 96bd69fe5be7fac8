"""Replay: short documents like the original training data, packed into rows.

Every document is read on its own: it has its own attention (`seq_lengths`), its positions start at
0, and where the tokenizer adds a start-of-text token it begins with one. Prompt / response records
count in the loss on the response only. Rows are filled best-fit; documents longer than a row are
cut into row-sized parts.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from lrdata.chat import Conversation, plain_conversation, template_conversation
from lrdata.corpus import SourceFile, plan_units, unit_size
from lrdata.draws import Draws
from lrdata.encoding import checked_texts, sifted
from lrdata.errors import LongRecipeError
from lrdata.manifest import FileEntry, Ledger
from lrdata.progress import progress
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from lrdata.records import Documents, Fields
from lrdata.shards import Row
from lrdata.shelf import Shelf
from lrdata.tokenizer import Encoded, Tokenizer
from lrdata.windows import Document

_BLOCK_ROWS = 64  # documents are packed this many rows' worth at a time: bounded memory
_SHARD_ROWS = 4096


@dataclass(frozen=True)
class Part:
    """`tokens` int32 [length] of a document, from its token `start` on; `loss` bool [length]."""

    document: Document
    start: int
    tokens: np.ndarray
    loss: np.ndarray

    @property
    def length(self) -> int:
        return len(self.loss)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into bins of `capacity`: longest first, each into the fullest bin that takes it.

    Returns the item numbers of each bin; items of equal length keep their order. Every length must
    be in [1, capacity].
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, (lengths[item], -1))
        if at == len(rooms):
            bins.append([])
            room, chosen = capacity, len(bins) - 1
        else:
            room, chosen = rooms.pop(at)
        bins[chosen].append(item)
        insort(rooms, (room - lengths[item], chosen))
    return bins


def build_replay(
    recipe: BuildRecipe,
    files: list[SourceFile],
    tokenizer: Tokenizer,
    staging: Path,
    extend_tokens: int,
) -> tuple[list[FileEntry], Ledger]:
    """Write replay shards to the staging folder until there are enough tokens.

    Raises LongRecipeError when the corpus is too short: nothing is ever repeated silently.
    """
    budget = math.ceil(recipe.replay_ratio * extend_tokens)
    ledger = Ledger()
    entries: list[FileEntry] = []
    with Shelf(staging, "replay") as rejects:
        rows = _rows(recipe, files, tokenizer, budget, ledger, rejects)
        while True:
            with Shelf(staging, f"replay-{len(entries):05d}") as shelf:
                for row in islice(rows, _SHARD_ROWS):
                    shelf.write(row)
            if not shelf.entries:
                break
            entries += shelf.entries
    if ledger.kept < budget:
        raise LongRecipeError(
            f"the replay corpus has {ledger.kept:,} tokens; --replay-ratio "
            f"{recipe.replay_ratio:g} of {extend_tokens:,} extend tokens needs {budget:,}: "
            "give more or lower the ratio"
        )
    return entries, ledger


def _rows(
    recipe: BuildRecipe,
    files: list[SourceFile],
    tokenizer: Tokenizer,
    budget: int,
    ledger: Ledger,
    rejects: Shelf,
) -> Iterator[Row]:
    with closing(_parts(recipe, files, tokenizer, ledger, rejects)) as parts:
        while ledger.kept < budget:
            block: list[Part] = []
            tokens = 0
            wanted = min(_BLOCK_ROWS * recipe.train_len, budget - ledger.kept)
            while tokens < wanted and (part := next(parts, None)) is not None:
                block.append(part)
                tokens += part.length
            if not block:
                return
            ledger.kept += tokens
            for chosen in best_fit([part.length for part in block], recipe.train_len):
                ledger.rows += 1
                yield replay_row([block[item] for item in chosen], recipe.target_len)


def _parts(
    recipe: BuildRecipe,
    files: list[SourceFile],
    tokenizer: Tokenizer,
    ledger: Ledger,
    rejects: Shelf,
) -> Generator[Part, None, None]:
    """Documents in row-sized parts, the corpus's units in a seeded order; until it is closed."""
    units = plan_units(files, recipe.unit_bytes or unit_size(files))
    keys = [
        Draws(recipe.seed, piece.file.name, piece.start).share("replay")
        for piece in (unit.pieces[0] for unit in units)
    ]
    fields = Fields(
        text=recipe.text_field,
        id=recipe.id_field,
        source=recipe.source_field,
        prompt=recipe.prompt_field,
        response=recipe.response_field,
    )
    chat = template_conversation if recipe.chat_template else plain_conversation
    conversation = chat(tokenizer)
    with progress("packing replay", len(units)) as task:
        for index in np.argsort(keys, kind="stable"):
            for documents, rejected in read_unit(units[index], fields):
                made, documents, refused = sifted(lambda batch: _ids(batch, tokenizer), documents)
                for entry in (*rejected, *refused):
                    ledger.records_read += entry.count
                    ledger.records_quarantined += entry.count
                    rejects.reject(entry)
                for document, tokens, loss in _conversations(documents, *made, conversation):
                    ledger.records_read += 1
                    ledger.records_built += 1
                    ledger.encoded -= conversation.inserted  # of all that _cut counts
                    ledger.inserted += conversation.inserted
                    yield from _cut(document, tokens, loss, recipe.train_len, ledger)
            task.advance()


def _ids(documents: Documents, tokenizer: Tokenizer) -> tuple[Encoded, Encoded]:
    """The texts of a batch, and its prompts: empty where records have none."""
    texts = tokenizer.encode(checked_texts(documents, tokenizer))
    return texts, tokenizer.encode(documents.prompts or [""] * len(documents))


def _conversations(
    documents: Documents, texts: Encoded, prompts: Encoded, conversation: Conversation
) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
    """Each document of a batch with its tokens and its loss mask."""
    (ids, ends), (asked, asked_ends) = texts, prompts
    for index, place in enumerate(documents.places()):
        prompt = asked[asked_ends[index] : asked_ends[index + 1]]
        tokens, loss = conversation.tokens(prompt, ids[ends[index] : ends[index + 1]])
        yield Document(*place), tokens, loss


def _cut(
    document: Document, tokens: np.ndarray, loss: np.ndarray, row_len: int, ledger: Ledger
) -> Iterator[Part]:
    """Parts of at most a row; those without a token that counts are dropped."""
    ledger.encoded += len(tokens)
    given = 0
    try:
        for start in range(0, len(tokens), row_len):
            stop = start + row_len
            part = Part(document, start, tokens[start:stop], loss[start:stop])
            given += part.length
            if part.loss.any():
                yield part
            else:
                ledger.dropped += part.length
    finally:
        # What is left when the budget was full in the middle of the document.
        ledger.tail += len(tokens) - given


def replay_row(parts: list[Part], target_len: int) -> Row:
    """One row of packed documents. Positions restart at 0 in each."""
    lengths = np.array([part.length for part in parts], np.int32)
    loss = np.concatenate([part.loss for part in parts])
    first = parts[0].document
    return Row(
        input_ids=np.concatenate([part.tokens for part in parts]),
        position_ids=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        seq_lengths=lengths,
        impact_mask=np.zeros(len(loss), bool),
        loss_mask=loss,
        segment_starts=(np.cumsum(lengths) - lengths).astype(np.int32),
        segment_lengths=lengths,
        doc_ids=[part.document.doc_id for part in parts],
        doc_offsets=np.array([part.start for part in parts], np.int64),
        doc_lengths=lengths,
        sample_id=f"{first.file}:{first.record}:{parts[0].start}:replay",
        source=first.source,
        kind="replay",
        window_tokens=len(loss),
        target_len=target_len,
    )
