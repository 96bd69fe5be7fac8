"""What `lrdata build` is measured against, each in a fresh process.

    python bench/contestants.py NAME '{"tokenizer": "tokenizer.json", "corpus": "texts.jsonl"}'

prints a line of JSON: `seconds` of the work itself, without imports, loading the tokenizer or
reading the corpus (except for datatrove, which reads it as part of its work); `tokens` without
special tokens; `documents`. datatrove may live in another environment, so modules are imported
where they are used and nothing of ours is.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BATCH_BYTES = 4 * 10**6
"""fastokens and tokenizers are fastest with batches of 1 to 16 MB; a whole corpus in one call is
much slower, because its result is all fresh memory."""

Job = dict[str, Any]
Result = dict[str, Any]


def fastokens(job: Job) -> Result:
    """Texts in memory -> ids in memory, batch after batch; fastokens starts its own threads."""
    tokenizer, batches = _load_fastokens(job["tokenizer"]), list(_batches(job["corpus"]))
    started = time.perf_counter()
    offsets = [tokenizer.encode_batch_flat(b, split_special_tokens=True)[1] for b in batches]
    return _flat_result(time.perf_counter() - started, offsets, job)


def fastokens_threads(job: Job) -> Result:
    """The same with `threads` Python threads that share a tokenizer, each a batch at a time.

    Run it with FASTOKENS_BPE_THREADS=1, or each of them starts threads of its own.
    """
    tokenizer, batches = _load_fastokens(job["tokenizer"]), list(_batches(job["corpus"]))

    def encode(batch: list[str]) -> bytes:
        offsets: bytes = tokenizer.encode_batch_flat(batch, split_special_tokens=True)[1]
        return offsets

    with ThreadPoolExecutor(job["threads"]) as pool:
        started = time.perf_counter()
        offsets = list(pool.map(encode, batches))
        return _flat_result(time.perf_counter() - started, offsets, job)


def tokenizers(job: Job) -> Result:
    """Texts in memory -> `Encoding` objects: the ids do not even become Python or NumPy values."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(job["tokenizer"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    batches = list(_batches(job["corpus"]))
    tokenizer.encode_batch_fast(["Starts the threads."] * 8)
    tokens, started = 0, time.perf_counter()
    for batch in batches:
        tokens += sum(map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False)))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": tokens, "documents": sum(map(len, batches))}


def datatrove(job: Job) -> Result:
    """The JSONL files of the folder `corpus` -> token files on disk, a task for each file.

    `seconds` are those of its slowest task by its own account, which leaves out its start-up
    (processes, imports, tokenizer). Documents are not shuffled, which is its faster setting.
    """
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    with tempfile.TemporaryDirectory(dir=job["scratch"]) as scratch:
        write = DocumentTokenizer(
            f"{scratch}/tokens",
            tokenizer_name_or_path=job["tokenizer"],
            eos_token=job["eot"],
            shuffle_documents=False,
        )
        executor = LocalPipelineExecutor(
            [JsonlReader(job["corpus"]), write],
            tasks=job["threads"],
            workers=job["threads"],
            logging_dir=f"{scratch}/logs",
        )
        started = time.perf_counter()
        stats = executor.run()
        whole = time.perf_counter() - started
        # An index file holds the end of each document in tokens, as uint64.
        ends = [file.read_bytes() for file in Path(scratch, "tokens").glob("*.index")]
    documents = sum(len(index) // 8 for index in ends)
    tokens = sum(int.from_bytes(index[-8:], "little") for index in ends)
    return {
        "seconds": sum(step.time_stats.global_max for step in stats.stats),
        "whole_seconds": whole,
        "tokens": tokens - documents,  # it puts an end of text after each
        "documents": documents,
    }


def _load_fastokens(file: str) -> Any:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_batch_flat(["Starts the threads."] * 8)
    return tokenizer


def _batches(corpus: str) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    with open(corpus, "rb") as lines:
        for line in lines:
            batch.append(json.loads(line)["text"])
            size += len(line)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _flat_result(seconds: float, offsets: list[bytes], job: Job) -> Result:
    """`tokens_of_first`: of the first n documents, for each n of `firsts`."""
    import numpy as np

    lengths = np.concatenate([np.diff(np.frombuffer(of, np.int64)) for of in offsets])
    return {
        "seconds": seconds,
        "tokens": int(lengths.sum()),
        "documents": len(lengths),
        "tokens_of_first": {n: int(lengths[:n].sum()) for n in job["firsts"]},
    }


CONTESTANTS: dict[str, Callable[[Job], Result]] = {
    "fastokens": fastokens,
    "fastokens_threads": fastokens_threads,
    "tokenizers": tokenizers,
    "datatrove": datatrove,
}

if __name__ == "__main__":
    print(json.dumps(CONTESTANTS[sys.argv[1]](json.loads(sys.argv[2]))))
