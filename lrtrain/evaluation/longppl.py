"""LongPPL: perplexity of the tokens for which long context matters.

    exp(mean of -log P(token | all of the window before it) over the key tokens)

by Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?", arXiv
2410.23771. The key tokens are those of a folder that `lrtrain score` wrote: there, a scoring model
gained more than 2 nats from the long context and ended above -2. Every model is asked for the same
ones, whatever its tokenizer: with that of the scores it reads their ids as they are; else it
encodes the window's text, and its tokens that share a byte with a key token are its key tokens.
(The authors' code takes only those that lie within key tokens, and so leaves out what the model's
tokenizer joins to the text beside them.)

Special tokens of a window are context, but never targets, as they are not text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import SourceEntry
from lrdata.progress import progress
from lrdata.scores import KEY_GAIN, KEY_LOG_PROB, SCORES, ScoredWindow, Scores, open_scores
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.models import LoadedModel, OpenModel
from lrtrain.evaluation.spelling import encode_spelled, overlapping
from lrtrain.evaluation.suite import OfWindows

if TYPE_CHECKING:
    import torch

_FIRST_END = 1024
_BINS = 40  # each twice as long as the one before


class KeyedTokens(NamedTuple):
    """What a model reads of a window: n tokens, without the start of text."""

    ids: np.ndarray  # int32 [n]
    keys: np.ndarray  # bool [n]
    sizes: np.ndarray  # int64 [n]: bytes of the text; 0 where a token is not text


@dataclass(frozen=True)
class LongPplCell(OfWindows):
    """One model on all windows that it can be asked about: an entry for each.

    Key tokens are counted by how many tokens the model read before them: bin i holds those after
    bins[i][0] < tokens <= bins[i][1].
    """

    model: str
    windows: tuple[int, ...]
    """Which windows of the score folder they are."""
    context: tuple[int, ...]
    """Tokens read of each."""
    bins: tuple[tuple[int, int], ...]
    key_nats: tuple[tuple[float, ...], ...]
    """Summed over the key tokens, by bin."""
    key_tokens: tuple[tuple[int, ...], ...]
    nats: tuple[float, ...]
    """Summed over all tokens, their number, and their bytes."""
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    left_out: int
    """Windows whose text the model's tokenizer does not spell."""
    documents: tuple[int, ...] = ()
    """The number of each window's document; an earlier version did not say it."""


class KeyWindows:
    """The windows of a score folder that have key tokens. Use through `open_keys`."""

    def __init__(self, scores: Scores) -> None:
        self.scores, self.vocabulary = scores, scores.vocabulary
        counts, names = list[int](), list[str]()
        for window in scores:
            counts.append(int(self.keys_of(window).sum()))
            names.append(window.document)
        self.indices = [index for index, count in enumerate(counts) if count]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self.documents = [numbers[name] for name in names]
        """The number of each window's document."""
        self.key_tokens = sum(counts)

    def keys_of(self, window: ScoredWindow) -> np.ndarray:
        """The key tokens that are text: bool [n]."""
        return np.asarray(window.keys & ~self.vocabulary.special[window.ids])

    def settings(self) -> dict[str, Any]:
        """What is to be said of it in a report."""
        manifest = self.scores.manifest
        return {
            "folder": self.scores.folder.name,
            "sha256": manifest.files[SCORES],
            "model": manifest.models["long"],
            "windows": len(self.indices),
            "key_tokens": self.key_tokens,
        }

    def files_in(self, sources: Sequence[SourceEntry]) -> list[str]:
        """Names of the scored files that are among the sources of a dataset, whatever their names
        there: a model that was trained on it may have read their text."""
        known = {entry.sha256 for entry in sources}
        return [entry.name for entry in self.scores.manifest.sources if entry.sha256 in known]

    def tokens(self, index: int, tokenizer: Tokenizer) -> KeyedTokens | None:
        """What a model with this tokenizer reads of a window; None where it does not spell it."""
        window = self.scores.read(index)
        sizes = np.where(self.vocabulary.special, 0, np.diff(self.vocabulary.token_bytes[1]))
        lengths, keys = sizes[window.ids], self.keys_of(window)
        if tokenizer.fingerprint == self.scores.manifest.tokenizer.fingerprint:
            return KeyedTokens(window.ids, keys, lengths)
        stops = np.cumsum(lengths)
        spans = np.stack([stops - lengths, stops], axis=1)[keys]
        return encode_keys(self.scores.text(window.ids), spans, tokenizer)


def open_keys(folder: Path) -> KeyWindows:
    """Open a score folder. Raises LongRecipeError when it has no key tokens in LongPPL's sense."""
    scores = open_scores(folder)
    if scores.manifest.method != "lsd":
        raise LongRecipeError(
            f"{folder} compares two models (method {scores.manifest.method}); the key tokens of "
            "LongPPL are those of one: run `lrtrain score` without --long-model"
        )
    windows = KeyWindows(scores)
    if not windows.indices:
        raise LongRecipeError(
            f"{folder} has no key token among {scores.manifest.measured:,} (log P above "
            f"{KEY_LOG_PROB:g}, {KEY_GAIN:g} of them from long context); score more text, or with "
            "a model that uses its context"
        )
    return windows


# Keys for another tokenizer


def encode_keys(text: bytes, spans: np.ndarray, tokenizer: Tokenizer) -> KeyedTokens | None:
    """The tokens of a text and which of them share a byte with a key span.

    text: UTF-8, perhaps cut within its first or last character; what is cut is left out. spans:
    int64 [k, 2], bytes [start, stop) in order, not overlapping. None where the tokenizer does not
    spell the text, see `encode_spelled`.
    """
    spelled = encode_spelled(text, tokenizer)
    if spelled is None:
        return None
    ids, edges = spelled
    keys = overlapping(edges[:-1], edges[1:], np.clip(spans, edges[0], edges[-1]))
    return KeyedTokens(ids, keys, np.diff(edges))


