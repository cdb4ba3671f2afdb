"""Which method is a network and which a baseline, and how each is drawn everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.units import VELOCITY, format_difference, is_less

PAPER_BASELINE: Final = "linear theory"
"""The paper's baseline, of the unsmoothed density; names of smoothed ones start with it too."""

_FILTER: Final = re.compile(r"wiener(-linear|-log)?(?![\w-])")
_LINEAR: Final = re.compile(r"linear(?![\w-])")
"""First words of the names of Wiener filters and of linear theory; ``wiener-plus`` is a network."""

TRUTH_COLOUR: Final = "#6b6b6b"
# Okabe and Ito's palette, which readers with any colour vision can distinguish.
_NETWORKS: Final = ("#0072b2", "#009e73", "#56b4e9", "#000000")
_SMOOTHED: Final = ("#d55e00", "#e69f00", "#a6761d")
_UNSMOOTHED: Final = "#cc79a7"


@dataclass(frozen=True)
class Style:
    """Colour and dash of a method's lines, so that neither alone carries the meaning."""

    colour: str
    dash: str

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's lines."""
        return {"color": self.colour, "ls": self.dash}


def is_baseline(name: str) -> bool:
    """Return whether a method is linear theory or a Wiener filter rather than a network."""
    return any(one.match(name) for one in (_LINEAR, _FILTER))


def has_filter(comparison: Comparison) -> bool:
    """Return whether a Wiener filter is among the methods."""
    return any(_FILTER.match(name) for name in comparison.methods)


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return the style of every method, the same in all figures of a report."""
    result: dict[str, Style] = {}
    networks = smoothed = 0
    for name in names:
        if not is_baseline(name):
            result[name] = Style(_NETWORKS[networks % len(_NETWORKS)], "-")
            networks += 1
        elif name == PAPER_BASELINE:
            result[name] = Style(_UNSMOOTHED, "--")
        else:
            result[name] = Style(_SMOOTHED[smoothed % len(_SMOOTHED)], "-.")
            smoothed += 1
    return result


def _best(comparison: Comparison, names: Sequence[str]) -> str | None:
    residual = comparison.metrics["residual"]
    return min(names, key=lambda name: float(residual[name]["rms"]), default=None)


def ranked(comparison: Comparison) -> list[str]:
    """Return the methods, that with the smallest residual first."""
    residual = comparison.metrics["residual"]
    return sorted(comparison.methods, key=lambda name: float(residual[name]["rms"]))


def best_network(comparison: Comparison) -> str | None:
    """Return the network with the smallest residual, if there is any.

    The shipped model counts only if there is no other network.
    """
    networks = [name for name in comparison.methods if not is_baseline(name)]
    shipped = shipped_rows(comparison)
    return _best(comparison, [name for name in networks if name not in shipped] or networks)


def shipped_rows(comparison: Comparison) -> list[str]:
    """Return the methods that are predictions of the shipped model, whatever their names."""
    noted = comparison.metrics.get("shipped") or {}
    return list(noted.get("rows", ()))


class BesideShipped(NamedTuple):
    """How the best of the other networks does beside the shipped model.

    Attributes
    ----------
    outcome : {'better', 'worse', 'same'}
        ``same`` if the residuals differ by no more than :data:`cosmoflow.units.SAME`.
    sentence : str
        The same with numbers.
    """

    outcome: str
    sentence: str


def judge_beside_shipped(comparison: Comparison) -> BesideShipped | None:
    """Compare the best network with the shipped model; None if there are not both."""
    name, rows = best_network(comparison), shipped_rows(comparison)
    shipped = _best(comparison, rows)
    if name is None or shipped is None or name in rows:
        return None
    residual = comparison.metrics["residual"]
    mine, other = (float(residual[one]["rms"]) for one in (name, shipped))
    text = f"{name} leaves {mine:.1f} {VELOCITY}, {format_difference(mine, other)} {shipped}"
    if is_less(mine, other):
        return BesideShipped("better", f"{text}: it is better in this box.")
    if is_less(other, mine):
        return BesideShipped("worse", f"{text}: no gain.")
    return BesideShipped("same", f"{text}: no clear difference.")


def best_baseline(comparison: Comparison) -> str | None:
    """Return the smoothed linear theory with the smallest residual, else the paper's, if any.

    Smoothing is what anyone would do to linear theory, so this is the bar for a network.
    """
    baselines = [name for name in comparison.methods if is_baseline(name)]
    smoothed = [name for name in baselines if name != PAPER_BASELINE]
    return _best(comparison, smoothed or baselines)


def leading(comparison: Comparison) -> list[str]:
    """Return the best network and the best baseline, as far as there are any."""
    found = (best_network(comparison), best_baseline(comparison))
    return [name for name in found if name is not None]


def shown_in_slices(comparison: Comparison) -> tuple[str, ...]:
    """Return the methods that get a row of a figure each: a network and two baselines."""
    wanted = (best_network(comparison), PAPER_BASELINE, best_baseline(comparison))
    present = [name for name in wanted if name in comparison.methods]
    return tuple(dict.fromkeys(present)) or comparison.methods[:1]


def paper_pair(comparison: Comparison) -> tuple[str, ...]:
    """Return the two methods that the paper's Figures 4 and 5 have: a network, linear theory.

    Without the paper's unsmoothed linear theory the best baseline stands in for it.
    """
    baseline = PAPER_BASELINE if PAPER_BASELINE in comparison.methods else best_baseline(comparison)
    present = [name for name in (best_network(comparison), baseline) if name is not None]
    return tuple(present)
