"""Spectra for the report: powers, ratios, errors, and samples for its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.comparison.power import QUANTITIES, SUBBOX_QUANTITIES
from cosmoflow.numerics.comparison.readers import Json
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.spectra import PowerSum, Spectrum, jackknife

SAMPLED_AT: Final = (0.05, 0.2, 0.6, 1.0, 1.4)
"""Wavenumbers of the tables, h/Mpc."""

_DIFFERENCES: Final = {"divergence": "theta = div v, finite differences"}
"""Definitions of quantities that differ in sub-boxes, which are not periodic, from the box."""

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


def subbox_curves(boxes: Sequence[Mapping[str, PowerSum]], methods: Sequence[str]) -> Json | None:
    """Return the mean spectra of sub-boxes with jackknife errors, or None without sub-boxes."""
    if not boxes:
        return None
    quantities: Json = {}
    for key, name in SUBBOX_QUANTITIES.items():
        sums = [box[name] for box in boxes]
        total = sum(sums[1:], start=sums[0])
        found = _curves(name, total, methods)
        found["definition"] = _DIFFERENCES.get(name, found["definition"])
        found["truth_error"] = _error(sums, lambda s: s.power(0))
        for number, method in enumerate(methods, start=1):
            found["methods"][method] |= _errors(sums, number)
        quantities[key] = found
    bins = total.bins
    return {
        "side": bins.box_size,
        "cells": bins.cells,
        "boxes": len(boxes),
        "derivatives": "finite differences, one-sided at the faces",
        "errors": "jackknife over the sub-boxes",
        "quantities": quantities,
    }


def _errors(sums: Sequence[PowerSum], number: int) -> Json:
    return {
        "power_error": _error(sums, lambda s: s.power(number)),
        "T_error": _error(sums, lambda s: s.spectrum(0, number).transfer),
        "r_error": _error(sums, lambda s: s.spectrum(0, number).correlation),
    }


def _error(sums: Sequence[PowerSum], statistic: Callable[[PowerSum], Floats]) -> Floats | None:
    return jackknife(sums, statistic)[1] if len(sums) > 1 else None


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
