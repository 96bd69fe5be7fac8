"""What a record is: a document, or rejected with a reason.

Records are a line of JSON, a row of Parquet or Arrow, or a text file. A record is never repaired:
where its text is not a string of valid Unicode it is rejected, and the reason never quotes it.
Records read = documents + sum of `Rejected.count`, exactly (`records_read`).
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from lrdata.corpus import SourceFile
from lrdata.errors import LongRecipeError
from lrdata.long_text import LongText

_Item = TypeVar("_Item")

MAX_RECORD_BYTES = 384 * 1024**2
"""A longer line, text or text file is rejected; no more than this much of it is ever held."""

READ_BYTES = 1024**2
MISSING = object()
"""Stands for a field that a record does not have."""


@dataclass(frozen=True)
class Fields:
    """Where a record keeps what we need. A dotted name such as `meta.id` looks into objects,
    unless a field has that very name. With `prompt` and `response` the text is the response."""

    text: str = "text"
    id: str | None = None
    source: str | None = None
    prompt: str | None = None
    response: str | None = None

    @property
    def content(self) -> str:
        """The field that texts come from."""
        return self.response or self.text

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.content, self.prompt) if self.prompt else (self.content,)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.needed, *(name for name in (self.id, self.source) if name))


@dataclass(frozen=True)
class Rejected:
    """`count` records from `record` on that are not used. A file that cannot be opened has
    record -1; one that ends too early, the offset at which what can be read of it ends."""

    file: str
    record: int
    reason: str
    count: int = 1


class Record(NamedTuple):
    """A usable record. `size`: bytes that it took up in its file."""

    text: str | LongText
    id: str
    source: str
    file: str
    record: int
    prompt: str | None
    size: int


@dataclass
class Documents:
    """A batch, as parallel lists [n]; `prompts` is None unless `Fields.prompt` is given.

    ids: the record's own, else `<file>:<record>`. sources: the record's own, else the file's.
    records: first byte of the line in the decompressed JSONL file, row number in the Parquet or
    Arrow file, 0 in a text file; with `files` (relative names) it says where a text came from.
    A `LongText` is alone in its batch. size: bytes that they took up in their files.
    """

    texts: list[str | LongText] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    prompts: list[str] | None = None
    size: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def long(self) -> LongText | None:
        """The one text of the batch, if it is a long one."""
        return next((text for text in self.texts[:1] if type(text) is LongText), None)

    def places(self) -> Iterator[tuple[str, str, str, int]]:
        """(id, source, file, record) of each document."""
        return zip(self.ids, self.sources, self.files, self.records, strict=True)

    def only(self, chosen: Sequence[int]) -> "Documents":
        """These of the documents; `size` stays what the batch took up."""

        def of(column: list[_Item]) -> list[_Item]:
            return [column[at] for at in chosen]

        return Documents(
            of(self.texts),
            of(self.ids),
            of(self.sources),
            of(self.files),
            of(self.records),
            None if self.prompts is None else of(self.prompts),
            self.size,
        )

    def add(self, record: Record) -> None:
        self.texts.append(record.text)
        self.ids.append(record.id)
        self.sources.append(record.source)
        self.files.append(record.file)
        self.records.append(record.record)
        self.size += record.size
        if record.prompt is not None:
            self.prompts = self.prompts or []
            self.prompts.append(record.prompt)


def records_read(documents: Documents, rejected: list[Rejected]) -> int:
    """How many records a batch stands for."""
    return len(documents) + sum(entry.count for entry in rejected)


class Judge:
    """Decides for the records of a file: a document, or rejected and why."""

    def __init__(self, file: SourceFile, fields: Fields) -> None:
        self._file, self._source = file.name, file.source
        self._content, self._prompt = fields.content, fields.prompt

    def __call__(
        self,
        at: int,
        size: int,
        text: Any,
        prompt: Any = None,
        id_: Any = None,
        source: Any = None,
        *,
        sound: bool = False,
        plain: bool = False,
    ) -> Record | Rejected:
        """The record at `at`, `size` bytes long, by its values (MISSING where it has none).

        `sound`: its strings are known to be whole Unicode, without lone surrogates; `plain`: and
        without a NUL.
        """
        problem = _problem(self._content, text, sound, plain)
        if problem is None and self._prompt is not None:
            problem = _problem(self._prompt, prompt, sound, plain)
        if problem is not None:
            return Rejected(self._file, at, problem)
        return Record(
            text,
            _label(id_) or f"{self._file}:{at}",
            _label(source) or self._source,
            self._file,
            at,
            None if self._prompt is None else str(prompt),
            size,
        )


_NAMES_OF_TYPES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _problem(name: str, value: Any, sound: bool, plain: bool = False) -> str | None:
    """Why a value is no text to train on; None where it is."""
    if type(value) is not str:
        return _long_problem(name, value) if type(value) is LongText else _no_text(name, value)
    if not value or value.isspace():
        return f"{name} is empty"
    if not plain and "\0" in value:
        return f"{name} holds a NUL character"
    return None if sound or _is_unicode(value) else f"{name} holds half a surrogate pair"


def _no_text(name: str, value: Any) -> str:
    if value is MISSING:
        return f"{name} is missing"
    if value is None:
        return f"{name} is null"
    if type(value) is bytes:
        return f"{name} is not UTF-8"
    return f"{name} is {_NAMES_OF_TYPES[type(value)]}, not text"


def _long_problem(name: str, text: LongText) -> str | None:
    """The same for a long text: all of it is decoded, so that no problem comes up later."""
    empty = True
    try:
        for piece in text:
            problem = _problem(name, piece, sound=False)
            if problem is not None and not problem.endswith(" is empty"):
                return problem
            empty &= problem is not None
    except UnicodeDecodeError:
        return f"{name} is not UTF-8"
    except ValueError:
        return "not JSON"
    return f"{name} is empty" if empty else None


def _is_unicode(text: str) -> bool:
    if text.isascii():  # known without looking
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(value: Any) -> str | None:
    """An id or source as it is published: text or an integer; None for anything else."""
    if value is None or value is MISSING:
        return None
    if type(value) is int:
        return str(value)
    return value if type(value) is str and value and _is_unicode(value) else None


def too_long(file: SourceFile, at: int) -> Rejected:
    return Rejected(file.name, at, f"longer than {MAX_RECORD_BYTES // 1024**2} MB")


def wrong_field(file: SourceFile, name: str, present: list[str]) -> LongRecipeError:
    shown = ", ".join(key[:40] for key in present[:20]) or "none"
    return LongRecipeError(
        f"{file.place} has no field {name!r} in any record; its fields are: {shown}"
    )


def decode_text(data: bytes | None, whole: bool = True) -> str | bytes | None:
    """UTF-8 as text; what is not stays bytes. Not `whole`: half a character at the end is cut."""
    if data is None:
        return None
    try:
        return data.decode() if whole else codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return data
