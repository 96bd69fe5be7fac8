"""The windows that rows were made of, from the corpus: with what selection dropped.

    windows = find_windows(views, ["books/"], manifest, tokenizer)

A document is looked for where its id says it lies (`file:record`, the id of a document that has
none of its own), else in all of the corpus, which is read until everything is found. It counts as
found only where its tokens are those that the row kept; where it kept none, any document of that
name and length is taken, and the page says so.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lrdata.corpus import Piece, Unit, find_files, plan_units
from lrdata.inspecting.places import likely_units
from lrdata.inspecting.view import View, begins
from lrdata.long_text import LongText
from lrdata.manifest import Manifest
from lrdata.progress import progress
from lrdata.reader import read_unit
from lrdata.records import Fields
from lrdata.tokenizer import Tokenizer


def find_windows(
    views: Sequence[View], corpora: Sequence[str], manifest: Manifest, tokenizer: Tokenizer
) -> list["np.ndarray | str"]:
    """For each row the ids of its window, int32 [window_tokens], or the first document of it that
    is not in the corpus.

    Memory holds the windows and a batch of the corpus. Raises LongRecipeError for a corpus that
    cannot be read.
    """
    wanted = [part for view in views for part in _parts(view)]
    search = _Search(wanted, manifest, tokenizer)
    files = find_files(corpora)
    for unit in likely_units([part.name for part in wanted], files):
        search.read(unit)
    if search.missing:
        units = plan_units(files)
        with progress("looking for the documents", len(units)) as task:
            for unit in units:
                search.read(unit)
                task.advance(note=unit.pieces[0].file.name)
                if not search.missing:
                    break
    return [_window(view, [part for part in wanted if part.view is view]) for view in views]


@dataclass(eq=False)
class _Part:
    """Tokens [start, start + length) of a document, as part of a window. `ids`: once found."""

    view: View
    name: str
    start: int
    length: int
    places: np.ndarray  # int64: which of its tokens the row kept,
    kept: np.ndarray  # int32: and which these are
    ids: np.ndarray | None = field(default=None)

    def take(self, tokens: np.ndarray) -> None:
        """Tokens of a document with this name from `start` on, if they are the ones."""
        if len(tokens) == self.length and np.array_equal(tokens[self.places], self.kept):
            self.ids = tokens


def _parts(view: View) -> Iterator[_Part]:
    row = view.row
    edges = np.searchsorted(view.document, np.arange(len(row.doc_ids) + 1))
    before = view.lead + begins(row.doc_lengths)
    for index, (first, last) in enumerate(pairwise(edges.tolist())):
        if index == 0:  # the start-of-text token is no document's
            first += int(np.searchsorted(view.offsets[:last], view.lead))
        yield _Part(
            view=view,
            name=row.doc_ids[index],
            start=int(row.doc_offsets[index]),
            length=int(row.doc_lengths[index]),
            places=view.offsets[first:last] - before[index],
            kept=row.input_ids[first:last],
        )


def _window(view: View, parts: Sequence[_Part]) -> "np.ndarray | str":
    lead = view.row.input_ids[:1] if view.lead else view.row.input_ids[:0]
    found = [part.ids for part in parts if part.ids is not None]
    if len(found) < len(parts):
        return next(part.name for part in parts if part.ids is None)
    return np.concatenate([lead, *found])


class _Search:
    """Takes what is wanted out of the corpus."""

    def __init__(self, wanted: Sequence[_Part], manifest: Manifest, tokenizer: Tokenizer) -> None:
        recipe = manifest.recipe
        self._fields = Fields(
            text=recipe.get("text_field") or "text",
            id=recipe.get("id_field"),
            source=recipe.get("source_field"),
        )
        self._tokenizer, self._eot_id = tokenizer, manifest.tokenizer.eot_id
        self._by_name: dict[str, list[_Part]] = {}
        for part in wanted:
            self._by_name.setdefault(part.name, []).append(part)

    @property
    def missing(self) -> bool:
        return bool(self._by_name)

    def read(self, unit: Unit) -> None:
        if not any(map(self._may_hold, unit.pieces)):
            return
        for documents, _ in read_unit(unit, self._fields):
            for name, text in zip(documents.ids, documents.texts, strict=True):
                if name in self._by_name:
                    self._try(name, text)
            if not self.missing:
                return

    def _may_hold(self, piece: Piece) -> bool:
        """Without ids of their own, documents are named after their file."""
        return self._fields.id is not None or any(
            name.rpartition(":")[0] == piece.file.name for name in self._by_name
        )

    def _try(self, name: str, text: str | LongText) -> None:
        parts = self._by_name[name]
        last = max(part.start + part.length for part in parts)
        ids = self._encoded(text, last)
        for part in parts:
            part.take(ids[part.start : part.start + part.length])
        self._by_name[name] = [part for part in parts if part.ids is None]
        if not self._by_name[name]:
            del self._by_name[name]

    def _encoded(self, text: str | LongText, count: int) -> np.ndarray:
        """The first `count` tokens or more of a document, the end of text after its last."""
        pieces: Iterable[str] = [str(text)]
        if isinstance(text, LongText) and self._tokenizer.why_whole is None:
            pieces = text
        found, tokens = list[np.ndarray](), 0
        for piece in pieces:
            found.append(self._tokenizer.encode([piece])[0])
            tokens += len(found[-1])
            if tokens >= count:
                break
        return np.append(np.concatenate(found), np.int32(self._eot_id))
