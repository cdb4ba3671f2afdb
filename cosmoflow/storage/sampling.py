"""How well the particles sample the cells of painted fields: an attribute of every fields store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

BACKGROUND: Final = "background"
"""The fill of Wu et al. (2021): the mean momentum over the mean density of the box."""
NEAREST: Final = "nearest"
"""The velocity of the particle that is nearest to the cell's centre."""
MODEL: Final = "model"
"""The fill of predictions: a model gives every cell a velocity of its own."""
UNKNOWN: Final = "unknown"
"""The fill of stores that do not say how the velocity of empty cells was made."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many particles the cells have, and what becomes of cells that have none.

    Parameters
    ----------
    particles_per_cell : float or None
        Mean number; None where it is not known.
    empty_share : float
        Share of cells whose density is zero, 0 to 1.
    fill : str
        How the velocity of those was made: ``background``, ``nearest``, ``model`` or ``unknown``.
    unfilled_share : float
        Share of cells, 0 to 1, that the fill ``nearest`` did not reach: they keep the background.
    """

    particles_per_cell: float | None
    empty_share: float
    fill: str
    unfilled_share: float = 0.0

    def to_attribute(self) -> dict[str, Any]:
        """Return the group attribute ``sampling``."""
        said = asdict(self)
        # Written where there is something to say.
        if not self.unfilled_share:
            del said["unfilled_share"]
        return said

    @classmethod
    def from_attribute(cls, found: Any) -> Self:
        """Read the attribute back.

        Raises
        ------
        ValueError
            It makes no sense.
        """
        if not isinstance(found, Mapping) or "empty_share" not in found:
            raise ValueError(f"sampling {found!r} is not a mapping with an empty_share")
        count, share = found.get("particles_per_cell"), float(found["empty_share"])
        count = None if count is None else float(count)
        unfilled = float(found.get("unfilled_share", 0.0))
        shares_fit = 0.0 <= unfilled <= 1.0 and 0.0 <= share <= 1.0
        if not shares_fit or (count is not None and not 0.0 < count < math.inf):
            raise ValueError(f"sampling {dict(found)} holds numbers that cannot be")
        return cls(count, share, str(found.get("fill", UNKNOWN)), unfilled)
