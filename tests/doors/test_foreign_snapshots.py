"""Snapshots whose headers vary are read right; those that contradict themselves are refused."""

import h5py
import numpy as np
import pytest

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.storage.snapshots import open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.doors.foreign import refused

SNAPSHOT = files.zeldovich_box(12, 100.0)


def gadget(path, change=None, **options):
    url = files.write_gadget_hdf5(path / "snap.hdf5", SNAPSHOT, **options)
    if change is not None:
        with h5py.File(url, "a") as file:
            change(file)
    return url


def swift(path, change):
    url = files.write_swift(path / "snap.hdf5", SNAPSHOT)
    with h5py.File(url, "a") as file:
        change(file)
    return url


def npz(path, **more):
    np.savez(path / "snap.npz", **files.npz_arrays(SNAPSHOT, **more))
    return str(path / "snap.npz")


def rewrite(name, make):
    """Replace a column of a file by what is made of it."""

    def change(file):
        values = file["PartType1"][name][:]
        del file["PartType1"][name]
        file["PartType1"][name] = make(values)

    return change


def pack(file):
    values = file["PartType1/Velocities"][:]
    step = float(np.abs(values).max()) / 32000.0
    del file["PartType1/Velocities"]
    file["PartType1/Velocities"] = np.round(values / step).astype("i2")
    file["PartType1/Velocities"].attrs["scale_factor"] = step


def attribute(group, name, value):
    return lambda file: file[group].attrs.__setitem__(name, value)


@each(
    "make",
    [
        lambda path: gadget(path, BoxSize=np.full(3, 1e5), Redshift=np.array([1.0])),
        lambda path: gadget(path, kind=np.dtype(">f8"), files=0),
        lambda path: gadget(path, named={1: {"Masses": np.full(SNAPSHOT.count, SNAPSHOT.mass)}}),
        lambda path: swift(path, attribute("Header", "BoxSize", 100.0 / files.H)),
        lambda path: npz(path, redshift=np.array([1.0]), units="Mpc/h"),
        lambda path: npz(path, velocity=SNAPSHOT.velocity.astype(">f8")),
    ],
)
def test_snapshots_whose_headers_vary(tmp_path, make):
    source = open_particles(make(tmp_path))
    found = source.read(0, source.count)
    away = (found.position - SNAPSHOT.position + 50.0) % 100.0 - 50.0
    assert np.abs(away).max() < 2e-5
    np.testing.assert_allclose(found.velocity, SNAPSHOT.velocity, atol=2e-3, rtol=1e-6)
    assert source.metadata.redshift == 1.0
    assert source.metadata.box_size == pytest.approx(100.0)


@each(
    ("make", "words"),
    [
        (lambda path: gadget(path, pack), ["packed", "scale_factor"]),
        (lambda path: gadget(path, rewrite("Velocities", np.transpose)), ["shape", "Velocities"]),
        (lambda path: gadget(path, rewrite("Velocities", lambda v: np.r_[v, v])), ["shape"]),
        (lambda path: gadget(path, HubbleParam=67.0), ["h = 67", "snapshot.h="]),
        (lambda path: gadget(path, BoxSize=np.nan), ["unit of length", "snapshot.length_unit"]),
        (lambda path: swift(path, attribute("Header", "Redshift", np.array([0.0]))),
         ["contradict", "Scale-factor 0.5", "snapshot.redshift="]),
        (lambda path: swift(path, attribute("Cosmology", "h", np.array([67.0]))), ["h = 67"]),
        (lambda path: npz(path, masses=SNAPSHOT.position[:, 0]), ["masses", "mass=..."]),
        (lambda path: npz(path, velocity=SNAPSHOT.velocity + 0j), ["real", "complex128"]),
        (lambda path: npz(path, velocity=1e4 * SNAPSHOT.velocity), ["faster than light"]),
        (lambda path: npz(path, position=SNAPSHOT.position - 50.0), ["outside", "snapshot.wrap"]),
        (lambda path: npz(path, cosmology=np.array({"h": 0.7}, object)), ["Python objects"]),
        (lambda path: npz(path, h=np.nan), ["h = nan"]),
        (lambda path: npz(path, box_size=np.inf), ["box_size", "inf"]),
    ],
)  # fmt: skip
def test_snapshots_that_contradict_themselves(tmp_path, make, words):
    url = make(tmp_path)
    refused(lambda: open_particles(url), url, *words)


def test_a_hint_decides_between_redshift_and_scale_factor(tmp_path):
    url = swift(tmp_path, attribute("Header", "Redshift", np.array([0.0])))
    assert open_particles(url, SnapshotHints(redshift=1.0)).metadata.redshift == 1.0


def test_positions_in_units_of_the_box_around_its_middle(tmp_path):
    """Wrapped, they lie in all corners of the box: it is periodic, and that is one corner."""
    pytest.importorskip("asdf")

    def columns(piece):
        centred = (piece.position + 50.0) % 100.0 - 50.0
        return {"pos": (centred / 100.0).astype("f4"), "vel": piece.velocity.astype("f4")}

    url = files.write_abacus(tmp_path / "sim", SNAPSHOT, columns=columns)
    refused(lambda: open_particles(url), "corner of the box", "length_unit")
