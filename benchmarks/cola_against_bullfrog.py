"""Compare COLA with BullFrog, another integrator that follows second-order perturbation theory.

Usage: python benchmarks/cola_against_bullfrog.py [PARTICLES PER AXIS] [SEED]

Boxes and spectra are those of ``cola_convergence.py``; the reference is COLA with 60 steps on a
compensated mesh of 3 cells per particle and axis. The last columns are the rms distances of
particles and velocities from those of the reference. Steps are equal in a, from z = 9.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial

# As in cola_convergence.py: only works before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from _measure import density_power, displacements, flow_powers
from cola_convergence import WAVENUMBERS, ratios
from torch import Tensor

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import cola, fourier, lpt, mesh
from cosmoflow.numerics.timesteps import Operators, schedule
from cosmoflow.units import H0_KM_S_PER_MPC_H

BACKGROUND = Background(CosmologyConfig())
START = 0.1
QUANTITIES = ("delta", "theta", "p")
SETTINGS = ((1, 8), (1, 15), (2, 15), (2, 30))
REFERENCE = (3, 60)
"""Force mesh, in cells per particle and axis, and steps."""

Run = Callable[[tuple[Tensor, Tensor], float, int, int], cola.Snapshot]


def run_cola(psi: tuple[Tensor, Tensor], box_size: float, factor: int, steps: int) -> cola.Snapshot:
    """Run COLA from displacements to z = 0."""
    return next(
        cola.evolve(
            BACKGROUND, *psi, box_size=box_size, steps=steps, a_start=START, mesh_factor=factor,
            compensate=True,
        )
    )  # fmt: skip


def run_bullfrog(
    psi: tuple[Tensor, Tensor], box_size: float, factor: int, steps: int
) -> cola.Snapshot:
    """Run BullFrog (Rampf, List & Hahn 2024, arXiv:2409.19049) from displacements to z = 0.

    Time is the growth D1, so ``v = dx / dD1``. Half a drift, a kick, half a drift: the kick takes
    alpha of the old velocity and 1 - alpha of that which the force implies, with the alpha for
    which a step is exact to second order in the displacements.
    """
    psi1, psi2 = psi
    cells, operators = round(psi1.shape[0] ** (1.0 / 3.0)), Operators(BACKGROUND)
    side = cells * factor
    times = schedule(steps, START, [1.0])[0][::2]
    first = [BACKGROUND.growth(a) for a in times]
    second = [BACKGROUND.growth2(a) for a in times]
    slopes = [momenta[1] / momenta[0] for momenta in map(operators.momenta, times)]
    x = lpt.lattice_positions(cells, box_size)
    x.add_(psi1, alpha=first[0]).add_(psi2, alpha=second[0])
    v = psi1.clone().add_(psi2, alpha=slopes[0])
    density = fourier.empty((side, side, side))
    work = fourier.empty((side, side, side // 2 + 1), complex_modes=True)
    for step in range(steps):
        half = 0.5 * (first[step + 1] - first[step])
        middle = first[step] + half
        x.add_(v, alpha=half)
        # Of the second order: what the force at the middle implies, over psi2.
        implied = (second[step] + half * slopes[step]) / middle - middle
        alpha = (slopes[step + 1] - implied) / (slopes[step] - implied)
        v.mul_(alpha)
        mesh.paint_contrast(x, box_size, side, out=density, scratch=work)
        forces = fourier.inverse_gradient(
            density, box_size, work=work, window=cola.CIC_WINDOW, differences=factor > 1
        )
        for axis, force in forces:
            scale = (1.0 - alpha) / middle
            mesh.interpolate(force, x, box_size, v[:, axis], scale=scale, accumulate=True)
        x.add_(v, alpha=half)
    return cola.Snapshot(1.0, box_size, x, ((v, H0_KM_S_PER_MPC_H * operators.momenta(1.0)[0]),))


def distance(one: Tensor, other: Tensor, period: float | None = None) -> float:
    """Return the rms length of the differences of two sets of vectors, of a periodic box."""
    apart = one - other
    if period is not None:
        apart = (apart + 0.5 * period).remainder(period) - 0.5 * period
    return float(apart.square().sum(dim=1).mean().sqrt())


def main() -> None:
    """Print the table."""
    cells, seed = ([int(a) for a in sys.argv[1:]] + [128, 1][len(sys.argv) - 1 :])[:2]
    box_size = float(cells)
    psi = displacements(cells, box_size, LinearPower.from_cosmology(CosmologyConfig()), seed)[:2]
    titles = " | ".join(f"P_{quantity}" for quantity in QUANTITIES)
    print(f"{cells}^3 particles in {box_size:g} Mpc/h, seed {seed}; k = {WAVENUMBERS} h/Mpc")
    print(f"| mesh, steps | integrator | time, s | {titles} | Mpc/h | km/s |\n|{' --- |' * 8}")

    def measure(run: Run, factor: int, steps: int) -> tuple[cola.Snapshot, float]:
        begun = time.perf_counter()
        return run(psi, box_size, factor, steps), time.perf_counter() - begun

    spectra = partial(density_power, cells=cells)
    reference, _ = measure(run_cola, *REFERENCE)
    expected = {"delta": spectra(reference), **flow_powers(reference)}
    for factor, steps in (*SETTINGS, REFERENCE):
        for name, run in (("COLA", run_cola), ("BullFrog", run_bullfrog)):
            if (name, factor, steps) == ("COLA", *REFERENCE):
                continue
            found, taken = measure(run, factor, steps)
            powers = {"delta": spectra(found), **flow_powers(found)}
            columns = [
                " ".join(f"{one:.3f}" for one in ratios(powers[quantity], expected[quantity]))
                for quantity in QUANTITIES
            ]
            moved = distance(found.position, reference.position, box_size)
            sped = distance(found.velocity, reference.velocity)
            said = " | ".join([*columns, f"{moved:.3f}", f"{sped:.1f}"])
            print(f"| {factor}x, {steps} | {name} | {taken:.1f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
