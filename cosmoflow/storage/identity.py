"""Identities of inputs: checksums of what a store holds.

The identity of an array is computed from the checksums of its objects, which are its chunks or
shards. The chunks of our own arrays end with their CRC-32C, so only a few bytes of each are read.
Objects without such checksums are hashed completely. Objects in a bucket are identified by size and
ETag. The identity does not depend on modification times: a copy of a local store has the identity
of the store.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata import ArrayV3Metadata

from cosmoflow.config.base import digest
from cosmoflow.errors import DataError
from cosmoflow.storage.buckets import open_bucket
from cosmoflow.storage.metadata import BoxMetadata, check_group
from cosmoflow.storage.together import in_threads
from cosmoflow.storage.urls import join, local_path, open_group, storage_errors

_METADATA: Final = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_ENTRY: Final = struct.Struct("<QQ")
"""Entry of one chunk in the index of a shard: its offset and its length in bytes."""
_CRC: Final = 4
_ABSENT: Final = 2**64 - 1

Stamp = tuple[str, int, str]
"""Key, size in bytes, and a value that changes with every write: inode and times of a local file,
or the ETag of an object in a bucket."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Position of the checksums in the objects of an array.

    Parameters
    ----------
    chunks : int
        Chunks of a shard; 0 if an object is a single chunk.
    at_end : bool
        Whether the index of a shard is at its end.
    """

    chunks: int
    at_end: bool = True


_known: dict[tuple[str, str], tuple[tuple[Stamp, ...], str]] = {}
"""Stamps of the objects and checksum of each array that this process has hashed."""
_MOST_KNOWN: Final = 256


def checksum_array(url: str, name: str, array: zarr.Array[Any]) -> str:
    """Return a checksum of the content and the attributes of an array.

    Returns
    -------
    str
        Checksum of the stored values, the shape, type, dimensions and attributes.

    Raises
    ------
    StorageError

    Notes
    -----
    A process reads the objects again only if their stamps have changed.
    """
    place = join(url, name)
    with storage_errors(place):
        stamps = tuple(sorted(_stamps(url, name)))
        before = _known.get((url, name))
        if before is not None and before[0] == stamps:
            content = before[1]
        else:
            content = _hash_objects(place, stamps, _layout_of(array))
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[url, name] = (stamps, content)
    return digest(
        {
            "content": content,
            "shape": list(array.shape),
            "type": str(array.dtype),
            "dimensions": list(getattr(array.metadata, "dimension_names", None) or ()),
            "attributes": _plain(dict(array.attrs)),
        }
    )


def identify_store(metadata: BoxMetadata, checksums: Mapping[str, str], **facts: Any) -> str:
    """Return the identity of a store.

    Parameters
    ----------
    metadata : BoxMetadata
        Metadata of the box. Of the provenance, only the settings of painting are used: spectra
        depend on them, because they undo the window.
    checksums : mapping of str to str
        Name and checksum of every array that a stage may read.
    **facts
        Other values that determine how the arrays are read.
    """
    config = metadata.provenance.get("config")
    box = _plain(metadata.to_attributes("any"))
    for name in ("format", "format_version", "provenance"):
        del box[name]
    return digest(
        {
            "box": box,
            "paint": _plain(config.get("paint")) if isinstance(config, dict) else None,
            "arrays": dict(checksums),
            **_plain(facts),
        }
    )


class Store:
    """A store of a box, opened for reading.

    Parameters
    ----------
    kind : str
        Required kind of the store.
    unfinished : bool
        Open a store that is not complete yet.

    Attributes
    ----------
    group : zarr.Group
        The group, open for reading.
    metadata : BoxMetadata
        Metadata of the box.
    digest : str
        Identity of what it holds.

    Raises
    ------
    StorageError, DataError, IncompleteError
        The store cannot be reached, is of another kind, or is not complete.
    """

    digest: Any

    def __init__(self, url: str, kind: str, *, unfinished: bool = False) -> None:
        self.url = url
        self.group = open_group(url)
        check_group(self.group, kind, url, unfinished=unfinished)
        self.metadata = BoxMetadata.from_attributes(self.group.attrs, url)

    def check_unchanged(self) -> None:
        """Refuse a store that was changed since :attr:`digest` was asked for.

        Raises
        ------
        DataError
        """
        subclass: Any = type(self)
        if (now := subclass(self.url).digest) != self.digest:
            raise changed_input(self.url, self.digest, now)


def changed_input(url: str, before: str, now: str) -> DataError:
    """Return the error about an input that changed while a run read it."""
    return DataError(
        "an input changed while this run read it, so the output mixes two states of it",
        where=url,
        value=f"identity {now}",
        limit=f"identity {before}, as when the run began",
        remedy="let nothing else write to the input, and make the output again with --overwrite",
    )


def _plain(value: Any) -> Any:
    """Return attributes as plain JSON data; numbers that are not finite become text."""
    return json.loads(json.dumps(value, default=str, sort_keys=True), parse_constant=str)


def _stamps(url: str, name: str) -> Iterator[Stamp]:
    """Yield the stamps of the objects of an array."""
    path = local_path(url)
    if path is None:
        for page in open_bucket(join(url, name)).list():
            for item in page:
                if _is_data(item["path"]):
                    tag = item.get("e_tag") or item["last_modified"]
                    yield str(item["path"]), int(item["size"]), str(tag)
        return
    root = path / name
    for folder, _, files in os.walk(root):
        for file in filter(_is_data, files):
            found = Path(folder, file)
            stat = found.stat()
            times = f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"
            yield found.relative_to(root).as_posix(), stat.st_size, times


def _is_data(key: str) -> bool:
    base = key.rsplit("/", 1)[-1]
    return base not in _METADATA and not base.endswith(".partial")


def _hash_objects(place: str, stamps: Iterable[Stamp], layout: _Layout | None) -> str:
    total = hashlib.sha256()
    root = local_path(place)
    if root is None:
        for key, size, tag in stamps:
            total.update(f"{key} {size} {tag}\n".encode())
        return total.hexdigest()
    keys = [key for key, _, _ in stamps]
    for key, found in zip(
        keys, in_threads(lambda key: _hash_object(root / key, layout), keys), strict=True
    ):
        total.update(f"{key} ".encode() + found)
    return total.hexdigest()


def _layout_of(array: zarr.Array[Any]) -> _Layout | None:
    """Return where the objects of an array have checksums; None if they have none."""
    if not isinstance(array.metadata, ArrayV3Metadata):
        return None
    codecs = array.metadata.codecs
    if isinstance(codecs[-1], Crc32cCodec):
        return _Layout(0)
    shards = codecs[0]
    if len(codecs) > 1 or not isinstance(shards, ShardingCodec):
        return None
    index = [type(codec) for codec in shards.index_codecs]
    if index != [BytesCodec, Crc32cCodec] or not isinstance(shards.codecs[-1], Crc32cCodec):
        return None
    assert array.shards is not None
    count = math.prod(size // chunk for size, chunk in zip(array.shards, array.chunks, strict=True))
    return _Layout(count, str(getattr(shards.index_location, "value", "end")) == "end")


def _hash_object(path: Path, layout: _Layout | None) -> bytes:
    """Return the checksum of one object in a local folder."""
    with path.open("rb") as file:
        if layout is not None:
            found = _checksums_inside(file.fileno(), layout)
            if found is not None:
                return hashlib.sha256(found).digest()
        return hashlib.file_digest(file, "sha256").digest()


def _checksums_inside(file: int, layout: _Layout) -> bytes | None:
    """Return size and checksum of every chunk of an object; None if the index is invalid.

    The order of the chunks in a shard does not matter: it does not change the content.
    """
    size = os.fstat(file).st_size
    if layout.chunks == 0:
        return size.to_bytes(8, "little") + os.pread(file, _CRC, max(size - _CRC, 0))
    length = layout.chunks * _ENTRY.size
    if size < length + _CRC:
        return None
    index = os.pread(file, length, size - length - _CRC if layout.at_end else 0)
    found = bytearray()
    for start, count in _ENTRY.iter_unpack(index):
        found += count.to_bytes(8, "little")
        if start == count == _ABSENT:
            continue
        if count < _CRC or start + count > size:
            return None
        found += os.pread(file, _CRC, start + count - _CRC)
    return bytes(found)
