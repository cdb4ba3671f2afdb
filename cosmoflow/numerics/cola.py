"""COLA: N-body particles that move in the frame of second-order Lagrangian perturbation theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmoflow.errors import ConfigError
from cosmoflow.numerics import fourier, lpt, mesh
from cosmoflow.numerics.timesteps import Growth, Operators, Spacing, check_times, schedule
from cosmoflow.units import H0_KM_S_PER_MPC_H

CIC_WINDOW = 2
"""Power of sinc per axis by which cloud-in-cell painting damps a mode."""

BLOCK = 1 << 18
"""Numbers updated at once: a block of the positions stays in the cache during its three sums."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Particles at one time, in Lagrangian order (C order of their lattice).

    It is a view of the running simulation, valid until the next snapshot is requested. Positions
    and velocities are computed from it piece by piece, so that a writer needs no second copy of the
    box.

    Parameters
    ----------
    scale_factor : float
        Scale factor.
    box_size : float
        Box size, Mpc/h.
    displaced : Tensor
        Shape ``(n, 3)``, float32: comoving positions, Mpc/h, not yet wrapped into the box.
    flows : tuple of (Tensor, float)
        Vectors of the same shape and factors; the peculiar velocity in km/s is their sum.
    """

    scale_factor: float
    box_size: float
    displaced: Tensor
    flows: tuple[tuple[Tensor, float], ...]

    @property
    def count(self) -> int:
        """Number of particles."""
        return int(self.displaced.shape[0])

    @property
    def position(self) -> Tensor:
        """Shape ``(n, 3)``, float32, comoving Mpc/h, in [0, L): a new tensor."""
        return self.rows(0, self.count)[0]

    @property
    def velocity(self) -> Tensor:
        """Shape ``(n, 3)``, float32, peculiar, km/s: a new tensor."""
        return self.rows(0, self.count)[1]

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return position and velocity of the particles ``start`` to ``stop``."""
        position = self.displaced[start:stop].clone()
        _wrap(position, self.box_size)
        velocity = torch.zeros_like(position)
        _add(velocity, *((flow[start:stop], factor) for flow, factor in self.flows))
        return position, velocity


def evolve(
    background: Growth,
    psi1: Tensor,
    psi2: Tensor,
    *,
    box_size: float,
    outputs: Sequence[float] = (1.0,),
    steps: int = 15,
    a_start: float = 0.1,
    spacing: Spacing = "linear",
    mesh_factor: int = 1,
    compensate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Snapshot]:
    """Evolve a lattice of particles from its linear displacements.

    Parameters
    ----------
    background : Growth
        Expansion and growth, such as ``cosmology.background.Background``.
    psi1, psi2 : Tensor
        Shape ``(n, 3)``, float32, Mpc/h, n a cube number: displacements today of first and second
        order, from ``lpt.displacements``. They are kept, not changed. All work is done on their
        device, which also holds the snapshots.
    box_size : float
        Box size, Mpc/h.
    outputs : sequence of float
        Scale factors of the snapshots, increasing.
    steps : int
        Time steps from ``a_start`` to the last output, distributed by ``timesteps.schedule``.
    a_start : float
        Scale factor of the 2LPT start.
    spacing : {'linear', 'log'}
        Whether steps are equal in a or in ln a.
    mesh_factor : int
        Cells of the force mesh per particle and axis, 1 to 4.
    compensate : bool
        Divide the density by the window of its painting. On a mesh finer than the particles, whose
        cells are mostly empty, that alone would amplify noise, so forces are then four-point
        differences of the potential. Both bring small scales closer to the converged run
        (``benchmarks/cola_convergence.py``).
    progress : callable, optional
        Called with (steps done, steps) after each step.

    Yields
    ------
    Snapshot
        One for each output.

    Raises
    ------
    ConfigError
        The times or the mesh are invalid; raised before anything is computed.

    Notes
    -----
    Residual displacements obey ``T^2[x_res] = F - T^2[D1] psi1 - T^2[D2] psi2`` with the
    particle-mesh force ``F = -3/2 Omega_m a grad lap^-1 delta``. The integrator is leapfrog:
    velocities are at half steps, and the leg to every output begins and ends with half a kick, so
    that position and velocity are output at the same time.

    The two known terms are multiples of psi1 and psi2 at every kick. Only their two factors
    accumulate: a kick changes just the velocity, and the drift adds the psi with these factors.

    References
    ----------
    Tassev, Zaldarriaga & Eisenstein 2013 (arXiv:1301.0322), section 4.3 and appendix A.
    """
    cells = _cells(psi1, psi2)
    legs = schedule(steps, a_start, outputs, spacing)
    if mesh_factor not in (1, 2, 3, 4):
        raise ConfigError(
            "The force mesh must be a small multiple of the lattice.",
            where="mesh_factor",
            value=mesh_factor,
            limit="1, 2, 3 or 4",
        )
    simulation = _Simulation(
        Operators(background), psi1, psi2, box_size, cells * mesh_factor, compensate=compensate
    )
    return simulation.run(legs, progress)


