"""Measure the path of inference without its network: from store to store, and its floors.

Usage: python benchmarks/host_path.py FIELDS FOLDER [TIMES]

FIELDS is a fields store of 128^3 cells with the Wiener velocity; it is repeated TIMES (4: 512^3
cells) along each axis in FOLDER. `cosmoflow infer --model wiener` then runs as a command of its
own: 16 bytes of each cell are read and 12 written. Beside it, in the same run:

small      the same command for FIELDS itself: what it costs to start
codecs     decoding and encoding the same chunks in memory, with as many threads
disk       copying as many bytes between files

Each line has seconds of wall time, and nanoseconds of CPU a cell of all threads. With the
environment variable PYTHONPATH set to another checkout, everything is that of the other, which must
have cosmoflow/storage/chunks.py.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from _boxes import repeat_box

from cosmoflow.storage.chunks import ShardLayout


def cpu(who: int) -> float:
    """Return the CPU seconds of this process, or of those that it has waited for."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def report(name: str, cells: int, who: int, job: Callable[[], None]) -> None:
    """Run a job and print its line."""
    before, begun = cpu(who), time.perf_counter()
    job()
    seconds, used = time.perf_counter() - begun, cpu(who) - before
    print(f"{name:28s} {seconds:7.2f} s {used / cells * 1e9:8.1f} ns of CPU a cell", flush=True)


def infer(fields: str, out: str) -> Callable[[], None]:
    """Return a job that runs the command."""
    # -P: the checkout in which this runs would otherwise come before PYTHONPATH.
    command = [sys.executable, "-P", "-m", "cosmoflow", "infer", fields, out, "--model", "wiener"]
    command += ["--engine", "serial", "--json"]

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return run


def codecs(fields: str, cells: int) -> Callable[[], None]:
    """Return a job that decodes 16 and encodes 12 bytes of each cell in memory."""
    group = zarr.open_group(fields, mode="r")
    layouts = {name: ShardLayout.of(group[name]) for name in ("density", "wiener_velocity")}
    chunk = layouts["density"].chunk
    blocks = [np.ascontiguousarray(group["density"][: chunk[0], : chunk[1], : chunk[2]])]
    flow = group["wiener_velocity"][:, : chunk[0], : chunk[1], : chunk[2]]
    blocks += [np.ascontiguousarray(part) for part in flow]
    chunks = -(-cells // blocks[0].size)
    stored = [
        np.frombuffer(b"".join(layouts["density"].encode(block)), np.uint8) for block in blocks
    ]
    plain = ShardLayout(
        chunk, chunk, chunk, blocks[0].dtype, 0.0, layouts["density"].blosc, checked=True
    )

    def work(_: int) -> None:
        found = np.empty(chunk, np.float32)
        for content in stored:
            plain.decode(content, found)
        for block in blocks[1:]:
            plain.encode(block)

    def run() -> None:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(work, range(chunks)))

    return run


def copy(fields: str, folder: Path) -> Callable[[], None]:
    """Return a job that reads the files of the inputs and writes those of the output again."""

    def run() -> None:
        buffer = bytearray(16 << 20)
        target = folder / "copied"
        for name in ("density", "wiener_velocity"):
            for path in sorted(Path(fields, name).rglob("*")):
                if path.is_file():
                    with path.open("rb", buffering=0) as file, target.open("ab") as out:
                        while count := file.readinto(buffer):
                            if name == "wiener_velocity":
                                out.write(memoryview(buffer)[:count])
        target.unlink()

    return run


def main(fields: str, folder: str, times: int = 4) -> None:
    """Print the table."""
    size = zarr.open_group(fields, mode="r")["density"].shape[0] * times
    box = str(Path(folder) / f"box-{size}.zarr")
    if not Path(box).exists():
        repeat_box(fields, box, times)
    out = str(Path(folder) / "host-path.zarr")
    cells = size**3
    print(f"{size}^3 cells, {len(os.sched_getaffinity(0))} cores")
    report("small", cells, resource.RUSAGE_CHILDREN, infer(fields, out))
    report("infer --model wiener", cells, resource.RUSAGE_CHILDREN, infer(box, out))
    report("codecs", cells, resource.RUSAGE_SELF, codecs(box, cells))
    report("disk", cells, resource.RUSAGE_SELF, copy(box, Path(folder)))
    shutil.rmtree(out)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
