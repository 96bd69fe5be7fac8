"""Whole runs: every stage's folder, the metrics, memory that runs out."""

import gc
import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import read_manifest, write_manifest
from lrdata.shard_writer import writing_shard
from lrdata.shards import LSD_FIELD, SCHEMA, file_sha256
from lrtrain import attention, attention_backends, loop, stages
from lrtrain.cli import main
from lrtrain.distributed import ALONE, Ranks
from lrtrain.metrics import note, read_metrics
from lrtrain.model_files import SINGLE
from lrtrain.opening import Run
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import extended_theta
from lrtrain.stages import run
from lrtrain.weights import WEIGHTS
from tests.fetch import fetch
from tests.lrtrain.rank_threads import in_threads
from tests.lrtrain.tiny_runs import RECIPE, ROW, TARGET, WINDOW, build_shards, save_tiny_model


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def done(shards: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    run(shards, str(model), out, RECIPE, lambda _: None)
    return out


@pytest.fixture(scope="module")
def scored(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, of every kind, with a made-up lsd; a quarter of them was not measured."""
    folder = tmp_path_factory.mktemp("scored") / "shards"
    shutil.copytree(shards, folder)
    opened, manifest, draw = open_dataset(shards), read_manifest(folder), np.random.default_rng(0)
    firsts: dict[str, int] = {}
    for place, entry in enumerate(manifest.files):
        first = firsts.setdefault(entry.kind, 0)
        with writing_shard(folder / entry.path, SCHEMA.append(LSD_FIELD)) as shard:
            for index in range(first, first + entry.rows):
                row = opened.read_row(entry.kind, index)
                lsd = draw.normal(0, 2, len(row.input_ids)).astype(np.float16)
                lsd[: len(lsd) // 4] = np.nan
                shard.write(replace(row, lsd=lsd))
        firsts[entry.kind] += entry.rows
        manifest.files[place] = replace(
            entry,
            bytes=(folder / entry.path).stat().st_size,
            sha256=file_sha256(folder / entry.path),
            content_sha256=shard.content.hexdigest(),
        )
    manifest.ledger.scored = 1  # how many does not matter here
    write_manifest(folder, manifest)
    return folder


def test_every_stage_leaves_a_plain_model_with_the_new_window(done: Path, model: Path) -> None:
    theta = extended_theta(10_000.0, WINDOW, TARGET, 8)
    for name in ("extend", "anneal", "merged"):
        config = json.loads((done / name / "config.json").read_text())
        assert config["max_position_embeddings"] == TARGET
        assert config["rope_parameters"]["rope_theta"] == pytest.approx(theta)
        plain = AutoModelForCausalLM.from_pretrained(done / name)
        freq = plain.model.rotary_emb.inv_freq
        assert torch.allclose(freq, theta ** -(torch.arange(0, 8, 2) / 8), rtol=1e-5)
        assert AutoTokenizer.from_pretrained(done / name).model_max_length == TARGET
        assert "LongRecipe" in (done / name / "README.md").read_text()
        out = plain.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
        assert out.shape == (1, 7)
    files = {path.suffix for path in (done / "merged").iterdir()}
    assert not files & {".bin", ".pt", ".pkl"}


def test_metrics_have_a_line_a_step_and_the_picture_is_there(done: Path) -> None:
    lines = read_metrics(done / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("extend", n) for n in (1, 2, 3, 4)),
        *(("anneal", n) for n in (1, 2, 3)),
    ]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert lines[0]["tokens"] == 4 * ROW
    assert "holdout_loss" in lines[3]
    assert "holdout_loss" in lines[-1]
    assert (done / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_annealing_is_linear_to_zero_and_its_last_step_learns(done: Path) -> None:
    lines = read_metrics(done / "metrics.jsonl")
    assert [line["lr"] for line in lines[4:]] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_the_same_recipe_gives_the_same_losses(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    run(shards, str(model), tmp_path / "again", RECIPE, lambda _: None)
    old, new = (read_metrics(folder / "metrics.jsonl") for folder in (done, tmp_path / "again"))
    assert [line["loss"] for line in old] == [line["loss"] for line in new]
    for name in ("extend", "anneal", "merged"):
        file = Path(name) / "model.safetensors"
        assert (done / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_micro_batches_do_not_change_the_loss(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    joined = replace(RECIPE, micro_tokens=10_000, stages=("extend",), steps=4)
    run(shards, str(model), tmp_path / "joined", joined, lambda _: None)
    old, new = (read_metrics(folder / "metrics.jsonl") for folder in (done, tmp_path / "joined"))
    assert [line["loss"] for line in new] == pytest.approx(
        [line["loss"] for line in old[:4]], rel=1e-5
    )


def test_the_first_loss_is_torchs_own(shards: Path, model: Path, done: Path) -> None:
    """Step 1 again, with plain transformers, a dense mask and torch's cross-entropy."""
    logged = read_metrics(done / "metrics.jsonl")[0]["loss"]
    assert logged == pytest.approx(_first_loss(shards, model, "none"), rel=1e-5)


def _first_loss(shards: Path, model: Path, token_weights: str) -> float:
    opened = open_dataset(shards)
    first = set(_rows_of_the_first_step(opened))
    config = AutoModelForCausalLM.from_pretrained(model).config
    theta = extended_theta(10_000.0, WINDOW, TARGET, 8)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    plain = AutoModelForCausalLM.from_pretrained(model, config=config, attn_implementation="eager")
    total, weight = 0.0, 0.0
    for index in range(opened.rows("extend")):
        row = opened.read_row("extend", index)
        if row.sample_id not in first:
            continue
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        size = ids.shape[1]
        mask = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]
        positions = torch.from_numpy(row.position_ids.astype(np.int64))[None]
        with torch.no_grad():
            logits = plain(ids, attention_mask=mask, position_ids=positions).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        weights = torch.from_numpy(WEIGHTS[token_weights](row))[1:]
        total += float((losses * weights).sum())
        weight += float(weights.sum())
    return total / weight


def _rows_of_the_first_step(opened: object) -> list[str]:
    from lrtrain.loader import StepLoader

    loader = StepLoader(opened, "extend", 0, 4, 0)  # type: ignore[arg-type]
    return [name for batch in loader.step(0) for name in batch.rows]


def test_the_merge_is_the_mean_of_base_and_annealed(model: Path, done: Path) -> None:
    base, annealed, merged = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (model, done / "anneal", done / "merged")
    )
    for name, tensor in merged.items():
        mean = (base[name].double() + annealed[name].double()) / 2
        assert torch.allclose(tensor.double(), mean, atol=1e-7)
    assert any(not torch.equal(base[name], merged[name]) for name in merged)


