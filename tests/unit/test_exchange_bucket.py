"""Parcels in a bucket: few requests, bounded memory, and no object deleted that a run needs."""

import threading
import time

import numpy as np
import pytest

from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Session
from cosmoflow.engine.exchange import bucket
from cosmoflow.engine.exchange.bucket import BucketScratch
from cosmoflow.engine.exchange.parcels import decode
from cosmoflow.engine.exchange.scratch import Scratch, nameless
from cosmoflow.errors import ConfigError, StorageError
from cosmoflow.stages.run import Plan, Run, make_exchange
from cosmoflow.storage import objects
from cosmoflow.storage.objects import Objects
from tests.faulty_proxy import RESETS, faulty_proxy
from tests.object_store import MemoryObjects, make_bucket, s3_server, settings_of, using

pytestmark = pytest.mark.cluster

KEYS = [("bucket", number) for number in range(12)]


@pytest.fixture(autouse=True)
def new_process():
    """Nothing has been read yet."""
    bucket._ends.cache_clear()


@pytest.fixture(scope="module")
def proxy():
    with s3_server() as server, faulty_proxy(server) as proxy, using(settings_of(proxy.url)):
        make_bucket(server, "boxes")
        yield proxy


def parts_of(number, count=40):
    """Parts of other sizes in each parcel; every seventh is absent."""
    rng = np.random.default_rng(number)
    return [
        None if (number + part) % 7 == 0 else rng.integers(0, 255, 3000 + number, dtype=np.uint8)
        for part in range(count)
    ]


def write(place, keys=KEYS):
    expected = {key: parts_of(key[1]) for key in keys}
    for key, parts in expected.items():
        place.write(key, parts, {"of": key})
    return expected


def check(place, expected, part):
    """Assert that a part of all parcels is what was written; return how many are there."""
    found = list(place.blocks(list(expected), part))
    for block, parts in zip(found, expected.values(), strict=True):
        assert (block is None) == (parts[part] is None)
        if block is not None:
            np.testing.assert_array_equal(decode(block), parts[part])
    return sum(block is not None for block in found)


def test_a_part_is_one_request_and_a_parcel_one_more(proxy):
    place = BucketScratch("once-a", Objects("s3://boxes/some scratch"))
    held = place.hold(keep=False)
    proxy.requests.clear()
    expected = write(place)
    assert proxy.requests == {"PUT": len(KEYS)}
    parts = sum(check(place, expected, part) for part in range(40))
    assert proxy.requests["GET"] == len(KEYS) + parts
    assert place.find() == {key: {"of": key} for key in KEYS}
    held.delete()
    assert list(place.objects.list()) == []
    assert list(place.blocks([KEYS[0]], 1)) == ["the object is missing"]


def test_a_large_parcel_is_sent_in_pieces_and_again_when_they_are_lost(proxy, monkeypatch):
    monkeypatch.setattr(objects, "ONE_PUT", 1 << 20)
    monkeypatch.setattr(objects, "_PIECE", 5 << 20)
    place = BucketScratch("once-b", Objects("s3://boxes/scratch"))
    parts = [np.random.default_rng(1).integers(0, 99, 1 << 20), None, np.arange(9)]
    for fault in RESETS:
        for method, path in (("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId=")):
            proxy.inject(fault, method=method, path=path)
        place.write(("planes", 0), parts, 5)
        assert proxy.pending() == []
        for part in (0, 2):
            np.testing.assert_array_equal(
                decode(next(place.blocks([("planes", 0)], part))), parts[part]
            )


def test_an_index_that_is_long_or_has_no_room_is_read_by_the_entry(proxy, monkeypatch):
    place, many = (
        BucketScratch("once-c", Objects("s3://boxes/scratch")),
        [*map(np.arange, range(99))],
    )
    monkeypatch.setattr(bucket, "END_BYTES", 1000)
    keys = [("many", number) for number in range(3)]
    for key in keys:
        place.write(key, many, "a value" * 200)
    proxy.requests.clear()
    for part in range(1, 5):
        for block in place.blocks(keys, part):
            np.testing.assert_array_equal(decode(block), many[part])
    assert proxy.requests["GET"] == 3 + 2 * 4 * 3
    assert place.find() == dict.fromkeys(keys, "a value" * 200)
    monkeypatch.undo()
    monkeypatch.setattr(bucket, "INDEX_BYTES", 6000)
    bucket._ends.cache_clear()
    proxy.requests.clear()
    for part in range(1, 5):
        for block in place.blocks(keys, part):
            np.testing.assert_array_equal(decode(block), many[part])
    # There is room for the indices of two of the three.
    assert proxy.requests["GET"] == 3 + 2 * 4 + (2 * 4 - 1)


