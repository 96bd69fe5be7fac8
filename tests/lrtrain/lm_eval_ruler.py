"""RULER as lm-evaluation-harness has it: its task code, from its wheel, as it is.

    with harness() as lm_eval:
        samples = lm_eval.samples("vt", 4096)

Stubs stand for what is not installed or would need a network:
  - the package around the tasks, which imports the whole harness;
  - `nltk`, whose sentence splitter needs a download: sentences are split where ours are;
  - `scipy.special.zeta`, of which it needs zeta(2) alone;
  - the essays of its haystack, a download too: a text that is generated here.
Its words are those of the package wonderwords. Its two question-answering tasks are downloads, and
left out.
"""

import importlib
import importlib.metadata
import math
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from lrtrain.evaluation.ruler.texts import Frame, Kind, Texts
from tests.fetch import fetch
from tests.lrtrain.ruler_reading import pattern

Sample = dict[str, Any]
"""One of its prompts: input, gen_prefix, outputs, length, and input_example of cwe."""

SAMPLES = 3
FOLDER = "lm_eval/tasks/ruler"
_PACKAGES = ("lm_eval", "nltk", "scipy", "wonderwords")
_MAKERS = {
    "vt": "sys_vartrack_w_noise_random",
    "cwe": "sys_word_pair_random",
    "fwe": "sys_kwext",
}


def prompt_of(sample: Sample) -> str:
    """What a model is given: as its class of tasks joins the two."""
    return f"{sample['input'].rstrip()} {sample['gen_prefix']}"


def split_sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z])", text)


def essay() -> str:
    """A text of sentences without sense, in one line."""
    words = [
        "we",
        "saw",
        "that",
        "some",
        "of",
        "the",
        "old",
        "men",
        "had",
        "to",
        "go",
        "on",
        "by",
        "water",
    ]
    draw = random.Random(3)
    lengths = [draw.randint(4, 12) for _ in range(2500)]
    return " ".join(
        " ".join(draw.choices(words, k=length)).capitalize() + "." for length in lengths
    )


class Harness:
    """Its tasks, with the tokenizer of SmolLM2. Use through `harness`."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(fetch("smollm2"))

    def module(self, name: str) -> Any:
        return importlib.import_module(f"lm_eval.tasks.ruler.{name}")

    def samples(self, name: str, length: int) -> list[Sample]:
        """A few of its samples of a task, by its own settings."""
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 (it is the generator that it uses)
        with pytest.MonkeyPatch.context() as patch:
            make = self._niah if name.startswith("niah") else self._other
            samples = make(name, length, patch)
        assert len(samples) == SAMPLES
        return samples

    def _niah(self, name: str, length: int, patch: pytest.MonkeyPatch) -> list[Sample]:
        module, haystacks = self.module("niah_utils"), self.module("prepare_niah").get_haystack

        def haystack(type_haystack: str) -> Any:
            return essay().split(" ") if type_haystack == "essay" else haystacks(type_haystack)

        patch.setattr(module, "get_haystack", haystack)
        patch.setattr(module, "get_tokenizer", lambda name: self.tokenizer)
        patch.setattr(module, "download_dataset", list)
        patch.setattr(module, "generate_samples", _fewer(module.generate_samples))
        (samples,) = getattr(module, name)(max_seq_lengths=[length])
        return samples

    def _other(self, name: str, length: int, patch: pytest.MonkeyPatch) -> list[Sample]:
        module = self.module(f"{name}_utils")
        patch.setattr(module, _MAKERS[name], _fewer(getattr(module, _MAKERS[name])))
        option = {"fwe": "max_seq_length"}.get(name, "seq")
        samples: list[Sample] = module.get_dataset(self.tokenizer, **{option: length})
        return samples

    def texts(self) -> Texts:
        """Its words, for our builders."""
        vt = self.module("vt_utils").CONFIG["variable_tracking"]
        cwe, fwe = self.module("cwe_utils").CONFIG, self.module("fwe_utils").CONFIG
        prepare = self.module("prepare_niah")
        fwe_template = fwe["template"].replace(" {context}", "{context}")
        return Texts(
            needle=prepare.NEEDLE.replace("{type_needle_v}", "{kinds}"),
            needles=self._niah_frame("niah_multiquery", "kinds"),
            one_needle=self._niah_frame("niah_single_1", "kind"),
            number=Kind("number", "numbers"),
            uuid=Kind("uuid", "uuids"),
            noise=prepare.get_haystack("repeat") + "\n",
            variables=_frame(vt["template"], vt["answer_prefix"], query="value", num_v="count"),
            first="VAR {name} = {value}\n",
            further="VAR {name} = VAR {other}\n",
            common=_frame(cwe["template"], cwe["answer_prefix"]),
            frequent=_frame(fwe_template, fwe["answer_prefix"]),
        )

    def _niah_frame(self, name: str, kind: str) -> Frame:
        """From a sample, as code and no template makes the text for one answer and the prefix."""
        template = self.module("niah_utils").TEMPLATE
        sample = self.samples(name, 1024)[0]
        query = pattern(template.rpartition("\n")[2], query="(.+)")
        query = query.replace("are.+?", ".+?").replace(r"are\ all\ the", r"\w+(?:\ all)?\ the")
        text, prefix = (
            re.sub(r"\bnumbers?\b", f"{{{kind}}}", part)
            for part in (sample["input"], sample["gen_prefix"])
        )
        found = re.search(query, text)
        assert found, f"{query} is not in {text}"
        head, question, prefix = (
            part.replace(found[1], "{query}")
            for part in (text.partition("\n")[0] + "\n", found[0], prefix)
        )
        return Frame(head, question, prefix)


def _fewer(make: Callable[..., list[Sample]]) -> Callable[..., list[Sample]]:
    def made(*args: Any, **options: Any) -> list[Sample]:
        count = min(options.get("num_samples", 500), SAMPLES)
        return make(*args, **options | {"num_samples": count})

    return made


def _frame(template: str, prefix: str, **renamed: str) -> Frame:
    parts = [*template.split("{context}"), prefix.strip()]
    for old, new in renamed.items():
        parts = [part.replace(f"{{{old}}}", f"{{{new}}}") for part in parts]
    return Frame(*parts)


def _stub(name: str, **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    return module


@contextmanager
def harness() -> Iterator[Harness]:
    """Its task code, importable as long as this lasts."""
    real_version = importlib.metadata.version

    def zeta(alpha: float) -> float:
        assert alpha == 2
        return math.pi**2 / 6

    stubs = (
        _stub("lm_eval", __path__=[]),
        _stub("lm_eval.tasks", __path__=[]),
        _stub("lm_eval.tasks.ruler", __path__=[str(fetch("lm-eval-ruler") / FOLDER)]),
        _stub(
            "nltk",
            sent_tokenize=split_sentences,
            data=_stub("nltk.data", find=lambda name: name),
        ),
        _stub("scipy", __path__=[]),
        _stub("scipy.special", zeta=zeta),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in _imported():
            patch.delitem(sys.modules, name)
        for module in stubs:
            patch.setitem(sys.modules, module.__name__, module)
        patch.syspath_prepend(str(fetch("wonderwords")))
        patch.setattr(
            importlib.metadata,
            "version",
            lambda name: "3.9.1" if name == "nltk" else real_version(name),
        )
        yield Harness()
        for name in _imported():
            del sys.modules[name]


def _imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]
