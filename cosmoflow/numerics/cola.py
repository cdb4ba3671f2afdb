"""COLA: N-body particles that move in the frame of second-order Lagrangian perturbation theory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor

from cosmoflow.errors import ConfigError
from cosmoflow.numerics import fourier, lpt, mesh
from cosmoflow.units import H0_KM_S_PER_MPC_H

N_LPT = -2.5
"""Exponent of the ansatz ``u = a^n`` for the residual velocity (Tassev et al. 2013)."""

BLOCK = 1 << 18
"""Numbers updated at once: a block of the positions stays in the cache over its three sums."""


class Growth(Protocol):
    """The cosmology that COLA needs; see ``cosmology.Background`` for the conventions."""

    @property
    def Omega_m(self) -> float:  # noqa: N802 - the field's standard symbol
        """Matter density today."""

    def hubble_ratio(self, a: float, /) -> float:
        """Return ``H / H0``."""

    def growth(self, a: float, /) -> float:
        """Return ``D1``, 1 today."""

    def growth2(self, a: float, /) -> float:
        """Return ``D2``."""

    def growth_rate(self, a: float, /) -> float:
        """Return ``dln D1 / dln a``."""

    def growth_rate2(self, a: float, /) -> float:
        """Return ``dln D2 / dln a``."""


@dataclass(frozen=True)
class Snapshot:
    """Particles at one time, in Lagrangian order (C order of their lattice).

    Parameters
    ----------
    position : Tensor
        Shape ``(n, 3)``, float32, comoving Mpc/h, in [0, L).
    velocity : Tensor
        Shape ``(n, 3)``, float32, peculiar, km/s.
    scale_factor : float
    """

    position: Tensor
    velocity: Tensor
    scale_factor: float


@dataclass(frozen=True)
class _Operators:
    """The time integrals of Tassev et al. 2013, in units of H0 = 1 and ``T = Q d/da``."""

    background: Growth

    def friction(self, a: float) -> float:
        """Return ``Q = a^3 E``."""
        return a**3 * self.background.hubble_ratio(a)

    def gravity(self, a: float) -> float:
        """Return ``3/2 Omega_m a``, the factor of the inverse gradient of the contrast."""
        return 1.5 * self.background.Omega_m * a

    def momenta(self, a: float) -> tuple[float, float]:
        """Return ``T[D1]`` and ``T[D2]``."""
        b = self.background
        rate = a**2 * b.hubble_ratio(a)
        return rate * b.growth_rate(a) * b.growth(a), rate * b.growth_rate2(a) * b.growth2(a)

    def accelerations(self, a: float) -> tuple[float, float]:
        """Return ``T^2[D1]`` and ``T^2[D2]``, from the growth equations."""
        first, second = self.background.growth(a), self.background.growth2(a)
        return self.gravity(a) * first, self.gravity(a) * (second - first**2)

    def drift(self, start: float, end: float, centre: float) -> float:
        """Return ``1/u(a_c) int u / Q da`` (their eq. A15)."""
        integral, _ = quad(lambda a: a**N_LPT / self.friction(a), start, end, epsrel=1e-9)
        return float(integral / centre**N_LPT)

    def kick(self, start: float, end: float, centre: float) -> float:
        """Return ``(u(a_f) - u(a_i)) / (Q(a_c) u'(a_c))`` (their eq. A15)."""
        slope = N_LPT * centre ** (N_LPT - 1.0)
        return float((end**N_LPT - start**N_LPT) / (self.friction(centre) * slope))


def simulate(
    background: Growth,
    modes: Tensor,
    *,
    cells: int,
    box_size: float,
    steps: int = 15,
    a_start: float = 0.1,
    a_final: float = 1.0,
    mesh_factor: int = 1,
    method: Literal["cola", "2lpt"] = "cola",
    spacing: Literal["linear", "log"] = "linear",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Snapshot:
    """Evolve a lattice of particles from a linear density to a scale factor.

    Parameters
    ----------
    background : Growth
        Expansion and growth, such as ``cosmology.background.Background``.
    modes : Tensor
        Shape ``(n, n, n // 2 + 1)``, complex64: modes of the linear contrast today, as
        ``initial.linear_density_modes`` makes them. They are copied, not changed; a caller that
        does not keep them saves their memory.
    cells : int
        Particles per axis, n.
    box_size : float
        Mpc/h.
    steps : int
        Steps of equal length from ``a_start`` to ``a_final``.
    a_start, a_final : float
        Scale factors of the 2LPT start and of the output.
    mesh_factor : int
        Cells of the force mesh per particle and axis, 1 to 4.
    method : {'cola', '2lpt'}
        '2lpt' only displaces, straight to ``a_final``.
    spacing : {'linear', 'log'}
        Whether steps are equal in a or in ln a.
    device : torch.device or str
        Where to compute, and where the result lies.
    progress : callable, optional
        Called with (steps done, steps) after each.

    Returns
    -------
    Snapshot

    Notes
    -----
    Residual displacements obey ``T^2[x_res] = F - T^2[D1] psi1 - T^2[D2] psi2`` with the
    particle-mesh force ``F = -3/2 Omega_m a grad lap^-1 delta``. Leapfrog: velocities live at half
    steps, half a kick opens and closes the run, so there are ``steps + 1`` forces and position and
    velocity come out at the same time.

    The two known terms are the same two vectors at every kick. What accumulates of them is two
    numbers, so a kick touches nothing but the velocity and the drift adds the psi with the sums.

    References
    ----------
    Tassev, Zaldarriaga & Eisenstein 2013 (arXiv:1301.0322), section 4.3 and appendix A.
    """
    _validate(modes, cells, steps, a_start, a_final, mesh_factor)
    operators = _Operators(background)
    psi1, psi2 = lpt.displacements(modes.to(device=device, copy=True), box_size)
    del modes
    x = lpt.lattice_positions(cells, box_size, device=device)
    a = a_final if method == "2lpt" else a_start
    _add(x, (psi1, background.growth(a)), (psi2, background.growth2(a)))
    if method == "2lpt":
        velocity = psi1
        velocity *= operators.momenta(a)[0]
        _add(velocity, (psi2, operators.momenta(a)[1]))
    else:
        velocity, first, second = _integrate(
            operators, x, psi1, psi2, cells * mesh_factor, box_size,
            scale_factors(steps, a_start, a_final, spacing), progress,
        )  # fmt: skip
        momentum1, momentum2 = operators.momenta(a_final)
        _add(velocity, (psi1, first + momentum1), (psi2, second + momentum2))
    velocity *= H0_KM_S_PER_MPC_H / a_final
    _wrap(x, box_size)
    return Snapshot(x, velocity, a_final)


def scale_factors(
    steps: int, a_start: float, a_final: float, spacing: Literal["linear", "log"] = "linear"
) -> list[float]:
    """Return the ``2 steps + 1`` scale factors of whole and half steps."""
    if spacing == "log":
        times = np.geomspace(a_start, a_final, 2 * steps + 1)
    else:
        times = np.linspace(a_start, a_final, 2 * steps + 1)
    return [float(a) for a in times]


def peak_bytes(cells: int, mesh_factor: int = 1) -> int:
    """Return the projected peak memory of :func:`simulate` in bytes, the interpreter's aside.

    Positions, velocities and two displacements (48 bytes a particle) live with the density mesh and
    its modes, whose memory also takes the sorted indices of the particles. The modes that a caller
    keeps, and CUDA's temporaries, come on top.
    """
    mesh_cells = cells * mesh_factor
    return 48 * cells**3 + 4 * mesh_cells**3 + 8 * mesh_cells**2 * (mesh_cells // 2 + 1)


def _integrate(
    operators: _Operators,
    x: Tensor,
    psi1: Tensor,
    psi2: Tensor,
    mesh_cells: int,
    box_size: float,
    times: list[float],
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, float, float]:
    """Move ``x`` through all steps; return the residual velocity as (v, c1, c2).

    The residual is ``T[x_res] = v + c1 psi1 + c2 psi2``; v holds the mesh forces alone.
    """
    v = fourier.empty(tuple(x.shape), device=x.device).zero_()
    c1 = c2 = 0.0
    density = fourier.empty((mesh_cells,) * 3, device=x.device)
    work_shape = (mesh_cells, mesh_cells, mesh_cells // 2 + 1)
    work = fourier.empty(work_shape, complex_modes=True, device=x.device)
    steps = len(times) // 2
    for step in range(steps + 1):
        now = 2 * step
        before, after = times[max(now - 1, 0)], times[min(now + 1, 2 * steps)]
        a = times[now]
        kick = operators.kick(before, after, a)
        mesh.paint_contrast(x, box_size, mesh_cells, out=density, scratch=work)
        for axis, force in fourier.inverse_gradient(density, box_size, work=work):
            mesh.interpolate(
                force, x, box_size, v[:, axis],
                scale=kick * operators.gravity(a), accumulate=True,
            )  # fmt: skip
        known1, known2 = operators.accelerations(a)
        c1 -= kick * known1
        c2 -= kick * known2
        if step < steps:
            end = times[now + 2]
            drift = operators.drift(a, end, after)
            b = operators.background
            _add(
                x,
                (v, drift),
                (psi1, drift * c1 + b.growth(end) - b.growth(a)),
                (psi2, drift * c2 + b.growth2(end) - b.growth2(a)),
            )
            if progress is not None:
                progress(step + 1, steps)
    return v, c1, c2


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
        # A tiny negative number plus L rounds to L itself, which is the same place as 0.
        block[block >= float(edge)] = 0.0


def _validate(
    modes: Tensor, cells: int, steps: int, a_start: float, a_final: float, mesh_factor: int
) -> None:
    if tuple(modes.shape) != (cells, cells, cells // 2 + 1) or modes.dtype != torch.complex64:
        raise ConfigError(
            "The initial modes do not fit the lattice of particles.",
            value=f"{modes.dtype} {tuple(modes.shape)}",
            limit=f"torch.complex64 {(cells, cells, cells // 2 + 1)}",
        )
    if steps < 1:
        raise ConfigError("A simulation takes one step at least.", where="steps", value=steps)
    if not 0.0 < a_start < a_final:
        raise ConfigError(
            "A simulation must start before it ends.",
            where="a_start, a_final",
            value=f"{a_start}, {a_final}",
            limit="0 < a_start < a_final",
        )
    if mesh_factor not in (1, 2, 3, 4):
        raise ConfigError(
            "The force mesh is a small multiple of the lattice.",
            where="mesh_factor",
            value=mesh_factor,
            limit="1, 2, 3 or 4",
        )