# Measuring


def check_head(model: Any, device: "torch.device | str", name: str) -> None:
    """Raises LongRecipeError where logits are not the last hidden states times the output
    embedding: some models scale or bend them, and `token_nats` does not."""
    import torch

    ids = torch.arange(min(16, model.get_input_embeddings().weight.shape[0]), device=device)[None]
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).logits.float()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        plain = (hidden @ model.get_output_embeddings().weight.T).float()
    if (own - plain).abs().max() > 0.02 * own.abs().max():  # bf16 rounds to 1/256
        raise LongRecipeError(
            f"{name} does more to its logits than multiply with its output embedding; longppl does "
            "not know such models: leave it out"
        )


def token_nats(
    model: Any, device: "torch.device | str", ids: np.ndarray, bos_id: int | None
) -> np.ndarray:
    """-log P of each token after all before it: ids int32 [n] -> float64 [n].

    NaN for a first token that nothing is before. Logits exist for a chunk of tokens at a time.
    Raises FloatingPointError where they are not finite.
    """
    import torch

    from lrtrain.loss import chunked_log_probs

    lead = [] if bos_id is None else [bos_id]
    row = torch.from_numpy(np.concatenate([lead, ids]).astype(np.int64)).to(device)
    nats = np.full(len(ids), np.nan)
    if len(row) > 1:
        with torch.inference_mode():
            body = model.base_model(input_ids=row[None, :-1], use_cache=False)
            hidden = body.last_hidden_state[0]
            found = chunked_log_probs(hidden, model.get_output_embeddings().weight, row[1:])[0]
        nats[len(ids) - len(found) :] = -found.double().cpu().numpy()
    return nats


def bin_ends(window: int) -> np.ndarray:
    """Where bins of positions end, for scores with windows of so many tokens: int64.

    Powers of two from 1,024 on, or from an eighth of a window that is shorter than 8,192.
    """
    first = min(_FIRST_END, 1 << max(0, (window // 8).bit_length() - 1))
    return first << np.arange(_BINS)


def measure(
    model: Any, device: "torch.device | str", name: str, source: KeyWindows, tokenizer: Tokenizer
) -> Iterator[LongPplCell | None]:
    """Read all windows, one at a time; yields after each, with the cell beside the last of them.

    A window that the tokenizer does not spell is left out and counted: a single character in it
    need not stop an evaluation. Raises LongRecipeError when that leaves nothing to measure.
    """
    check_head(model, device, name)
    lead = 0 if tokenizer.bos_id is None else 1
    ends = bin_ends(source.scores.manifest.window)
    windows, context, nats, tokens, sizes = [list[Any]() for _ in range(5)]
    key_nats, key_tokens = list[np.ndarray](), list[np.ndarray]()
    for done, index in enumerate(source.indices, 1):
        read = source.tokens(index, tokenizer)
        if read is not None:
            found = token_nats(model, device, read.ids, tokenizer.bos_id)
            before = np.arange(len(found)) + lead
            targets = (read.sizes > 0) & (before > 0)
            keys = targets & read.keys
            bins = np.searchsorted(ends, before[keys])
            key_nats.append(np.bincount(bins, found[keys], _BINS))
            key_tokens.append(np.bincount(bins, minlength=_BINS))
            windows.append(index)
            context.append(len(found) + lead - 1)
            nats.append(float(found[targets].sum()))
            tokens.append(int(targets.sum()))
            sizes.append(int(read.sizes[targets].sum()))
        if done < len(source.indices):
            yield None
    used = np.flatnonzero(np.sum(key_tokens, axis=0, initial=0))
    if not len(used):
        raise LongRecipeError(
            f"{name}: its tokenizer does not spell the text of any window of "
            f"{source.scores.folder} as it is (it normalises or drops characters); leave it out"
        )
    yield LongPplCell(
        model=name,
        windows=tuple(windows),
        context=tuple(context),
        bins=tuple((int(ends[at - 1]) if at else 0, int(ends[at])) for at in used),
        key_nats=tuple(tuple(row[used].tolist()) for row in key_nats),
        key_tokens=tuple(tuple(row[used].tolist()) for row in key_tokens),
        nats=tuple(nats),
        tokens=tuple(tokens),
        bytes=tuple(sizes),
        left_out=len(source.indices) - len(windows),
        documents=tuple(source.documents[index] for index in windows),
    )


@dataclass(frozen=True)
class LongPplSuite:
    """All windows of a score folder that have key tokens, whatever lengths are asked for.

    shards: a dataset that models were trained on, to say which of the windows' files it is of.
    """

    keys: KeyWindows
    shards: Path | None = None
    name: ClassVar[str] = "longppl"
    kind: ClassVar[type[LongPplCell]] = LongPplCell
    size: ClassVar[int] = 1
    compares: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    def settings(self) -> dict[str, object]:
        said = self.keys.settings()
        if self.shards is not None:
            found = self.keys.files_in(open_dataset(self.shards).manifest.sources)
            said |= {"files_in_shards": found} if found else {}
        return {"keys": said}

    def check(self, opened: OpenModel) -> None:
        """Nothing: whether its tokenizer spells a window is seen when that is read."""

    def cells(self, loaded: LoadedModel, done: int = 0) -> Iterator[LongPplCell]:
        """One cell. Raises LongRecipeError where there is nothing to measure, see `measure`."""
        if done:
            return
        name = loaded.spec.name
        with progress(f"{name}: longppl", len(self.keys.indices)) as task:
            for cell in measure(loaded.model, loaded.device, name, self.keys, loaded.tokenizer):
                task.advance()
                if cell:
                    yield cell
