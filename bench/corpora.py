"""Corpora for the benchmark from what is on this machine, kept in `.cache/bench`.

    python bench/corpora.py --mb 200

code: the Python sources of the standard library and the installed packages, each different file a
document. english: their docstrings, a module a document, and their documentation (.rst, .md, .txt);
where Debian's apt-get is there, also that of the Linux kernel and of PostgreSQL.
multilingual: documents in some ninety languages, each of phrases of about eight words drawn at
random, seeded, from one language's messages of a web framework (1 MB in all): real text of every
script, but its words return more often than in a real corpus of this size.

What is installed differs from machine to machine, so compare figures of one run only.
"""

import argparse
import gzip
import hashlib
import html
import inspect
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.progress import progress

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("LONGRECIPE_CACHE") or ROOT / ".cache") / "bench"
MULTILINGUAL_MB = 200
DEBIAN_DOCUMENTATION = ("linux-doc-6.1", "postgresql-doc-15")
_SHORTEST = 500
"""Characters of the shortest document: a list of names is neither code nor English."""

# A docstring is a triple-quoted string that comes first in a module or after a colon. This is some
# ten times faster than `ast` and agrees with it on 99 % of the text.
_DOCSTRING = re.compile(
    r'(?:\A|:)(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*[rRuU]?("""|\'\'\')(.*?)\1', re.DOTALL
)


@dataclass(frozen=True)
class Corpus:
    """A JSONL file with a `text` in each line."""

    name: str
    path: Path
    documents: int
    bytes: int

    @classmethod
    def open(cls, name: str, path: Path) -> "Corpus":
        """Count its lines, which also brings the file into the page cache."""
        with open(path, "rb") as lines:
            return cls(name, path, sum(1 for _ in lines), path.stat().st_size)


