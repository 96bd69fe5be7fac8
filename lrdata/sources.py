"""What goes into a build: its files and their hashes, the tokenizer, what `--impact` reads; and
what of it must be equal for two builds to be the same.
"""

import importlib.metadata
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrdata.corpus import SourceFile, find_files, source_hash
from lrdata.engines import Crew
from lrdata.errors import LongRecipeError
from lrdata.impact import impact_sha256
from lrdata.layout import refuse_own
from lrdata.manifest import LARGEST_MANIFEST, Manifest, SourceEntry, TokenizerEntry
from lrdata.progress import progress
from lrdata.recipe import REPLAY_OPTIONS, BuildRecipe, differences
from lrdata.stopwatch import Timing
from lrdata.unit import describe_tokenizer

_LIBRARIES = ("longrecipe", "numpy", "pyarrow", "tokenizers", "fastokens", "zstandard", "orjson")


@dataclass(frozen=True)
class Sources:
    """What goes into a build: its files, their manifest entries (of both, in this order), and the
    tokenizer."""

    files: list[SourceFile]
    replay_files: list[SourceFile]
    entries: list[SourceEntry]
    tokenizer: TokenizerEntry
    impact: str | None
    """sha256 of what `--impact` reads."""
    chat: str | None
    """sha256 of what the chat template of replay puts around a record."""

    @classmethod
    def open(
        cls,
        recipe: BuildRecipe,
        out: Path,
        crew: Crew,
        workers: int,
        timing: Timing,
        like: Manifest | None = None,
    ) -> "Sources":
        """Find the files, and hash them while the tokenizer is loaded: until that has failed.

        out: where the dataset will be, which must not be a source of its own.
        """
        # A unit has one thread to encode with; the other cores have units of their own.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        impact = impact_sha256(recipe.impact)
        files, replay_files = find_files(recipe.corpora), find_files(recipe.replay)
        _refuse_too_many([*files, *replay_files])
        refuse_own(out, (*recipe.corpora, *recipe.replay), [*files, *replay_files])
        if like is None:  # else they are what they were
            recipe.refuse_unknown_sources(files, replay_files)

        def tokenizer() -> tuple[TokenizerEntry, str | None]:
            began = time.perf_counter()
            described = crew.call(describe_tokenizer, recipe)
            timing.start = time.perf_counter() - began
            return described

        def check() -> None:
            if loading.done():
                loading.result()

        beside = ThreadPoolExecutor(1)
        try:
            loading = beside.submit(tokenizer)
            entries = _hash_sources(recipe, [*files, *replay_files], workers, check)
            entry, chat = loading.result()
        finally:  # whoever interrupts does not want to wait for a tokenizer
            beside.shutdown(wait=False)
        return cls(files, replay_files, entries, entry, impact, chat)

    def identity(self, recipe: BuildRecipe) -> dict[str, Any]:
        """What must be equal for a build to be the same."""
        options = recipe.portable()
        return _identity(options, self.tokenizer, self.entries, self.impact, self.chat)

    def identity_of(
        self, manifest: Manifest, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The same of a manifest, to compare with; `options` in place of its recipe."""
        return _identity(
            manifest.recipe if options is None else options,
            manifest.tokenizer,
            manifest.sources,
            manifest.impact_sha256,
            manifest.chat_sha256 or self.chat,  # an earlier version did not say
        )

    def refuse_unlike(self, like: Manifest) -> None:
        """Raise LongRecipeError, which names the first difference, unless a manifest is of the same
        texts, tokens and scores. Their names are their own."""
        here = _identity({}, self.tokenizer, self.entries, self.impact, self.chat)
        found = differences(here, self.identity_of(like, {}))
        if found:
            raise LongRecipeError(
                f"this is not what the dataset was built from ({found[0]}); name the same files, "
                "tokenizer and scores"
            )

    def identity_of_units(self, recipe: BuildRecipe) -> dict[str, Any]:
        """What must be equal for its units to be: they do not depend on replay, but may on
        versions, which a finished dataset only names."""
        options = recipe.portable()
        for option in REPLAY_OPTIONS:
            del options[option]
        entries = self.entries[: len(self.files)]
        identity = _identity(options, self.tokenizer, entries, self.impact, chat=None)
        return identity | {f"version of {name}": one for name, one in versions().items()}


def versions() -> dict[str, str]:
    """What the bytes of a shard depend on besides the recipe."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _refuse_too_many(files: Sequence[SourceFile]) -> None:
    """Before hours of work whose manifest could not be read again."""
    if sum(400 + len(file.name) for file in files) > LARGEST_MANIFEST:
        raise LongRecipeError(
            f"the corpus has {len(files):,} files, more than a manifest can name; join them: many "
            "records a file, as JSONL or Parquet"
        )


def _hash_sources(
    recipe: BuildRecipe, files: list[SourceFile], workers: int, check: Callable[[], object]
) -> list[SourceEntry]:
    """check: raises when there is no use for them any more."""
    ended = threading.Event()

    def check_all() -> None:
        check()
        if ended.is_set():
            raise CancelledError

    with progress("hashing the corpus", len(files)) as task, ThreadPoolExecutor(workers) as pool:
        try:
            entries = []
            digests = pool.map(lambda file: source_hash(file, check_all), files)
            for file, digest in zip(files, digests, strict=True):
                licence = recipe.licences.get(file.source)
                entries.append(SourceEntry(file.name, file.source, licence, file.size, digest))
                task.advance()
        finally:  # whoever interrupts does not want to wait for the rest of a large file
            ended.set()
    return entries


def _identity(
    options: dict[str, Any],
    tokenizer: TokenizerEntry,
    sources: list[SourceEntry],
    impact: str | None,
    chat: str | None,
) -> dict[str, Any]:
    """Without the licences, which may be stated later."""
    return {
        **{name: value for name, value in options.items() if name != "licences"},
        **tokenizer.identity(),
        "tokenizer's chat template": chat,
        "impact's sha256": impact,
        **_identity_of_sources(sources),
    }


def _identity_of_sources(sources: list[SourceEntry]) -> dict[str, str]:
    """A hash for each file. Names are unique in the corpora and in replay, which comes after them:
    of two files of one name the second is replay's."""
    found: dict[str, str] = {}
    for entry in sources:
        name = f"corpus file {entry.name}"
        found[f"replay's {name}" if name in found else name] = _shortened(entry.sha256)
    return found


def _shortened(digest: str) -> str:
    """Enough of a sha256; of a remote file's version, all."""
    return digest if ":" in digest else digest[:16]
