"""Is a dataset folder what it says it is: `lrdata verify`.

    problems = verify(Path("shards"))  # one line each, naming the file and the row; empty is good

The manifest and its ledgers, then every file: size, sha256, schema, and each row by the rules of
`lrdata.shards`. Columns are checked as flat arrays, one row group at a time, so memory does not
grow with the dataset. A file whose bytes are not those of the manifest is not decoded; the check
goes on with the next one.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.errors import LongRecipeError
from lrdata.manifest import FileEntry, Ledger, Manifest, read_manifest, safe_path
from lrdata.progress import Task, progress
from lrdata.shards import KINDS, LSD_FIELD, SCHEMA, ContentHash

_TOKEN_COLUMNS = ("position_ids", "impact_mask", "loss_mask", "lsd")
_SPLITS = {"extend": "train", "replay": "train", "holdout": "test"}
_READ_BYTES = 8 * 1024**2

Finding = tuple[str, np.ndarray]
"""What is wrong, in words, and in which rows of a group: bool [rows]."""


def verify(folder: Path, deep: bool = False) -> list[str]:
    """Everything that is wrong with a built dataset, a line each; an empty list is a good dataset.

    `deep` also recomputes each file's content hash from the decoded columns. Nothing is raised for
    a bad dataset, whatever is wrong with it.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except LongRecipeError as problem:
        return [str(problem)]
    problems = [*_manifest_problems(manifest), *_folder_problems(folder, manifest)]
    seen: dict[str, set[str]] = {kind: set() for kind in KINDS}
    with progress("verifying", sum(entry.bytes for entry in manifest.files)) as task:
        for entry in manifest.files:
            before = task.done
            problems += _FileCheck(folder, entry, manifest, seen, deep, task).run()
            task.advance(max(0, entry.bytes - (task.done - before)), note=entry.path)
    return problems


# The manifest and the folder


def _manifest_problems(manifest: Manifest) -> Iterator[str]:
    """What the manifest alone shows to be wrong."""
    where = "manifest.json:"
    for name in ("target_len", "train_len", "seed"):
        value = getattr(manifest, name)
        if manifest.recipe.get(name, value) != value:
            yield f"{where} {name} is {value}, the recipe says {manifest.recipe[name]}"
    if not 0 < manifest.train_len <= manifest.target_len:
        yield f"{where} train_len {manifest.train_len} is not in [1, {manifest.target_len}]"
    tokenizer = manifest.tokenizer
    for name, token in (("eot_id", tokenizer.eot_id), ("bos_id", tokenizer.bos_id)):
        if token is not None and not 0 <= token < tokenizer.vocab_size:
            yield f"{where} {name} {token} is outside the vocabulary of {tokenizer.vocab_size} ids"
    yield from _ledger_problems(manifest, "ledger", manifest.ledger)
    replay = manifest.replay_ledger or Ledger()
    yield from _ledger_problems(manifest, "replay_ledger", replay)


def _ledger_problems(manifest: Manifest, name: str, ledger: Ledger) -> Iterator[str]:
    where = f"manifest.json {name}:"
    for problem in ledger.problems():
        yield f"{where} {problem}"
    for count, value in asdict(ledger).items():
        if value < 0:
            yield f"{where} {count} is {value}, below 0"
    rows, tokens = _totals(manifest, "extend" if name == "ledger" else "replay")
    counts = [("rows", ledger.rows, rows), ("kept", ledger.kept, tokens)]
    if name == "ledger":
        rows, tokens = _totals(manifest, "holdout")
        counts += [
            ("holdout_rows", ledger.holdout_rows, rows),
            ("held_out", ledger.held_out, tokens),
        ]
    for count, said, held in counts:
        if said != held:
            yield f"{where} {count} is {said}, the files hold {held}"


def _totals(manifest: Manifest, kind: str) -> tuple[int, int]:
    """Rows and tokens of a kind, as the file list has them."""
    entries = [entry for entry in manifest.files if entry.kind == kind]
    return sum(entry.rows for entry in entries), sum(entry.tokens for entry in entries)


