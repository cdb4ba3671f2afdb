"""Runs with scratch in a bucket, through a proxy that injects faults: the same bits."""

import os
import time

import obstore
import pytest
import xarray as xr
from obstore.store import S3Store

from cosmoflow.cli.app import run_app
from tests.chaos.commands import start
from tests.chaos.ray_nodes import ray_nodes
from tests.chaos.test_exchange_survives import AGAIN, opened
from tests.faulty_proxy import faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of, using

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.cluster]

PIECES = 33
OPTIONS = ["--grid=64", "--set=paint.shard=16", "--set=paint.particles_per_task=8000"]
"""64 shards and 33 pieces of 64^3 particles."""
SPECTRA = ["--field=velocity", "--field=density"]
FAULTS = ("error", "slow down", "reset", "answer lost", "cut")


class Bucket:
    """An empty bucket behind a proxy, and a folder in it for scratch."""

    def __init__(self, server, proxy):
        self.proxy, self.url = proxy, "s3://boxes/some scratch"
        # Past the proxy.
        self._store = S3Store(
            "boxes", endpoint=server, access_key_id="test", secret_access_key="test",
            region="us-east-1", virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )  # fmt: skip

    def names(self):
        return [item["path"] for page in obstore.list(self._store) for item in page]

    def parcels(self):
        return sorted(name for name in self.names() if name.endswith(".parts"))

    def read(self, name):
        return bytes(self._store.get(name).bytes())

    def write(self, name, content):
        self._store.put(name, content)

    def delete(self, names):
        self._store.delete(names)


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as server, faulty_proxy(server) as proxy:
        make_bucket(server, "boxes")
        with using(settings_of(proxy.url, key="driver")):
            yield Bucket(server, proxy)


@pytest.fixture(scope="module")
def undisturbed(particles, tmp_path_factory):
    """Fields and their power by runs in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fields, power = folder / "fields.zarr", folder / "power.zarr"
    assert run_app(["paint", str(particles), str(fields), *OPTIONS, "--engine=serial"]) == 0
    arguments = ["spectra", str(fields), "--out", str(power), *SPECTRA, "--engine=serial"]
    assert run_app(arguments) == 0
    return fields, power


def start_paint(bucket, particles, out, *more):
    place = f"--set=engine.scratch={bucket.url}"
    return start(["paint", particles, out, *OPTIONS, "--engine=ray", place, *more])


def wait_for_parcels(process, bucket, count=PIECES):
    """Wait until the pieces have been handed on."""
    deadline = time.monotonic() + 240.0
    while len(bucket.parcels()) < count and time.monotonic() < deadline:
        assert process.poll() is None, process.messages()
        time.sleep(0.01)
    return bucket.parcels()


def finish(process, out, expected, bucket):
    """Wait for the end of a run; return its messages."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    xr.testing.assert_identical(opened(out), opened(expected))
    assert bucket.names() == []
    return said.decode()


def test_faults_of_a_bucket_change_nothing(
    bucket, particles, undisturbed, tmp_path, record_property
):
    out, power = tmp_path / "fields.zarr", tmp_path / "power.zarr"
    proxy = bucket.proxy
    proxy.requests.clear()
    proxy.inject_at_random(5, 0.1, most=100, faults=FAULTS)
    said = finish(start_paint(bucket, particles, out), out, undisturbed[0], bucket)
    injected = dict(proxy.injected)
    assert set(injected) == set(FAULTS)
    assert AGAIN.findall(said) == []
    record_property("requests", dict(proxy.requests))
    place = f"--set=engine.scratch={bucket.url}"
    arguments = ["spectra", undisturbed[0], "--out", power, *SPECTRA, "--engine=ray", place]
    before = proxy.requests["PUT"]
    proxy.inject_at_random(6, 0.1, most=100, faults=FAULTS)
    finish(start(arguments), power, undisturbed[1], bucket)
    proxy.clear()
    assert proxy.requests["PUT"] > before
    assert sum(proxy.injected.values()) > sum(injected.values())


def test_deleted_and_damaged_objects_are_made_again(bucket, particles, undisturbed, tmp_path):
    out = tmp_path / "fields.zarr"
    process = start_paint(bucket, particles, out)
    missing, damaged, *_ = wait_for_parcels(process, bucket)
    content = bytearray(bucket.read(damaged))
    # The last part is read last.
    content[len(content) * 2 // 3] ^= 1
    bucket.delete([missing])
    bucket.write(damaged, bytes(content))
    again = AGAIN.findall(finish(process, out, undisturbed[0], bucket))
    assert {name for name, _, _ in again} == {"bucket"}
    assert {reason for _, _, reason in again} == {"the object is missing", "a checksum is wrong"}


def test_a_killed_driver_is_resumed_with_its_objects(bucket, particles, undisturbed, tmp_path):
    out = tmp_path / "fields.zarr"
    process = start_paint(bucket, particles, out)
    left = wait_for_parcels(process, bucket)
    process.kill()
    process.wait(60.0)
    assert bucket.parcels() == left
    bucket.write(left[4], b"cut")
    said = finish(start_paint(bucket, particles, out, "--resume"), out, undisturbed[0], bucket)
    # Of 33 tasks one runs again, the one whose object is damaged.
    assert f"going on with what {PIECES - 1} tasks of a killed run handed on" in said
    assert AGAIN.findall(said) == []


def test_interrupted_runs_leave_nothing(bucket, particles, tmp_path):
    process = start_paint(bucket, particles, tmp_path / "fields.zarr")
    wait_for_parcels(process, bucket)
    os.kill(process.pid, 2)
    assert process.wait(timeout=240) == 130
    assert bucket.names() == []


def test_a_bucket_that_refuses_is_named_and_resumed(bucket, particles, undisturbed, tmp_path):
    out = tmp_path / "fields.zarr"
    process = start_paint(bucket, particles, out)
    wait_for_parcels(process, bucket)
    bucket.proxy.strangers.add("driver")
    _, said = process.communicate(timeout=240)
    bucket.proxy.strangers.clear()
    assert process.returncode == 4, said.decode()
    assert b"refuses access: InvalidAccessKeyId" in said
    assert bucket.url.encode() in said
    assert b"AWS_ACCESS_KEY_ID" in said
    said = finish(start_paint(bucket, particles, out, "--resume"), out, undisturbed[0], bucket)
    assert "tasks of a killed run handed on" in said


def test_nothing_is_lost_with_a_node(bucket, particles, undisturbed, tmp_path):
    out = tmp_path / "fields.zarr"
    with ray_nodes(2) as nodes:
        process = start_paint(bucket, particles, out, "--address", nodes.address)
        wait_for_parcels(process, bucket)
        nodes.kill_node()
        said = finish(process, out, undisturbed[0], bucket)
    assert AGAIN.findall(said) == []
