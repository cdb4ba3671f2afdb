"""Time integration in COLA: the steps of a run, and the kick and drift operators of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
from scipy.integrate import quad

from cosmoflow.errors import ConfigError

Spacing = Literal["linear", "log"]

N_LPT = -2.5
"""Exponent of the ansatz ``u = a^n`` for the residual velocity (Tassev et al. 2013)."""


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
class Operators:
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


def schedule(
    steps: int, a_start: float, outputs: Sequence[float], spacing: Spacing = "linear"
) -> list[list[float]]:
    """Return the scale factors of the whole and half steps on the leg to each output.

    Every output is at the end of a whole step. Steps on one leg are equal; each additional step
    goes to the leg with the longest steps, so that all steps are as equal as possible. A leg of m
    steps has ``2 m + 1`` scale factors.

    Raises
    ------
    ConfigError
        There are fewer steps than outputs, or the times do not increase.
    """
    check_times(a_start, outputs)
    if not a_start > 0.0:
        raise ConfigError(
            "The scale factor of a simulation's start must be positive.",
            where="a_start",
            value=a_start,
        )
    if steps < len(outputs):
        raise ConfigError(
            "A simulation needs at least one step per output.",
            where="steps",
            value=f"{steps} steps, {len(outputs)} outputs",
            remedy="more steps, or fewer outputs",
        )
    edges = [a_start, *outputs]
    between = np.geomspace if spacing == "log" else np.linspace
    lengths = np.diff(np.log(edges) if spacing == "log" else edges)
    counts = np.ones(len(outputs), np.int64)
    for _ in range(steps - len(outputs)):
        counts[np.argmax(lengths / counts)] += 1
    return [
        [float(a) for a in between(start, end, 2 * int(count) + 1)]
        for (start, end), count in zip(pairwise(edges), counts, strict=True)
    ]


def check_times(a_start: float, outputs: Sequence[float]) -> None:
    """Check that the outputs follow the start and each other in time."""
    times = [a_start, *outputs]
    if not outputs or not all(before < after for before, after in pairwise(times)):
        raise ConfigError(
            "The outputs of a simulation must follow its start and each other in time.",
            where="a_start, outputs",
            value=", ".join(f"{a:g}" for a in times),
            limit="increasing scale factors",
        )
