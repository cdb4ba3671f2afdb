"""Ticks of logarithmic axes: few, at round values, with labels in plain text.

matplotlib's own ticks of such axes take most of the time of a figure: its locators run again at
every measurement, and every label is a formula, which is parsed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MOST: Final = 5
"""Most powers of ten that an axis has ticks at."""
_RAISED: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN: Final = (0.01, 10_000.0)
"""Values from the first up to the second are written as decimal numbers."""


def tidy(axes: Axes) -> None:
    """Put ticks at round values where an axis is logarithmic and its ticks are not fixed yet."""
    from matplotlib.ticker import FixedLocator

    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_locator(), FixedLocator):
            continue
        low, high = sorted(float(end) for end in axis.get_view_interval())
        if axis.get_scale() == "log":
            set_ticks(axis, round_values(low, high))
        elif axis.get_scale() == "symlog":
            set_ticks(axis, _around_zero(high))


def set_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Put ticks at values, without minor ones."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FixedFormatter(labels(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def round_values(low: float, high: float) -> list[float]:
    """Return round values between two values: powers of ten if there are three, else others too.

    Where the labels are powers, which are long, two powers of ten are enough.
    """
    found: list[float] = []
    if not 0.0 < low < high < math.inf:
        return found
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        every = [step * 10.0**decade for decade in decades for step in steps]
        found = [value for value in every if low <= value <= high]
        if len(found) > (2 if _are_plain(found) else 1):
            break
    return found[:: -(-len(found) // MOST)] if steps == (1.0,) else found


def labels(values: Sequence[float]) -> list[str]:
    """Return the labels of values, all decimal or all powers of ten where some are far from 1."""
    plain = _are_plain(values)
    return [_label(value, plain=plain) for value in values]


def _are_plain(values: Sequence[float]) -> bool:
    """Return whether all values are written as decimal numbers."""
    return all(_PLAIN[0] <= abs(value) < _PLAIN[1] for value in values if value)


def _label(value: float, *, plain: bool) -> str:
    sign, size = "−" if value < 0.0 else "", abs(value)
    if plain or size in (0.0, 1.0):
        return f"{sign}{size:g}"
    exponent = math.floor(math.log10(size) + 1e-9)
    factor = f"{size / 10.0**exponent:g}"
    raised = f"10{str(exponent).translate(_RAISED)}"
    return sign + (raised if factor == "1" else f"{factor}×{raised}")


def _around_zero(high: float) -> list[float]:
    """Return zero and the two largest powers of ten on both sides of it."""
    exponent = math.floor(math.log10(max(high, 1e-30)))
    sizes = [10.0**exponent, 10.0 ** (exponent - 1)]
    return [-sizes[0], -sizes[1], 0.0, sizes[1], sizes[0]]
