"""`python bench/proof` runs to its end in a smoke test, and goes on from where it was."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.draws import Draws
from lrdata.positions import SCHEMES, longrecipe
from lrtrain.demo.corpus import CODE_PREFIX
from lrtrain.model import model_fingerprint

PROOF = Path(__file__).parents[2] / "bench" / "proof"


def module(name: str) -> ModuleType:
    """A file of the proof that imports none of its neighbours."""
    spec = importlib.util.spec_from_file_location(f"proof_{name}", PROOF / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look there for their own annotations
    spec.loader.exec_module(made)
    return made


def bench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, PROOF, *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})


@pytest.mark.slow
def test_the_small_proof_and_the_scale_run_to_their_end(tmp_path: Path) -> None:
    done = bench("small", "--out", tmp_path, "--smoke", "--seconds", 0)
    assert done.returncode == 0, done.stderr
    assert "cells of base models are left, base/0 is the next; run the same" in done.stderr
    done = bench("small", "--out", tmp_path, "--smoke")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "small.json").read_text())
    methods = ["full length", "LongRecipe, lexicon, scale"]
    for budget, rows in (("tokens", (3, 10)), ("rows", (3, 3))):
        for method, of_a_step, tokens in zip(methods, rows, (2048, 608), strict=True):
            runs = found["trained"][budget][method]
            assert list(runs) == ["0", "1"]
            assert {run["rows"] for run in runs.values()} == {of_a_step}
            assert {run["row_tokens"] for run in runs.values()} == {tokens}
            assert all(0 <= run["measured"]["retrieval 2048"] <= 1 for run in runs.values())
    losses = [
        run["loss"]
        for budget in found["trained"].values()
        for runs in budget.values()
        for run in runs.values()
    ]
    assert len(set(losses)) == len(losses), "no run stands in two tables"
    for title in ("### Equal tokens", "### Equal rows and steps", "### Anneal and merge"):
        assert title in done.stdout
    price = found["price"]["LongRecipe, lexicon, scale"]
    assert 0 < price["row_seconds"] < found["price"]["full length"]["row_seconds"]
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")}
    again = bench("small", "--out", tmp_path, "--smoke")
    assert again.stdout == done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())
    assert len(list((tmp_path / "cells").rglob("*.json"))) == len(cells)

    done = bench("scale", "--out", tmp_path, "--smoke")
    assert done.returncode == 0, done.stderr
    scales = {one["method"]: one["scale"] for one in json.loads(_text(tmp_path))["scales"]}
    law = math.log(192) / math.log(2048)
    assert scales["0.1, power 0"] == scales["full length"] == 1
    assert scales["0.1, power 2"] == pytest.approx(law**2, abs=1e-4)
    assert "| 10% | 1 |" in done.stdout

    other = tmp_path / "other"
    assert bench("cells", "scale", tmp_path / "kept.json", "--out", tmp_path).returncode == 0
    assert bench("cells", "", tmp_path / "kept.json", "--out", other, "--back").returncode == 0
    there = sorted((tmp_path / "cells" / "scale").rglob("*.json"))
    assert there
    for path in there:
        again = other / "cells" / "scale" / path.relative_to(tmp_path / "cells" / "scale")
        assert json.loads(again.read_text()) == json.loads(path.read_text())
        base = tmp_path / f"seed-{path.stem[-1]}" / "base"  # with another, this is not kept
        assert (
            f"fingerprint='{model_fingerprint(str(base))}'" in json.loads(path.read_text())["asked"]
        )

    done = bench("variants", "--out", tmp_path, "--smoke")
    assert done.returncode == 0, done.stderr
    assert "| heavy-tailed gaps |" in done.stdout


def _text(out: Path) -> str:
    return (out / "scale.json").read_text()


def test_cells_that_are_not_there_or_were_asked_otherwise_are_not_carried(tmp_path: Path) -> None:
    none = bench("cells", "16k", tmp_path / "a.json", "--out", tmp_path)
    assert none.returncode == 1
    assert "holds no cells" in none.stderr
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "cells/16384").mkdir(parents=True)
    here, carried = tmp_path / "cells/16384/base-0.json", tmp_path / "carried.json"
    here.write_text(json.dumps({"asked": "one", "found": {}, "made": {}}))
    other = {"asked": "another", "found": {}, "made": {}}
    carried.write_text(json.dumps({"16384/full-0": other, "16384/base-0": other}))
    back = bench("cells", "16384", carried, "--out", tmp_path, "--back")
    assert back.returncode == 1
    assert f"{here} was asked otherwise" in back.stderr
    assert [path.name for path in here.parent.iterdir()] == ["base-0.json"]


_WITH_A_PROCESS_AT_WORK = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
sys.path.insert(0, sys.argv[1])
from cells import Cell, Study

def work(pid):
    Path(pid).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    Study(Path(sys.argv[2]), 1).results("cells", {0: Cell("a", work, (sys.argv[3],))})
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_process_at_work_ends_with_the_one_that_is_stopped(
    tmp_path: Path, by: signal.Signals
) -> None:
    """Its run would be in the way of the same command, and takes hours."""
    script, pid = tmp_path / "study.py", tmp_path / "pid"
    script.write_text(_WITH_A_PROCESS_AT_WORK)
    study = subprocess.Popen([sys.executable, script, PROOF, tmp_path / "out", pid])
    until = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert study.poll() is None
    study.send_signal(by)
    study.wait(timeout=60)
    while Path(f"/proc/{pid.read_text()}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_what_the_real_proof_needs_travels_in_parts(tmp_path: Path) -> None:
    """Large files are cut, and come back byte for byte; a part that is damaged is named."""
    there = tmp_path / "there"
    large = np.random.default_rng(0).bytes(101 * 1024**2)
    files = {
        "smollm2-bf16/model.safetensors": large,
        "32768/seed-0/shards/a/manifest.json": b"{}",
        "32768/seed-0/shards/a/empty": b"",
        "smollm2-bf16/config.json": b"{}",
        "unseen.jsonl": b'{"text": "a"}\n',
        "texts.sha256": b"0123456789abcdef",
    }
    for name, content in files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    packed = bench("real", "pack", "--out", there)
    assert packed.returncode == 0, packed.stderr
    parts = list((there / "parts").iterdir())
    assert max(part.stat().st_size for part in parts) <= 60 * 10**6
    here = tmp_path / "here"
    here.mkdir()
    (there / "parts").rename(here / "parts")
    unpacked = bench("real", "unpack", "--out", here)
    assert unpacked.returncode == 0, unpacked.stderr
    assert all((here / name).read_bytes() == content for name, content in files.items())
    begun = bench("real", "run", "--out", here, "--plan", "32k", "--seconds", "0")
    assert begun.returncode == 0, begun.stderr
    assert "run the same command to go on" in begun.stderr
    (here / "parts" / "0000-0").write_bytes(b"damaged")
    again = bench("real", "unpack", "--out", here)
    assert again.returncode == 1
    assert "is not what was packed" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_real_proof_holds_out_some_of_both_kinds(tmp_path: Path) -> None:
    """As many of English as of code, and each document once, in turns."""
    for kind in ("english", "code"):
        texts = (f"a {kind} line of forty characters or more, number {n}" for n in range(200))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{kind}.jsonl").write_text(lines)
    script = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = [{str(PROOF)!r}, {str(PROOF.parents[1])!r}]
import real
out = Path({str(tmp_path)!r})
kinds = [SimpleNamespace(name=name, path=out / (name + ".jsonl")) for name in ("english", "code")]
real.default_corpora = lambda megabytes: kinds
real._write_corpus(out, 1)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    unseen = (tmp_path / "unseen.jsonl").read_text().splitlines()
    corpus = (tmp_path / "corpus.jsonl").read_text().splitlines()
    assert [("english" in one, "code" in one) for one in unseen] == [
        (True, False),
        (False, True),
    ] * 10
    assert len({*unseen, *corpus}) == len(unseen) + len(corpus) == 400


def test_the_real_proof_compares_models_sample_by_sample(tmp_path: Path) -> None:
    """Nats as a share of the other's, what is right as a difference; over all seeds."""

    def model(name: str, seed: int, right: float, nats: float) -> dict[str, Any]:
        samples = {
            "retrieval 16384": {"values": [right, 0.0, 1.0], "weights": [1.0] * 3},
            "nats/byte 16384": {"values": [nats, 3 * nats], "weights": [1.0, 3.0]},
        }
        measured = {"retrieval 16384": right, "nats/byte 16384": nats, "samples": samples}
        price = dict.fromkeys(("row_tokens", "rows", "flops", "flops_all_pairs", "seconds"), 1)
        return {"method": name, "seed": seed, "measured": measured, **price}

    trained = [
        *(model("LongRecipe, evidence, scale", seed, 1.0, 1.8) for seed in (0, 1)),
        *(model("LongRecipe, evidence", seed, 0.25, 2.0) for seed in (0, 1)),
    ]
    found: dict[str, Any] = {"target": 16_384, "budget": "equal tokens", "trained": trained}
    found["base"] = [model("new theta", seed, 0.25 - seed / 4, 2.0) for seed in (0, 1)]
    done = _real_tables(tmp_path / "real-16k.json", found)
    assert done.returncode == 0, done.stderr
    assert "| retrieval 16384 | 0.125 | 1.000 | 0.250 |" in done.stdout
    assert "| whole keys 16384 | 0.333 | 0.667 | 0.333 |" in done.stdout
    pair = next(line for line in done.stdout.split("\n") if line.startswith("| LongRecipe, evid"))
    _, one, other, retrieval, keys, text, _ = (cell.strip() for cell in pair.split("|"))
    assert (one, other) == ("LongRecipe, evidence, scale", "LongRecipe, evidence")
    assert keys.startswith("+0.333 (")
    assert keys.endswith(", 2 won, 0 lost")  # of three prompts in each of two seeds
    assert text == "0.9000 (0.9000 to 0.9000)"  # every window's nats are nine tenths of the other's
    mean, low, high = (float(word.strip("()")) for word in retrieval.replace(" to ", " ").split())
    assert mean == 0.25  # of a sample in three, 0.75
    assert 0 <= low < mean < high <= 0.75
    assert "| LongRecipe, evidence, scale | new theta |" in done.stdout
    assert "full length" not in done.stdout
    first = {**found, **{kind: found[kind][::2] for kind in ("base", "trained")}}
    asked = "(Setting(texts='de2f', rows_by='82c5'), 'new theta', Skills(texts='36c7'))"
    cells = {
        "16384/new-theta-0": {"found": first["base"][0]["measured"], "asked": asked},
        "16384/longrecipe-evidence-0": {"found": first["trained"][1], "asked": asked},
        "16384/longrecipe-evidence-scale-0": {"found": first["trained"][0], "asked": asked},
    }
    shown = [_real_tables(tmp_path / "some.json", some) for some in (first, cells)]
    assert [one.returncode for one in shown] == [0, 0], shown[-1].stderr
    assert shown[0].stdout == shown[1].stdout
    cells["16384/new-theta-0"]["asked"] = asked.replace("de2f", "0000")
    mixed = _real_tables(tmp_path / "mixed.json", cells)
    assert mixed.returncode == 1
    assert mixed.stderr.startswith("error: these cells are of several bases, texts or ways")


