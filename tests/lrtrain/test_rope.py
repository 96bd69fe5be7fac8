"""The frequencies a model turns by are those its config promises, before and after saving."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lrdata.errors import LongRecipeError
from lrtrain.model import check_saved, load_model, save_config, save_model
from lrtrain.rope import (
    Rope,
    check_angles,
    check_inv_freq,
    expected_inv_freq,
    extended_theta,
    head_dim_of,
    parse_rope,
    set_rope,
)
from tests.lrtrain.tiny_models import (
    FAMILIES,
    THETA,
    VOCABULARY,
    WINDOW,
    save_tiny,
    tiny_config,
)

TARGET = 512


@pytest.mark.parametrize(
    ("theta", "original", "target", "paper"),
    [
        (500_000, 8_192, 81_920, 48.9e6),
        (500_000, 8_192, 131_072, 131.5e6),
        (1_000_000, 32_768, 131_072, 13.5e6),
    ],
)
def test_extended_theta_gives_the_papers_numbers(
    theta: float, original: int, target: int, paper: float
) -> None:
    assert extended_theta(theta, original, target, head_dim=128) == pytest.approx(paper, abs=5e4)


def test_extended_theta_without_an_extension_is_the_same_theta() -> None:
    assert extended_theta(500_000, 8_192, 8_192, 128) == pytest.approx(500_000)


@pytest.mark.parametrize(
    ("text", "rope"),
    [
        ("auto", Rope("auto")),
        (" yarn ", Rope("yarn")),
        ("none", Rope("none")),
        ("theta=8e6", Rope("theta", 8e6)),
        ("theta=131500000", Rope("theta", 131.5e6)),
        ("theta=1e4", Rope("theta", 1e4)),
    ],
)
def test_parse_rope(text: str, rope: Rope) -> None:
    assert parse_rope(text) == rope


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Auto",
        "theta",
        "theta=",
        "theta=big",
        "theta=0",
        "theta=-5",
        "theta=1",
        "theta=inf",
        "theta=nan",
        "yarn=4",
        "auto=1e6",
        "linear",
    ],
)
def test_parse_rope_refuses_anything_else_and_says_what_there_is(text: str) -> None:
    with pytest.raises(LongRecipeError, match="choose auto, theta=8e6, yarn or none"):
        parse_rope(text)


@given(
    rope=st.sampled_from([Rope("auto"), Rope("theta", 8e6), Rope("yarn"), Rope("none")]),
    theta=st.sampled_from([1e4, 5e5, 1e6]),
    original=st.sampled_from([256, 4_096, 8_192, 32_768]),
    factor=st.sampled_from([1.5, 2, 4, 10, 16, 40]),
    head_dim=st.sampled_from([8, 64, 96, 128, 256]),
)
def test_our_frequencies_are_those_of_transformers(
    rope: Rope, theta: float, original: int, factor: float, head_dim: int
) -> None:
    config = tiny_config(
        "llama",
        head_dim=head_dim,
        max_position_embeddings=original,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    set_rope(config, rope, int(original * factor))
    theirs = LlamaRotaryEmbedding(config)
    ours, scaling = expected_inv_freq(config)
    torch.testing.assert_close(ours, theirs.inv_freq, rtol=1e-5, atol=0)
    assert scaling == pytest.approx(theirs.attention_scaling)


def test_the_choices_differ() -> None:
    """The equality above would also hold if set_rope did nothing."""
    found = set()
    for rope in (Rope("auto"), Rope("theta", 8e6), Rope("yarn"), Rope("none")):
        config = tiny_config("llama", head_dim=64, max_position_embeddings=4_096)
        set_rope(config, rope, 16_384)
        assert config.max_position_embeddings == 16_384
        found.add(tuple(LlamaRotaryEmbedding(config).inv_freq.tolist()))
    assert len(found) == 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_other_frequencies_than_its_config_is_refused(
    folders: dict[str, str], family: str
) -> None:
    model = load_model(folders[family], dtype=torch.float32, rope=Rope("auto"), target_len=TARGET)
    check_inv_freq(model)
    rotary = model.model.rotary_emb
    right = rotary.inv_freq.clone()

    rotary.inv_freq[-1] *= 1.01
    with pytest.raises(LongRecipeError, match="not those of theta"):
        check_inv_freq(model)

    # What happens when a changed theta does not reach the model: it still turns by the old one.
    width = head_dim_of(model.config)
    rotary.inv_freq.copy_(THETA ** -(torch.arange(0, width, 2) / width))
    with pytest.raises(LongRecipeError, match="not those of theta"):
        check_inv_freq(model)

    rotary.inv_freq.copy_(right)
    rotary.attention_scaling = 1.1
    with pytest.raises(LongRecipeError, match="not those of theta"):
        check_inv_freq(model)

    rotary.attention_scaling = 1.0
    check_inv_freq(model)


def test_a_theta_changed_after_loading_is_refused(folders: dict[str, str]) -> None:
    """The trap: the config says the new theta, the model was made with the old one."""
    model = load_model(folders["llama"], dtype=torch.float32)
    set_rope(model.config, Rope("auto"), TARGET)
    with pytest.raises(LongRecipeError, match="not those of theta"):
        check_inv_freq(model)


def test_a_model_without_rotary_embedding_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    model.config = tiny_config("llama")
    with pytest.raises(LongRecipeError, match="no rotary embedding"):
        check_inv_freq(model)


def _promised(rope: Rope, head_dim: int) -> dict[str, Any]:
    """rope_parameters of a model extended from WINDOW to TARGET."""
    if rope.kind == "yarn":
        return {
            "rope_type": "yarn",
            "rope_theta": THETA,
            "factor": TARGET / WINDOW,
            "original_max_position_embeddings": WINDOW,
        }
    extended = extended_theta(THETA, WINDOW, TARGET, head_dim)
    thetas = {"auto": extended, "theta": rope.theta, "none": THETA}
    return {"rope_type": "default", "rope_theta": thetas[rope.kind]}


@pytest.mark.parametrize("rope", [Rope("auto"), Rope("theta", 8e6), Rope("yarn"), Rope("none")])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_reloaded_in_plain_transformers_it_is_the_same_model(
    folders: dict[str, str], family: str, rope: Rope, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = load_model(folders[family], dtype=torch.float32, rope=rope, target_len=TARGET)
    out = tmp_path / "saved"
    save_model(model, str(tiny_tokenizer), out, target_len=TARGET, card="# A card\n")

    config = AutoConfig.from_pretrained(out)
    promised = _promised(rope, 12 if family == "qwen3" else 8)
    assert {key: config.rope_parameters[key] for key in promised} == promised
    assert config.rope_parameters == model.config.rope_parameters
    assert config.max_position_embeddings == TARGET
    assert AutoTokenizer.from_pretrained(out).model_max_length == TARGET
    assert (out / "README.md").read_text(encoding="utf-8") == "# A card\n"
    assert "longrecipe" not in (out / "config.json").read_text(encoding="utf-8")

    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(
        plain.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=0, atol=0
    )
    ids = torch.randint(0, VOCABULARY, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(input_ids=ids, seq_lengths=[200], use_cache=False).logits
        theirs = plain(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_config_that_keeps_theta_in_the_old_place_is_understood(
    folders: dict[str, str], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Most models were saved by transformers 4: `rope_theta` at the top, `rope_scaling` null."""
    old = tmp_path / "old"
    old.mkdir()
    config = json.loads((Path(folders["llama"]) / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]
    config |= {"rope_theta": 500_000.0, "rope_scaling": None, "transformers_version": "4.40.0"}
    (old / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (old / "model.safetensors").symlink_to(Path(folders["llama"]) / "model.safetensors")

    model = load_model(str(old), dtype=torch.float32, rope=Rope("auto"), target_len=TARGET)
    save_model(model, str(tiny_tokenizer), tmp_path / "new", target_len=TARGET, card="")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    theta = extended_theta(500_000, WINDOW, TARGET, 8)
    expected = theta ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    torch.testing.assert_close(
        plain.model.rotary_emb.inv_freq.double(), expected, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("rope", [Rope("auto"), Rope("theta", 8e6), Rope("yarn"), Rope("none")])
def test_transformers_4_turns_a_saved_model_the_same(
    folders: dict[str, str], rope: Rope, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """It reads `rope_theta` and `rope_scaling`, and nothing of `rope_parameters`."""
    model = load_model(folders["llama"], dtype=torch.float32, rope=rope, target_len=TARGET)
    save_model(model, str(tiny_tokenizer), tmp_path / "saved", target_len=TARGET, card="")
    written = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    del written["rope_parameters"]
    assert written["rope_theta"] == _promised(rope, 8)["rope_theta"]
    old = AutoConfig.for_model(**written)
    assert old.rope_parameters == model.config.rope_parameters
    turns = LlamaRotaryEmbedding(old)
    torch.testing.assert_close(turns.inv_freq, model.model.rotary_emb.inv_freq, rtol=0, atol=0)
    assert turns.attention_scaling == model.model.rotary_emb.attention_scaling


def test_yarn_starts_from_the_window_that_the_model_has(
    folders: dict[str, str], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Not from another that its config names beside, which transformers takes when it loads."""
    base = Path(shutil.copytree(folders["llama"], tmp_path / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["original_max_position_embeddings"] = WINDOW // 2
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(str(base), dtype=torch.float32, rope=Rope("yarn"), target_len=TARGET)
    save_model(model, str(tiny_tokenizer), tmp_path / "new", target_len=TARGET, card="")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert plain.config.rope_parameters["original_max_position_embeddings"] == WINDOW
    torch.testing.assert_close(
        plain.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_parameters": None, "rope_theta": None}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}, "rope_parameters"),
        ({"max_position_embeddings": WINDOW}, "max_position_embeddings 64 where 512"),
    ],
    ids=["theta lost", "another theta", "another window"],
)
def test_a_saved_config_that_says_something_else_is_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """Though it agrees with itself."""
    config = tiny_config("llama")
    set_rope(config, Rope("auto"), TARGET)
    save_config(config, tmp_path)
    check_saved(tmp_path, config)
    path = tmp_path / "config.json"
    written = {**json.loads(path.read_text(encoding="utf-8")), **change}
    kept = {name: value for name, value in written.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(LongRecipeError, match=f"transformers reads {named}"):
        check_saved(tmp_path, config)


def test_a_folder_that_is_there_is_never_written_over(
    folders: dict[str, str], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = load_model(folders["llama"], dtype=torch.float32)
    with pytest.raises(LongRecipeError, match="exists"):
        save_model(model, str(tiny_tokenizer), tmp_path, target_len=None, card="")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def lost_theta(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if this transformers made every Llama with the theta it had before; undo() ends it."""
    monkeypatch.setattr(
        LlamaRotaryEmbedding,
        "compute_default_rope_parameters",
        staticmethod(lambda *_, **__: (THETA ** -(torch.arange(0, 8, 2) / 8), 1.0)),
    )
    return monkeypatch


def test_a_loaded_model_that_turns_differently_is_refused(
    folders: dict[str, str], lost_theta: pytest.MonkeyPatch
) -> None:
    extend: dict[str, Any] = {"dtype": torch.float32, "rope": Rope("auto"), "target_len": TARGET}
    with pytest.raises(LongRecipeError, match="not those of theta"):
        load_model(folders["llama"], **extend)
    lost_theta.undo()
    load_model(folders["llama"], **extend)


def test_a_device_that_rounds_positions_is_refused(
    folders: dict[str, str], positions_in_tf32: pytest.MonkeyPatch
) -> None:
    """Where the first is that it takes for another: frequencies alone are right."""
    extend: dict[str, Any] = {"dtype": torch.bfloat16, "rope": Rope("auto"), "target_len": TARGET}
    with pytest.raises(LongRecipeError, match=r"position 2,049 are off by 0\.\d+ on cpu: TF32"):
        load_model(folders["llama"], **extend)
    positions_in_tf32.undo()
    load_model(folders["llama"], **extend)


@pytest.mark.parametrize("rope", [Rope("auto"), Rope("yarn"), Rope("none")])
@pytest.mark.parametrize("target", [300, 4_096, 131_072, 2**20, 2**22])
def test_angles_in_fp32_are_right_for_any_window(rope: Rope, target: int) -> None:
    """Those of transformers; and none of them is once a sixteenth of a turn is missing."""
    config = tiny_config("llama", head_dim=128, max_position_embeddings=256)
    set_rope(config, rope, target)
    model = LlamaRotaryEmbedding(config)
    check_angles(model)
    real = model.forward
    model.forward = lambda x, position_ids: real(x, position_ids + 0.4)
    with pytest.raises(LongRecipeError, match="are off by"):
        check_angles(model)


def test_a_saved_model_that_turns_differently_leaves_no_folder(
    folders: dict[str, str],
    tiny_tokenizer: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = load_model(folders["llama"], dtype=torch.float32, rope=Rope("auto"), target_len=TARGET)
    request.getfixturevalue("lost_theta")
    with pytest.raises(LongRecipeError, match="not those of theta"):
        save_model(model, str(tiny_tokenizer), tmp_path / "saved", target_len=TARGET, card="")
    assert list(tmp_path.iterdir()) == []
