"""Training whose workers, driver or checkpoints are lost ends as if nothing had happened."""

import csv
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.commands import start
from tests.e2e.conftest import SMALL

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.cluster, pytest.mark.slow]

STEPS = 60
WORKER = "RayTrainWorker"


def arguments(fields, out, *more):
    return [
        "train", fields, "--out", out, *SMALL, f"--set=train.steps={STEPS}",
        "--set=train.checkpoint_every=5", "--set=train.validate_every=5", "--quiet", *more,
    ]  # fmt: skip


def finish(process):
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err.decode()


def curve(model):
    """Return the history without its last two columns, which are times."""
    with (model / "history.csv").open() as rows:
        return [list(row.values())[:-2] for row in csv.DictReader(rows)]


def wait_for_checkpoints(process, model, step):
    deadline = time.monotonic() + 200.0
    folder = model / "checkpoints"
    while not any(int(p.stem[5:]) >= step for p in folder.glob("step-*.ckpt")):
        assert process.poll() is None, process.messages()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def training_workers(process):
    """Return the processes of Ray's training workers that belong to a driver's session."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            if WORKER in " ".join(one.cmdline()):
                found.append(one.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def fields(chain, tmp_path_factory):
    """Copy of the chain's fields, since a training may fit a filter and keep its flow."""
    return shutil.copytree(chain / "fields.zarr", tmp_path_factory.mktemp("fields") / "fields.zarr")


@pytest.fixture(scope="module")
def undisturbed(fields, tmp_path_factory):
    """The same training on Ray, left alone."""
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    finish(start(arguments(fields, out, "--engine=ray")))
    assert len(curve(out)) == STEPS // 5
    return out


def assert_same(model, undisturbed):
    assert curve(model) == curve(undisturbed)
    for name in ("model.safetensors", "model.json"):
        assert (model / name).read_bytes() == (undisturbed / name).read_bytes()
    # Nothing is left over of what was lost: the newest two checkpoints, and no parts of others.
    names = sorted(path.name for path in (model / "checkpoints").iterdir())
    assert names == [f"step-{step:010d}.ckpt" for step in (STEPS - 5, STEPS)]


def test_a_killed_worker_changes_nothing(fields, undisturbed, tmp_path):
    out = tmp_path / "model"
    process = start(arguments(fields, out, "--engine=ray"))
    wait_for_checkpoints(process, out, 15)
    workers = training_workers(process)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    finish(process)
    assert_same(out, undisturbed)


def test_a_killed_driver_and_a_damaged_checkpoint_change_nothing(fields, undisturbed, tmp_path):
    out = tmp_path / "model"
    process = start(arguments(fields, out, "--engine=ray"))
    wait_for_checkpoints(process, out, 20)
    process.kill()
    process.wait()
    # Workers of a killed driver end on their own, within moments.
    time.sleep(5.0)
    newest = sorted((out / "checkpoints").glob("step-*.ckpt"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    Path(newest).write_bytes(content)
    finish(start(arguments(fields, out, "--engine=ray", "--resume")))
    assert_same(out, undisturbed)


def test_the_number_of_workers_changes_rounding_only(fields, undisturbed, tmp_path):
    out = tmp_path / "model"
    finish(start(arguments(fields, out, "--engine=ray", "--workers=2")))
    for one, two in zip(curve(undisturbed), curve(out), strict=True):
        assert [float(x) for x in two] == pytest.approx([float(x) for x in one], rel=2e-3)
