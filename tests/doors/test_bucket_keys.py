"""Keys of buckets are literal in every stage; what cannot be literal is refused."""

import http.server
import json
import threading
from contextlib import suppress
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.errors import StorageError
from cosmoflow.model.names import PRETRAINED
from cosmoflow.stages.models import load_model, model_digest
from cosmoflow.storage import urls
from cosmoflow.storage.buckets import Bucket, open_bucket
from cosmoflow.storage.places import absolute, find_place, overlaps, split_name
from cosmoflow.storage.snapshots import open_particles
from cosmoflow.storage.snapshots.files import find_files
from tests.cases import each
from tests.doors.literal import BOX, SERIAL, use
from tests.object_store import make_bucket, s3_server, settings_of, using

LITERAL = (
    "run#2", "run?x=1", "p%20q.zarr", "a%2Fb", "100%25", "a\\b", "run#2/in?ner/p%23q",
    "a&b<c>'\"",
)  # fmt: skip
MORE = (
    "p q", "end ", "%", "run[1]", "snap*", "a:b", "x:1", "~me", "a+b=c,d;e@f!g$(h)", "{a}|^`",
    "übung", "日本", "é", "s3:", "~", "...", "..a",
)  # fmt: skip
REFUSED = ("a//b", "/a", "a//", "/", ".", "a/./b", "a/../b", "..", "a/..", "a\nb", "a\tb", "\x7f")


@pytest.fixture(scope="module")
def s3():
    """Return a client that is not ours, of a server with a bucket ``bkt``."""
    boto3 = pytest.importorskip("boto3")
    with s3_server() as endpoint, using(settings_of(endpoint)):
        make_bucket(endpoint, "bkt")
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")

        def put(key, content=b""):
            client.put_object(Bucket="bkt", Key=key, Body=content)

        def content():
            found = client.list_objects_v2(Bucket="bkt").get("Contents", [])
            return {item["Key"]: item["ETag"] for item in found}

        def clear():
            for key in content():
                client.delete_object(Bucket="bkt", Key=key)

        yield SimpleNamespace(put=put, content=content, clear=clear)


@pytest.fixture
def bucket(s3):
    s3.clear()
    return s3


def put_folder(bucket, folder, key):
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())


def test_a_key_is_literal(bucket):
    # What urlsplit, percent decoding and a cut at # or ? make of such names.
    for neighbour in ("run", "p q.zarr", "a/b", "100%", "bkt"):
        bucket.put(f"{neighbour}/zarr.json", b"of others")
    before = bucket.content()
    for name in LITERAL:
        written = use(f"s3://bkt/{name}")
        assert bucket.content().keys() - before.keys() == {f"{name}/{inside}" for inside in written}
        urls.remove(f"s3://bkt/{name}")
        assert bucket.content() == before
    for name in MORE:
        urls.write_bytes(f"s3://bkt/{name}/", "mine", b"mine")
        assert bucket.content().keys() - before.keys() == {f"{name}/mine"}
        # Bytes that another program puts there are found.
        bucket.put(f"{name}/mine", b"theirs")
        assert urls.read_bytes(f"s3://bkt/{name}", "mine") == b"theirs"
        assert find_files(f"s3://bkt/{name}/mine")[0].size == 6
        urls.remove(f"s3://bkt/{name}")
        assert bucket.content() == before


@settings(max_examples=100)
@given(st.lists(st.text("a#?%2.0:[]*~ \\&+é", min_size=1, max_size=5), min_size=1, max_size=3))
def test_every_key_is_taken_as_it_is_or_refused(segments):
    key = "/".join(segments)
    for scheme in ("s3", "gs", "az"):
        url = f"{scheme}://bkt/{key}"
        if {".", ".."} & set(segments):
            with pytest.raises(StorageError, match="literally"):
                find_place(url)
            continue
        place = find_place(url)
        assert (place.scheme, place.bucket, place.key) == (scheme, "bkt", key)
        assert absolute(f"{url}/") == absolute(absolute(url)) == url
        assert split_name(url) == (url.rpartition("/")[0], segments[-1])
        assert overlaps(url, f"{url}/x")
        assert overlaps(f"{scheme.upper()}://bkt", url)
        assert not overlaps(url, f"{url}x")
        # No two keys are one place; what is decoded here may be a character that no key has.
        with suppress(StorageError):
            assert not overlaps(url, f"{scheme}://bkt/{unquote(key)}") or unquote(key) == key


@each("key", REFUSED)
def test_a_key_that_cannot_be_literal_is_refused(files, key, capsys):
    # There are no object stores here: a request would take long and fail otherwise.
    for scheme in ("s3", "gs", "az"):
        with pytest.raises(StorageError, match=r"literally|this character"):
            cosmoflow.open_fields(f"{scheme}://bkt/{key}")
    assert run_app(["paint", f"{files}/snap.hdf5", f"s3://bkt/{key}", *SERIAL]) == 4
    assert f"s3://bkt/{key!r}".replace("'", "") in capsys.readouterr().err


def test_a_refused_paint_leaves_other_stores_alone(files, bucket):
    put_folder(bucket, files / "fields.zarr", "run")
    before = bucket.content()
    for mark, existing in (
        ("#2", "--resume"),
        ("#2", "--overwrite"),
        ("?2", "--resume"),
        ("%2", "-q"),
    ):
        command = ["paint", f"{files}/damaged.hdf5", f"s3://bkt/run{mark}", *SERIAL, existing]
        code = run_app(command)
        assert bucket.content() == before
        assert code == 3


