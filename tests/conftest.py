"""Small boxes, small stores and ready-made runs for every test."""

import os
import re
import secrets
import signal

# A shell that runs the tests in the background (`nohup make test &`) has them ignore SIGINT. All
# processes that they start would inherit that: commands that tests interrupt would go on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# OpenMP reads it when torch is loaded: threads that wait leave their cores to others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray reads these once in a process, which may start several clusters.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from cosmoflow.config import CosmologyConfig, load_settings
from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Session
from cosmoflow.events import ignore
from cosmoflow.model import registry
from cosmoflow.model.footprint import count_activation_bytes
from cosmoflow.model.residual import ResidualUNet
from cosmoflow.model.sources import (
    MemoryFields,
)
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.stages.run import Run
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.flows import adding_linear_velocity
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import create_particles, write_particles
from cosmoflow.storage.urls import open_group_for_writing
from cosmoflow.units import CRITICAL_DENSITY

# How long an example takes says how busy the machine is.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, and all that start Ray in one.

    Two instances of Ray on two cores keep one another from starting; half of their time they wait,
    and leave the cores to the other process.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "ray" if names_ray(nodeid) else nodeid.partition("::")[0]

    return Files(config, log)


def names_ray(nodeid):
    """Tell whether a test says that it starts Ray: whoever hands tests out knows names only."""
    file, _, name = nodeid.partition("::")
    return file.startswith("tests/cluster/") or re.search("(?<![a-z])ray(?![a-z])", name)


def pytest_collection_modifyitems(items):
    """Refuse tests on Ray that do not say so."""
    for item in items:
        if "ray_session" in item.fixturenames and not names_ray(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} starts Ray: put `ray` in its name")


BOX = 64.0
RATE = 53.0
"""Growth rate a f H of the synthetic boxes, km/s per Mpc/h."""


UNIT_FILTER = WienerFilter(("contrast",), 0.1, ((1.0,),) * 3)
"""A Wiener filter that is linear theory."""

FLOWS = ("wiener_velocity",)
"""The global velocities of the residual networks, as they are in a synthetic box."""


@contextmanager
def narrow_networks():
    """Make residual networks with few features: as deep as the registered ones, and quick."""

    def make(channels, _, *depths):
        return ResidualUNet(channels, (4, 8, 12), *depths)

    kept = (registry.count_flops, count_activation_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "ResidualUNet", make)
        for function in kept:
            function.cache_clear()
        yield
    for function in kept:
        function.cache_clear()


def displaced_lattice(per_axis, box_size=BOX, seed=0):
    """Positions and velocities of a lattice displaced by random waves, in [0, box), float32."""
    rng = np.random.default_rng(seed)
    q = (np.indices((per_axis,) * 3).reshape(3, -1).T + 0.5) * (box_size / per_axis)
    shift = np.zeros_like(q)
    for _ in range(4):
        k = 2.0 * np.pi / box_size * rng.integers(-2, 3, 3)
        shift += rng.normal(0.0, 0.02 * box_size, 3) * np.sin(q @ k + rng.uniform(0, 7))[:, None]
    shift += rng.normal(0.0, 0.2 * box_size / per_axis, q.shape)
    position = ((q + shift) % box_size).astype(np.float32)
    position[position >= np.float32(box_size)] = 0.0
    velocity = RATE * shift + rng.normal(0.0, 30.0, q.shape) + 10.0
    return position, velocity.astype(np.float32)


def make_metadata(box_size=BOX, redshift=0.0, stage="test", *, particles=512, **config):
    """Metadata whose provenance digest depends on ``config``, of matter in so many particles."""
    cosmology = CosmologyConfig()
    mass = cosmology.Omega_m * CRITICAL_DENSITY * box_size**3 / particles
    return BoxMetadata(
        box_size, redshift, cosmology, mass, make_provenance(stage, {"seed": 1, **config})
    )


def keep_linear_velocity(url, radius, values):
    """Add a linear velocity to a fields store; return its place among the radii."""
    with adding_linear_velocity(url, radius) as array:
        array.write(values)
    return array.lead[0]


