"""`lrtrain doctor`: a line for each check, whatever the others find."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import lrtrain.doctor
from lrtrain import attention, plan
from lrtrain.attention_backends import sdpa
from lrtrain.cli import main
from tests.lrtrain.tiny_runs import build_shards, save_tiny_model

CHECKS = [
    "shards",
    "tokenizer",
    "architecture",
    "weights",
    "memory",
    "RoPE after saving",
    "RoPE after loading",
    "attention crosses gaps",
    "attention stops at documents",
    "loss in chunks",
]


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


def doctor(shards: Path, model: Path, *options: str) -> Result:
    command = ["doctor", str(shards), "--model", str(model), "--device", "cpu", *options]
    return CliRunner().invoke(main, command)


def findings(result: Result) -> dict[str, tuple[bool, str]]:
    found = {}
    for line in result.stdout.splitlines():
        mark, _, rest = line.partition("  ")
        if mark.strip() in ("ok", "FAIL"):
            check, _, said = rest.strip().partition(": ")
            found[check] = (mark.strip() == "ok", said)
    return found


def test_the_run_that_was_checked_is_the_one_that_is_printed(shards: Path, model: Path) -> None:
    result = doctor(shards, model, "--checkpointing", "--mlp-tokens", "64", "--dtype", "fp32")
    assert result.exit_code == 0, result.output
    options = "--dtype fp32 --checkpointing --mlp-tokens 64 --device cpu"
    command = f"lrtrain run {shards} --model {model} --out RUN {options}"
    assert result.stdout.splitlines()[-1] == f"train with: {command}"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_is_well(shards: Path, model: Path, dtype: str) -> None:
    result = doctor(shards, model, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    found = findings(result)
    assert list(found) == CHECKS
    assert all(ok for ok, _ in found.values())
    assert "lrtrain run" in result.stdout


def test_memory_is_that_of_the_options_and_too_much_of_it_is_said(
    shards: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = findings(doctor(shards, model, "--dtype", "fp32"))["memory"]
    less = findings(doctor(shards, model, "--checkpointing", "--chunk-tokens", "64"))["memory"]
    assert said[0]
    assert less[0]
    assert said[1] != less[1]
    monkeypatch.setattr(plan, "_memory_here", lambda device: (1_000_000, None))
    found = findings(doctor(shards, model))
    assert [check for check, (ok, _) in found.items() if not ok] == ["memory"]
    assert "there are 1.0 MB; see which options help: lrtrain plan" in found["memory"][1]


def test_a_damaged_shard_does_not_hide_the_rest(shards: Path, model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    file = next((damaged / "extend").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = doctor(damaged, model)
    found = findings(result)
    assert result.exit_code == 1
    assert [check for check, (ok, _) in found.items() if not ok] == ["shards"]
    assert file.name in found["shards"][1]
    assert "lrdata verify" in found["shards"][1]
    assert list(found) == CHECKS


def test_another_tokenizer_and_too_wide_a_window(
    shards: Path, tiny_bos_tokenizer: Path, tmp_path: Path
) -> None:
    other = save_tiny_model(tiny_bos_tokenizer, tmp_path / "other", window=512)
    found = findings(doctor(shards, other))
    assert not found["tokenizer"][0]
    assert "--tokenizer" in found["tokenizer"][1]
    assert not found["architecture"][0]
    assert "512" in found["architecture"][1]
    assert list(found) == CHECKS[:3]


def test_what_is_no_dataset_is_one_failed_check(model: Path, tmp_path: Path) -> None:
    result = doctor(tmp_path, model)
    assert list(findings(result)) == ["shards"]
    assert result.exit_code == 1


def test_a_config_that_transformers_would_change_is_found(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(model, odd)
    config = json.loads((odd / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "linear"
    config["rope_parameters"]["factor"] = 2.0
    (odd / "config.json").write_text(json.dumps(config))
    found = findings(doctor(shards, odd))
    assert not found["architecture"][0]
    assert "already scaled" in found["architecture"][1]


def test_weights_that_are_not_there_and_ids_without_an_embedding(
    shards: Path, model: Path, tmp_path: Path
) -> None:
    lacking = Path(shutil.copytree(model, tmp_path / "lacking"))
    tensors = load_file(lacking / "model.safetensors")
    few = tensors["model.embed_tokens.weight"][:900].clone()
    del tensors["lm_head.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    found = findings(doctor(shards, lacking))
    assert [check for check, (ok, _) in found.items() if not ok] == ["weights"]
    assert "lm_head.weight is not there" in found["weights"][1]
    assert list(found) == CHECKS[:6]

    tensors |= {"model.embed_tokens.weight": few, "lm_head.weight": few.clone()}
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps({**config, "vocab_size": 900}))
    found = findings(doctor(shards, lacking))
    assert [check for check, (ok, _) in found.items() if not ok] == ["tokenizer"]
    assert "has 900 embeddings but its tokenizer" in found["tokenizer"][1]


def test_a_theta_that_does_not_come_back_is_found(
    shards: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(config: Any, folder: Path) -> None:
        config.save_pretrained(folder)
        path = folder / "config.json"
        written = json.loads(path.read_text())
        del written["rope_parameters"]
        path.write_text(json.dumps(written))

    monkeypatch.setattr(lrtrain.doctor, "save_config", lost)
    found = findings(doctor(shards, model))
    assert [check for check, (ok, _) in found.items() if not ok] == ["RoPE after saving"]


@pytest.mark.usefixtures("positions_in_tf32")
def test_a_device_that_rounds_positions_is_found(shards: Path, model: Path) -> None:
    result = doctor(shards, model)
    found = findings(result)
    assert result.exit_code == 1
    assert list(found) == CHECKS[: CHECKS.index("RoPE after loading") + 1]
    assert [check for check, (ok, _) in found.items() if not ok] == ["RoPE after loading"]
    assert "position 2,049 are off by" in found["RoPE after loading"][1]


def test_a_bitsandbytes_that_does_not_work_here_is_found(
    shards: Path, model: Path, no_native_library: None
) -> None:
    found = findings(doctor(shards, model, "--moments", "8bit"))
    assert [check for check, (ok, _) in found.items() if not ok] == ["memory"]
    assert "bitsandbytes does not work on cpu" in found["memory"][1]
    assert all(ok for ok, _ in findings(doctor(shards, model)).values()), "without it all is well"


def test_attention_that_is_wrong_fails_alone(
    shards: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(q: Any, k: Any, v: Any, seq_lengths: Any, scale: float) -> Any:
        return sdpa(q, k, v, [sum(seq_lengths)], scale)

    monkeypatch.setattr(attention, "load_backend", lambda name: blind)
    found = findings(doctor(shards, model))
    assert [check for check, (ok, _) in found.items() if not ok] == ["attention stops at documents"]
