"""Simulation of one box, and the stores that it is written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.config.settings import PaintConfig, Settings, SimulateConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.model.precision import best_device
from cosmoflow.numerics import cola, fourier, initial, lpt
from cosmoflow.numerics.blocks import Block, place, split_block
from cosmoflow.stages.simulate.design import expand_design
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.initial import read_power_table, read_white_noise, white_noise_digest
from cosmoflow.storage.metadata import COMPLETE, STATUS, BoxMetadata, make_provenance
from cosmoflow.storage.outputs import Existing, finish_group
from cosmoflow.storage.particles import create_particles, write_particles
from cosmoflow.storage.urls import absolute, join, open_group, open_group_for_writing
from cosmoflow.units import CRITICAL_DENSITY

Report = Callable[[int, str], None]
"""Function of the number of steps done and the description of the last one."""


@dataclass(frozen=True)
class Initial:
    """Inputs of the Gaussian initial conditions.

    Parameters
    ----------
    power : LinearPower
        Linear power spectrum today.
    white_noise : str, optional
        URL of a cube of white noise; by default the noise is drawn from the seed of the box.
    digests : dict
        Digests of the given files, by the name of their setting.
    """

    power: LinearPower
    white_noise: str | None = None
    digests: dict[str, str] = field(default_factory=dict)


def read_initial(settings: Settings) -> Initial:
    """Read or compute the linear power, and check the cube of white noise if one is given.

    Raises
    ------
    ConfigError, DataError, StorageError
        A file cannot be read, or does not fit the box.
    """
    config = settings.simulate
    digests: dict[str, str] = {}
    if config.linear_power is None:
        power = LinearPower.from_cosmology(settings.cosmology)
    else:
        k, values, digests["linear_power"] = read_power_table(config.linear_power)
        power = LinearPower(k, values)
        _check_table(power, config, settings.cosmology.sigma8)
    cube = None if config.white_noise is None else absolute(config.white_noise)
    if cube is not None:
        noise = read_white_noise(cube)
        if noise.shape != (config.particles,) * 3:
            raise DataError(
                "the white noise does not fit the particles",
                where=cube,
                value=noise.shape,
                limit=(config.particles,) * 3,
                remedy=f"set simulate.particles={noise.shape[0]}, or give another cube",
            )
        initial.check_white_noise(noise)
        initial.check_flat_power(noise)
        digests["white_noise"] = white_noise_digest(noise)
    return Initial(power, cube, digests)


def _check_table(power: LinearPower, config: SimulateConfig, sigma8: float) -> None:
    """Refuse a table that differs from the cosmology in sigma8, or that does not cover the box."""
    found = power.sigma(8.0)
    if abs(found / sigma8 - 1.0) > 0.01:
        raise ConfigError(
            "the table of the linear power has another amplitude than the cosmology",
            where=config.linear_power,
            value=f"sigma8 = {found:.4f}",
            limit=f"cosmology.sigma8 = {sigma8} to 1 %",
            remedy=f"set cosmology.sigma8={found:.4f}, or scale the table; it must be for z = 0",
        )
    fundamental = 2.0 * np.pi / config.box_size
    wanted = (fundamental, fundamental * config.particles / 2)
    if power.k[0] > wanted[0] or power.k[-1] < wanted[1]:
        raise DataError(
            "the table of the linear power does not cover the box",
            where=config.linear_power,
            value=f"k from {power.k[0]:.4g} to {power.k[-1]:.4g} h/Mpc",
            limit=f"{wanted[0]:.4g} to {wanted[1]:.4g} h/Mpc",
        )


@dataclass(frozen=True)
class Box:
    """A box to simulate.

    Parameters
    ----------
    name : str
        Name, for messages.
    settings : Settings
        Its settings: those of the run, or of a row of the design.
    seed : int
        Seed of its white noise.
    inverted : bool
        Whether the box is the second of a pair, whose modes have the opposite sign.
    snapshots : dict of float to str
        URL of the particles at each redshift, in order of time.
    initial_fields : str or None
        URL of the linear fields; None if they are not written.
    """

    name: str
    settings: Settings
    seed: int
    inverted: bool
    snapshots: dict[float, str]
    initial_fields: str | None

    def begin(self, initial: Initial, existing: Existing) -> bool:
        """Create the stores of this box; return whether an earlier run finished them all."""
        settings, config = self.settings, self.settings.simulate
        provenance = self.provenance(initial)
        mass = settings.cosmology.Omega_m * CRITICAL_DENSITY * config.box_size**3
        mass /= config.particles**3

        def metadata(redshift: float) -> BoxMetadata:
            return BoxMetadata(config.box_size, redshift, settings.cosmology, mass, provenance)

        for redshift, url in self.snapshots.items():
            create_particles(url, config.particles**3, metadata(redshift), existing)
        if self.initial_fields is not None:
            layout = PaintConfig(grid=config.particles)
            create_fields(
                self.initial_fields,
                metadata(0.0),
                config.particles,
                ("linear_density", "displacement"),
                shard=layout.shard_cells,
                chunk=layout.chunk_cells,
                existing=existing,
            )
        return all(_is_whole(url) for url in self.stores())

    def stores(self) -> list[str]:
        """Return the URLs of all stores of this box."""
        return [*self.snapshots.values(), *([self.initial_fields] if self.initial_fields else [])]

    def provenance(self, initial: Initial) -> dict[str, Any]:
        """Return the provenance of the stores of this box."""
        content: dict[str, Any] = self.settings.resolved("simulate", "cosmology")
        # The other boxes do not affect this one, and files are identified by their content.
        for name in ("count", "design", "paired", "linear_power", "white_noise", "initial_fields"):
            content["simulate"].pop(name)
        return make_provenance(
            "simulate",
            {"seed": self.seed, "inverted": self.inverted, **content},
            initial.digests,
            sources={role: str(getattr(self.settings.simulate, role)) for role in initial.digests},
        )


def is_folder(settings: Settings) -> bool:
    """Return whether the output is a folder of stores instead of one store."""
    config = settings.simulate
    several = config.count > 1 or len(config.redshift) > 1
    return several or config.design is not None or config.initial_fields


def plan_boxes(out: str, settings: Settings) -> list[Box]:
    """Return the boxes of a run, with the URLs of their stores.

    Raises
    ------
    ConfigError, StorageError, DataError
        The design is invalid.
    """
    rows = expand_design(settings)
    boxes: list[Box] = []
    for row in rows:
        boxes += _plan_row(out, row, len(boxes), len(rows) * row.simulate.count)
    return boxes


def _plan_row(out: str, settings: Settings, first: int, total: int) -> Iterator[Box]:
    """Yield the boxes of a row of the design; ``first`` boxes of ``total`` are before them."""
    config = settings.simulate

    def url(*parts: str) -> str:
        return join(out, "-".join(part for part in parts if part) + ".zarr")

    for index in range(first, first + config.count):
        name = f"box-{index:04d}" if total > 1 else ""
        if not is_folder(settings):
            snapshots = {config.snapshots[0]: out}
        elif len(config.snapshots) == 1:
            snapshots = {config.snapshots[0]: url(name or "particles")}
        else:
            snapshots = {z: url(name, f"z{z:g}") for z in config.snapshots}
        yield Box(
            name or "box",
            settings,
            settings.seed + (index // 2 if config.paired else index),
            config.paired and index % 2 == 1,
            snapshots,
            url(name, "initial") if config.initial_fields else None,
        )


def simulate_box(box: Box, given: Initial, report: Report) -> str:
    """Simulate one box into its stores, which exist already, and mark them complete."""
    settings, config = box.settings, box.settings.simulate
    device = best_device()
    digest = box.provenance(given)["digest"]
    modes = _linear_modes(box, config, given).to(device)
    if box.initial_fields is not None:
        density = fourier.inverse(modes, config.particles)
    psi1, psi2 = lpt.displacements(modes, config.box_size)
    del modes
    if box.initial_fields is not None:
        _write_initial(box.initial_fields, digest, config.particles, density, psi1)
        del density
    for snapshot, url in zip(
        _evolve(config, Background(settings.cosmology), psi1, psi2, report),
        box.snapshots.values(),
        strict=True,
    ):
        _write_snapshot(url, digest, snapshot)
    report(1 + config.time_steps, "written")
    return box.name


def _evolve(
    config: SimulateConfig, background: Background, psi1: Tensor, psi2: Tensor, report: Report
) -> Iterator[cola.Snapshot]:
    outputs = [1.0 / (1.0 + z) for z in config.snapshots]
    if config.method == "2lpt":
        for done, snapshot in enumerate(
            cola.displace(background, psi1, psi2, box_size=config.box_size, outputs=outputs), 1
        ):
            report(done, f"a = {snapshot.scale_factor:.3f}")
            yield snapshot
    else:
        yield from cola.evolve(
            background,
            psi1,
            psi2,
            box_size=config.box_size,
            outputs=outputs,
            steps=config.steps,
            a_start=1.0 / (1.0 + config.start_redshift),
            spacing=config.spacing,
            mesh_factor=config.mesh_factor,
            compensate=config.compensate == "auto",
            progress=lambda done, total: report(done, f"step {done} of {total}"),
        )


def _linear_modes(box: Box, config: SimulateConfig, given: Initial) -> Tensor:
    """Return the modes of the linear density today."""
    if given.white_noise is None:
        noise = initial.white_noise_modes(config.particles, box.seed)
    else:
        cube = read_white_noise(given.white_noise)
        before, now = given.digests["white_noise"], white_noise_digest(cube)
        if before != now:
            raise changed_input(given.white_noise, before, now)
        noise = initial.modes_of_noise(cube)
    return initial.linear_density_modes(
        noise,
        config.box_size,
        given.power,
        fixed_amplitude=config.fixed_amplitude,
        inverted=box.inverted,
    )


def _write_snapshot(url: str, digest: str, snapshot: cola.Snapshot) -> None:
    def rows(start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        position, velocity = snapshot.rows(start, stop)
        return position.cpu().numpy(), velocity.cpu().numpy()

    if not _is_whole(url):
        write_particles(url, rows, digest=digest)
        finish_group(open_group_for_writing(url))


def _write_initial(url: str, digest: str, cells: int, density: Tensor, psi1: Tensor) -> None:
    """Write the linear density and displacement; the lattice points are the centres of cells."""
    displacement = psi1.view(cells, cells, cells, 3).movedim(-1, 0)
    box, finished = Block((0, 0, 0), (cells,) * 3), finished_shards(url)
    # The grid has the shards that painting would choose.
    for shard, block in enumerate(split_block(box, PaintConfig(grid=cells).shard_cells)):
        if not finished[shard]:
            part = place(block, box)
            fields = {
                "linear_density": density[part].cpu().numpy(),
                "displacement": displacement[:, *part].cpu().numpy(),
            }
            write_block(url, block, shard, fields, digest=digest)
    finish_group(open_group_for_writing(url))


def _is_whole(url: str) -> bool:
    return open_group(url).attrs.get(STATUS) == COMPLETE
