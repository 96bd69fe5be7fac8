"""A small byte-level BPE, trained on the demo's own texts, in the usual Hugging Face files."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lrdata.atomic import write_json
from lrdata.errors import LongRecipeError
from lrtrain.demo.corpus import SYMBOLS

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 512
_SYMBOL_COUNT = 5000


def train_tokenizer(texts: Iterable[str], folder: Path, window: int) -> None:
    """Write tokenizer.json and tokenizer_config.json. Every symbol of a code is one token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen_often = ["".join(SYMBOLS)] * _SYMBOL_COUNT
    tokenizer.train_from_iterator([*texts, *seen_often], trainer)
    joined = [symbol for symbol in SYMBOLS if len(tokenizer.encode(symbol).ids) != 1]
    if joined:
        raise LongRecipeError(f"the demo's tokenizer splits the symbol {joined[0]!r}; report it")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "model_max_length": window,
    }
    write_json(folder / "tokenizer_config.json", settings)
