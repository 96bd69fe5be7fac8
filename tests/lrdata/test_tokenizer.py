"""Token ids equal those of the `tokenizers` library, for real tokenizers and hostile text."""

import json
import pydoc
import subprocess
import sys
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import fastokens
import huggingface_hub
import numpy as np
import pytest
import tokenizers
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Encoder, Tokenizer, UnencodableError
from tests.conftest import BOS, CHAT_TEMPLATE, CHAT_TOKENS, EOT
from tests.fetch import fetch
from tests.lrdata.build_runs import ROOT

ENCODERS: tuple[Encoder, ...] = ("fastokens", "tokenizers")
REAL = ("llama3", "qwen", "deepseek", "mistral-tekken", "smollm2")
SENTENCES = (
    "The library opens at nine; in 2024 it lent 12,345 books (87% of them novels).",
    "Die Bücherei öffnet um neun Uhr – „früh genug“, sagte Frau Größe.",
    "La bibliothèque ouvre à neuf heures ; l’été, elle ferme dès midi.",
    "Η βιβλιοθήκη ανοίγει στις εννέα το πρωί και έχει χίλια βιβλία.",
    "Библиотека открывается в девять утра, а закрывается в шесть вечера.",
    "Գրադարանը բացվում է առավոտյան ժամը իննին։",
    "הספרייה נפתחת בשעה תשע בבוקר, ויש בה אלף ספרים.",
    "تفتح المكتبة أبوابها في الساعة التاسعة صباحًا، وفيها ألف كتاب؟",
    "पुस्तकालय सुबह नौ बजे खुलता है। वहाँ १२३ किताबें हैं।",
    "গ্রন্থাগার সকাল নয়টায় খোলে। সেখানে অনেক বই আছে।",
    "நூலகம் காலை ஒன்பது மணிக்குத் திறக்கும்.",
    "ห้องสมุดเปิดเวลาเก้าโมงเช้าและมีหนังสือมากมาย",
    "ბიბლიოთეკა დილის ცხრა საათზე იხსნება.",
    "ቤተ መጻሕፍቱ ጠዋት ሦስት ሰዓት ይከፈታል።",
    "도서관은 아침 아홉 시에 문을 열고 저녁 여섯 시에 닫는다.",
    "図書館は午前九時に開きます。本が１２３４冊あります！",
    "图书馆上午九点开门，里面有很多书。你去过吗？",
    "👩🏽‍💻 wrote 🇫🇷 e\u0301 = é, x² ≤ ½, 𝒜 \u200b\u00a0 zero\r\n\r\n\tend   ",
)
HOSTILE = (
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x00", "\ufeff", "\u200d"),
    *("'s", "'S", "'ſ", "’re", "1", "12", "1234", "٣", "²", "a", "Aa", "É", "e\u0301", "\u0301"),
    *(
        "한",
        "的",
        "ひ",
        "ไ",
        "हि",
        "👍🏽",
        "🇫🇷",
        "𐍈",
        "\U0010ffff",
        ".",
        "...",
        "//",
        "<|",
        "|>",
        "▁",
        "Ġ",
    ),
)


@cache
def loaded(name: str) -> Tokenizer:
    return Tokenizer.load(str(fetch(name)))


