"""The dataset card: README.md with the front matter that the Hugging Face hub reads.

Made from the manifest alone, so equal manifests give equal cards.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from lrdata.manifest import FileEntry, Ledger, Manifest
from lrdata.recipe import BuildRecipe
from lrdata.rules import window_len
from lrdata.shards import KINDS, schema_of

TAGS = ("longrecipe", "long-context", "context-extension", "position-ids", "pretokenized")

COLUMNS = {
    "input_ids": "the kept tokens; labels are the same, so they are not stored",
    "position_ids": "their positions, < target_len; strictly increasing along an extend row, "
    "restarting at 0 in each document of a replay row",
    "seq_lengths": "lengths of the attention documents, summing to the row's length",
    "impact_mask": "impactful tokens",
    "loss_mask": "tokens that count in the loss (as targets)",
    "segment_starts": "where in the window each contiguous piece of the row came from",
    "segment_lengths": "the pieces' lengths; positions jump only between pieces "
    "(but with `randpos` and `pose`)",
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

_SPLITS = {"extend": "train", "replay": "train", "holdout": "test"}

_ABOUT = {
    "extend": "windows compressed to `train_len` tokens, for the extension stage",
    "replay": "short documents packed into rows, for the annealing stage",
    "holdout": "whole windows, uncompressed, for curves and evaluation",
}

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)

_HUB_LICENCES = (
    "apache-2.0 mit openrail bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 "
    "odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl artistic-2.0 "
    "afl-3.0 bsl-1.0 unknown other"
)
"""Identifiers that the hub accepts; another one would make it refuse the card."""


def card(manifest: Manifest) -> str:
    """The text of README.md: YAML front matter, then what a reader wants to know."""
    return "\n".join([*_front_matter(manifest), "", *_text(manifest)]) + "\n"


def kinds_present(manifest: Manifest) -> list[str]:
    """The kinds that have a file, in the order of KINDS."""
    return [kind for kind in KINDS if _files(manifest, kind)]


def title(manifest: Manifest) -> str:
    """One line that names the dataset by what it is."""
    length = _size(manifest.target_len)
    return f"Long-context training rows: {length} windows as {manifest.train_len:,}-token rows"


def description(manifest: Manifest) -> str:
    """What the dataset is, in one paragraph."""
    window = window_len(manifest)
    return (
        f"Pretokenized rows that train a language model for a context window of "
        f"{manifest.target_len:,} tokens while it reads only {manifest.train_len:,} at a time "
        "(LongRecipe, arXiv 2409.00509): each window of text is compressed to a row, and the "
        f"row's position ids span the whole window. Token ids are those of the tokenizer "
        f"{manifest.tokenizer.name}."
        + (
            f" The windows of text have {window:,} tokens; position ids were drawn again, for "
            f"{manifest.target_len:,}, by `lrdata retarget`."
            if window != manifest.target_len
            else ""
        )
    )


def licences(manifest: Manifest) -> list[str]:
    """The licences that the sources were given, sorted."""
    return sorted({entry.licence for entry in manifest.sources if entry.licence})


# Front matter


def _front_matter(manifest: Manifest) -> Iterator[str]:
    yield "---"
    yield f"pretty_name: {_quoted(title(manifest))}"
    yield from _licence_lines(licences(manifest))
    yield "task_categories:"
    yield "- text-generation"
    yield "size_categories:"
    yield f"- {_size_category(sum(entry.rows for entry in manifest.files))}"
    yield "tags:"
    yield from (f"- {tag}" for tag in TAGS)
    yield "configs:"
    for kind in kinds_present(manifest):
        yield f"- config_name: {kind}"
        if kind == "extend":
            yield "  default: true"
        yield "  data_files:"
        yield f"  - split: {_SPLITS[kind]}"
        yield f"    path: {kind}/{_SPLITS[kind]}-*.parquet"
    yield "---"


def _licence_lines(names: list[str]) -> Iterator[str]:
    """The hub takes its own identifiers only; others are named beside `other`."""
    accepted = _HUB_LICENCES.split()
    foreign = [name for name in names if name.lower() not in accepted]
    listed = {"other" if name in foreign else name.lower() for name in names}
    if listed:
        yield "license:"
        yield from (f"- {name}" for name in sorted(listed))
    if foreign:
        yield f"license_name: {_quoted(', '.join(foreign))}"


def _size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "100M<n<1B")


def _quoted(text: str) -> str:
    """A YAML scalar: JSON strings are YAML."""
    return json.dumps(text)


# The text


def _text(manifest: Manifest) -> Iterator[str]:
    yield f"# {title(manifest)}"
    yield ""
    yield description(manifest)
    yield ""
    yield from _table(
        ("config", "rows", "tokens", "bytes", "what"),
        (
            (
                f"`{kind}`",
                *(
                    f"{sum(getattr(entry, name) for entry in _files(manifest, kind)):,}"
                    for name in ("rows", "tokens", "bytes")
                ),
                _ABOUT[kind],
            )
            for kind in kinds_present(manifest)
        ),
    )
    yield from _how_to_use(manifest)
    yield from _sources(manifest)
    yield from _accounting(manifest)
    yield from _columns(manifest)
    yield from _how_built(manifest)
    yield from _limits(manifest)


def _how_to_use(manifest: Manifest) -> Iterator[str]:
    names = kinds_present(manifest)
    yield from (
        "",
        "## Use",
        "",
        "To train on it, with a model that has the same tokenizer:",
        "",
        "```sh",
        'pip install "longrecipe[train]"',
        "lrdata verify FOLDER       # this repository, downloaded",
        "lrdata inspect FOLDER      # see what a row became",
        "lrtrain run FOLDER --model MODEL --out RUN",
        "```",
        "",
        "To look at it from Python:",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        *(f'{name} = load_dataset(FOLDER, "{name}", split="{_SPLITS[name]}")' for name in names),
        "```",
        "",
        "Another trainer must let `seq_lengths` alone bound attention. Many libraries read a jump "
        "in `position_ids` as the start of a new packed document and cut attention there: on "
        "these rows such a trainer learns nothing across a gap, and its loss still falls.",
    )


def _sources(manifest: Manifest) -> Iterator[str]:
    yield from ("", "## Sources", "")
    groups: dict[tuple[str, str], list[int]] = {}
    for entry in manifest.sources:
        counts = groups.setdefault((entry.source, entry.licence or "not stated"), [0, 0])
        counts[0] += 1
        counts[1] += entry.bytes
    yield from _table(
        ("source", "licence", "files", "bytes"),
        (
            (_cell(source), _cell(licence), f"{files:,}", f"{size:,}")
            for (source, licence), (files, size) in groups.items()
        ),
    )
    yield ""
    yield "Each file's name, size and sha256 are in `manifest.json`."


def _accounting(manifest: Manifest) -> Iterator[str]:
    yield from ("", "## Accounting", "")
    yield "Where every record and token went, exactly; `lrdata verify` checks it."
    yield ""
    ledgers = [("extend and holdout", manifest.ledger)]
    if manifest.replay_ledger:
        ledgers.append(("replay", manifest.replay_ledger))
    rows = (
        ("records set aside by the recipe", "records_filtered"),
        ("records read", "records_read"),
        ("= records built", "records_built"),
        ("+ records in quarantine", "records_quarantined"),
        ("tokens encoded", "encoded"),
        ("+ tokens inserted (end and start of text)", "inserted"),
        ("= tokens kept", "kept"),
        ("+ tokens dropped by selection", "dropped"),
        ("+ tokens left over (tail)", "tail"),
        ("+ tokens held out", "held_out"),
    )
    yield from _table(
        ("", *(name for name, _ in ledgers)),
        ((text, *(_count(ledger, name) for _, ledger in ledgers)) for text, name in rows),
    )


def _count(ledger: Ledger, name: str) -> str:
    return f"{getattr(ledger, name):,}"


def _columns(manifest: Manifest) -> Iterator[str]:
    schema = schema_of(manifest, "extend")
    yield from ("", "## Columns", "")
    yield from _table(
        ("column", "type", "meaning"),
        ((f"`{entry.name}`", f"`{_type(entry.type)}`", COLUMNS[entry.name]) for entry in schema),
    )
    yield ""
    yield (
        "Masks belong to token i as the target, predicted from the tokens before it. The first "
        "token of each attention document is never a target."
    )


def _type(kind: Any) -> str:
    return f"list<{kind.value_type}>" if hasattr(kind, "value_type") else str(kind)


def _how_built(manifest: Manifest) -> Iterator[str]:
    tokenizer, window = manifest.tokenizer, window_len(manifest)
    retarget = f"lrdata retarget FOLDER --target-len {manifest.target_len}"
    yield from (
        "",
        "## How it was built",
        "",
        "```sh",
        " \\\n    ".join(command({**manifest.recipe, "target_len": window})),
        *([retarget] if window != manifest.target_len else []),
        "```",
        "",
        f"Tokenizer: {_cell(tokenizer.name)}, {tokenizer.vocab_size:,} ids, fingerprint "
        f"`{tokenizer.fingerprint}`. The trainer refuses another.",
        "",
        "With: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "",
        "The same corpus, options, seed and versions give the same bytes.",
    )


def _limits(manifest: Manifest) -> Iterator[str]:
    yield from ("", "## Limits", "")
    yield (
        f"- For one tokenizer and windows of {manifest.target_len:,} tokens only; another needs "
        "another build."
    )
    window = window_len(manifest)
    if manifest.train_len < window:
        share = 1 - manifest.train_len / window
        yield (
            f"- A row leaves out {share:.0%} of its window: its text jumps between sentences, and "
            "reads well only inside a segment."
        )
    yield (
        "- Texts are as the sources had them: nothing was filtered for quality, personal data or "
        "duplicates."
    )
    yield "- The licences of the sources hold for the rows."


def _files(manifest: Manifest, kind: str) -> list[FileEntry]:
    return [entry for entry in manifest.files if entry.kind == kind]


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    """Text from data inside a table or a line: no markup of ours is broken by it."""
    line = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\|`*_[]<>#" else char for char in line)


def _size(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


# The command


def command(recipe: Mapping[str, Any]) -> list[str]:
    """The recipe as a command, in parts that each fit on a line; options at default are left out.

    `recipe` is what `BuildRecipe.portable` gives.
    """
    parts = [_joined("lrdata build", recipe["corpora"])]
    for option in fields(BuildRecipe):
        value = recipe.get(option.name)
        if option.name in _UNWRITTEN or value is None or value == _default(option):
            continue
        parts += _option(option.name, value)
    return [*parts, "--out FOLDER"]


_UNWRITTEN = ("corpora", "encoder", "unit_bytes")
_NAMES = {"weights": "weight", "licences": "license"}


def _default(option: Any) -> Any:
    if option.default_factory is not MISSING:
        return option.default_factory()
    return list(option.default) if isinstance(option.default, tuple) else option.default


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + _NAMES.get(name, name).replace("_", "-")
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        return [f"{flag} {_word(f'{key}={item}')}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [f"{flag} {_word(item)}" for item in value]
    return [f"{flag} {_word(value)}"]


def _joined(start: str, values: Iterable[Any]) -> str:
    return " ".join([start, *map(_word, values)])


def _word(value: Any) -> str:
    """One word of a shell command; line ends and fences would break the card's code block."""
    return shlex.quote(" ".join(str(value).replace("```", "").split()))
