"""Compare COLA's power spectra at z = 0 with HMcode and with linear theory.

Usage: python benchmarks/cola_against_hmcode.py [PARTICLES PER AXIS] [BOX] [MESH FACTOR] [STEPS]
           [--pairs] [--compensate] [--z20] [--log] [--seed=N]

Without ``--pairs`` one box of Gaussian modes is run; with it two of fixed amplitudes and opposite
signs, whose spectra are averaged (Angulo & Pontzen 2016, arXiv:1603.05253). Either way the scatter
of the linear modes is divided out: what is compared is the boost P(k) / P_lin(k) of a bin, P_lin
being the mean power of the very modes that the run began with, so that the first table is

    (sum of P(k) over a bin's modes) / (sum of B(k) P_lin(k) over them),    B = P_HMcode / P_CAMB.

The reference is HMcode-2020 without baryonic feedback (Mead et al. 2021, arXiv:2009.01858; 2.5 %
rms against emulators). Halofit (Takahashi et al. 2012) stands beside it to show how far two
references differ. P is that of a cloud-in-cell density on 2 cells per particle and axis, window
undone.

No shot noise is subtracted. Particles that start from a lattice are no Poisson sample of a field:
while the lattice lasts they have no noise below the wavenumber of its spacing at all, and where it
has been erased, in haloes, it is of the order of 1/n. The table gives 1/(n P) for the size of that.

The second table is of the flow, on cells of 2 Mpc/h (two particle spacings where that is more), the
window undone: P_theta of the divergence of v = p / rho and P of the divergence of the momentum p,
both over (f a H)^2 P_lin. Linear theory is their limit at low k, and a slow one: where P_delta is
1 - e of the linear, div p = -d delta / dt is 1 - 3 e (the first loop, P_13, grows as D^4, while
P_22 is still small). The last column, P_div p - 3 P_delta + 3, is free of P_13: 1 + P_22 / P_lin.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

# torch and numba each keep a pool of threads; left to spin, each starves the other on a busy
# machine. Only works before either is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import camb
import numpy as np
from _measure import density_power, displacements, flow_powers
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import cola, spectra, timesteps

Floats = NDArray[np.float64]

EDGES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.72, 0.9, 1.1, 1.4, 1.8, 2.4)
"""Bins of the first table, h/Mpc; the last but three holds k = 1."""
FLOW_BINS = 10
"""Fundamental modes in the second table."""
GOALS = ((0.05, 0.4, 0.05), (0.9, 1.1, 0.12))
"""Ranges of k and how near to HMcode the power has to be there."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    cells: int = 256
    box_size: float = 256.0
    mesh_factor: int = 2
    steps: int = 30
    pairs: bool = False
    compensate: bool = False
    a_start: float = 0.1
    spacing: timesteps.Spacing = "linear"
    seed: int = 1

    @classmethod
    def parse(cls, arguments: list[str]) -> Options:
        """Read the arguments of the command line."""
        flags = {a for a in arguments if a.startswith("--")}
        numbers = [a for a in arguments if a not in flags]
        seeds = [int(f.removeprefix("--seed=")) for f in flags if f.startswith("--seed=")]
        texts = numbers + ["256", "256", "2", "30"][len(numbers) :]
        return cls(
            cells=int(texts[0]),
            box_size=float(texts[1]),
            mesh_factor=int(texts[2]),
            steps=int(texts[3]),
            pairs="--pairs" in flags,
            compensate="--compensate" in flags,
            a_start=1.0 / 21.0 if "--z20" in flags else 0.1,
            spacing="log" if "--log" in flags else "linear",
            seed=(seeds or [1])[0],
        )


@dataclass(frozen=True)
class Measured:
    """Spectra of one run beside those of its linear modes."""

    linear: spectra.Spectrum
    density: spectra.Spectrum
    flow: dict[str, spectra.Spectrum]


def boost(cosmology: CosmologyConfig, version: str, k: Floats) -> Floats:
    """Return CAMB's nonlinear over linear power, its amplitude set by the cosmology's sigma8."""
    h2 = cosmology.h**2
    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        H0=100.0 * cosmology.h,
        ombh2=cosmology.Omega_b * h2,
        omch2=(cosmology.Omega_m - cosmology.Omega_b) * h2,
        mnu=0.0,
        num_massive_neutrinos=0,
        omk=0.0,
    )
    parameters.set_dark_energy(w=-1.0)
    parameters.set_matter_power(redshifts=[0.0], kmax=50.0)
    amplitude, powers = 2e-9, []
    for model in ("NonLinear_none", "NonLinear_none", "NonLinear_pk"):
        parameters.NonLinear = getattr(camb.model, model)
        parameters.NonLinearModel.set_params(halofit_version=version)
        parameters.InitPower.set_params(As=amplitude, ns=cosmology.n_s)
        results = camb.get_results(parameters)
        grid, _, power = results.get_matter_power_spectrum(minkh=1e-4, maxkh=20.0, npoints=800)
        powers.append(power[0])
        if len(powers) == 1:
            amplitude *= (cosmology.sigma8 / float(results.get_sigma8_0())) ** 2
    ratio: Floats = np.interp(np.log(k), np.log(grid), powers[2] / powers[1])
    return ratio


