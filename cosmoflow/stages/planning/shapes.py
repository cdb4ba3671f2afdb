"""Stand-ins for stores and clusters that do not exist yet, with what plans need of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.settings import Settings
from cosmoflow.engine import Engine, Resources, Session
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.stages.costs import OBJECT_STORE_SHARE, SYSTEM_BYTES
from cosmoflow.stages.planning.nodes import NodeType
from cosmoflow.stages.run import Run
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.particles import COVERAGE_BINS, ROWS_PER_CHUNK

LARGEST_DISPLACEMENT = 30.0
"""Largest displacement along an axis, Mpc/h: five times the rms at z = 0."""


def metadata_of(settings: Settings) -> BoxMetadata:
    """Return the metadata of a box at the last of its redshifts."""
    config = settings.simulate
    return BoxMetadata(config.box_size, min(config.redshift), settings.cosmology)


@dataclass(frozen=True, slots=True)
class ParticleShape:
    """Particles in Lagrangian order, as simulations write them.

    Parameters
    ----------
    per_axis : int
        Cube root of their number.
    metadata : BoxMetadata
        Metadata of the box.
    has_mass : bool
        Whether the particles have individual masses.
    """

    per_axis: int
    metadata: BoxMetadata
    has_mass: bool = False

    @property
    def count(self) -> int:
        """Number of particles."""
        return self.per_axis**3

    def ranges(self, rows: int) -> list[tuple[int, int]]:
        """Return ``(start, stop)`` of pieces, as a particle store cuts them."""
        step = max(1, rows // ROWS_PER_CHUNK) * ROWS_PER_CHUNK if rows >= ROWS_PER_CHUNK else rows
        return [(start, min(start + step, self.count)) for start in range(0, self.count, step)]

    def coverage(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of equal bins along x, y and z the particles may have moved to.

        Shape (3, COVERAGE_BINS).
        """
        n, reach = self.per_axis, LARGEST_DISPLACEMENT / self.metadata.box_size
        covered = np.zeros((3, COVERAGE_BINS), np.bool_)
        for bins, inner in zip(covered, (n * n, n, 1), strict=True):
            # Lattice sites along the axis, counted without wrapping.
            first, last = start // inner, (stop - 1) // inner
            low, high = first / n - reach, (last + 1) / n + reach
            if high - low >= 1.0:
                bins[:] = True
            else:
                begin, end = math.floor(low * COVERAGE_BINS), math.ceil(high * COVERAGE_BINS)
                bins[np.arange(begin, end) % COVERAGE_BINS] = True
        return covered


@dataclass(frozen=True, slots=True)
class FieldShape:
    """Fields on a grid.

    Parameters
    ----------
    grid, shard, chunk : int
        Cells per axis of the grid, of a shard and of a chunk.
    metadata : BoxMetadata
        Metadata of the box.
    url : str
        Name of the store in messages.
    """

    grid: int
    shard: int
    chunk: int
    metadata: BoxMetadata
    url: str = "s3://planned/fields.zarr"

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""
        return self.metadata.box_size / self.grid

    def smoothing_scales(self) -> list[float]:
        """Return the radii of the linear velocities that the store keeps: none."""
        return []


def fields_of(settings: Settings) -> FieldShape:
    """Return the fields that settings paint."""
    config = settings.paint
    return FieldShape(config.grid, config.shard_cells, config.chunk_cells, metadata_of(settings))


class PlannedEngine(SerialEngine):
    """Engine of planned nodes, all equal, which answers the questions of plans.

    Parameters
    ----------
    node : NodeType
        Type of the nodes.
    nodes : int
        Number of nodes.
    """

    name = "ray"

    def __init__(self, node: NodeType, nodes: int) -> None:
        self._node, self._nodes = node, nodes

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return self._node.vcpus * self._nodes

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return self._node.gpus * self._nodes

    @property
    def memory(self) -> int:
        """Bytes of a node for workers."""
        return worker_bytes(self._node)

    @property
    def memory_per_core(self) -> int:
        """Bytes of a worker if a node has one for each CPU."""
        return self.memory // self._node.vcpus

    def share(self, tasks: int, *, most: int, memory: int, accelerated: bool = False) -> Resources:
        """Share nodes as the engine on Ray does."""
        node = self._node
        if accelerated and node.gpus:
            return Resources(max(1, node.vcpus // node.gpus), 1, memory)
        room = self.memory // max(memory, 1)
        places = max(1, min(-(-node.vcpus // most), room, -(-tasks // self._nodes)))
        return Resources(max(1, node.vcpus // places), 0, memory)


class PlannedSession(Session):
    """Session that hands out the engine of a planned cluster."""

    def __init__(self, node: NodeType, nodes: int) -> None:
        super().__init__()
        self._planned = PlannedEngine(node, nodes)

    def engine(self, cpu_seconds: float, **needs: Any) -> Engine:
        """Return the same engine for every job."""
        return self._planned


def worker_bytes(node: NodeType) -> int:
    """Return the memory of a node for workers, without that of Ray and its object store."""
    return int((node.memory - SYSTEM_BYTES) * (1.0 - OBJECT_STORE_SHARE))


def store_bytes(node: NodeType) -> int:
    """Return the memory of a node for what tasks hand on; more is read back from disk."""
    return int((node.memory - SYSTEM_BYTES) * OBJECT_STORE_SHARE)


def planned_run(settings: Settings, node: NodeType, nodes: int) -> Run:
    """Return a run on a planned cluster, which plans treat like any other."""
    engine = settings.engine.model_copy(update={"choice": "ray", "address": "planned"})
    return Run(settings.model_copy(update={"engine": engine}), PlannedSession(node, nodes))