def _folder_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Names: each file once, where `load_dataset` finds it, in its order, and no other file."""
    named = [entry.path for entry in manifest.files]
    for path in sorted({path for path in named if named.count(path) > 1}):
        yield f"{path}: the manifest names it twice"
    for kind in KINDS:
        paths = [entry.path for entry in manifest.files if entry.kind == kind]
        pattern = rf"{kind}/{_SPLITS[kind]}-\d{{5}}-of-\d{{5}}\.parquet"
        for path in paths:
            if not re.fullmatch(pattern, path):
                yield f"{path}: not a name of {kind} rows; {kind}/{_SPLITS[kind]}-*.parquet is"
        if paths != sorted(paths):
            yield f"{kind}: the manifest does not name the files in the order of their names"
    for found in sorted(folder.rglob("*.parquet")):
        name = found.relative_to(folder)
        if name.as_posix() not in named and not any(part.startswith(".") for part in name.parts):
            yield f"{name.as_posix()}: not named by the manifest"


# One file


@dataclass
class _FileCheck:
    """The check of one file, and what it found so far."""

    folder: Path
    entry: FileEntry
    manifest: Manifest
    seen: dict[str, set[str]]
    deep: bool
    task: Task
    found: dict[str, tuple[int, int]] = field(default_factory=dict)  # what -> first row, rows

    def run(self) -> list[str]:
        entry = self.entry
        if entry.kind not in KINDS:
            return [f"{entry.path}: unknown kind {entry.kind!r}"]
        try:
            problems = list(self._bytes_problems()) or list(self._content_problems())
        except (OSError, pa.ArrowException) as problem:
            reason = " ".join(str(problem).split())[:200]
            problems = [f"{entry.path}: cannot be read ({reason})"]
        return problems + [
            f"{entry.path} row {first}: {what}" + (f" (and {count - 1} more)" if count > 1 else "")
            for what, (first, count) in self.found.items()
        ]

    def _bytes_problems(self) -> Iterator[str]:
        path = safe_path(self.folder, self.entry.path)
        if not path.is_file():
            yield f"{self.entry.path}: missing"
            return
        size = path.stat().st_size
        if size != self.entry.bytes:
            yield f"{self.entry.path}: has {size} bytes, the manifest says {self.entry.bytes}"
            return
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while data := stream.read(_READ_BYTES):
                digest.update(data)
                self.task.advance(len(data) // 2, note=self.entry.path)
        if digest.hexdigest() != self.entry.sha256:
            yield f"{self.entry.path}: its sha256 is not the manifest's; the bytes were changed"

    def _content_problems(self) -> Iterator[str]:
        path = safe_path(self.folder, self.entry.path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow.remove_metadata()
            wrong = list(_schema_problems(schema))
            if wrong:
                yield from (f"{self.entry.path}: {problem}" for problem in wrong)
                return
            content = ContentHash(schema)
            tokens, rows, groups = 0, 0, file.metadata.num_row_groups
            for number in range(groups):
                table = file.read_row_group(number).combine_chunks()
                if self.deep:
                    content.update(table)
                group = _Group.of(table, rows, self.entry.kind, self.manifest)
                rows, tokens = rows + group.count, tokens + len(group["input_ids"].values)
                self._check(group)
                self.task.advance(self.entry.bytes // 2 // groups)
        for what, held, said in (
            ("rows", rows, self.entry.rows),
            ("tokens", tokens, self.entry.tokens),
        ):
            if held != said:
                yield f"{self.entry.path}: holds {held} {what}, the manifest says {said}"
        if self.deep and content.hexdigest() != self.entry.content_sha256:
            yield f"{self.entry.path}: its content_sha256 is not the manifest's"

    def _check(self, group: "_Group") -> None:
        """Check a row group; rows whose lengths are wrong are left out of the later checks."""
        good = np.ones(group.count, bool)
        for what, bad in (*_length_findings(group), *self._repeated(group)):
            self._note(group, what, bad)
            if what != _REPEATED:
                good &= ~bad
        if not good.any():
            return
        group = group if good.all() else group.only(good)
        for check in _VALUE_CHECKS:
            for what, bad in check(group):
                self._note(group, what, bad)

    def _note(self, group: "_Group", what: str, bad: np.ndarray) -> None:
        rows = group.rows[np.flatnonzero(bad)]
        if len(rows):
            first, count = self.found.get(what, (int(rows[0]), 0))
            self.found[what] = (first, count + len(rows))

    def _repeated(self, group: "_Group") -> Iterator[Finding]:
        seen, bad = self.seen[group.kind], np.zeros(group.count, bool)
        for index, name in enumerate(group.table.column("sample_id").to_pylist()):
            bad[index] = name in seen
            seen.add(name)
        yield _REPEATED, bad


_REPEATED = "its sample_id was there before"


def _schema_problems(schema: pa.Schema) -> Iterator[str]:
    """Names, order, types; no nulls, in lists neither."""
    expected = {entry.name: entry for entry in (*SCHEMA, LSD_FIELD)}
    for name in SCHEMA.names:
        if name not in schema.names:
            yield f"lacks the column {name}"
    for entry in schema:
        if entry.name not in expected:
            yield f"has an unknown column {entry.name}"
        elif not entry.equals(expected[entry.name]):
            yield f"column {entry.name} is {_typed(entry)}, not {_typed(expected[entry.name])}"
    order = [name for name in expected if name in schema.names]
    if set(schema.names) == set(order) and schema.names != order:
        yield f"its columns are not in the order {', '.join(order)}"


def _typed(entry: pa.Field) -> str:
    return f"{entry.type}{'' if entry.nullable else ' not null'}"


# One row group, as flat arrays


@dataclass(frozen=True)
class _Ragged:
    """A list column: row i is values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # int64 [rows + 1]

    @classmethod
    def of(cls, column: pa.Array) -> "_Ragged":
        offsets = column.offsets.to_numpy().astype(np.int64)
        flat = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        if pa.types.is_string(flat.type):  # only the number of strings matters
            return cls(np.zeros(len(flat), bool), offsets - offsets[0])
        return cls(flat.to_numpy(zero_copy_only=False), offsets - offsets[0])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def first(self) -> np.ndarray:
        """bool [values]: the first value of each row that has one."""
        flags = np.zeros(len(self.values), bool)
        flags[self.offsets[:-1][self.lengths > 0]] = True
        return flags

    def sums(self) -> np.ndarray:
        total = np.concatenate([[0], np.cumsum(self.values, dtype=np.int64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def any(self, flags: np.ndarray) -> np.ndarray:
        """Rows with a flagged value: bool [rows]."""
        return _Ragged(flags, self.offsets).sums() > 0

    def spread(self, per_row: np.ndarray) -> np.ndarray:
        """One value a row -> one for each value of the row."""
        return np.repeat(per_row, self.lengths)

    def counter(self) -> np.ndarray:
        """0, 1, 2, ... in each row."""
        return np.arange(len(self.values)) - self.spread(self.offsets[:-1])


@dataclass(frozen=True)
class _Group:
    """Some rows of a file. `rows` are their numbers in it."""

    table: pa.Table
    rows: np.ndarray
    kind: str
    manifest: Manifest
    lists: dict[str, _Ragged]

    @classmethod
    def of(cls, table: pa.Table, first: int, kind: str, manifest: Manifest) -> "_Group":
        rows = np.arange(first, first + table.num_rows)
        return cls._made(table, rows, kind, manifest)

    @classmethod
    def _made(cls, table: pa.Table, rows: np.ndarray, kind: str, manifest: Manifest) -> "_Group":
        lists = {
            entry.name: _Ragged.of(_array(table.column(entry.name)))
            for entry in table.schema
            if pa.types.is_list(entry.type)
        }
        return cls(table, rows, kind, manifest, lists)

    def only(self, good: np.ndarray) -> "_Group":
        table = self.table.filter(pa.array(good)).combine_chunks()
        return self._made(table, self.rows[good], self.kind, self.manifest)

    def __getitem__(self, name: str) -> _Ragged:
        return self.lists[name]

    @property
    def count(self) -> int:
        return len(self.rows)

    def scalar(self, name: str) -> np.ndarray:
        return _array(self.table.column(name)).to_numpy(zero_copy_only=False)

    @property
    def scheme(self) -> Any:
        return self.manifest.recipe.get("positions")


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


# Rules of a row. Each yields what is wrong and in which rows: bool [rows].


def _length_findings(group: _Group) -> Iterator[Finding]:
    """Lengths that the other checks rely on."""
    tokens = group["input_ids"].lengths
    yield "it has no tokens", tokens == 0
    for name in _TOKEN_COLUMNS:
        if name in group.lists:
            yield f"{name} is not as long as input_ids", group[name].lengths != tokens
    for name, other in (
        ("segment_lengths", "segment_starts"),
        ("doc_offsets", "doc_ids"),
        ("doc_lengths", "doc_ids"),
    ):
        yield f"{name} is not as long as {other}", group[name].lengths != group[other].lengths
    for name in ("seq_lengths", "segment_lengths"):
        parts = group[name]
        yield f"{name} has an entry below 1", parts.any(parts.values < 1)
        yield f"{name} does not sum to the row's length", parts.sums() != tokens


def _size_findings(group: _Group) -> Iterator[Finding]:
    manifest, tokens = group.manifest, group["input_ids"].lengths
    window = group.scalar("window_tokens")
    name = "target_len" if group.kind == "holdout" else "train_len"
    yield f"it is longer than {name} {getattr(manifest, name)}", tokens > getattr(manifest, name)
    yield f"its kind is not {group.kind}", group.scalar("kind") != group.kind
    target = group.scalar("target_len")
    yield f"its target_len is not {manifest.target_len}", target != manifest.target_len
    if group.kind == "replay":
        yield "its window_tokens is not its length", window != tokens
    else:
        yield f"its window_tokens is not {manifest.target_len}", window != manifest.target_len
    if group.kind == "holdout":
        yield "it is not a whole window", tokens != window


def _id_findings(group: _Group) -> Iterator[Finding]:
    ids, tokenizer = group["input_ids"], group.manifest.tokenizer
    outside = (ids.values < 0) | (ids.values >= tokenizer.vocab_size)
    yield f"an id is not in [0, {tokenizer.vocab_size})", ids.any(outside)
    if group.kind != "replay" and tokenizer.bos_id is not None:
        starts = group["segment_starts"].values[group["segment_starts"].offsets[:-1]]
        first = ids.values[ids.offsets[:-1]]
        wrong = (starts == 0) & (first != tokenizer.bos_id)
        yield f"it does not begin with the start-of-text token {tokenizer.bos_id}", wrong


def _position_findings(group: _Group) -> Iterator[Finding]:
    positions, limit = group["position_ids"], group.manifest.target_len
    outside = (positions.values < 0) | (positions.values >= limit)
    yield f"a position is not in [0, {limit})", positions.any(outside)
    if group.kind == "replay":
        documents = group["seq_lengths"].values
        counter = np.arange(len(positions.values))
        expected = counter - np.repeat(np.cumsum(documents, dtype=np.int64) - documents, documents)
        wrong = positions.any(positions.values != expected)
        yield "positions do not count from 0 in each document of seq_lengths", wrong
    elif group.kind == "holdout":
        wrong = positions.any(positions.values != positions.counter())
        yield "positions are not 0, 1, 2, ...", wrong
    else:
        steps = np.diff(positions.values.astype(np.int64), prepend=0)
        wrong = positions.any((steps <= 0) & ~positions.first)
        yield "positions are not strictly increasing", wrong
        yield from _scheme_findings(group, steps)


def _scheme_findings(group: _Group, steps: np.ndarray) -> Iterator[Finding]:
    """Positions of extend rows, where the scheme tells something of them."""
    positions, lengths = group["position_ids"], group["segment_lengths"].values
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    if group.scheme == "longrecipe":
        inside = ~positions.first
        inside[before] = False
        wrong = positions.any(inside & (steps != 1))
        yield "positions jump inside a segment", wrong
    elif group.scheme == "source":
        offsets = np.repeat(group["segment_starts"].values - before, lengths)
        wrong = positions.any(positions.values != offsets + np.arange(len(offsets)))
        yield "positions are not the tokens' offsets in the window", wrong
    elif group.scheme == "full":
        wrong = positions.any(positions.values != positions.counter())
        yield "positions are not 0, 1, 2, ...", wrong


def _segment_findings(group: _Group) -> Iterator[Finding]:
    starts = group["segment_starts"]
    begin = starts.values.astype(np.int64)
    end = begin + group["segment_lengths"].values
    outside = (begin < 0) | (end > starts.spread(group.scalar("window_tokens")))
    yield "a segment leaves the window", starts.any(outside)
    before = np.concatenate([[0], end[:-1]])
    wrong = starts.any((begin < before) & ~starts.first)
    yield "segments overlap or are out of order", wrong


def _document_findings(group: _Group) -> Iterator[Finding]:
    lengths, offsets = group["doc_lengths"], group["doc_offsets"]
    yield "doc_lengths has an entry below 1", lengths.any(lengths.values < 1)
    yield "doc_offsets has an entry below 0", offsets.any(offsets.values < 0)
    lead = group.kind != "replay" and group.manifest.tokenizer.bos_id is not None
    expected = group.scalar("window_tokens") - int(lead)
    less = ", the start-of-text token left out" if lead else ""
    yield f"doc_lengths does not sum to window_tokens{less}", lengths.sums() != expected


def _mask_findings(group: _Group) -> Iterator[Finding]:
    loss, impact = group["loss_mask"], group["impact_mask"]
    if group.kind == "replay":
        yield "impact_mask is not all false", impact.any(impact.values)
    else:
        yield "loss_mask is not all true", loss.any(~loss.values)


_VALUE_CHECKS: tuple[Callable[[_Group], Iterator[Finding]], ...] = (
    _size_findings,
    _id_findings,
    _position_findings,
    _segment_findings,
    _document_findings,
    _mask_findings,
)
