"""`--config` equals the flags, and what a manifest stores is such a file."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from lrdata.building import build
from lrdata.cli import main
from lrdata.cli_config import defaults_of
from lrdata.cli_recipe import recipe_of, recipe_options
from lrdata.errors import LongRecipeError
from lrdata.manifest import read_manifest
from lrdata.recipe import BuildRecipe, leads_elsewhere, without_derived
from tests.corpora import content, some_texts, write_jsonl

TEXTS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="="), min_size=1
).filter(lambda text: not text.startswith("-"))
NAMES = TEXTS.filter(lambda text: not leads_elsewhere(text))
OPTIONS: dict[str, Any] = {
    "target_len": st.integers(1024, 1 << 20),
    "train_len": st.integers(16, 1023),
    "positions": st.sampled_from(["longrecipe", "pose", "randpos"]),
    "segment_tokens": st.integers(1, 500),
    "impact": st.sampled_from(["digits", "random", "returns:100"]),
    "select": st.sampled_from(["draw", "top"]),
    "join": st.sampled_from(["attend", "mask"]),
    "evidence": st.integers(0, 1000),
    "replay": st.lists(NAMES, max_size=2),
    "replay_ratio": st.floats(0.01, 1),
    "holdout": st.floats(0, 0.99),
    "max_rows": st.none() | st.integers(1, 10**6),
    "min_doc_tokens": st.integers(0, 100),
    "weights": st.dictionaries(TEXTS, st.floats(0, 9), max_size=2),
    "licences": st.dictionaries(TEXTS, TEXTS, max_size=2),
    "text_field": TEXTS,
    "eot": st.none() | TEXTS,
    "seed": st.integers(0, 10**9),
    "unit_bytes": st.integers(0, 10**9),
}


@click.command()
@recipe_options
@click.pass_context
def only_recipe(context: click.Context, **options: Any) -> None:
    context.obj.append(recipe_of(options))


def recipe_from(*words: str) -> BuildRecipe:
    got: list[BuildRecipe] = []
    done = CliRunner().invoke(only_recipe, list(words), obj=got)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return got[0]


@given(
    corpora=st.lists(NAMES, min_size=1, max_size=3),
    tokenizer=NAMES,
    more=st.fixed_dictionaries(OPTIONS),
)
def test_every_recipe_in_a_manifest_is_a_config(
    tmp_path_factory: pytest.TempPathFactory, corpora: list[str], tokenizer: str, more: Any
) -> None:
    more["replay"] = tuple(more["replay"])
    recipe = BuildRecipe(corpora=tuple(corpora), tokenizer=tokenizer, **more)
    path = tmp_path_factory.mktemp("config") / "manifest.json"
    stored = {
        **recipe.portable(),  # its paths without folders; here as they were given
        "corpora": list(corpora),
        "replay": list(recipe.replay),
        "tokenizer": tokenizer,
    }
    path.write_text(json.dumps({"format": "longrecipe", "recipe": stored}), encoding="utf-8")
    assert recipe_from("--config", str(path)) == recipe


def test_flags_come_first_and_a_retargeted_window_is_the_builds(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "corpora: [a, b]\ntokenizer: t\ntarget-len: 128k\nreplay-ratio: 20%\n"
        "replay: chat.jsonl\nchat_template: false\nlicense: {a: mit}\n"
    )
    recipe = recipe_from("--config", str(path))
    assert recipe.corpora == ("a", "b")
    assert recipe.target_len == 131072
    assert recipe.replay_ratio == 0.2
    assert recipe.replay == ("chat.jsonl",)
    assert recipe.licences == {"a": "mit"}
    recipe = recipe_from("c", "--target-len", "64k", "--config", str(path), "--seed", "3")
    assert (recipe.corpora, recipe.target_len, recipe.seed) == (("c",), 65536, 3)
    path.write_text(
        '{"recipe": {"corpora": ["a"], "tokenizer": "t", "target_len": 9000, '
        '"retargeted_from": 2048, "train_len": 512}}'
    )
    assert recipe_from("--config", str(path)).target_len == 2048


def test_what_a_recipe_derives_is_derived_anew_from_what_is_written(tmp_path: Path) -> None:
    """What it did not derive stays."""
    path = tmp_path / "manifest.json"

    def other(*words: str, **stored: Any) -> BuildRecipe:
        recipe = BuildRecipe(("a",), "t", target_len=8192, **stored)
        path.write_text(json.dumps({"recipe": recipe.portable()}))
        return recipe_from("--config", str(path), *words)

    wide = other("--impact", "returns", "--target-len", "16k")
    assert wide == BuildRecipe(("a",), "t", target_len=16384, impact="returns")
    assert (wide.select, wide.train_len) == ("top", 4912)
    assert other("--positions", "full").train_len == 8192
    assert other("--target-len", "16k", positions="full").train_len == 16384
    asked = other("--impact", "returns", "--target-len", "16k", train_len=4000, select="top")
    assert (asked.select, asked.train_len) == ("top", 4000)
    assert other("--impact", "digits", impact="returns", select="draw").select == "draw"
    assert (wide.evidence, other("--target-len", "16k", evidence=100).evidence) == (512, 100)
    assert other("--impact", "none").evidence == other("--positions", "full").evidence == 0
    assert other("--impact", "returns", impact="digits").evidence == 256


@pytest.mark.parametrize(
    "stored",
    [
        {"target_len": "8k", "positions": [], "impact": 3, "train_len": 2448, "select": "draw"},
        {"target_len": 10**400, "positions": "pose", "train_len": 1, "impact": None, "select": 1},
    ],
)
def test_what_is_no_recipe_stays_for_the_options_to_refuse(stored: dict[str, Any]) -> None:
    assert without_derived(stored) == stored


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("target_lem: 128k", "did you mean target-len?"),
        ("- a\n- b", "does not hold options"),
        ("3: 4", "does not hold options"),
        ("a: [1", "is not YAML or JSON"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML or JSON"),
        ("colour: red", "no option 'colour'"),
    ],
)
def test_what_is_no_config_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    done = CliRunner().invoke(main, ["build", "--config", str(path)])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("any.json", {"recipe": {"tokenizer": "t", "overwrite": True}}),
        ("any.json", {"recipe": {"tokenizer": "t"}, "format": "longrecipe", "overwrite": True}),
        ("manifest.json", {"tokenizer": "t", "overwrite": True}),
        ("recipe.json", {"tokenizer": "t", "overwrite": True}),
        ("any.json", {"tokenizer": "t", "overwrite": True, "shards": ["0" * 64]}),
    ],
)
def test_a_stranger_s_recipe_sets_no_more_than_a_recipe(
    tmp_path: Path, name: str, raw: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(json.dumps(raw))
    mine = tmp_path / "out" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("x")
    done = run("build", tmp_path, "--target-len", "1k", "--config", tmp_path / name, "--out", mine)
    assert done.exit_code == 1
    if "format" not in raw:  # beside a recipe it stands for nothing
        assert "'overwrite' is not of a recipe; write it on the command line" in done.stderr
    assert mine.read_text() == "x"


@pytest.mark.parametrize("name", ["any.json", "manifest.json"])
@pytest.mark.parametrize(
    "stored",
    [
        {"replay": ["~/.ssh/id_test"], "licences": {"id_test": "mit"}},
        {"replay": ["a", "/etc/passwd"]},
        {"corpora": ["../../secret"]},
        {"replay": ["https://host/track.jsonl"]},
        {"tokenizer": "/home/a/b"},
        {"impact": "lexicon:../x.parquet"},
    ],
)
def test_a_stranger_s_recipe_brings_no_file_of_mine_into_a_dataset(
    tmp_path: Path, name: str, stored: dict[str, Any]
) -> None:
    """Which might be pushed. What I write myself may be anywhere."""
    raw = {"corpora": ["a"], "tokenizer": "t", "target_len": 1024, **stored}
    (tmp_path / name).write_text(json.dumps({"recipe": raw} if name == "any.json" else raw))
    with pytest.raises(LongRecipeError, match="not in this folder; write it on the command line"):
        recipe_from("--config", str(tmp_path / name))
    (option,) = stored.keys() - {"licences"}
    mine = ["../mine"] if option == "corpora" else [f"--{option}", "../mine"]
    if option != "impact":
        recipe_from(*mine, "--config", str(tmp_path / name))
    (tmp_path / "mine.yaml").write_text(json.dumps(raw))
    assert recipe_from("--config", str(tmp_path / "mine.yaml")).target_len == 1024


def test_a_corpus_that_is_the_working_directory_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books").mkdir()
    monkeypatch.chdir(tmp_path / "books")
    monkeypatch.setenv("HOME", str(tmp_path / "books"))
    written = (".", "../books", "../*.jsonl", "~/*.jsonl", "/*.jsonl", "*.jsonl", "a/b*/c")
    names = BuildRecipe(written, "t", 1024).portable()["corpora"]
    here = tmp_path.name
    assert names == [
        *("books", "books", f"{here}/*.jsonl", "books/*.jsonl", "*.jsonl", "*.jsonl", "a/b*/c"),
    ]
    assert not any(map(leads_elsewhere, names))


def test_a_value_is_read_as_the_option_would_read_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("tokenizer: t\ntarget-len: long\ncorpora: a\nout: o\n")
    done = CliRunner().invoke(main, ["build", "--config", str(path)])
    assert done.exit_code == 2
    assert "'long' is not a size" in done.stderr


def test_lists_of_single_options_are_joined_by_commas() -> None:
    option = click.Option(["--offload"])
    assert defaults_of({"offload": ["optimizer", "activations"]}, [option], Path("r")) == {
        "offload": "optimizer,activations"
    }
    with pytest.raises(LongRecipeError, match="no option 'x'"):
        defaults_of({"x": 1}, [option], Path("r"))


def test_a_build_from_its_own_manifest_is_the_build(tmp_path: Path, tiny_tokenizer: Path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", some_texts(30))
    recipe = BuildRecipe((str(corpus),), str(tiny_tokenizer), 512, seed=4, holdout=0.1)
    build(recipe, tmp_path / "one", workers=1)
    stored = json.loads((tmp_path / "one" / "manifest.json").read_text())["recipe"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stored))
    for config in ("one/manifest.json", "recipe.yaml"):
        out = tmp_path / f"two-{config[0]}"
        done = run(
            *("build", corpus, "--config", tmp_path / config, "--tokenizer", tiny_tokenizer),
            *("--out", out, "--workers", 1),
        )
        assert done.exit_code == 0, done.output
        assert content(out) == content(tmp_path / "one")


@pytest.fixture(scope="module")
def of_others(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A dataset of the sources `a` and `b`, with weights and licences; its manifest."""
    folder = tmp_path_factory.mktemp("others")
    paths = [str(write_jsonl(folder / f"{name}.jsonl", some_texts(10))) for name in "ab"]
    stated = {"a": "mit", "b": "odbl"}
    weights = {"a": 2.0, "b": 1.0}
    recipe = BuildRecipe(tuple(paths), str(tiny_tokenizer), 512, weights=weights, licences=stated)
    build(recipe, folder / "shards", workers=1)
    return folder / "shards" / "manifest.json"


