"""Pull a dataset: staged in a hidden folder of the new one, named when all of it is whole.

Every shard must have the size and sha256 that the manifest says, and every name must be one of a
dataset's, before anything gets its final name; the manifest comes last. The same call after an
interruption fetches what is not whole yet.

A part of a dataset (`only`) is a dataset: its manifest lists what was left out, file by file, as
`left_out`, and its ledgers stay those of the whole, which `lrdata verify` checks against both.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lrdata.atomic import clear, fsync, locked, remove_file, remove_partials
from lrdata.errors import LongRecipeError
from lrdata.hub.opening import open_place
from lrdata.hub.places import Held, Place, refuse_without_manifest, refuse_wrong
from lrdata.layout import CARD, FOLDERS, PICTURE, is_shard
from lrdata.manifest import MANIFEST, FileEntry, Manifest, read_manifest, safe_path
from lrdata.progress import progress
from lrdata.shards import KINDS, file_sha256
from lrdata.staging import complete
from lrdata.verifying import verify

STAGING = ".pull"
_LARGEST_EXTRAS = 64 * 1024**2
"""Bytes of all that has no checksum."""


def pull(
    repo: Path | str,
    folder: Path | str,
    *,
    only: Sequence[str] = (),
    revision: str | None = None,
) -> Manifest:
    """Get a dataset into the new folder `folder`, and check every checksum of its manifest.

    What has no checksum comes only with the whole: the card, and the figure that it shows (no
    page, which may hold scripts; `lrdata report` makes it anew).

    Args:
        repo: `owner/name`, `hf://datasets/owner/name[@revision]`, or a folder.
        only: the kinds to get, of extend, replay and holdout; all if none is named.
        revision: a branch, tag or commit of the repository.
    Returns:
        The manifest of `folder`.
    Raises:
        LongRecipeError: there is no dataset, it is not what its manifest says, or `folder` holds
            something else.
    """
    place, out = open_place(repo, revision), Path(folder)
    held = place.held()
    refuse_without_manifest(place.address, held)
    with _staging(out) as staging:
        (staging / MANIFEST).unlink(missing_ok=True)
        place.fetch(MANIFEST, staging)
        whole = read_manifest(staging)
        manifest = _part(place, whole, only)
        refuse_wrong(place.address, manifest, held)
        if (out / MANIFEST).exists():  # killed when all was done but this, or called again
            _refuse_other(out, manifest)
            clear(staging)
            return manifest
        _remove_extras(staging)
        _remove_extras(out)
        _fetch(place, manifest, staging, out)
        if manifest == whole:
            _fetch_extras(place, held, staging)
            _publish_whole(out, staging, manifest)
        else:
            _publish_shards(out, staging, manifest)
            complete(out, manifest)
        clear(staging)
    return manifest


# What may be pulled


def _part(place: Place, whole: Manifest, only: Sequence[str]) -> Manifest:
    """The manifest of the chosen kinds: the same one where that is all of them."""
    kinds = [kind for kind in KINDS if any(entry.kind == kind for entry in whole.files)]
    for kind in only:
        if kind not in kinds:
            raise LongRecipeError(
                f"{place.address} holds no {kind} rows; it has {', '.join(kinds) or 'none'}"
            )
    if not only or set(only) == set(kinds):
        return whole
    left_out = [entry for entry in whole.files if entry.kind not in only]
    files = [entry for entry in whole.files if entry.kind in only]
    return replace(whole, files=files, left_out=[*whole.left_out, *left_out])


def _refuse_other(out: Path, manifest: Manifest) -> None:
    if read_manifest(out) != manifest:
        raise LongRecipeError(f"{out} holds another dataset; choose another folder")
    problems = verify(out, rows=False)
    if problems:
        raise LongRecipeError(f"{out} is damaged: {problems[0]}; remove it and pull it again")


# Fetching


def _fetch(place: Place, manifest: Manifest, staging: Path, out: Path) -> None:
    """Have every shard in the staging folder, or already under its name, whole."""
    missing = []
    with progress("pulling bytes", sum(entry.bytes for entry in manifest.files)) as task:
        for entry in manifest.files:
            file = safe_path(staging, entry.path)
            if _is_whole(safe_path(out, entry.path), entry):
                task.advance(entry.bytes, note=f"{entry.path} is there")
            elif _is_whole(file, entry):
                fsync(file)  # which a pull that was killed had no time for
                task.advance(entry.bytes, note=f"{entry.path} is there")
            else:
                file.unlink(missing_ok=True)
                missing.append(entry)
        _refuse_full_disk(place, missing, staging)
        for entry in missing:
            file = safe_path(staging, entry.path)
            place.fetch(entry.path, staging)
            if not _is_whole(file, entry):
                file.unlink(missing_ok=True)
                raise LongRecipeError(
                    f"{place.address}: {entry.path} came with other bytes than its manifest says "
                    "(sha256); run the same command again, or have it pushed again"
                )
            fsync(file)
            task.advance(entry.bytes, note=entry.path)


def _is_whole(file: Path, entry: FileEntry) -> bool:
    right_size = file.is_file() and not file.is_symlink() and file.stat().st_size == entry.bytes
    return right_size and file_sha256(file) == entry.sha256


def _refuse_full_disk(place: Place, missing: Sequence[FileEntry], staging: Path) -> None:
    begun = sum(file.stat().st_size for file in staging.rglob("*.incomplete"))  # the Hub's client's
    needed, free = sum(entry.bytes for entry in missing) - begun, shutil.disk_usage(staging).free
    if needed > free:
        raise LongRecipeError(
            f"{place.address} needs {needed:,} bytes more, the disk of {staging.parent} has "
            f"{free:,}; free some, or pull a part with --only"
        )


def _fetch_extras(place: Place, held: Mapping[str, Held], staging: Path) -> None:
    """What has no checksum in the manifest, and does no harm whatever it holds."""
    left = _LARGEST_EXTRAS
    for path in (*CARD, PICTURE):
        if path in held and held[path].size <= left:
            left -= held[path].size
            place.fetch(path, staging)


def _remove_extras(folder: Path) -> None:
    """What was pulled without a checksum may be another dataset's, whose pull was killed here."""
    for path in (*CARD, PICTURE):
        remove_file(folder / path)


