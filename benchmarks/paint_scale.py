"""Paint ever larger boxes on Ray: time, bytes and peak memory, beside what cannot be avoided.

Usage: python benchmarks/paint_scale.py FOLDER [--memory SIZE] [--rounded] [--plot PNG] N [N ...]

N^3 particles on N^3 cells of 2 Mpc/h. The particles repeat one 2LPT box of 128^3 in all directions
and are written chunk by chunk, so that N is bounded by the disk alone: 1024^3 needs 82 GB. Rounded
to 1/128 Mpc/h and 1/16 km/s, the particles take 7 GB of it in place of 26. For each N the whole
command is timed, interpreter and Ray included, and beside it its parts bare: reading and writing
the stores with two processes, and the kernel on two threads (up to 512^3, in memory).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from _measure import make_particles
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.numerics.painting import paint_block
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import ParticleStore, create_particles, write_particles
from cosmoflow.storage.urls import open_group_for_writing

REPEATED = 128
"""Particles per axis of the box that is repeated."""
CELL = 2.0
IN_MEMORY = 512
"""Particles per axis up to which the kernel is timed on its own."""
NAMES = ("density", "momentum", "velocity")


def write_box(url: str, per_axis: int, *, rounded: bool = False) -> None:
    """Write particles in Lagrangian order."""
    small = CELL * REPEATED
    x, v = make_particles(REPEATED, small)
    lattice = (np.indices((REPEATED,) * 3).reshape(3, -1).T + 0.5) * CELL
    moved = ((x - lattice + small / 2) % small - small / 2).astype(np.float32)
    if rounded:
        moved, v = np.round(128.0 * moved) / 128.0, np.round(16.0 * v) / 16.0
    box = CELL * per_axis

    def rows(start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        place = np.stack(np.unravel_index(np.arange(start, stop), (per_axis,) * 3), axis=1)
        source = np.ravel_multi_index(tuple((place % REPEATED).T), (REPEATED,) * 3)
        position = ((place + 0.5) * CELL + moved[source]) % box
        position = position.astype(np.float32)
        position[position >= np.float32(box)] = 0.0
        return position, v[source]

    metadata = BoxMetadata(box, 0.0, CosmologyConfig(), None, {"digest": f"{per_axis}^3"})
    create_particles(url, per_axis**3, metadata, "overwrite")
    write_particles(url, rows)
    finish_group(open_group_for_writing(url))


def watch(command: list[str]) -> tuple[float, dict[str, float]]:
    """Run a command; return its wall time, s, and peaks of memory, GB.

    ``worker`` is the largest worker without what it shares, ``all`` the sum of that over all
    processes and of Ray's object store in /dev/shm.
    """
    start, peaks = time.perf_counter(), defaultdict[str, float](float)
    before = psutil.disk_usage("/dev/shm").used
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        everything = store = psutil.disk_usage("/dev/shm").used - before
        for child in [process, *process.children(recursive=True)]:
            try:
                memory, name = child.memory_info(), child.name()
            except psutil.Error:
                continue
            own = memory.rss - memory.shared
            everything += own
            if name.startswith("ray::"):
                peaks["worker"] = max(peaks["worker"], own / 1e9)
        peaks["all"] = max(peaks["all"], everything / 1e9)
        peaks["object store"] = max(peaks["object store"], store / 1e9)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - start, peaks


def read_rows(url: str, rows: tuple[int, int]) -> None:
    """Read particles, unchecked."""
    group: Any = zarr.open_group(url, mode="r")
    for name in ("position", "velocity"):
        _ = group[name][slice(*rows)]


def write_shard(source: str, target: str, task: tuple[int, Block]) -> None:
    """Write a shard of values that compress as fields do."""
    shard, block = task
    group: Any = zarr.open_group(source, mode="r")
    part = tuple(slice(0, length) for length in block.shape)
    write_block(target, block, shard, {name: group[name][(..., *part)] for name in NAMES})


def bare(particles: str, fields: str, scratch: str, cells: int) -> dict[str, float]:
    """Time reading, writing and the kernel on their own, s."""
    store = ParticleStore(particles)
    create_fields(scratch, store.metadata, cells, NAMES, shard=128, chunk=64, existing="overwrite")
    tasks = list(enumerate(grid_blocks(cells, 128)))
    times = {}
    with ProcessPoolExecutor(2) as pool:
        for name, job, work in (
            ("start", partial(read_rows, particles), [(0, 1)] * 2),
            ("read", partial(read_rows, particles), store.ranges(1 << 21)),
            ("write", partial(write_shard, fields, scratch), tasks),
        ):
            start = time.perf_counter()
            list(pool.map(job, work))
            times[name] = time.perf_counter() - start
    del times["start"]
    if cells <= IN_MEMORY:
        group: Any = zarr.open_group(particles, mode="r")
        pieces = [(group["position"][:], group["velocity"][:], None)]
        whole, size = Block((0, 0, 0), (cells,) * 3), store.metadata.box_size
        for some in ([(pieces[0][0][:99], pieces[0][1][:99], None)], pieces):
            start = time.perf_counter()
            paint_block(some, whole, cells, size, count=store.count)
            times["kernel"] = time.perf_counter() - start
    return times


def plot(rows: list[tuple[int, float, float]], path: Path) -> None:
    """Plot seconds and peak memory against the number of particles."""
    import matplotlib.pyplot as plt

    n, seconds, memory = (np.array(column) for column in zip(*rows, strict=True))
    figure, left = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    left.loglog(n**3, seconds, "o-", color="C0", label="wall time, s")
    left.loglog(n**3, seconds[-1] * (n / n[-1]) ** 3, ":", color="0.5", label="linear")
    left.loglog(n**3, memory, "s-", color="C1", label="peak memory of all processes, GB")
    left.set_xlabel("particles = cells")
    left.set_xticks(n**3, [f"${size}^3$" for size in n])
    left.minorticks_off()
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Paint the boxes that the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--rounded", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--bare", action="store_true", help="time the parts on their own too")
    parser.add_argument("cells", type=int, nargs="+")
    options = parser.parse_args()
    rows = []
    for cells in options.cells:
        particles, fields, scratch = (
            str(options.folder / f"{name}-{cells}{'-rounded' * options.rounded}.zarr")
            for name in ("particles", "fields", "scratch")
        )
        if not Path(particles).exists():
            write_box(particles, cells, rounded=options.rounded)
        paint = [sys.executable, "-m", "cosmoflow", "paint", particles, fields, f"--grid={cells}"]
        limits = ["--engine=ray", f"--memory={options.memory}", "--overwrite", "--quiet"]
        seconds, peaks = watch([*paint, *limits])
        memory = ", ".join(f"{name} {size:.2f}" for name, size in peaks.items())
        print(f"{cells}^3: {seconds:.1f} s; peak GB: {memory}", flush=True)
        rows.append((cells, seconds, peaks["all"]))
        if options.bare:
            times = bare(particles, fields, scratch, cells)
            parts = ", ".join(f"{name} {value:.1f} s" for name, value in times.items())
            total = sum(times.values())
            print(
                f"  bare: {parts}; the command takes {seconds / total:.2f} times that", flush=True
            )
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
