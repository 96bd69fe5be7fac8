"""Sentence ends from the bytes of the tokens: for every tokenizer and script, without decoding.

A sentence ends after a token
  - that holds a line end (blank lines stay with the line above);
  - that ends in `. ? !` or `…`, before white space and a word that does not begin in lower case;
    but not in a full stop after a single letter (`J.`, `e.g.`) or a common abbreviation (`Dr.`);
  - that ends in a terminator of a script that writes no space after it (CJK) or has its own
    (Devanagari, Arabic, Ethiopic, Khmer, Myanmar, Armenian), unless another one follows;
  - that is the end-of-text token.
Closing quotes and brackets belong to the terminator; a terminator before a line end or the end of
the text leaves the end to that. Hence no sentence ends inside 3.14, e.g., a URL or `foo.bar()`. A
sentence longer than `max_tokens` is cut.

Tables over the vocabulary decide nearly all tokens. Where a character, a quote or an abbreviation
is spread over tokens, their bytes are put together, so that tokenizers of any vocabulary agree
wherever their token boundaries do.

`characters` tells what the characters in UTF-8 bytes are, and abbreviations; `tables` what each
token of a vocabulary is; `ends` where the sentences of a text end.
"""

from lrdata.sentences.ends import lengths_between, sentence_ends, sentence_lengths
from lrdata.sentences.tables import SentenceTables, sentence_tables

__all__ = [
    "SentenceTables",
    "lengths_between",
    "sentence_ends",
    "sentence_lengths",
    "sentence_tables",
]