@cache
def library(name: str) -> tokenizers.Tokenizer:
    """The tokenizer as a user of the `tokenizers` library has it, special tokens being text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(fetch(name) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def split(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    bounds = offsets.tolist()
    assert (bounds[0], bounds[-1]) == (0, len(ids))
    return [ids[a:b].tolist() for a, b in pairwise(bounds)]


def assert_equals_library(name: str, texts: list[str]) -> None:
    tokenizer, made = loaded(name), library(name)
    expected = [made.encode(text, add_special_tokens=False).ids for text in texts]
    assert split(*tokenizer.encode(texts)) == expected
    ended = [[*ids, tokenizer.eot_id] for ids in expected]
    assert split(*tokenizer.encode_documents(texts)) == ended


def added_tokens(name: str) -> list[str]:
    return [token.content for token in library(name).get_added_tokens_decoder().values()]


def bytes_of(tokenizer: Tokenizer, ids: np.ndarray | list[int]) -> bytes:
    values, offsets = tokenizer.token_bytes
    return b"".join(values[offsets[id_] : offsets[id_ + 1]].tobytes() for id_ in ids)


def source_code() -> list[str]:
    """Modules of the standard library, and the reference manual inside pydoc: English prose."""
    folder = Path(pydoc.__file__).parent
    names = ("argparse", "difflib", "inspect", "tarfile", "typing", "unittest/mock", "doctest")
    files = [folder / f"{name}.py" for name in names]
    files += [folder / "pydoc_data" / "topics.py", folder / "encodings" / "aliases.py"]
    return [file.read_text(encoding="utf-8") for file in files]


# The same ids as the library


@pytest.mark.parametrize("name", REAL)
def test_fast_encoder_is_used(name: str) -> None:
    assert (loaded(name).encoder, loaded(name).encoder_note) == (
        "fastokens",
        "fastokens equals tokenizers on the probe",
    )


@pytest.mark.parametrize("name", REAL)
def test_ids_in_many_scripts(name: str) -> None:
    scripts = {
        unicodedata.name(character).split()[0]
        for text in SENTENCES
        for character in text
        if character.isalpha()
    }
    assert len(scripts) >= 15, scripts
    joined = ["\n".join(SENTENCES), " ".join(SENTENCES[::-1]), "".join(SENTENCES) * 20]
    upper = [text.upper() for text in SENTENCES]
    normal = [unicodedata.normalize(form, text) for form in ("NFD", "NFKC") for text in SENTENCES]
    assert_equals_library(name, [*SENTENCES, *joined, *upper, *normal])


@pytest.mark.parametrize("name", REAL)
def test_ids_of_source_code_and_prose(name: str) -> None:
    texts = source_code()
    assert sum(map(len, texts)) > 1_000_000
    assert_equals_library(name, texts)


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=150)
@given(data=st.data())
def test_ids_of_any_text(name: str, data: st.DataObject) -> None:
    character = st.characters(exclude_categories=["Cs"])
    piece = st.one_of(
        st.sampled_from(HOSTILE),
        st.sampled_from(SENTENCES).flatmap(lambda text: st.sampled_from(text.split())),
        st.sampled_from(added_tokens(name)),
        st.text(character, max_size=8),
        st.tuples(st.sampled_from(HOSTILE), st.integers(1, 40)).map(lambda two: two[0] * two[1]),
    )
    texts = data.draw(st.lists(st.lists(piece, max_size=12).map("".join), max_size=8))
    assert_equals_library(name, texts)
    found = split(*loaded(name).encode(texts))
    assert found == split(*loaded(name).encode_reference(texts))


@pytest.mark.parametrize("name", REAL)
def test_text_never_yields_a_special_token(name: str) -> None:
    tokenizer = loaded(name)
    tokens = added_tokens(name)
    texts = [form for token in tokens for form in (token, f"a{token}b", f" {token}\n", token * 2)]
    ids, _ = tokenizer.encode(texts)
    assert tokenizer.special.sum() >= 3
    assert not tokenizer.special[ids].any()
    assert_equals_library(name, texts)


@pytest.mark.parametrize("name", REAL)
def test_trusted_text_yields_special_tokens(name: str) -> None:
    tokenizer = loaded(name)
    library = tokenizers.Tokenizer.from_file(str(fetch(name) / "tokenizer.json"))
    tokens = added_tokens(name)
    for text in (" ".join(tokens), "".join(tokens[:50]), "a" + tokens[0] + "b\n" + tokens[-1]):
        ids = tokenizer.encode_with_specials(text)
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.special[ids].any()
    again = tokenizer.encode([tokens[0]])[0]
    assert not tokenizer.special[again].any()


@pytest.mark.parametrize("name", ["qwen", "mistral-tekken"])
@settings(max_examples=100)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_converted_tokenizers_equal_tiktoken(name: str, texts: list[str]) -> None:
    """The two that tests/fetch.py converts, against a library that reads their own format."""
    encoding = tiktoken_encoding(name)
    texts = [unicodedata.normalize("NFC", text) for text in (*texts, *SENTENCES)]
    found = split(*loaded(name).encode(texts))
    shift = 1000 if name == "mistral-tekken" else 0
    expected = [[id_ + shift for id_ in encoding.encode_ordinary(text)] for text in texts]
    assert found == expected


@cache
def tiktoken_encoding(name: str) -> Any:
    """Read back from the converted vocabulary: bytes and ranks, merged by another algorithm."""
    import tiktoken

    model = json.loads((fetch(name) / "tokenizer.json").read_text(encoding="utf-8"))
    (pattern,) = (
        part["pattern"]["Regex"]
        for part in model["pre_tokenizer"]["pretokenizers"]
        if part["type"] == "Split"
    )
    tokenizer = loaded(name)
    added = library(name).get_added_tokens_decoder()
    plain = [id_ for id_ in range(tokenizer.vocab_size) if id_ not in added]
    ranks = {bytes_of(tokenizer, [id_]): id_ - plain[0] for id_ in plain}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


# Which encoder


def test_texts_that_fastokens_refuses_go_to_the_library(tmp_path: Path) -> None:
    """SmolLM2 has no token for byte 0x04, which `tokenizers` leaves out of the text.

    fastokens does too, but raises where the pre-tokenizer is a plain ByteLevel.
    """
    texts = ["one", "a\x04b", "", "two\x06", *SENTENCES, "\x16", "<|im_end|>\x04"]
    assert_equals_library("smollm2", texts)
    made = tokenizers.Tokenizer.from_file(str(fetch("smollm2") / "tokenizer.json"))
    made.encode_special_tokens = True
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer.load(saved(made, tmp_path), eot="<|im_end|>")
    with pytest.raises(ValueError, match="0x04"):
        fastokens.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a\x04b")
    assert tokenizer.encoder == "fastokens"
    expected = [made.encode(text, add_special_tokens=False).ids for text in texts]
    assert split(*tokenizer.encode(texts)) == expected
    ended = [[*ids, tokenizer.eot_id] for ids in expected]
    assert split(*tokenizer.encode_documents(texts)) == ended
    assert tokenizer.encode_with_specials("<|im_end|>\x04").tolist() == [tokenizer.eot_id]


def test_a_fast_encoder_with_other_ids_is_not_used(
    tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fastokens.Tokenizer

    class Wrong:
        """Right for all but long texts."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        @classmethod
        def from_file(cls, path: str) -> "Wrong":
            return cls(real.from_file(path))

        def encode_batch_flat(self, inputs: list[str], **options: Any) -> tuple[bytes, bytes]:
            cut = [text[:20_000] for text in inputs]
            return self.inner.encode_batch_flat(cut, **options)

    monkeypatch.setattr(fastokens, "Tokenizer", Wrong)
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    assert tokenizer.encoder == "tokenizers"
    assert "other ids" in tokenizer.encoder_note
    with pytest.raises(LongRecipeError, match="other ids"):
        Tokenizer.load(str(tiny_tokenizer), encoder="fastokens")


