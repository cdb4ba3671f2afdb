"""Connections to object stores: retries, and messages for their errors.

Which requests obstore retries was measured with a proxy that injects faults
(``tests/unit/test_object_store.py``). It retries requests that are answered with 5xx, requests that
find no connection, and reads and plain writes whose connection breaks, also in the middle of the
body of a GET. It does not retry conditional writes, deletions and listings whose connection breaks,
nor the GET of a missing object whose answer breaks off: :func:`insisting` does.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import (
    GenericError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from cosmoflow.errors import StorageError
from cosmoflow.storage.places import RemotePlace, remote_place

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which a failing request is repeated. Stores answer 503 while they adapt to a new
load, for a minute or two; the credentials in a request are valid for five minutes. obstore's
default of ten retries ended after 2.5 s."""

GREETING = 5.0
"""The same for the first request of a process to a bucket: a mistyped endpoint or missing
credentials should be reported at once. Answers of 5xx count as success."""

STALL = 60.0
"""Seconds without a byte after which a request or its answer counts as lost. obstore instead limits
the whole request to 30 s, which is too little for a large shard on a slow line."""

LONGEST = 900.0
"""Seconds that one request may take in total: 512 MiB at 0.6 MB/s."""

ONE_PUT = 32 << 20
"""Bytes up to which an object is sent in one request, at 0.6 MB/s or more. obstore sends objects
above 5 MiB in parts; if a worker is killed meanwhile, its parts stay in the bucket, unlisted
and paid for. A single request leaves nothing behind."""

