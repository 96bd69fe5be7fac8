"""Real text to hide needles in and to measure perplexity on: files, shards, or Python's own."""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lrdata.corpus import find_files, plan_units
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import Manifest
from lrdata.reader import read_unit
from lrdata.records import Fields
from lrdata.tokenizer import Tokenizer

_BYTES_PER_TOKEN = 16
_LEAST_BYTES = 8 * 1024**2
_TOPIC_BYTES_PER_TOKEN = 5  # more than tokens of English have
_MOST_HOLDOUT_ROWS = 256


@dataclass(frozen=True)
class Text:
    """Documents, in order. `origin` says where they are from, `sha256` what they are."""

    documents: list[str]
    origin: str
    sha256: str

    def streams(self, tokenizer: Tokenizer) -> list[np.ndarray]:
        """What a model reads of it, int32 each: see `encode_text`."""
        return [encode_text(self, tokenizer)]

    def describe(self) -> dict[str, str]:
        """What is to be said of it in a report."""
        return {"origin": self.origin, "sha256": self.sha256}

    def settings(self) -> dict[str, object]:
        """The same, where it is what a suite is measured on."""
        return {"text": self.describe(), "shards": None}


@dataclass(frozen=True)
class Holdout:
    """The holdout rows of a dataset, as a text that a suite is measured on."""

    folder: Path

    @property
    def origin(self) -> str:
        return str(self.folder)

    def streams(self, tokenizer: Tokenizer) -> list[np.ndarray]:
        """What a model reads of it, int32 each: see `holdout_rows`."""
        return holdout_rows(self.folder, tokenizer)

    def settings(self) -> dict[str, object]:
        """What is to be said of it in a report. Raises LongRecipeError where it is no dataset."""
        content = [file.content_sha256 for file in open_dataset(self.folder).files("holdout")]
        digest = hashlib.sha256("\n".join(content).encode()).hexdigest()
        return {"text": None, "shards": self.folder.name, "holdout": digest}


def end_of_text(shards: Path | None) -> str | None:
    """The end-of-text token that a dataset's rows have by its recipe; None: the tokenizer's own."""
    return open_dataset(shards).manifest.recipe.get("eot") if shards else None


class Texts:
    """The texts of one evaluation, each read once. `longest`: tokens of the longest context."""

    def __init__(self, longest: int) -> None:
        self._read = cache(lambda path: read_text(path, longest))

    def read(self, path: Path | None) -> Text:
        """See `read_text`."""
        return self._read(path)

    def held_out(self, path: Path | None, shards: Path | None) -> Text | Holdout:
        """The holdout rows of `shards` if there is such a dataset, else the text at `path`."""
        return Holdout(shards) if shards else self.read(path)


def read_text(path: Path | None, longest: int) -> Text:
    """The documents of a file or folder, or of the running Python's documentation.

    Of a large corpus only the beginning is read: some 16 bytes for every token of the `longest`
    context, at least 8 MB. Files may have any format that `lrdata build` reads. Python's topics
    are half a megabyte; for contexts that are longer its docstrings come after them.
    """
    if path is None:
        origin, documents = "pydoc_data.topics of the Python standard library", _python_topics()
        if sum(map(len, documents)) < _TOPIC_BYTES_PER_TOKEN * longest:
            origin, documents = f"{origin}, and its docstrings", [*documents, *_docstrings()]
    else:
        origin, documents = path.name, _read(path, max(_LEAST_BYTES, _BYTES_PER_TOKEN * longest))
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    return Text(documents, origin, digest)


def _python_topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _docstrings() -> Iterator[str]:
    """A document for each module of the standard library: what it says of itself, in order."""
    library = Path(sysconfig.get_path("stdlib"))
    others = {"test", "tests", "idlelib", "site-packages", "dist-packages"}
    for path in sorted(library.rglob("*.py")):
        if others & set(path.relative_to(library).parts):
            continue
        with suppress(SyntaxError, ValueError):
            nodes = ast.walk(ast.parse(path.read_bytes()))
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            said = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
            if text := "\n\n".join(filter(None, said)):
                yield text


def _read(path: Path, most_bytes: int) -> list[str]:
    documents, size = list[str](), 0
    for text in _texts(path):
        documents.append(text)
        size += len(text)
        if size >= most_bytes:
            break
    if not documents:
        raise LongRecipeError(f"{path} holds no text; name a file or folder with text in UTF-8")
    return documents


def _texts(path: Path) -> Iterator[str]:
    for unit in plan_units(find_files([str(path)])):
        for documents, _ in read_unit(unit, Fields()):
            yield from map(str, documents.texts)


def encode_text(text: Text, tokenizer: Tokenizer) -> np.ndarray:
    """Ids int32 [n] of all documents, each followed by the end-of-text token if there are several.

    As in a training window, joined documents see each other.
    """
    ids, offsets = tokenizer.encode(text.documents)
    if len(text.documents) == 1:
        return np.asarray(ids)
    return np.insert(ids, offsets[1:], tokenizer.eot_id)


def encode_line(text: Text, tokenizer: Tokenizer) -> np.ndarray:
    """Ids int32 [n] of all documents as one line of text, without any other token between them.

    For what is to be inside one message of a chat, where many models end a turn with what is their
    end of text.
    """
    lines = [" ".join(document.split()) for document in text.documents]
    return np.asarray(tokenizer.encode([f" {line}" for line in lines if line])[0])


def holdout_rows(folder: Path, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The holdout windows of a dataset, int32 each, without start-of-text token; at most 256.

    Raises LongRecipeError when there are none, or when they were made with another tokenizer.
    """
    shards = open_dataset(folder)
    if shards.fingerprint != tokenizer.fingerprint:
        raise LongRecipeError(
            f"{folder} was built with another tokenizer than {tokenizer.name}; name a text instead"
        )
    count = shards.rows("holdout")
    if not count:
        raise LongRecipeError(f"{folder} has no holdout rows{_why_none(shards.manifest)}")
    picked = np.unique(np.linspace(0, count - 1, min(count, _MOST_HOLDOUT_ROWS)).astype(int))
    rows = []
    for index in picked.tolist():
        ids = shards.read_row("holdout", index).input_ids
        first = 1 if shards.bos_id is not None and len(ids) and ids[0] == shards.bos_id else 0
        rows.append(np.array(ids[first:]))
    return rows


def _why_none(manifest: Manifest) -> str:
    """Why there are none, and what to do."""
    if manifest.ledger.holdout_rows:
        return " any more: `lrdata pull` left them out; pull them too, or name a text"
    unfilled = manifest.holdout_unfilled
    return f": {unfilled}, or name a text" if unfilled else "; build with --holdout, or name a text"
