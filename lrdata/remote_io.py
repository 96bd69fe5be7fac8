"""Requests to the servers of remote corpora: connections, retries, errors.

obstore makes them, for http as for S3: a request that fails is tried again with growing pauses for
three minutes ($LRDATA_RETRY_SECONDS), and no error that is shown holds a password or a signature.
"""

import asyncio
import base64
import concurrent.futures
import importlib
import os
import re
import threading
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from lrdata.errors import LongRecipeError

_RETRY_SECONDS = 180.0
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
)
_HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@([0-9a-f]+)/(.+)")
_Result = TypeVar("_Result")


def shown(address: str) -> str:
    """An address as it may be printed: no password, no signature."""
    if not address.lower().startswith(("http://", "https://")):
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# ---- connections ----


def obstore() -> Any:
    """The package. Raises LongRecipeError where it is not installed."""
    try:
        return importlib.import_module("obstore")
    except ImportError:
        raise LongRecipeError(
            "a remote corpus needs the package obstore; pip install 'longrecipe[remote]'"
        ) from None


def connect(address: str, patience: float) -> tuple[Any, str]:
    """The obstore store of an address, and the path in it. Nothing is sent yet.

    patience: seconds for which a request that fails is tried again.
    """
    obstore()
    from obstore.exceptions import BaseError
    from obstore.store import HTTPStore, S3Store

    retries = _retries(patience)
    options: Any = {
        "user_agent": "longrecipe",
        "connect_timeout": "10s",
        "read_timeout": "30s",
        "timeout": "1d",  # of a whole answer, which may be read slowly
    }
    if address.startswith("s3://"):
        bucket, _, path = address.removeprefix("s3://").partition("/")
        endpoint = next(filter(None, map(os.environ.get, _S3_ENDPOINTS)), "")
        options["allow_http"] = endpoint.startswith("http://")
        signed = any(map(os.environ.get, _S3_CREDENTIALS))
        anonymous: dict[str, Any] = {} if signed else {"skip_signature": True}
        try:
            store = S3Store(bucket, client_options=options, retry_config=retries, **anonymous)
        except BaseError as problem:
            raise explained(address, problem) from None
        return store, path
    url, header = _hub_url(address) if address.startswith("hf://") else _plain_url(address)
    if header:  # it is not sent on, where a server redirects to another host
        options["default_headers"] = {"authorization": header}
    options["allow_http"] = url.lower().startswith("http://")
    try:
        return HTTPStore.from_url(url, client_options=options, retry_config=retries), ""
    except (BaseError, ValueError) as problem:
        reason = str(problem).partition("\n")[0]
        raise LongRecipeError(f"{shown(address)} is not an address ({reason})") from None


def _hub_url(address: str) -> tuple[str, str | None]:
    """Where a file of a commit is found, and the header with the user's token."""
    from huggingface_hub import get_token, hf_hub_url

    parts = _HUB_FILE.fullmatch(address)
    assert parts is not None, address
    repo, commit, path = parts.groups()
    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(repo, path, repo_type="dataset", revision=commit, endpoint=endpoint)
    token = get_token()
    return url, token and f"Bearer {token}"


def _plain_url(address: str) -> tuple[str, str | None]:
    """The address without its user and password, and the header with them."""
    parts = urlsplit(address)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, None
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {encoded}"


def version_of(meta: Any) -> str:
    """What tells this content from a later one, as far as the server says."""
    if meta["e_tag"]:
        return f"etag:{meta['e_tag']}"
    if meta["last_modified"].timestamp():  # 1970 stands for a server that does not say
        return f"modified:{meta['last_modified'].isoformat()}"
    return f"size:{meta['size']}"


# ---- retries and waiting ----


def retry_seconds() -> float:
    return float(os.environ.get("LRDATA_RETRY_SECONDS") or _RETRY_SECONDS)


def _retries(seconds: float) -> Any:
    """obstore tries again by itself: after 429 and 5xx, after resets, and where a body is cut."""
    return {
        "max_retries": 25,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {  # a pause is drawn between the first one and `base` times the last one
            "init_backoff": timedelta(seconds=seconds / 360),
            "max_backoff": timedelta(seconds=seconds / 6),
            "base": 4,
        },
    }


def pauses(limit: float) -> Iterator[float]:
    """The same for what obstore does not do: seconds, growing, until they add up to the limit."""
    pause, total = limit / 360, 0.0
    while total < limit:
        yield pause
        total += pause
        pause = min(2 * pause, limit / 6)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Requests run in a thread of their own, so that Ctrl-C need not wait for them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote corpora", daemon=True).start()
    return loop


def begin(request: Coroutine[Any, Any, _Result]) -> "concurrent.futures.Future[_Result]":
    return asyncio.run_coroutine_threadsafe(request, _loop())


def wait(request: Coroutine[Any, Any, _Result]) -> _Result:
    pending = begin(request)
    try:
        return pending.result()
    except BaseException:
        pending.cancel()
        raise


# ---- errors ----

_REASONS = (
    (r"dns error|Name or service not known|getaddrinfo", "its host was not found"),
    (r"timed ?out", "no answer in time"),
    (r"refused", "the connection was refused"),
    (r"certificate", "its certificate is not trusted (see SSL_CERT_FILE)"),
    (r"Content-?Length", "the server does not tell its size"),
    (r"without LOCATION", "it has moved to another region; set AWS_REGION"),
)


def explained(address: str, problem: Exception) -> LongRecipeError:
    """One line for what a library raised, whose own words may hold a signature."""
    if isinstance(problem, LongRecipeError):
        return problem
    place, kind, status = shown(address), type(problem).__name__, status_of(problem)
    if status in (401, 403) or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return LongRecipeError(f"{place} may not be read ({status or 403}); {_credentials(place)}")
    if "AccessKey" in str(problem):
        return LongRecipeError(f"{place} may not be read; {_credentials(place)}, or neither")
    if status == 404 or isinstance(problem, FileNotFoundError):
        return LongRecipeError(f"{place} is not there (404); check the address")
    why = (why for sign, why in _REASONS if re.search(sign, str(problem), re.IGNORECASE))
    reason = f"HTTP {status}" if status else next(why, "the connection failed")
    return LongRecipeError(f"{place} cannot be read: {reason}; run the command again later")


def status_of(problem: Exception) -> int | None:
    """The HTTP status of an error of obstore or of the hub's library."""
    said = re.search(r"status code: (\d+)", str(problem))
    status = getattr(getattr(problem, "response", None), "status_code", None)
    return int(said[1]) if said else status


def _credentials(place: str) -> str:
    if place.startswith("s3://"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if place.startswith("hf://"):
        return "set HF_TOKEN, or log in with `hf auth login`"
    return "check the address; a signed one may have expired"
