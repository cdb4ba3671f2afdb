"""A parcel gives back what was written, or says that it is damaged."""

import errno
import time
from pathlib import Path

import numpy as np
import pytest

from cosmoflow.engine.exchange import bucket, parcels, scratch
from cosmoflow.engine.exchange.bucket import BucketScratch
from cosmoflow.engine.exchange.parcels import (
    DamagedParcelError,
    decode,
    read_block,
    read_value,
    write_parcel,
)
from cosmoflow.engine.exchange.scratch import Scratch, nameless
from cosmoflow.errors import ConfigError, StorageError
from tests.cases import each
from tests.object_store import MemoryObjects

LARGE = np.arange(100_000, dtype=np.complex64).reshape(10, 100, 100)


def written(path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    parts = [LARGE, None, (rows, None, np.ones(4)), np.zeros((2, 0, 3)), (rows[:0], rows[:0], None)]
    write_parcel(path, parts, value={"totals": (1, 2.5)})
    return parts


def test_parts_come_back_in_place(tmp_path):
    path = tmp_path / "a.parts"
    parts = written(path)
    found = [None if block is None else decode(block) for block in map_parts(path, len(parts))]
    assert found[1] is None
    assert found[2][1] is None
    for expected, part in ((LARGE, found[0]), (parts[3], found[3]), (parts[2][0], found[2][0])):
        np.testing.assert_array_equal(part, expected)
        assert part.dtype == expected.dtype
        # In place: the part owns no memory, and vector instructions may load from it.
        assert not part.flags.owndata
        assert part.ctypes.data % 16 == 0
    assert read_value(path) == {"totals": (1, 2.5)}


def map_parts(path, count):
    return [read_block(path, part) for part in range(count)]


def read_file(path, whole):
    """Return the parts and the value of a parcel in a file."""
    path.write_bytes(whole)
    return map_parts(path, 2), read_value(path)


def read_object(path, whole):
    """Return the parts and the value of a parcel in a bucket, as a process that never read it."""
    place, key = BucketScratch("run", MemoryObjects()), ("bucket", 0)
    place.objects.put(place.name(key), lambda: iter([whole]))
    bucket._ends.cache_clear()
    found = [next(place.blocks([key], part)) for part in range(2)]
    if wrong := [text for text in found if isinstance(text, str)]:
        raise DamagedParcelError(wrong[0])
    if key not in place.find():
        raise DamagedParcelError("its value is wrong")
    return found, place.find()[key]


@each("read, harmless", [(read_file, 3 * 4 + 8), (read_object, 3 * 4)])
def test_any_flipped_bit_is_found(tmp_path, read, harmless):
    """Each byte of a small parcel but padding and, in a file, the number of parts: no harm."""
    path = tmp_path / "a.parts"
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    write_parcel(path, [rows, (rows, None)], value=3)
    whole = path.read_bytes()
    survived = 0
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0x10
        try:
            blocks, value = read(path, bytes(broken))
        except DamagedParcelError:
            continue
        survived += 1
        found = [decode(block) for block in blocks]
        assert value == 3
        np.testing.assert_array_equal(found[0], rows)
        np.testing.assert_array_equal(found[1][0], rows)
    assert survived == harmless


@each("end", [0, 1, 100, -1, -60])
def test_a_short_parcel_is_damaged(tmp_path, end):
    path = tmp_path / "a.parts"
    written(path)
    whole = path.read_bytes()[:end]
    for read in (read_file, read_object):
        with pytest.raises(DamagedParcelError):
            read(path, whole)
    with pytest.raises(DamagedParcelError):
        read_block(tmp_path / "missing.parts", 0)


def test_disks_and_folders_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parcels, "_pack_part", fail)
    place = Scratch("run", str(tmp_path))
    with pytest.raises(StorageError, match="is full") as caught:
        place.write(("bucket", 3), [LARGE], None)
    assert "engine.scratch" in caught.value.remedy
    assert "free" in caught.value.value
    assert list(place.folder.iterdir()) == []
    scratch.require_room(place, 1 << 20)
    with pytest.raises(ConfigError, match="does not fit on the disk"):
        scratch.require_room(place, 1 << 60)
    monkeypatch.undo()
    place.folder.parent.chmod(0o777)
    for use in (lambda: place.hold(keep=True), lambda: place.write(("a", 1), [LARGE], None)):
        with pytest.raises(StorageError, match="others can write"):
            use()


def leave(place, key=("bucket", 0)):
    """Leave a parcel as a killed run does: its lock is free."""
    held = place.hold(keep=False)
    place.write(key, [LARGE], 7)
    (place.folder / "bucket-9.parts.1.partial").write_bytes(b"half")
    return held


def test_a_resumed_run_finds_what_a_killed_one_left(tmp_path):
    place = Scratch("run", str(tmp_path))
    leave(place).release()
    held = place.hold(keep=True)
    assert place.find() == {("bucket", 0): 7}
    assert not list(place.folder.glob("*.partial"))
    with pytest.raises(StorageError, match="same folder"):
        place.hold(keep=True)
    held.delete()
    assert list(Path(tmp_path).rglob("*.parts")) == []


def test_other_runs_delete_what_is_old_and_what_is_their_own(tmp_path, monkeypatch):
    dead, alive, once = (Scratch(run, str(tmp_path)) for run in ("dead", "alive", nameless()))
    lost_node = Scratch("alive", str(tmp_path), "lost-node")
    for place in (dead, once):
        leave(place).release()
    held = leave(alive)
    now = time.time()
    for later, left in ((0.0, {dead, once}), (120.0, {dead}), (1e5, set())):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        Scratch("other", str(tmp_path)).hold(keep=False).delete()
        assert {place for place in (dead, once) if place.folder.exists()} == left
    assert alive.path(("bucket", 0)).exists()
    leave(lost_node).release()
    held.delete()
    assert not lost_node.folder.exists()
    monkeypatch.undo()
    leave(dead).release()
    dead.hold(keep=False).delete()
    assert not dead.folder.exists()
