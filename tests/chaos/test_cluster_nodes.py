"""A node killed and a node joining in each stage on a cluster: the same results."""

import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.cli.app import run_app
from cosmoflow.numerics.blocks import Block
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import open_group_for_writing
from tests.cluster import chain
from tests.cluster.ray_processes import ray_processes
from tests.conftest import make_metadata

pytestmark = [
    pytest.mark.chaos, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800),
]  # fmt: skip

BOX = ["--box=96", "--particles=48", "--quiet"]
TASKS = ("simulate", "bucket", "paint", "derive", "bars", "slabs")
WORK = (
    *(f"ray::('{task}'".encode() for task in TASKS),
    b"ray::_Worker.handle",
    b"ray::RayTrainWorker",
)
"""What the processes are called that do a stage's work: tasks of a graph, actors, trainers."""
SECONDS = 900.0
LARGE = 128
"""Cells per axis: at least four bars, and sixteen slabs of four or five planes."""


@pytest.fixture(scope="module")
def cluster():
    with ray_processes(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Particles, fields, a model and a prediction."""
    folder = tmp_path_factory.mktemp("inputs")
    particles, fields, model, prediction = (
        str(folder / name) for name in ("particles.zarr", "fields.zarr", "model", "prediction.zarr")
    )
    for arguments in (
        ["simulate", particles, *BOX, "--method=2lpt"],
        ["paint", particles, fields, "--grid=48", "--set=paint.shard=12", "--set=paint.chunk=12"],
        ["train", fields, "--out", model, *TRAINING, "--set=train.steps=4"],
        ["infer", fields, prediction, "--model", model, "--set=infer.shard=12"],
    ):
        assert run_app([*arguments, "--engine=serial", "--quiet"]) == 0, arguments
    store_noise(str(folder / "large.zarr"))
    return folder


def store_noise(url):
    """Write a box that is large enough to be transformed in slabs."""
    names, chance = ("velocity", "momentum"), np.random.default_rng(4)
    create_fields(url, make_metadata(320.0), LARGE, names, shard=LARGE, chunk=16)
    noise = {
        name: chance.normal(0.0, 300.0, (3, *(LARGE,) * 3)).astype(np.float32) for name in names
    }
    write_block(url, Block((0, 0, 0), (LARGE,) * 3), 0, noise)
    finish_group(open_group_for_writing(url))


TRAINING = [
    "--set=train.model=residual-tiny", "--set=train.crop=8", "--set=train.checkpoint_every=4",
    "--set=train.validate_every=4",
]  # fmt: skip


def stages(inputs):
    """Return, by stage, the command without its output, and how its output is named."""
    particles, fields, model, prediction = (
        inputs / name for name in ("particles.zarr", "fields.zarr", "model", "prediction.zarr")
    )
    large = inputs / "large.zarr"
    return {
        "simulate": ["simulate", "OUT", *BOX, "--count=6", "--steps=25", "--seed=3"],
        "paint": ["paint", particles, "OUT", "--grid=96", "--set=paint.shard=24",
                  "--set=paint.particles_per_task=4000"],
        "train": ["train", fields, "--out", "OUT", *TRAINING, "--set=train.steps=60",
                  "--workers=2"],
        "infer": ["infer", fields, "OUT", "--model", model, "--set=infer.shard=12",
                  "--set=infer.tile=12", "--set=infer.batch=1", "--set=infer.symmetries=16",
                  "--set=infer.precision=float32"],
        "derive": ["derive", prediction, "OUT", "--field=divergence", "--field=velocity_shear",
                   "--set=derive.shard=12"],
        "spectral": ["derive", large, "OUT", "--field=divergence", "--field=vorticity",
                     "--method=spectral", "--set=derive.shard=32", "--memory=200MiB"],
        "spectra": ["spectra", large, "--out", "OUT", "--field=velocity", "--cross=momentum",
                    "--multipoles=z"],
        "evaluate": ["evaluate", fields, prediction, "--out", "OUT", "--set=evaluate.subbox=24.0"],
    }  # fmt: skip


def filled(command, out):
    return [str(out) if word == "OUT" else str(word) for word in command]


def busy(node):
    """Return what the processes of a node are called that work on a stage."""
    titles = [title(pid) for pid in node.workers(b"ray::")]
    return [name.rstrip(b"\0 ").decode() for name in titles if name.startswith(WORK)]


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_one_at_work(cluster, driver, chance):
    """Kill a node while it works, and let another join; return the titles of what was killed."""
    deadline = time.monotonic() + 300.0
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(chance.uniform(0.01, 0.1))
        order = list(range(len(cluster.workers)))
        chance.shuffle(order)
        for index in order:
            if titles := busy(cluster.workers[index]):
                cluster.kill_node(index)
                cluster.join(wait=False)
                return titles
    return []


@pytest.mark.parametrize("stage", stages(Path()))
def test_a_lost_node_changes_nothing(cluster, inputs, tmp_path, stage, record_property):
    command = stages(inputs)[stage]
    expected, out, log = tmp_path / "expected", tmp_path / "out", tmp_path / "log"
    # Two workers that train are compared with one, slabs with the box in memory.
    alone = [word for word in command if word not in ("--workers=2", "--memory=200MiB")]
    assert run_app([*filled(alone, expected), "--engine=serial", "--quiet"]) == 0
    for node in cluster.workers:
        node.wait()
    began = time.monotonic()
    with log.open("wb") as written:
        driver = cluster.python(
            "-m", "cosmoflow", *filled(command, out), "--engine=ray", "--address",
            cluster.address, stdout=subprocess.DEVNULL, stderr=written,
        )  # fmt: skip
        try:
            if stage == "train":
                wait_for_checkpoints(driver, out)
            killed = kill_one_at_work(cluster, driver, random.Random(stage))
            driver.wait(SECONDS)
        finally:
            driver.kill()
            driver.wait()
    record_property("seconds", time.monotonic() - began)
    record_property("killed", killed)
    assert killed
    assert driver.returncode == 0, log.read_text()
    COMPARISONS[stage](out, expected)


def wait_for_checkpoints(driver, out):
    deadline = time.monotonic() + SECONDS
    while not list((out / "checkpoints").glob("step-*.ckpt")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def equal(out, expected):
    one, two = (xr.open_zarr(path, consolidated=False) for path in (out, expected))
    assert one.attrs["status"] == two.attrs["status"] == "complete"
    xr.testing.assert_equal(one.drop_attrs(), two.drop_attrs())


def nearly_equal(out, expected):
    """To the rounding of transforms whose pieces and threads are others."""
    one, two = (zarr.open_group(path, mode="r") for path in (out, expected))
    assert one.attrs["status"] == two.attrs["status"] == "complete"
    for name, array in two.arrays():
        if array.dtype.kind == "f":
            values = array[:]
            np.testing.assert_allclose(one[name][:], values, atol=1e-5 * np.abs(values).max())


def nearly_equal_boxes(out, expected):
    boxes = sorted(path.name for path in expected.glob("box-*.zarr"))
    assert boxes == sorted(path.name for path in out.glob("box-*.zarr"))
    for box in boxes:
        nearly_equal(out / box, expected / box)


def same_training(out, expected):
    """Two workers round the sums of gradients otherwise, and the difference grows with the steps.

    The loss is that of a step's own crops: it tells steps that were left out or done twice.
    """
    one, two = (chain.curve(str(path)) for path in (out, expected))
    assert len(one) == len(two) == 15
    for (step, loss, residual, rate), wanted in zip(one, two, strict=True):
        assert (step, rate) == pytest.approx((wanted[0], wanted[3]))
        assert loss == pytest.approx(wanted[1], rel=2e-4 if step <= 12 else 1e-2)
        assert residual == pytest.approx(wanted[2], rel=1e-3 if step <= 12 else 5e-3)


COMPARISONS = {
    "simulate": nearly_equal_boxes,
    "paint": equal,
    "train": same_training,
    "infer": nearly_equal,
    "derive": equal,
    "spectral": nearly_equal,
    "spectra": equal,
    "evaluate": lambda out, expected: chain.same_report(str(out), str(expected)),
}
