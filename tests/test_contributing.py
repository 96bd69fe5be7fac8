"""The guide's scorer and position scheme work as they stand there."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrdata.impact
import lrdata.impact.digits
import lrdata.positions
import lrdata.survival
from lrdata.building import build
from lrdata.dataset import open_dataset
from lrdata.draws import Draws
from lrdata.recipe import BuildRecipe
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import each_token
from tests.corpora import some_texts, write_jsonl

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def defined(name: str, home: Any) -> Any:
    """What a block of the guide defines, in a file with the imports of `home`."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if re.match(rf"(class|def) {name}\b", block))
    names = dict(vars(home))
    exec(block, names)
    return names[name]


def test_the_scorer_builds_and_is_judged(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capitals = defined("Capitals", lrdata.impact.digits)
    monkeypatch.setitem(lrdata.impact._OF_TOKENS, "capitals", capitals)
    corpus = write_jsonl(tmp_path / "a.jsonl", some_texts(20))
    recipe = BuildRecipe((str(corpus),), str(tiny_tokenizer), 512, impact="capitals")
    build(recipe, tmp_path / "shards", workers=1)
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    spelt = list(each_token(tokenizer.token_bytes))
    holds = [any(byte in range(65, 91) for byte in piece) for piece in spelt]
    row = open_dataset(tmp_path / "shards").read_row("extend", 0)
    assert row.impact_mask.any()
    assert all(holds[token] for token in row.input_ids[row.impact_mask].tolist())
    scorer = lrdata.impact.scorer_of_tokens("capitals", tokenizer)
    assert type(scorer) is capitals
    special = tokenizer.special.tolist()
    table = [one and not control for one, control in zip(holds, special, strict=True)]
    assert scorer._table.tolist() == table  # type: ignore[attr-defined]


def test_the_scheme_has_the_properties_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = defined("halves", lrdata.positions)
    for length, target in ((1, 1), (1, 50), (7, 50), (8, 50), (50, 50)):
        kept, stream = np.arange(length, dtype=np.int32), Draws(0).stream("positions")
        positions = halves(kept, np.array([length]), target, stream)
        assert positions.dtype == np.int32
        first = -(-length // 2)
        assert positions.tolist() == [*range(first), *range(target - length + first, target)]
        assert all(one < other for one, other in pairwise(positions.tolist()))


def test_every_name_of_the_guide_is_there() -> None:
    """Files, and what is in them."""
    text = GUIDE.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:lrdata|lrtrain|bench|tests)/[\w/.]*)`", text):
        assert (GUIDE.parent / path).exists() or "capitals" in path, path
    for name, path in re.findall(r"`(\w+)`\s\(`([\w/]+\.py)`\)", text):
        assert re.search(rf"\b{name}\b", (GUIDE.parent / path).read_text(encoding="utf-8")), name
