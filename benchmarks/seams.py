"""Measure the seams between the tiles of a padded network, with and without blending.

Usage: python benchmarks/seams.py FIELDS MODEL [OVERLAP ...]

MODEL is the folder of a padded network (`paper`, `paper-narrow`). For every overlap, in cells, the
box is predicted, and the steps of the velocity from a cell to the next across the beginnings of
tiles are compared with all others: 1 means that there is no seam. The residual is the 3-D rms from
the true velocity; that beside seams is of the two cells where a tile begins.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray

from cosmoflow.config.networks import InferConfig
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.stages.infer.request import Device
from cosmoflow.stages.models import open_model
from cosmoflow.storage.fields import FieldStore

Vectors = NDArray[np.float32]


def rms(values: Vectors) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def seam(velocity: Vectors, step: int) -> float:
    """Return the rms step across the beginning of tiles over the rms step elsewhere."""
    across, elsewhere = [], []
    for axis in (1, 2, 3):
        jumps = np.moveaxis(np.diff(velocity, axis=axis), axis, 0)
        border = (np.arange(len(jumps)) + 1) % step == 0
        across.append(rms(jumps[border]))
        elsewhere.append(rms(jumps[~border]))
    return float(np.mean(across) / np.mean(elsewhere))


def beside_seams(difference: Vectors, step: int) -> float:
    """Return the 3-D rms of a difference in the cells on both sides of where a tile begins."""
    found = []
    for axis in (1, 2, 3):
        cells = np.arange(difference.shape[axis]) % step
        part = np.moveaxis(difference, axis, 0)[(cells == 0) | (cells == step - 1)]
        found.append(np.sqrt(3.0) * rms(part))
    return float(np.mean(found))


def main(fields: str, url: str, *overlaps: int) -> None:
    """Print a line for every overlap."""
    store = FieldStore(fields)
    model = open_model(url, store)
    model.network.to(memory_format=torch.channels_last_3d)
    size = model.geometry.fixed_output
    if size is None:
        raise SystemExit(f"{url} has no padding, so it has no seams")
    true = store.read("velocity")
    print(f"true velocity: seam {seam(true, size):.3f} on the lattice of {size}")
    for overlap in overlaps or (0, 2, 4, 8, 10):
        config = InferConfig(overlap=overlap, precision=Device.here().precision, batch=8)
        begun = time.perf_counter()
        found = predict_box([Member(model, ())], store, config, torch.device("cpu")).mean
        seconds = time.perf_counter() - begun
        step = size - overlap
        print(
            f"overlap {overlap:2d}: seam {seam(found, step):.3f}, residual "
            f"{np.sqrt(3.0) * rms(found - true):.1f} km/s, beside seams "
            f"{beside_seams(found - true, step):.1f} km/s, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
