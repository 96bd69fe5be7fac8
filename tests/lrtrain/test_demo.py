"""The demo's parts: documents that restate codes, a tokenizer of whole symbols, the base model."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lrdata.draws import Draws
from lrdata.tokenizer import Tokenizer
from lrtrain.demo import base, from_python
from lrtrain.demo.__main__ import main
from lrtrain.demo.base import (
    Phase,
    Pieces,
    copying,
    make_model,
    retrieving,
    sequence,
    train_base,
)
from lrtrain.demo.corpus import (
    ANSWER,
    CUE,
    SYMBOLS,
    Library,
    ledger,
    read_library,
    short_documents,
    write_jsonl,
)
from lrtrain.demo.tokenizer import train_tokenizer
from tests.conftest import generated_text
from tests.lrtrain.tiny_runs import save_tiny_model


@pytest.fixture(scope="module")
def library() -> Library:
    return read_library(600_000)


@pytest.fixture(scope="module")
def tokenizer(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "tokenizer"
    train_tokenizer(library.sources, folder, 256)
    return folder


@pytest.fixture(scope="module")
def pieces(library: Library, tokenizer: Path) -> Pieces:
    return Pieces.encode(Tokenizer.load(str(tokenizer)), library.sources)


def test_the_library_is_pythons_and_keeps_some_back(library: Library) -> None:
    assert library.sources
    known = {line.strip() for text in library.sources for line in text.split("\n")}
    for text in library.heldout:  # tables of encodings are copies of each other
        lines = {line.strip() for line in text.split("\n") if len(line.strip()) >= 40}
        assert sum(line in known for line in lines) <= len(lines) / 20
    assert len(library.heldout) > 1
    assert len(library.prose) > 100
    assert not any(re.search(r"\d", line) for line in library.prose)


def test_a_ledger_restates_in_its_second_half_what_it_planted_in_its_first(
    library: Library,
) -> None:
    text = ledger(Draws(3), library.prose, codes=7, lines=20)
    codes = re.findall(r"^Code:(?: [a-zA-Z0-9]){12}\.$", text, re.MULTILINE)
    assert len(codes) == 14
    assert set(codes[:7]) == set(codes[7:])
    assert len(set(codes)) == 7
    assert text == ledger(Draws(3), library.prose, codes=7, lines=20)
    assert text != ledger(Draws(4), library.prose, codes=7, lines=20)


def test_short_documents_are_short_and_of_every_kind(library: Library, tokenizer: Path) -> None:
    texts = list(short_documents(Draws(1), library, 60))
    assert len(texts) == 60
    assert sum("Code:" in text for text in texts) >= 20
    sizes = np.diff(Tokenizer.load(str(tokenizer)).encode(texts)[1])
    assert 20 < np.median(sizes) <= 256


def test_every_symbol_is_one_token(tokenizer: Path) -> None:
    sizes = np.diff(Tokenizer.load(str(tokenizer)).encode(SYMBOLS)[1])
    assert sizes.tolist() == [1] * 62


def test_what_is_learned_of_a_drill_can_be_known(pieces: Pieces) -> None:
    """Every learned token follows from the one before it, by what the sequence already showed."""
    draw = np.random.default_rng(0)
    for length in (32, 64, 128, 256):
        learned = 0
        for _ in range(20):
            ids, weights = sequence(draw, pieces, Phase(length, 1))
            assert np.isin(ids, pieces.symbols).all()
            pairs = list(itertools.pairwise(ids.tolist()))
            known = [
                pairs[at - 1] in pairs[: at - 1]
                for at in (np.flatnonzero(weights[1:]) + 1).tolist()
            ]
            assert known.count(False) <= 1  # a period's end meets its beginning for the first time
            learned += sum(known)
        assert learned > 100


def test_planted_codes_come_twice(pieces: Pieces) -> None:
    draw = np.random.default_rng(0)
    ids, weights = sequence(draw, pieces, Phase(256, 1, drills=0.0, planted=1.0))
    assert len(ids) == 256
    head = len(pieces.prefix)
    starts = [
        i
        for i in range(256 - head - CUE - ANSWER)
        if np.array_equal(ids[i : i + head], pieces.prefix)
        and np.isin(ids[i + head : i + head + CUE + ANSWER], pieces.symbols).all()
    ]
    codes = Counter(tuple(ids[i + head : i + head + CUE + ANSWER]) for i in starts)
    assert set(codes.values()) == {2}
    assert weights.sum() == len(codes) * (CUE + ANSWER - 1)
    assert np.isin(ids[weights > 0], pieces.symbols).all()


def test_probes_can_be_answered_from_what_they_hold(pieces: Pieces) -> None:
    rows, answers = copying(pieces, 128)
    assert (rows[:, -answers:] == rows[:, 128 - answers - 62 : 66]).all()
    rows, answers = retrieving(pieces, 256)
    for row in rows:
        ending = row[-len(pieces.prefix) - CUE - ANSWER :]
        windows = np.lib.stride_tricks.sliding_window_view(row, len(ending))
        assert (windows == ending).all(1).sum() == 2


def test_a_new_base_models_first_head_attends_to_the_token_before() -> None:
    model = make_model(512, 0)
    model.set_attn_implementation("eager")
    ids = torch.randint(512, (1, 64), generator=torch.Generator().manual_seed(0))
    (first, _) = model(ids, output_attentions=True).attentions
    before = first[0, 0].diagonal(-1)
    assert before.mean() > 0.5
    assert first[0, 1].diagonal(-1).mean() < 0.2  # the other heads are left to chance


def test_a_base_model_is_saved_as_a_plain_one(
    library: Library, tokenizer: Path, tmp_path: Path
) -> None:
    tokens = train_base(tokenizer, library.sources, tmp_path / "base", 0, [Phase(32, 3)])
    assert tokens == 3 * 4096
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["max_position_embeddings"] == 256
    assert (tmp_path / "base" / "tokenizer.json").exists()


def test_a_base_that_does_not_learn_begins_again_and_at_last_is_an_error(
    library: Library, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrdata.errors import LongRecipeError

    with pytest.raises(LongRecipeError, match="try another --seed"):
        train_base(tokenizer, library.sources, tmp_path / "b", 0, [Phase(32, 2, copied=0.99)])
    assert capsys.readouterr().err.count("another begins") == 3
    assert not (tmp_path / "b").exists()


def test_the_next_attempt_has_other_weights_and_is_the_one_that_is_saved(
    library: Library, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    train = base._train

    def fail_once(model, *rest):
        begun.append(model.lm_head.weight.detach().clone())
        return None if len(begun) == 1 else train(model, *rest)

    monkeypatch.setattr(base, "_train", fail_once)
    assert train_base(tokenizer, library.sources, tmp_path / "b", 0, [Phase(32, 3)]) == 3 * 4096
    assert len(begun) == 2
    assert not torch.equal(*begun)
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine.jsonl", ["years of work"])
    done = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_the_page_to_copy_from_runs(
    tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tiny_tokenizer, tmp_path / "base", window=64)
    corpus = tmp_path / "a.jsonl"
    write_jsonl(corpus, ["".join(generated_text(30, seed)) for seed in range(24)])
    from_python.main(str(corpus), str(model), str(tmp_path / "out"), target_len=512, steps=2)
    said = capsys.readouterr().out
    assert "row 0: 144 tokens span" in said
    assert said.count("nats a byte") == 4
    with pytest.raises(SystemExit, match="from_python demo/corpus"):
        from_python.run([])
