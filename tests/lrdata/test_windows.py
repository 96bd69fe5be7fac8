from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrdata.windows import Document, Tokens, Window, WindowJoiner

BOS = 7


@dataclass
class Cut:
    """A corpus cut into windows, and what produced it."""

    documents: list[Document]
    tokens: list[np.ndarray]
    windows: list[Window]
    tail: int
    target_len: int
    bos: int | None

    @property
    def content(self) -> int:
        """Tokens of documents in a window."""
        return self.target_len - (self.bos is not None)


def ends_of(ids: np.ndarray) -> np.ndarray:
    """Sentence ends that tell tokens apart: after every third number."""
    return np.flatnonzero(ids % 3 == 0)


def tokens_of(ids: np.ndarray) -> Tokens:
    return Tokens(ids, ends_of(ids))


def parts_of(ids: np.ndarray, size: int) -> list[Tokens]:
    """A document's tokens in parts of `size`."""
    return [tokens_of(ids[start : start + size]) for start in range(0, len(ids), size)]


def cut(lengths: list[int], target_len: int, bos: int | None, batch: int = 3, part: int = 0) -> Cut:
    """Documents of these lengths, every token with a number of its own from 1,000 on.

    They come so many in a batch, or if `part` is given, each in parts of that size.
    """
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.arange(1000, 1000 + starts[-1], dtype=np.int32)
    tokens = np.split(ids, starts[1:-1]) if lengths else []
    documents = [Document(f"doc{i}", "books", "a.jsonl", 100 * i) for i in range(len(lengths))]
    joiner = WindowJoiner(target_len, bos)
    windows: list[Window] = []
    for first in range(0, len(lengths), batch):
        last = min(first + batch, len(lengths))
        whole = tokens_of(ids[starts[first] : starts[last]])
        for index in range(first, last):
            if part:
                windows += joiner.add_parts(documents[index], parts_of(tokens[index], part))
            else:
                edges = (int(starts[at] - starts[first]) for at in (index, index + 1))
                windows += joiner.add(documents[index], whole, *edges)
        joiner.own()
    return Cut(documents, tokens, windows, joiner.tail_tokens(), target_len, bos)


corpora = st.builds(
    cut,
    st.lists(st.integers(0, 60), max_size=25),
    st.integers(2, 20),
    st.sampled_from([None, BOS]),
    st.integers(1, 30),
    st.sampled_from([0, 0, 1, 2, 5, 17, 70]),
)


@given(corpora)
def test_every_token_is_in_exactly_one_window_or_the_tail(made: Cut) -> None:
    windowed = [token for window in made.windows for token in window.ids[window.lead :].tolist()]
    total = sum(map(len, made.tokens))
    assert len(set(windowed)) == len(windowed)
    assert set(windowed) <= set(range(1000, 1000 + total))
    assert made.tail == total - len(windowed)
    assert made.tail < made.content


@given(corpora)
def test_windows_have_their_length_and_their_start_of_text(made: Cut) -> None:
    for window in made.windows:
        assert len(window.ids) == made.target_len
        assert window.ids.dtype == np.int32
        assert window.ids[: window.lead].tolist() == ([] if made.bos is None else [BOS])


@given(corpora)
def test_spans_are_where_the_tokens_came_from(made: Cut) -> None:
    for window in made.windows:
        parts = [
            made.tokens[made.documents.index(s.document)][s.start : s.start + s.length]
            for s in window.spans
        ]
        np.testing.assert_array_equal(np.concatenate(parts), window.ids[window.lead :])
        np.testing.assert_array_equal(ends_of(np.concatenate(parts)), window.sentence_ends)
        assert all(span.length > 0 for span in window.spans)
        lengths = window.document_lengths
        assert sum(lengths) == made.target_len
        assert lengths[0] == window.spans[0].length + window.lead


@given(corpora)
def test_a_long_document_fills_windows_of_its_own_from_its_start(made: Cut) -> None:
    content = made.content
    for document, tokens in zip(made.documents, made.tokens, strict=True):
        own = [
            window.spans[0].start
            for window in made.windows
            if len(window.spans) == 1 and window.spans[0].document is document
        ]
        whole = len(tokens) // content
        assert own[:whole] == [index * content for index in range(whole)]


@given(corpora)
def test_the_rest_is_joined_in_corpus_order(made: Cut) -> None:
    """Against the definition: remainders and short documents, one after another, cut evenly."""
    content = made.content
    rest = [
        token
        for tokens in made.tokens
        for token in tokens[len(tokens) // content * content :].tolist()
    ]
    own = {
        tokens[start]
        for tokens in made.tokens
        for start in range(0, len(tokens) // content * content, content)
    }
    joined = [w.ids[w.lead :].tolist() for w in made.windows if w.ids[w.lead] not in own]
    expected = [rest[i : i + content] for i in range(0, len(rest) - content + 1, content)]
    assert joined == expected


@given(corpora)
def test_the_key_of_a_window_is_its_own(made: Cut) -> None:
    assert len({window.key for window in made.windows}) == len(made.windows)
    assert len({window.name for window in made.windows}) == len(made.windows)


def test_an_example() -> None:
    made = cut([3, 11, 2, 5, 4], target_len=5, bos=BOS)
    assert [window.ids.tolist() for window in made.windows] == [
        [BOS, 1003, 1004, 1005, 1006],  # document 1 fills two windows ...
        [BOS, 1007, 1008, 1009, 1010],
        [BOS, 1000, 1001, 1002, 1011],  # ... and its last three tokens join document 0
        [BOS, 1012, 1013, 1014, 1015],
        [BOS, 1016, 1017, 1018, 1019],  # document 3
        [BOS, 1021, 1022, 1023, 1024],  # document 4 is as long as a window
    ]
    assert made.tail == 1  # the last token of document 3
    assert made.windows[2].document_lengths == [4, 1]
    assert made.windows[2].key == ("a.jsonl", 0, 0, 0)
    assert made.windows[3].name == "a.jsonl:100:9:0"


def test_copies_of_a_document_make_windows_of_their_own() -> None:
    tokens = np.arange(8, dtype=np.int32)
    joiner = WindowJoiner(4, None)
    copies = [Document("d", "books", "a.jsonl", 0, copy) for copy in (0, 1)]
    run = tokens_of(tokens)
    keys = [window.key for document in copies for window in joiner.add(document, run, 0, 8)]
    assert len(set(keys)) == 4


def test_what_waits_for_a_window_does_not_keep_the_memory_of_its_batch() -> None:
    batch = np.arange(1000, dtype=np.int32)
    joiner = WindowJoiner(100, None)
    run = tokens_of(batch)
    for start in (0, 10, 50):  # the first two lie side by side
        assert not joiner.add(Document("d", "s", "f", start), run, start, start + 10)
    joiner.own()
    waiting = [waiting.tokens.ids for waiting in joiner._runs]
    assert [ids.tolist() for ids in waiting] == [list(range(20)), list(range(50, 60))]
    assert not any(np.shares_memory(ids, batch) for ids in waiting)
    joiner.own()
    assert all(run.tokens.ids is ids for run, ids in zip(joiner._runs, waiting, strict=True))
