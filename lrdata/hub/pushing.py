"""Push a dataset: what may not be published is refused before the first byte is sent.

Files go up in batches, each a commit, the card first, since the Hub refuses a bad one. The manifest
comes last, in a commit of its own, and an older one goes before the first shard changes: a place
with a manifest is whole. The same command after an interruption sends what is not there.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lrdata.errors import LongRecipeError
from lrdata.hub.opening import open_place
from lrdata.hub.places import Held, Place, Sent, refuse_without_manifest
from lrdata.hub.plain import PlainFolder
from lrdata.hub.publishable import refuse_absolute_paths, refuse_unlicensed
from lrdata.layout import CARD, FOLDERS, PAGE, PICTURE, is_ours, is_rejected, is_shard
from lrdata.manifest import LARGEST_MANIFEST, MANIFEST, Manifest, read_manifest, refuse_leaving
from lrdata.progress import progress
from lrdata.report.about import TAGS
from lrdata.shards import file_sha256
from lrdata.verifying import verify

_BATCH_FILES, _BATCH_BYTES = 256, 20 * 10**9
"""Of a commit: the Hub takes some hundred commits an hour, and some hundred files in one."""

_CATALOGUE = CARD[1]
_NEW_CARD = re.compile(r"---\n(license\w*: .*\n)*---\s*")
"""What the Hub itself writes into README.md where a repository is made on its pages."""


def push(
    folder: Path | str,
    repo: Path | str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    quarantine: bool = False,
    allow_unlicensed: bool = False,
    allow_absolute_paths: bool = False,
) -> str:
    """Put the dataset `folder` at `repo`: a dataset repository of the Hub, or a folder.

    Args:
        repo: `owner/name`, `hf://datasets/owner/name[@branch]`, `./folder`. Made where it is not
            there; files in it that are no dataset's stay. A folder must hold a dataset or nothing;
            a repository without one, no file of a name that a dataset's files have.
        private: make a private repository; refused where a public one is there.
        revision: a branch, made where it is not there.
        quarantine: send the rejected records as well.
        allow_unlicensed: send it though some sources have no licence.
        allow_absolute_paths: send it though the card or the manifest has paths of a machine.
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
        refuse_unlicensed(root, manifest)
    files = [_file(root, path) for path in _names(root, manifest, quarantine)]
    for file in files:
        refuse_leaving(root, file)
    if not allow_absolute_paths:
        refuse_absolute_paths(root)
    problems = verify(root, rows=False)
    if problems:
        raise LongRecipeError(f"{root} is damaged: {problems[0]}; build or pull it again")
    known = {entry.path: entry.sha256 for entry in manifest.files}
    sent = [_sent(root, file, known) for file in files]
    with place.writing(private):
        _send(place, manifest, sent, message or f"Push {_what(manifest)}")
    return place.address


# What is sent


def _names(root: Path, manifest: Manifest, quarantine: bool) -> Iterator[str]:
    """The files of a dataset that are published, the card first and the manifest last."""
    yield from CARD
    yield from (path for path in (PAGE, PICTURE) if (root / path).exists())
    if quarantine:
        paths = (f"quarantine/{file.name}" for file in sorted((root / "quarantine").glob("*")))
        yield from filter(is_rejected, paths)
    yield from (entry.path for entry in manifest.files)
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


# Sending


def _send(place: Place, dataset: Manifest, files: Sequence[Sent], message: str) -> None:
    """Make the place hold these files, of which the manifest is the last."""
    *others, manifest = files
    held = place.held()
    _refuse_part(place, dataset, held)
    wanted = {sent.path for sent in files}
    stale = [path for path in _published(place, held, wanted) if path not in wanted]
    missing = [sent for sent in others if not sent.is_held(held.get(sent.path))]
    sealed = manifest.is_held(held.get(MANIFEST))
    if MANIFEST in held and (not sealed or any(is_shard(sent.path) for sent in missing) or stale):
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
        _refuse_incomplete(place, others)
        if not sealed:
            place.add([manifest], message, task)
            _refuse_incomplete(place, files)