def synthetic_fields(grid, cell=2.0, radii=(2.0, 6.0), seed=0, nonlinear=0.4):
    """Density with a power spectrum, its linear velocities, and a velocity that differs a bit."""
    box_size = grid * cell
    rng = np.random.default_rng(seed)
    modes = np.fft.rfftn(rng.normal(size=(grid,) * 3))
    k = 2.0 * np.pi * np.fft.fftfreq(grid, cell)
    k2 = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, : grid // 2 + 1] ** 2
    gaussian = np.fft.irfftn(modes * np.exp(-k2 * 9.0) / (k2 + 0.01), (grid,) * 3, (0, 1, 2))
    density = np.exp(0.7 * gaussian / gaussian.std())
    density = torch.from_numpy((density / density.mean()).astype(np.float32))
    flows = torch.stack([linear_velocity(density, box_size, RATE, radius) for radius in radii])
    wiener = UNIT_FILTER.velocity(density, box_size, RATE)
    velocity = flows[0] * (1.0 + nonlinear * torch.tanh(density - 1.0))
    return {
        "density": density.numpy(),
        "linear_velocity": flows.numpy(),
        "wiener_velocity": wiener.numpy(),
        "velocity": velocity.numpy(),
        "momentum": (velocity * density).numpy(),
    }


def rows_of(position, velocity):
    """Return what ``write_particles`` asks for pieces of particles in memory."""
    return lambda start, stop: (position[start:stop], velocity[start:stop])


@pytest.fixture
def particle_store(tmp_path):
    """Return a factory of whole particle stores, with masses of their own when asked."""
    made = []

    def make(per_axis=8, *, box_size=BOX, seed=0, mass=False):
        url = str(tmp_path / f"particles-{len(made)}.zarr")
        made.append(url)
        position, velocity = displaced_lattice(per_axis, box_size, seed)
        metadata = make_metadata(box_size, stage="simulate", particles=len(position), seed=seed)
        create_particles(url, len(position), metadata)
        write_particles(url, rows_of(position, velocity))
        masses = None
        group = open_group_for_writing(url)
        if mass:
            masses = np.random.default_rng(seed).lognormal(0.0, 1.0, len(position))
            group.create_array("mass", shape=masses.shape, chunks=masses.shape, dtype="float64")[
                :
            ] = masses
        finish_group(group)
        return SimpleNamespace(url=url, position=position, velocity=velocity, mass=masses)

    return make


@pytest.fixture
def fields_store(tmp_path):
    """Return a factory of fields stores of a synthetic box, finished unless asked otherwise."""
    made = []

    def make(grid=12, *, shard=8, chunk=4, cell=2.0, seed=0, finish=True, name=None):
        url = name or str(tmp_path / f"fields-{len(made)}.zarr")
        made.append(url)
        fields = synthetic_fields(grid, cell, seed=seed)
        names = ("density", "velocity")
        metadata = make_metadata(grid * cell, stage="paint", seed=seed)
        create_fields(url, metadata, grid, names, shard=shard, chunk=chunk)
        for index, block in enumerate(grid_blocks(grid, shard)):
            write_block(url, block, index, {name: cut(fields[name], block) for name in names})
        if finish:
            finish_group(open_group_for_writing(url))
        return SimpleNamespace(url=url, metadata=metadata, **fields)

    return make


def cut(field, block):
    """Return a block, inside the grid, of an array in memory."""
    return field[(..., *(slice(o, o + n) for o, n in zip(block.origin, block.shape, strict=True)))]


@pytest.fixture
def serial_run():
    """Return a function that makes a run in this process: sections of settings by keyword."""

    def make(*, existing="error", listener=ignore, **overrides):
        settings = load_settings(options={**overrides, "engine": {"choice": "serial"}})
        return Run(settings, Session(settings.engine), existing, listener)

    return make


@pytest.fixture(scope="session")
def ray_session():
    """A session whose engine is Ray on this machine."""
    with Session(EngineConfig(choice="ray")) as session:
        yield session


@pytest.fixture(scope="session")
def synthetic_box():
    """Return a source in memory of a box of 32^3 cells of 2 Mpc/h."""
    return MemoryFields(synthetic_fields(32))


def refused(kind, code, call, *words):
    """Assert that a call raises just this kind of error, with its exit code and words."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    for word in words:
        assert word in str(caught.value)
