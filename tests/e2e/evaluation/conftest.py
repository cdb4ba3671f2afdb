"""Stores of a small box to evaluate, and a report that draws nothing."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.sampling import Sampling
from cosmoflow.storage.urls import open_group_for_writing
from tests.conftest import cut, make_metadata, synthetic_fields

GRID, CELL, SUBBOX, RADII = 20, 4.0, 36.0, (0.0, 2.0)
PARTICLES, INTERVALS = 2.5, (0.9, 2.2)
PAINTED = replace(
    make_metadata(GRID * CELL, stage="paint", paint={"scheme": "cic"}),
    sampling=Sampling(PARTICLES, 0.0, "background", equal_masses=True),
)
NOTED = {"velocity_std": dict(zip(("interval_68", "interval_95"), INTERVALS, strict=True))}
SETTINGS = {"evaluate": {"subbox": SUBBOX, "smoothing": RADII, "shipped_grid": 0}}


def make_store(path, fields, shard, *, chunk=None, metadata=None, attributes=None):
    """Write a whole fields store."""
    grid = next(iter(fields.values())).shape[-1]
    metadata = metadata or make_metadata(grid * CELL)
    create_fields(
        str(path), metadata, grid, tuple(fields),
        shard=shard, chunk=chunk or shard, attributes=attributes,
    )  # fmt: skip
    for index, block in enumerate(grid_blocks(grid, shard)):
        here = {name: cut(field, block) for name, field in fields.items()}
        write_block(str(path), block, index, here)
    finish_group(open_group_for_writing(str(path)))
    return str(path)


@pytest.fixture(scope="module")
def box():
    """A box with empty cells, and what is predicted of its velocity."""
    fields = synthetic_fields(GRID, CELL, radii=(4.0,), seed=5)
    density, truth = fields["density"].copy(), fields["velocity"]
    density[3, :2, 19] = 0.0
    noise = np.random.default_rng(2).normal(0.0, 40.0, (2, *truth.shape)).astype(np.float32)
    momentum = (truth + noise[1]) * density
    velocity = momentum / np.where(density == 0.0, np.float32(1.0), density)
    mean = momentum.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
    velocity[:, density == 0.0] = mean[:, None]
    return {
        "density": density,
        "truth": truth,
        "noisy": truth + noise[0],
        "momentum": momentum,
        "of momentum": velocity,
        "error": np.abs(noise[1]),
    }


@pytest.fixture(autouse=True)
def _no_figures(no_figures):
    """Draw nothing: other tests look at what is drawn."""


@pytest.fixture
def stores(box, tmp_path):
    """Return a function that writes truth and predictions in shards of some size."""

    folders = (tmp_path / f"stores-{number}" for number in count())

    def write(shard, chunk=None):
        folder = next(folders)
        truth = {"density": box["density"], "velocity": box["truth"]}
        return (
            make_store(folder / "truth.zarr", truth, shard, chunk=chunk, metadata=PAINTED),
            [
                "noisy="
                + make_store(
                    folder / "noisy.zarr",
                    {"velocity": box["noisy"], "velocity_std": box["error"]},
                    16,
                    attributes=NOTED,
                ),
                "of momentum="
                + make_store(folder / "momentum.zarr", {"momentum": box["momentum"]}, shard),
            ],
        )

    return write


def contents(store):
    """Return all files of a store, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in Path(store).rglob("*") if path.is_file()}
