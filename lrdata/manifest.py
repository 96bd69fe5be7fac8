"""What was built, from what: `manifest.json`, written last."""

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lrdata.atomic import write_json
from lrdata.errors import LongRecipeError
from lrdata.recipe import BuildRecipe, portable_name
from lrdata.typed_json import FLAT, fits

if TYPE_CHECKING:
    from lrdata.tokenizer import Tokenizer

FORMAT = "longrecipe"
FORMAT_VERSION = "1.0"
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 * 1024**2
"""Bytes; it has some 300 for each source and each shard, and is held in memory, where JSON made to
do harm takes twenty times as much."""

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class FileEntry:
    """A shard: `content_sha256` is over the decoded columns, see `lrdata.content.ContentHash`."""

    path: str
    kind: str
    rows: int
    tokens: int
    bytes: int
    sha256: str
    content_sha256: str


@dataclass(frozen=True)
class SourceEntry:
    """A corpus file, by relative name. `sha256` of a remote file whose server tells none is its
    version, with a colon in it (`etag:...`)."""

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

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> Self:
        return cls(
            name=portable_name(tokenizer.name),
            fingerprint=tokenizer.fingerprint,
            probe_fingerprint=tokenizer.probe_fingerprint,
            vocab_size=tokenizer.vocab_size,
            eot_id=tokenizer.eot_id,
            bos_id=tokenizer.bos_id,
        )

    def identity(self) -> dict[str, Any]:
        """What must be equal for the tokens of a text to be, by names for a person."""
        return {
            "tokenizer fingerprint": self.fingerprint,
            "tokenizer probe": self.probe_fingerprint,
            "tokenizer's end of text": self.eot_id,
            "tokenizer's start of text": self.bos_id,
        }


