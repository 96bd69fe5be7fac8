"""Is a dataset folder what it says it is: `lrdata verify`.

    problems = verify(Path("shards"))  # one line each, naming the file and the row; empty is good

The manifest and its ledgers, then every file: size, sha256, schema, and each row by the rules of
`lrdata.rules`, one row group at a time. What is kept in memory of a row are eight bytes, a hash of
its sample_id. A file whose bytes are not those of the manifest is not decoded; the check goes on
with the next one.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from lrdata.content import ContentHash
from lrdata.errors import LongRecipeError, one_line
from lrdata.layout import SPLITS, is_shard
from lrdata.manifest import FileEntry, Ledger, Manifest, read_manifest, safe_path
from lrdata.progress import Task, progress
from lrdata.rules import VALUE_CHECKS, RowGroup, length_findings, window_len
from lrdata.shard_file import ShardFile
from lrdata.shards import KINDS, LSD_FIELD, SCHEMA

_READ_BYTES = 8 * 1024**2


def verify(folder: Path | str, deep: bool = False, rows: bool = True) -> list[str]:
    """Everything that is wrong with a built dataset, a line each; an empty list is a good dataset.

    `deep` also recomputes each file's content hash from the decoded columns. Without `rows` files
    are not decoded: only names, sizes and checksums are checked, and the manifest. Nothing is
    raised for a bad dataset, whatever is wrong with it.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except LongRecipeError as problem:
        return [str(problem)]
    problems = [*manifest_problems(manifest), *_folder_problems(folder, manifest)]
    ids = {kind: _SampleIds(folder) for kind in KINDS}
    with progress("verifying", sum(entry.bytes for entry in manifest.files)) as task:
        for entry in manifest.files:
            before = task.done
            problems += _FileCheck(folder, entry, manifest, ids, deep, rows, task).run()
            task.advance(max(0, entry.bytes - (task.done - before)), note=entry.path)
    return problems + [line for each in ids.values() for line in each.repeated()]


# The manifest and the folder


def manifest_problems(manifest: Manifest) -> list[str]:
    """What the manifest alone shows to be wrong, a line each."""
    return [*_figure_problems(manifest), *_name_problems(manifest)]


def _figure_problems(manifest: Manifest) -> Iterator[str]:
    where = "manifest.json:"
    for name in ("target_len", "train_len", "seed"):
        value = getattr(manifest, name)
        if manifest.recipe.get(name, value) != value:
            yield f"{where} {name} is {value}, the recipe says {manifest.recipe[name]}"
    window, longest = window_len(manifest), min(window_len(manifest), manifest.target_len)
    if manifest.recipe.get("retargeted_from", window) != window:
        yield f"{where} retargeted_from {manifest.recipe['retargeted_from']!r} is not a length"
    if not 0 < manifest.train_len <= longest:
        yield f"{where} train_len {manifest.train_len} is not in [1, {longest}]"
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
            left = ", with those left out" if manifest.left_out else ""
            yield f"{where} {count} is {said}, the files hold {held}{left}"


def _totals(manifest: Manifest, kind: str) -> tuple[int, int]:
    """Rows and tokens of a kind in the whole dataset, as the file lists have them."""
    entries = [entry for entry in (*manifest.files, *manifest.left_out) if entry.kind == kind]
    return sum(entry.rows for entry in entries), sum(entry.tokens for entry in entries)


def _name_problems(manifest: Manifest) -> Iterator[str]:
    """Each file once, where `load_dataset` finds it, in its order."""
    entries = (*manifest.files, *manifest.left_out)
    named = Counter(entry.path for entry in entries)
    for path in sorted(path for path, times in named.items() if times > 1):
        yield f"{path}: the manifest names it twice"
    for entry in entries:
        path, kind = entry.path, entry.kind
        if kind not in KINDS:
            yield f"{path}: unknown kind {kind!r}"
        elif not is_shard(path, kind):
            yield f"{path}: not a name of {kind} rows; {kind}/{SPLITS[kind]}-*.parquet is"
    for kind in KINDS:
        paths = [entry.path for entry in manifest.of_kind(kind)]
        if paths != sorted(paths):
            yield f"{kind}: the manifest does not name the files in the order of their names"