# The new folder


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """The staging folder in `out`, for this process alone. Gone after an error in which no shard
    was fetched, and `out` with it where there was none."""
    staging = out / STAGING
    if out.exists() and not out.is_dir():
        raise LongRecipeError(f"{out} is a file; choose another folder")
    ours = staging.exists() or (out / MANIFEST).exists()
    if out.exists() and not ours and any(out.iterdir()):
        raise LongRecipeError(f"{out} is not an empty folder; choose another one")
    with locked(staging, out):
        for folder in (staging, *(staging / name for name in FOLDERS)):
            remove_partials(folder)  # of a pull that was killed
        for rest in staging.rglob("*.????????.incomplete"):
            rest.unlink()  # of a client that begins anew under another name; older ones go on
        try:
            yield staging
        except BaseException:
            if not any((staging / kind).exists() for kind in KINDS):
                clear(staging)
            raise


def _publish_shards(out: Path, staging: Path, manifest: Manifest) -> None:
    names = {entry.path for entry in manifest.files}
    for kind in KINDS:  # what a pull of another dataset that was killed here left
        for file in (out / kind).glob("*.parquet"):
            path = file.relative_to(out).as_posix()
            if is_shard(path) and path not in names:
                remove_file(file)
    for name in names:
        target = safe_path(out, name)
        target.parent.mkdir(exist_ok=True)
        if safe_path(staging, name).exists():  # else an earlier call came to here
            os.replace(safe_path(staging, name), target)
    for folder in {out, *(safe_path(out, name).parent for name in names)}:
        fsync(folder)


def _publish_whole(out: Path, staging: Path, manifest: Manifest) -> None:
    """Give the card and the manifest as they were pulled their names, the manifest last."""
    _publish_shards(out, staging, manifest)
    if (staging / PICTURE).exists():
        (out / PICTURE).parent.mkdir(exist_ok=True)
        os.replace(staging / PICTURE, out / PICTURE)
        fsync((out / PICTURE).parent)
    if not all((staging / name).exists() for name in CARD):
        complete(out, manifest)
    for name in (*CARD, MANIFEST):
        if (staging / name).exists():
            fsync(staging / name)
            os.replace(staging / name, out / name)
            fsync(out)