@dataclass
class Ledger:
    """Where every record and token went. All counts are exact.

    records_read   = records_built + records_quarantined
    encoded + inserted = kept + dropped + tail + held_out
    Filtered records (`--min-doc-tokens`, `--weight`) were set aside by the recipe before the
    ledger; a record used twice (`--weight`) is read once and its tokens count twice. Of replay they
    are those that were not drawn or are held out, of what was read; nobody counts their tokens.
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
    scored: int = 0
    """Tokens of extend rows whose `lsd` is known."""

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
    impact_sha256: str | None = None
    """Of the lexicon or scores that `--impact` named, see `lrdata.impact.impact_sha256`."""
    chat_sha256: str | None = None
    """Of what `--chat-template` puts around prompts and responses, see `lrdata.chat.Conversation`.
    Not written where there is none; earlier versions did not write it."""
    lsd: bool = False
    """Whether extend and holdout rows have the column `lsd`."""
    versions: dict[str, str] = field(default_factory=dict)
    left_out: list[FileEntry] = field(default_factory=list)
    """Files of the whole dataset that are not here: `lrdata pull --only`. The ledgers count them
    too. Not written where there are none."""
    format: str = FORMAT
    format_version: str = FORMAT_VERSION

    def of_kind(self, kind: str) -> list[FileEntry]:
        """The files that are here with rows of a kind."""
        return [entry for entry in self.files if entry.kind == kind]

    @property
    def holdout_unfilled(self) -> str | None:
        """Why there is no holdout row though documents were held out, and what to do; else None."""
        share = self.recipe.get("holdout")
        if not share or self.ledger.holdout_rows:
            return None
        return (
            f"documents are joined within a unit, and those that --holdout {100 * share:g}% keeps "
            "out of one fill no window (they are in tail); build with a larger share"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, as_json(manifest))


def as_json(manifest: Manifest) -> dict[str, Any]:
    """What manifest.json holds."""
    raw = asdict(manifest)
    for name in ("left_out", "chat_sha256"):
        if not raw[name]:
            del raw[name]
    return raw


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`. Raises LongRecipeError for anything that is not ours.

    Keys that this version does not know are passed over: a later minor version may add some.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise LongRecipeError(
            f"{folder} is not a built dataset (no {MANIFEST}); run `lrdata build`"
        )
    manifest = read_object(path, FORMAT, FORMAT_VERSION, parse_manifest, "pull the dataset again")
    for entry in (*manifest.files, *manifest.left_out):
        safe_path(folder, entry.path)
    return manifest


def read_object(
    path: Path, format: str, version: str, parse: Callable[[dict[str, Any]], _Entry], remedy: str
) -> _Entry:
    """What `parse` makes of a JSON file of a format, whose major version must be ours."""
    try:
        raw = json.loads(_read_bytes(path).decode("utf-8"))
        _check_format(path, raw, format, version)
        return parse(raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        reason = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
        raise LongRecipeError(f"{path} is damaged ({reason}); {remedy}") from None


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():  # a device or a pipe never ends
        raise ValueError("it is no file")
    with open(path, "rb") as stream:
        data = stream.read(LARGEST_MANIFEST + 1)
    if len(data) > LARGEST_MANIFEST:
        raise ValueError(f"it has more than {LARGEST_MANIFEST:,} bytes")
    return data


def _check_format(path: Path, raw: dict[str, Any], format: str, version: str) -> None:
    if raw["format"] != format:
        raise LongRecipeError(f"{path} has the format {shortened(raw['format'])}, not {format!r}")
    found, ours = str(raw["format_version"])[:20], version.split(".")[0]
    if found.split(".")[0] != ours:
        raise LongRecipeError(
            f"{path} has format version {found}; this longrecipe reads {ours}.x: "
            "install the version that wrote it"
        )


def parse_manifest(raw: dict[str, Any]) -> Manifest:
    """The manifest of a JSON object; KeyError or TypeError where something is missing or wrong."""
    manifest = entry_of(
        Manifest,
        {
            **raw,
            "tokenizer": entry_of(TokenizerEntry, raw["tokenizer"]),
            "sources": [entry_of(SourceEntry, entry) for entry in raw["sources"]],
            "files": [entry_of(FileEntry, entry) for entry in raw["files"]],
            "left_out": [entry_of(FileEntry, entry) for entry in raw.get("left_out", [])],
            "ledger": entry_of(Ledger, raw["ledger"]),
            "replay_ledger": (
                entry_of(Ledger, raw["replay_ledger"]) if raw.get("replay_ledger") else None
            ),
        },
    )
    _check_recipe(manifest.recipe)
    for entry in manifest.files:
        # No two rows have the same sample_id, so none takes less than a byte.
        if not 0 <= entry.rows <= entry.bytes or entry.tokens < 0:
            raise TypeError(
                f"{shortened(entry.path)} has {entry.rows:,} rows and {entry.tokens:,} tokens in "
                f"{entry.bytes:,} bytes"
            )
    return manifest


def _check_recipe(recipe: dict[str, Any]) -> None:
    """Options have the types of BuildRecipe's; those of a later version have some plain type."""
    known = {option.name: option.type for option in fields(BuildRecipe)}
    for name, value in recipe.items():
        if not fits(value, FLAT) or not fits(value, known.get(name, Any)):
            raise TypeError(f"the recipe's {shortened(name)} is {shortened(value)}")


def entry_of(kind: type[_Entry], raw: dict[str, Any]) -> _Entry:
    """The known fields of a JSON object as a dataclass. TypeError for a value of another type."""
    values = {}
    for known in fields(kind):  # type: ignore[arg-type]  # every caller gives a dataclass
        required = known.default is MISSING and known.default_factory is MISSING
        if not required and known.name not in raw:
            continue
        value = values[known.name] = raw[known.name]
        if not fits(value, known.type):
            raise TypeError(f"{known.name} is {shortened(value)}")
    return kind(**values)


def shortened(value: Any) -> str:
    """A value of hostile JSON for a line: as Python writes it, and its beginning alone."""
    text = repr(value[:100]) if isinstance(value, str) else repr(value)
    return text if len(text) < 80 else f"{text[:76]}..."


def safe_path(folder: Path, name: str) -> Path:
    """`folder / name`, refused when the name could leave the folder."""
    pure = PurePosixPath(name)
    foreign = "\\" in name or ":" in name  # separators and drives elsewhere
    if pure.is_absolute() or ".." in pure.parts or foreign or not pure.parts:
        raise LongRecipeError(
            f"{folder / MANIFEST} names {shortened(name)}, outside its folder; not opened"
        )
    return folder / pure


def refuse_leaving(root: Path, file: Path) -> None:
    """A link that leads out of a folder gives away, or brings in, what is not of the dataset."""
    if not file.resolve().is_relative_to(root.resolve()):
        raise LongRecipeError(
            f"{file} is a link to a file outside of {root}; put the file itself there"
        )
