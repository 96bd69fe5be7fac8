"""Push a dataset: what may not be published is refused before the first byte is sent.

Files go up in batches, each a commit, the card first, since the Hub refuses a bad one. The manifest
comes last, in a commit of its own, and an older one goes before the first shard changes: a place
with a manifest is whole. The same command after an interruption sends what is not there.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lrdata.errors import LongRecipeError
from lrdata.hub.opening import open_place
from lrdata.hub.places import Place, Sent
from lrdata.hub.plain import PlainFolder, refuse_leaving
from lrdata.manifest import MANIFEST, Manifest, read_manifest
from lrdata.progress import progress
from lrdata.shards import KINDS, file_sha256
from lrdata.verifying import verify

_CARD = ("README.md", "croissant.json")
_FOLDERS = (*KINDS, "quarantine", "report")
_BATCH_FILES, _BATCH_BYTES = 256, 20 * 10**9
"""Of a commit: the Hub takes some hundred commits an hour, and some hundred files in one."""

_ABSOLUTE = re.compile(
    r"(?<![\w.:/*~<-])(~?/[\w.@+-]+/[\w.@+/-]*|~/[\w.@+/-]+)"  # /home/me/x, ~/x; no URL, no a/b
    r"|file:/+[\w.@+/-]+"
    r"|(?<!\w)[A-Za-z]:\\[\w.\\ -]+"
)


def push(
    folder: Path | str,
    repo: Path | str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    quarantine: bool = False,
    allow_unlicensed: bool = False,
) -> str:
    """Put the dataset `folder` at `repo`: a dataset repository of the Hub, or a folder.

    Args:
        repo: `owner/name`, `hf://datasets/owner/name[@branch]`, `./folder`. Made where it is not
            there; files in it that are no dataset's stay.
        private: make a private repository; refused where a public one is there.
        revision: a branch, made where it is not there.
        quarantine: send the rejected records as well.
        allow_unlicensed: send it though some sources have no licence.
    Returns:
        The address, as `pull` and `lrdata.open_dataset` take it.
    Raises:
        LongRecipeError: the folder is damaged or may not be published as it is, or the place
            cannot be written. Nothing is sent in the first two cases.
    """
    root, place = Path(folder), open_place(repo, revision)
    _refuse_itself(root, place)
    manifest = read_manifest(root)
    if not allow_unlicensed:
        _refuse_unlicensed(root, manifest)
    files = [_file(root, path) for path in _names(root, quarantine)]
    for file in files:
        refuse_leaving(root, file)
    _refuse_absolute_paths(root)
    problems = verify(root, rows=False)
    if problems:
        raise LongRecipeError(f"{root} is damaged: {problems[0]}; build or pull it again")
    known = {entry.path: entry.sha256 for entry in manifest.files}
    place.prepare(private)
    _send(place, [_sent(root, file, known) for file in files], message or f"Push {_what(manifest)}")
    return place.address


# What is sent


def _names(root: Path, quarantine: bool) -> Iterator[str]:
    """The files of a dataset that are published, the card first and the manifest last."""
    yield from _CARD
    for folder in ("report", *(["quarantine"] if quarantine else [])):
        for file in sorted((root / folder).rglob("*")):
            path = file.relative_to(root)
            if not file.is_dir() and not any(part.startswith(".") for part in path.parts):
                yield path.as_posix()
    yield from (entry.path for entry in read_manifest(root).files)
    yield MANIFEST


def _file(root: Path, path: str) -> Path:
    file = root / path
    if not file.is_file():
        raise LongRecipeError(f"{file} is missing; build or pull the dataset again")
    return file


def _sent(root: Path, file: Path, known: dict[str, str]) -> Sent:
    """known: the sha256 of files that were just found to have it."""
    path = file.relative_to(root).as_posix()
    return Sent(path, file, file.stat().st_size, known.get(path) or file_sha256(file))


def _what(manifest: Manifest) -> str:
    rows = sum(entry.rows for entry in manifest.files)
    return f"{rows:,} rows for a window of {manifest.target_len:,} tokens"


# What may not be published


def _refuse_itself(root: Path, place: Place) -> None:
    if isinstance(place, PlainFolder):
        to, of = place.root.resolve(), root.resolve()
        if to.is_relative_to(of) or of.is_relative_to(to):
            raise LongRecipeError(f"{place.root} and {root} are one folder; choose another")


def _refuse_unlicensed(root: Path, manifest: Manifest) -> None:
    bare = sorted({entry.source for entry in manifest.sources if not entry.licence})
    if bare:
        more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        raise LongRecipeError(
            f"{root} has sources without a licence ({', '.join(bare[:3])}{more}); build it with "
            "--license SOURCE=ID, or push it with --allow-unlicensed"
        )


def _refuse_absolute_paths(root: Path) -> None:
    """They tell of the machine that a dataset was built on."""
    for name in (*_CARD, MANIFEST):
        text = (root / name).read_text(encoding="utf-8")
        parts = _strings(json.loads(text)) if name.endswith(".json") else text.splitlines()
        for part in parts:
            found = _ABSOLUTE.search(part)
            if found:
                raise LongRecipeError(
                    f"{root / name} has the absolute path {found[0]!r}, which is not published; "
                    "take it out, or build with relative names"
                )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


# Sending


def _send(place: Place, files: Sequence[Sent], message: str) -> None:
    """Make the place hold these files, of which the manifest is the last."""
    *others, manifest = files
    held = place.held()
    wanted = {sent.path for sent in files}
    stale = [path for path in held if path.split("/")[0] in _FOLDERS and path not in wanted]
    missing = [sent for sent in others if not sent.is_held(held.get(sent.path))]
    sealed = manifest.is_held(held.get(MANIFEST))
    if MANIFEST in held and (not sealed or any(map(_is_shard, missing)) or stale):
        stale.append(MANIFEST)
        sealed = False
    if stale:
        place.remove(stale, f"{message}: make room")
    total = sum(sent.size for sent in files)
    there = total - sum(sent.size for sent in missing) - (0 if sealed else manifest.size)
    with progress("pushing bytes", total, there) as task:
        batches = list(_batches(missing))
        for number, batch in enumerate(batches, 1):
            place.add(batch, f"{message} ({number} of {len(batches)})", task)
        if not sealed:
            place.add([manifest], message, task)


def _is_shard(sent: Sent) -> bool:
    return sent.path.split("/")[0] in KINDS


def _batches(files: Sequence[Sent]) -> Iterator[list[Sent]]:
    """Groups of files for a commit each; the card and what is small go first, on their own."""
    batch, size = [sent for sent in files if not _is_shard(sent)], 0
    if batch:
        yield batch
        batch = []
    for sent in filter(_is_shard, files):
        if batch and (len(batch) == _BATCH_FILES or size + sent.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(sent)
        size += sent.size
    if batch:
        yield batch
