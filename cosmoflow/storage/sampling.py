"""Sampling of the cells by the particles: an attribute of every fields store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

BACKGROUND: Final = "background"
"""The fill of Wu et al. (2021): the mean momentum over the mean density of the box."""
NEAREST: Final = "nearest"
"""The fill with the velocity of the particle nearest to the cell's centre."""
MODEL: Final = "model"
"""The fill of predictions: a model predicts a velocity for every cell."""
UNKNOWN: Final = "unknown"
"""The fill of stores that do not name one."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Number of particles in the cells, and the fill of empty cells.

    Parameters
    ----------
    particles_per_cell : float or None
        Mean number of particles; None if it is not known.
    empty_share : float
        Share of cells whose density is zero, 0 to 1.
    fill : str
        Source of the velocity in empty cells: ``background``, ``nearest``, ``model`` or
        ``unknown``.
    unfilled_share : float
        Share of cells, 0 to 1, that the fill ``nearest`` did not reach and that have the
        background.
    equal_masses : bool or None
        Whether the particles were painted with one mass, so that the density times
        ``particles_per_cell`` is their number; None if it is not known.
    stated : bool
        Whether a user stated ``particles_per_cell``, of a density that does not tell it.
    """

    particles_per_cell: float | None
    empty_share: float
    fill: str
    unfilled_share: float = 0.0
    equal_masses: bool | None = None
    stated: bool = False

    def to_attribute(self) -> dict[str, Any]:
        """Return the group attribute ``sampling``."""
        said = asdict(self)
        # Written only if it is not 0, if it is known, and if it is true.
        if not self.unfilled_share:
            del said["unfilled_share"]
        if self.equal_masses is None:
            del said["equal_masses"]
        if not self.stated:
            del said["stated"]
        return said

    @classmethod
    def from_attribute(cls, found: Any) -> Self:
        """Read the attribute back.

        Raises
        ------
        ValueError
            The attribute is invalid.
        """
        if not isinstance(found, Mapping) or "empty_share" not in found:
            raise ValueError(f"sampling {found!r} is not a mapping with an empty_share")
        count, share = found.get("particles_per_cell"), float(found["empty_share"])
        count = None if count is None else float(count)
        unfilled = float(found.get("unfilled_share", 0.0))
        shares_fit = 0.0 <= unfilled <= 1.0 and 0.0 <= share <= 1.0
        if not shares_fit or (count is not None and not 0.0 < count < math.inf):
            raise ValueError(f"sampling {dict(found)} holds numbers that cannot be")
        equal = found.get("equal_masses")
        if equal not in (None, True, False):
            raise ValueError(f"equal_masses {equal!r} is neither true nor false")
        fill, stated = str(found.get("fill", UNKNOWN)), bool(found.get("stated", False))
        return cls(count, share, fill, unfilled, equal, stated)