def _published(place: Place, held: Mapping[str, Held], wanted: set[str]) -> list[str]:
    """What lies there of an earlier push, which may go. Raises LongRecipeError where somebody
    else's files lie where ours would."""
    ours = [path for path in held if path.split("/")[0] in FOLDERS and is_ours(path)]
    if MANIFEST not in held:  # new, or of a push that was interrupted
        if not _is_begun(place, held):
            _refuse_foreign(place, held)
        return ours
    refuse_without_manifest(place.address, held)  # one that is too large
    with TemporaryDirectory() as folder:
        place.fetch(MANIFEST, Path(folder))
        try:
            named = {entry.path for entry in read_manifest(Path(folder)).files}
        except LongRecipeError:
            raise LongRecipeError(
                f"{place.address} holds a {MANIFEST} that is no dataset's of ours; choose another "
                "place, or remove it there"
            ) from None
    for path in held:
        if is_shard(path) and path not in named | wanted:
            raise LongRecipeError(
                f"{place.address} holds {path}, which its manifest does not name; remove it there"
            )
    return ours


def _is_begun(place: Place, held: Mapping[str, Held]) -> bool:
    """Whether files of our names are of a push that was interrupted. A plain folder has told it
    when it was opened; on the Hub our catalogue entry is in the first commit, and never removed."""
    if isinstance(place, PlainFolder):
        return True
    try:
        return TAGS[0] in json.loads(_text(place, _CATALOGUE, held))["keywords"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _refuse_foreign(place: Place, held: Mapping[str, Held]) -> None:
    """What would be replaced or removed, and nobody pushed, is a person's."""
    for path in held:
        theirs = path in CARD and not _NEW_CARD.fullmatch(_text(place, path, held))
        if theirs or path.split("/")[0] in FOLDERS:
            raise LongRecipeError(
                f"{place.address} holds {path}, which is no dataset's of ours; choose another "
                "place, or remove it there"
            )


def _text(place: Place, path: str, held: Mapping[str, Held]) -> str:
    """A file of a place, if it is there and not too large to be one of ours; else nothing."""
    if path not in held or held[path].size > LARGEST_MANIFEST:
        return ""
    with TemporaryDirectory() as folder:
        place.fetch(path, Path(folder))
        return (Path(folder) / path).read_text(encoding="utf-8", errors="replace")


def _refuse_part(place: Place, dataset: Manifest, held: Mapping[str, Held]) -> None:
    """A part of a dataset in place of the whole would be a loss."""
    for entry in dataset.left_out:
        there = held.get(entry.path)
        if there and (not entry.sha256 or there.sha256 in (None, entry.sha256)):
            raise LongRecipeError(
                f"{place.address} holds {entry.path}, which this part was pulled without, and "
                "would lose it; push the part to another place"
            )


def _refuse_incomplete(place: Place, files: Sequence[Sent]) -> None:
    """What was sent must be what lies there now: the manifest says of all of it that it does."""
    held, wanted = place.held(), {sent.path for sent in files}
    for sent in files:
        there = held.get(sent.path)
        # A file on this disk was compared when it was written, or found.
        whole = there and (there.size == sent.size if there.file else sent.is_held(there))
        if not whole:
            raise LongRecipeError(
                f"{place.address} does not hold {sent.path} as it was sent; see whether its "
                ".gitignore names it, then run the same command again"
            )
    for path in held:
        if is_shard(path) and path not in wanted:
            raise LongRecipeError(
                f"{place.address} holds {path} of another dataset; run the same command again"
            )


def _batches(files: Sequence[Sent]) -> Iterator[list[Sent]]:
    """Groups of files for a commit each; the card and what is small go first, on their own."""
    batch, size = [sent for sent in files if not is_shard(sent.path)], 0
    if batch:
        yield batch
        batch = []
    for sent in files:
        if not is_shard(sent.path):
            continue
        if batch and (len(batch) == _BATCH_FILES or size + sent.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(sent)
        size += sent.size
    if batch:
        yield batch
