"""Mass assignment of density and momentum in one pass, exact in any order.

Every contribution is rounded once to a fixed-point integer and the sums are integer sums. Integer
addition is associative, so a grid does not depend on the order of the particles, on how they were
cut into chunks, on the shards of the grid or on the number of workers: not to rounding, but to the
last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.units import SPEED_OF_LIGHT

SCHEME_ORDER: Final = {"ngp": 1, "cic": 2, "tsc": 3, "pcs": 4}
"""Cells per axis that a particle's cloud touches (Hockney & Eastwood 1981, section 5-3)."""

# One mean particle mass is 2**36 units, so a cell can hold 1.3e8 of them before int64 overflows and
# a weight is good to 1.5e-11. One mean-mass particle at 1 km/s is 2**26 units: a cell overflows at
# 1.4e11 particle km/s.
_MASS_UNITS: Final = float(2**36)
_MOMENTUM_UNITS: Final = float(2**26)


@dataclass(frozen=True, slots=True)
class Block:
    """A cuboid of cells of a periodic grid: its first cell and its shape, per axis."""

    origin: tuple[int, int, int]
    shape: tuple[int, int, int]


@njit(cache=True, inline="always")
def _cloud(u, order, weights):  # type: ignore[no-untyped-def]
    """Fill ``weights`` and return the first cell of a cloud at ``u = x n / L`` (cell units)."""
    if order == 1:
        weights[0] = 1.0
        return int(np.floor(u))
    if order == 2:
        first = int(np.floor(u - 0.5))
        f = u - 0.5 - first
        weights[0] = 1.0 - f
        weights[1] = f
        return first
    if order == 3:
        centre = int(np.floor(u))
        d = u - 0.5 - centre
        weights[0] = 0.5 * (0.5 - d) ** 2
        weights[1] = 0.75 - d * d
        weights[2] = 0.5 * (0.5 + d) ** 2
        return centre - 1
    first = int(np.floor(u - 0.5))
    f = u - 0.5 - first
    weights[0] = (1.0 - f) ** 3 / 6.0
    weights[1] = (4.0 - 6.0 * f * f + 3.0 * f**3) / 6.0
    weights[2] = (4.0 - 6.0 * (1.0 - f) ** 2 + 3.0 * (1.0 - f) ** 3) / 6.0
    weights[3] = f**3 / 6.0
    return first - 1


@njit(cache=True, nogil=True)
def _accumulate(  # type: ignore[no-untyped-def]
    position, velocity, mass, cells, scale, order, origin, mass_sum, momentum_sum
):
    """Add particles to the integer sums of one block; cells outside the block are skipped."""
    nx, ny, nz = mass_sum.shape
    wx = np.empty(4)
    wy = np.empty(4)
    wz = np.empty(4)
    equal = mass.shape[0] == 0
    for p in range(position.shape[0]):
        ix = _cloud(position[p, 0] * scale, order, wx)
        iy = _cloud(position[p, 1] * scale, order, wy)
        iz = _cloud(position[p, 2] * scale, order, wz)
        m = 1.0 if equal else float(mass[p])
        vx = float(velocity[p, 0])
        vy = float(velocity[p, 1])
        vz = float(velocity[p, 2])
        for a in range(order):
            x = (ix + a - origin[0]) % cells
            if x >= nx:
                continue
            for b in range(order):
                y = (iy + b - origin[1]) % cells
                if y >= ny:
                    continue
                wxy = m * wx[a] * wy[b]
                for c in range(order):
                    z = (iz + c - origin[2]) % cells
                    if z >= nz:
                        continue
                    w = wxy * wz[c]
                    mass_sum[x, y, z] += int(np.rint(w * _MASS_UNITS))
                    w *= _MOMENTUM_UNITS
                    momentum_sum[0, x, y, z] += int(np.rint(w * vx))
                    momentum_sum[1, x, y, z] += int(np.rint(w * vy))
                    momentum_sum[2, x, y, z] += int(np.rint(w * vz))


