"""Compare what decodes and encodes the shards of a fields store: zarr, zarrs, and cosmoflow.

Usage: python benchmarks/codec_pipelines.py FIELDS FOLDER

FIELDS is a fields store of 256^3 cells or more with the Wiener velocity. Blocks of 128^3 cells with
a halo of 15, as networks read them, and without one are read from its first 256^3 cells; velocities
of 128^3 cells are written to FOLDER. All contestants use as many threads as there are cores. The
table has seconds of wall time and nanoseconds of CPU a number. zarrs (Rust) is measured where it is
installed: `pip install --no-deps zarrs`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cosmoflow.numerics.blocks import Block, grid_blocks, grow, periodic_runs
from cosmoflow.storage.transfer import read_part, write_part
from cosmoflow.storage.variables import create_variable

GRID, SIDE, HALO, ROUNDS = 256, 128, 15, 3
NAMES = ("density", "wiener_velocity")
ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"
PIPELINES = {"zarr": ZARR, "zarrs": "zarrs.ZarrsCodecPipeline", "cosmoflow": ZARR}

Read = Callable[[Any, tuple[slice, ...], np.ndarray], None]


def read_zarr(array: Any, part: tuple[slice, ...], out: np.ndarray) -> None:
    """Read with zarr's own indexing, and look for values that are not finite."""
    out[...] = array[(..., *part)]
    assert np.isfinite(out).all()


def read_direct(array: Any, part: tuple[slice, ...], out: np.ndarray) -> None:
    """Read as cosmoflow does."""
    whole = [(0, length) for length in array.shape[:-3]]
    assert not read_part(array, [*whole, *((one.start, one.stop) for one in part)], out)


def time_job(label: str, numbers: int, job: Callable[[], None]) -> None:
    """Print the best of some rounds."""
    best = [np.inf, np.inf]
    for _ in range(ROUNDS):
        begun, used = time.perf_counter(), time.process_time()
        job()
        found = time.perf_counter() - begun, time.process_time() - used
        best = [min(pair) for pair in zip(best, found, strict=True)]
    rate = f"{best[1] / numbers * 1e9:7.2f} ns of CPU a number"
    print(f"{label:34s} {best[0]:7.3f} s {rate}", flush=True)


def read_blocks(arrays: list[Any], blocks: list[Block], grid: int, read: Read) -> None:
    """Read blocks of some arrays."""
    for block, array in itertools.product(blocks, arrays):
        out = np.empty((*array.shape[:-3], *block.shape), np.float32)
        for source, target in periodic_runs(block, grid):
            read(array, source, out[(..., *target)])


def measure(name: str, fields: str, folder: str) -> None:
    """Print the lines of one contestant."""
    read = read_direct if name == "cosmoflow" else read_zarr
    arrays = [zarr.open_group(fields, mode="r")[one] for one in NAMES]
    grid, blocks = arrays[0].shape[0], grid_blocks(GRID, SIDE)
    for halo in (0, HALO):
        grown = [grow(block, halo) for block in blocks]
        cells = sum(int(np.prod(block.shape)) for block in grown)
        label = f"{name}: read, halo {halo}"
        time_job(label, 4 * cells, partial(read_blocks, arrays, grown, grid, read))
    flow = np.empty((3, SIDE, SIDE, SIDE), np.float32)
    read_zarr(arrays[1], (slice(0, SIDE),) * 3, flow)
    place = Path(folder) / "codec-pipelines.zarr"
    made = create_variable(
        zarr.create_group(str(place), overwrite=True), "velocity", GRID, SIDE, 64
    )

    def write() -> None:
        for block in blocks:
            cells = zip(block.origin, block.shape, strict=True)
            ranges = [(0, 3), *((first, first + size) for first, size in cells)]
            if name == "cosmoflow":
                write_part(made, ranges, flow)
            else:
                made[tuple(slice(*one) for one in ranges)] = flow

    time_job(f"{name}: write", 3 * GRID**3, write)
    shutil.rmtree(place)


def main(fields: str, folder: str) -> None:
    """Print the table."""
    print(f"{len(os.sched_getaffinity(0))} cores")
    for name, pipeline in PIPELINES.items():
        try:
            with zarr.config.set({"codec_pipeline.path": pipeline}):
                measure(name, fields, folder)
        except (ImportError, zarr.core.config.BadConfigError) as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
