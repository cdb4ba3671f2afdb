"""Object stores: how they are reached, what is tried again, and what their errors mean.

What obstore repeats on its own, and what not, was measured with a proxy that injects faults
(``tests/unit/test_object_store.py``). It repeats whatever is answered with 5xx, any request that
finds no connection, and reading and plain writing whose connection ends, a GET in the middle of its
body too. It does not repeat conditional writes, deletions and listings whose connection ends, nor
a GET of what is not there whose answer ends in its middle: :func:`insisting` does.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from itertools import takewhile
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import AzureStore, GCSStore, S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from cosmoflow.errors import StorageError
from cosmoflow.storage.places import RemotePlace, remote_place

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which a request that fails is repeated. Stores answer 503 for as long as it takes
them to spread a new load, a minute or two; below five minutes, the credentials in a request hold.
With obstore's own numbers, ten retries were over after 2.5 s."""

GREETING = 5.0
"""The same for the first request of a process to a bucket. Whoever mistypes an endpoint, or has no
credentials, is not to wait for minutes; 5xx answers count as success."""

STALL = 60.0
"""Seconds without a byte after which an answer counts as lost; a request is sent within them too.
obstore has no such limit, but one of 30 s for all: too little for a large shard on a slow line."""

LONGEST = 900.0
"""Seconds that one request may take in all: 512 MiB at 0.6 MB/s."""

ONE_PUT = 32 << 20
"""Bytes up to which an object is sent whole, at 0.6 MB/s or more. obstore sends what exceeds 5 MiB
in parts, and of a worker that is killed meanwhile they stay, unseen and paid for; one request
leaves nothing."""