def _real_tables(path: Path, found: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    path.write_text(json.dumps(found))
    command = [sys.executable, PROOF / "real_tables.py", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@given(st.integers(0, 1000))
def test_a_record_has_each_code_twice(seed: int) -> None:
    prose = [f"Sentence number {number} says nothing." for number in range(50)]
    record = module("corpus").record(Draws(seed, "record"), prose)
    lines = record.splitlines()
    codes = Counter(line for line in lines if line.startswith(CODE_PREFIX))
    assert set(codes.values()) == {2}
    sentences = len(lines) - 2 * len(codes)
    assert 12 <= sentences < 45
    assert len(codes) == int(sentences / 3.5)


def test_codes_are_restated_mostly_near_and_sometimes_far() -> None:
    """Each octave of distances is as likely as another: P(d <= x) = log(x + 1) / log(most + 1)."""
    distances = module("corpus").log_uniform(Draws(0, "many"), 31, 20_000)
    assert distances.min() == 1
    assert distances.max() == 31
    for most, share in ((1, 0.2), (3, 0.4), (7, 0.6), (15, 0.8)):
        assert np.mean(distances <= most) == pytest.approx(share, abs=0.02)


def test_intervals_are_those_of_students_t() -> None:
    """The quantiles, by integrating the density; and an interval by hand."""
    intervals = module("intervals")
    at = np.linspace(-2000, 2000, 8_000_001)
    for freedom, quantile in enumerate(intervals._T, 1):
        density = (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
        inside = density[np.abs(at) <= quantile].sum() / density.sum()
        assert inside == pytest.approx(0.95, abs=5e-4), freedom
    found = intervals.over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert intervals.difference([3.0, 4.0], [1.0, 2.0]).half == 0
    assert math.isnan(intervals.share([1.0, 1.0], [0.0, 1.0]).mean)


def test_shares_of_means_are_those_of_a_bootstrap() -> None:
    """Of few counts, one of them 0; and over spans of text."""
    intervals = module("intervals")
    generator = np.random.default_rng(0)
    one, other = generator.poisson(30, 200).astype(float), generator.poisson(20, 200).astype(float)
    other[0] = 0
    picked = generator.integers(0, 200, (20_000, 200))
    drawn = one[picked].sum(1) / other[picked].sum(1)
    found = intervals.share_of_means(one[:11].tolist(), other[:11].tolist())
    assert found.mean == pytest.approx(one[:11].sum() / other[:11].sum())
    assert math.isfinite(found.half)
    assert intervals.share_of_means([2.0, 4.0], [1.0, 2.0]).half == pytest.approx(0)
    assert math.isnan(intervals.share_of_means([1.0, 1.0], [0.0, 0.0]).mean)
    assert intervals.over_spans(one, other) == pytest.approx(1.96 * drawn.std(), rel=0.05)


@given(
    peak=st.floats(-6, 6),
    slope=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)),
    more=st.integers(0, 8),
)
def test_the_search_climbs_to_the_best_rate_or_as_far_as_it_may(
    peak: float, slope: tuple[float, float], more: int
) -> None:
    rates = module("rates")

    def retrieved(rate: float) -> float:
        way = math.log2(rate / 1e-3) - peak
        return -slope[0] * way if way > 0 else slope[1] * way

    tried = {rate: retrieved(rate) for rate in (1e-3, 2e-3)}
    for _ in range(more):
        rate = rates.beyond(tried)
        if rate is None:
            break
        assert rate not in tried
        tried[rate] = retrieved(rate)
    best = rates.best_rate(tried)
    assert best == max(tried, key=lambda rate: tried[rate])
    all_of_them = [1e-3 * 2.0**step for step in range(-20, 21)]
    if rates.beyond(tried) is None:
        assert retrieved(best) == max(map(retrieved, all_of_them))
    else:  # it was stopped on its way up
        assert best in (min(tried), max(tried))
        assert len(tried) == 2 + more


def test_of_equal_rates_the_lower_is_taken() -> None:
    rates = module("rates")
    assert rates.best_rate({2e-3: 0.5, 1e-3: 0.5, 4e-3: 0.2}) == 1e-3
    assert rates.beyond({1e-3: 0.5, 2e-3: 0.5}) == 5e-4
    assert rates.beyond({1e-3: 0.1, 2e-3: 0.5, 4e-3: 0.2}) is None


@given(
    law=st.sampled_from(["heavy", "jump"]),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    unused=st.integers(0, 5000),
    seed=st.integers(0, 1000),
)
def test_other_laws_of_gaps_give_positions_within_the_window(
    law: str, lengths: list[int], unused: int, seed: int
) -> None:
    gaps, kept = module("gaps"), np.arange(sum(lengths), dtype=np.int32)
    target = len(kept) + unused
    with gaps.spread_by(law):
        scheme = SCHEMES["longrecipe"]
        found = scheme(kept, np.array(lengths), target, Draws(seed).stream("positions"))
    assert SCHEMES["longrecipe"] is longrecipe
    assert found.dtype == np.int32
    assert found[0] == 0
    assert found[-1] < target
    steps = np.diff(found)
    assert (steps >= 1).all()
    inside = np.ones(len(kept) - 1, bool)
    inside[np.cumsum(lengths[:-1], dtype=int) - 1] = False
    assert (steps[inside] == 1).all()
    if law == "jump" and len(lengths) > 1:
        slack = target - 1 - found[-1]
        assert max([*(steps - 1), slack]) >= unused // 2
