"""Measure COLA's errors where the answer is known: plane waves, conservation, step size.

Usage: python benchmarks/cola_exactness.py [PARTICLES PER AXIS]

The size (128) is that of the random boxes and of the finest plane wave. Tables: Zel'dovich pancakes
until shell crossing; a wave of tiny amplitude; drift of momentum and centre of mass; step doubling
and time reversal; COLA against 2LPT by scale.
"""

from __future__ import annotations

import math
import os
import sys

# torch and numba each keep a pool of threads; left to spin, each starves the other on a busy
# machine. Only works before either is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _measure import displacements
from torch import Tensor

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.numerics import cola, fourier, lpt, spectra, timesteps

BACKGROUND = Background(CosmologyConfig())
PANCAKE_TIMES = (0.4, 0.7, 0.9, 0.98)
STEPS = (5, 10, 20, 40)
MESHES = ((1, False), (1, True), (2, False), (2, True))
"""Cells per particle and axis, and whether the window of the painting is undone (on the finer mesh
with forces by differences)."""

Direction = tuple[int, int, int]
Psi = tuple[Tensor, Tensor]


def mesh_name(factor: int, compensate: bool) -> str:
    """Return how a mesh is called in the tables."""
    return f"{factor}x {'undone' if compensate else 'kept'}"


def wave_vector(direction: Direction, box_size: float) -> Tensor:
    """Return the wavevector of so many periods per axis of the box, float64, h/Mpc."""
    return torch.tensor(direction, dtype=torch.float64) * (2.0 * math.pi / box_size)


def plane_wave(cells: int, direction: Direction, amplitude: float, box_size: float) -> Psi:
    """Return the displacements of the density ``amplitude * cos(k . q)`` today, by the product."""
    q = lpt.lattice_positions(cells, box_size).double()
    field = amplitude * torch.cos(q @ wave_vector(direction, box_size))
    return lpt.displacements(fourier.forward(field.float().view((cells,) * 3)), box_size)


def evolve(psi: Psi, box_size: float, mesh_kind: tuple[int, bool], steps: int) -> cola.Snapshot:
    """Run to z = 0."""
    factor, compensate = mesh_kind
    return next(
        cola.evolve(
            BACKGROUND, *psi, box_size=box_size, steps=steps, mesh_factor=factor,
            compensate=compensate,
        )
    )  # fmt: skip


def residuals(snapshot: cola.Snapshot, direction: Direction, amplitude: float) -> list[float]:
    """Return the errors of position and velocity: largest and rms, over the largest displacement.

    Each vector as a whole is compared; velocity by ``f a H`` times the displacement.
    """
    cells = round(math.cbrt(snapshot.count))
    q = lpt.lattice_positions(cells, snapshot.box_size).double()
    k = wave_vector(direction, snapshot.box_size)
    growth = amplitude * BACKGROUND.growth(snapshot.scale_factor)
    exact = torch.sin(q @ k).view(-1, 1) * (-growth * k / (k @ k))
    rate = BACKGROUND.growth_rate_hubble(snapshot.scale_factor)
    result = []
    for measured in (snapshot.displaced.double() - q, snapshot.velocity.double() / rate):
        error = (measured - exact).norm(dim=1) / exact.norm(dim=1).max()
        result += [float(error.max()), float(error.square().mean().sqrt())]
    return result


