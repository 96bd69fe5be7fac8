"""What a dataset is, in the words that its card and its catalogue entry share.

All of it is a function of the manifest alone, so equal manifests give equal words.
"""

import hashlib

from lrdata.manifest import Manifest
from lrdata.positions import INSIDE_SEGMENTS
from lrdata.rules import window_len
from lrdata.shards import KINDS
from lrdata.sizes import format_tokens

TAGS = ("longrecipe", "long-context", "context-extension", "position-ids", "pretokenized")

_SCHEMES = [f"`{scheme}`" for scheme in INSIDE_SEGMENTS]
COLUMNS = {
    "input_ids": "the kept tokens; labels are the same, so they are not stored",
    "position_ids": "their positions, < target_len; strictly increasing along an extend row, "
    "restarting at 0 in each document of a replay row",
    "seq_lengths": "lengths of the attention documents, summing to the row's length",
    "impact_mask": "impactful tokens",
    "loss_mask": "tokens that count in the loss (as targets)",
    "segment_starts": "where in the window each contiguous piece of the row came from",
    "segment_lengths": "the pieces' lengths; positions jump only between pieces "
    f"(but with {', '.join(_SCHEMES[:-1])} and {_SCHEMES[-1]})",
    "doc_ids": "the documents of the window, in order",
    "doc_offsets": "first token used of each document",
    "doc_lengths": "tokens used of each document",
    "sample_id": "file, record, first token and copy of the window",
    "source": "where the first document came from",
    "kind": "extend, replay or holdout",
    "window_tokens": "length of the window",
    "target_len": "the window that the positions simulate",
    "lsd": "what long context gains for each token, in nats; NaN where it was not measured",
}
"""What each column holds, in schema order."""


def kinds_present(manifest: Manifest) -> list[str]:
    """The kinds that have a file, in the order of KINDS."""
    return [kind for kind in KINDS if manifest.of_kind(kind)]


def is_compressed(manifest: Manifest) -> bool:
    """Whether rows are shorter than their windows, as they are but with `--positions full`."""
    return manifest.train_len < window_len(manifest)


def name(manifest: Manifest) -> str:
    """`longrecipe-128k-3fa9c1d20b17`: equal datasets have one name, in whatever folder they are."""
    digest = hashlib.sha256()
    for entry in manifest.files:
        digest.update(entry.content_sha256.encode())
    length = format_tokens(manifest.target_len).replace(",", "")
    return f"longrecipe-{length}-{digest.hexdigest()[:12]}"


def title(manifest: Manifest) -> str:
    """One line that names the dataset by what it is."""
    length = format_tokens(manifest.target_len)
    return f"Long-context training rows: {length} windows as {manifest.train_len:,}-token rows"


def description(manifest: Manifest, tokenizer: str) -> str:
    """What the dataset is, in one paragraph; `tokenizer` is what to call it there."""
    window = window_len(manifest)
    if is_compressed(manifest):
        made = (
            f"{manifest.target_len:,} tokens while it reads only {manifest.train_len:,} at a time "
            "(LongRecipe, arXiv 2409.00509): each window of text is compressed to a row, and the "
            "row's position ids span the whole window."
        )
    else:
        made = f"{manifest.target_len:,} tokens: each row is a whole window of text."
    retargeted = (
        f" The windows of text have {window:,} tokens; position ids were drawn again, for "
        f"{manifest.target_len:,}, by `lrdata retarget`."
        if window != manifest.target_len
        else ""
    )
    return (
        f"Pretokenized rows that train a language model for a context window of {made} "
        f"Token ids are those of the tokenizer {tokenizer}.{retargeted}"
    )


def licences(manifest: Manifest) -> list[str]:
    """The licences that the sources were given, sorted."""
    return sorted({entry.licence for entry in manifest.sources if entry.licence})


def unlicensed(manifest: Manifest) -> list[str]:
    """The sources of which a file has no licence stated, sorted."""
    return sorted({entry.source for entry in manifest.sources if not entry.licence})


def left_out(manifest: Manifest) -> str | None:
    """Which rows are not here (`lrdata pull --only`), in a sentence; None where all are."""
    kinds = sorted({entry.kind for entry in manifest.left_out})
    if not kinds:
        return None
    return (
        f"A part of a dataset: its {', '.join(kinds)} rows were left out; the accounting is of the "
        "whole."
    )
