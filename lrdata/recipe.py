"""Every option of a build, in one frozen dataclass."""

import math
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from lrdata import remote
from lrdata.errors import LongRecipeError
from lrdata.positions import SCHEMES
from lrdata.sizes import parse_count
from lrdata.typed_json import LONGEST_TEXT, fits

if TYPE_CHECKING:
    from lrdata.corpus import SourceFile

POSITIONS = tuple(SCHEMES)
SELECTS = ("draw", "top")
RANKED = ("returns", "lexicon", "scores")
"""Scorers of which more is better: what the mean score of a sentence says is of use."""
JOINS = ("attend", "mask")
TRAIN_SHARE = 0.30
"""The paper's share of the target length; the length is floored to a multiple of 16."""
FAR_SHARE = 1 / 32
"""Of the window: `returns` and its evidence begin so far back, 4,096 of 128k, LongPPL's K."""
SHORTEST_TARGET, SHORTEST_ROW = 64, 16

REPLAY_OPTIONS = ("replay", "replay_ratio", "prompt_field", "response_field", "chat_template")
"""Options that no extend row depends on."""

WRITTEN = {"weights": "weight", "licences": "license"}
"""How the command line calls options that it repeats, where that is not the recipe's name."""


@dataclass(frozen=True)
class BuildRecipe:
    """What is built. Two builds with equal recipes, corpora and versions give equal bytes."""

    corpora: tuple[str, ...]
    """Files, folders or globs."""
    tokenizer: str
    """A folder with tokenizer.json, or a hub id."""
    target_len: int
    """Tokens of a window: the context length that training simulates."""
    train_len: int = 0
    """Tokens of a row; 0 means 30 % of target_len (all of it for positions `full`)."""
    positions: str = "longrecipe"
    segment_tokens: int = 88
    """Aim for the length of a segment; 88 as in the paper."""
    impact: str = "returns"
    select: str = "auto"
    """Which sentences go first; auto is `top` for the scorers in RANKED, else `draw`."""
    evidence: int = -1
    """Keep sentences with impactful tokens together with what these may be copied from, so many
    tokens back or more; 0: do not; -1: as far back as `returns` looks, with that scorer alone."""
    join: str = "attend"
    """Whether documents joined into one window attend to each other."""
    replay: tuple[str, ...] = ()
    replay_ratio: float = 0.10
    """Replay tokens as a share of the extend tokens."""
    prompt_field: str | None = None
    response_field: str | None = None
    chat_template: bool = False
    holdout: float = 0.0
    """Share of documents that are held out, by a hash of the document's place."""
    max_rows: int | None = None
    min_doc_tokens: int = 1
    weights: Mapping[str, float] = field(default_factory=dict)
    """Per source: 2 uses each document twice, with new draws; 0.5 uses half of them."""
    licences: Mapping[str, str] = field(default_factory=dict)
    text_field: str = "text"
    id_field: str | None = None
    source_field: str | None = None
    eot: str | None = None
    encoder: Literal["auto", "fastokens", "tokenizers"] = "auto"
    """Which library encodes; auto takes fastokens where it proved equal to tokenizers."""
    seed: int = 0
    unit_bytes: int = 0
    """Aim for the size of a unit of work, 0 for one that fits the corpus; part of the recipe
    because windows end with units."""

    def __post_init__(self) -> None:
        if not self.train_len:
            length = _derived_train_len(self.target_len, self.positions)
            object.__setattr__(self, "train_len", length)
        if self.select == "auto":
            object.__setattr__(self, "select", _derived_select(self.impact))
        if self.evidence == -1:
            evidence = _derived_evidence(self.impact, self.positions, self.target_len)
            object.__setattr__(self, "evidence", evidence)
        self._refuse_unstorable()
        for name, value, known in (
            ("--positions", self.positions, POSITIONS),
            ("--select", self.select, SELECTS),
            ("--join", self.join, JOINS),
        ):
            if value not in known:
                raise LongRecipeError(
                    f"{name} {value} is unknown; choose one of {', '.join(known)}"
                )
        if not self.corpora:
            raise LongRecipeError("no corpus given; name a file, folder or glob")
        if self.target_len < SHORTEST_TARGET:
            raise LongRecipeError(
                f"--target-len {self.target_len} is too short; {SHORTEST_TARGET} is the least"
            )
        if self.positions == "full" and self.train_len != self.target_len:
            raise LongRecipeError(
                f"--positions full trains on whole windows: leave --train-len {self.train_len} out"
            )
        if self.train_len < SHORTEST_ROW:
            raise LongRecipeError(
                f"--train-len {self.train_len} is too short; {SHORTEST_ROW} is the least"
            )
        if self.positions != "full" and not self.train_len < self.target_len:
            raise LongRecipeError(
                f"--train-len {self.train_len} must be below --target-len {self.target_len} "
                "(use --positions full to train on whole windows)"
            )
        for name, number, least in (
            ("--segment-tokens", self.segment_tokens, 1),
            ("--min-doc-tokens", self.min_doc_tokens, 0),
            ("--evidence", self.evidence, 0),
            ("--max-rows", 1 if self.max_rows is None else self.max_rows, 1),
        ):
            if number < least:
                raise LongRecipeError(f"{name} {number} must be at least {least}")
        if self.evidence and (self.impact == "none" or self.positions == "full"):
            raise LongRecipeError(
                "--evidence needs sentences to choose from: leave it out with --impact none and "
                "--positions full"
            )
        for name, distance in (("--impact", _returns(self.impact)), ("--evidence", self.evidence)):
            if distance >= self.target_len:
                raise LongRecipeError(
                    f"{name}: {distance:,} tokens back is outside a window of {self.target_len:,}"
                )
        if not 0 <= self.holdout < 1:
            raise LongRecipeError(f"--holdout {self.holdout:.1%} must be below 100 %")
        if self.replay and not 0 < self.replay_ratio < math.inf:
            raise LongRecipeError(
                f"--replay with --replay-ratio {self.replay_ratio:g}: leave --replay out, or give "
                "a share"
            )
        if bool(self.prompt_field) != bool(self.response_field):
            raise LongRecipeError("--prompt-field and --response-field go together; give both")
        if self.chat_template and not self.prompt_field:
            raise LongRecipeError("--chat-template needs --prompt-field and --response-field")
        for source, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise LongRecipeError(f"--weight {source}={weight} must be a number from 0 on")

    def _refuse_unstorable(self) -> None:
        """What is built has to be read again, by the rules of `lrdata.typed_json`."""
        stored = self.portable()
        for option in fields(self):
            if not fits(stored[option.name], option.type):
                name = WRITTEN.get(option.name, option.name)
                raise LongRecipeError(
                    f"--{name.replace('_', '-')} does not fit a manifest, whose numbers have 64 "
                    f"bits and whose texts up to {LONGEST_TEXT:,} characters; choose another"
                )

    def refuse_unknown_sources(
        self, files: Iterable["SourceFile"], replay_files: Iterable["SourceFile"]
    ) -> None:
        """Raise LongRecipeError for a licence or a weight of a source that is not there: the one
        that was meant would go without."""
        for option, known in self._known_sources(files, replay_files).items():
            _refuse_unknown(option, getattr(self, option), known)

    def without_unknown_sources(
        self,
        options: Collection[str],
        files: Iterable["SourceFile"],
        replay_files: Iterable["SourceFile"],
    ) -> "BuildRecipe":
        """Without what `options`, of `weights` and `licences`, say of sources that are not there:
        for those that were stored with another corpus."""
        left: dict[str, Any] = {
            option: {name: said for name, said in getattr(self, option).items() if name in known}
            for option, known in self._known_sources(files, replay_files).items()
            if option in options
        }
        return replace(self, **left)

    def _known_sources(
        self, files: Iterable["SourceFile"], replay_files: Iterable["SourceFile"]
    ) -> dict[str, set[str]]:
        """The sources that options may name. By source_field records name sources of their own,
        whose weights are not checked."""
        there = {file.source for file in files}
        weighed = {"weights": there} if self.source_field is None else {}
        return {**weighed, "licences": there | {file.source for file in replay_files}}

    def portable(self) -> dict[str, Any]:
        """The recipe as JSON without the folders of this machine: what the manifest stores."""
        values = asdict(self)
        for name in ("corpora", "replay"):
            values[name] = [last_part(path) for path in values[name]]
        values["tokenizer"] = portable_name(self.tokenizer)
        kind, colon, value = self.impact.partition(":")
        values["impact"] = f"{kind}{colon}{PurePath(value).name}"
        values["weights"] = dict(self.weights)
        values["licences"] = dict(self.licences)
        return values


