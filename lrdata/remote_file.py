"""A remote file as a pyarrow file, without a copy of it.

    with open_remote("https://host/a.jsonl", size, version) as stream: stream.read(100)

It is read in ranges of up to BLOCK_BYTES, the next one while the last is used: at most some 24 MB
for each open file, and nothing on the disk. A body that is cut is gone on with from where it was.
Every answer must be of the size and version that were found first: a file that changes is an error,
never mixed bytes. A server that gives no ranges serves whoever reads a file from its start.
"""

import asyncio
import concurrent.futures
import io
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lrdata.errors import LongRecipeError
from lrdata.remote_io import (
    begin,
    connect,
    explained,
    obstore,
    pauses,
    retry_seconds,
    shown,
    status_of,
    version_of,
    wait,
)

BLOCK_BYTES = 4 * 1024**2
"""The most that is asked for at once."""

_FIRST_BYTES = 256 * 1024
"""Asked for where reading begins; each range that follows another is twice as long."""

_SPANS = 3
"""Places of a file (such as columns of Parquet) that are read in turns without asking twice."""

_CHUNK_BYTES = 256 * 1024


def open_remote(address: str, size: int, version: str) -> pa.NativeFile:
    """A file of this size and version, for sequential and random access.

    Reading raises LongRecipeError for anything but these bytes.
    """
    return pa.PythonFile(_RemoteFile(_Source(address, size, version)), mode="r")


class _NoRanges(Exception):
    """The server answers with the whole file where a part was asked for."""


class _Source:
    """The bytes at an address, of one size and version."""

    def __init__(self, address: str, size: int, version: str) -> None:
        self.address, self.size, self._version = address, size, version
        self._store, self._path = connect(address, retry_seconds())
        # The hub's versions are of its commits, which do not change.
        self._compared = version.startswith(("etag:", "modified:"))

    async def part(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), from as many answers as it takes."""
        parts, at, left = list[bytes](), start, pauses(retry_seconds())
        while at < stop:
            answer = await self._get({"range": (at, stop)})
            try:
                async for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                    parts.append(chunk)
                    at += len(chunk)
                    left = pauses(retry_seconds())
                if at < stop:
                    raise EOFError
            except Exception as problem:
                await self._pause(left, problem)
        return b"".join(parts)

    async def whole(self) -> AsyncIterator[bytes]:
        """All bytes, in order. After a cut, asks for the file anew and skips what is known."""
        at, left = 0, pauses(retry_seconds())
        while at < self.size:
            answer, seen = await self._get(None), 0
            try:
                async for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                    seen += len(chunk)
                    if seen > at:
                        new, at = bytes(chunk)[at - seen :], seen
                        yield new
                        left = pauses(retry_seconds())
                if at < self.size:
                    raise EOFError
            except Exception as problem:
                await self._pause(left, problem)

    async def _get(self, options: Any) -> Any:
        try:
            answer = await obstore().get_async(self._store, self._path, options=options)
        except Exception as problem:
            if type(problem).__name__ == "NotSupportedError":
                raise _NoRanges from None
            if status_of(problem) == 416:  # the range begins after the end
                raise self._changed() from None
            raise explained(self.address, problem) from None
        if answer.meta["size"] != self.size:
            raise self._changed()
        if self._compared and version_of(answer.meta) != self._version:
            raise self._changed()
        return answer

    def _changed(self) -> LongRecipeError:
        return LongRecipeError(
            f"{shown(self.address)} changed while it was being read; run the command again"
        )

    async def _pause(self, left: Iterator[float], problem: Exception) -> None:
        pause = next(left, None)
        if pause is None:
            raise explained(self.address, problem) from None
        await asyncio.sleep(pause)


@dataclass
class _Span:
    """Bytes that are held, and the request for those that follow, where reading went on so far."""

    start: int
    data: bytes
    following: "concurrent.futures.Future[bytes] | None" = None

    @property
    def stop(self) -> int:
        return self.start + len(self.data)

    def drop(self) -> None:
        if self.following:
            self.following.cancel()


class _RemoteFile(io.RawIOBase):
    """What pyarrow needs of a Python file."""

    def __init__(self, source: _Source) -> None:
        super().__init__()
        self._source, self._at = source, 0
        self._spans: list[_Span] = []  # the one used last comes last
        self._whole: AsyncIterator[bytes] | None = None
        self._whole_at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._source.size)[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """All of the bytes that are asked for, up to the end of the file."""
        stop = self._source.size
        if size is not None and size >= 0:
            stop = min(stop, self._at + size)
        parts = []
        while self._at < stop:
            span = self._span(self._at, stop - self._at)
            part = span.data[self._at - span.start : stop - span.start]
            parts.append(part)
            self._at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        for span in self._spans:
            span.drop()
        self._spans = []
        super().close()

    def _span(self, at: int, needed: int) -> _Span:
        """The bytes from `at` on, held already or asked for."""
        for span in self._spans:
            if span.start <= at < span.stop:
                self._spans.remove(span)
                self._spans.append(span)
                return span
        before = next((span for span in self._spans if span.stop == at), None)
        length = max(needed, 2 * len(before.data) if before else _FIRST_BYTES)
        if before:
            self._spans.remove(before)
        span = _Span(at, self._load(at, length, before.following if before else None))
        if before and span.stop < self._source.size and self._whole is None:
            stop = self._stop(span.stop, 2 * len(span.data))
            span.following = begin(self._source.part(span.stop, stop))
        self._spans.append(span)
        if len(self._spans) > _SPANS:
            self._spans.pop(0).drop()
        return span

    def _stop(self, start: int, length: int) -> int:
        return min(start + min(length, BLOCK_BYTES), self._source.size)

    def _load(
        self, start: int, length: int, begun: "concurrent.futures.Future[bytes] | None"
    ) -> bytes:
        if self._whole is None:
            try:
                if begun:
                    return begun.result()
                return wait(self._source.part(start, self._stop(start, length)))
            except _NoRanges:
                pass
        if start == 0:
            self._whole, self._whole_at = self._source.whole(), 0
        if self._whole is None or start != self._whole_at:
            raise LongRecipeError(
                f"{shown(self._source.address)}: its server gives whole files only, and this one "
                "is needed in parts; download it first"
            )
        data = wait(_next(self._whole))
        self._whole_at += len(data)
        return data


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)
