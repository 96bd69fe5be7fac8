"""The dataset card: README.md with the front matter that the Hugging Face hub reads.

Made from the manifest alone, so equal manifests give equal cards. What a manifest says in words
(names of sources, licences, the tokenizer) is text in it, never markup.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lrdata.layout import SPLITS
from lrdata.manifest import Ledger, Manifest
from lrdata.report.about import (
    COLUMNS,
    TAGS,
    description,
    is_compressed,
    kinds_present,
    left_out,
    licences,
    name,
    title,
    unlicensed,
)
from lrdata.report.command import build_command
from lrdata.report.front_matter import front_matter
from lrdata.report.markdown import inert, shell, table
from lrdata.rules import window_len
from lrdata.shards import schema_of

SOURCES_SHOWN = 20
"""So many source files are listed with their sha256; the others are in the manifest."""

_ABOUT = {
    "extend": "windows compressed to `train_len` tokens, for the extension stage",
    "replay": "short documents packed into rows, for the annealing stage",
    "holdout": "whole windows, uncompressed, for curves and evaluation",
}

_LEDGER = (
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


def card(manifest: Manifest, figure: str | None = None) -> str:
    """The text of README.md: YAML front matter, then what a reader wants to know.

    figure: the picture of position coverage that `lrdata report` draws, as a path in the dataset's
    folder; None where it is not there.
    """
    kinds = kinds_present(manifest)
    lines = [
        *front_matter(
            title(manifest),
            licences(manifest),
            sum(entry.rows for entry in manifest.files),
            TAGS,
            {kind: (SPLITS[kind], f"{kind}/{SPLITS[kind]}-*.parquet") for kind in kinds},
            default="extend",
            identity=name(manifest),
        ),
        "",
        f"# {title(manifest)}",
        "",
        description(manifest, inert(manifest.tokenizer.name)),
        "",
        _licence_sentence(manifest),
        "",
        *_kinds(manifest),
        *_coverage(figure),
        *_how_to_train(manifest),
        *_how_to_look(manifest),
        *_sources(manifest),
        *_accounting(manifest),
        *_columns(manifest),
        *_how_built(manifest),
        *_limits(manifest),
    ]
    return "\n".join(lines) + "\n"


def _licence_sentence(manifest: Manifest) -> str:
    """The licences, and what none was stated for, before anything else."""
    stated, bare = licences(manifest), unlicensed(manifest)
    if not stated:
        return "**Licence:** none was stated for any source; ask before you share the rows."
    sentence = f"**Licence:** the texts are under {_listed(stated)}, as the builder stated"
    if bare:
        sentence += f"; **none was stated for** {_listed(bare)}"
    return f"{sentence}. A row is under the licences of its source."


def _listed(names: Sequence[str], shown: int = 8) -> str:
    """`a, b and 3 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(inert, names[:shown])) + more


def _kinds(manifest: Manifest) -> Iterator[str]:
    return table(
        ("config", "rows", "tokens", "bytes", "what"),
        (
            (
                f"`{kind}`",
                *(
                    f"{sum(getattr(entry, what) for entry in manifest.of_kind(kind)):,}"
                    for what in ("rows", "tokens", "bytes")
                ),
                _ABOUT[kind] if is_compressed(manifest) or kind != "extend" else "whole windows",
            )
            for kind in kinds_present(manifest)
        ),
    )


def _coverage(figure: str | None) -> Iterator[str]:
    if figure is not None:
        yield ""
        yield f"![Which distances between tokens these rows train, and how often]({figure})"


def _how_to_train(manifest: Manifest) -> Iterator[str]:
    yield from (
        "",
        "## Train on it",
        "",
        "With a model that has the same tokenizer; FOLDER is this repository, downloaded:",
        "",
        *shell(
            (
                'pip install "longrecipe[train]"',
                "lrdata verify FOLDER                          # every byte is what was built",
                "lrtrain doctor FOLDER --model MODEL           # will it train what it should?",
                "lrtrain run FOLDER --model MODEL --out RUN    # set RoPE, extend, anneal, merge",
            )
        ),
        "",
        "`lrdata pull OWNER/NAME FOLDER` downloads and checks it; `lrtrain` takes "
        "`hf://datasets/OWNER/NAME` for FOLDER, too, and fetches shards as it needs them.",
    )
    if not is_compressed(manifest):
        return
    yield from (
        "",
        "Another trainer must let `seq_lengths` alone bound attention. Many libraries read a jump "
        "in `position_ids` as the start of a new packed document and cut attention there, or "
        "count positions anew: on these rows such a trainer learns nothing across a gap, and its "
        "loss still falls. `lrdata export FOLDER --format trl --out DIR` (or `axolotl`) writes "
        "the rows for such a trainer, with what it does and the settings that are right.",
    )


