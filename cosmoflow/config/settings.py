"""Settings of all stages, with defaults, units and limits."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from cosmoflow.config.base import Section, digest
from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.networks import InferConfig, TrainConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.units import LARGEST_BOX

Scheme = Literal["ngp", "cic", "tsc", "pcs"]
Painted = Literal["density", "momentum", "velocity"]


class SimulateConfig(Section):
    """Settings of N-body simulations: box size, particles and integrator."""

    box_size: float = Field(256.0, gt=0.0, le=LARGEST_BOX, description="side of the box, Mpc/h")
    particles: int = Field(256, ge=4, description="particles per axis")
    redshift: tuple[float, ...] = Field(
        (0.0,), description="redshift of the snapshot, or a list of redshifts"
    )
    method: Literal["cola", "2lpt"] = Field("cola", description="integrator")
    steps: int = Field(15, ge=1, le=1000, description="COLA time steps until the last snapshot")
    start_redshift: float = Field(9.0, gt=0.0, description="redshift of the first step")
    spacing: Literal["linear", "log"] = Field("linear", description="spacing of the steps in a")
    mesh_factor: int = Field(1, ge=1, le=4, description="force-mesh cells per particle, per axis")
    compensate: Literal["auto", "none"] = Field(
        "auto", description="correct the force for the mass-assignment window of the particles"
    )
    count: int = Field(1, ge=1, le=100_000, description="boxes, with seeds seed, seed + 1, ...")
    design: str | None = Field(
        None,
        description="CSV table of boxes: each row has cosmological parameters, box_size or "
        "redshift, and makes count boxes",
    )
    fixed_amplitude: bool = Field(False, description="no scatter in the modes' amplitudes")
    paired: bool = Field(
        False, description="every second box is the previous one with all modes' signs flipped"
    )
    linear_power: str | None = Field(
        None, description="table of k (h/Mpc), P(k) today ((Mpc/h)^3); by default from CAMB"
    )
    white_noise: str | None = Field(
        None, description="cube of white noise, .npy or zarr, to use instead of the seed"
    )
    initial_fields: bool = Field(
        False, description="store the linear density and displacement with the particles"
    )

    @field_validator("redshift", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """Accept a single redshift, or text such as "1, 0.5, 0"."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, int | float) else value

    @property
    def time_steps(self) -> int:
        """Time steps per box; 2LPT takes one for each snapshot."""
        return self.steps if self.method == "cola" else len(self.redshift)

    @property
    def snapshots(self) -> tuple[float, ...]:
        """Redshifts in order of time."""
        return tuple(sorted(self.redshift, reverse=True))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.particles % 2:
            raise ValueError(f"particles must be even per axis, not {self.particles}")
        if not self.redshift or min(self.redshift) < 0.0:
            raise ValueError("redshift needs at least one value, none below 0")
        if len({f"{z:g}" for z in self.redshift}) < len(self.redshift):
            raise ValueError("redshift lists one snapshot twice")
        if self.start_redshift <= max(self.redshift):
            raise ValueError(
                f"start_redshift {self.start_redshift} must exceed the first snapshot's "
                f"redshift {max(self.redshift)}"
            )
        if self.method == "cola" and self.steps < len(self.redshift):
            raise ValueError(
                f"steps {self.steps} must be at least one for each of the "
                f"{len(self.redshift)} snapshots"
            )
        if self.paired and self.count % 2:
            raise ValueError(f"paired boxes come in twos: count must be even, not {self.count}")
        if self.design is not None and self.linear_power is not None:
            raise ValueError("a linear_power fits one cosmology, and a design has several")
        if self.white_noise is not None and self.count != 1 + self.paired:
            raise ValueError(
                f"one cube of white noise makes one box, or one pair, not {self.count} boxes"
            )
        return self


def choose_chunk(shard: int) -> int:
    """Return the cells per axis of an inner chunk: the largest divisor of the shard up to 64.

    If a shard above 64 cells has no divisor from 8 to 64 (103 is a prime), the chunk is the
    smallest divisor above 64 instead, as millions of single-cell chunks would take hours.
    """
    best = max(size for size in range(1, 65) if shard % size == 0)
    if best >= min(8, shard):
        return best
    return min(size for size in range(65, shard + 1) if shard % size == 0)


