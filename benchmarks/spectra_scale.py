"""Measure power spectra of boxes larger than memory: time, peak memory, bytes, the disk's floor.

Usage: python benchmarks/spectra_scale.py FIELDS FOLDER [--memory SIZE] [--times N] [--keep]
                                        [--bits B]

FIELDS is a fields store of 128^3 cells; its density is repeated N (8) times along each axis in
FOLDER, so that the spectrum of the large box is known: that of the small one in every N-th mode,
and nothing between. With B bits of its fraction in place of 23 the density takes less of the disk:
a box of 2048^3 cells and what its transform hands on take 63 GB otherwise.

`cosmoflow spectra --engine ray --memory SIZE` runs as a command of its own; its memory is the most
that all its processes have at one time, what Ray itself needs and its object store included. The
floor is the time that the disk takes for the bytes alone: the field read once, and what exceeds the
object store written and read once, at the rates measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from _boxes import wrap_block
from _memory import watch
from numcodecs import BitRound

from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.spectra import WaveBins, sum_products
from cosmoflow.stages.inputs.density import DENSITY_CHECKSUMS, checksum_densities
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import open_group_for_writing

SHARD, CHUNK = 128, 64
IDLE = "import cosmoflow.stages.spectra; from cosmoflow.engine.on_ray import RayEngine; RayEngine()"


def round_density(source: FieldStore, out: str, bits: int) -> FieldStore:
    """Write a box with the densities of another, of whose fractions only some bits are kept."""
    codec = BitRound(bits)
    density = codec.decode(codec.encode(source.read("density")))
    create_fields(
        out, source.metadata, source.grid, ("density",), shard=SHARD, chunk=CHUNK,
        existing="overwrite",
    )  # fmt: skip
    (block,) = grid_blocks(source.grid, SHARD)
    write_block(out, block, 0, {"density": density})
    finish_group(open_group_for_writing(out))
    return FieldStore(out)


def repeat_density(source: FieldStore, out: str, times: int) -> None:
    """Write a box whose density is a smaller one's, ``times`` along each axis."""
    grid = source.grid * times
    metadata = replace(source.metadata, box_size=source.metadata.box_size * times)
    small = source.read("density")
    create_fields(out, metadata, grid, ("density",), shard=SHARD, chunk=CHUNK, existing="overwrite")
    for index, block in enumerate(grid_blocks(grid, SHARD)):
        write_block(out, block, index, {"density": wrap_block(small, block)})
    # As `paint` notes them: the command need not read the field once more to check it.
    facts = {DENSITY_CHECKSUMS: checksum_densities(out)}
    finish_group(open_group_for_writing(out), facts)


def disk_rates(folder: Path, size: int = 1 << 32) -> tuple[float, float]:
    """Return the bytes a second that the disk writes and reads past the page cache."""
    path, block = folder / "disk-rates", np.zeros(1 << 24, np.uint8)
    begun = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // block.size):
            file.write(block)
        os.fsync(file.fileno())
    written = size / (time.perf_counter() - begun)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        while file.readinto(block):
            pass
        read = size / (time.perf_counter() - begun)
    path.unlink()
    return written, read


def stored_bytes(folder: str) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def main() -> None:
    """Print what one box took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--bits", type=int, choices=range(1, 24), metavar="1..23")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    source = FieldStore(given.fields)
    if given.bits is not None:
        source = round_density(source, str(given.folder / "rounded.zarr"), given.bits)
    grid = source.grid * given.times
    kept = "" if given.bits is None else f"-{given.bits}-bits"
    box = str(given.folder / f"density-{grid}{kept}.zarr")
    if not Path(box).exists():
        repeat_density(source, box, given.times)
    written, read = disk_rates(given.folder)
    _, idle, _ = watch([sys.executable, "-c", IDLE])
    out = str(given.folder / "spectrum.zarr")
    command = [
        sys.executable,
        "-m",
        "cosmoflow",
        "spectra",
        box,
        "--field",
        "density",
        "--out",
        out,
    ]
    command += ["--engine", "ray", "--memory", given.memory, "--compensate", "none", "--json"]
    _, _, planned = watch([*command, "--dry-run"])
    plan = json.loads(planned.decode().strip().splitlines()[-1])
    seconds, memory, _ = watch([*command, "--overwrite"])

    stored = stored_bytes(box)
    spilled = max(0, plan["exchanged"] - memory.shared)
    floor = stored / read + spilled / written + spilled / read
    print(
        f"{grid}^3, --memory {given.memory}: {seconds:.0f} s; all processes "
        f"{memory.total / 1e9:.2f} GB, of which Ray idle {idle.total / 1e9:.2f}, its object store "
        f"{memory.shared / 1e9:.2f}; the largest worker "
        f"{memory.worker / 1e9:.2f} (plan {plan['worker_memory'] / 1e9:.2f})\n"
        f"field {stored / 1e9:.1f} GB on disk, {4 * grid**3 / 1e9:.1f} decoded; handed on "
        f"{plan['exchanged'] / 1e9:.1f} GB, at least {spilled / 1e9:.1f} of it over the disk; "
        f"disk writes {written / 1e6:.0f} and reads {read / 1e6:.0f} MB/s: floor {floor:.0f} s; "
        f"{plan['details']}",
        flush=True,
    )
    check(out, source, given.times)
    if not given.keep:
        shutil.rmtree(box)


def check(out: str, source: FieldStore, times: int) -> None:
    """Compare every bin with what the small box's modes give in it."""
    with xr.open_zarr(out, consolidated=False) as stored:
        found = stored.load()
    size = source.metadata.box_size
    field = torch.from_numpy(source.read("density").astype(np.float64) - 1.0)
    large = WaveBins.linear(times * source.grid, times * size)
    # Mode m of the small box is mode N m of the large one.
    bins = WaveBins(source.grid, size, tuple(limit // times**2 for limit in large.limits))
    small = sum_products([fourier.forward(field)], [(0, 0)], bins)
    known = np.nan_to_num(small.power() * small.modes) * times**3
    total = (found.power * found.modes).values
    filled = small.modes > 0
    worst = float(np.abs(total[filled] / known[filled] - 1.0).max())
    leaked = float(total[~filled].max() / known.max())
    print(
        f"of {filled.size} bins {filled.sum()} hold modes of the small box: worst relative "
        f"difference {worst:.1e}; the others hold at most {leaked:.1e} of the largest"
    )


if __name__ == "__main__":
    main()