def test_stages_can_come_one_by_one(shards: Path, model: Path, done: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "steps", list[str]()
    for stage in ("extend", "anneal", "merge"):
        run(shards, str(model), out, replace(RECIPE, stages=(stage,)), said.append)
    file = Path("merged", "model.safetensors")
    assert (out / file).read_bytes() == (done / file).read_bytes()
    before = (out / "metrics.jsonl").read_text()
    run(shards, str(model), out, RECIPE, said.append)  # nothing is done twice
    assert (out / "metrics.jsonl").read_text() == before
    assert any("done" in line for line in said)


def test_a_broken_stage_is_done_again(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half"
    shutil.copytree(done, out)
    for name in ("anneal", "merged"):
        shutil.rmtree(out / name)
    run(shards, str(model), out, RECIPE, lambda _: None)
    assert len(read_metrics(out / "metrics.jsonl")) == 7
    file = Path("merged", "model.safetensors")
    assert (out / file).read_bytes() == (done / file).read_bytes()


def test_without_replay_the_anneal_stage_is_left_out(
    tiny_tokenizer: Path, model: Path, tmp_path: Path
) -> None:
    shards = build_shards(tiny_tokenizer, tmp_path / "plain", replay=False)
    said = list[str]()
    made = run(shards, str(model), tmp_path / "run", replace(RECIPE, steps=1), said.append)
    assert [folder.name for folder in made] == ["extend", "merged"]
    assert any("no replay rows" in line for line in said)


def test_bf16_trains(shards: Path, model: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, dtype="bf16", steps=12, stages=("extend",), checkpointing=True)
    run(shards, str(model), tmp_path / "bf16", recipe, lambda _: None)
    losses = [line["loss"] for line in read_metrics(tmp_path / "bf16" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.2
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16" / "extend", dtype="auto")
    assert saved.dtype == torch.bfloat16


def test_attention_scale_changes_extend_rows_only(
    shards: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, attention_scale=0.5, lr=1e-12)
    run(shards, str(model), tmp_path / "scaled", recipe, lambda _: None)
    scaled = read_metrics(tmp_path / "scaled" / "metrics.jsonl")
    plain = replace(RECIPE, lr=1e-12)
    run(shards, str(model), tmp_path / "plain", plain, lambda _: None)
    unscaled = read_metrics(tmp_path / "plain" / "metrics.jsonl")
    assert scaled[0]["loss"] != unscaled[0]["loss"]
    assert scaled[3]["holdout_loss"] == pytest.approx(unscaled[3]["holdout_loss"], rel=1e-6)
    assert scaled[4]["loss"] == pytest.approx(unscaled[4]["loss"], rel=1e-6)


def test_attention_scale_auto_is_log_l_by_log_t(shards: Path, model: Path, tmp_path: Path) -> None:
    """And the card of the extended model says the number, for the extend stage alone."""
    opened = open_dataset(shards)
    scale = math.log(opened.train_len) / math.log(opened.target_len)
    recipe = replace(RECIPE, stages=("extend", "anneal"))
    losses = {}
    for choice in ("auto", scale, 1.0):
        out = tmp_path / str(choice)
        run(shards, str(model), out, replace(recipe, attention_scale=choice), lambda _: None)
        losses[choice] = [step["loss"] for step in read_metrics(out / "metrics.jsonl")]
    assert losses["auto"] == losses[scale] != losses[1.0]
    cards = [(tmp_path / "auto" / name / "README.md").read_text() for name in ("extend", "anneal")]
    assert f"| attention scale in training | {scale:.3g} |" in cards[0]
    assert "| attention scale in training | 1 |" in cards[1]


@pytest.mark.parametrize("token_weights", ["impact", "longce", "ukp"])
def test_token_weights_are_of_the_extend_stage_only(
    scored: Path, model: Path, tmp_path: Path, token_weights: str
) -> None:
    """Replay and holdout rows are measured as without them, though they have the columns too."""
    recipe = replace(RECIPE, lr=1e-12, anneal_lr=1e-12, stages=("extend", "anneal"))
    run(scored, str(model), tmp_path / "plain", recipe, lambda _: None)
    weighted = replace(recipe, token_weights=token_weights)
    run(scored, str(model), tmp_path / "weighted", weighted, lambda _: None)
    plain, other = (
        read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "weighted")
    )
    assert all(one["loss"] != two["loss"] for one, two in zip(plain[:4], other[:4], strict=True))
    assert other[0]["loss"] == pytest.approx(_first_loss(scored, model, token_weights), rel=1e-5)
    for one, two in zip(plain[4:], other[4:], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    for place in (3, -1):
        losses = plain[place]["holdout_loss"], other[place]["holdout_loss"]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    cards = [(tmp_path / "weighted" / s / "README.md").read_text() for s in ("extend", "anneal")]
    assert f"| token weights | {token_weights} |" in cards[0]
    assert "| token weights | none |" in cards[1]


def test_the_command_trains_with_longce(
    scored: Path, model: Path, done: Path, tmp_path: Path
) -> None:
    """Every stage, with the rows, order and rates of `done`: only the losses are others."""
    out = tmp_path / "run"
    words = (
        *("run", scored, "--model", model, "--out", out, "--token-weights", "longce"),
        *("--steps", 4, "--anneal-steps", 3, "--rows-per-step", 4, "--lr", 3e-3),
        *("--anneal-lr", 1e-3, "--dtype", "fp32", "--device", "cpu"),
    )
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    plain, weighted = (read_metrics(folder / "metrics.jsonl") for folder in (done, out))
    assert [line["lr"] for line in plain] == [line["lr"] for line in weighted]
    assert all(a["loss"] != b["loss"] for a, b in zip(plain, weighted, strict=True))
    assert json.loads((out / "recipe.json").read_text())["token_weights"] == "longce"
    file = Path("merged", "model.safetensors")
    assert (done / file).read_bytes() != (out / file).read_bytes()


def test_a_loss_that_is_not_finite_names_the_rows(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    plain = AutoModelForCausalLM.from_pretrained(model)
    plain.lm_head.weight.data[5] = float("nan")
    shutil.copytree(model, broken)
    plain.save_pretrained(broken)
    with pytest.raises(LongRecipeError, match="not finite; the rows"):
        run(shards, str(broken), tmp_path / "run", RECIPE, lambda _: None)
    assert not (tmp_path / "run" / "extend").exists()


@pytest.mark.slow
def test_smollm2_goes_through_every_stage(tmp_path: Path) -> None:
    """The real SmolLM2-135M: 8k to 16k, two optimizer steps of each stage on short rows."""
    base = fetch("smollm2")
    target = 16_384
    shards = tmp_path / "shards"
    _build_smollm2_shards(base, shards, target)
    recipe = TrainRecipe(
        steps=2, anneal_steps=2, rows_per_step=1, dtype="fp32", lr=1e-5, device="cpu"
    )
    run(shards, str(base), tmp_path / "run", recipe, lambda _: None)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["stage"] for line in lines] == ["extend", "extend", "anneal", "anneal"]
    assert all(line["loss"] < 5 for line in lines)  # it reads English, at a theta new to it
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    theta = extended_theta(100_000.0, 8192, target, 64)
    expected = theta ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    assert torch.allclose(merged.model.rotary_emb.inv_freq.double(), expected, rtol=1e-5)
    assert merged.config.max_position_embeddings == target
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "merged")
    assert tokenizer.model_max_length == target
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = merged.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def _build_smollm2_shards(base: Path, out: Path, target: int) -> None:
    from pydoc_data.topics import topics

    from lrdata.building import build
    from lrdata.recipe import BuildRecipe

    corpus = out.with_name("corpus")
    corpus.mkdir()
    text = "\n\n".join(topics[name] for name in sorted(topics))
    lines = [json.dumps({"text": part}) + "\n" for part in (text[:200_000], text[200_000:400_000])]
    (corpus / "docs.jsonl").write_text("".join(lines), encoding="utf-8")
    answers = [
        {"prompt": f"What is {a} plus {b}?", "response": f"{a} plus {b} is {a + b}."}
        for a in range(6)
        for b in range(6)
    ]
    lines = [json.dumps(answer) + "\n" for answer in answers]
    (corpus / "chat.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = BuildRecipe(
        corpora=(str(corpus / "docs.jsonl"),),
        tokenizer=str(base),
        target_len=target,
        train_len=512,
        replay=(str(corpus / "chat.jsonl"),),
        replay_ratio=0.2,
        prompt_field="prompt",
        response_field="response",
        chat_template=True,
    )
    build(recipe, out, workers=1)


@pytest.mark.parametrize(
    ("home", "name"), [(stages, "load_model"), (loop, "AdamW"), (loop, "accumulate")]
)
def test_too_little_memory_says_where_help_is(
    home: Any, name: str, shards: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the model, what the optimizer keeps, or a step."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nand more")

    monkeypatch.setattr(home, name, full)
    with pytest.raises(LongRecipeError, match="extend: cpu ran out of memory; `lrtrain plan` says"):
        run(shards, str(model), tmp_path / "run", TrainRecipe(device="cpu"), lambda _: None)


def test_a_holdout_window_without_room_costs_no_training(
    shards: Path, model: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole, where rows are shorter, and is measured when hours of training are behind it."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(loop, "batch_loss", full)
        run(shards, str(model), out, RECIPE, lambda _: None)
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (out, done))
    assert [line["loss"] for line in lines] == [line["loss"] for line in others]
    assert [line.get("holdout_loss", 0) for line in lines] == [0, 0, 0, None, 0, 0, None]
    assert note(lines[3]).endswith("no room for holdout windows")
    assert "holdout" not in note(others[3])
    for name in ("extend", "anneal", "merged"):
        weights = (folder / name / SINGLE for folder in (out, done))
        assert len({path.read_bytes() for path in weights}) == 1
    said = list[str]()
    run(shards, str(model), out, replace(RECIPE, holdout_rows=0, holdout_every=1), said.append)
    assert f"extend: {out / 'extend'} is there; done" in said


def test_no_holdout_window_is_measured_where_none_is_asked_for(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=1, stages=("extend",), holdout_rows=0)
    run(shards, str(model), tmp_path / "run", recipe, lambda _: None)
    assert "holdout_loss" not in read_metrics(tmp_path / "run" / "metrics.jsonl")[0]


@pytest.mark.parametrize("offload", [(), ("activations",)])
def test_a_stages_model_is_gone_before_the_next_is_loaded(
    shards: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offload: tuple[str, ...],
) -> None:
    """It refers to itself where its layers were changed, and a card has no room for two."""
    real, seen = stages.load_model, list[weakref.ref[Any]]()

    def watched(*args: Any, **options: Any) -> Any:
        assert not any(one() is not None for one in seen), "the model before is still there"
        loaded = real(*args, **options)
        seen.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(stages, "load_model", watched)
    recipe = TrainRecipe(
        steps=1, anneal_steps=1, mlp_tokens=32, checkpointing=True, offload=offload, device="cpu"
    )
    gc.collect()
    gc.disable()
    try:
        run(shards, str(model), tmp_path / "run", recipe, lambda _: None)
    finally:
        gc.enable()
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["varlen", "auto"])
def test_every_rank_takes_the_backend_of_gpus_that_the_first_has_chosen(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs on no CPU: so it is chosen for the device, on each of them, and alone."""
    for backend in ("varlen", "flash3"):
        monkeypatch.setitem(attention_backends._LOADERS, backend, lambda: attention_backends.sdpa)
    monkeypatch.setattr(attention, "fastest", lambda *_: ("flash3", ["cudnn left out: old"]))
    attention_backends.load_backend.cache_clear()
    recipe, gpu = TrainRecipe(attention=name), torch.device("cuda")

    def chosen(ranks: Ranks) -> str:
        opened = Run(Path(), str(model), None, recipe, print, ranks, gpu)  # type: ignore[arg-type]
        return stages._attention(opened)

    expected = {"varlen": "varlen", "auto": "flash3 (cudnn left out: old)"}[name]
    assert in_threads(3, chosen) == [expected] * 3
    assert chosen(ALONE) == expected
    attention_backends.load_backend.cache_clear()


def test_a_row_in_pieces_is_for_no_backend_that_would_make_a_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_501)
    gpu = torch.device("cuda")
    assert attention.choose_backend("cudnn", None, gpu) == "cudnn"
    with pytest.raises(LongRecipeError, match="cannot take a row in pieces"):
        attention.choose_backend("cudnn", None, gpu, split=True)
    attention_backends.load_backend.cache_clear()
