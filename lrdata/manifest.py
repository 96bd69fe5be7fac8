"""What was built, from what: `manifest.json`, written last."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lrdata.atomic import write_json
from lrdata.errors import LongRecipeError

FORMAT = "longrecipe"
FORMAT_VERSION = "1.0"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """A shard: `content_sha256` is over the decoded columns, see `lrdata.shards.ContentHash`."""

    path: str
    kind: str
    rows: int
    tokens: int
    bytes: int
    sha256: str
    content_sha256: str


@dataclass(frozen=True)
class SourceEntry:
    """A corpus file, by relative name."""

    name: str
    source: str
    licence: str | None
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerEntry:
    """The two fingerprints of `lrdata.tokenizer.Tokenizer`, and its special tokens."""

    name: str
    fingerprint: str
    probe_fingerprint: str
    vocab_size: int
    eot_id: int
    bos_id: int | None


@dataclass
class Ledger:
    """Where every record and token went. All counts are exact.

    records_read   = records_built + records_quarantined
    encoded + inserted = kept + dropped + tail + held_out
    Filtered records (`--min-doc-tokens`, `--weight`) were set aside by the recipe before the
    ledger; a record used twice (`--weight`) is read once and its tokens count twice.
    """

    records_filtered: int = 0
    records_read: int = 0
    records_built: int = 0
    records_quarantined: int = 0
    tokens_filtered: int = 0
    encoded: int = 0
    inserted: int = 0
    kept: int = 0
    dropped: int = 0
    tail: int = 0
    held_out: int = 0
    rows: int = 0
    holdout_rows: int = 0

    def add(self, other: "Ledger") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def problems(self) -> list[str]:
        """The equations that do not hold, in words; empty when the ledger is right."""
        found = []
        if self.records_read != self.records_built + self.records_quarantined:
            found.append(
                f"records read {self.records_read} != built {self.records_built} "
                f"+ quarantined {self.records_quarantined}"
            )
        used = self.kept + self.dropped + self.tail + self.held_out
        if self.encoded + self.inserted != used:
            found.append(
                f"tokens encoded {self.encoded} + inserted {self.inserted} != kept {self.kept} "
                f"+ dropped {self.dropped} + tail {self.tail} + held out {self.held_out}"
            )
        return found


@dataclass
class Manifest:
    """The whole of `manifest.json`."""

    target_len: int
    train_len: int
    seed: int
    recipe: dict[str, Any]
    tokenizer: TokenizerEntry
    sources: list[SourceEntry]
    files: list[FileEntry]
    ledger: Ledger
    replay_ledger: Ledger | None = None
    versions: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    format_version: str = FORMAT_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`. Raises LongRecipeError for anything that is not ours."""
    path = folder / MANIFEST
    if not path.exists():
        raise LongRecipeError(
            f"{folder} is not a built dataset (no {MANIFEST}); run `lrdata build`"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = str(raw["format_version"])
        if raw["format"] != FORMAT:
            raise LongRecipeError(f"{path} has the format {raw['format']!r}, not {FORMAT!r}")
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise LongRecipeError(
                f"{path} has format version {version}; this longrecipe reads "
                f"{FORMAT_VERSION.split('.')[0]}.x: install the version that wrote it"
            )
        replay = raw.get("replay_ledger")
        manifest = Manifest(
            target_len=raw["target_len"],
            train_len=raw["train_len"],
            seed=raw["seed"],
            recipe=raw["recipe"],
            tokenizer=TokenizerEntry(**raw["tokenizer"]),
            sources=[SourceEntry(**entry) for entry in raw["sources"]],
            files=[FileEntry(**entry) for entry in raw["files"]],
            ledger=Ledger(**raw["ledger"]),
            replay_ledger=Ledger(**replay) if replay else None,
            versions=raw["versions"],
            format_version=version,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise LongRecipeError(f"{path} is damaged ({problem}); pull the dataset again") from None
    for entry in manifest.files:
        safe_path(folder, entry.path)
    return manifest


def safe_path(folder: Path, name: str) -> Path:
    """`folder / name`, refused when the name could leave the folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise LongRecipeError(f"{folder / MANIFEST} names {name!r}, outside its folder; not opened")
    return folder / pure
