"""The real commands on one and two nodes of a core each, and what Ray's driver takes for a task."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from _boxes import make_flows, open_shipped, repeat_box
from _ray_cluster import local_cluster
from paint_scale import write_box

from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Session, TaskGraph
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import WIENER

STRONG, WEAK = 256, 320
"""Cells, and particles, per axis: of a box, and of one of twice its volume (1.95 times)."""
SHARD = 64
"""Cells per axis: small enough that two cores have their fill of a small box."""


def time_command(arguments: list[str]) -> float:
    """Run a command; return the seconds from its first task to its end."""
    command = [sys.executable, "-m", "cosmoflow", *arguments, "--overwrite", "--json"]
    started = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "started":
                started = started or time.perf_counter()
        ended = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return ended - started


def measure(folder: Path, source: str, rounds: int) -> None:
    """Print times of paint, spectra and infer on one and two nodes.

    Parameters
    ----------
    folder : Path
        For boxes; those that are there are used again.
    source : str
        A fields store of 128^3 cells of 2 Mpc/h, which is repeated for `infer`.
    rounds : int
        Times that everything is run; the shortest counts.
    """
    boxes = {cells: str(folder / f"particles-{cells}.zarr") for cells in (STRONG, WEAK)}
    for cells, url in boxes.items():
        if not Path(url).exists():
            write_box(url, cells)
    inputs = str(folder / "inputs.zarr")
    if not Path(inputs).exists():
        if WIENER not in FieldStore(source).variables:
            make_flows(source, open_shipped("residual-small", source))
        repeat_box(source, inputs, 2, shard=SHARD)
    size = FieldStore(inputs).metadata.box_size
    half = f"0:{size / 2:g},0:{size:g},0:{size:g}"
    jobs = {
        "paint": {cells: _paint(boxes[cells], folder, cells) for cells in boxes},
        "spectra": {cells: _spectra(folder, cells) for cells in boxes},
        # Half of the box for one node, all of it for two.
        "infer": {2: _infer(inputs, folder, ""), 1: _infer(inputs, folder, half)},
    }
    found: dict[tuple[str, int, int], float] = {}
    for _ in range(rounds):
        for nodes in (1, 2):
            with local_cluster(nodes, 1) as address:
                for stage, variants in jobs.items():
                    for size_of_it, arguments in variants.items():
                        load = os.getloadavg()[0]
                        seconds = time_command([*arguments, "--address", address])
                        key = (stage, size_of_it, nodes)
                        found[key] = min(seconds, found.get(key, seconds))
                        print(f"{stage} {size_of_it} on {nodes}: {seconds:.1f} s, load {load:.1f}")
                        sys.stdout.flush()
    print("| stage | box | 1 node | 2 nodes | strong efficiency | weak efficiency |")
    for stage, (large, small, ratio) in {
        "paint": (WEAK, STRONG, (WEAK / STRONG) ** 3),
        "spectra": (WEAK, STRONG, (WEAK / STRONG) ** 3),
        "infer": (2, 1, 2.0),
    }.items():
        for one in (small, large):
            alone, both = found[stage, one, 1], found[stage, one, 2]
            weak = found[stage, small, 1] * ratio / (2.0 * found[stage, large, 2])
            print(
                f"| {stage} | {one} | {alone:.1f} | {both:.1f} | {alone / both / 2:.0%} | "
                f"{f'{weak:.0%}' if one == large else ''} |"
            )


def _paint(particles: str, folder: Path, cells: int) -> list[str]:
    sizes = ["--grid", str(cells), "--set", f"paint.shard={SHARD}"]
    return ["paint", particles, str(folder / f"fields-{cells}.zarr"), *sizes]


def _spectra(folder: Path, cells: int) -> list[str]:
    fields = str(folder / f"fields-{cells}.zarr")
    return ["spectra", fields, "--field", "velocity", "--out", str(folder / "power.zarr")]


def _infer(inputs: str, folder: Path, region: str) -> list[str]:
    part = ["--region", region] if region else []
    settings = ["--set", "infer.precision=float32", "--set", "infer.tile=64"]
    return ["infer", inputs, str(folder / "velocity.zarr"), *part, *settings]


def measure_driver(rounds: int = 3) -> None:
    """Time the driver with empty tasks; `exchange.py parts` times it with parts."""
    with Session(EngineConfig(choice="ray")) as session:
        engine = session.engine(0.0)
        graph = TaskGraph()
        graph.add("empty", abs, range(1000), output=True)
        for _ in range(rounds):
            begun, used = time.perf_counter(), _cpu_seconds()
            engine.run(graph)
            wall = time.perf_counter() - begun
            print(
                f"1000 empty tasks: {1000 / wall:.0f} a second, the driver "
                f"{_cpu_seconds() - used:.2f} ms each; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