def test_the_encoder_can_be_chosen(tiny_tokenizer: Path) -> None:
    slow = Tokenizer.load(str(tiny_tokenizer), encoder="tokenizers")
    fast = Tokenizer.load(str(tiny_tokenizer), encoder="fastokens")
    assert (slow.encoder, fast.encoder) == ("tokenizers", "fastokens")
    assert split(*slow.encode(list(SENTENCES))) == split(*fast.encode(list(SENTENCES)))
    text = f"{EOT}a{CHAT_TOKENS[0]}"
    assert slow.encode_with_specials(text).tolist() == fast.encode_with_specials(text).tolist()
    assert slow.probe_fingerprint == fast.probe_fingerprint


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("encoder", ["auto", "tokenizers"])
def test_who_loads_tokenizers_again_and_again_keeps_no_memory(
    tiny_tokenizer: Path, encoder: str
) -> None:
    """What `tokenizers` caches is not freed with the tokenizer: 10 MB of a probe."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from lrdata.tokenizer import Tokenizer\n"
        "def resident():\n"
        "    pages = int(Path('/proc/self/statm').read_text().split()[1])\n"
        "    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20\n"
        "def load(times):\n"
        "    for _ in range(times):\n"
        "        Tokenizer.load(sys.argv[1], encoder=sys.argv[2])\n"
        "load(3)\n"
        "before = resident()\n"
        "load(20)\n"
        "print(resident() - before)\n"
    )
    command = [sys.executable, "-c", script, str(tiny_tokenizer), encoder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 20, "MB more after twenty"


def test_a_model_that_fastokens_cannot_read_is_encoded_by_the_library(tmp_path: Path) -> None:
    pieces = ["[UNK]", "the", "lib", "##rary", "opens", "[EOS]"]
    model = models.WordPiece({piece: id_ for id_, piece in enumerate(pieces)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer.load(saved(made, tmp_path))
    assert tokenizer.encoder == "tokenizers"
    assert tokenizer.encoder_note.startswith("fastokens failed with")
    assert split(*tokenizer.encode(["the library opens", "x"])) == [[1, 2, 3, 4], [0]]
    assert bytes_of(tokenizer, [1, 3]) == b"the##rary"


def test_truncation_padding_and_dropout_are_off(tmp_path: Path, tiny_tokenizer: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    made.enable_truncation(5)
    made.enable_padding(length=9)
    tokenizer = Tokenizer.load(saved(made, tmp_path / "cut"))
    plain = Tokenizer.load(str(tiny_tokenizer))
    for encode in (tokenizer.encode, tokenizer.encode_reference):
        assert split(*encode(list(SENTENCES))) == split(*plain.encode(list(SENTENCES)))
    made.model.dropout = 0.5
    made.no_truncation()
    made.no_padding()
    tokenizer = Tokenizer.load(saved(made, tmp_path / "dropout"))
    assert split(*tokenizer.encode(list(SENTENCES))) == split(*plain.encode(list(SENTENCES)))


def test_a_text_that_nothing_can_encode_is_an_error(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """The library panics where its pattern needs too many steps."""
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    pattern = tokenizers.Regex("(ⵣ+)+$b")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), made.pre_tokenizer]
    )
    tokenizer = Tokenizer.load(saved(made, tmp_path), encoder="tokenizers")
    with pytest.raises(UnencodableError, match=r"cannot encode a text .* 90 bytes"):
        tokenizer.encode(["fine", "ⵣ" * 30])
    assert bytes_of(tokenizer, tokenizer.encode(["fine"])[0]) == b"fine"


# What comes out


def test_empty_input(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    for encode in (tokenizer.encode, tokenizer.encode_reference):
        assert split(*encode([])) == []
        assert split(*encode(["", "a", ""])) == [[], tokenizer.encode(["a"])[0].tolist(), []]


def test_results_are_read_only(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    arrays = (
        *tokenizer.encode(["a b", "c"]),
        *tokenizer.encode_reference(["a b", "c"]),
        *tokenizer.token_bytes,
        tokenizer.special,
    )
    assert not any(array.flags.writeable for array in arrays)


@pytest.mark.parametrize("name", ["llama3", "qwen", "deepseek", "mistral-tekken"])
@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_the_ids_are_the_text(name: str, text: str) -> None:
    tokenizer = loaded(name)
    for text_ in (text, *SENTENCES):
        expected = unicodedata.normalize("NFC", text_) if name == "qwen" else text_
        assert bytes_of(tokenizer, tokenizer.encode([text_])[0]) == expected.encode()


@pytest.mark.parametrize("name", REAL)
def test_decode_gives_the_text(name: str) -> None:
    tokenizer = loaded(name)
    for text in SENTENCES:
        normal = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer.encode([normal])[0]) == normal
    eot = tokenizer.decode([tokenizer.eot_id])
    assert eot.encode() == bytes_of(tokenizer, [tokenizer.eot_id])


# End and start of text


def saved(made: tokenizers.Tokenizer, folder: Path, **files: Any) -> str:
    """A folder with tokenizer.json and `name={...}` as name.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("name", "eot", "bos"),
    [
        ("llama3", "<|end_of_text|>", None),
        ("qwen", "<|endoftext|>", None),
        ("deepseek", "<｜end▁of▁sentence｜>", None),
        ("mistral-tekken", "</s>", "<s>"),
        ("smollm2", "<|im_end|>", None),
    ],
)
def test_end_and_start_of_text_of_real_tokenizers(name: str, eot: str, bos: str | None) -> None:
    tokenizer = loaded(name)
    assert tokenizer.eot_id == library(name).token_to_id(eot)
    assert tokenizer.bos_id == (None if bos is None else library(name).token_to_id(bos))


