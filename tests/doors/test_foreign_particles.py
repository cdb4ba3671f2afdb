"""Particle stores that others wrote: rows along either axis, packed, of any floating point."""

import numpy as np
import pytest
import xarray as xr

import cosmoflow
from cosmoflow.errors import DataError
from cosmoflow.storage.particles import ParticleStore
from tests.cases import each
from tests.conftest import displaced_lattice, refused
from tests.doors.foreign import ATTRIBUTES, BOX, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

POSITION, VELOCITY = displaced_lattice(8, BOX)


def dataset(position=POSITION, velocity=VELOCITY, dtype="float32", length="Mpc/h", speed="km/s"):
    rows = ("particle", "component")
    return xr.Dataset(
        {
            "position": (rows, position.astype(dtype), {"units": length}),
            "velocity": (rows, velocity.astype(dtype), {"units": speed}),
        },
        {"component": list("xyz")},
        {**ATTRIBUTES, "format": "cosmoflow/particles"},
    )


def packed(step):
    return {"dtype": "int32", "scale_factor": step, "add_offset": 0.0, "_FillValue": -1}


@each(
    ("data", "options", "error"),
    [
        (dataset(), {"consolidated": True}, 0.0),
        (dataset().transpose("component", "particle"), {}, 0.0),
        (dataset().sel(component=list("zxy")), {}, 0.0),
        (dataset(dtype=">f4"), {}, 0.0),
        (dataset(dtype="float64"), {}, 0.0),
        (dataset().transpose(), {"encoding": {"position": packed(2.0**-12)}}, 2.0**-12),
        (dataset().drop_vars("component").chunk(particle=100), {}, 0.0),
    ],
)
def test_rows_are_read_right(tmp_path, data, options, error):
    store = ParticleStore(write(data, tmp_path / "a.zarr", **options))
    assert store.count == len(POSITION)
    pieces = [store.read(start, stop) for start, stop in store.ranges(100)]
    assert np.abs(np.concatenate([one.position for one in pieces]) - POSITION).max() <= error
    np.testing.assert_array_equal(np.concatenate([one.velocity for one in pieces]), VELOCITY)


def test_the_density_of_a_turned_store_is_the_same(tmp_path, serial_run):
    run = serial_run(paint={"grid": 8})
    turned = write(dataset(dtype=">f8").transpose(), tmp_path / "turned.zarr")
    straight = write(dataset(), tmp_path / "straight.zarr")
    one, other = (cosmoflow.paint(url, f"{url}-f", run) for url in (turned, straight))
    for name in ("density", "velocity"):
        np.testing.assert_array_equal(one[name], other[name])


def test_positions_that_round_to_the_side_are_at_0(tmp_path):
    position = POSITION.astype(np.float64)
    position[5, 1] = BOX * (1.0 - 1e-12)
    store = ParticleStore(write(dataset(position, dtype="float64"), tmp_path / "a.zarr"))
    assert store.read(0, 10).position[5, 1] == 0.0
    position[5, 1] = BOX
    url = write(dataset(position, dtype="float64"), tmp_path / "b.zarr")
    refused(DataError, 3, lambda: ParticleStore(url).read(0, 10), "outside the box")


@each(
    ("data", "words"),
    [
        (dataset(length="kpc/h"), ["position", "kpc/h", "Mpc/h"]),
        (dataset(speed="m/s"), ["velocity", "m/s", "km/s"]),
        (dataset(dtype="int32"), ["int32"]),
        (dataset().assign_coords(component=list("uvw")), ["labels", "u, v, w"]),
        (dataset().isel(component=[0, 1]), ["shape"]),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, data, words):
    url = write(data, tmp_path / "a.zarr")
    refused(DataError, 3, lambda: ParticleStore(url), url, *words)


def test_missing_parts_are_not_particles_in_the_corner(tmp_path):
    url = write(
        dataset().chunk(particle=128),
        tmp_path / "a.zarr",
        encoding={"position": {"fill_value": 0.0}},
    )
    (tmp_path / "a.zarr" / "position" / "c" / "1" / "0").unlink()
    refused(DataError, 3, lambda: ParticleStore(url), "missing", "1 of 4 chunks")
