"""What spectra are taken of: fields that follow from density and velocity.

A quantity is made in two steps: from the cells of some planes, the real field that is transformed;
from the modes, the quantity's own. Quantities with the first step in common share one transform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cosmoflow.numerics import calculus

Values = Mapping[str, Tensor]
"""Density over its mean ``(nx, ny, nz)`` and velocity ``(3, nx, ny, nz)``, km/s, by name."""

CellRule = Callable[[Values, float], Tensor]
"""From the values of a block, with the rule's halo, and the side of a cell, Mpc/h."""

ModeRule = Callable[[Tensor, calculus.Waves], Tensor]
"""From modes and the wavenumbers along each axis, Nyquist set to zero."""


@dataclass(frozen=True)
class Field:
    """A real field of which the modes are taken.

    Attributes
    ----------
    reads : tuple of str
        Of ``density`` and ``velocity``.
    components : int
        1, or 3 of a vector.
    halo : int
        Cells around a block that the rule needs.
    make : callable
        Returns ``(nx, ny, nz)``, or ``(3, nx, ny, nz)`` of a vector, without the halo.
    working : int
        Numbers a cell takes while it is made, beside what is read.
    """

    reads: tuple[str, ...]
    components: int
    halo: int
    make: CellRule
    working: int


@dataclass(frozen=True)
class Quantity:
    """What a spectrum is of.

    Attributes
    ----------
    definition : str
        For people.
    field : str
        Which of :data:`FIELDS` is transformed.
    derive : callable, optional
        What makes the quantity's modes of the field's.
    linear : bool
        Whether it is a sum over particles, and so damped by the window that they were painted with.
    """

    definition: str
    field: str
    derive: ModeRule | None = None
    linear: bool = False


def magnitude(v: Tensor) -> Tensor:
    """Return ``|v|`` of a vector field ``(3, ...)``."""
    # torch.linalg.vector_norm over a leading axis is thirty times slower (torch 2.13, CPU).
    x, y, z = v.unbind(0)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


def _speed(values: Values, cell: float) -> Tensor:
    return magnitude(values["velocity"])


def _momentum(values: Values, cell: float) -> Tensor:
    return _speed(values, cell).mul_(values["density"] - 1.0)


def _velocity(values: Values, cell: float) -> Tensor:
    return values["velocity"]


def _momentum_vector(values: Values, cell: float) -> Tensor:
    return values["velocity"] * values["density"]


def _theta_p(values: Values, cell: float) -> Tensor:
    return magnitude(calculus.inner_curl(_momentum_vector(values, cell), cell))


def _divergence(modes: Tensor, waves: calculus.Waves) -> Tensor:
    return calculus.divergence_modes(modes, 0.0, waves)


def _curl(modes: Tensor, waves: calculus.Waves) -> Tensor:
    return calculus.curl_modes(modes, 0.0, waves)


FIELDS: Final[dict[str, Field]] = {
    "speed": Field(("velocity",), 1, 0, _speed, 3),
    "momentum": Field(("density", "velocity"), 1, 0, _momentum, 4),
    "theta_p": Field(("density", "velocity"), 1, 1, _theta_p, 12),
    "velocity": Field(("velocity",), 3, 0, _velocity, 0),
    "momentum_vector": Field(("density", "velocity"), 3, 0, _momentum_vector, 3),
}

QUANTITIES: Final[dict[str, Quantity]] = {
    "speed": Quantity("|v|", "speed"),
    "divergence": Quantity("theta = div v, spectral derivatives", "velocity", _divergence),
    "momentum": Quantity("p = |v| delta, a scalar", "momentum"),
    "theta_p": Quantity(
        "Theta_p = |curl(rho v)|, a scalar; rho over its mean, finite differences", "theta_p"
    ),
    "vorticity": Quantity(
        "curl v, summed over components, spectral derivatives", "velocity", _curl
    ),
    "momentum_vector": Quantity(
        "p = rho v, summed over components; rho over its mean", "momentum_vector", linear=True
    ),
    "momentum_curl_vector": Quantity(
        "curl(rho v), summed over components, spectral derivatives",
        "momentum_vector",
        _curl,
        linear=True,
    ),
}
"""The four of the paper's section 4.2, and the vectors that the science uses beside them."""


def wrap(planes: Tensor, halo: int) -> Tensor:
    """Return whole planes ``(..., nx, n, n)`` with a periodic halo along y and z."""
    if not halo:
        return planes
    for axis in (-2, -1):
        size = planes.shape[axis]
        ends = planes.narrow(axis, size - halo, halo), planes.narrow(axis, 0, halo)
        planes = torch.cat([ends[0], planes, ends[1]], dim=axis)
    return planes