def _refuse_unknown(option: str, given: Mapping[str, object], known: Collection[str]) -> None:
    written = f"--{WRITTEN[option]}"
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    for name in sorted(given.keys() - known):
        raise LongRecipeError(
            f"{written} {name}={given[name]}: there is no source {name}; name one of "
            f"{', '.join(sorted(known)[:8])}{more}"
        )


def _derived_train_len(target_len: int, positions: str) -> int:
    return target_len if positions == "full" else int(target_len * TRAIN_SHARE) // 16 * 16


def _derived_select(impact: str) -> str:
    return "top" if impact.startswith(RANKED) else "draw"


def _derived_evidence(impact: str, positions: str, target_len: int) -> int:
    if impact.partition(":")[0] != "returns" or positions == "full":
        return 0
    return _returns(impact) or int(target_len * FAR_SHARE)


def without_derived(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as manifests store it, without what a BuildRecipe derives from the rest of it: with
    another window or scorer it is derived anew. What is no recipe is left as it is."""
    left = dict(stored)
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        if left["train_len"] == _derived_train_len(left["target_len"], left["positions"]):
            del left["train_len"]
    with suppress(KeyError, AttributeError):
        if left["select"] == _derived_select(left["impact"]):
            del left["select"]
    with suppress(KeyError, AttributeError, TypeError, ValueError, OverflowError):
        of = (left["impact"], left["positions"], left["target_len"])
        if left["evidence"] == _derived_evidence(*of):
            del left["evidence"]
    return left


def _returns(impact: str) -> int:
    """The distance of `returns:4k`; 0 for other scorers, and for what is no number."""
    kind, _, value = impact.partition(":")
    with suppress(LongRecipeError):
        return parse_count(value) if kind == "returns" and value else 0
    return 0


def portable_name(tokenizer: str) -> str:
    """A hub id as it is; of a path only its last part."""
    path = PurePath(tokenizer)
    looks_local = path.is_absolute() or tokenizer.startswith((".", "~")) or len(path.parts) != 2
    return path.name if looks_local else tokenizer


def last_part(path: str) -> str:
    """`/data/books/*.jsonl` -> `books/*.jsonl`, `/data/books` -> `books`. As in `lrdata.corpus`, a
    path that is there is no glob, whatever characters it has."""
    if remote.is_remote(path):
        return remote.last_part(path)
    if os.path.lexists(os.path.expanduser(path)):
        return PurePath(os.path.abspath(os.path.expanduser(path))).name  # of `.`, too
    if leads_elsewhere(path):
        path = os.path.abspath(os.path.expanduser(path))
    parts = PurePath(path).parts
    magic = [index for index, part in enumerate(parts) if any(char in part for char in "*?[")]
    first = magic[0] - 1 if magic else len(parts) - 1
    return "/".join(filter(None, (part.strip("/") for part in parts[max(first, 0) :])))


def leads_elsewhere(name: str) -> bool:
    """Whether what a stored recipe names, which may be a stranger's, is not in the folder that it
    is looked for in: it is an address, or a path that climbs or begins elsewhere."""
    path = PurePath(name)
    climbs = path.is_absolute() or name.startswith("~") or ".." in path.parts
    return climbs or "://" in name


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """`name: a, not b` for each option in which two portable recipes differ."""
    names = sorted(set(one) | set(other))
    return [
        f"{name}: {one.get(name)!r}, not {other.get(name)!r}"
        for name in names
        if one.get(name) != other.get(name)
    ]