class PaintConfig(Section):
    """Settings of the mass assignment and of the grid's division into shards."""

    grid: int = Field(128, ge=2, description="cells per axis")
    scheme: Scheme = Field("cic", description="mass-assignment scheme")
    fields: tuple[Painted, ...] = Field(
        ("density", "momentum", "velocity"), min_length=1, description="fields to paint"
    )
    interlaced: bool = Field(
        False, description="also paint density and momentum on a second grid, half a cell away"
    )
    fill: Literal["background", "nearest"] = Field(
        "background",
        description="velocity of cells without mass: the mean flow of the box, or the velocity of "
        "the nearest particle",
    )
    redshift_space: Literal["x", "y", "z"] | None = Field(
        None, description="axis along which velocities displace particles into redshift space"
    )
    shard: int | None = Field(None, ge=1, description="cells per axis that one task writes")
    chunk: int | None = Field(
        None, ge=1, description="cells per axis of a chunk, the smallest read"
    )
    particles_per_task: int | None = Field(
        None, ge=1, description="particles that one task reads; by default set by memory"
    )

    @property
    def shard_cells(self) -> int:
        """Cells per axis of a shard: 128, or half of an even grid up to 128 to occupy two cores."""
        if self.shard is not None:
            return min(self.shard, self.grid)
        if self.grid <= 128 and self.grid % 2 == 0:
            return self.grid // 2
        return min(128, self.grid)

    @property
    def chunk_cells(self) -> int:
        """Cells per axis of an inner chunk."""
        return self.chunk or choose_chunk(self.shard_cells)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shard_cells % self.chunk_cells:
            raise ValueError(
                f"shard {self.shard_cells} is not a multiple of chunk {self.chunk_cells}"
            )
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields lists a name twice: {', '.join(self.fields)}")
        if self.interlaced and set(self.fields) == {"velocity"}:
            raise ValueError("interlaced is for density and momentum, but fields has neither")
        if self.fill != "background" and "velocity" not in self.fields:
            raise ValueError(f"fill {self.fill} is for the velocity, which fields lacks")
        return self


class DeriveConfig(Section):
    """Settings of derived fields."""

    method: Literal["difference", "spectral"] = Field(
        "difference", description="differentiate and smooth in each shard, or by FFTs of the box"
    )
    smoothing: float | None = Field(
        None, gt=0.0, description="Gaussian radius of the smoothed fields, Mpc/h"
    )
    shard: int | None = Field(
        None, ge=1, description="cells per axis that one task writes; by default the input's"
    )


class EvaluateConfig(Section):
    """Settings of the comparison of predictions with the truth."""

    subbox: float = Field(120.0, gt=0.0, description="side of the paper's sub-boxes, Mpc/h")
    smoothing: tuple[float, ...] = Field(
        (0.0, 2.0, 4.0), description="Gaussian radii of the linear-theory baselines, Mpc/h"
    )
    shipped_grid: int = Field(
        256,
        ge=0,
        description="largest box, in cells per axis, that is also predicted with the shipped model "
        "to compare it, where it fits; 0 for none",
    )
    force: bool = Field(
        False, description="compare predictions even if they were made from another box"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.smoothing or min(self.smoothing) < 0.0:
            raise ValueError("smoothing needs at least one radius, none below 0 Mpc/h")
        return self


class SpectraConfig(Section):
    """Settings of power spectra: bins, multipoles and sub-boxes."""

    bins: Literal["linear", "log"] = Field(
        "linear", description="bins as wide as the fundamental mode, or of equal width in log k"
    )
    per_decade: int = Field(
        20, ge=1, le=1000, description="bins for each factor of ten in k, if log"
    )
    multipoles: Literal["x", "y", "z"] | None = Field(
        None,
        description="line of sight of quadrupole and hexadecapole; by default neither is measured",
    )
    subbox: float | None = Field(
        None, gt=0.0, description="side of sub-boxes to average over, Mpc/h; by default the box"
    )


class EngineConfig(Section):
    """Settings of the engine. Digests exclude them, as results do not depend on them.

    There is one exception: the precision that inference chooses for its workers depends on the
    engine. Inference records this precision in its own settings.
    """

    choice: Literal["auto", "serial", "ray"] = Field(
        "auto", description="auto runs small jobs in this process, others on Ray"
    )
    address: str | None = Field(
        None, description="address of a Ray cluster; by default this machine"
    )
    workers: int | None = Field(
        None, ge=1, description="inference actors; by default one per GPU, or one per 8 cores"
    )
    memory: ByteSize | None = Field(
        None,
        gt=0,
        description="memory limit of a worker, e.g. 8GiB; by default set by the free memory",
    )
    gpus: bool | None = Field(
        None,
        description="train and infer on GPUs; by default if there are any; true waits for GPUs",
    )
    patience: float = Field(
        600.0, ge=0.0, description="time to wait for nodes of a cluster to join, seconds"
    )
    scratch: str | None = Field(
        None,
        description="folder on each node, or URL in a bucket, for data that tasks exchange; by "
        "default COSMOFLOW_SCRATCH or TMPDIR",
    )
    ship_code: bool = Field(
        False,
        description="send this process's cosmoflow to the cluster's workers, in place of theirs",
    )


class Settings(Section):
    """The resolved configuration of a run."""

    seed: int = Field(1, ge=0, lt=2**63, description="seed of all random numbers")
    cosmology: CosmologyConfig = CosmologyConfig()
    simulate: SimulateConfig = SimulateConfig()
    snapshot: SnapshotHints = SnapshotHints()
    paint: PaintConfig = PaintConfig()
    derive: DeriveConfig = DeriveConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    spectra: SpectraConfig = SpectraConfig()
    engine: EngineConfig = EngineConfig()

    def resolved(self, *sections: str) -> dict[str, Any]:
        """Return the named sections as plain JSON-like data."""
        return self.model_dump(mode="json", include=set(sections))

    def digest(self, *sections: str) -> str:
        """Return the digest of the named sections."""
        return digest(self.resolved(*sections))
