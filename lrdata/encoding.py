"""Documents -> tokens, many documents at once: ids, end of text, sentence ends.

    encoder = DocumentEncoder(tokenizer)
    for document, parts in encoder.encode(documents): ...    # parts: its Tokens, in order

The texts of a batch are encoded into one array, and all its sentence ends are found in one go. A
long text is encoded in pieces, where that gives the same ids.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from lrdata.errors import LongRecipeError
from lrdata.long_text import LongText
from lrdata.records import Documents, Rejected
from lrdata.sentences import SentenceTables, sentence_ends, sentence_tables
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Document, Tokens

MAX_WHOLE_BYTES = 64 * 1024**2
"""A longer text is rejected where the tokenizer does not allow cutting it."""

_COMPARED_CHARACTERS = 1_000
"""Of each batch this much is encoded twice, by the fast encoder and by the reference."""


class DocumentEncoder:
    """Encodes batches of documents for one tokenizer. May be used by several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tables: SentenceTables = sentence_tables(tokenizer)

    def encode(
        self, documents: Documents
    ) -> Iterator[tuple[Document, Iterable[Tokens]] | Rejected]:
        """Each document with its tokens; a text that is too long to be encoded is rejected."""
        if documents.texts and type(documents.texts[0]) is LongText:
            yield self._encode_long(documents, documents.texts[0])
            return
        texts = checked_texts(documents, self.tokenizer)
        ids, offsets = self.tokenizer.encode_documents(texts)
        tokens, starts = Tokens(ids, sentence_ends(ids, self.tables)), offsets.tolist()
        places = zip(
            documents.ids, documents.sources, documents.files, documents.records, strict=True
        )
        for index, place in enumerate(places):
            yield Document(*place), (tokens.part(starts[index], starts[index + 1]),)

    def _encode_long(
        self, documents: Documents, text: LongText
    ) -> tuple[Document, Iterable[Tokens]] | Rejected:
        file, record = documents.files[0], documents.records[0]
        if self.tokenizer.why_whole is not None and len(text) > MAX_WHOLE_BYTES:
            limit = MAX_WHOLE_BYTES // 1024**2
            return Rejected(file, record, f"longer than {limit} MB, and {self.tokenizer.why_whole}")
        document = Document(documents.ids[0], documents.sources[0], file, record)
        return document, _Pieces(self, text)

    def pieces(self, text: LongText) -> Iterator[Tokens]:
        """The tokens of a long text, piece by piece, the end of text in the last one."""
        held: str | None = None
        for piece in text if self.tokenizer.why_whole is None else [str(text)]:
            if held is not None:
                yield self._piece(held, last=False)
            held = piece
        if held is not None:
            yield self._piece(held, last=True)

    def _piece(self, piece: str, last: bool) -> Tokens:
        encode = self.tokenizer.encode_documents if last else self.tokenizer.encode
        ids, _ = encode([piece])
        ends = sentence_ends(ids, self.tables)
        if not last:
            ends[-1] = piece.endswith("\n")  # else it was cut at a space, inside a sentence
        return Tokens(ids, ends)


class _Pieces:
    """The tokens of a long text, each time anew: a document of weight 2 is used twice."""

    def __init__(self, encoder: DocumentEncoder, text: LongText) -> None:
        self._encoder, self._text = encoder, text

    def __iter__(self) -> Iterator[Tokens]:
        return self._encoder.pieces(self._text)


def checked_texts(documents: Documents, tokenizer: Tokenizer) -> list[str]:
    """The texts of a batch, the start of which is encoded twice and compared.

    Raises LongRecipeError when the fast encoder differs from the tokenizer's own library.
    """
    texts = [text if type(text) is str else str(text) for text in documents.texts]
    if texts and tokenizer.encoder != "tokenizers":
        sample = [texts[0][:_COMPARED_CHARACTERS]]
        if not np.array_equal(tokenizer.encode(sample)[0], tokenizer.encode_reference(sample)[0]):
            raise LongRecipeError(
                f"{documents.files[0]} record {documents.records[0]}: {tokenizer.encoder} encodes "
                "it differently from tokenizers; report it, and build with --encoder tokenizers"
            )
    return texts
