"""One text for several tokenizers: the bytes of tokens, and the tokens of bytes."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import spell
from lrtrain.evaluation.spelling import (
    respell,
    spelled_as_is,
    texts_between_specials,
    token_spans,
)
from tests.conftest import generated_text
from tests.fetch import fetch

TEXTS = st.text(st.sampled_from("ab e.\n0éя的人😀\u0301") | st.sampled_from(list("theandof of")))


@cache
def loaded(folder: Path) -> Tokenizer:
    return Tokenizer.load(str(folder))


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 80), max_size=12),
)
def test_the_tokens_of_a_span_are_those_that_share_a_byte(
    sizes: list[int], cuts: list[int]
) -> None:
    edges = np.cumsum([0, *sizes])
    cuts = sorted(min(cut, int(edges[-1])) for cut in cuts)
    spans = [list(span) for span in zip(cuts[::2], cuts[1::2], strict=False) if span[0] < span[1]]
    found = token_spans(edges, np.array(spans, np.int64).reshape(-1, 2))
    assert found.dtype == np.int64
    for (start, stop), (first, last) in zip(spans, found.tolist(), strict=True):
        touching = [
            token
            for token in range(len(sizes))
            if max(start, edges[token]) < min(stop, edges[token + 1])
        ]
        assert (first, last - 1) == (touching[0], touching[-1])


@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(0, 3), st.integers(0, 3))
def test_another_tokenizer_reads_the_same_bytes(
    tiny_tokenizer: Path, tiny_bos_tokenizer: Path, texts: list[str], skip: int, drop: int
) -> None:
    """Documents with ends of text between them; the window may begin and end inside characters."""
    own, other = loaded(tiny_tokenizer), loaded(tiny_bos_tokenizer)
    ids = own.encode_documents(texts)[0][:-1]
    ids = np.asarray(ids[skip : max(skip, len(ids) - drop)])
    window = spelled_as_is(ids, own)
    assert len(window.edges) == len(ids) + 1
    assert window.edges[-1] == sum(
        len(spell(ids[at : at + 1], own.token_bytes)) for at in np.flatnonzero(~own.special[ids])
    )
    read = respell(window, own, other)
    assert read is not None
    assert read.ids.dtype == np.int32
    text = spell(ids[~own.special[ids]], own.token_bytes)
    start, stop = read.edges[0], read.edges[-1]
    assert spell(read.ids[~other.special[read.ids]], other.token_bytes) == text[start:stop]
    assert text[:start].decode(errors="ignore") == text[stop:].decode(errors="ignore") == ""
    assert np.array_equal(
        read.ids[other.special[read.ids]], [other.eot_id] * own.special[ids].sum()
    )
    for at, id_ in enumerate(read.ids.tolist()):
        token = b"" if other.special[id_] else spell(read.ids[at : at + 1], other.token_bytes)
        assert text[read.edges[at] : read.edges[at + 1]] == token


@given(st.lists(st.lists(st.integers(0, 999), max_size=6), min_size=1, max_size=6))
def test_texts_are_what_is_between_special_tokens(
    tiny_tokenizer: Path, texts: list[list[int]]
) -> None:
    """Empty ones too, wherever special tokens follow each other or are at an end."""
    own = loaded(tiny_tokenizer)
    texts = [[id_ for id_ in text if not own.special[id_]] for text in texts]
    joined = [id_ for text in texts for id_ in (own.eot_id, *text)][1:]
    read = spelled_as_is(np.array(joined, np.int32), own)
    found = list(texts_between_specials(read, own))
    spelled = [spell(np.array(text, np.int32), own.token_bytes) for text in texts]
    assert [text for _, text in found] == spelled
    assert [start for start, _ in found] == [
        len(b"".join(spelled[:at])) for at in range(len(texts))
    ]


@pytest.mark.parametrize("name", ["llama3", "qwen", "smollm2", "mistral-tekken"])
def test_real_tokenizers_read_the_same_bytes(tiny_tokenizer: Path, name: str) -> None:
    own, other = loaded(tiny_tokenizer), Tokenizer.load(str(fetch(name)))
    ids = own.encode_documents(["".join(generated_text(5, seed)) for seed in (1, 2)])[0][7:-9]
    window = spelled_as_is(np.asarray(ids), own)
    read = respell(window, own, other)
    assert read is not None
    whole = spell(read.ids[~other.special[read.ids]], other.token_bytes)
    assert whole in spell(ids[~own.special[ids]], own.token_bytes)
    assert len(whole) >= window.edges[-1] - 6
