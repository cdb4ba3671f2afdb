"""Spectra for the report: powers, ratios, errors, and samples for its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.comparison.power import QUANTITIES, SUBBOX_QUANTITIES
from cosmoflow.numerics.comparison.readers import Json
from cosmoflow.numerics.comparison.subboxes import Subboxes
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.spectra import PowerSum, Spectrum

SAMPLED_AT: Final = (0.05, 0.2, 0.6, 1.0, 1.4)
"""Wavenumbers of the tables, h/Mpc."""

_DIFFERENCES: Final = {"divergence": "theta = div v, finite differences"}
"""Definitions of quantities that differ in sub-boxes, which are not periodic, from the box."""

_ERRORS: Final = ("power_error", "T_error", "r_error")
"""Errors of the curves of a method in sub-boxes."""

_WORST_RANGE: Final = (0.2, 1.4)

Floats = NDArray[np.float64]


def box_curves(sums: Mapping[str, PowerSum], methods: Sequence[str], scheme: str | None) -> Json:
    """Return the spectra of the whole box.

    Parameters
    ----------
    sums : mapping of str to PowerSum
        Sums by name of the field, with the pairs (0, 0), (i, i) and (0, i) of the methods.
    methods : sequence of str
        Names of the methods; method i is ``methods[i - 1]``.
    scheme : str or None
        Mass assignment whose window divided the vectors' modes.
    """
    return {
        "derivatives": "spectral; finite differences for theta_p",
        "scheme": scheme,
        "quantities": {key: _curves(name, sums[name], methods) for key, name in QUANTITIES.items()},
    }


def subbox_curves(boxes: Subboxes, methods: Sequence[str]) -> Json | None:
    """Return the mean spectra of sub-boxes with jackknife errors, or None without sub-boxes."""
    if not boxes.count:
        return None
    totals = boxes.total()
    bins = totals["speed"].bins
    errors = boxes.jackknife(partial(_statistics, count=len(methods)))
    quantities: Json = {}
    for place, (key, name) in enumerate(SUBBOX_QUANTITIES.items()):
        found = _curves(name, totals[name], methods)
        found["definition"] = _DIFFERENCES.get(name, found["definition"])
        own = [None] * (1 + 3 * len(methods)) if errors is None else list(errors[place])
        found["truth_error"] = own[0]
        for number, method in enumerate(methods):
            three = own[1 + 3 * number : 4 + 3 * number]
            found["methods"][method] |= dict(zip(_ERRORS, three, strict=True))
        quantities[key] = found
    return {
        "side": bins.box_size,
        "cells": bins.cells,
        "boxes": boxes.count,
        "derivatives": "finite differences, one-sided at the faces",
        "errors": "jackknife over the sub-boxes",
        "quantities": quantities,
    }


def _statistics(sums: Mapping[str, PowerSum], count: int) -> Floats:
    """Return the curves of each quantity: the truth's power, then :data:`_ERRORS` of each method.

    Returns
    -------
    (quantities, 1 + 3 methods, ..., bins) float64
    """
    found = []
    for name in SUBBOX_QUANTITIES.values():
        curves = [sums[name].power(0)]
        for method in range(1, count + 1):
            spectrum = sums[name].spectrum(0, method)
            curves += [spectrum.auto_b, spectrum.transfer, spectrum.correlation]
        found.append(curves)
    return np.array(found)


def _curves(field: str, total: PowerSum, methods: Sequence[str]) -> Json:
    spectra = {name: total.spectrum(0, i) for i, name in enumerate(methods, start=1)}
    return {
        "definition": FIELDS[field].definition,
        "k": total.mean_k,
        "modes": total.modes,
        "truth": total.power(0),
        "methods": {
            name: {
                "power": found.auto_b,
                "T": found.transfer,
                "r": found.correlation,
                "sampled": {
                    "k": SAMPLED_AT,
                    "T": found.sample(found.transfer, SAMPLED_AT),
                    "r": found.sample(found.correlation, SAMPLED_AT),
                },
                "worst": _worst(found),
            }
            for name, found in spectra.items()
        },
    }


def _worst(found: Spectrum) -> Json | None:
    """Return the ``T`` farthest from 1 in the range for which the paper quotes it."""
    low, high = _WORST_RANGE
    inside = (found.k >= low) & (found.k <= high) & np.isfinite(found.transfer)
    if not inside.any():
        return None
    k, transfer = found.k[inside], found.transfer[inside]
    at = int(np.argmax(np.abs(transfer - 1.0)))
    return {"k": k[at], "T": transfer[at], "k_range": [low, high]}
