"""Runs that are killed half way and continued."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr

from tests.chaos.commands import start
from tests.e2e.conftest import SMALL
from tests.shared import written

pytestmark = [pytest.mark.chaos, pytest.mark.e2e]

SHARDS = 4**3
"""64 shards of 12^3 cells: enough of them to be killed in their midst."""


def start_python(arguments):
    """Start a command in a Python of its own.

    That is for what is compared bit for bit and goes through Fourier space: there the last bit may
    depend on where a process has its buffers, which is the same in every new Python.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cosmoflow", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finished(store):
    """Return the files of the shards that the ledger calls finished, by index."""
    flags = store / "ledger" / "fields" / "c"
    names = [entry.name for entry in flags.iterdir()] if flags.is_dir() else []
    # A chunk that is being written bears its index, a random word and ".partial" until it is whole.
    indices = [int(name) for name in names if name.isdecimal()]
    files = {}
    for index in indices:
        if entry_is_whole(flags / str(index)):
            x, y, z = np.unravel_index(index, (4, 4, 4))
            files[index] = store / "velocity" / "c" / "0" / str(x) / str(y) / str(z)
    return files


def entry_is_whole(path):
    return path.read_bytes() == b"\x01"


def kill_after(process, store, shards):
    """SIGKILL a command as soon as it has finished some shards."""
    deadline = time.monotonic() + 240.0
    while len(finished(store)) < shards:
        assert process.poll() is None, process.messages()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()


@pytest.mark.parametrize("engine", ["serial", pytest.param("ray", marks=pytest.mark.cluster)])
def test_infer_killed_half_way_resumes_without_recomputing(chain, tmp_path, undisturbed, engine):
    out = tmp_path / "out.zarr"
    arguments = [chain / "fields.zarr", "--model", chain / "model", *SMALL, "--set=infer.shard=12"]
    arguments = ["infer", arguments[0], out, *arguments[1:], f"--engine={engine}", "--quiet"]
    kill_after(start(arguments), out, shards=8)
    # Actors of a killed driver end on their own, within moments.
    time.sleep(3.0 if engine == "ray" else 0.0)
    before = {index: path.stat().st_mtime_ns for index, path in finished(out).items()}
    assert 8 <= len(before) < SHARDS
    assert zarr.open_group(out).attrs["status"] == "incomplete"

    resumed = start([*arguments, "--resume"])
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err.decode()
    after = finished(out)
    assert len(after) == SHARDS
    assert {index: after[index].stat().st_mtime_ns for index in before} == before
    assert zarr.open_group(out).attrs["status"] == "complete"
    assert_undisturbed(zarr.open_group(out)["velocity"][:], undisturbed, before)


def assert_undisturbed(velocity, undisturbed, before):
    """Compare velocities; of a shard that differs, tell by how much and which run wrote it."""
    wrong = {}
    for index in range(SHARDS):
        x, y, z = (12 * place for place in np.unravel_index(index, (4, 4, 4)))
        cells = (..., *(slice(first, first + 12) for first in (x, y, z)))
        if not np.array_equal(velocity[cells], undisturbed[cells]):
            by = abs(velocity[cells] - undisturbed[cells])
            run = "killed" if index in before else "resumed"
            wrong[index] = f"{run} run, {np.mean(by > 0):.3f} of the cells, up to {by.max():.1e}"
    assert not wrong


@pytest.mark.cluster
def test_interrupt_exits_with_130_and_is_resumable(chain, tmp_path):
    """In a Python of its own, whose end is part of it."""
    out = tmp_path / "out.zarr"
    arguments = ["infer", chain / "fields.zarr", out, "--model", chain / "model", *SMALL]
    arguments += ["--set=infer.shard=12"]
    process = start_python(arguments)
    deadline = time.monotonic() + 240.0
    while not finished(out):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert b"--resume" in err
    assert b"Traceback" not in err
    resumed = start([*arguments, "--resume"])
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err.decode()
    assert len(finished(out)) == SHARDS


BOXES = [f"box-000{index}.zarr" for index in range(5)]
FIVE_BOXES = [f"--count={len(BOXES)}", "--box=64", "--particles=32", "--steps=40", "--quiet"]


@pytest.fixture(scope="module")
def whole_boxes(tmp_path_factory):
    """The boxes of a run that was left alone."""
    out = tmp_path_factory.mktemp("whole") / "boxes"
    assert start_python(["simulate", out, *FIVE_BOXES, "--engine=serial"]).wait(timeout=240) == 0
    return out


@pytest.mark.cluster
@pytest.mark.parametrize("engine", ["serial", pytest.param("ray", marks=pytest.mark.slow)])
def test_simulate_killed_in_its_third_box_ends_as_the_uninterrupted_one(
    tmp_path, whole_boxes, engine
):
    out = tmp_path / "boxes"
    arguments = ["simulate", out, *FIVE_BOXES, f"--engine={engine}"]

    def complete(folder, box):
        try:
            content = json.loads((folder / box / "zarr.json").read_text())
            return content["attributes"]["status"] == "complete"
        except (OSError, KeyError, ValueError):
            return False  # not begun, or its attributes are being written

    process = start_python(arguments)
    deadline = time.monotonic() + 240.0
    while sum(complete(out, box) for box in BOXES) < 2:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    # Workers of a killed driver end on their own, within moments.
    time.sleep(3.0 if engine == "ray" else 0.0)
    before = {box: written(out / box) for box in BOXES if complete(out, box)}
    assert 2 <= len(before) < 5

    resumed = start_python([*arguments, "--resume"])
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err.decode()
    for box in BOXES:
        if box in before:
            assert written(out / box) == before[box]
        for name in ("position", "velocity"):
            np.testing.assert_array_equal(
                zarr.open_group(out / box)[name][:], zarr.open_group(whole_boxes / box)[name][:]
            )


@pytest.mark.cluster
def test_killed_training_ends_as_the_uninterrupted_one(copy_of, tmp_path):
    model = tmp_path / "model"
    arguments = ["train", copy_of("fields.zarr"), "--out", model, *SMALL, "--set=train.steps=16"]
    # Checkpoints lie between validations: the losses since the last one are part of them.
    arguments += ["--set=train.checkpoint_every=3", "--set=train.validate_every=4"]
    process = start_python(arguments)
    deadline = time.monotonic() + 240.0
    while len(list((model / "checkpoints").glob("*.ckpt"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (model / "model.json").exists()
    resumed = start_python([*arguments, "--resume"])
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err.decode()

    arguments[3] = whole = tmp_path / "whole"
    assert start_python(arguments).wait(timeout=240) == 0
    for name in ("model.safetensors", "model.json"):
        assert (model / name).read_bytes() == (whole / name).read_bytes()

    def curves(folder):
        rows = (folder / "history.csv").read_text().splitlines()
        # The last two columns are times, which differ from run to run.
        assert rows[0].endswith(",samples_per_second,waiting")
        return [row.split(",")[:-2] for row in rows]

    assert curves(model) == curves(whole)
