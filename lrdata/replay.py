"""Replay: short documents like the original training data, packed into rows.

Every document is read on its own: it has its own attention (`seq_lengths`), its positions start at
0, and where the tokenizer adds a start-of-text token it begins with one. Prompt / response records
count in the loss on the response only. Rows are filled best-fit; documents longer than a row are
cut into row-sized parts.

The documents are a fair sample of the corpus, see `lrdata.replay_sample`. What is drawn is read
twice: it is counted, to know how much of it is enough, and then it is packed. One process does so.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lrdata.chat import Conversation, plain_conversation, template_conversation
from lrdata.corpus import SourceFile
from lrdata.encoding import checked_texts, sifted
from lrdata.errors import LongRecipeError
from lrdata.manifest import FileEntry, Ledger, SourceEntry
from lrdata.progress import progress
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from lrdata.records import Documents, Fields, Rejected
from lrdata.replay_sample import Cluster, clusters_of
from lrdata.shards import Row
from lrdata.shelf import Shelf
from lrdata.tokenizer import Encoded, Tokenizer
from lrdata.unit import held_out
from lrdata.windows import Document

_BLOCK_ROWS = 64  # documents are packed this many rows' worth at a time: bounded memory
_SHARD_ROWS = 4096
_TOKEN_BYTES = 6  # of a corpus, more than a token most often has: so much is counted at first
_BINS = 4096


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


class _Drawn(NamedTuple):
    """A document of the sample. tokens: int32 [n]; loss: bool [n]."""

    level: float
    document: Document
    tokens: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class _Corpus:
    """What replay is drawn from. names_in_corpus: see `same_files`."""

    recipe: BuildRecipe
    tokenizer: Tokenizer
    conversation: Conversation
    thinned: list[Cluster]
    whole: list[Cluster]
    names_in_corpus: Mapping[str, Sequence[str]]

    @classmethod
    def open(
        cls,
        recipe: BuildRecipe,
        files: Sequence[SourceFile],
        tokenizer: Tokenizer,
        names_in_corpus: Mapping[str, Sequence[str]],
    ) -> Self:
        chat = template_conversation if recipe.chat_template else plain_conversation
        clusters = clusters_of(files, recipe.seed)
        return cls(recipe, tokenizer, chat(tokenizer), *clusters, names_in_corpus)

    @property
    def text_bytes(self) -> int:
        return sum(cluster.text_bytes for cluster in (*self.thinned, *self.whole))

    def drawn(
        self,
        clusters: Sequence[Cluster],
        low: float,
        high: float,
        ledger: Ledger,
        reject: Callable[[Rejected], None],
    ) -> Iterator[_Drawn]:
        """The documents of clusters that have levels in [low, high), in the order of reading.

        In the ledger all that is read is set aside, until it is taken.
        """
        recipe, read = self.recipe, [one for one in clusters if one.reaches(low, high)]
        fields = Fields(
            text=recipe.text_field,
            id=recipe.id_field,
            source=recipe.source_field,
            prompt=recipe.prompt_field,
            response=recipe.response_field,
        )
        with progress("reading replay", len(read)) as task:
            for cluster in read:
                for documents, rejected in read_unit(cluster.unit, fields):
                    ledger.records_filtered += len(documents)
                    documents = self._wanted(cluster, documents, low, high)
                    made, documents, refused = sifted(self._encode, documents)
                    ledger.records_filtered -= len(refused)
                    for entry in (*rejected, *refused):
                        ledger.records_read += entry.count
                        ledger.records_quarantined += entry.count
                        reject(entry)
                    levels = cluster.levels(documents, recipe.seed).tolist()
                    found = _conversations(documents, *made, self.conversation)
                    for level, one in zip(levels, found, strict=True):
                        yield _Drawn(level, *one)
                task.advance()

    def _wanted(self, cluster: Cluster, documents: Documents, low: float, high: float) -> Documents:
        """Those with levels in [low, high), without those that are held out of extend."""
        levels = cluster.levels(documents, self.recipe.seed)
        chosen = np.flatnonzero((low <= levels) & (levels < high)).tolist()
        if self.names_in_corpus:
            files, records = documents.files, documents.records
            chosen = [at for at in chosen if not self._held_out(files[at], records[at])]
        return documents.only(chosen)

    def _held_out(self, file: str, record: int) -> bool:
        names = self.names_in_corpus.get(file, ())
        return any(held_out(self.recipe, name, record) for name in names)

    def _encode(self, documents: Documents) -> tuple[Encoded, Encoded]:
        """The texts of a batch, and its prompts: empty where records have none."""
        texts = self.tokenizer.encode(checked_texts(documents, self.tokenizer))
        return texts, self.tokenizer.encode(documents.prompts or [""] * len(documents))

    def taken(self, drawn: _Drawn, ledger: Ledger) -> Iterator[Part]:
        """A document in row-sized parts."""
        ledger.records_filtered -= 1
        ledger.records_read += 1
        ledger.records_built += 1
        ledger.encoded -= self.conversation.inserted  # of all that _cut counts
        ledger.inserted += self.conversation.inserted
        yield from _cut(drawn, self.recipe.train_len, ledger)


def same_files(
    files: Sequence[SourceFile], replay_files: Sequence[SourceFile], entries: Sequence[SourceEntry]
) -> dict[str, list[str]]:
    """The names in the corpus to extend with of each replay file that is there too.

    What is held out there must not be trained on here. Files are the same by their sha256, and
    remote ones whose server tells none by their address. entries: of both, in this order.
    """
    both = zip((*files, *replay_files), entries, strict=True)
    keys = [file.address if ":" in entry.sha256 else entry.sha256 for file, entry in both]
    names: dict[str | None, list[str]] = {}
    for key, file in zip(keys, files, strict=False):
        names.setdefault(key, []).append(file.name)
    rest = zip(keys[len(files) :], replay_files, strict=True)
    return {file.name: names[key] for key, file in rest if key in names}


def build_replay(
    recipe: BuildRecipe,
    files: list[SourceFile],
    tokenizer: Tokenizer,
    staging: Path,
    extend_tokens: int,
    names_in_corpus: Mapping[str, Sequence[str]],
) -> tuple[list[FileEntry], Ledger]:
    """Write replay shards to the staging folder until there are enough tokens.

    names_in_corpus: of the files that are in the corpus to extend with too, see `same_files`.
    Raises LongRecipeError when the corpus is too short: nothing is ever repeated silently.
    """
    budget = _budget(recipe, extend_tokens)
    corpus = _Corpus.open(recipe, files, tokenizer, names_in_corpus if recipe.holdout else {})
    limits = _limits(corpus, extend_tokens)
    ledger = Ledger()
    entries: list[FileEntry] = []
    with Shelf(staging, "replay") as rejects:
        parts = _parts(corpus, limits, ledger, rejects)
        rows = _rows(parts, recipe, budget, ledger)
        while True:
            with Shelf(staging, f"replay-{len(entries):05d}") as shelf:
                for row in islice(rows, _SHARD_ROWS):
                    shelf.write(row)
            if not shelf.entries:
                break
            entries += shelf.entries
    if ledger.kept < budget:  # a file has changed since it was counted
        raise _too_short(recipe, extend_tokens, ledger.kept)
    return entries, ledger


def bytes_to_read(recipe: BuildRecipe, files: Sequence[SourceFile], extend_tokens: int) -> int:
    """About how many bytes of text `build_replay` reads to count them, and most of them again."""
    clusters = [cluster for both in clusters_of(files, recipe.seed) for cluster in both]
    level = _counted_first(_budget(recipe, extend_tokens), sum(one.text_bytes for one in clusters))
    return sum(one.text_bytes for one in clusters if one.reaches(0.0, level))


def _counted_first(budget: int, text_bytes: int) -> float:
    """The level below which documents are counted first: most often they have the budget."""
    return min(_TOKEN_BYTES * budget / max(text_bytes, 1), 1.0)


def _budget(recipe: BuildRecipe, extend_tokens: int) -> int:
    return math.ceil(recipe.replay_ratio * extend_tokens)


def _too_short(recipe: BuildRecipe, extend_tokens: int, tokens: int) -> LongRecipeError:
    return LongRecipeError(
        f"the replay corpus has {tokens:,} tokens; --replay-ratio {recipe.replay_ratio:g} of "
        f"{extend_tokens:,} extend tokens needs {_budget(recipe, extend_tokens):,}: give more or "
        "lower the ratio"
    )


def _rows(
    parts: Generator[Part, None, None], recipe: BuildRecipe, budget: int, ledger: Ledger
) -> Iterator[Row]:
    row_len = recipe.train_len
    with closing(parts):
        while ledger.kept < budget:
            block: list[Part] = []
            tokens = 0
            wanted = min(_BLOCK_ROWS * row_len, budget - ledger.kept)
            while tokens < wanted and (part := next(parts, None)) is not None:
                block.append(part)
                tokens += part.length
            if not block:
                return
            ledger.kept += tokens
            for chosen in best_fit([part.length for part in block], row_len):
                ledger.rows += 1
                yield replay_row([block[item] for item in chosen], recipe.target_len)


def _parts(
    corpus: _Corpus, limits: tuple[float, float], ledger: Ledger, rejects: Shelf
) -> Generator[Part, None, None]:
    """The documents of the lowest levels in row-sized parts, until it is closed.

    limits: see `_limits`. All documents below the first in the order of reading, and then the last
    ones in that of levels.
    """
    sure, enough = limits
    last: list[_Drawn] = []
    for one in corpus.drawn(corpus.thinned, 0.0, enough, ledger, rejects.reject):
        if one.level < sure:
            yield from corpus.taken(one, ledger)
        else:
            last.append(one)
    last.sort(key=lambda one: one.level)
    whole = corpus.drawn(corpus.whole, 0.0, enough, ledger, rejects.reject)
    for one in heapq.merge(last, whole, key=lambda one: one.level):
        yield from corpus.taken(one, ledger)


def _limits(corpus: _Corpus, extend_tokens: int) -> tuple[float, float]:
    """Two levels with few documents between them: those below the first have fewer tokens than are
    needed, those below the second have enough.

    Raises LongRecipeError where all documents have not.
    """
    budget = _budget(corpus.recipe, extend_tokens)
    tokens = 0  # of the documents below `low`
    low, high = 0.0, _counted_first(budget, corpus.text_bytes)
    while True:
        edges = np.linspace(low, high, _BINS + 1)
        totals = tokens + np.cumsum(_tokens_between(corpus, edges))
        tokens = int(totals[-1])
        if tokens >= budget:
            at = np.searchsorted(totals, budget)
            return float(edges[at]), float(edges[at + 1])
        if high == 1:
            raise _too_short(corpus.recipe, extend_tokens, tokens)
        times = min(max(1.2 * budget / max(tokens, 1), 1.5), 8.0)  # by what the first ones have
        low, high = high, min(times * high, 1.0)


def _tokens_between(corpus: _Corpus, edges: np.ndarray) -> np.ndarray:
    """How many tokens the documents have whose levels lie between each edge and the next one.

    edges: float64 [n + 1], rising. Returns int64 [n].
    """
    counts = np.zeros(len(edges) - 1, np.int64)
    clusters, low, high = [*corpus.thinned, *corpus.whole], float(edges[0]), float(edges[-1])
    for one in corpus.drawn(clusters, low, high, Ledger(), lambda entry: None):
        parts = _cut(one, corpus.recipe.train_len, Ledger())
        at = np.searchsorted(edges, one.level, side="right") - 1
        counts[at] += sum(part.length for part in parts)
    return counts


def _conversations(
    documents: Documents, texts: Encoded, prompts: Encoded, conversation: Conversation
) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
    """Each document of a batch with its tokens and its loss mask."""
    (ids, ends), (asked, asked_ends) = texts, prompts
    for index, place in enumerate(documents.places()):
        prompt = asked[asked_ends[index] : asked_ends[index + 1]]
        tokens, loss = conversation.tokens(prompt, ids[ends[index] : ends[index + 1]])
        yield Document(*place), tokens, loss


def _cut(drawn: _Drawn, row_len: int, ledger: Ledger) -> Iterator[Part]:
    """Parts of at most a row; those without a token that counts are dropped."""
    _, document, tokens, loss = drawn
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
