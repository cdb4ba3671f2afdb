"""Compare settings of COLA with a converged run: spectra at four wavenumbers, and time.

Usage: python benchmarks/cola_convergence.py [PARTICLES PER AXIS] [SEED]

The box has one particle per (Mpc/h)^3, as the paper's. Each figure is the ratio of a spectrum at
z = 0 to that of the reference, 40 steps on a mesh of 3 cells per particle and axis, from the same
initial conditions: P_delta on as many cells as particles (cloud-in-cell, window undone), the rest
on cells of 2 Mpc/h: P_theta of the divergence of v = p / rho, P_p of the scalar |v| delta and of
the vector rho v. The time is that of the run from displacements to snapshot, without measuring.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

# torch and numba each keep a pool of threads; left to spin, each starves the other on a busy
# machine. Only works before either is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _measure import density_power, displacements, flow_powers
from torch import Tensor

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import cola, spectra, timesteps

WAVENUMBERS = (0.2, 0.6, 1.0, 1.4)
QUANTITIES = ("delta", "theta", "p", "p vector")

Z20 = 1.0 / 21.0


@dataclass(frozen=True)
class Setting:
    """How one run is made."""

    mesh_factor: int
    steps: int
    compensate: bool = False
    a_start: float = 0.1
    spacing: timesteps.Spacing = "linear"

    def __str__(self) -> str:
        parts = [f"{self.mesh_factor}x/{self.steps}"]
        if self.compensate:
            parts.append("compensated")
        if self.a_start != 0.1:
            parts.append(f"from z={1.0 / self.a_start - 1.0:.0f}")
        if self.spacing != "linear":
            parts.append(self.spacing)
        return " ".join(parts)


REFERENCE = Setting(3, 40)
SETTINGS = (
    Setting(1, 15),
    Setting(1, 15, compensate=True),
    Setting(1, 15, compensate=True, spacing="log"),
    Setting(1, 30, compensate=True),
    Setting(2, 15),
    Setting(2, 15, compensate=True),
    Setting(2, 30),
    Setting(2, 30, compensate=True),
    Setting(2, 30, compensate=True, a_start=Z20),
)

PAPER: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "1x/15": {"theta": (0.943, 0.968, 0.963), "p": (0.964, 0.915, 0.820)},
    "2x/15": {"theta": (0.973, 0.956, 0.969), "p": (0.997, 0.972, 0.938)},
    "2x/30": {"theta": (0.975, 0.968, 0.981), "p": (0.986, 0.974, 0.952)},
}
"""The figures to be as good as, at the last three wavenumbers."""


def measure(
    setting: Setting, psi: tuple[Tensor, Tensor], box_size: float
) -> tuple[dict[str, spectra.Spectrum], float]:
    """Return the spectra of a run and its wall time in seconds."""
    start = time.perf_counter()
    run = cola.evolve(
        Background(CosmologyConfig()), *psi, box_size=box_size, steps=setting.steps,
        a_start=setting.a_start, spacing=setting.spacing, mesh_factor=setting.mesh_factor,
        compensate=setting.compensate,
    )  # fmt: skip
    snapshot = next(run)
    taken = time.perf_counter() - start
    return {"delta": density_power(snapshot, round(box_size)), **flow_powers(snapshot)}, taken


def ratios(spectrum: spectra.Spectrum, reference: spectra.Spectrum) -> list[float]:
    """Return the ratio of two spectra at ``WAVENUMBERS``."""
    at, expected = (s.sample(s.auto_a, WAVENUMBERS) for s in (spectrum, reference))
    return [float(r) for r in at / expected]


def row(name: str, seconds: str, columns: Mapping[str, list[float]]) -> str:
    """Format one line of the table."""
    cells = []
    for quantity in QUANTITIES:
        values = columns.get(quantity, [])
        text = " ".join(f"{v:.3f}" for v in values)
        cells.append(f"{text:>{6 * len(WAVENUMBERS) - 1}}")
    return f"| {name:<27} | {seconds:>7} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    cells, seed = ([int(a) for a in sys.argv[1:]] + [128, 1][len(sys.argv) - 1 :])[:2]
    box_size = float(cells)
    power = LinearPower.from_cosmology(CosmologyConfig())
    psi1, psi2, _ = displacements(cells, box_size, power, seed)
    psi = (psi1, psi2)
    cola_warm_up(power)
    print(f"{cells}^3 particles in {box_size:g} Mpc/h, seed {seed}, z = 0;", end=" ")
    print(f"{torch.get_num_threads()} threads; ratios at k = {WAVENUMBERS} h/Mpc")
    titles = " | ".join(f"P_{q:<{6 * len(WAVENUMBERS) - 3}}" for q in QUANTITIES)
    print(f"| {'setting':<27} | {'time, s':>7} | {titles} |", flush=True)
    reference, taken = measure(REFERENCE, psi, box_size)
    own = {q: ratios(reference[q], reference[q]) for q in QUANTITIES}
    print(row(f"{REFERENCE} (reference)", f"{taken:.1f}", own), flush=True)
    for setting in SETTINGS:
        measured, taken = measure(setting, psi, box_size)
        table = {q: ratios(measured[q], reference[q]) for q in QUANTITIES}
        print(row(str(setting), f"{taken:.1f}", table), flush=True)
        if str(setting) in PAPER:
            theirs = {q: [float("nan"), *v] for q, v in PAPER[str(setting)].items()}
            print(row("  to be as good as", "", theirs), flush=True)


def cola_warm_up(power: LinearPower) -> None:
    """Compile the loops, so that no run's time has that in it."""
    psi1, psi2, _ = displacements(16, 16.0, power)
    measure(Setting(1, 1), (psi1, psi2), 16.0)


if __name__ == "__main__":
    main()