def test_where_the_end_of_text_comes_from(tiny_tokenizer: Path, tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    eot, start, end = map(made.token_to_id, (EOT, *CHAT_TOKENS))

    def eot_of(case: str, **files: Any) -> int:
        return Tokenizer.load(saved(made, tmp_path / case, **files)).eot_id

    assert eot_of("known name") == eot
    assert eot_of("string", tokenizer_config={"eos_token": CHAT_TOKENS[1]}) == end
    as_dict = {"eos_token": {"__type": "AddedToken", "content": CHAT_TOKENS[1]}}
    assert eot_of("dict", tokenizer_config=as_dict) == end
    assert eot_of("map", special_tokens_map={"eos_token": CHAT_TOKENS[0]}) == start
    both = {"tokenizer_config": {"eos_token": None}, "special_tokens_map": as_dict}
    assert eot_of("null, then map", **both) == end
    named = Tokenizer.load(str(tmp_path / "string"), eot=CHAT_TOKENS[0])
    assert named.eot_id == start
    with pytest.raises(LongRecipeError, match=r"'<nope>' is not in .*endoftext.*--eot"):
        Tokenizer.load(str(tiny_tokenizer), eot="<nope>")
    with pytest.raises(LongRecipeError, match=r"'<gone>' is not in .*--eot"):
        eot_of("gone", tokenizer_config={"eos_token": "<gone>"})


def test_no_end_of_text_is_an_error(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(LongRecipeError, match=r"names no end-of-text token; .*--eot"):
        Tokenizer.load(saved(made, tmp_path))
    assert Tokenizer.load(str(tmp_path), eot="b").eot_id == 1


def test_start_of_text(tiny_tokenizer: Path, tiny_bos_tokenizer: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(str(tiny_tokenizer)).bos_id is None
    with_bos = Tokenizer.load(str(tiny_bos_tokenizer))
    assert with_bos.decode([with_bos.bos_id or 0]) == BOS
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    start = made.token_to_id(CHAT_TOKENS[0])
    config: dict[str, Any] = {"eos_token": EOT, "bos_token": CHAT_TOKENS[0]}
    assert Tokenizer.load(saved(made, tmp_path, tokenizer_config=config)).bos_id is None
    config["add_bos_token"] = True
    assert Tokenizer.load(saved(made, tmp_path, tokenizer_config=config)).bos_id == start


def test_tokens_of_the_post_processor_are_never_in_the_text(
    tiny_bos_tokenizer: Path, tmp_path: Path
) -> None:
    """A post-processor with start and end: the end is not doubled, as it is ours to add."""
    made = tokenizers.Tokenizer.from_file(str(tiny_bos_tokenizer / "tokenizer.json"))
    ends = [(token, made.token_to_id(token)) for token in (BOS, EOT)]
    made.post_processor = processors.TemplateProcessing(f"{BOS} $A {EOT}", special_tokens=ends)
    tokenizer = Tokenizer.load(saved(made, tmp_path))
    assert (tokenizer.bos_id, tokenizer.eot_id) == (ends[0][1], ends[1][1])
    assert bytes_of(tokenizer, tokenizer.encode(["two words"])[0]) == b"two words"
    made.post_processor = processors.TemplateProcessing(f"{BOS} {EOT} $A", special_tokens=ends)
    with pytest.raises(LongRecipeError, match="puts 2 tokens before a text"):
        Tokenizer.load(saved(made, tmp_path))


def test_a_document_cannot_end_itself(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Also where the tokenizer takes its end-of-text token for an ordinary added word."""
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    made.add_tokens([tokenizers.AddedToken("<end>", normalized=False)])
    folder = saved(made, tmp_path)
    plain = Tokenizer.load(folder)
    word = made.token_to_id("<end>")
    assert word in plain.encode(["a<end>b"])[0]
    for encoder in ENCODERS:
        tokenizer = Tokenizer.load(folder, eot="<end>", encoder=encoder)
        assert word not in tokenizer.encode(["a<end>b"])[0]
        assert word not in tokenizer.encode_reference(["a<end>b"])[0]
        assert word in tokenizer.encode_with_specials("a<end>b")
        assert tokenizer.special[word]
        assert tokenizer.fingerprint == plain.fingerprint  # it is the same tokenizer still


def test_chat_template(tiny_tokenizer: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(str(tiny_tokenizer)).chat_template == CHAT_TEMPLATE
    made = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    assert Tokenizer.load(saved(made, tmp_path)).chat_template is None
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    folder = saved(made, tmp_path, tokenizer_config={"chat_template": named})
    assert Tokenizer.load(folder).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("j", encoding="utf-8")
    assert Tokenizer.load(folder).chat_template == "j"


# Where it is loaded from


def test_the_file_itself_can_be_named(tiny_tokenizer: Path) -> None:
    folder = Tokenizer.load(str(tiny_tokenizer))
    file = Tokenizer.load(str(tiny_tokenizer / "tokenizer.json"))
    assert (file.fingerprint, file.eot_id) == (folder.fingerprint, folder.eot_id)
    assert file.name == str(tiny_tokenizer / "tokenizer.json")


def test_from_the_hub(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, set(allow_patterns)))
        return str(tiny_tokenizer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert Tokenizer.load("someone/model").chat_template == CHAT_TEMPLATE
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert asked == [("someone/model", {*names, "chat_template.jinja"})]

    def offline(repo_id: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(LongRecipeError, match="someone/model: it is not in the cache and the hub"):
        Tokenizer.load("someone/model")


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(LongRecipeError, match="no tokenizer at /no/such/folder"):
        Tokenizer.load("/no/such/folder")
    with pytest.raises(
        LongRecipeError, match=r"has no tokenizer\.json; make one .*save_pretrained"
    ):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LongRecipeError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(LongRecipeError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.load(str(tmp_path))