def pancakes(largest: int) -> None:
    """Print the errors of a wave that collapses today, which Zel'dovich has exactly until then."""
    print("\nPancake, shells cross at a = 1; errors over the largest displacement, per cent")
    print("| wave      | cells | mesh       | steps | what     |", end=" ")
    print(" | ".join(f"a={a:<4} max,  rms" for a in PANCAKE_TIMES), "|", flush=True)
    box_size = 64.0
    for direction in ((0, 1, 0), (1, 1, 0)):
        for cells in (largest // 4, largest // 2, largest):
            psi = plane_wave(cells, direction, 1.0, box_size)
            # With the exact force nothing is left to integrate: one size shows what steps do.
            scan = cells == largest // 2 and direction == (0, 1, 0)
            for factor, compensate in MESHES:
                for steps in STEPS if scan and (factor, compensate) == (1, True) else STEPS[2:3]:
                    run = cola.evolve(
                        BACKGROUND, *psi, box_size=box_size, outputs=PANCAKE_TIMES, steps=steps,
                        mesh_factor=factor, compensate=compensate,
                    )  # fmt: skip
                    found = np.array([residuals(s, direction, 1.0) for s in run]) * 100.0
                    for name, part in (("position", found[:, :2]), ("velocity", found[:, 2:])):
                        print(
                            f"| {direction!s:<9} | {cells / math.hypot(*direction):5.1f} "
                            f"| {mesh_name(factor, compensate):<10} | {steps:5d} | {name} | "
                            + " | ".join(f"{m:7.3f}, {r:6.3f}" for m, r in part)
                            + " |",
                            flush=True,
                        )


def tiny_wave(cells: int) -> None:
    """Print how far the growth of a tiny wave is from D1, and its velocity from f a H D1."""
    print("\nGrowth of a wave of amplitude 0.003 to a = 1, over D1 (velocity: f D1), less 1")
    meshes = (*MESHES, (3, False))
    print(f"| cells per wave | {' | '.join(f'{mesh_name(*m):<18}' for m in meshes)} |")
    box_size, amplitude, cells = 64.0, 3e-3, min(cells, 64)
    q = lpt.lattice_positions(cells, box_size).double()
    for periods in (1, 2, 4, 8, 16):
        direction, columns = (0, 0, periods), []
        k = float(wave_vector(direction, box_size).norm())
        psi = plane_wave(cells, direction, amplitude, box_size)
        exact = -amplitude / k * torch.sin(k * q[:, 2])
        for kind in meshes:
            snapshot = evolve(psi, box_size, kind, 20)
            moved = snapshot.displaced.double()[:, 2] - q[:, 2]
            speed = snapshot.velocity.double()[:, 2] / BACKGROUND.growth_rate_hubble(1.0)
            errors = [float(m @ exact / (exact @ exact)) - 1.0 for m in (moved, speed)]
            columns.append(", ".join(f"{e:+.5f}" for e in errors))
        print(f"| {cells // periods:14d} | {' | '.join(f'{c:<18}' for c in columns)} |")


def rms(vectors: Tensor) -> float:
    """Return the rms length."""
    return float(vectors.double().square().sum(1).mean().sqrt())


def conservation(cells: int, psi: Psi, box_size: float) -> None:
    """Print the mean velocity and displacement over their rms."""
    print("\nDrift: |mean| over rms, at z = 0 (Q: of the displacements that it starts with)")
    q = lpt.lattice_positions(cells, box_size).double()
    start = max(float(p.double().mean(0).norm()) / rms(p) for p in psi)
    print("| mesh       | steps | velocity | displacement |")
    print(f"| Q          |       |          |      {start:.1e} |")
    for kind, steps in (*((kind, 15) for kind in MESHES), ((1, True), 40)):
        snapshot = evolve(psi, box_size, kind, steps)
        moved = snapshot.displaced.double() - q
        drifts = [float(v.double().mean(0).norm()) / rms(v) for v in (snapshot.velocity, moved)]
        print(
            f"| {mesh_name(*kind):<10} | {steps:5d} |  {drifts[0]:.1e} |      {drifts[1]:.1e} |",
            flush=True,
        )


def step_doubling(psi: Psi, box_size: float) -> None:
    """Print rms and median differences between n and 2 n steps, and the order of convergence."""
    print(f"\nStep doubling, n against 2 n; 1x undone, L = {box_size:g}")
    print("| steps | position rms, Mpc/h (order) | median (order) | velocity rms, km/s (order) |")
    before, last = None, None
    for steps in (*STEPS, 2 * STEPS[-1]):
        # Every run has a state of its own, so the last one's still stands.
        now = evolve(psi, box_size, (1, True), steps)
        if before is not None:
            moved = now.displaced - before.displaced
            turned = now.velocity - before.velocity
            values = [rms(moved), float(moved.norm(dim=1).median()), rms(turned)]
            orders = ["      "] * 3
            if last is not None:
                orders = [f"({math.log2(b / v):4.2f})" for b, v in zip(last, values, strict=True)]
            last = values
            print(
                f"| {steps // 2:5d} | {values[0]:18.5f} {orders[0]}   | {values[1]:.5f} {orders[1]}"
                f" | {values[2]:18.4f} {orders[2]}  |",
                flush=True,
            )
        before = now


def time_reversal(psi: Psi, box_size: float, steps: int) -> None:
    """Print how well the same kicks and drifts, undone in turn, lead back to the start."""
    cells = round(math.cbrt(psi[0].shape[0]))
    simulation = cola._Simulation(
        timesteps.Operators(BACKGROUND), *psi, box_size, cells, compensate=True
    )
    (times,) = timesteps.schedule(steps, 0.1, (1.0,))
    end = next(simulation.run([times], None)).displaced.clone()
    back = times[::-1]
    meshes = simulation._make_meshes()
    simulation._kick(back[0], back[1], back[0], meshes)
    for half in range(1, len(back), 2):
        simulation._drift(back[half - 1], back[half + 1], back[half])
        after = back[half + 2] if half + 2 < len(back) else back[-1]
        simulation._kick(back[half], after, back[half + 1], meshes)
    first = lpt.lattice_positions(cells, box_size).double()
    first += BACKGROUND.growth(0.1) * psi[0] + BACKGROUND.growth2(0.1) * psi[1]
    error = simulation._x.double() - first
    print(
        f"Time reversal, {steps} steps and back, L = {box_size:g}: rms error {rms(error):.2e}, "
        f"median {float(error.norm(dim=1).median()):.2e} Mpc/h, of {rms(end - first):.3f} moved"
    )


def against_2lpt(cells: int, psi: Psi, box_size: float) -> None:
    """Print correlation and transfer of the displacements of COLA against those of 2LPT, by k."""
    q = lpt.lattice_positions(cells, box_size)
    runs = {
        "2LPT": cola.displace(BACKGROUND, *psi, box_size=box_size, outputs=(1.0,)),
        "COLA": cola.evolve(BACKGROUND, *psi, box_size=box_size, compensate=True),
    }
    fields = {
        name: (next(run).displaced - q).view(cells, cells, cells, 3).movedim(-1, 0).contiguous()
        for name, run in runs.items()
    }
    spectrum = spectra.cross_power(fields["2LPT"], fields["COLA"], box_size)
    print(f"\nDisplacements on the lattice, COLA (1x/15) against 2LPT, L = {box_size:g}")
    print("| k, h/Mpc | correlation | sqrt(P_COLA / P_2LPT) |")
    last = -1.0
    for b in range(spectrum.k.size):
        # Every mode of the largest scales, then a few per octave.
        if b < 4 or spectrum.k[b] > 1.4 * last:
            last = float(spectrum.k[b])
            amplitude = math.sqrt(spectrum.transfer[b])
            print(f"| {last:8.4f} | {spectrum.correlation[b]:11.6f} | {amplitude:21.5f} |")


def main() -> None:
    """Print all tables."""
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    pancakes(cells)
    tiny_wave(cells)
    power = LinearPower.from_cosmology(CosmologyConfig())
    for box_size in (float(cells), 8.0 * cells):
        psi1, psi2, _ = displacements(cells, box_size, power)
        psi = (psi1, psi2)
        if box_size == cells:
            conservation(cells, psi, box_size)
        step_doubling(psi, box_size)
        for steps in (5, 15, 40):
            time_reversal(psi, box_size, steps)
        against_2lpt(cells, psi, box_size)


if __name__ == "__main__":
    main()
