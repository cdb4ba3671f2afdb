"""Boxes, snapshots and particles that several of these files start from."""

import numpy as np
import pytest
import zarr

from cosmoflow.cli.app import run_app
from cosmoflow.config import CosmologyConfig
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import create_particles, write_particles
from cosmoflow.storage.urls import open_group_for_writing
from tests.conftest import BOX, displaced_lattice, make_metadata, rows_of
from tests.doors import literal
from tests.snapshot_files import write_gadget_hdf5, zeldovich_box


@pytest.fixture
def box(particle_store):
    made = particle_store(per_axis=16)
    # Particles that make up the mean density of matter: of others there is a warning.
    mass = 2.77536627e11 * CosmologyConfig().Omega_m * BOX**3 / 16**3
    zarr.open_group(made.url).attrs["particle_mass"] = mass
    return made


def store_particles(url, position, velocity, size=BOX):
    create_particles(
        url, len(position), make_metadata(size, stage="simulate", particles=len(position))
    )
    write_particles(url, rows_of(position, velocity))
    finish_group(open_group_for_writing(url))
    return url


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A store of one particle in eight cells of 16^3."""
    url = str(tmp_path_factory.mktemp("sparse") / "particles.zarr")
    return store_particles(url, *displaced_lattice(8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with two snapshots, a damaged one and a fields store."""
    folder = tmp_path_factory.mktemp("files")
    write_gadget_hdf5(folder / "snap.hdf5", literal.BOX)
    write_gadget_hdf5(folder / "other.hdf5", literal.OTHER)
    # One particle that no sample meets: the run is refused after it has claimed its output.
    damaged = zeldovich_box(16)
    damaged.position[300] = np.nan
    write_gadget_hdf5(folder / "damaged.hdf5", damaged)
    assert run_app(["paint", f"{folder}/snap.hdf5", f"{folder}/fields.zarr", *literal.SERIAL]) == 0
    return folder
