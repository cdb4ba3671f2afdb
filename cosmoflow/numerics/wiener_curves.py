"""One Wiener filter for boxes of many conditions: weights smooth in k and in the condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.conditions import ConditionCurves, place_on_knots
from cosmoflow.numerics.wiener import WienerSum

Floats = NDArray[np.float64]

STEP: Final = 0.1
"""Distance of the knots, h/Mpc."""

_RIDGE: Final = 1e-4
"""Share by which the diagonal of the normal equations is raised."""


def fit_weights(sums: Sequence[WienerSum], design: Floats) -> ConditionCurves:
    r"""Fit the weights of fields as functions of k and of the condition.

    The weights are :math:`W_a(k, c) = \sum_{nt} h_n(k)\,P_t(c)\,w_{nta}` with hat functions
    :math:`h_n` and polynomials :math:`P_t`. All :math:`w` follow from one least-squares problem:
    the residual displacement of all boxes, each over the residual that a filter fitted to that box
    alone leaves, so that every box counts alike.

    Parameters
    ----------
    sums : sequence of WienerSum
        Sums of the boxes, with the same fields.
    design : ndarray
        Terms of the conditions of the boxes, shape ``(boxes, terms)``.
    """
    fields, terms = len(sums[0].fields), design.shape[1]
    largest = max(one.bins.width * (one.bins.count - 1) for one in sums)
    # Beyond the sphere of Nyquist's wavenumber the corners of the grid hold little flow.
    knots = max(2, int(np.ceil(largest / np.sqrt(3.0) / STEP)) + 1)
    size = terms * fields
    # Neighbouring knots share a bin, and no others do.
    same = np.zeros((knots, size, size))
    next_ = np.zeros((knots - 1, size, size))
    right = np.zeros((knots, size))
    for one, row in zip(sums, design, strict=True):
        pairs = np.outer(row, row)
        for n, products, beside, flow in _on_knots(one, knots):
            same[n] += np.kron(pairs, products)
            right[n] += np.kron(row, flow)
            if n + 1 < knots:
                next_[n] += np.kron(pairs, beside)
    matrix = np.zeros((knots, size, knots, size))
    for n in range(knots):
        matrix[n, :, n] = same[n]
        if n + 1 < knots:
            matrix[n, :, n + 1], matrix[n + 1, :, n] = next_[n], next_[n].T
    flat = matrix.reshape(knots * size, knots * size)
    diagonal = flat.diagonal().copy()
    flat[np.diag_indices_from(flat)] += _RIDGE * diagonal + 1e-12 * diagonal.max()
    found = np.linalg.solve(flat, right.ravel()).reshape(knots, terms, fields)
    curves = tuple(tuple(tuple(row) for row in knot) for knot in found.tolist())
    return ConditionCurves(STEP, curves)


def _on_knots(one: WienerSum, knots: int) -> list[tuple[int, Floats, Floats, Floats]]:
    """Return the sums of a box by knot: number, products, products with the next knot, flow."""
    own = one.residual(np.array(one.solve().weights))
    k = one.bins.width * np.arange(one.bins.count)
    # The displacement of a mode is its contrast over k.
    weight = np.zeros(one.bins.count)
    weight[1:] = 1.0 / (own * k[1:] ** 2)
    index, share = place_on_knots(k, STEP, knots)
    fields = len(one.fields)
    products, beside = np.zeros((knots, fields, fields)), np.zeros((knots, fields, fields))
    flow = np.zeros((knots, fields))
    for hat, at in ((1.0 - share, index), (share, index + 1)):
        np.add.at(products, at, (weight * hat**2)[:, None, None] * one.products)
        np.add.at(flow, at, (weight * hat)[:, None] * one.flow)
    np.add.at(beside, index, (weight * share * (1.0 - share))[:, None, None] * one.products)
    return [(n, products[n], beside[n], flow[n]) for n in range(knots)]
