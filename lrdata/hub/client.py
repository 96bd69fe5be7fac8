"""The Hub's own client: found late, kept quiet, and its errors as one line.

    with talking("hf://datasets/me/x"):
        api().dataset_info("me/x")

`HF_ENDPOINT`, `HF_TOKEN`, `hf auth login` and the cache are the client's; it sends the token to the
endpoint alone. While it works for us it shows no bars and no warnings, which would hold signed
addresses.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from lrdata.errors import LongRecipeError, one_line, told_by_the_system
from lrdata.remote_io import pauses, retry_seconds

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_Result = TypeVar("_Result")
_LIBRARIES = ("huggingface_hub", "httpx", "httpcore")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class PassingError(LongRecipeError):
    """A failure that may be over in a moment: the connection, or a server that is busy."""


def library() -> Any:
    """The package huggingface_hub. Raises LongRecipeError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise LongRecipeError(
            "the Hub needs the package huggingface_hub; pip install 'longrecipe[hub]'"
        ) from None
    return huggingface_hub


def api() -> "HfApi":
    # The client reads HF_ENDPOINT when it is imported, which may have been long ago.
    client: HfApi = library().HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="longrecipe"
    )
    return client


@contextmanager
def talking(address: str, writing: bool = False) -> Iterator[None]:
    """While the client is at work: it is quiet, and its errors are LongRecipeErrors."""
    library()
    with _quiet:
        try:
            yield
        except LongRecipeError:
            raise
        except Exception as problem:
            number = told_by_the_system(problem)
            if isinstance(problem, RuntimeError) and number in _DISK:  # of hf_xet
                raise OSError(number, os.strerror(number)) from problem
            if not _is_the_hubs(problem):
                raise
            raise explained(address, problem, writing) from problem


def insist(address: str, request: Callable[[], _Result]) -> _Result:
    """What `request` gives, tried again while that may help, for $LRDATA_RETRY_SECONDS.

    The client itself tries most requests again, but not a download whose connection is reset.
    """
    left = pauses(retry_seconds())
    while True:
        try:
            with talking(address):
                return request()
        except PassingError:
            pause = next(left, None)
            if pause is None:
                raise
        time.sleep(pause)


class _Quiet:
    """Bars and warnings of the client are off while any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._bars, self._verbosity = False, 0

    def __enter__(self) -> None:
        from huggingface_hub.utils import logging
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._bars = not are_progress_bars_disabled()
                self._verbosity = logging.get_verbosity()
                if self._bars:
                    disable_progress_bars()
                logging.set_verbosity_error()

    def __exit__(self, *raised: object) -> None:
        from huggingface_hub.utils import logging
        from huggingface_hub.utils.tqdm import enable_progress_bars

        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                if self._bars:
                    enable_progress_bars()
                logging.set_verbosity(self._verbosity)


_quiet = _Quiet()


def _is_the_hubs(problem: BaseException) -> bool:
    """Whether an error is one of the client or of the connection: no bug, and not of the disk."""
    if isinstance(problem, ConnectionError | TimeoutError):
        return True
    if isinstance(problem, OSError) and problem.errno is not None:
        return _response(problem) is not None
    # A thread that cannot connect closes the client that all of them share; and what a download
    # fails by is told by hf_xet, which has no errors of its own.
    if isinstance(problem, RuntimeError):
        closed = "client has been closed" in str(problem)
        if closed or _raised_in(problem).startswith("huggingface_hub."):
            return True
    named = (kind.__module__ for cause in _causes(problem) for kind in type(cause).__mro__)
    # The client says in a plain OSError that a download has another length than it should.
    return isinstance(problem, OSError) or any(name.startswith(_LIBRARIES) for name in named)


def _raised_in(problem: BaseException) -> str:
    """The module whose code raised it, or called what did and is not in Python."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def explained(address: str, problem: BaseException, writing: bool = False) -> LongRecipeError:
    """One line for what the client raised, whose own words may hold a signed address."""
    response = _response(problem)
    status = getattr(response, "status_code", None)
    verb = "written" if writing else "read"
    kinds = {type(cause).__name__ for cause in _causes(problem)}
    if kinds & {"GatedRepoError"} or status in (401, 403):
        may = "a token that may write there" if writing else "a token that may read it"
        return LongRecipeError(
            f"{address} may not be {verb}, or is not there ({status}); set HF_TOKEN to {may}, or "
            "log in with `hf auth login`"
        )
    if kinds & {"RevisionNotFoundError"}:
        return LongRecipeError(f"{address} has no such revision; check what follows the @")
    if status == 404:
        return LongRecipeError(
            f"{address} is not there, or is private (404); check the name, or set HF_TOKEN"
        )
    if status == 412:
        return LongRecipeError(
            f"{address} was changed while it was pushed to; run the same command again"
        )
    if "OfflineModeIsEnabled" in kinds:
        return LongRecipeError(f"{address} cannot be {verb} with HF_HUB_OFFLINE set; unset it")
    if status == 400 or isinstance(problem, ValueError):
        said = getattr(problem, "server_message", None) or one_line(problem)
        return LongRecipeError(f"{address} cannot be {verb}: {' '.join(str(said).split())}")
    reason = f"HTTP {status}" if status else "the connection failed"
    kind = PassingError if status in (None, 408, 429) or status >= 500 else LongRecipeError
    return kind(f"{address} cannot be {verb}: {reason}; the same command goes on from what is done")


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if problem is None:
            return
        yield problem
        problem = problem.__cause__ or problem.__context__


def _response(problem: BaseException) -> Any:
    """The server's answer, if there was one; the client wraps its errors."""
    found = (getattr(cause, "response", None) for cause in _causes(problem))
    return next((response for response in found if response is not None), None)
