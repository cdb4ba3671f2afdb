"""Computation of fields from other fields, in cells by differences or in modes.

:mod:`cosmoflow.numerics.field_table` describes the fields under the same names. A spectrum takes
two steps: the cells give the real field to transform, and its modes give the modes of the
quantity. Quantities that share the first step share one transform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from cosmoflow.numerics import calculus, deformation
from cosmoflow.numerics.calculus import Differentiate, Waves
from cosmoflow.numerics.field_table import FIELDS

Values = Mapping[str, Tensor]
"""Density over its mean ``(nx, ny, nz)`` and velocity ``(3, nx, ny, nz)``, km/s, by name."""

CellRule = Callable[[Values, Differentiate], Tensor]
"""Function from the values of a block and a rule to differentiate them to the field."""

ModeRule = Callable[[Tensor, Waves], Tensor]
"""Function of modes and the wavenumbers along each axis, Nyquist set to zero."""


@dataclass(frozen=True)
class Quantity:
    """Rules to compute a field.

    Attributes
    ----------
    name : str
        Name in :data:`cosmoflow.numerics.field_table.FIELDS`.
    cells : callable
        Function from the inputs and a rule to differentiate them to the field.
    working : int
        Numbers per cell that ``cells`` needs in memory in addition to the inputs.
    field : str
        Field to transform for the modes of this one.
    derive : callable, optional
        Function from the modes of ``field`` to those of this field; None if they are the same.
    tensor : callable, optional
        Replaces ``derive`` for a field of eigenvalues: function from the modes of ``field`` to the
        modes of the symmetric tensor, one component at a time.
    """

    name: str
    cells: CellRule
    working: int
    field: str
    derive: ModeRule | None = None
    tensor: Callable[[Tensor, Waves], Iterable[Tensor]] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Variables from which the field is made."""
        return FIELDS[self.name].inputs or (self.name,)

    @property
    def components(self) -> int:
        """Numbers in each cell."""
        return FIELDS[self.name].parts

    @property
    def halo(self) -> int:
        """Cells around a block that :meth:`make` needs."""
        return FIELDS[self.name].halo

    @property
    def linear(self) -> bool:
        """Whether the field is a sum over particles."""
        return FIELDS[self.name].linear

    @property
    def products(self) -> int:
        """Number of fields whose modes :meth:`multiply` yields."""
        return self.components if self.tensor is None else len(deformation.PAIRS)

    def make(self, values: Values, cell: float) -> Tensor:
        """Return the field in a block by differences.

        Parameters
        ----------
        values : mapping of str to Tensor
            Inputs with a halo of ``halo`` cells around the block.
        cell : float
            Side of a cell, Mpc/h.

        Returns
        -------
        Tensor
            Shape ``(nx, ny, nz)``, or ``(components, nx, ny, nz)``.
        """
        return self.cells(values, partial(calculus.inner_difference, cell=cell))

    def multiply(self, modes: Tensor, waves: Waves) -> Iterable[Tensor]:
        """Return the modes of the products that :meth:`finish` needs, from those of ``field``."""
        if self.tensor is not None:
            return self.tensor(modes, waves)
        found = modes if self.derive is None else self.derive(modes, waves)
        return (found,) if self.components == 1 else found

    def finish(self, products: Tensor) -> Tensor:
        """Return the field ``(components, ...)`` from the products in real space."""
        return products if self.tensor is None else _eigenvalues(products)


def magnitude(v: Tensor) -> Tensor:
    """Return ``|v|`` of a vector field ``(3, ...)``."""
    # torch.linalg.vector_norm over a leading axis is thirty times slower (torch 2.13, CPU).
    x, y, z = v.unbind(0)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


def _momentum(values: Values) -> Tensor:
    return values["velocity"] * values["density"]


def _momentum_curl(values: Values, differentiate: Differentiate) -> Tensor:
    return calculus.cell_curl(_momentum(values), differentiate)


def _eigenvalues(tensor: Tensor) -> Tensor:
    return torch.from_numpy(deformation.symmetric_eigenvalues(tensor.numpy()))


QUANTITIES: Final = {
    one.name: one
    for one in (
        Quantity("velocity", lambda values, d: values["velocity"], 0, "velocity"),
        # A large mean would add rounding to the transform of the fluctuations.
        Quantity("contrast", lambda values, d: values["density"] - 1.0, 1, "contrast"),
        Quantity("momentum", lambda values, d: _momentum(values), 3, "momentum"),
        Quantity("speed", lambda values, d: magnitude(values["velocity"]), 3, "speed"),
        Quantity(
            "momentum_speed",
            lambda values, d: magnitude(values["velocity"]).mul_(values["density"] - 1.0),
            4,
            "momentum_speed",
        ),
        Quantity("theta_p", lambda values, d: magnitude(_momentum_curl(values, d)), 12, "theta_p"),
        Quantity(
            "divergence",
            lambda values, d: calculus.cell_divergence(values["velocity"], d),
            3,
            "velocity",
            calculus.divergence_modes,
        ),
        Quantity(
            "vorticity",
            lambda values, d: calculus.cell_curl(values["velocity"], d),
            6,
            "velocity",
            calculus.curl_modes,
        ),
        Quantity(
            "velocity_shear",
            lambda values, d: _eigenvalues(deformation.cell_strain(values["velocity"], d)),
            12,
            "velocity",
            tensor=deformation.strain_modes,
        ),
        Quantity("momentum_curl", _momentum_curl, 9, "momentum", calculus.curl_modes),
    )
}


def wrap(lines: Tensor, halo: int) -> Tensor:
    """Return whole lines ``(..., a, b, n)`` with a periodic halo along z."""
    if not halo:
        return lines
    return torch.cat([lines[..., -halo:], lines, lines[..., :halo]], dim=-1)