class BlockSums:
    """Fixed-point sums of mass and momentum over one block of the grid.

    Parameters
    ----------
    block : Block
        The cells to sum over.
    cells : int
        Cells per axis of the whole periodic grid.
    box_size : float
        Mpc/h.
    scheme : {"ngp", "cic", "tsc", "pcs"}
        Mass assignment.

    Notes
    -----
    Memory is 32 bytes a cell of the block, whatever the number of particles.
    """

    def __init__(self, block: Block, cells: int, box_size: float, scheme: str = "cic") -> None:
        self.block = block
        self.cells = cells
        self.scale = cells / box_size
        self.order = SCHEME_ORDER[scheme]
        self.mass: NDArray[np.int64] = np.zeros(block.shape, np.int64)
        self.momentum: NDArray[np.int64] = np.zeros((3, *block.shape), np.int64)

    def add(
        self,
        position: NDArray[np.float32],
        velocity: NDArray[np.float32],
        mass: NDArray[np.float64] | None = None,
    ) -> None:
        """Add particles.

        Parameters
        ----------
        position : (n, 3) float32
            Comoving Mpc/h, in [0, box).
        velocity : (n, 3) float32
            km/s.
        mass : (n,) float64, optional
            In units of the mean particle mass of the whole box; None when all are equal.
        """
        _accumulate(
            position,
            velocity,
            np.empty(0) if mass is None else np.asarray(mass, np.float64),
            self.cells,
            self.scale,
            self.order,
            np.asarray(self.block.origin, np.int64),
            self.mass,
            self.momentum,
        )

    def fields(self, particles: int, background: NDArray[np.float64]) -> PaintedFields:
        """Turn the sums into fields.

        Parameters
        ----------
        particles : int
            Number of particles in the whole box.
        background : (3,) float64
            Velocity of cells without mass, km/s: mean momentum over mean density.
        """
        cells_per_particle = self.cells**3 / particles
        density = self.mass * (cells_per_particle / _MASS_UNITS)
        momentum = self.momentum * (cells_per_particle / _MOMENTUM_UNITS)
        velocity = divide_momentum(momentum, density, background)
        return PaintedFields(
            density.astype(np.float32), momentum.astype(np.float32), velocity.astype(np.float32)
        )


def divide_momentum(
    momentum: NDArray[Any], density: NDArray[Any], background: NDArray[Any]
) -> NDArray[Any]:
    """Return momentum over density, and where there is no mass the background velocity.

    Parameters
    ----------
    momentum : (3, nx, ny, nz) float
        km/s.
    density : (nx, ny, nz) float
        Over its mean.
    background : (3,) float
        Mean momentum over mean density, km/s (Wu et al. 2021, footnote 5).
    """
    empty = density == 0.0
    velocity: NDArray[Any] = momentum / np.where(empty, density.dtype.type(1.0), density)
    velocity[:, empty] = background[:, None]
    return velocity


@dataclass(frozen=True, slots=True)
class PaintedFields:
    """Density (nx, ny, nz) over its mean, momentum and velocity (3, nx, ny, nz) in km/s; float32.

    Momentum is ``(1 + delta) v``. Velocity is momentum over density, and where the density is zero
    the background velocity, as in Wu et al. 2021, footnote 5.
    """

    density: NDArray[np.float32]
    momentum: NDArray[np.float32]
    velocity: NDArray[np.float32]


@njit(cache=True, nogil=True)
def _touched(u, order, cells, shard, out):  # type: ignore[no-untyped-def]
    """List the shards along one axis that a cloud touches; a cloud can span several small ones."""
    weights = np.empty(4)
    first = _cloud(u, order, weights)
    count = 0
    for a in range(order):
        s = ((first + a) % cells) // shard
        known = False
        for i in range(count):
            known = known or out[i] == s
        if not known:
            out[count] = s
            count += 1
    return count


@njit(cache=True, nogil=True)
def _bucket(position, cells, scale, order, shard, per_axis, counts, offsets, indices):  # type: ignore[no-untyped-def]
    """Count the particles of every shard, or with ``indices`` list them behind ``offsets``."""
    sx = np.empty(4, np.int64)
    sy = np.empty(4, np.int64)
    sz = np.empty(4, np.int64)
    listing = indices.shape[0] > 0
    for p in range(position.shape[0]):
        mx = _touched(position[p, 0] * scale, order, cells, shard, sx)
        my = _touched(position[p, 1] * scale, order, cells, shard, sy)
        mz = _touched(position[p, 2] * scale, order, cells, shard, sz)
        for a in range(mx):
            for b in range(my):
                for c in range(mz):
                    s = (sx[a] * per_axis + sy[b]) * per_axis + sz[c]
                    if listing:
                        indices[offsets[s] + counts[s]] = p
                    counts[s] += 1