_STORES: dict[str, Callable[..., Any]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
"""What opens a bucket of each cloud. It takes the prefix as it is; ``from_url`` of obstore decodes
percent escapes, and cuts a key at ``#`` and ``?``."""
_KEYS = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""What the environment variables of each cloud begin with."""
_CLIENT_OPTIONS = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only",
    "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes",
    "proxy_url", "randomize_addresses", "read_timeout", "timeout", "user_agent",
)  # fmt: skip
_BROKEN_OFF = "HTTP error: "
"""What obstore says of a connection that failed; of an answer it says its status code."""
_CODE, _STATUS = re.compile(r"<Code>(\w+)</Code>"), re.compile(r"status code: (\d+[^:]*)")
_METADATA = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity")
"""Where obstore asks for the credentials of a machine in a cloud when it was given none."""
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
        Whose prefix is the place.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, name: str) -> Any:
        """Return an object's content, to be had by ``bytes()``."""
        return insisting(lambda: self._store.get(name))

    def head(self, name: str) -> Any:
        """Return an object's size and the like."""
        return self._store.head(name)

    def put(self, name: str, content: bytes, mode: str = "overwrite") -> None:
        """Write an object; with the mode "create" unless it is there."""
        insisting(lambda: self._store.put(name, content, mode=mode))

    def delete(self, names: str | Sequence[str]) -> None:
        """Delete objects, those of them that are there."""
        insisting(lambda: self._store.delete(names))

    def list(self, chunk_size: int = 1000) -> Iterator[Sequence[Any]]:
        """Yield pages of all objects below the place."""
        last, stream = None, self._store.list(chunk_size=chunk_size)

        def following() -> Sequence[Any]:
            nonlocal stream
            try:
                return [*next(stream, [])]
            except (ObstoreError, OSError):
                # A new listing begins after the last name only here: the name of a folder's mark
                # lacks its slash, and a listing after that name finds the mark once more.
                stream = self._store.list(offset=last, chunk_size=chunk_size)
                raise

        while page := insisting(following):
            yield page
            last = page[-1]["path"]

    def list_with_delimiter(self) -> Any:
        """Return the objects and folders directly in the place."""
        return insisting(self._store.list_with_delimiter)


class BucketStore(ObjectStore[Any]):
    """zarr's view of a place in an object store, which repeats what obstore does not."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object or a part of it; None if it is not there."""
        read = super().get
        return await _insisting(lambda: read(key, prototype, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        read, wanted = super().get_partial_values, list(key_ranges)
        return await _insisting(lambda: read(prototype, wanted))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        self._check_writable()
        content = value.as_buffer_like()
        parts = len(value) > ONE_PUT

        async def put() -> None:
            await obstore.put_async(self.store, key, content, use_multipart=parts)

        await _insisting(put)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless it is there."""
        self._check_writable()
        content = value.as_buffer_like()

        async def put() -> None:
            await obstore.put_async(self.store, key, content, mode="create")

        with suppress(AlreadyExistsError):
            await _insisting(put)

    async def delete(self, key: str) -> None:
        """Delete an object if it is there."""
        self._check_writable()
        with suppress(FileNotFoundError):
            await _insisting(lambda: obstore.delete_async(self.store, key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        self._check_writable()
        folder = f"{prefix.rstrip('/')}/" if prefix else prefix
        # obstore calls the mark of a folder "" there, and would delete another object.
        keys = [item["path"] async for item in self._list(folder) if item["path"]]
        if keys:
            await _insisting(lambda: obstore.delete_async(self.store, keys))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Yield the names directly below a prefix."""
        found = await _insisting(lambda: obstore.list_with_delimiter_async(self.store, prefix))
        names = (*found["common_prefixes"], *(item["path"] for item in found["objects"]))
        for name in names:
            yield name.removeprefix(prefix.rstrip("/")).strip("/")

    async def _list(self, prefix: str | None = None) -> AsyncIterator[Any]:  # type: ignore[override]
        # All of zarr's own listings go through this one.
        async def everything() -> Any:
            return await obstore.list(self.store, prefix=prefix).collect_async()

        for item in await _insisting(everything):
            yield item


def open_bucket(url: str) -> Bucket:
    """Open a remote URL; credentials and endpoint come from the usual environment variables.

    Raises
    ------
    StorageError
        It cannot be reached, or there are no credentials or wrong ones.
    """
    return Bucket(connect(url))


def bucket_store(url: str, *, read_only: bool) -> ObjectStore[Any]:
    """Return the zarr store behind a remote URL; raises what :func:`open_bucket` does."""
    return BucketStore(connect(url), read_only=read_only)


def connect(url: str) -> Any:
    """Return obstore's own view of a remote URL; raises what :func:`open_bucket` does."""
    place = remote_place(url)
    prefix = f"{_KEYS[place.scheme]}_"
    return _connected(
        place, tuple(sorted(item for item in os.environ.items() if item[0].startswith(prefix)))
    )


@lru_cache(maxsize=256)
def _connected(place: RemotePlace, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return the client of a place; kept, for each has connections of its own."""
    _greet(place.root, environment)
    with naming(place.url):
        return _STORES[place.scheme](
            place.bucket,
            prefix=place.key or None,
            client_options=_client_options(place.scheme),
            retry_config=_retries(PATIENCE, longest_pause=10.0),
        )


def forget() -> None:
    """Close all connections, so that changed numbers count."""
    _connected.cache_clear()
    _greet.cache_clear()


def _client_options(scheme: str) -> dict[str, Any]:
    """Return the settings of connections: ours, and those that the environment has.

    obstore reads the latter itself, but forgets them when it is given any.
    """
    found = {name: os.environ.get(f"{_KEYS[scheme]}_{name.upper()}") for name in _CLIENT_OPTIONS}
    return {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=STALL),
        "timeout": timedelta(seconds=LONGEST),
        # S3 closes a connection that was idle for 20 s or so; a request that it crosses is lost.
        "pool_idle_timeout": timedelta(seconds=15),
        **{name: value for name, value in found.items() if value is not None},
    }


def _retries(patience: float, longest_pause: float) -> dict[str, Any]:
    """Return how obstore repeats a request: as often as there is time for, seconds."""
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
    """Make sure that a bucket can be reached; its errors are told at once, not after PATIENCE."""
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
            # Of nothing, so that the answer is short.
            insisting(lambda: list(bucket.list(".cosmoflow")), patience=GREETING)
        except (ObstoreError, OSError) as error:
            # Who may not list may still read; who is told to slow down is heard.
            known = _code(error) in (*_BAD_CREDENTIALS, *_NO_BUCKET)
            if known or _BROKEN_OFF in first_line(error):
                raise


def insisting(call: Callable[[], T], patience: float | None = None) -> T:
    """Call something that is harmless when done twice, again while its connection breaks."""
    waits = _waits(patience)
    while True:
        try:
            return call()
        except (ObstoreError, OSError) as error:
            time.sleep(_wait_after(error, waits))


async def _insisting(call: Callable[[], Awaitable[T]]) -> T:
    waits = _waits(None)
    while True:
        try:
            return await call()
        except (ObstoreError, OSError) as error:
            await asyncio.sleep(_wait_after(error, waits))


def _waits(patience: float | None) -> Iterator[float]:
    """Return pauses, each about twice as long as the one before, until patience ends."""
    ends = time.monotonic() + (PATIENCE if patience is None else patience)
    return takewhile(lambda _: time.monotonic() < ends, _pauses())


def _pauses() -> Iterator[float]:
    pause = 0.1
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2.0 * pause, 10.0)


def _wait_after(error: Exception, waits: Iterator[float]) -> float:
    """Return how long to pause before the next try, or raise the error if there is none."""
    text = first_line(error)
    broken = isinstance(error, GenericError) and _BROKEN_OFF in text
    # The last answer to an upload in parts was lost, so there was nothing to abort.
    aborted = isinstance(error, FileNotFoundError) and "DELETE" in text and "uploadId=" in text
    pause = next(waits, None) if broken or aborted else None
    if pause is None:
        raise error
    return pause


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Turn what obstore raises into errors that name the place."""
    try:
        yield
    except (ObstoreError, FileNotFoundError) as error:
        raise explain(error, url) from error


def explain(error: Exception, url: str) -> StorageError:
    """Return the error that tells a person what one of an object store means."""
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
    """Return what an error says, without the pages of debug output that obstore adds."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _code(error: Exception) -> str | None:
    """Return the word by which the answer to a request says what is wrong, if it says so."""
    found = _CODE.search(str(error))
    return found[1] if found else None


def _endpoint(text: str) -> str | None:
    found = urlsplit(next((word for word in text.split() if "://" in word), ""))
    return f"{found.scheme}://{found.netloc}" if found.netloc else None
