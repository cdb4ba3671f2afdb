"""What object stores, and the network before them, do to requests is ridden out, or told at once.

Against a stand-in for S3 behind a proxy that injects faults.
"""

import os
import socket
import time
from contextlib import contextmanager

import numpy as np
import pytest
import zarr

from cosmoflow.errors import StorageError
from cosmoflow.storage import bucket_store, buckets, urls
from cosmoflow.storage.files import create_bytes, remove_file
from cosmoflow.storage.identity import checksum_array
from tests.faulty_proxy import RESETS, STALL, TRANSIENT, faulty_proxy
from tests.object_store import make_bucket, restricted_user, s3_server, settings_of, using

SOON = 60.0
"""Seconds: enough for a busy machine, and half of the patience with a store that fails."""

NUMBERS = np.arange(4**3, dtype="f4").reshape(4, 4, 4)


@pytest.fixture(scope="module")
def s3():
    """Yield the proxy before a server with a bucket `faulty`."""
    with s3_server() as server, faulty_proxy(server, stall=0.6) as proxy:
        make_bucket(server, "faulty")
        with using(settings_of(proxy.url)):
            yield proxy


@pytest.fixture
def place(s3, request):
    """Return the URL of an empty place; whatever faults were asked for must have happened."""
    yield f"s3://faulty/{request.node.name}"
    asked = s3.pending()
    s3.clear()
    assert not asked


def put(url):
    urls.write_bytes(url, "a", b"content")
    assert urls.read_bytes(url, "a") == b"content"


def get(url):
    assert urls.read_bytes(url, "there") == b"there"


def miss(url):
    assert urls.find_bytes(url, "absent") is None


def head(url):
    assert urls.has_file(url, "there")
    assert not urls.has_file(url, "absent")


def create(url):
    assert create_bytes(url, "mine", b"mine")
    assert not create_bytes(url, "mine", b"yours")
    assert urls.read_bytes(url, "mine") == b"mine"


def delete(url):
    remove_file(url, "there")
    assert urls.find_bytes(url, "there") is None


def remove(url):
    urls.remove(url)
    assert not urls.exists(url)


def list_names(url):
    assert urls.list_names(url) == ["array.zarr", "there"]


def list_pages(url):
    paths = [item["path"] for page in urls.open_bucket(url).list(chunk_size=2) for item in page]
    # A file; metadata of a group and of an array; two chunks.
    assert len(paths) == len(set(paths)) == 1 + 2 + 2


def read_zarr(url):
    group = urls.open_group(f"{url}/array.zarr")
    assert [name for name, _ in group.arrays()] == ["numbers"]
    np.testing.assert_array_equal(group["numbers"][:], NUMBERS)


def read_nothing(url):
    """Read a chunk that was never written."""
    group = zarr.create_group(urls.zarr_store(f"{url}/new.zarr", read_only=False))
    assert not group.create_array("empty", shape=4, dtype="f4")[:].any()


def write_zarr(url):
    write_array(f"{url}/new.zarr")
    np.testing.assert_array_equal(urls.open_group(f"{url}/new.zarr")["numbers"][:], NUMBERS)


def delete_zarr(url):
    group = urls.open_group_for_writing(f"{url}/array.zarr")
    del group["numbers"]
    assert list(urls.open_group(f"{url}/array.zarr").arrays()) == []


def write_array(url):
    group = zarr.create_group(urls.zarr_store(url, read_only=False))
    group.create_array("numbers", shape=NUMBERS.shape, chunks=(4, 4, 2), dtype="f4")[:] = NUMBERS


def furnish(url):
    urls.write_bytes(url, "there", b"there")
    write_array(f"{url}/array.zarr")


OPERATIONS = {
    "put": (put, "PUT", "/a"),
    "get": (get, "GET", "/there"),
    "miss": (miss, "GET", "/absent"),
    "head": (head, "HEAD", "/there"),
    "create": (create, "PUT", "/mine"),
    "delete": (delete, "POST", "?delete"),
    "remove": (remove, "POST", "?delete"),
    "list names": (list_names, "GET", "list-type"),
    "list pages": (list_pages, "GET", "list-type"),
    "read a chunk": (read_zarr, "GET", "/numbers/c/0/0/1"),
    "read no chunk": (read_nothing, "GET", "/empty/c/0"),
    "list a group": (read_zarr, "GET", "list-type"),
    "write a chunk": (write_zarr, "PUT", "/numbers/c/0/0/1"),
    "delete an array": (delete_zarr, "POST", "?delete"),
}


# `make test` has a faulty store for one operation, which is as many requests as any.
@pytest.mark.parametrize(
    "name",
    [
        name if name == "read a chunk" else pytest.param(name, marks=pytest.mark.cluster)
        for name in OPERATIONS
    ],
)
def test_every_fault_is_ridden_out(s3, place, name):
    operation, method, path = OPERATIONS[name]
    for index, fault in enumerate(TRANSIENT):
        url = f"{place.replace(' ', '-')}/{index}"
        furnish(url)
        s3.inject(fault, method=method, path=path)
        before = s3.injected[fault]
        operation(url)
        assert s3.injected[fault] == before + 1


@pytest.mark.cluster
def test_an_answer_that_never_comes_counts_as_lost(s3, place, monkeypatch):
    monkeypatch.setattr(buckets, "STALL", 0.2)
    monkeypatch.setattr(s3, "stall", SOON)
    buckets.forget()
    urls.write_bytes(place, "there", b"there")
    s3.inject(STALL, path="/there", times=2)
    began = time.monotonic()
    get(place)
    # It was asked again, and no stall was waited for to its end.
    assert time.monotonic() - began < s3.stall
    buckets.forget()