def simulate(options: Options, power: LinearPower, *, inverted: bool) -> Measured:
    """Run one box and measure it."""
    start = time.perf_counter()
    psi1, psi2, linear = displacements(
        options.cells, options.box_size, power, options.seed,
        fixed_amplitude=options.pairs, inverted=inverted,
    )  # fmt: skip
    run = cola.evolve(
        Background(CosmologyConfig()), psi1, psi2, box_size=options.box_size, steps=options.steps,
        a_start=options.a_start, spacing=options.spacing, mesh_factor=options.mesh_factor,
        compensate=options.compensate,
    )  # fmt: skip
    snapshot = next(run)
    taken = time.perf_counter() - start
    measured = Measured(
        linear, density_power(snapshot, 2 * options.cells), flow_powers(snapshot, window=2)
    )
    print(f"run: {taken:.1f} s; measuring: {time.perf_counter() - start - taken:.1f} s", flush=True)
    return measured


def print_density(options: Options, runs: list[Measured], cosmology: CosmologyConfig) -> None:
    """Print the ratio to the references in wide bins, and whether the goals are met."""
    k, modes = runs[0].density.k, runs[0].density.modes
    mead, takahashi = (boost(cosmology, v, k) for v in ("mead2020", "takahashi"))
    count = runs[0].linear.k.size
    shot = (options.box_size / options.cells) ** 3
    wide: dict[tuple[float, float], float] = {}
    print(f"| {'k, h/Mpc':<13} | {'P':>8} | 1/(n P) | P/HMcode | one run | Halofit/HMcode |")
    for low, high in pairwise(EDGES):
        inside = np.flatnonzero((k >= low) & (k < high) & (np.arange(k.size) < count))
        if inside.size == 0:
            continue
        weight = modes[inside]

        def total(values: Floats, weight: Floats = weight) -> float:
            return float((weight * values).sum())

        totals = [total(r.density.auto_a[inside]) for r in runs]
        linear = [r.linear.auto_a[inside] for r in runs]
        expected = [total(mead[inside] * p) for p in linear]
        other = sum(total(takahashi[inside] * p) for p in linear) / sum(expected)
        wide[low, high] = ratio = sum(totals) / sum(expected)
        mean = sum(totals) / len(runs) / weight.sum()
        print(
            f"| {low:5.2f} to {high:4.2f} | {mean:8.1f} | {shot / mean:7.4f} | {ratio:8.4f} "
            f"| {totals[0] / expected[0]:7.4f} | {other:14.4f} |"
        )
    for low, high, limit in GOALS:
        bins = [r for (a, b), r in wide.items() if low <= a and b <= high]
        inside = np.flatnonzero((k >= low) & (k <= high) & (np.arange(k.size) < count))
        if not bins or inside.size == 0:
            continue
        found = np.sum([r.density.auto_a[inside] for r in runs], axis=0)
        single = found / np.sum([mead[inside] * r.linear.auto_a[inside] for r in runs], axis=0)
        worst, worst_single = (max(v, key=lambda r: abs(r - 1.0)) for v in (bins, single))
        verdict = "met" if abs(worst - 1.0) < limit else "missed"
        print(
            f"{low} <= k <= {high}: mean {single.mean():.4f}; worst bin {worst:.4f}, "
            f"goal {limit:.0%} {verdict}; worst bin of one fundamental mode {worst_single:.4f}"
        )


def print_flow(runs: list[Measured], cosmology: CosmologyConfig) -> None:
    """Print the spectra of the flow and of the density over linear theory's at the lowest k."""
    unit = Background(cosmology).growth_rate_hubble(1.0) ** 2
    print("| k, h/Mpc | modes | P_theta | P_div p | P_delta | loop-free |  (over linear theory)")
    for b in range(min(FLOW_BINS, runs[0].flow["theta"].k.size)):
        linear = sum(r.linear.auto_a[b] for r in runs)
        theta, momentum = (
            sum(r.flow[q].auto_a[b] for r in runs) / linear / unit for q in ("theta", "div p")
        )
        density = sum(r.density.auto_a[b] for r in runs) / linear
        first = runs[0].linear
        print(
            f"| {first.k[b]:8.4f} | {first.modes[b]:5.0f} | {theta:7.4f} | {momentum:7.4f} "
            f"| {density:7.4f} | {momentum - 3.0 * density + 3.0:9.4f} |"
        )


def main() -> None:
    """Run the boxes and print both tables."""
    options = Options.parse(sys.argv[1:])
    cosmology = CosmologyConfig()
    power = LinearPower.from_cosmology(cosmology)
    print(f"{options}, {options.box_size / options.cells:g} Mpc/h per particle", flush=True)
    signs = (False, True) if options.pairs else (False,)
    runs = [simulate(options, power, inverted=sign) for sign in signs]
    print_density(options, runs, cosmology)
    print_flow(runs, cosmology)


if __name__ == "__main__":
    main()