def test_parcels_that_are_made_again_are_read_again():
    """This process keeps the indices of parcels which others replace."""
    place = BucketScratch("run", MemoryObjects())
    expected = write(place)
    check(place, expected, 3)
    for key in KEYS[:4]:
        expected[key] = parts_of(key[1] + 100)
        place.write(key, expected[key], None)
    check(place, expected, 3)
    name = place.name(KEYS[5])
    place.objects.put(name, lambda: iter([b"cut"]))
    place.remove([KEYS[7]])
    found = list(place.blocks(KEYS[4:8], 1))
    assert [text for text in found if isinstance(text, str)] == [
        "it ends early",
        "the object is missing",
    ]


def test_only_so_many_bytes_are_under_way(monkeypatch):
    monkeypatch.setattr(bucket, "REQUESTED_BYTES", 10_000)
    place = BucketScratch("run", MemoryObjects())
    write(place)
    under_way, most, lock = [0], [0], threading.Lock()
    read = place.objects.read

    def count(name, start, stop):
        with lock:
            under_way[0] += stop - start
            most[0] = max(under_way)
            most.append(most[0])
        return read(name, start, stop)

    monkeypatch.setattr(place.objects, "read", count)
    for block in place.blocks(KEYS, 1):
        with lock:
            under_way[0] -= 0 if block is None else len(block)
        time.sleep(0.01)
    assert 5_000 < max(most) <= 10_000


def test_a_failing_bucket_ends_the_reading():
    place = BucketScratch("run", MemoryObjects())
    write(place)

    def fail(*_):
        raise StorageError("the bucket is gone")

    place.objects.read_end = fail
    with pytest.raises(StorageError, match="gone"):
        list(place.blocks(KEYS, 1))


def leave(run, contents):
    """Leave a parcel as a killed run does, which has given its sign of life."""
    place = BucketScratch(run, contents)
    held = place.hold(keep=False)
    place.write(("bucket", 0), [np.ones(3)], 7)
    return place, held


def runs(contents):
    return {name.partition("/")[0] for name in contents.contents}


def test_only_old_leftovers_are_deleted():
    contents = MemoryObjects()
    once, named = nameless(), "named"
    alive, alive_held = leave("alive", contents)
    for run in (once, named):
        leave(run, contents)
    contents.contents["not-ours"], contents.changed["not-ours"] = b"", contents.now
    for seconds, left in ((0, {once, named}), (4000, {named}), (90_000, set())):
        contents.pass_time(seconds)
        alive_held._give_sign()
        BucketScratch("other", contents).hold(keep=False).delete()
        assert runs(contents) == {"alive", "not-ours", *left}
    assert alive.find() == {("bucket", 0): 7}
    alive_held.delete()
    assert runs(contents) == {"not-ours"}


def test_a_resumed_run_finds_what_a_killed_one_left_and_no_other_takes_it_away():
    contents = MemoryObjects()
    place, killed = leave("run", contents)
    held = place.hold(keep=True)
    assert place.find() == {("bucket", 0): 7}
    # The first one lives after all; it has lost its objects to the second.
    killed.delete()
    assert place.find() == {("bucket", 0): 7}
    assert held._sign in contents.contents
    again = place.hold(keep=False)
    assert place.find() == {}
    again.delete()
    held.delete()
    assert contents.contents == {}


def test_a_run_gives_signs_of_life_and_deletes_in_the_background(monkeypatch):
    monkeypatch.setattr(bucket, "SIGN_SECONDS", 0.05)
    contents = MemoryObjects()
    place, held = leave("run", contents)
    contents.pass_time(60)
    held.remove([("bucket", 0)])
    deadline = time.monotonic() + 30.0
    while place.find() or contents.changed[held._sign] < contents.now:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.delete()
    assert contents.contents == {}


def test_where_scratch_is(monkeypatch, tmp_path):
    plan = Plan("paint", 1, "shards", 1, 1, 1, 1.0, exchanged=9)

    def found(scratch):
        run = Run(session=Session(EngineConfig(scratch=scratch)), existing="resume")
        return make_exchange(run, plan, "name")

    monkeypatch.delenv("COSMOFLOW_SCRATCH", raising=False)
    assert found(None).objects is None
    assert found(str(tmp_path)).objects is None
    assert found("s3://boxes/a b/").objects == Objects("s3://boxes/a b/cosmoflow-scratch")
    monkeypatch.setenv("COSMOFLOW_SCRATCH", "gs://boxes")
    assert found(None).objects == Objects("gs://boxes/cosmoflow-scratch")
    assert found(str(tmp_path)).objects is None
    assert found(str(tmp_path)).resume
    with pytest.raises(StorageError, match="unknown kind of URL"):
        found("s3a://boxes/x")
    # A node whose driver does not know of the bucket.
    with pytest.raises(ConfigError, match="only the command itself") as caught:
        Scratch("run").hold(keep=False)
    assert "--set engine.scratch=gs://boxes" in caught.value.remedy