def _how_to_look(manifest: Manifest) -> Iterator[str]:
    yield from (
        "",
        "## Look at it",
        "",
        *shell(("lrdata inspect FOLDER      # see what a row became",)),
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        *(
            f'{kind} = load_dataset(FOLDER, "{kind}", split="{SPLITS[kind]}")'
            for kind in kinds_present(manifest)
        ),
        "```",
    )


def _sources(manifest: Manifest) -> Iterator[str]:
    yield from ("", "## Sources", "")
    groups: dict[tuple[str, str], list[int]] = {}
    for entry in manifest.sources:
        counts = groups.setdefault((entry.source, entry.licence or ""), [0, 0])
        counts[0] += 1
        counts[1] += entry.bytes
    yield from table(
        ("source", "licence", "files", "bytes"),
        (
            (inert(source), inert(licence) or "**not stated**", f"{files:,}", f"{size:,}")
            for (source, licence), (files, size) in groups.items()
        ),
    )
    shown = manifest.sources[:SOURCES_SHOWN]
    yield ""
    yield from table(
        ("file", "bytes", "sha256"),
        ((inert(entry.name), f"{entry.bytes:,}", inert(entry.sha256)) for entry in shown),
    )
    if len(manifest.sources) > len(shown):
        yield ""
        yield f"And {len(manifest.sources) - len(shown):,} more, which `manifest.json` names."


def _accounting(manifest: Manifest) -> Iterator[str]:
    yield from ("", "## Accounting", "")
    yield "Where every record and token went, exactly; `lrdata verify` checks it."
    yield ""
    ledgers = [("extend and holdout", manifest.ledger)]
    if manifest.replay_ledger:
        ledgers.append(("replay", manifest.replay_ledger))
    yield from table(
        ("", *(heading for heading, _ in ledgers)),
        ((text, *(_count(ledger, what) for _, ledger in ledgers)) for text, what in _LEDGER),
    )


def _count(ledger: Ledger, what: str) -> str:
    return f"{getattr(ledger, what):,}"


def _columns(manifest: Manifest) -> Iterator[str]:
    schema = schema_of(manifest, "extend")
    yield from ("", "## Columns", "")
    yield from table(
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
    versions = (f"{library} {version}" for library, version in manifest.versions.items())
    yield from (
        "",
        "## How it was built",
        "",
        *shell(
            (
                " \\\n    ".join(build_command({**manifest.recipe, "target_len": window})),
                *([retarget] if window != manifest.target_len else []),
            )
        ),
        "",
        f"Tokenizer: {inert(tokenizer.name)}, {tokenizer.vocab_size:,} ids, fingerprint "
        f"{inert(tokenizer.fingerprint)}. The trainer refuses another.",
        "",
        "With: " + inert(", ".join(versions)),
        "",
        "The same corpus, options, seed and versions give the same bytes. To build it again from "
        "`manifest.json` and compare, with the corpora in a folder SOURCES by the names above:",
        "",
        *shell(("lrdata rebuild FOLDER --root SOURCES --tokenizer TOKENIZER --out REBUILT",)),
        "",
        "A source whose sha256 is another is refused before anything is built.",
    )


def _limits(manifest: Manifest) -> Iterator[str]:
    recipe, ledger, window = manifest.recipe, manifest.ledger, window_len(manifest)
    yield from ("", "## Limits", "")
    yield (
        f"- For one tokenizer and windows of {manifest.target_len:,} tokens only; another needs "
        "another build."
    )
    if is_compressed(manifest):
        yield (
            f"- A row leaves out {1 - manifest.train_len / window:.0%} of its window: its text "
            "jumps between sentences, and reads well only inside a segment."
        )
        yield (
            "- What such rows are worth depends on the model and on what was kept: measure it, "
            "with `lrtrain eval`, beside the model that has only the new RoPE."
        )
    part = left_out(manifest)
    if part is not None:
        yield f"- {inert(part)} `left_out` in `manifest.json` names the files."
    if recipe.get("join") == "attend":
        yield (
            "- A document shorter than a window shares it with others, and they attend to each "
            "other."
        )
    if ledger.records_quarantined:
        read = ledger.records_read + ledger.records_filtered
        yield (
            f"- {ledger.records_quarantined:,} of {read:,} records could not be used and are left "
            "out."
        )
    if ledger.holdout_rows:
        yield (
            "- Held-out documents were chosen by where they stand in the corpus: a text that "
            "occurs in it twice may be on both sides."
        )
    yield (
        "- Texts are as the sources had them: nothing was filtered for quality, personal data or "
        "duplicates."
    )
    yield "- The licences of the sources hold for the rows; nobody has checked what was stated."