_STORES: dict[str, Callable[..., Any]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
"""Classes that open a bucket of each cloud. They take the prefix literally; obstore's ``from_url``
decodes percent escapes, and cuts a key at ``#`` and ``?``."""
_KEYS = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""Prefixes of the environment variables of each cloud."""
_CLIENT_OPTIONS = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only",
    "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes",
    "proxy_url", "randomize_addresses", "read_timeout", "timeout", "user_agent",
)  # fmt: skip
_BROKEN_OFF = "HTTP error: "
"""In obstore's messages about failed connections; messages about answers have a status code."""
_CODE, _STATUS = re.compile(r"<Code>(\w+)</Code>"), re.compile(r"status code: (\d+[^:]*)")
_METADATA = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity")
"""Addresses at which obstore asks for the credentials of a cloud machine if none are given."""
_BAD_CREDENTIALS = (
    "AuthenticationFailed", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
    "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
)  # fmt: skip
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_CREDENTIALS = "the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the like)"


class Bucket:
    """A place in an object store, for small files.

    Parameters
    ----------
    store : obstore.store.ObjectStore
        Store whose prefix is the place.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, name: str) -> Any:
        """Return an object's content; its method ``bytes()`` reads it."""
        return insisting(lambda: self._store.get(name))

    def head(self, name: str) -> Any:
        """Return an object's metadata, such as its size."""
        return self._store.head(name)

    def put(self, name: str, content: bytes, mode: str = "overwrite") -> None:
        """Write an object; with the mode "create" only if it does not exist."""
        insisting(lambda: self._store.put(name, content, mode=mode))

    def delete(self, names: str | Sequence[str]) -> None:
        """Delete the objects that exist among those named."""
        insisting(lambda: self._store.delete(names))

    def list(self, chunk_size: int = 1000, prefix: str | None = None) -> Iterator[Sequence[Any]]:
        """Yield pages of all objects below the place, or below a prefix there."""
        last, stream = None, self._store.list(prefix, chunk_size=chunk_size)

        def following() -> Sequence[Any]:
            nonlocal stream
            try:
                return [*next(stream, [])]
            except (ObstoreError, OSError):
                # Only a retry starts after the last name: the listed name of a folder marker lacks
                # its slash, so a listing that starts after it finds the marker again.
                stream = self._store.list(prefix, offset=last, chunk_size=chunk_size)
                raise

        while page := insisting(following):
            yield page
            last = page[-1]["path"]

    def list_with_delimiter(self) -> Any:
        """Return the objects and folders directly in the place."""
        return insisting(self._store.list_with_delimiter)


def open_bucket(url: str) -> Bucket:
    """Open a remote URL; credentials and endpoint come from the usual environment variables.

    Raises
    ------
    StorageError
        The bucket cannot be reached, or the credentials are missing or wrong.
    """
    return Bucket(connect(url))


def connect(url: str) -> Any:
    """Return obstore's client of a remote URL; it raises the errors of :func:`open_bucket`."""
    place = remote_place(url)
    prefix = f"{_KEYS[place.scheme]}_"
    return _connected(
        place, tuple(sorted(item for item in os.environ.items() if item[0].startswith(prefix)))
    )


@lru_cache(maxsize=256)
def _connected(place: RemotePlace, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return the client of a place. Clients are cached, since each has its own connections."""
    _greet(place.root, environment)
    with naming(place.url):
        return _STORES[place.scheme](
            place.bucket,
            prefix=place.key or None,
            client_options=_client_options(place.scheme),
            retry_config=_retries(PATIENCE, longest_pause=10.0),
        )


def forget() -> None:
    """Close all connections, so that changed constants of this module take effect."""
    _connected.cache_clear()
    _greet.cache_clear()


def _client_options(scheme: str) -> dict[str, Any]:
    """Return the connection settings: ours, overridden by those in the environment.

    obstore reads the environment itself, but ignores it when any settings are passed.
    """
    found = {name: os.environ.get(f"{_KEYS[scheme]}_{name.upper()}") for name in _CLIENT_OPTIONS}
    return {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=STALL),
        "timeout": timedelta(seconds=LONGEST),
        # S3 closes idle connections after about 20 s; a request sent at that moment is lost.
        "pool_idle_timeout": timedelta(seconds=15),
        **{name: value for name, value in found.items() if value is not None},
    }


def _retries(patience: float, longest_pause: float) -> dict[str, Any]:
    """Return the retry settings of obstore: any number of retries within ``patience`` seconds."""
    return {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=longest_pause),
            "base": 2,
        },
    }


@lru_cache(maxsize=256)
def _greet(root: RemotePlace, environment: tuple[tuple[str, str], ...]) -> None:
    """Make sure that a bucket can be reached; errors are raised after GREETING, not PATIENCE."""
    with naming(root.url):
        bucket = _STORES[root.scheme](
            root.bucket,
            client_options={
                **_client_options(root.scheme),
                "timeout": timedelta(seconds=4.0 * GREETING),
            },
            retry_config=_retries(GREETING, longest_pause=1.0),
        )
        try:
            # The prefix matches no object, so that the answer is short.
            insisting(lambda: list(bucket.list(".cosmoflow")), patience=GREETING)
        except (ObstoreError, OSError) as error:
            # Reading may be allowed where listing is not, and a busy store answers at last.
            known = _code(error) in (*_BAD_CREDENTIALS, *_NO_BUCKET)
            if known or _BROKEN_OFF in first_line(error):
                raise


def insisting(call: Callable[[], T], patience: float | None = None) -> T:
    """Call an idempotent function, and call it again while its connection breaks."""
    pauses = _pauses(PATIENCE if patience is None else patience)
    while True:
        try:
            return call()
        except (ObstoreError, OSError) as error:
            time.sleep(_pause_after(error, pauses))


async def insisting_async(call: Callable[[], Awaitable[T]]) -> T:
    """Await what a function returns, as :func:`insisting` calls one."""
    pauses = _pauses(PATIENCE)
    while True:
        try:
            return await call()
        except (ObstoreError, OSError) as error:
            await asyncio.sleep(_pause_after(error, pauses))


def _pauses(patience: float) -> Iterator[float]:
    """Yield pauses, each about twice as long as the one before, until patience ends."""
    ends = time.monotonic() + patience
    pause = 0.1
    while time.monotonic() < ends:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2.0 * pause, 10.0)


def _pause_after(error: Exception, pauses: Iterator[float]) -> float:
    """Return how long to pause before the next attempt, or raise the error if there is none."""
    text = first_line(error)
    broken = isinstance(error, GenericError) and _BROKEN_OFF in text
    # The last answer to a multipart upload was lost, so there was nothing to abort.
    aborted = isinstance(error, FileNotFoundError) and "DELETE" in text and "uploadId=" in text
    pause = next(pauses, None) if broken or aborted else None
    if pause is None:
        raise error
    return pause


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Turn exceptions of obstore into errors that name the place."""
    try:
        yield
    except (ObstoreError, FileNotFoundError) as error:
        raise explain(error, url) from error


def explain(error: Exception, url: str) -> StorageError:
    """Return the error that explains an exception of obstore."""
    text, code = first_line(error), _code(error)
    if code in _NO_BUCKET or isinstance(error, FileNotFoundError | NotFoundError):
        kind, remedy = "store", "check the path"
        if code in _NO_BUCKET:
            kind, remedy = "bucket", "check its name, or make it"
        return StorageError(f"no such {kind}", where=url, remedy=remedy)
    if isinstance(error, InvalidPathError):
        return StorageError(
            "the bucket has an object here whose key cannot be used",
            where=url,
            value=text,
            limit="keys without empty segments, . and .., and control characters",
            remedy="rename or delete that object, or use another prefix",
        )
    if any(path in text for path in _METADATA):
        return StorageError(
            "no credentials for the object store",
            where=url,
            remedy=f"set {_CREDENTIALS}; AWS_SKIP_SIGNATURE=true for a public bucket",
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or code in _BAD_CREDENTIALS:
        return StorageError(
            "the object store refuses access" + (f": {code}" if code else ""),
            where=url,
            remedy=f"check {_CREDENTIALS}, and what they allow",
        )
    if _BROKEN_OFF in text:
        return StorageError(
            "the object store cannot be reached, or connections to it break",
            where=url,
            value=f"{text.rsplit(_BROKEN_OFF)[-1]}, at {_endpoint(text) or 'its endpoint'}",
            remedy="check the network and the endpoint (AWS_ENDPOINT_URL, AWS_REGION; for http:// "
            "AWS_ALLOW_HTTP=true); then run again with --resume",
        )
    if status := _STATUS.search(text):
        text = f"it answers {status[1].strip()}" + (f", {code}" if code else "")
    return StorageError(
        f"storage failed: {text}", where=url, remedy="run again later with --resume"
    )


def first_line(error: Exception) -> str:
    """Return the message of an error without the debug output that obstore adds."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _code(error: Exception) -> str | None:
    """Return the error code in the answer to a request, if it has one."""
    return found[1] if (found := _CODE.search(str(error))) else None


def _endpoint(text: str) -> str | None:
    found = urlsplit(next((word for word in text.split() if "://" in word), ""))
    return f"{found.scheme}://{found.netloc}" if found.netloc else None