def bucket_particles(
    position: NDArray[np.float32], cells: int, box_size: float, shard: int, scheme: str = "cic"
) -> list[NDArray[np.int64]]:
    """List, for every shard of a grid, the particles whose clouds touch it.

    Parameters
    ----------
    position : (n, 3) float32
        Comoving Mpc/h, in [0, box).
    cells, shard : int
        Cells per axis of the grid and of a shard (the last shard of an axis may be smaller).
    box_size : float
        Mpc/h.
    scheme : {"ngp", "cic", "tsc", "pcs"}
        Mass assignment.

    Returns
    -------
    list of (m,) int64
        Indices into ``position``, one array a shard, shards in C order. A particle whose cloud
        crosses a border is listed by every shard that it touches.
    """
    per_axis = -(-cells // shard)
    order = SCHEME_ORDER[scheme]
    scale = cells / box_size
    counts = np.zeros(per_axis**3, np.int64)
    offsets = np.zeros(per_axis**3 + 1, np.int64)
    _bucket(position, cells, scale, order, shard, per_axis, counts, offsets, np.empty(0, np.int64))
    np.cumsum(counts, out=offsets[1:])
    if offsets[-1] == 0:
        return [np.empty(0, np.int64) for _ in counts]
    indices = np.empty(offsets[-1], np.int64)
    counts[:] = 0
    _bucket(position, cells, scale, order, shard, per_axis, counts, offsets, indices)
    return np.split(indices, offsets[1:-1])


def check_particles(
    position: NDArray[np.float32],
    velocity: NDArray[np.float32],
    box_size: float,
    where: str,
    first: int = 0,
    mass: NDArray[np.float64] | None = None,
) -> None:
    """Refuse particles that are not finite, lie outside the box, or cannot be real.

    Parameters
    ----------
    position, velocity : (n, 3) float32
        Comoving Mpc/h; km/s.
    box_size : float
        Mpc/h.
    where : str
        Named in the error.
    first : int
        Index of the first particle in its store, for the error.
    mass : (n,) float64, optional
        Any unit; must not be negative.

    Raises
    ------
    DataError
        Naming the first offending particle.
    """
    for name, values in (("position", position), ("velocity", velocity)):
        _refuse(
            ~np.isfinite(values).all(axis=1),
            values,
            f"a particle's {name} is not finite",
            where,
            first,
            remedy="the snapshot is damaged or was converted wrongly; write it anew",
        )
    if mass is not None:
        _refuse(
            ~(np.isfinite(mass) & (mass >= 0.0)),
            mass,
            "a particle's mass is no mass",
            where,
            first,
            limit="finite, 0 or more",
        )
    # Beside being absurd, such speeds would overflow the fixed-point sums.
    _refuse(
        (np.abs(velocity) > SPEED_OF_LIGHT).any(axis=1),
        velocity,
        "a particle is faster than light",
        where,
        first,
        limit=f"{SPEED_OF_LIGHT:.0f} km/s",
        remedy="check the unit of the velocities: km/s, not cm/s or m/s",
    )
    _refuse(
        ((position < 0.0) | (position >= np.float32(box_size))).any(axis=1),
        position,
        "a particle lies outside the box",
        where,
        first,
        limit=f"[0, {box_size}) Mpc/h on every axis",
        remedy="check the box size and the length unit (kpc?), or wrap the positions",
    )


def _refuse(
    bad: NDArray[np.bool_] | np.bool_,
    values: NDArray[Any],
    what: str,
    where: str,
    first: int,
    *,
    limit: str | None = None,
    remedy: str | None = None,
) -> None:
    """Raise a DataError that names the first bad particle, if there is one."""
    if bad.any():
        index = int(np.argmax(bad))
        raise DataError(
            what,
            where=f"{where}, particle {first + index} ({int(bad.sum())} in this chunk)",
            value=values[index].tolist(),
            limit=limit,
            remedy=remedy,
        )
