"""Time COLA: nanoseconds per particle and step, peak memory, and the floor of both.

Usage: python benchmarks/bench_cola.py [PARTICLES PER AXIS] [STEPS] [MESH FACTOR]

The floor is what any particle-mesh step does: the transforms (one forward, three back) and one
reading and writing of the state.
"""

from __future__ import annotations

import itertools
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable

# torch and numba each keep a pool of threads; left to spin, each starves the other on a busy
# machine (measured: 7 times slower). Only works before either is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import cola, fourier, initial, lpt, mesh


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of some wall times, s."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak() -> float:
    """Return the peak resident memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Run the benchmark at the size that the arguments give."""
    cells, steps, factor = ([int(a) for a in sys.argv[1:]] + [128, 10, 1][len(sys.argv) - 1 :])[:3]
    # The mass of the paper: one particle per (Mpc/h)^3.
    box, particles, mesh_cells = float(cells), cells**3, cells * factor
    cosmology = CosmologyConfig()
    background, power = Background(cosmology), LinearPower.from_cosmology(cosmology)
    small = initial.linear_density_modes(initial.white_noise_modes(16, 1), 32.0, power)
    psi = lpt.displacements(small, 32.0)
    next(cola.evolve(background, *psi, box_size=32.0, steps=1))  # compiles
    before = peak()

    start = time.perf_counter()
    modes = initial.linear_density_modes(initial.white_noise_modes(cells, 1), box, power)
    print(f"{cells}^3 particles, {mesh_cells}^3 mesh, {torch.get_num_threads()} threads")
    print(f"initial modes        {time.perf_counter() - start:8.2f} s")
    marks: list[float] = []
    start = time.perf_counter()
    psi1, psi2 = lpt.displacements(modes, box)
    del modes
    print(f"2LPT                 {time.perf_counter() - start:8.2f} s")
    snapshot = next(
        cola.evolve(
            background, psi1, psi2, box_size=box, steps=steps, mesh_factor=factor,
            compensate=factor == 1, progress=lambda done, of: marks.append(time.perf_counter()),
        )
    )  # fmt: skip
    total = time.perf_counter() - start
    taken = [b - a for a, b in itertools.pairwise(marks)]
    print(f"whole run            {total:8.2f} s")
    for name, value in (("median", statistics.median(taken)), ("best", min(taken))):
        print(f"step, {name:<15}{value:8.3f} s  {value / particles * 1e9:7.1f} ns per particle")
    print(f"peak memory          {peak():8.3f} GB, {before:.3f} of it before the run")
    print(f"projected            {cola.peak_bytes(cells, factor) / 1e9:8.3f} GB")

    x = snapshot.position
    density = fourier.empty((mesh_cells,) * 3)
    shape = (mesh_cells, mesh_cells, mesh_cells // 2 + 1)
    work = fourier.empty(shape, complex_modes=True)
    out = torch.empty(particles)
    parts = {
        "paint": lambda: mesh.paint_contrast(x, box, mesh_cells, out=density, scratch=work),
        "transforms": lambda: [
            axis for axis, _ in fourier.inverse_gradient(density, box, work=work)
        ],
        "interpolation, one": lambda: mesh.interpolate(density, x, box, out),
        "2LPT, both orders": lambda: lpt.displacements(fresh(), box),
    }

    def fresh() -> torch.Tensor:
        return initial_modes.clone()

    initial_modes = fourier.forward(torch.randn((cells,) * 3))
    for name, function in parts.items():
        value = best(function)
        print(f"{name:<21}{value:8.3f} s  {value / particles * 1e9:7.1f} ns per particle")

    real = torch.randn((mesh_cells,) * 3)
    spectrum = fourier.forward(real)
    transforms = best(lambda: fourier.forward(real)) + 3 * best(
        lambda: fourier.inverse(spectrum, mesh_cells)
    )
    state = [fourier.empty((particles, 3)).zero_() for _ in range(4)]

    def touch() -> None:
        # Reads all 48 bytes of a particle and writes the 24 that change.
        cola._add(state[0], (state[1], 1.0), (state[2], 1.0), (state[3], 1.0))
        state[1].mul_(1.0)

    moved = best(touch)
    floor = transforms + moved
    print(f"floor: 4 whole FFTs  {transforms:8.3f} s  {transforms / particles * 1e9:7.1f} ns")
    print(f"floor: state         {moved:8.3f} s  {moved / particles * 1e9:7.1f} ns")
    print(f"floor: together      {floor:8.3f} s  {floor / particles * 1e9:7.1f} ns per particle")


if __name__ == "__main__":
    main()
