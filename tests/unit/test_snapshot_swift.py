"""SWIFT: files by its own library, files that point to others, several particle types."""

import h5py
import numpy as np
import pytest

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots import SnapshotHints, open_particles
from tests import snapshot_files as files
from tests.conftest import refused


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(16)


def check(source, box, factor=1.0):
    particles = source.read(0, source.count)
    assert source.metadata.box_size == pytest.approx(box.size, rel=1e-6)
    apart = np.abs(particles.position - box.position)
    assert np.minimum(apart, box.size - apart).max() < 1e-4
    np.testing.assert_allclose(particles.velocity, factor * box.velocity, atol=2e-3)


def test_file_of_swiftsimio(tmp_path, box):
    pytest.importorskip("swiftsimio")
    import unyt
    from swiftsimio import Writer, cosmo_array
    from swiftsimio.metadata.writer.unit_systems import cosmo_units

    def array(values, unit, power):
        return cosmo_array(values, unit, comoving=True, scale_factor=files.A, scale_exponent=power)

    sides = array([box.size / files.H] * 3, unyt.Mpc, 1)
    writer = Writer(unit_system=cosmo_units, boxsize=sides, scale_factor=files.A)
    matter = writer.dark_matter
    matter.coordinates = array(box.position / files.H, unyt.Mpc, 1)
    matter.velocities = array(box.velocity, unyt.km / unyt.s, 0)
    matter.masses = array(np.full(box.count, 1e10 * box.mass / files.H), unyt.msun, 0)
    url = str(tmp_path / "ics.hdf5")
    writer.write(url)
    # The writer keeps no cosmology, and marks physical velocities as comoving ones.
    known = {"h": files.H, "Omega_m": files.OMEGA_M}
    refused(DataError, 3, lambda: open_particles(url, SnapshotHints(**known)), "a-scale", "hint")
    source = open_particles(url, SnapshotHints(velocity="peculiar", **known))
    check(source, box)
    assert source.metadata.particle_mass == pytest.approx(1e10 * box.mass, rel=1e-4)


def test_lossy_filters_of_hdf5(tmp_path, box):
    # SWIFT's lossy filters are HDF5's own; this one keeps four decimals, some 100 pc.
    url = files.write_swift(tmp_path / "snap.hdf5", box, scaleoffset=4, compression="gzip")
    check(open_particles(url), box)


def test_columns_say_their_powers_of_a(tmp_path, box):
    physical = files.Box(box.position * files.A, box.velocity, box.size)
    url = files.write_swift(
        tmp_path / "snap.hdf5", physical, columns={"Coordinates": {"a-scale exponent": [0.0]}}
    )
    with h5py.File(url, "r+") as file:
        file["PartType1/Masses"][...] = box.mass / files.H
    check(open_particles(url), box)


def test_file_that_points_to_others(tmp_path, box):
    names = []
    for index, piece in enumerate(box.split(2)):
        names.append(f"snap_0001.{index}.hdf5")
        files.write_swift(tmp_path / names[-1], piece)
        with h5py.File(tmp_path / names[-1], "r+") as file:
            file["Header"].attrs["NumFilesPerSnapshot"] = [2]
            file["Header"].attrs["NumPart_Total"] = np.array([0, box.count, 0, 0, 0, 0, 0])
            mass = box.mass / files.H
            file["Header"].attrs["MassTable"] = np.array([0, mass, 0, 0, 0, 0, 0])
    pointer = tmp_path / "snap_0001.hdf5"
    counts = [piece.count for piece in box.split(2)]
    with h5py.File(tmp_path / names[0]) as one, h5py.File(pointer, "w") as file:
        for group in ("Header", "Units", "Cosmology"):
            one.copy(group, file)
        file["Header"].attrs["Virtual"] = 1
        file["Header"].attrs["NumFilesPerSnapshot"] = [1]
        file["Header"].attrs["NumPart_ThisFile"] = np.array([0, box.count, 0, 0, 0, 0, 0])
        for column, kind in (("Coordinates", "f8"), ("Velocities", "f4")):
            layout = h5py.VirtualLayout((box.count, 3), kind)
            for name, start, count in zip(names, (0, counts[0]), counts, strict=True):
                layout[start : start + count] = h5py.VirtualSource(
                    name, f"PartType1/{column}", (count, 3)
                )
            file.create_virtual_dataset(f"PartType1/{column}", layout)
    for url in (pointer, tmp_path / names[1], tmp_path):
        source = open_particles(str(url))
        check(source, box)
        assert {part.file for part in source.parts} == {str(tmp_path / name) for name in names}
    (tmp_path / names[1]).unlink()
    # HDF5 would read zeros for what is missing.
    refused(DataError, 3, lambda: open_particles(str(pointer)), "missing", names[1])


def test_all_matter_with_masses(tmp_path, box):
    url = files.write_swift(tmp_path / "snap.hdf5", box, types=(0, 1, 6))
    gas = 0.1 * np.arange(box.count) * box.mass / np.arange(box.count).mean()
    with h5py.File(url, "r+") as file:
        file["PartType0/Masses"][...] = gas / files.H
        file["PartType1/Masses"][...] = 0.9 * box.mass / files.H
        del file["Header"].attrs["MassTable"]
    source = open_particles(url, SnapshotHints(particle_types="all"))
    # Neutrinos carry weights: they are only read when asked for.
    assert source.count == 2 * box.count
    assert source.metadata.particle_mass is None
    particles = source.read(0, source.count)
    np.testing.assert_allclose(particles.mass[: box.count], 1e10 * gas, rtol=1e-5)
    np.testing.assert_allclose(particles.mass[box.count :], 0.9e10 * box.mass, rtol=1e-5)
