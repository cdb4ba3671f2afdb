"""Inputs of small runs, and changes of them that leave names and sizes as they are."""

import numpy as np
import zarr

GRID, BOX, SIDE = 8, 16.0, 8
PAINT = {"paint": {"grid": GRID, "shard": 4, "chunk": 4}}


def write_npz(path, seed, speed, save=np.savez):
    """Write a realisation: those of all seeds have files of one size."""
    rng = np.random.default_rng(seed)
    position, velocity = rng.random((SIDE**3, 3)) * BOX, speed * rng.normal(size=(SIDE**3, 3))
    save(
        path, position=position, velocity=velocity,
        box_size=BOX, redshift=0.0, h=0.7, Omega_m=0.3,
    )  # fmt: skip


def correct(url, name="density"):
    """Change one cell, and nothing else."""
    values = zarr.open_group(str(url), mode="r+")[name]
    values[..., 0, 0, 0] = values[..., 0, 0, 0] * 1.1