def displace(
    background: Growth, psi1: Tensor, psi2: Tensor, *, box_size: float, outputs: Sequence[float]
) -> Iterator[Snapshot]:
    """Displace a lattice of particles by 2LPT alone; see :func:`evolve` for the parameters."""
    cells = _cells(psi1, psi2)
    check_times(0.0, outputs)
    operators = Operators(background)
    for a in outputs:
        x = lpt.lattice_positions(cells, box_size, device=psi1.device)
        _add(x, (psi1, background.growth(a)), (psi2, background.growth2(a)))
        unit = H0_KM_S_PER_MPC_H / a
        first, second = operators.momenta(a)
        yield Snapshot(a, box_size, x, ((psi1, unit * first), (psi2, unit * second)))


def peak_bytes(cells: int, mesh_factor: int = 1) -> int:
    """Return the projected peak memory of a simulation in bytes, without the interpreter.

    Positions, velocities and two displacements (48 bytes per particle) coexist with the density
    mesh and its modes, whose memory also holds the sorted indices of the particles. Computing the
    displacements needs no more than that. CUDA's temporaries come on top.
    """
    mesh_cells = cells * mesh_factor
    return 48 * cells**3 + 4 * mesh_cells**3 + 8 * mesh_cells**2 * (mesh_cells // 2 + 1)


class _Simulation:
    """The state of a run: ``T[x_res] = v + c1 psi1 + c2 psi2``, with v from mesh forces alone."""

    def __init__(
        self,
        operators: Operators,
        psi1: Tensor,
        psi2: Tensor,
        box_size: float,
        mesh_cells: int,
        *,
        compensate: bool,
    ) -> None:
        self._operators = operators
        self._psi1, self._psi2 = psi1, psi2
        self._c1 = self._c2 = 0.0
        self._box_size = box_size
        self._mesh_cells = mesh_cells
        self._window = CIC_WINDOW if compensate else 0
        self._differences = compensate and mesh_cells > _cells(psi1, psi2)

    def run(
        self, legs: list[list[float]], progress: Callable[[int, int], None] | None
    ) -> Iterator[Snapshot]:
        """Move the particles along all legs, with a snapshot at the end of each."""
        growth = self._operators.background
        a = legs[0][0]
        self._x = lpt.lattice_positions(
            _cells(self._psi1, self._psi2), self._box_size, device=self._psi1.device
        )
        _add(self._x, (self._psi1, growth.growth(a)), (self._psi2, growth.growth2(a)))
        self._v = fourier.empty(tuple(self._x.shape), device=self._x.device).zero_()
        done, total = 0, sum(len(times) // 2 for times in legs)
        for times in legs:
            # The meshes are freed before a snapshot is written, which needs memory too.
            meshes = self._make_meshes()
            self._kick(times[0], times[1], times[0], meshes)
            for half in range(1, len(times), 2):
                start, centre, end = times[half - 1 : half + 2]
                self._drift(start, end, centre)
                # The last kick closes the leg at its output, where velocity and position meet.
                after = times[half + 2] if half + 2 < len(times) else end
                self._kick(centre, after, end, meshes)
                done += 1
                if progress is not None:
                    progress(done, total)
            del meshes
            yield self._snapshot(times[-1])

    def _make_meshes(self) -> tuple[Tensor, Tensor]:
        n, device = self._mesh_cells, self._x.device
        density = fourier.empty((n, n, n), device=device)
        return density, fourier.empty((n, n, n // 2 + 1), complex_modes=True, device=device)

    def _kick(self, start: float, end: float, centre: float, meshes: tuple[Tensor, Tensor]) -> None:
        """Accelerate from ``start`` to ``end`` by the forces at ``centre``, the positions' time."""
        density, work = meshes
        kick = self._operators.kick(start, end, centre)
        scale = kick * self._operators.gravity(centre)
        mesh.paint_contrast(self._x, self._box_size, self._mesh_cells, out=density, scratch=work)
        for axis, force in fourier.inverse_gradient(
            density,
            self._box_size,
            work=work,
            window=self._window,
            differences=self._differences,
        ):
            mesh.interpolate(
                force, self._x, self._box_size, self._v[:, axis], scale=scale, accumulate=True
            )
        known1, known2 = self._operators.accelerations(centre)
        self._c1 -= kick * known1
        self._c2 -= kick * known2

    def _drift(self, start: float, end: float, centre: float) -> None:
        """Move from ``start`` to ``end`` with the velocities at ``centre``."""
        growth = self._operators.background
        drift = self._operators.drift(start, end, centre)
        _add(
            self._x,
            (self._v, drift),
            (self._psi1, drift * self._c1 + growth.growth(end) - growth.growth(start)),
            (self._psi2, drift * self._c2 + growth.growth2(end) - growth.growth2(start)),
        )

    def _snapshot(self, a: float) -> Snapshot:
        momentum1, momentum2 = self._operators.momenta(a)
        unit = H0_KM_S_PER_MPC_H / a
        flows = (
            (self._v, unit),
            (self._psi1, unit * (self._c1 + momentum1)),
            (self._psi2, unit * (self._c2 + momentum2)),
        )
        return Snapshot(a, self._box_size, self._x, flows)


def _add(total: Tensor, *terms: tuple[Tensor, float]) -> None:
    """Add the terms (tensor, factor) to ``total`` block by block, reading and writing it once."""
    flat = total.view(-1)
    step = BLOCK if flat.device.type == "cpu" else flat.numel()
    for start in range(0, flat.numel(), step):
        block = flat[start : start + step]
        for tensor, factor in terms:
            block.add_(tensor.view(-1)[start : start + step], alpha=factor)


def _wrap(x: Tensor, box_size: float) -> None:
    """Bring positions into [0, L) in place."""
    flat = x.view(-1)
    edge = torch.tensor(box_size, dtype=torch.float32)
    for start in range(0, flat.numel(), BLOCK):
        block = flat[start : start + BLOCK]
        block.remainder_(box_size)
        # A tiny negative number plus L rounds to L, which is the same position as 0.
        block[block >= float(edge)] = 0.0


def _cells(psi1: Tensor, psi2: Tensor) -> int:
    """Return the particles per axis of the displaced lattice."""
    cells: int = round(math.cbrt(psi1.shape[0]))
    for psi in (psi1, psi2):
        if tuple(psi.shape) != (cells**3, 3) or psi.dtype != torch.float32:
            raise ConfigError(
                "These are not displacements of a cubic lattice.",
                value=f"{psi.dtype} {tuple(psi.shape)}",
                limit=f"torch.float32 {(cells**3, 3)}",
            )
    return cells
