"""Documents -> tokens, many documents at once: ids, end of text, sentence ends.

    encoder = DocumentEncoder(tokenizer)
    tokens, starts = encoder.encode(documents)
    tokens.part(starts[i], starts[i + 1])       # of document i

The texts of a batch are encoded into one array, and all its sentence ends are found in one go. A
long text is encoded in pieces, where that gives the same ids.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from lrdata import long_text
from lrdata.errors import LongRecipeError
from lrdata.long_text import LongText
from lrdata.records import Documents, Rejected
from lrdata.sentences import SentenceTables, sentence_ends, sentence_tables
from lrdata.tokenizer import Tokenizer, UnencodableError
from lrdata.windows import Tokens

_Made = TypeVar("_Made")

MAX_WHOLE_BYTES = 64 * 1024**2
"""A longer text is rejected where it cannot be cut: the tokenizer does not allow it, it has no
place for it, or it is replay."""

UNENCODABLE = "the tokenizer's library cannot encode it"
"""Why a record is rejected where `lrdata.tokenizer` raises UnencodableError."""

_COMPARED_CHARACTERS = 250
"""Of each batch this much is encoded twice, by the fast encoder and by the reference."""


class TooLongError(UnencodableError):
    """There is a text that would have to be encoded whole, and is too long for that."""

    def __init__(self, why: str) -> None:
        super().__init__(f"longer than {MAX_WHOLE_BYTES // 1024**2} MB, and {why}")


class DocumentEncoder:
    """Encodes batches of documents for one tokenizer. May be used by several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tables: SentenceTables = sentence_tables(tokenizer)

    def encode(self, documents: Documents) -> tuple[Tokens, list[int]]:
        """The tokens of a batch, and where those of each document begin, and end: [n + 1]. Raises
        UnencodableError, see `sifted`."""
        ids, offsets = self.tokenizer.encode_documents(checked_texts(documents, self.tokenizer))
        return Tokens(ids, sentence_ends(ids, self.tables)), offsets.tolist()

    def encode_long(self, text: LongText) -> Iterable[Tokens] | str:
        """The tokens of a long text in parts, or why it cannot be encoded."""
        why_whole = self.tokenizer.why_whole
        try:
            if why_whole is not None:
                _refuse_too_long(text, why_whole)
                return [self._piece(str(text), last=True)]
            for piece in text:
                if len(piece) > 2 * long_text.PIECE_BYTES:  # it has no place to cut: who knows
                    _refuse_too_long(piece.encode(), "has no place where it could be cut")
                    self.tokenizer.encode([piece])
        except UnencodableError as problem:
            return _why(problem)
        return _Pieces(self, text)

    def pieces(self, text: LongText) -> Iterator[Tokens]:
        """The tokens of a long text, piece by piece, the end of text in the last one."""
        held: str | None = None
        for piece in text:
            if held is not None:
                yield self._piece(held, last=False)
            held = piece
        if held is not None:
            yield self._piece(held, last=True)

    def _piece(self, piece: str, last: bool) -> Tokens:
        encode = self.tokenizer.encode_documents if last else self.tokenizer.encode
        ids, _ = encode([piece])
        ends = sentence_ends(ids, self.tables)
        if not last and not piece.endswith("\n"):  # it was cut at a space, inside a sentence
            ends = ends[:-1]
        return Tokens(ids, ends)


def _refuse_too_long(text: bytes | LongText, why: str) -> None:
    if len(text) > MAX_WHOLE_BYTES:
        raise TooLongError(why)


def _why(problem: UnencodableError) -> str:
    """A record's reason: of the library's own words nobody could make anything."""
    return str(problem) if isinstance(problem, TooLongError) else UNENCODABLE


class _Pieces:
    """The tokens of a long text, each time anew: a document of weight 2 is used twice."""

    def __init__(self, encoder: DocumentEncoder, text: LongText) -> None:
        self._encoder, self._text = encoder, text

    def __iter__(self) -> Iterator[Tokens]:
        return self._encoder.pieces(self._text)


def sifted(
    encode: Callable[[Documents], _Made], documents: Documents
) -> tuple[_Made, Documents, list[Rejected]]:
    """What `encode` makes of the documents that can be encoded; these, and the others, rejected."""
    try:
        return encode(documents), documents, []
    except UnencodableError:
        pass
    good, rejected = [], []
    for at, (_, _, file, record) in enumerate(documents.places()):
        try:
            encode(documents.only([at]))
            good.append(at)
        except UnencodableError as problem:
            rejected.append(Rejected(file, record, _why(problem)))
    documents = documents.only(good)
    return encode(documents), documents, rejected


def checked_texts(documents: Documents, tokenizer: Tokenizer) -> list[str]:
    """The texts of a batch, to be encoded whole; the start is encoded twice and compared.

    Raises LongRecipeError when the fast encoder differs from the tokenizer's own library, and
    TooLongError, see `sifted`.
    """
    for text in documents.texts:
        if isinstance(text, LongText):
            _refuse_too_long(text, "replay is not encoded in pieces")
    texts = [text if type(text) is str else str(text) for text in documents.texts]
    if texts and tokenizer.encoder != "tokenizers":
        sample = [texts[0][:_COMPARED_CHARACTERS]]
        if not np.array_equal(tokenizer.encode(sample)[0], tokenizer.encode_reference(sample)[0]):
            raise LongRecipeError(
                f"{documents.files[0]} record {documents.records[0]}: {tokenizer.encoder} encodes "
                "it differently from tokenizers; report it, and build with --encoder tokenizers"
            )
    return texts
