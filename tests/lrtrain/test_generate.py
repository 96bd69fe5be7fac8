"""Greedy generation is that of transformers, whatever the family, the batch and the chunks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import lrtrain.evaluation.generate
from lrtrain.evaluation.generate import generate
from lrtrain.evaluation.models import open_model
from lrtrain.model_spec import parse_models
from tests.conftest import BOS
from tests.lrtrain.tiny_models import FAMILIES, VOCABULARY, save_tiny

MOST = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny models in float64, where no rounding decides between two tokens."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for family in FAMILIES:
        path = save_tiny(family, folder / family)
        found[family] = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float64, attn_implementation="sdpa"
        ).eval()
    return found


def reference(model: Any, ids: torch.Tensor, most: int, stop: set[int]) -> list[np.ndarray]:
    """What transformers generates, each row up to its first stop token."""
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=sorted(stop) or None,
        pad_token_id=0,
    )[:, ids.shape[1] :]
    rows = []
    for row in found.tolist():
        end = next((at for at, token in enumerate(row) if token in stop), len(row))
        rows.append(np.array(row[:end], np.int64))
    return rows


def prompts(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_is_what_transformers_generates(models: dict[str, Any], family: str, batch: int) -> None:
    ids = prompts(batch, 20)
    found = generate(models[family], ids, MOST, set())
    assert [len(row) for row in found] == [MOST] * batch
    assert found[0].dtype == np.int64
    assert same(found, reference(models[family], ids, MOST, set()))
    assert len({tuple(row) for row in found}) == batch  # they depend on what was read


@settings(max_examples=40)
@given(data=st.data())
def test_rows_stop_at_their_own_times(models: dict[str, Any], data: st.DataObject) -> None:
    model = models[data.draw(st.sampled_from(sorted(FAMILIES)))]
    ids = prompts(data.draw(st.integers(1, 4)), 9, seed=data.draw(st.integers(0, 50)))
    whole = generate(model, ids, MOST, set())
    seen = sorted({int(token) for row in whole for token in row})
    stop = set(data.draw(st.lists(st.sampled_from(seen), max_size=3)))
    found = generate(model, ids, MOST, stop)
    assert same(found, reference(model, ids, MOST, stop))
    for row, all_of_it in zip(found, whole, strict=True):
        assert not stop & set(row.tolist())
        assert np.array_equal(row, all_of_it[: len(row)])
        assert len(row) == MOST or int(all_of_it[len(row)]) in stop


def test_a_batch_ends_with_its_last_row(models: dict[str, Any]) -> None:
    model, ids = models["llama"], prompts(4, 9)
    whole = generate(model, ids, MOST, set())
    firsts = {int(row[0]) for row in whole}
    calls = Counting(model)
    assert [len(row) for row in generate(calls, ids, MOST, firsts)] == [0] * 4
    assert calls.lengths == [9]


def test_a_row_is_what_it_is_alone(models: dict[str, Any]) -> None:
    ids = prompts(5, 17)
    for model in models.values():
        together = generate(model, ids, MOST, {3, 5, 7})
        alone = [generate(model, row[None], MOST, {3, 5, 7})[0] for row in ids]
        assert same(together, alone)


@pytest.mark.parametrize("chunk", [1, 7, 16, 33, 34])
def test_prompts_in_chunks_are_the_same(models: dict[str, Any], chunk: int) -> None:
    ids = prompts(3, 33)
    for model in models.values():
        found = generate(model, ids, MOST, set(), chunk=chunk)
        assert same(found, generate(model, ids, MOST, set()))


class Counting:
    """A model that remembers how many tokens and rows it was given.

    It has room for `most` of a row, and for `most_rows`.
    """

    def __init__(self, model: Any, most: int = 10**9, most_rows: int = 10**9) -> None:
        self.model, self.most, self.most_rows = model, most, most_rows
        self.config = model.config
        self.lengths, self.rows = list[int](), list[int]()

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int, **options: Any) -> Any:
        assert logits_to_keep == 1
        assert "attention_mask" not in options
        self.lengths.append(input_ids.shape[1])
        self.rows.append(len(input_ids))
        if input_ids.shape[1] > self.most or len(input_ids) > self.most_rows:
            raise torch.OutOfMemoryError("no room")
        return self.model(input_ids=input_ids, logits_to_keep=logits_to_keep, **options)


def test_a_prompt_is_read_at_once_and_each_token_once(models: dict[str, Any]) -> None:
    calls = Counting(models["qwen2"])
    generate(calls, prompts(2, 30), 5, set())
    assert calls.lengths == [30, 1, 1, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("read", [1, 20, 41, 79])
def test_prompts_are_read_a_few_at_a_time_and_answered_together(
    models: dict[str, Any], family: str, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lrtrain.evaluation.generate, "_READ_TOKENS", read)
    ids = prompts(5, 20)
    calls = Counting(models[family])
    found = generate(calls, ids, MOST, set(), chunk=15)
    assert same(found, reference(models[family], ids, MOST, set()))
    groups = {1: 5, 20: 5, 41: 3, 79: 2}[read]
    assert calls.lengths == [*[15, 5] * groups, *[1] * (MOST - 1)]


def test_where_memory_runs_out_fewer_prompts_are_answered_at_a_time(
    models: dict[str, Any],
) -> None:
    model, ids = models["llama"], prompts(5, 30)
    calls = Counting(model, most_rows=2)
    assert same(generate(calls, ids, MOST, set()), generate(model, ids, MOST, set()))
    assert calls.rows == [5, 3, *[2] * MOST, *[1] * MOST, *[2] * MOST]
    with pytest.raises(torch.OutOfMemoryError):
        generate(Counting(model, most_rows=2, most=10), ids, MOST, set())


def test_where_memory_runs_out_the_prompt_is_read_in_chunks(models: dict[str, Any]) -> None:
    model = models["llama"]
    ids = prompts(1, 1100)
    calls = Counting(model, most=300)
    found = generate(calls, ids, 3, set())
    assert same(found, generate(model, ids, 3, set()))
    assert calls.lengths == [1100, 550, *[275] * 4, 1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        generate(Counting(model, most=100), ids, 3, set())
    with pytest.raises(torch.OutOfMemoryError):
        generate(Counting(model, most=300), ids, 3, set(), chunk=512)


@pytest.mark.parametrize("chunk", [None, 7])
def test_layers_with_windows_that_slide(tmp_path: Path, chunk: int | None) -> None:
    """They keep transformers' own cache."""
    path = save_tiny("mistral", tmp_path, sliding_window=8)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation="sdpa"
    ).eval()
    ids = prompts(2, 20)
    found = generate(model, ids, MOST, set(), chunk=chunk)
    assert same(found, reference(model, ids, MOST, set()))
    model.config.sliding_window = None
    assert not same(found, reference(model, ids, MOST, set()))  # the window is felt


def test_with_a_model_as_evaluations_load_it(tmp_path: Path, tiny_bos_tokenizer: Path) -> None:
    folder = Path(save_tiny("qwen2", tmp_path / "model", vocab_size=1000))
    for file in tiny_bos_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (spec,) = parse_models([str(folder)])
    loaded = open_model(spec, dtype="float32", device="cpu").load()
    bos = loaded.tokenizer.encode_with_specials(BOS)
    ids = torch.from_numpy(np.concatenate([bos, loaded.tokenizer.encode(["the word of"])[0]]))
    found = generate(loaded.model, ids[None].long(), MOST, {loaded.tokenizer.eot_id})
    assert same(found, reference(loaded.model, ids[None].long(), MOST, {loaded.tokenizer.eot_id}))


@pytest.mark.parametrize(("shape", "most"), [((0, 3), 1), ((2, 0), 1), ((2, 3), 0)])
def test_nothing_to_generate_is_an_error(
    models: dict[str, Any], shape: tuple[int, int], most: int
) -> None:
    with pytest.raises(ValueError, match="nothing to generate"):
        generate(models["llama"], torch.zeros(shape, dtype=torch.int64), most, set())