def fetch(name: str) -> Path:
    """The folder of a tokenizer or text that the tests use, see tests/fetch.py."""
    command = [sys.executable, str(ROOT / "tests" / "fetch.py"), name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def default_corpora(megabytes: int) -> list[Corpus]:
    """english, code and multilingual, each of at most so many MB; made at the first call."""
    made = []
    for name, documents in _KNOWN.items():
        path = CACHE / f"{name}-{megabytes}mb.jsonl"
        if not path.exists():
            _write(path, documents(), megabytes, f"making {path.name}")
        made.append(Corpus.open(name, path))
    return made


def _write(path: Path, texts: Iterator[str], megabytes: int, what: str) -> None:
    """Different texts of some length as JSONL, until the file has the size or they end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    seen: set[bytes] = set()
    written = 0
    with open(unfinished, "wb") as out, progress(what, megabytes) as task:
        for text in texts:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if len(text) < _SHORTEST or "\0" in text or digest in seen:
                continue
            seen.add(digest)
            line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
            if written + len(line) > megabytes * 10**6:
                break
            out.write(line)
            task.advance((written + len(line)) // 10**6 - written // 10**6, note="MB")
            written += len(line)
    unfinished.rename(path)


def _installed(*patterns: str) -> Iterator[tuple[Path, str]]:
    """Installed files and their text, in a seeded order; what is not UTF-8 is left out."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    files = sorted({file for root in roots for end in patterns for file in Path(root).rglob(end)})
    random.Random(0).shuffle(files)  # any first part of the corpus is like the whole
    for file in files:
        try:
            yield file, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _code() -> Iterator[str]:
    return (text for _, text in _installed("*.py"))


def _english() -> Iterator[str]:
    texts = [*_docstrings_and_documents(), *_debian_documents()]
    random.Random(0).shuffle(texts)
    return iter(texts)


def _docstrings_and_documents() -> Iterator[str]:
    for file, text in _installed("*.py", "*.rst", "*.md", "*.txt"):
        if file.suffix == ".py":
            docstrings = (docstring for _, docstring in _DOCSTRING.findall(text))
            text = "\n\n".join(map(inspect.cleandoc, docstrings))
        yield text


def _debian_documents() -> Iterator[str]:
    """The texts of documentation packages, which are unpacked, not installed."""
    with tempfile.TemporaryDirectory() as scratch:
        for package in DEBIAN_DOCUMENTATION:
            command = f"apt-get download {package} && dpkg-deb -x {package}_*.deb {package}"
            done = subprocess.run(command, shell=True, cwd=scratch, capture_output=True, text=True)
            if done.returncode:
                print(
                    f"without {package}, which apt-get does not give: {done.stderr.strip()[:100]}"
                )
                continue
            for file in sorted(Path(scratch, package).rglob("*")):
                if file.name.endswith((".rst.gz", ".txt.gz")):
                    yield gzip.decompress(file.read_bytes()).decode(errors="replace")
                elif file.suffix == ".html" and "linux-doc" not in package:  # which has both
                    yield _text_of(file.read_text(encoding="utf-8", errors="replace"))


def _text_of(page: str) -> str:
    """What a reader sees of an HTML page."""
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", "", page)
    return html.unescape(re.sub(r"<[^>]+>", "", page)).strip()


def _multilingual() -> Iterator[str]:
    with open(fetch("locales") / "texts.jsonl", encoding="utf-8") as lines:
        languages = [_phrases(json.loads(line)["text"]) for line in lines]
    draw = random.Random(0)
    size = 0
    while size < MULTILINGUAL_MB * 10**6:
        phrases = draw.choice(languages)
        text = " ".join(draw.choices(phrases, k=draw.randrange(20, 400)))
        size += len(text.encode())
        yield text


def _phrases(text: str) -> list[str]:
    words = text.split(" ")
    return [" ".join(words[at : at + 8]) for at in range(0, len(words), 8)]


_KNOWN: dict[str, Callable[[], Iterator[str]]] = {
    "english": _english,
    "code": _code,
    "multilingual": _multilingual,
}


# Parts and multiples of a corpus


def first(corpus: Corpus, megabytes: float, folder: Path) -> Corpus:
    """The corpus if it is no larger than that, else its first documents in a new file."""
    if corpus.bytes <= megabytes * 10**6:
        return corpus
    path = folder / f"{corpus.name}-first-{megabytes:g}mb.jsonl"
    size = 0
    with open(corpus.path, "rb") as lines, open(path, "wb") as out:
        for line in lines:
            if size + len(line) > megabytes * 10**6 and size:
                break
            size += out.write(line)
    return Corpus.open(corpus.name, path)


def deal(corpus: Corpus, parts: int, folder: Path) -> Path:
    """The documents dealt out to so many files of `folder`, for tools that split work by file."""
    folder.mkdir()
    paths = [folder / f"{part:02d}.jsonl" for part in range(parts)]
    with ExitStack() as stack, open(corpus.path, "rb") as lines:
        outs = [stack.enter_context(open(path, "wb")) for path in paths]
        for index, line in enumerate(lines):
            outs[index % parts].write(line)
    return folder


def repeat(corpus: Corpus, times: int, folder: Path) -> Corpus:
    """One file with the corpus so many times."""
    path = folder / f"{corpus.name}-x{times}.jsonl"
    with open(path, "wb") as out:
        for _ in range(times):
            with open(corpus.path, "rb") as whole:
                while block := whole.read(2**24):
                    out.write(block)
    return Corpus.open(corpus.name, path)


FORMS = ("jsonl", "txt", "parquet")


def one_document(corpus: Corpus, megabytes: int, folder: Path, form: str) -> Corpus:
    """The texts of a corpus, over and over, as one document of so many MB."""
    texts = bytearray()
    while len(texts) < megabytes * 10**6:
        with open(corpus.path, "rb") as lines:
            for line in lines:
                texts += json.loads(line)["text"].encode() + b"\n"
                if len(texts) >= megabytes * 10**6:
                    break
    text = texts.decode()
    path = folder / f"one.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"text": pa.array([text], pa.large_string())}), path)
    else:
        path.write_text(json.dumps({"text": text}) + "\n" if form == "jsonl" else text)
    return Corpus(f"one document, {form}", path, 1, path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=int, default=200, help="cap of each corpus (default: 200)")
    for corpus in default_corpora(parser.parse_args().mb):
        print(f"{corpus.path}: {corpus.bytes / 1e6:.1f} MB, {corpus.documents:,} documents")


if __name__ == "__main__":
    main()
