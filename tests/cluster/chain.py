"""The whole chain of commands in small: run by a driver of its own, held against serial runs."""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from cosmoflow.storage.urls import read_bytes, zarr_store

TINY = [
    "--set=simulate.box_size=64.0",
    "--set=simulate.particles=32",
    "--set=simulate.steps=3",
    "--set=paint.grid=32",
    "--set=paint.shard=16",
    "--set=paint.chunk=16",
    "--set=paint.particles_per_task=20000",
    "--set=train.model=residual-tiny",
    "--set=train.steps=4",
    "--set=train.crop=8",
    "--set=train.validate_every=2",
    "--set=train.checkpoint_every=2",
    "--set=infer.shard=16",
    # In bfloat16 the last bits of a flow, which differ between transforms, become larger ones.
    "--set=infer.precision=float32",
    "--set=derive.shard=16",
    "--set=evaluate.subbox=32.0",
    "--set=evaluate.smoothing=[2.0]",
    "--quiet",
]
"""Eight shards of 16^3 cells, two pieces of particles: something to do for every worker."""


def commands(read, written, report):
    """Return the commands of the chain by name.

    Parameters
    ----------
    read, written : str
        Folders or buckets: where the inputs are, and where the outputs go.
    report : str
        A folder, for a report goes to nothing else.
    """
    particles, fields, model, prediction = (
        f"{read}/{name}" for name in ("particles.zarr", "fields.zarr", "model", "prediction.zarr")
    )
    return {
        "simulate": ["simulate", f"{written}/particles.zarr", "--seed=3"],
        "paint": ["paint", particles, f"{written}/fields.zarr"],
        "train": ["train", fields, "--out", f"{written}/model"],
        "infer": ["infer", fields, f"{written}/prediction.zarr", "--model", model],
        "derive": [
            "derive", prediction, f"{written}/flow.zarr", "--field=divergence",
            "--field=vorticity",
        ],
        "derive, spectral": [
            "derive", fields, f"{written}/spectral.zarr", "--field=divergence",
            "--method=spectral",
        ],
        "spectra": [
            "spectra", fields, "--field=velocity", "--cross=momentum", "--out",
            f"{written}/power.zarr",
        ],
        "evaluate": ["evaluate", fields, prediction, "--out", report],
    }  # fmt: skip


def drive(place, report, told, address):
    """Run the chain on a cluster, and write what happened to a file.

    The session stays open until the end, so that all commands share one connection to the cluster
    and its worker processes: each would else import everything anew.
    """
    import ray

    from cosmoflow.cli.app import run_app
    from cosmoflow.config.settings import EngineConfig
    from cosmoflow.engine import Session

    seconds = {}
    with Session(EngineConfig(choice="ray", address=address)) as session:
        session.engine(0.0)
        for name, arguments in commands(place, place, report).items():
            began = time.monotonic()
            workers = ["--workers=2"] if name == "train" else []
            code = run_app([*arguments, *TINY, *workers, "--engine=ray", "--address", address])
            seconds[name] = round(time.monotonic() - began, 1)
            if code:
                sys.exit(code)
        nodes = sorted(
            (node["NodeManagerAddress"], node["Labels"]["cosmoflow/pool"])
            for node in ray.nodes()
            if node["Alive"]
        )
    Path(told).write_text(json.dumps({"seconds": seconds, "nodes": nodes}))


def run(cluster, place, folder, *, seconds):
    """Run the chain by a driver of its own.

    Parameters
    ----------
    cluster : RayProcesses
        Where it runs.
    place : str
        Where the outputs go, but for the report.
    folder : Path
        For the report, and for messages.
    seconds : float
        Within which it must end.

    Returns
    -------
    dict
        Seconds of each command, and the nodes: their addresses, and what they are for.
    """
    folder.mkdir(exist_ok=True)
    told, log = folder / "told.json", folder / "driver.log"
    with log.open("wb") as written:
        driver = cluster.python(
            "-m",
            __name__,
            place,
            folder / "report",
            told,
            cluster.address,
            stdout=written,
            stderr=written,
        )
        try:
            driver.wait(seconds)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, log.read_text()
    return json.loads(told.read_text())


def hold_against_serial_runs(place, folder):
    """Run every command in this process on what the cluster's run of it has read, and compare.

    So each difference is the fault of the command that it shows in. The arguments are those of
    :func:`run`.
    """
    from cosmoflow.cli.app import run_app

    serial = folder / "serial"
    report = str(serial / "report")
    for name, arguments in commands(place, str(serial), report).items():
        assert run_app([*arguments, *TINY, "--engine=serial"]) == 0, name
        if name in CHECKS:
            CHECKS[name](place, str(serial))
    same_report(str(folder / "report"), report)


def opened(place, name):
    store = zarr_store(f"{place}/{name}", read_only=True)
    with xr.open_zarr(store, consolidated=False) as stored:
        assert stored.attrs["status"] == "complete"
        return stored.load().drop_attrs()


def equal(name):
    """Return a check that two stores hold the same, to the last bit.

    The first may have got more fields since: `train` and `infer` add what they need.
    """

    def check(one, two):
        found, expected = opened(one, name), opened(two, name)
        xr.testing.assert_equal(found[list(expected.data_vars)], expected)

    return check


def close(name, tolerance):
    """Return a check that two stores hold the same, to a part of the largest value of each array.

    What goes through Fourier space depends in its last bits on the number of threads.
    """

    def check(one, two):
        found, expected = opened(one, name), opened(two, name)
        assert set(found.data_vars) == set(expected.data_vars)
        for variable in expected.data_vars:
            values = expected[variable].values
            np.testing.assert_allclose(
                found[variable].values, values, rtol=0.0, atol=tolerance * np.abs(values).max()
            )

    return check


def same_training(one, two):
    """Two workers differ from one by the rounding of their sums."""
    found, expected = (curve(f"{place}/model") for place in (one, two))
    assert len(found) == len(expected) == 2
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=2e-3)


def curve(model):
    """Return the history of a model without its last two columns, which are times."""
    rows = read_bytes(model, "history.csv").decode().splitlines()
    return [[float(value) for value in list(row.values())[:-2]] for row in csv.DictReader(rows)]


def same_report(one, two):
    found, expected = (
        dict(numbers(json.loads(read_bytes(report, "metrics.json"))["metrics"]))
        for report in (one, two)
    )
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert len(read_bytes(one, "report.html")) > 100_000


def numbers(tree, path=()):
    """Yield all numbers in a tree of mappings and sequences, with the way to each."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            yield from numbers(branch, (*path, key))
    elif isinstance(tree, list):
        for index, branch in enumerate(tree):
            yield from numbers(branch, (*path, index))
    elif isinstance(tree, int | float):
        yield path, tree


CHECKS = {
    "simulate": close("particles.zarr", 1e-5),
    "paint": equal("fields.zarr"),
    "train": same_training,
    "infer": close("prediction.zarr", 2e-6),
    "derive": equal("flow.zarr"),
    "derive, spectral": close("spectral.zarr", 1e-5),
    "spectra": equal("power.zarr"),
}
"""What the engine promises of each command that writes a store."""

if __name__ == "__main__":
    drive(*sys.argv[1:])
