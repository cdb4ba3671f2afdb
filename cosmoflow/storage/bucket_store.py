"""The zarr store of a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from cosmoflow.storage.buckets import ONE_PUT, insisting_async


class BucketStore(ObjectStore[Any]):
    """A zarr store in an object store; it retries requests that obstore does not.

    Attributes
    ----------
    indices : dict
        Index and ETag of shards that were read before, by key (:mod:`cosmoflow.storage.shards`).
    asked : dict
        Requests for indices that are under way.
    """

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.indices: dict[str, tuple[Any, str | None]] = {}
        self.asked: dict[str, asyncio.Future[tuple[Any, str | None] | None]] = {}

    async def get_span(
        self, key: str, span: tuple[int, int] | dict[str, int], tag: str | None = None
    ) -> tuple[Any, str | None] | None:
        """Read a range of bytes, or the last ``{"suffix": n}`` bytes, of an object.

        Parameters
        ----------
        tag : str, optional
            ETag that the object must have.

        Returns
        -------
        bytes-like, str or None
            The bytes, and the object's ETag; None if there is no such object.

        Raises
        ------
        PreconditionError
            The object has another ETag.
        """
        wanted: dict[str, Any] = {"range": span}
        if tag is not None:
            wanted["if_match"] = tag

        async def ask() -> tuple[Any, str | None]:
            answer = await obstore.get_async(self.store, key, options=wanted)
            return await answer.bytes_async(), answer.meta["e_tag"]

        try:
            try:
                return await insisting_async(ask)
            except NotSupportedError:
                # Azure cannot answer with the end of an object.
                assert isinstance(span, dict)
                size = (await obstore.head_async(self.store, key))["size"]
                wanted["range"] = (size - span["suffix"], size)
                return await insisting_async(ask)
        except FileNotFoundError:
            return None

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object or a part; None if it does not exist."""
        read = super().get
        return await insisting_async(lambda: read(key, prototype, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        read, wanted = super().get_partial_values, list(key_ranges)
        return await insisting_async(lambda: read(prototype, wanted))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        await self._put(key, value, use_multipart=len(value) > ONE_PUT)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless it exists."""
        with suppress(AlreadyExistsError):
            await self._put(key, value, mode="create")

    async def _put(self, key: str, value: Buffer, **how: Any) -> None:
        self._check_writable()
        content = value.as_buffer_like()
        await insisting_async(lambda: obstore.put_async(self.store, key, content, **how))

    async def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        self._check_writable()
        with suppress(FileNotFoundError):
            await insisting_async(lambda: obstore.delete_async(self.store, key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        self._check_writable()
        folder = f"{prefix.rstrip('/')}/" if prefix else prefix
        # obstore lists a folder marker as "", and would delete another object instead.
        keys = [item["path"] async for item in self._list(folder) if item["path"]]
        if keys:
            await insisting_async(lambda: obstore.delete_async(self.store, keys))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Yield the names directly below a prefix."""
        found = await insisting_async(lambda: obstore.list_with_delimiter_async(self.store, prefix))
        names = (*found["common_prefixes"], *(item["path"] for item in found["objects"]))
        for name in names:
            yield name.removeprefix(prefix.rstrip("/")).strip("/")

    async def _list(self, prefix: str | None = None) -> AsyncIterator[Any]:  # type: ignore[override]
        # All listings of zarr call this method.
        async def everything() -> Any:
            return await obstore.list(self.store, prefix=prefix).collect_async()

        for item in await insisting_async(everything):
            yield item