@pytest.mark.parametrize(("names", "kept"), [(["mine"], []), (["a", "mine"], ["a"])])
def test_a_manifest_says_nothing_of_sources_that_are_not_here(
    names: list[str], kept: list[str], of_others: Path, tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """Nobody typed them. What names a source of this corpus too stays."""
    corpora = [write_jsonl(tmp_path / f"{name}.jsonl", some_texts(10)) for name in names]
    words = [*corpora, "--config", of_others, "--tokenizer", tiny_tokenizer]
    planned = run("plan", *words)
    built = run("build", *words, "--out", tmp_path / "out", "--workers", 1)
    lost = ["a", "b"] if not kept else ["b"]
    for done in (planned, built):
        assert done.exit_code == 0, done.output
        said = [line for line in done.stderr.splitlines() if "left out of --config" in line]
        assert len(said) == 2 * len(lost)
        assert f"left out of --config: --license {lost[-1]}=odbl: there is no source" in said[-1]
    made = read_manifest(tmp_path / "out").recipe
    assert (sorted(made["licences"]), sorted(made["weights"])) == (kept, kept)


def test_what_a_person_wrote_of_an_unknown_source_is_refused(
    of_others: Path, tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """On the command line, beside a manifest too, or in a file."""
    (tmp_path / "mine.yaml").write_text("license: {a: mit}\n")
    corpus = write_jsonl(tmp_path / "mine.jsonl", some_texts(10))
    words = [corpus, "--tokenizer", tiny_tokenizer, "--out", tmp_path / "out", "--workers", 1]
    for more in (
        ["--config", of_others, "--license", "a=mit"],
        ["--config", tmp_path / "mine.yaml", "--target-len", 512],
    ):
        done = run("build", *words, *more)
        assert done.exit_code == 1
        assert "--license a=mit: there is no source a; name one of mine" in done.stderr
    done = run("build", *words, "--config", of_others, "--weight", "a=2")
    assert "--weight a=2.0: there is no source a" in done.stderr


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])