def _folder_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """No file that the manifest does not name."""
    named = {entry.path for entry in manifest.files}
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
    ids: dict[str, "_SampleIds"]
    deep: bool
    rows: bool
    task: Task
    found: dict[str, tuple[int, int]] = field(default_factory=dict)  # what -> first row, rows

    def run(self) -> list[str]:
        entry = self.entry
        if entry.kind not in KINDS:  # said of the manifest
            return []
        try:
            problems = list(self._bytes_problems())
            if self.rows and not problems:
                problems = list(self._content_problems())
        except (OSError, pa.ArrowException) as problem:
            problems = [f"{entry.path}: cannot be read ({one_line(problem)})"]
        return problems + [_line(entry, what, *found) for what, found in self.found.items()]

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
        with ShardFile(path) as file:
            schema = file.schema.remove_metadata()
            wrong = list(_schema_problems(schema))
            if wrong:
                yield from (f"{self.entry.path}: {problem}" for problem in wrong)
                return
            content = ContentHash(schema)
            tokens = rows = 0
            for number in range(file.groups):
                table = file.read(number)
                if self.deep:
                    content.update(table)
                group = RowGroup.of(table, rows, self.entry.kind, self.manifest)
                rows, tokens = rows + group.count, tokens + len(group["input_ids"].values)
                self._check(group)
                self.ids[self.entry.kind].add(table)
                self.task.advance(self.entry.bytes // 2 // file.groups)
        self.ids[self.entry.kind].files.append(self.entry)
        for what, held, said in (
            ("rows", rows, self.entry.rows),
            ("tokens", tokens, self.entry.tokens),
        ):
            if held != said:
                yield f"{self.entry.path}: holds {held} {what}, the manifest says {said}"
        if self.deep and content.hexdigest() != self.entry.content_sha256:
            yield f"{self.entry.path}: its content_sha256 is not the manifest's"

    def _check(self, group: RowGroup) -> None:
        """Check a row group; rows whose lengths are wrong are left out of the later checks."""
        good = np.ones(group.count, bool)
        for what, bad in length_findings(group):
            self._note(group, what, bad)
            good &= ~bad
        if not good.any():
            return
        group = group if good.all() else group.only(good)
        for check in VALUE_CHECKS:
            for what, bad in check(group):
                self._note(group, what, bad)

    def _note(self, group: RowGroup, what: str, bad: np.ndarray) -> None:
        rows = group.rows[np.flatnonzero(bad)]
        if len(rows):
            first, count = self.found.get(what, (int(rows[0]), 0))
            self.found[what] = (first, count + len(rows))


def _line(entry: FileEntry, what: str, first: int, count: int) -> str:
    """What `count` rows have, of which `first` is the first."""
    return f"{entry.path} row {first}: {what}" + (f" (and {count - 1} more)" if count > 1 else "")


class _SampleIds:
    """Whether the rows of a kind have sample_ids of their own. `files`: those that were read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, list[FileEntry]()
        self._hashes = array("q")

    def add(self, table: pa.Table) -> None:
        self._hashes.extend(map(hash, table.column("sample_id").to_pylist()))

    def repeated(self) -> Iterator[str]:
        """Only where a hash is there twice are the files read again, for the ids themselves."""
        hashes = np.array(self._hashes, np.int64)
        hashes.sort()
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen = set[str]()
        for entry in self.files if twice else ():
            bad, row = list[int](), 0
            with ShardFile(safe_path(self.folder, entry.path)) as file:
                for group in range(file.groups):
                    for name in file.read(group, ["sample_id"]).column(0).to_pylist():
                        if hash(name) in twice:
                            bad += [row] if name in seen else []
                            seen.add(name)
                        row += 1
            if bad:
                yield _line(entry, "its sample_id was there before", bad[0], len(bad))


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
