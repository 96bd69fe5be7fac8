"""What models say of each token: the folder that `lrtrain score` writes.

    manifest.json        the method, the models, the window, what was scored, checksums
    scores.parquet       a row a token, a row group a window
    vocabulary.parquet   the bytes of every token id, so that scores can be read without a tokenizer

| column | type | meaning |
|---|---|---|
| `document` | string | id of the document, as in a dataset's `doc_ids` |
| `offset` | int64 | of the token in its document, as in `doc_offsets` |
| `position` | int32 | tokens of the document before it in the window |
| `token` | int32 | its id |
| `log_prob` | float32 | nats: log P(token | all of the window before it), of the long model |
| `lsd` | float32 | log P(token | long) - log P(token | the last K tokens); method `lsd` |
| `gain` | float32 | log P of the long model - log P of the base; method `contrast` |
| `logit_gain` | float32 | the same of the token's own logit: the paper's Eq. 2-3 |

Null where nothing was measured: a window's first token without a start-of-text token before it; for
`lsd` also the tokens whose last K tokens are all that is before them (K, and up to `stride` more).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.atomic import replacing, write_json
from lrdata.errors import LongRecipeError
from lrdata.manifest import MANIFEST, SourceEntry, TokenizerEntry, entry_of, read_object
from lrdata.shards import file_sha256
from lrdata.vocabulary import StoredVocabulary, TokenBytes, offsets_of, spell

FORMAT = "longrecipe-scores"
FORMAT_VERSION = "1.0"
SCORES, VOCABULARY = "scores.parquet", "vocabulary.parquet"

MEASURES = {"lsd": ("lsd",), "contrast": ("gain", "logit_gain")}
"""The columns of each method; the first says how much long context, or training, helps a token."""

KEY_GAIN, KEY_LOG_PROB = 2.0, -2.0
"""A key token: its gain is above the first and its log-probability above the second (LongPPL)."""

_PLACE = (
    pa.field("document", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("position", pa.int32(), nullable=False),
    pa.field("token", pa.int32(), nullable=False),
    pa.field("log_prob", pa.float32()),
)


@dataclass(frozen=True)
class ScoresManifest:
    """The whole of a score folder's `manifest.json`. Windows and contexts are in tokens."""

    method: str
    models: dict[str, str]
    """Role (long, base) -> name of the model."""
    fingerprints: dict[str, str]
    """Role -> sha256 of the model's files, or its revision on the hub."""
    tokenizer: TokenizerEntry
    sources: list[SourceEntry]
    recipe: dict[str, Any]
    window: int
    windows: int
    documents: int
    tokens: int
    measured: int
    """Tokens with a gain."""
    files: dict[str, str]
    """Name -> sha256."""
    versions: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    format_version: str = FORMAT_VERSION


class ScoredWindow(NamedTuple):
    """n tokens of a document from token `start` on. `measures`: see `MEASURES`, float32 [n] each,
    NaN where nothing was measured."""

    document: str
    start: int
    ids: np.ndarray  # int32 [n]
    log_prob: np.ndarray  # float32 [n]
    measures: tuple[np.ndarray, ...]

    @property
    def gain(self) -> np.ndarray:
        return self.measures[0]

    @property
    def keys(self) -> np.ndarray:
        """The key tokens: bool [n]."""
        return (self.gain > KEY_GAIN) & (self.log_prob > KEY_LOG_PROB)


# Writing


def write_windows(path: Path, method: str, windows: Iterable[ScoredWindow]) -> int:
    """Write scores.parquet, a row group a window, atomically; how many tokens have a gain."""
    measured = 0
    schema = pa.schema([*_PLACE, *(pa.field(name, pa.float32()) for name in MEASURES[method])])
    with replacing(path) as partial, _parquet(partial, schema) as writer:
        for window in windows:
            writer.write_table(_table(window, schema), row_group_size=len(window.ids))
            measured += int(np.isfinite(window.gain).sum())
    return measured


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    floats = [entry.name for entry in schema if entry.type == pa.float32()]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["document"],
        column_encoding={
            "offset": "DELTA_BINARY_PACKED",
            "position": "DELTA_BINARY_PACKED",
            **dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        },
        write_page_checksum=True,
    ) as writer:
        yield writer


