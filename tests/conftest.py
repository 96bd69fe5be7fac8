"""Fixtures that several tests share."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline is a timing asserted: the first example pays for imports, and CI shares its cores.
settings.register_profile("longrecipe", deadline=None)
settings.load_profile("longrecipe")

EOT = "<|endoftext|>"
BOS = "<s>"
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = (
    "the of and to in a is that it was for on are as with his they at be this have from or one had "
    "by word but not what all were we when your can said there use an each which she do how their "
    "if will up other about out many then them these so some her would make like him into time has "
    "look two more write go see number no way could people my than first water been call who oil "
    "its now find long down day did get come made may part def return self class import None True"
)
_LETTERS = (
    "абвгдежзиклмнопрст",
    "αβγδεζηθικλμνοπρστ",
    "कखगघचजटडतदनपबमयरलस",
    "的一是不了人我在有他",
)


def generated_text(paragraphs: int, seed: int = 0) -> Iterator[str]:
    """Paragraphs of made-up sentences: English words, numbers, a few other scripts."""
    draw = random.Random(seed)
    words = _WORDS.split()
    for _ in range(paragraphs):
        sentences = []
        for _ in range(draw.randint(2, 9)):
            sentence = draw.choices(words, k=draw.randint(3, 14))
            if draw.random() < 0.3:
                sentence.append(str(draw.randint(0, 99_999)))
            if draw.random() < 0.2:
                letters = draw.choice(_LETTERS)
                sentence.append("".join(draw.choices(letters, k=draw.randint(2, 6))))
            sentences.append(" ".join(sentence).capitalize() + draw.choice(".....?!"))
        yield " ".join(sentences) + draw.choice(["\n", "\n\n"])


def train_tokenizer(folder: Path, bos: str | None) -> Path:
    """A byte-level BPE of 1,000 entries, saved as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    specials = [EOT, *CHAT_TOKENS, *([bos] if bos else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(generated_text(400), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOT,
        **({"bos_token": bos} if bos else {}),
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer of 1,000 ids: end of text EOT, no start of text."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tiny", bos=None)


@pytest.fixture(scope="session")
def tiny_bos_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose post-processor puts BOS before every text."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tiny-bos", bos=BOS)
