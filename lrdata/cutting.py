"""Where a text may be cut without changing its token ids, and for which tokenizers that is certain.

`lrdata.long_text.last_cut` names two places: after the line end of `X\\nY` (X no white space, Y a
letter or number) and before the space of `X Y` (two letters). The ids of the two parts are those of
the whole if nothing in the tokenizer reaches across such a place:

- Its normalizer is none, or a Unicode normal form: neither a line end nor a space composes with a
  letter or number after it.
- Its pre-tokenizer scans from left to right with patterns that we have looked at, one alternative
  at a time: none matches a line end and a letter or number after it, none a letter and a space
  after it, and none looks at what is behind it. So a match ends at the cut, and the scan goes on as
  at the start of a text.
- Its model is a BPE that sees one match at a time, without dropout.
- No added token holds or swallows white space.
"""

import json
from typing import Any

import tokenizers

_ALTERNATIVES = frozenset(
    (
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
        # Words, with a sign or a space before them.
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r" ?\p{L}+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        # Numbers.
        r"\p{N}",
        r"\p{N}+",
        r"\p{N}{1,3}",
        r" ?\p{N}+",
        # Signs, and the line ends behind them.
        r" ?[^\s\p{L}\p{N}]+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        # White space. The look-ahead sees a letter, a number or the end: no white space.
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_FORMS = frozenset(("NFC", "NFD", "NFKC", "NFKD"))


def why_not_cut(reference: tokenizers.Tokenizer) -> str | None:
    """Why texts are encoded whole, in words; None where cutting them is certain to be harmless."""
    model = reference.model
    if type(model).__name__ != "BPE":
        return f"texts of a {type(model).__name__} tokenizer are not cut"
    if not all(map(_is_form, _steps(_state(reference.normalizer), "normalizers"))):
        return "the tokenizer's normalizer may reach across a cut"
    steps = _steps(_state(reference.pre_tokenizer), "pretokenizers")
    if not steps or not all(map(_is_local, steps)):
        return "the tokenizer's pre-tokenizer may reach across a cut"
    if not any(map(_scans, steps)):
        return "the tokenizer's pre-tokenizer does not end a token at every cut"
    for token in reference.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or any(char.isspace() for char in token.content):
            return f"the added token {token.content!r} may reach across a cut"
    return None


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _steps(state: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The parts of a sequence, or the one part there is."""
    if state is None:
        return []
    if state["type"] != "Sequence":
        return [state]
    return [step for inner in state[name] for step in _steps(inner, name)]


def _is_form(step: dict[str, Any]) -> bool:
    return step["type"] in _FORMS


def _is_local(step: dict[str, Any]) -> bool:
    """Whether a step of the pre-tokenizer has no match across a cut."""
    if step["type"] == "Split":
        pattern = step["pattern"].get("Regex")
        if pattern is None or step["behavior"] not in ("Isolated", "Removed") or step["invert"]:
            return False
        return all(map(_is_known, alternatives(pattern)))
    return step["type"] == "Digits" or (
        step["type"] == "ByteLevel" and not step["add_prefix_space"]
    )


def _is_known(alternative: str) -> bool:
    alternative = alternative.replace("\r", r"\r").replace("\n", r"\n")
    return alternative.removesuffix(_CONTRACTIONS) in _ALTERNATIVES


def _scans(step: dict[str, Any]) -> bool:
    """Whether a step ends a match at every cut: its pattern takes in words and white space."""
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    return step["type"] == "Split" and r"\s+" in alternatives(step["pattern"]["Regex"])


def alternatives(pattern: str) -> list[str]:
    """The top-level alternatives of a regular expression."""
    found, depth, bracket, escaped = [""], 0, False, False
    for char in pattern:
        if char == "|" and not (depth or bracket or escaped):
            found.append("")
            continue
        if not escaped:
            depth += not bracket and (char == "(") - (char == ")")
            bracket = (bracket or char == "[") and char != "]"
        escaped = char == "\\" and not escaped
        found[-1] += char
    return found
