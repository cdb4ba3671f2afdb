"""What the driver spends on an exchange of many parts: references, CPU time, memory, wall time.

Usage: python benchmarks/exchange.py paint [--pieces 512]
       python benchmarks/exchange.py parts [--tasks 2048]
       python benchmarks/exchange.py shuffled [--grid 512]

``paint`` paints 64^3 shuffled particles in pieces, on a grid of 512 shards, on Ray and in this
process, and compares the two outputs bit by bit. ``parts`` exchanges small parts between as many
writers as readers, and checks their sum. ``shuffled`` paints a box on two workers, with its
particles in Lagrangian order and shuffled, and compares times and results.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import psutil
from _measure import make_particles
from numpy.typing import NDArray
from paint_scale import write_box

from cosmoflow.config import load_settings
from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.engine import Column, Handout, Session, TaskGraph
from cosmoflow.stages.paint import paint
from cosmoflow.stages.run import Run
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import ParticleStore, create_particles, write_particles
from cosmoflow.storage.urls import open_group, open_group_for_writing


def count_references() -> int:
    """Return the objects that this process has references to."""
    import ray

    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


@contextmanager
def watching(label: str) -> Iterator[None]:
    """Print what this process spends in the ``with`` block."""
    process, peaks, ended = psutil.Process(), {"references": 0, "memory": 0}, threading.Event()
    memory = process.memory_info().rss

    def look() -> None:
        while not ended.wait(0.2):
            peaks["references"] = max(peaks["references"], count_references())
            peaks["memory"] = max(peaks["memory"], process.memory_info().rss - memory)

    thread = threading.Thread(target=look)
    thread.start()
    cpu, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    seconds, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    ended.set()
    thread.join()
    own = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(
        f"{label}: {seconds:.1f} s, driver {own:.1f} s of CPU, +{peaks['memory'] / 1e6:.0f} MB, "
        f"at most {peaks['references']} references"
    )


def write_shuffled(url: str, per_axis: int) -> None:
    """Write shuffled particles; their store does not know which shards they touch."""
    shuffle(url, per_axis, *make_particles(per_axis, 2.0 * per_axis))


def shuffle(url: str, per_axis: int, x: NDArray[np.float32], v: NDArray[np.float32]) -> None:
    """Write particles in a random order."""
    order = np.random.default_rng(1).permutation(len(x))
    metadata = BoxMetadata(2.0 * per_axis, 0.0, CosmologyConfig(), None, {"digest": "shuffled"})
    create_particles(url, len(x), metadata, "overwrite")
    write_particles(url, lambda start, stop: (x[order[start:stop]], v[order[start:stop]]))
    group = open_group_for_writing(url)
    finish_group(group)
    del group["ledger/coverage"]


def paint_pieces(pieces: int) -> None:
    """Paint shuffled particles in pieces, on Ray and in this process."""
    with tempfile.TemporaryDirectory() as folder:
        particles = f"{folder}/particles.zarr"
        write_shuffled(particles, 64)
        outputs = {}
        for engine in ("ray", "serial"):
            settings = load_settings(
                overrides=[
                    f"engine.choice={engine}", "paint.grid=64", "paint.shard=8", "paint.chunk=8",
                    f"paint.particles_per_task={64**3 // pieces}",
                ]
            )  # fmt: skip
            with Session(settings.engine) as session:
                session.engine(0.0).cpus  # noqa: B018
                run = Run(settings, session, listener=lambda event: None)
                if engine == "ray":
                    with watching(f"paint, {pieces} pieces x 512 shards on Ray"):
                        outputs[engine] = paint(particles, f"{folder}/{engine}.zarr", run).load()
                else:
                    outputs[engine] = paint(particles, f"{folder}/{engine}.zarr", run).load()
        same = all(
            outputs["ray"][name].values.tobytes() == outputs["serial"][name].values.tobytes()
            for name in ("density", "momentum", "velocity")
        )
        print("bit for bit the result of one process:", same)


def hand_on(tasks: int, number: int) -> Handout:
    """Hand a few numbers to every reader."""
    return Handout([np.full(4, number * part % 97) for part in range(tasks)])


def add_up(number: int, parts: list[Any]) -> int:
    """Add up the numbers of all parts."""
    return int(sum(part.sum() for part in parts))


def exchange_parts(tasks: int) -> None:
    """Exchange ``tasks`` squared parts."""
    graph = TaskGraph()
    graph.add("hand", partial(hand_on, tasks), range(tasks), parts=tasks)
    graph.add("add", add_up, range(tasks), reads=lambda n: [Column("hand", n)], output=True)
    with Session(load_settings(overrides=["engine.choice=ray"]).engine) as session:
        engine = session.engine(0.0)
        with watching(f"{tasks} x {tasks} parts"):
            found = engine.run(graph)
    number = np.arange(tasks, dtype=np.int64)
    expected = [int(4 * (number * part % 97).sum()) for part in range(tasks)]
    print("sums as expected:", [found["add", part] for part in range(tasks)] == expected)


def paint_orders(per_axis: int) -> None:
    """Paint a box on two workers, with its particles in both orders."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        write_box(f"{folder}/ordered.zarr", per_axis)
        stored = ParticleStore(f"{folder}/ordered.zarr").read(0, per_axis**3)
        shuffle(f"{folder}/shuffled.zarr", per_axis, stored.position, stored.velocity)
        del stored
        seconds, found = {}, {}
        for _ in range(2):
            for order in ("ordered", "shuffled"):
                command = [
                    sys.executable, "-m", "cosmoflow", "paint", f"{folder}/{order}.zarr",
                    f"{folder}/{order}-fields.zarr", "--grid", str(per_axis), "--engine", "ray",
                    "--memory", "6GB", "--quiet", "--overwrite",
                ]  # fmt: skip
                begun = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                took = time.perf_counter() - begun
                seconds[order] = min(took, seconds.get(order, took))
                print(f"{order}: {took:.1f} s", flush=True)
        for order in seconds:
            fields = open_group(f"{folder}/{order}-fields.zarr")
            names = ("density", "velocity")
            found[order] = [np.asarray(fields[name][:]).tobytes() for name in names]
        print(f"shuffled over ordered: {seconds['shuffled'] / seconds['ordered']:.2f}")
        print("the same bit for bit:", found["ordered"] == found["shuffled"])


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("paint", "parts", "shuffled"))
    parser.add_argument("--pieces", type=int, default=512)
    parser.add_argument("--tasks", type=int, default=2048)
    parser.add_argument("--grid", type=int, default=512)
    given = parser.parse_args()
    if given.what == "paint":
        paint_pieces(given.pieces)
    elif given.what == "parts":
        exchange_parts(given.tasks)
    else:
        paint_orders(given.grid)


if __name__ == "__main__":
    main()