def _table(window: ScoredWindow, schema: pa.Schema) -> pa.Table:
    count = len(window.ids)
    place = np.arange(count)
    values = [
        pa.array([window.document], pa.string()).take(pa.array(np.zeros(count, np.int32))),
        pa.array(window.start + place, pa.int64()),
        pa.array(place, pa.int32()),
        pa.array(window.ids, pa.int32()),
        *(pa.array(x, pa.float32(), from_pandas=True) for x in (window.log_prob, *window.measures)),
    ]
    return pa.Table.from_arrays(values, schema=schema)


def write_vocabulary(path: Path, token_bytes: TokenBytes, special: np.ndarray) -> None:
    """Write vocabulary.parquet, a row an id: `bytes` and whether it is `special`."""
    values, offsets = token_bytes
    column = pa.Array.from_buffers(
        pa.binary(),
        len(special),
        [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(values))],
    )
    with replacing(path) as partial:
        pq.write_table(pa.table({"bytes": column, "special": special}), partial, compression="zstd")


def write_scores_manifest(folder: Path, manifest: ScoresManifest) -> None:
    write_json(folder / MANIFEST, asdict(manifest))


# Reading


class Scores:
    """A score folder, opened for reading. Use through `open_scores`."""

    def __init__(self, folder: Path, manifest: ScoresManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._file = pq.ParquetFile(
            folder / SCORES, page_checksum_verification=True, read_dictionary=["document"]
        )

    def __len__(self) -> int:
        """How many windows there are."""
        return int(self._file.metadata.num_row_groups)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the method's columns, the gain first."""
        return MEASURES[self.manifest.method]

    @cached_property
    def index(self) -> list[tuple[str, int, int]]:
        """(document, first offset, tokens) of each window."""
        found = []
        for group in range(len(self)):
            table = self._file.read_row_group(group, columns=["document", "offset"])
            found.append((table["document"][0].as_py(), table["offset"][0].as_py(), len(table)))
        return found

    def read(self, index: int) -> ScoredWindow:
        """Window `index`, counted from 0."""
        wanted = ["offset", "token", "log_prob", *self.measures]
        table = self._file.read_row_group(index, columns=wanted)
        offset, ids, *floats = (table[name].to_numpy() for name in wanted)
        document = self.index[index][0]
        return ScoredWindow(document, int(offset[0]), ids, floats[0], tuple(floats[1:]))

    def __iter__(self) -> Iterator[ScoredWindow]:
        return map(self.read, range(len(self)))

    @cached_property
    def vocabulary(self) -> StoredVocabulary:
        """The vocabulary of the scored tokens."""
        table = pq.read_table(self.folder / VOCABULARY).combine_chunks()
        column = table["bytes"].chunk(0)
        lengths = np.diff(np.frombuffer(column.buffers()[1], np.int32)[: len(column) + 1])
        values = np.frombuffer(column.buffers()[2] or b"", np.uint8)[: int(lengths.sum())]
        special = table["special"].to_numpy()
        token_bytes = (values, offsets_of(lengths.tolist(), len(lengths)))
        return StoredVocabulary(token_bytes, special, self.manifest.tokenizer.eot_id)

    def text(self, ids: np.ndarray) -> bytes:
        """The bytes that ids stand for, special tokens left out."""
        return spell(ids[~self.vocabulary.special[ids]], self.vocabulary.token_bytes)


def open_scores(folder: str | Path) -> Scores:
    """Open a score folder and check its files' sha256.

    Raises LongRecipeError when it is not one that this version reads, or is damaged.
    """
    root = Path(folder)
    if not (root / MANIFEST).exists():
        raise LongRecipeError(f"{root} holds no scores (no {MANIFEST}); run `lrtrain score`")
    manifest = read_object(
        root / MANIFEST, FORMAT, FORMAT_VERSION, _parse, "score the corpus again"
    )
    for name in (SCORES, VOCABULARY):
        path = root / name
        if not path.exists() or file_sha256(path) != manifest.files.get(name):
            raise LongRecipeError(
                f"{path} is damaged: its sha256 is not the manifest's; score the corpus again"
            )
    return Scores(root, manifest)


def _parse(raw: dict[str, Any]) -> ScoresManifest:
    manifest = entry_of(
        ScoresManifest,
        {
            **raw,
            "tokenizer": entry_of(TokenizerEntry, raw["tokenizer"]),
            "sources": [entry_of(SourceEntry, entry) for entry in raw["sources"]],
        },
    )
    if manifest.method not in MEASURES:
        raise TypeError(f"method is {manifest.method!r}")
    return manifest