@pytest.mark.cluster
def test_an_upload_in_parts_whose_answers_are_lost_is_whole(s3, place, monkeypatch):
    monkeypatch.setattr(bucket_store, "ONE_PUT", 1 << 20)
    content = np.random.default_rng(1).bytes(12 << 20)
    group = zarr.create_group(urls.zarr_store(place, read_only=False))
    for fault in RESETS:
        array = group.create_array(
            fault.replace(" ", "-"), shape=len(content), chunks=len(content), dtype="u1",
            compressors=None,
        )  # fmt: skip
        for method, path in (("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId=")):
            s3.inject(fault, method=method, path=path)
        array[:] = np.frombuffer(content, "u1")
        assert array[:].tobytes() == content


@pytest.mark.cluster
def test_a_shard_is_sent_at_once(s3, place):
    """Of a writer that is killed no parts are left in the bucket, where nobody sees them."""
    before = s3.requests.copy()
    group = zarr.create_group(urls.zarr_store(place, read_only=False))
    array = group.create_array("big", shape=6 << 20, chunks=6 << 20, dtype="u1", compressors=None)
    array[:] = 1
    assert s3.requests["POST"] == before["POST"]


@pytest.mark.cluster
def test_the_identity_of_an_array_is_that_of_its_objects(place):
    """Told by size and ETag; arrays beside it, and its own metadata, do not count."""
    group = zarr.create_group(urls.zarr_store(place, read_only=False))
    for name in ("density", "density2"):
        group.create_array(name, data=NUMBERS, chunks=(2, 2, 2), compressors=None)
    before = checksum_array(place, "density", group["density"])
    group["density2"][0, 0, 0] = 5.0
    assert checksum_array(place, "density", group["density"]) == before
    group["density"][3, 3, 3] = 5.0
    assert checksum_array(place, "density", group["density"]) != before
    group["density"][3, 3, 3] = NUMBERS[3, 3, 3]
    assert checksum_array(place, "density", group["density"]) == before


FOR_GOOD = {"error": "500", "slow down": "503", "reset": "cannot be reached", "refused": "refuses"}


@pytest.mark.cluster
@pytest.mark.parametrize("fault", FOR_GOOD)
def test_faults_that_do_not_end_are_told_in_time(s3, place, monkeypatch, fault):
    monkeypatch.setattr(buckets, "PATIENCE", 0.7)
    buckets.forget()
    furnish(place)
    calls = {
        "GET": lambda: urls.read_bytes(place, "there"),
        "PUT": lambda: create_bytes(place, "mine", b"mine"),
        "POST": lambda: urls.remove(place),
    }
    for method, call in calls.items():
        s3.inject(fault, method=method, path="" if method == "POST" else "/", times=1000)
        began = time.monotonic()
        with pytest.raises(StorageError, match=FOR_GOOD[fault]) as caught:
            call()
        assert time.monotonic() - began < SOON
        s3.clear()
        assert place in caught.value.where
        assert "xml" not in str(caught.value)
        assert len(str(caught.value)) < 600
    buckets.forget()


# Told at once


@contextmanager
def without_a_cloud():
    """Have what answers nothing where a machine in a cloud is asked for credentials."""
    with socket.socket() as closed, using({}):
        closed.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{closed.getsockname()[1]}"
        os.environ["AWS_METADATA_ENDPOINT"] = where
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            os.environ.pop(name, None)
        yield where


@pytest.fixture
def brief(monkeypatch):
    """Have less patience with a bucket that was never reached."""
    monkeypatch.setattr(buckets, "GREETING", 1.0)


def told_soon(url, *words):
    """Assert that reading, writing and looking all fail with one short message, and soon."""
    for call in (
        lambda: urls.open_group(url),
        lambda: urls.exists(url),
        lambda: create_bytes(url, "mine", b"mine"),
        lambda: urls.list_names(url),
    ):
        began = time.monotonic()
        with pytest.raises(StorageError) as caught:
            call()
        assert time.monotonic() - began < SOON
        assert caught.value.exit_code == 4
        assert caught.value.where.startswith(url[: len("s3://faulty")])
        assert caught.value.remedy
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in caught.value.what
        assert "xml" not in str(caught.value)


@pytest.mark.cluster
@pytest.mark.usefixtures("brief")
def test_no_credentials():
    with without_a_cloud():
        told_soon("s3://faulty/x", "no credentials", "AWS_ACCESS_KEY_ID")


@pytest.mark.cluster
@pytest.mark.usefixtures("brief")
def test_no_such_endpoint():
    with without_a_cloud() as closed, using(settings_of(closed)):
        told_soon("s3://faulty/x", "cannot be reached", "AWS_ENDPOINT_URL")


@pytest.mark.cluster
@pytest.mark.usefixtures("s3")
def test_no_such_bucket():
    told_soon("s3://absent/x", "no such bucket")


@pytest.mark.cluster
def test_wrong_credentials():
    """The server checks signatures here, as S3 does."""
    with s3_server() as server:
        make_bucket(server, "faulty")
        key, secret = restricted_user(server)
        with using(settings_of(server, key, secret)):
            put("s3://faulty/x")
        with using(settings_of(server, key, "x" * 40)):
            told_soon("s3://faulty/x", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY")
        with using(settings_of(server, "AKIAABSENT", secret)):
            told_soon("s3://faulty/x", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID")


@pytest.mark.cluster
@pytest.mark.usefixtures("brief")
def test_a_busy_store_at_first_is_no_reason_to_give_up(s3, place):
    buckets.forget()
    s3.inject("slow down", path="list-type", times=200)
    began = time.monotonic()
    urls.write_bytes(place, "a", b"a")
    assert time.monotonic() - began < SOON
    s3.clear()
    assert urls.read_bytes(place, "a") == b"a"
