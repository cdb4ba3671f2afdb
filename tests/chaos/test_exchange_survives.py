"""Painting whose exchange loses files, servers, nodes, its disk or its driver: the same bits."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from cosmoflow.cli.app import run_app
from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Column, Session, TaskGraph
from cosmoflow.engine.exchange import runner
from cosmoflow.engine.exchange.crews import RemoteCrew
from tests.chaos.commands import start
from tests.chaos.ray_nodes import kill_process, ray_nodes

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.cluster]

PIECES = 33
OPTIONS = ["--grid=128", "--set=paint.shard=16", "--set=paint.particles_per_task=8000"]
"""512 shards and 33 pieces of 64^3 particles: painting goes on for seconds."""
AGAIN = re.compile(r"task (\w+) \d+( and \d+ more)? handed on is lost \(([^)]*)\)")


@pytest.fixture(scope="module")
def undisturbed(particles, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "fields.zarr"
    assert run_app(["paint", str(particles), str(out), *OPTIONS, "--engine=serial"]) == 0
    return opened(out)


def opened(out):
    return xr.open_zarr(out, consolidated=False).load().drop_attrs()


def start_paint(particles, out, scratch, *more):
    place = f"--set=engine.scratch={scratch}"
    return start(["paint", particles, out, *OPTIONS, "--engine=ray", place, *more])


def parcels(scratch):
    return list(Path(scratch).rglob("*.parts"))


def wait_for_parcels(process, scratch, count=PIECES):
    """Wait until the pieces have been handed on."""
    deadline = time.monotonic() + 240.0
    while len(parcels(scratch)) < count and time.monotonic() < deadline:
        assert process.poll() is None, process.messages()
        time.sleep(0.005)
    return sorted(parcels(scratch))


def finish(process, out, undisturbed, scratch):
    """Wait for the end of a run; return its messages."""
    _, said = process.communicate(timeout=480)
    assert process.returncode == 0, said.decode()
    xr.testing.assert_identical(opened(out), undisturbed)
    assert parcels(scratch) == []
    assert [found for found in Path(scratch).rglob("*") if found.is_file()] == []
    return said.decode()


def test_a_flipped_bit_is_found_and_its_task_runs_again(particles, undisturbed, tmp_path):
    out, scratch = tmp_path / "fields.zarr", tmp_path / "scratch"
    process = start_paint(particles, out, scratch)
    path = wait_for_parcels(process, scratch)[0]
    # The last part is read last.
    with path.open("r+b") as file:
        place = path.stat().st_size * 2 // 3
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    again = AGAIN.findall(finish(process, out, undisturbed, scratch))
    assert [name for name, _, _ in again] == ["bucket"]
    assert again[0][2] == "a checksum is wrong"


def test_a_missing_file_is_made_again(particles, undisturbed, tmp_path):
    out, scratch = tmp_path / "fields.zarr", tmp_path / "scratch"
    process = start_paint(particles, out, scratch)
    for path in wait_for_parcels(process, scratch)[:3]:
        path.unlink()
    again = AGAIN.findall(finish(process, out, undisturbed, scratch))
    assert {reason for _, _, reason in again} == {"the file is missing"}


def test_a_killed_driver_is_resumed_with_its_files(particles, undisturbed, tmp_path):
    out, scratch = tmp_path / "fields.zarr", tmp_path / "scratch"
    process = start_paint(particles, out, scratch)
    left = wait_for_parcels(process, scratch)
    process.kill()
    process.wait(60.0)
    assert set(parcels(scratch)) == set(left)
    left[4].write_bytes(b"cut")
    said = finish(start_paint(particles, out, scratch, "--resume"), out, undisturbed, scratch)
    # Of 33 tasks one runs again, the one whose file is damaged.
    assert f"going on with what {PIECES - 1} tasks of a killed run handed on" in said
    assert AGAIN.findall(said) == []


def test_files_of_a_resumed_run_serve_an_output_that_is_begun_again(
    particles, undisturbed, tmp_path
):
    """Files of a run that had only some shards to paint have the particles of all shards."""
    out, scratch = tmp_path / "fields.zarr", tmp_path / "scratch"
    process = start_paint(particles, out, scratch)
    while len(list((out / "density" / "c").glob("*/*/*"))) < 100:
        assert process.poll() is None, process.messages()
        time.sleep(0.01)
    process.kill()
    process.wait(60.0)
    for path in parcels(scratch):
        path.unlink()
    process = start_paint(particles, out, scratch, "--resume")
    wait_for_parcels(process, scratch)
    process.kill()
    process.wait(60.0)
    shutil.rmtree(out)
    said = finish(start_paint(particles, out, scratch, "--resume"), out, undisturbed, scratch)
    assert f"going on with what {PIECES} tasks" in said


def test_interrupted_and_refused_runs_leave_nothing(particles, tmp_path):
    out, scratch = tmp_path / "fields.zarr", tmp_path / "scratch"
    process = start_paint(particles, out, scratch)
    wait_for_parcels(process, scratch)
    os.kill(process.pid, 2)
    assert process.wait(timeout=240) == 130
    assert parcels(scratch) == []


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_is_resumed(particles, undisturbed, small_disk, tmp_path):
    out, scratch = tmp_path / "fields.zarr", small_disk
    process = start_paint(particles, out, scratch)
    wait_for_parcels(process, scratch, 1)
    # At once: other tasks may hand on the rest within half a second.
    with (scratch / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 10):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)) == size:
                    pass
    _, said = process.communicate(timeout=240)
    assert process.returncode == 4, said.decode()
    assert b"the disk for what tasks hand on is full" in said
    assert str(scratch).encode() in said
    assert parcels(scratch) == []
    (scratch / "filler").unlink()
    finish(start_paint(particles, out, scratch, "--resume"), out, undisturbed, scratch)


def test_a_disk_too_small_is_refused_at_once(particles, small_disk, tmp_path):
    (small_disk / "filler").write_bytes(bytes(38 << 20))
    process = start_paint(particles, tmp_path / "fields.zarr", small_disk)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 2
    assert b"does not fit on the disk" in said
    assert not (tmp_path / "fields.zarr").exists()


@pytest.mark.timeout(1200)
def test_lost_servers_drivers_and_nodes_change_nothing(particles, undisturbed, tmp_path):
    scratch = tmp_path / "scratch"
    with ray_nodes(2) as nodes:
        for what in ("server", "crew", "driver", "node"):
            out = tmp_path / f"{what}.zarr"
            process = start_paint(particles, out, scratch, "--address", nodes.address)
            wait_for_parcels(process, scratch)
            if what == "node":
                nodes.kill_node()
            elif what == "driver":
                process.kill()
                process.wait(60.0)
                more = ["--address", nodes.address, "--resume"]
                process = start_paint(particles, out, scratch, *more)
            else:
                actors = nodes.workers(f"ray::{what.title()}".encode())
                assert len(actors) == 2
                kill_process(actors[0])
            said = finish(process, out, undisturbed, scratch)
            # The files are still there when a server, or a crew, is started again.
            assert bool(AGAIN.findall(said)) == (what == "node")
            assert ("of a killed run" in said) == (what == "driver")


def split_slowly(number):
    time.sleep(0.5)
    return [np.full(4, number + part) for part in range(6)]


def add(number, pieces):
    return int(sum(piece.sum() for piece in pieces))


@pytest.mark.timeout(1200)
def test_a_crew_of_all_nodes_loses_one_of_them_and_then_its_own(tmp_path, monkeypatch):
    """As in a cluster of many nodes, where a crew has several."""
    homes, said = [], []

    class CrewOfAll(RemoteCrew):
        def __init__(self, *what):
            super().__init__(*what)
            homes.append(self.node)

    monkeypatch.setattr(runner, "MOST_CREWS", 1)
    monkeypatch.setattr(runner, "RemoteCrew", CrewOfAll)
    graph = TaskGraph()
    graph.add("split", split_slowly, range(60), parts=6)
    graph.add("add", add, range(6), reads=lambda part: [Column("split", part)], output=True)
    with ray_nodes(3) as nodes:
        ended = []

        def kill_one(key):
            ended.append(key)
            if len(ended) == 15:
                nodes.kill_node(lambda name: name != homes[0])
            if len(ended) == 45:
                nodes.kill_node(lambda name: name == homes[0])

        config = EngineConfig(choice="ray", address=nodes.address, scratch=str(tmp_path))
        with Session(config) as session:
            session.notify = said.append
            found = session.engine(0.0).run(graph, on_task=kill_one)
    assert found == {("add", part): 4 * sum(n + part for n in range(60)) for part in range(6)}
    assert len(set(homes)) == 2
    lost = len(ended) - 60 - 6
    assert 0 < lost < 60, "what the lost nodes had made is made again"
    assert any("is lost" in text for text in said)
    assert parcels(tmp_path) == []
