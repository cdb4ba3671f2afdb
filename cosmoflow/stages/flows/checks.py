"""Checks that refuse unphysical flows before they are stored, and find the cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cosmoflow.errors import DataError
from cosmoflow.numerics.wiener import FlowSource, WienerFilter, field_modes
from cosmoflow.units import SPEED_OF_LIGHT

_LARGEST: Final = float(np.finfo(np.float32).max)
_SOUND: Final = 10.0
"""Largest weight of a filter that was fitted to a density like those of simulations."""


def check_weights(wiener: WienerFilter, model: str | None = None) -> None:
    """Refuse a filter whose weights are not finite in float32.

    Parameters
    ----------
    wiener : WienerFilter
        The filter.
    model : str, optional
        Name or URL of the model that owns the filter.

    Raises
    ------
    DataError
    """
    weights = np.asarray(wiener.weights, np.float64)
    bad = ~np.isfinite(weights) | (np.abs(weights) > _LARGEST)
    if not bad.any():
        return
    index, column = np.argwhere(bad)[0]
    raise DataError(
        "the Wiener filter of the model has weights that are not finite in float32",
        where=model,
        value=f"{weights[index, column]:g} for {wiener.fields[column]} in bin {index}; "
        f"{bad.sum()} of {bad.size} weights",
        limit=f"up to {_LARGEST:.3g}",
        remedy="use another model, or train this one again with --overwrite",
    )


def check_modes(density: Tensor, box_size: float, fields: Sequence[str], url: str) -> None:
    """Refuse a density whose fields are not finite for any filter.

    Parameters
    ----------
    density : Tensor
        Density over its mean, shape ``(n, n, n)``, float32.
    box_size : float
        Box size, Mpc/h.
    fields : sequence of str
        Names in :data:`cosmoflow.numerics.wiener.FIELDS`.
    url : str
        URL of the store of the density.

    Raises
    ------
    DataError
    """
    for name, modes in zip(fields, field_modes(density, box_size, fields), strict=True):
        if not is_finite(modes):
            raise refuse_density(name, url, (float(density.min()), float(density.max())))


def refuse_density(field: str, url: str, extremes: tuple[float, float] | None = None) -> DataError:
    """Return the error for a density whose transforms in float32 are not finite."""
    seen = "" if extremes is None else f", for a density from {extremes[0]:g} to {extremes[1]:g}"
    return DataError(
        "the density gives fields that are not finite, so no flow can be computed",
        where=f"{url}, density",
        value=f"{field} is not finite{seen}",
        limit="1 + delta: 0 or more in every cell, 1 in the mean",
        remedy="correct the density in the store, or paint it again",
    )


def refuse_flow(
    source: FlowSource, rate: float, url: str, box_size: float, model: str | None = None
) -> DataError:
    """Return the error for a flow that is unphysical although the fields of the density are finite.

    Parameters
    ----------
    source : FlowSource
        A filter, or linear theory.
    rate : float
        ``f a H``, km/s per Mpc/h.
    url : str
        URL of the store of the density.
    box_size : float
        Its box size, Mpc/h.
    model : str, optional
        Name or URL of the model that owns the filter.

    Notes
    -----
    The velocity of a given density grows with the size of its box. If the filter is sound, a wrong
    box size is the likely cause.
    """
    if not isinstance(source, WienerFilter):
        return DataError(
            "linear theory gives a velocity that is not finite or above that of light: not stored",
            where=url,
            value=f"a box of {box_size:g} Mpc/h, f a H = {rate:g} km/s/(Mpc/h)",
            remedy="correct box size, density, redshift and cosmology of the store",
        )
    largest = float(np.abs(np.asarray(source.weights, np.float64)).max())
    if largest <= _SOUND:
        return DataError(
            "the velocity of this density is not finite or above that of light, in a box of this "
            "size: not stored",
            where=url if model is None else f"{url} with {model}",
            value=f"a box of {box_size:g} Mpc/h, f a H = {rate:g} km/s/(Mpc/h)",
            limit="the size of the box that the density is from, in Mpc/h: velocities grow with it",
            remedy="check the box size, then redshift and cosmology, and make the store again with "
            "the right ones",
        )
    return DataError(
        "the Wiener filter of the model gives a velocity that is not finite or above that of "
        "light: not stored",
        where=url if model is None else f"{model} with {url}",
        value=f"weights up to {largest:.4g}",
        limit=f"weights of the order of 1, at most {_SOUND:g}",
        remedy="use another model, or train this one again with --overwrite",
    )


def is_physical(values: Tensor) -> bool:
    """Return whether all velocities of a tensor are finite and below that of light, km/s."""
    # Comparisons with NaN are false.
    return all(bool((part.abs() < SPEED_OF_LIGHT).all()) for part in values)


def is_finite(values: Tensor) -> bool:
    """Return whether all numbers of a real or complex tensor are finite."""
    real = torch.view_as_real(values) if values.is_complex() else values
    # Part by part, as a mask of the whole tensor would take a quarter more memory.
    return all(bool(torch.isfinite(part).all()) for part in real)
