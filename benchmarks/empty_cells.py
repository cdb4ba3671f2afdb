"""What the velocity of empty cells costs: fills compared with a box that has no empty cells.

    cosmoflow simulate particles.zarr --box 128 --particles 128
    python benchmarks/empty_cells.py particles.zarr --grid 64 --delaunay

The dense box, eight particles a cell, is the truth. It is thinned to one particle a cell and to
one in eight cells: to a coarser lattice, as a simulation of fewer particles has it, and at random,
as selections have it. Cells without mass get the mean flow, the velocity of the nearest particle,
or the Delaunay interpolation of velocities at their centres (DTFE, Bernardeau & van de Weygaert
1996).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from _measure import rms
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import fill_velocity, paint_block
from cosmoflow.storage.particles import ParticleStore

BANDS = ((0.02, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8))
"""Ranges of k, h/Mpc, over which powers are compared."""
MARGIN = 0.1
"""Share of the box that is repeated around it, so that the Delaunay tessellation is periodic."""

Floats = NDArray[np.float32]


def paint(position: Floats, velocity: Floats, grid: int, size: float) -> dict[str, Floats]:
    """Paint a box, empty cells with the mean flow."""
    return paint_block(
        [(position, velocity, None)],
        Block((0, 0, 0), (grid, grid, grid)),
        grid,
        size,
        count=len(position),
        background=velocity.mean(axis=0, dtype=np.float64),
    )


def interpolate(
    position: Floats, velocity: Floats, centres: NDArray[np.float64], size: float
) -> Floats:
    """Interpolate velocities linearly in the tetrahedra of the Delaunay tessellation."""
    from scipy.interpolate import LinearNDInterpolator

    points, values = position.astype(np.float64), velocity
    for axis in range(3):
        low, high = points[:, axis] < MARGIN * size, points[:, axis] > (1.0 - MARGIN) * size
        step = np.eye(3)[axis] * size
        points = np.concatenate([points, points[low] + step, points[high] - step])
        values = np.concatenate([values, values[low], values[high]])
    found: Floats = LinearNDInterpolator(points, values)(centres).astype(np.float32)
    return found


def thinned(per_axis: int, step: int, kind: str) -> NDArray[np.int64]:
    """Return rows of a store: every ``step``-th of its lattice per axis, or as many at random."""
    rows = np.arange(per_axis**3)
    if kind == "random":
        return np.sort(np.random.default_rng(1).permutation(rows)[: (per_axis // step) ** 3])
    return rows.reshape((per_axis,) * 3)[::step, ::step, ::step].reshape(-1)


def transfers(velocity: Floats, truth: Floats, size: float) -> list[float]:
    """Return the ratios of powers in the bands."""
    grid = truth.shape[-1]
    k = 2.0 * np.pi / size * np.fft.fftfreq(grid, 1.0 / grid)
    k = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k[: grid // 2 + 1] ** 2)
    powers = [(np.abs(np.fft.rfftn(one, axes=(1, 2, 3))) ** 2).sum(0) for one in (velocity, truth)]
    bands = [(k >= low) & (k < high) for low, high in BANDS]
    return [float(powers[0][band].sum() / powers[1][band].sum()) for band in bands]


def main() -> None:
    """Thin the box, fill it, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("particles", help="particle store of `simulate`, eight a cell")
    parser.add_argument("--grid", type=int, default=128)
    parser.add_argument("--delaunay", action="store_true", help="minutes for 64^3 cells")
    chosen = parser.parse_args()
    store = ParticleStore(chosen.particles)
    size, grid = store.metadata.box_size, chosen.grid
    everything = store.read(0, store.count)
    per_axis = round(store.count ** (1 / 3))
    dense = paint(everything.position, everything.velocity, grid, size)
    truth = dense["velocity"]
    share = (dense["density"] == 0.0).mean()
    print(f"{size:g} Mpc/h, {store.count / grid**3:g} particles in each of {grid}^3 cells")
    print(f"{share:.2%} empty, true rms {rms(truth):.1f} km/s")
    bands = " ".join(f"T({low:g}-{high:g})" for low, high in BANDS)
    print(f"particles a cell, kind, empty; fill: rms, rms of empty cells, {bands}, seconds")
    for step in (2, 4):
        for kind in ("lattice", "random"):
            rows = thinned(per_axis, step, kind)
            position, velocity = everything.position[rows], everything.velocity[rows]
            fields = paint(position, velocity, grid, size)
            empty = fields["density"] == 0.0
            print(f"{len(rows) / grid**3:g}, {kind}, {empty.mean():.2%}")

            def show(name: str, found: Floats, since: float, empty: NDArray[np.bool_]) -> None:
                ratios = " ".join(f"{t:.3f}" for t in transfers(found, truth, size))
                both = rms(found - truth), rms((found - truth)[:, empty])
                seconds = time.perf_counter() - since
                print(f"  {name:10s} {both[0]:6.1f} {both[1]:6.1f}  {ratios}  {seconds:.2f}")

            show("background", fields["velocity"], time.perf_counter(), empty)
            since, found = time.perf_counter(), fields["velocity"].copy()
            fill_velocity(
                found, fields["density"], [(position, velocity, None)],
                Block((0, 0, 0), (grid, grid, grid)), grid, size, count=len(rows),
            )  # fmt: skip
            show("nearest", found, since, empty)
            if chosen.delaunay:
                since, found = time.perf_counter(), fields["velocity"].copy()
                centres = (np.argwhere(empty) + 0.5) * (size / grid)
                found[:, empty] = interpolate(position, velocity, centres, size).T
                show("Delaunay", found, since, empty)


if __name__ == "__main__":
    main()