def test_a_painted_store_has_the_key_that_was_given(files, bucket):
    local = files / "fields.zarr"
    expected = {f"p%20q#2/{one.relative_to(local)}" for one in local.rglob("*") if one.is_file()}
    assert run_app(["paint", f"{files}/snap.hdf5", "s3://bkt/p%20q#2", *SERIAL]) == 0
    assert bucket.content().keys() == expected
    ours = cosmoflow.open_fields("s3://bkt/p%20q#2")
    np.testing.assert_array_equal(ours.velocity, cosmoflow.open_fields(str(local)).velocity)


def test_info_describes_no_other_store(files, bucket, capsys):
    put_folder(bucket, files / "fields.zarr", "run")
    for mark in ("#x", "?x", "%23", "#"):
        assert run_app(["info", f"s3://bkt/run{mark}"]) == 4
        assert f"s3://bkt/run{mark}" in capsys.readouterr().err
    put_folder(bucket, files / "fields.zarr", "run#")
    assert run_app(["info", "s3://bkt/run#", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "fields"


def test_snapshots_and_models_in_a_bucket_have_literal_names(files, bucket):
    names = ("in/snap#0.hdf5", "in/snap[1].hdf5", "in/a%20b.hdf5", "in/snap?.hdf5")
    for name in names:
        bucket.put(name, (files / "snap.hdf5").read_bytes())
    # What globs and cuts make of these names.
    for name in ("in/snap", "in/snap1.hdf5", "in/a b.hdf5", "in/snapx.hdf5"):
        bucket.put(name, (files / "other.hdf5").read_bytes())
    for name in names:
        found = open_particles(f"s3://bkt/{name}").read(0, 512).position
        np.testing.assert_allclose(found, BOX.position, atol=1e-3)
    assert [file.url for file in find_files("s3://bkt/in/snap[1-9].hdf5")] == [
        "s3://bkt/in/snap1.hdf5"
    ]
    for folder in ("m#1", "m%231"):
        put_folder(bucket, PRETRAINED / "wiener", folder)
        assert load_model(f"s3://bkt/{folder}").spec == load_model(str(PRETRAINED / "wiener")).spec
    assert model_digest("s3://bkt/m#1") == model_digest("wiener")
    with pytest.raises(StorageError, match="no such"):
        load_model("s3://bkt/m")


def test_the_mark_of_a_folder_is_no_content(bucket):
    """Consoles of object stores make a folder by an object whose key ends in a slash."""
    for key in ("run", "run/", "run/sub/"):
        bucket.put(key)
    bucket.put("run/sub/a", b"a")
    assert urls.list_names("s3://bkt/run") == ["sub"]
    assert [file.url for file in find_files("s3://bkt/run/sub")] == ["s3://bkt/run/sub/a"]
    urls.remove("s3://bkt/run")
    # The object ``run`` is another one, and so is the folder.
    assert bucket.content().keys() >= {"run", "run/"}
    assert "run/sub/a" not in bucket.content()
    bucket.clear()
    bucket.put("run/")
    assert not urls.exists("s3://bkt/run")
    use("s3://bkt/run")


def test_keys_of_others_that_cannot_be_used_are_named(bucket):
    bucket.put("run//x")
    with pytest.raises(StorageError, match="key cannot be used"):
        urls.exists("s3://bkt/run")


def test_a_listing_that_breaks_goes_on_after_the_last_name():
    class Breaking:
        names = tuple("abcdef")
        asked = ()

        def list(self, prefix=None, offset=None, chunk_size=2):
            self.asked += (offset,)
            left = [{"path": name} for name in self.names if offset is None or name > offset]
            for start in range(0, len(left), chunk_size):
                if start == chunk_size and len(self.asked) == 1:
                    raise GenericError("HTTP error: connection reset")
                yield left[start : start + chunk_size]

    store = Breaking()
    pages = list(Bucket(store).list(chunk_size=2))
    assert [item["path"] for page in pages for item in page] == list("abcdef")
    assert store.asked == (None, "b")


class _Recorder(http.server.BaseHTTPRequestHandler):
    """Takes whatever is written, and notes where to."""

    protocol_version = "HTTP/1.1"

    def _answer(self, status=200, content=b""):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(status)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        root = "EnumerationResults" if "comp=list" in self.path else "ListBucketResult"
        self._answer(content=f"<{root}><Blobs></Blobs></{root}>".encode())

    def do_PUT(self):
        self.server.written.append(unquote(self.path))
        self._answer(201)

    def log_message(self, *words):
        pass


@each("scheme", ["gs", "az"])
def test_keys_of_other_clouds_are_literal(scheme):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Recorder) as server:
        server.written = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        account = {
            "gcs_base_url": url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
        }
        environment = {
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({**account, "private_key_id": ""}),
            "GOOGLE_ALLOW_HTTP": "true", "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_ENDPOINT": url, "AZURE_ALLOW_HTTP": "true", "AZURE_SKIP_SIGNATURE": "true",
        }  # fmt: skip
        try:
            with using(environment):
                for name in (*LITERAL, *MORE):
                    urls.write_bytes(f"{scheme}://bkt/{name}", "a.json", b"x")
        finally:
            server.shutdown()
            thread.join()
    assert server.written == [f"/bkt/{name}/a.json" for name in (*LITERAL, *MORE)]


def test_a_bucket_is_opened_once_for_all_spellings(bucket):
    open_bucket("s3://bkt/a/").put("x", b"x")
    assert bytes(open_bucket("S3://bkt/a").get("x").bytes()) == b"x"
    assert bucket.content().keys() == {"a/x"}
