"""Table of fields with their units, components and inputs. Nothing here loads torch.

:mod:`cosmoflow.numerics.quantities` defines the computation of a field under the same name. A new
field needs a row here and a rule there. Commands list the fields that they offer: ``derive`` in
``stages/derive/recipes.py``, ``infer`` in ``config/settings.py`` (``Derivable``), ``spectra`` in
``stages/spectra/fields.py``, and ``evaluate`` in ``numerics/comparison/power.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from cosmoflow.units import (
    COMPONENTS,
    DIMENSIONLESS,
    DIVERGENCE,
    EIGENVALUES,
    INTERLACED,
    LENGTH,
    SMOOTHED,
    VELOCITY,
)

LABELS: Final[dict[str, Sequence[str | int]]] = {
    "component": COMPONENTS,
    "eigenvalue": EIGENVALUES,
}
"""Dimensions that a field may have before x, y and z, with their labels."""


SPREAD: Final = "_spread"
"""Ending of the name of a spread of predictions."""
ERROR: Final = "_std"
"""Ending of the name of an expected error."""


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field.

    Parameters
    ----------
    name : str
        Name in stores and on the command line.
    unit : str
        Unit.
    long_name : str
        Description in a store; empty for fields that are never stored.
    lead : str, optional
        Leading dimension, one of :data:`LABELS`; None for a scalar.
    inputs : tuple of str
        Variables from which the field is made; empty for a field that is only read.
    halo : int
        Cells around a block that differences need: 1 for derivatives, else 0.
    linear : bool
        Whether the field is a sum over particles, and so damped by their mass-assignment window.
    filled : bool
        Whether the field depends on the velocity of cells without mass. Momenta do not: they are
        zero in such cells.
    definition : str
        Definition reported with spectra in an evaluation.
    base : str
        The field without the smoothing; empty for a field that is not smoothed.
    """

    name: str
    unit: str
    long_name: str = ""
    lead: str | None = None
    inputs: tuple[str, ...] = ()
    halo: int = 0
    linear: bool = False
    filled: bool = False
    definition: str = ""
    base: str = ""

    @property
    def parts(self) -> int:
        """Numbers in each cell."""
        return 1 if self.lead is None else len(LABELS[self.lead])

    @property
    def slopes(self) -> bool:
        """Whether the field takes derivatives, which need neighbouring cells."""
        return self.halo > 0

    @property
    def smoothed(self) -> bool:
        """Whether the inputs are Gaussian-smoothed first."""
        return bool(self.base)


_BOTH: Final = ("density", "velocity")
_vector = partial(FieldRow, unit=VELOCITY, lead="component")
_slope = partial(FieldRow, unit=DIVERGENCE, inputs=("velocity",), halo=1, filled=True)

_STORED: Final = (
    FieldRow("density", DIMENSIONLESS, "matter density over its mean", linear=True),
    _vector(
        "momentum",
        long_name="matter momentum (1 + delta) v",
        inputs=_BOTH,
        linear=True,
        definition="p = rho v, summed over components; rho over its mean",
    ),
    _vector("velocity", long_name="peculiar velocity", filled=True),
    *(
        _vector(f"{name}{suffix}", long_name=f"{meaning} of {name}")
        for name in ("velocity", "momentum")
        for suffix, meaning in (
            (SPREAD, "spread of the predictions"),
            (ERROR, "expected error"),
        )
    ),
    _vector("linear_velocity", long_name="linear-theory velocity"),
    _vector("restored_velocity", long_name="velocity, power restored"),
    _vector("wiener_velocity", long_name="Wiener-filtered velocity"),
    FieldRow(
        "count",
        DIMENSIONLESS,
        "number of particles",
        inputs=("density",),
        linear=True,
    ),
    FieldRow("interlaced_density", DIMENSIONLESS, "density, half a cell back"),
    _vector("interlaced_momentum", long_name="momentum, half a cell back"),
    _slope(
        "divergence",
        long_name="velocity divergence",
        definition="theta = div v, spectral derivatives",
    ),
    _slope(
        "vorticity",
        long_name="velocity curl",
        lead="component",
        definition="curl v, summed over components, spectral derivatives",
    ),
    _slope(
        "velocity_shear",
        long_name="eigenvalue of the velocity shear",
        lead="eigenvalue",
    ),
    FieldRow("linear_density", DIMENSIONLESS, "linear density contrast at z = 0"),
    FieldRow("displacement", LENGTH, "first-order displacement at z = 0", "component"),
)

_MEASURED: Final = (
    FieldRow("contrast", DIMENSIONLESS, inputs=("density",), linear=True),
    FieldRow("speed", VELOCITY, inputs=("velocity",), filled=True, definition="|v|"),
    # The paper calls this scalar the momentum; here the momentum is the vector.
    FieldRow(
        "momentum_speed",
        VELOCITY,
        inputs=_BOTH,
        filled=True,
        definition="p = |v| delta, a scalar",
    ),
    FieldRow(
        "theta_p",
        DIVERGENCE,
        inputs=_BOTH,
        halo=1,
        definition="Theta_p = |curl(rho v)|, a scalar; rho over its mean, finite differences",
    ),
    FieldRow(
        "momentum_curl",
        DIVERGENCE,
        lead="component",
        inputs=_BOTH,
        halo=1,
        linear=True,
        definition="curl(rho v), summed over components, spectral derivatives",
    ),
)
"""Fields that are measured in spectra but never stored."""

# Not smoothed: a linear velocity, which is smoothed at any radius already; an interlaced grid,
# which is for spectra; a standard deviation, which does not commute with smoothing.
_SMOOTHED: Final = tuple(
    replace(
        row,
        name=f"{SMOOTHED}{row.name}",
        long_name=f"{row.long_name}, smoothed",
        inputs=row.inputs if row.slopes else (row.name,),
        linear=False,
        base=row.name,
    )
    for row in _STORED
    if row.name != "linear_velocity"
    and not row.name.startswith(INTERLACED)
    and not row.name.endswith((SPREAD, ERROR))
)

STORED: Final = {row.name: row for row in (*_STORED, *_SMOOTHED)}
"""Fields that a store may hold, by name."""

FIELDS: Final = STORED | {row.name: row for row in _MEASURED}
"""All fields, by name."""
