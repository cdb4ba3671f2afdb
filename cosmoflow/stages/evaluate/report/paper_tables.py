"""The numbers published by Wu et al. 2021, which a report sets beside its own.

Source: Wu et al., "Cosmic Velocity Field Reconstruction Using AI", ApJ 913, 2 (2021),
arXiv:2105.09450, Tables 1 to 4 (power ratios) and equations 5 and 6 with the text below them
(section 4.1, three slices of 40 x 40 x 2 Mpc/h).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

SOURCE: Final = "Wu et al. 2021, ApJ 913, 2 (arXiv:2105.09450)"
LINK: Final = "https://arxiv.org/abs/2105.09450"

LINEAR: Final = "linear perturbation theory"
UNET: Final = "U-net"
TRUTH: Final = "truth"

TABLE_K: Final = (0.2, 0.6, 1.0)
"""Wavenumbers of Tables 1 to 4, h/Mpc."""

TRANSFER: Final[dict[str, dict[str, tuple[float, float, float]]]] = {
    "speed": {LINEAR: (2.259, 5.245, 3.516), UNET: (0.818, 1.123, 1.011)},
    "momentum": {LINEAR: (20.860, 44.746, 43.479), UNET: (1.068, 0.920, 0.929)},
    "divergence": {LINEAR: (1.584, 7.917, 20.731), UNET: (0.956, 0.996, 1.011)},
    "theta_p": {LINEAR: (14.806, 24.086, 18.065), UNET: (1.048, 0.907, 0.95)},
}
"""``P_predicted / P_true`` at :data:`TABLE_K` by quantity, in the order of the paper's tables."""

TABLE_NUMBER: Final = {"speed": 1, "momentum": 2, "divergence": 3, "theta_p": 4}

WORST: Final = {
    "speed": (0.272, 0.801),
    "momentum": (0.816, 0.918),
    "divergence": (1.335, 0.818),
    "theta_p": (0.604, 0.907),
}
"""``(k, T)`` of the U-net's largest discrepancy in 0.2 < k < 1.4 h/Mpc, section 4.2."""

SLICE_SPEED: Final = {
    TRUTH: ((428.0, 188.0), (186.0, 103.0), (432.0, 208.0)),
    UNET: ((376.0, 194.0), (177.0, 106.0), (368.0, 193.0)),
    LINEAR: ((649.0, 400.0), (386.0, 354.0), (797.0, 576.0)),
}
"""Mean and scatter of the speed over the cells of each slice, km/s, equations 2 to 4."""

SLICE_MOMENTUM: Final = {
    TRUTH: (2371.0, 4613.0),
    UNET: (2415.0, 4361.0),
    LINEAR: (1030.0, 2318.0),
}
"""Mean and scatter of the length of the momentum in the slice of Figure 4, km/s, equations 7 to 9;
that of linear theory contradicts Table 2."""

SLICE_RESIDUAL: Final = {
    UNET: ((126.0, 72.0), (65.0, 41.0), (152.0, 70.0)),
    LINEAR: ((281.0, 349.0), (298.0, 299.0), (407.0, 488.0)),
}
"""Mean and scatter of the residual speed over the cells of each slice, km/s, eqs. 5 and 6."""

SLICE_COSINE: Final = {
    UNET: ((0.93, 0.19), (0.90, 0.27), (0.89, 0.26)),
    LINEAR: ((0.92, 0.26), (0.49, 0.69), (0.92, 0.22)),
}
"""Mean and scatter of the cosine between predicted and true velocity in each slice."""


def is_closer(ratio: float, published: float) -> bool:
    """Return whether a power ratio is closer to 1 than a published one, by their logarithms."""
    return ratio > 0.0 and abs(math.log(ratio)) < abs(math.log(published))


def score(quantities: Mapping[str, Any], method: str) -> tuple[int, int]:
    """Return in how many of the values of Tables 1 to 4 a method is closer to 1 than the U-net.

    Parameters
    ----------
    quantities : mapping
        Measured spectra by quantity, as a comparison's metrics have them.
    method : str
        Its name there.

    Returns
    -------
    closer, known : int
        How many are closer, and how many of the twelve the box has modes for.
    """
    pairs = [
        (ratio, published[TABLE_K.index(k)])
        for quantity, published in ((q, t[UNET]) for q, t in TRANSFER.items())
        for k, ratio in _at_table(quantities[quantity]["methods"][method]["sampled"])
        if ratio is not None
    ]
    return sum(is_closer(*pair) for pair in pairs), len(pairs)


def _at_table(sampled: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    pairs = zip(sampled["k"], sampled["T"], strict=True)
    return [(k, ratio) for k, ratio in pairs if k in TABLE_K]
