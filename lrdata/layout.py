"""The names of the files of a dataset folder, and of no others: what of a folder is ours.

    README.md  croissant.json  manifest.json
    extend/train-00000-of-00012.parquet   replay/train-...   holdout/test-...
    quarantine/unit-00003.jsonl           report/index.html  report/coverage.png

Whatever else lies in such a folder is a person's own: it is not published, and never removed.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lrdata.corpus import SourceFile
from lrdata.errors import LongRecipeError
from lrdata.manifest import MANIFEST
from lrdata.remote import is_remote
from lrdata.shards import KINDS

SPLITS = {"extend": "train", "replay": "train", "holdout": "test"}
"""As `load_dataset` calls them."""
CARD = ("README.md", "croissant.json")
PAGE, PICTURE = "report/index.html", "report/coverage.png"
FOLDERS = (*KINDS, "quarantine", "report")

_SHARD = {
    kind: re.compile(rf"{kind}/{split}-\d{{5,}}-of-\d{{5,}}\.parquet")
    for kind, split in SPLITS.items()
}
_REJECTED = re.compile(r"quarantine/\w[\w.-]*\.jsonl")


def shard_name(kind: str, index: int, count: int) -> str:
    """The name of shard `index` of `count` of a kind."""
    width = max(5, len(str(count)))  # names sort as numbers do
    return f"{kind}/{SPLITS[kind]}-{index:0{width}d}-of-{count:0{width}d}.parquet"


def is_shard(path: str, kind: str | None = None) -> bool:
    """Whether a name, with slashes, is one of a shard: of a kind, or of any."""
    return any(_SHARD[each].fullmatch(path) for each in ([kind] if kind else KINDS))


def is_rejected(path: str) -> bool:
    """Whether a name is one of a list of rejected records."""
    return _REJECTED.fullmatch(path) is not None


def is_ours(path: str) -> bool:
    """Whether a dataset has files of this name."""
    return path in (*CARD, MANIFEST, PAGE, PICTURE) or is_shard(path) or is_rejected(path)


def is_partial(path: Path) -> bool:
    """Whether a file is one that was being written when its process died."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def refuse_own(out: Path, corpora: Sequence[str], files: Sequence[SourceFile]) -> None:
    """Raise LongRecipeError where the next call would take for its corpus what this one writes to
    `out`. files: those of the corpora."""
    own = os.path.join(os.path.realpath(out), "")
    places = [os.path.realpath(file.path) for file in files if not file.address]
    written = any(place.startswith(own) and is_ours(place.removeprefix(own)) for place in places)
    if written or any(_holds(corpus, out) for corpus in corpora):
        raise LongRecipeError(
            f"{out} lies in the corpus, and would be read as a part of it; choose another --out, "
            "or name the files of the corpus"
        )


def _holds(corpus: str, folder: Path) -> bool:
    """Whether a corpus is a folder whose files those in `folder` would be, too."""
    root = os.path.realpath(os.path.expanduser(corpus))
    inside = Path(os.path.relpath(os.path.realpath(folder), root)).parts
    return (
        not is_remote(corpus)
        and os.path.isdir(root)
        and not any(step.startswith(".") for step in inside)  # `..`, or hidden
    )
