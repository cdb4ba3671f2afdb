"""Time one power spectrum beside the bare transform, and beside what a user would pick instead.

Usage: python benchmarks/bench_spectra.py FOLDER [--grid N] [--rounds R] [--peers PYTHON]

A random field of N^3 (512) cells is written to a store in FOLDER. In every round each way is timed
once, in the order of the lines, and the medians are printed. PYTHON, optional, is an interpreter
that has Pylians and abacusutils; it is given the same field in memory, and the spectra are compared
bin by bin.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmoflow.config import CosmologyConfig, load_settings
from cosmoflow.engine import Session
from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.spectra import Products, Term, WaveBins, auto_power, sum_modes
from cosmoflow.stages.run import Run
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Variable
from cosmoflow.stages.spectra import plan_power
from cosmoflow.stages.spectra.power import sum_power
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import open_group_for_writing

SIZE = 1024.0

PEERS = """
import json, sys, time
import numpy as np, scipy.fft
import Pk_library
from abacusnbody.analysis.power_spectrum import calc_pk_from_deltak
field = np.load(sys.argv[1])
size, rounds = float(sys.argv[2]), int(sys.argv[3])
n = field.shape[0]
edges = (np.arange(n // 2 + 1) + 0.5) * 2 * np.pi / size
times = {"scipy rfftn": [], "scipy rfftn + abacusutils": [], "Pylians Pk": []}
for _ in range(rounds):
    t = time.perf_counter(); modes = scipy.fft.rfftn(field, workers=2)
    times["scipy rfftn"].append(time.perf_counter() - t)
    t = time.perf_counter()
    found = calc_pk_from_deltak(
        scipy.fft.rfftn(field, workers=2) / np.float32(n**3), size, edges, np.array([0.0, 1.0]),
        nthread=2)
    times["scipy rfftn + abacusutils"].append(time.perf_counter() - t)
    t = time.perf_counter(); pk = Pk_library.Pk(field, size, 2, None, 2, False)
    times["Pylians Pk"].append(time.perf_counter() - t)
power = np.asarray(found["power"] if isinstance(found, dict) else found[0]).ravel()
json.dump({"times": times, "abacus": power.tolist(), "pylians": pk.Pk[:, 0].tolist(),
           "pylians_k": pk.k3D.tolist(), "pylians_modes": pk.Nmodes3D.tolist()}, sys.stdout)
"""


def make_field(path: Path, grid: int) -> tuple[str, np.ndarray]:
    """Write a field with a falling spectrum to a store; return its URL and values."""
    random = torch.randn((grid,) * 3, generator=torch.Generator().manual_seed(1))
    modes = fourier.forward(random)
    modes *= (1.0 + fourier.squared_wavenumber(grid, SIZE) / 0.01).pow_(-0.5)
    field = fourier.inverse(modes, grid)
    density = (field / field.std() + 1.0).numpy()
    url = str(path / f"field-{grid}.zarr")
    metadata = BoxMetadata(SIZE, 0.0, CosmologyConfig(), 1e11, make_provenance("benchmark", {}))
    create_fields(url, metadata, grid, ("density",), shard=128, chunk=64, existing="overwrite")
    for index, block in enumerate(grid_blocks(grid, 128)):
        x, y, z = (slice(o, o + n) for o, n in zip(block.origin, block.shape, strict=True))
        write_block(url, block, index, {"density": density[x, y, z]})
    finish_group(open_group_for_writing(url))
    return url, density


def ways(url: str, density: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return what is timed."""
    store = FieldStore(url)
    tensor = torch.from_numpy(density)
    settings = load_settings(options={"engine": {"choice": "serial"}})
    run = Run(settings, Session(settings.engine))
    source = Variable(url, "density", 1, offset=1.0)
    products = Products((Term((0,)),), ((0, 0),), WaveBins.linear(store.grid, SIZE))
    plan = plan_power([source], Grid.of(store), run, stage="spectra")
    modes = fourier.forward(tensor)
    return {
        "torch rfftn": lambda: fourier.forward(tensor),
        "binning alone": lambda: sum_modes(modes, cells=store.grid, box_size=SIZE),
        "auto_power, in memory": lambda: auto_power(tensor, SIZE),
        "reading the store": lambda: store.read("density"),
        "spectra, from the store": lambda: sum_power([source], [products], plan, run)[0],
    }


def main() -> None:
    """Print medians, ratios, and how far spectra differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grid", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers")
    given = parser.parse_args()
    url, density = make_field(given.folder, given.grid)
    timed = ways(url, density)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(given.rounds + 1):
        for name, call in timed.items():
            begun = time.perf_counter()
            found = call()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    mine = replace(found).spectrum()
    if given.peers:
        path = given.folder / "field.npy"
        np.save(path, density - np.float32(1.0))
        arguments = [given.peers, "-c", PEERS, str(path), str(SIZE), str(given.rounds)]
        output = subprocess.run(arguments, stdout=subprocess.PIPE, check=True).stdout.decode()
        peers = json.loads(output[output.index('{"times"') :])
        seconds |= peers["times"]
        path.unlink()
        abacus = np.array(peers["abacus"])
        print(f"abacusutils differs by at most {np.abs(abacus / mine.auto_a - 1).max():.1e}")
        compare_pylians(peers, density - np.float32(1.0))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:28s} {value:7.3f} s  {value / median['torch rfftn']:6.2f} x torch rfftn")
    own = median["spectra, from the store"] - median["reading the store"]
    print(f"spectra less reading: {own / median['torch rfftn']:.2f} x torch rfftn", file=sys.stdout)


def compare_pylians(peers: dict[str, Any], field: np.ndarray) -> None:
    """Compare with Pylians in its own bins, whose edges are whole multiples of the fundamental.

    Modes on an edge fall to either side there by round-off, so only bins with as many modes as
    exact arithmetic gives are compared.
    """
    from cosmoflow.numerics.spectra import sum_products

    grid = field.shape[0]
    count = len(peers["pylians_modes"])
    limits = tuple(max((b + 1) ** 2 - 1, 0) for b in range(count + 1))
    bins = WaveBins(grid, SIZE, limits)
    total = sum_products([fourier.forward(torch.from_numpy(field))], [(0, 0)], bins)
    same = np.abs(total.modes - 2 * np.array(peers["pylians_modes"])) < 0.5
    same |= np.abs(total.modes - np.array(peers["pylians_modes"])) < 0.5
    worst = np.abs(np.array(peers["pylians"])[same] / total.power()[same] - 1.0).max()
    print(f"Pylians differs by at most {worst:.1e} in {same.sum()} of {count} bins of equal modes")


if __name__ == "__main__":
    main()
