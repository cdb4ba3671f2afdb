"""Large objects below a place in a bucket, which are written whole and read in ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Final, TypeVar

from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import NotFoundError, NotSupportedError

from cosmoflow.storage.buckets import ONE_PUT, connect, explain, insisting, open_bucket
from cosmoflow.storage.urls import join, storage_errors

T = TypeVar("T")

_PIECE: Final = 16 << 20
"""Bytes of each request of a large upload; a bucket takes 10,000 of them."""
_PIECES: Final = 4
"""Requests of a large upload that are under way at a time."""
_DELETED: Final = 1000
"""Objects that are deleted by one request to S3."""
_BEYOND: Final = ("<Code>InvalidRange</Code>", "416 ", "non-partial response")
"""In messages about a range that begins beyond the end of an object, or of an empty object."""


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects below a place in a bucket. Can be pickled.

    Parameters
    ----------
    url : str
        URL of the place.
    """

    url: str

    def put(self, name: str, content: Callable[[], Iterator[Any]]) -> None:
        """Write an object.

        Parameters
        ----------
        name : str
            Name below the place.
        content : callable
            Returns the bytes in blocks; called again when the request has to be repeated.
        """
        store = connect(self.url)

        def send() -> None:
            blocks, first, size = content(), list[Any](), 0
            for block in blocks:
                first.append(block)
                size += len(block)
                if size > ONE_PUT:
                    all_blocks = filter(len, chain(first, blocks))
                    store.put(name, all_blocks, chunk_size=_PIECE, max_concurrency=_PIECES)
                    return
            store.put(name, b"".join(first), use_multipart=False)

        with storage_errors(join(self.url, name)):
            insisting(send)

    def read(self, name: str, start: int, stop: int) -> Any:
        """Return some bytes of an object: fewer if it ends before.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """
        store = connect(self.url)
        return self._get(name, lambda: store.get_range(name, start=start, end=stop), b"")

    def read_end(self, name: str, size: int) -> tuple[bytes, int]:
        """Return the last bytes of an object, or all if it has fewer, and the size of the object.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """
        store = connect(self.url)

        def read() -> tuple[bytes, int]:
            try:
                found = store.get(name, options={"range": {"suffix": size}})
            except NotSupportedError:
                # Azure counts bytes from the beginning only.
                whole = store.head(name)["size"]
                found = store.get(name, options={"range": (max(whole - size, 0), whole)})
            return bytes(found.bytes()), found.meta["size"]

        return self._get(name, read, (b"", 0))

    def _get(self, name: str, read: Callable[[], T], nothing: T) -> T:
        """Return what a function reads, or ``nothing`` if the object ends before."""
        try:
            return insisting(read)
        except (FileNotFoundError, NotFoundError) as error:
            raise FileNotFoundError(join(self.url, name)) from error
        except ObstoreError as error:
            if any(text in str(error) for text in _BEYOND):
                return nothing
            raise explain(error, join(self.url, name)) from error

    def list(self, prefix: str = "") -> Iterator[tuple[str, datetime]]:
        """Yield name and time of last change, by the bucket's clock, of objects below a prefix."""
        with storage_errors(self.url):
            for page in open_bucket(self.url).list(prefix=prefix or None):
                yield from ((item["path"], item["last_modified"]) for item in page)

    def delete(self, names: Sequence[str]) -> None:
        """Delete the objects that exist among those named."""
        with storage_errors(self.url):
            for start in range(0, len(names), _DELETED):
                with suppress(FileNotFoundError, NotFoundError):
                    open_bucket(self.url).delete(names[start : start + _DELETED])
