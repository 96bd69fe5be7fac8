"""Texts of the small proof: real prose and sources, and codes restated at any distance.

A *record* is a document of some 2,300 tokens: sentences of Python's documentation, and codes of
twelve symbols of which each stands there twice. How far apart, in lines, is drawn so that its
logarithm is uniform, from one line to the whole document: as things are restated in real text,
mostly near and sometimes far. So rows that are a contiguous piece of a document can learn to look
back too, and rows of selected sentences are not the only ones that hold both mentions.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrdata.draws import Draws
from lrtrain.demo.corpus import (
    ANSWER,
    CUE,
    SYMBOLS,
    draw_codes,
    read_library,
    short_documents,
    write_jsonl,
)
from lrtrain.demo.tokenizer import train_tokenizer
from lrtrain.evaluation import NeedleTemplate

CODES = NeedleTemplate(
    needle="Code:{name}{value}.",
    question="Code:{name}",
    answer="{value}",
    name_alphabet=SYMBOLS,
    name_length=CUE,
    value_alphabet=SYMBOLS,
    value_length=ANSWER,
)
"""A code as a needle: its first symbols are asked with, the others are the answer."""

_LINES = (12, 45)
_LINES_PER_CODE = 3.5
_LIBRARY_BYTES = 6_000_000


def record(draws: Draws, prose: Sequence[str]) -> str:
    """A document of 12 to 44 sentences and a code, twice, for each 3.5 of them."""
    lines = _LINES[0] + int(draws.stream("lines").below(_LINES[1] - _LINES[0], 1)[0])
    codes = draw_codes(draws.stream("codes"), int(lines / _LINES_PER_CODE))
    text = [prose[index] for index in draws.stream("prose").below(len(prose), lines).tolist()]
    distances = log_uniform(draws, lines, len(codes))
    firsts = draws.stream("firsts").below(np.maximum(lines + 1 - distances, 1))
    places = np.concatenate([firsts, np.minimum(firsts + distances, lines)])
    for which in np.argsort(-places, kind="stable").tolist():  # from the end: places stay right
        text.insert(int(places[which]), codes[which % len(codes)])
    return "\n".join(text) + "\n"


def log_uniform(draws: Draws, most: int, count: int) -> np.ndarray:
    """Integers of [1, most], int64 [count]: floor(exp(u log(most + 1))), u uniform in [0, 1)."""
    uniform = (draws.stream("distances").words(count) >> np.uint64(11)) * 2.0**-53
    return np.minimum(np.exp(uniform * np.log(most + 1)).astype(np.int64), most)


def write_corpus(folder: Path, tokenizer: Path, seed: int, window: int, records: int) -> list[str]:
    """Corpus files and the tokenizer of a seed; returns the texts that its base model learns from.

    records.jsonl and python.jsonl are trained on; other records (needles.jsonl) are the haystack
    and other sources (text.jsonl) the text of the evaluation; pretraining.jsonl is replayed.
    """
    library = read_library(_LIBRARY_BYTES)
    written = [record(Draws(seed, "record", number), library.prose) for number in range(records)]
    unseen = [record(Draws(seed, "unseen", number), library.prose) for number in range(150)]
    write_jsonl(folder / "records.jsonl", written)
    write_jsonl(folder / "python.jsonl", library.sources)
    write_jsonl(folder / "needles.jsonl", unseen)
    write_jsonl(folder / "text.jsonl", library.heldout)
    replay = short_documents(Draws(seed, "replay"), library, 3000)
    write_jsonl(folder / "pretraining.jsonl", replay)
    train_tokenizer([*library.sources[::4], *library.prose, *written[:20]], tokenizer, window)
    return [*library.sources, *library.prose]
