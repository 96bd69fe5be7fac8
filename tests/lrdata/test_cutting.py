"""Texts are cut only where the ids of the parts are those of the whole, for real tokenizers."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.cutting import alternatives, why_not_cut
from lrdata.long_text import last_cut
from lrdata.tokenizer import Tokenizer
from tests.fetch import fetch

REAL = ["llama3", "qwen", "deepseek", "mistral-tekken", "smollm2"]

# What lies near a cut, in many scripts: signs, white space, marks, numbers, added tokens.
PARTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        [
            "a",
            "I'm",
            "'s",
            "'S",
            "don't",
            "12345",
            "//",
            "/x",
            "...",
            "?!",
            "<think>",
            "<|im_end|>",
            "_",
            "--",
            "==",
        ]
    ),
    st.sampled_from(["\t", "\r\n", "\n\n", "\u00a0", "\u2028", "\u3000", "\u200d"]),
    st.sampled_from(
        ["\u0301", "\u0938\u094d", "\u1100\u1161", "\u0661", "\u4e2d", "\ufb01", "\u00bd"]
    ),
)
TEXTS = st.lists(
    st.tuples(PARTS, st.sampled_from(["\n", " ", "", "a\nb", "a b", ".\nA", "9\n9"])), max_size=14
).map(lambda pairs: "".join(part for pair in pairs for part in pair))


@cache
def load(name: str) -> Tokenizer:
    return Tokenizer.load(str(fetch(name)))


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_may_be_cut(name: str) -> None:
    assert load(name).why_whole is None


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=300)
@given(text=TEXTS)
def test_the_parts_have_the_ids_of_the_whole(name: str, text: str) -> None:
    tokenizer = load(name)
    whole = tokenizer.encode_reference([text])[0].tolist()
    cut = last_cut(text)
    while cut:
        ids, _ = tokenizer.encode_reference([text[:cut], text[cut:]])
        assert ids.tolist() == whole, (text[:cut], text[cut:])
        text, whole = text[:cut], tokenizer.encode_reference([text[:cut]])[0].tolist()
        cut = last_cut(text)


def made(tmp_path: Path, tiny: Path, **changes: object) -> tokenizers.Tokenizer:
    raw = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    raw.update(changes)
    return tokenizers.Tokenizer.from_str(json.dumps(raw))


def test_what_might_reach_across_a_cut_is_encoded_whole(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    def why(**changes: object) -> str:
        return why_not_cut(made(tmp_path, tiny_tokenizer, **changes)) or ""

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    prefixed = {**byte_level, "add_prefix_space": True, "use_regex": True}
    regex = {"type": "Split", "pattern": {"Regex": r"\p{L}+\s*|\s+"}, "behavior": "Isolated"}
    unknown = {"type": "Sequence", "pretokenizers": [{**regex, "invert": False}]}
    assert why() == ""
    assert "normalizer" in why(
        normalizer={"type": "Strip", "strip_left": True, "strip_right": True}
    )
    assert "pre-tokenizer may" in why(pre_tokenizer=prefixed)
    assert "pre-tokenizer may" in why(pre_tokenizer=unknown)
    assert "pre-tokenizer may" in why(pre_tokenizer=None)
    unsplit = {**byte_level, "use_regex": False}
    assert "does not end a token" in why(pre_tokenizer=unsplit)
    swallows = {"id": 1000, "content": "<x>", "special": False, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": True}
    assert "added token '<x>'" in why(added_tokens=[{**swallows, **flags}])
    assert "WordLevel" in (why_not_cut(tokenizers.Tokenizer(tokenizers.models.WordLevel())) or "")


def test_alternatives_are_split_at_the_top_level_only() -> None:
    assert alternatives(r"(?i:'s|'t)|[|)]+|a\|b|\s+(?!\S)") == [
        r"(?i:'s|'t)",
        r"[|)]+",
        r"a\|b",
        r"\s+(?!\S)",
    ]
    assert alternatives("") == [""]


def test_ids_are_those_of_the_reference_around_a_cut_too() -> None:
    text = "word one\nWord two " * 50
    tokenizer = load("llama3")
    np.testing.assert_array_equal(
        tokenizer.encode([text])[0], tokenizer.encode_reference([text])[0]
    )
