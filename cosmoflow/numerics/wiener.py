r"""The k-binned Wiener filter: the best isotropic combination of scalar fields for the flow.

.. math:: v(k) = i f a H \frac{k}{k^2} \sum_a W_a(|k|) \varphi_a(k)

Linear theory is :math:`\varphi = \delta`, :math:`W = 1`. With fields that the density gives
without any learning (its logarithm, and squares of its smoothed self and of the tide, which are
what second-order perturbation theory is made of) the best :math:`W_a` halve what the best-smoothed
linear theory misses. They are found bin by bin by least squares over boxes whose velocity is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.radial import RadialBins

Floats = NDArray[np.float64]

LOG_OFFSET: Final = 0.1
"""Of the logarithmic field ``ln(rho + offset)``: empty cells have a logarithm too."""

SQUARE_RADIUS: Final = 4.0
"""Gaussian radius, Mpc/h, of the density whose squares are taken: unsmoothed they are all noise."""

_CONDITION: Final = 1e-6
"""Combinations of fields with less than this share of the power are left out of a solution."""


_ROUNDING: Final = 1e-7
"""Share of a field's power below which that in a bin is not used: float32 transforms leave 1e-14 of
rounding in it, which is then a thousandth of the bin's waves."""


def _contrast(density: Tensor, box_size: float) -> Tensor:
    return density - 1.0


def _log_density(density: Tensor, box_size: float) -> Tensor:
    return torch.log(density + LOG_OFFSET)


def _smoothed_modes(density: Tensor, box_size: float) -> Tensor:
    return fourier.smooth_gaussian(fourier.forward(density - 1.0), box_size, SQUARE_RADIUS)


def _squared_contrast(density: Tensor, box_size: float) -> Tensor:
    return fourier.inverse(_smoothed_modes(density, box_size), density.shape[-1]).square_()


def _squared_tide(density: Tensor, box_size: float) -> Tensor:
    """Return ``sum_ij K_ij^2``, K_ij the tide ``d_i d_j (inverse Laplacian of delta)``."""
    tides = fourier.tidal_components(_smoothed_modes(density, box_size), box_size)
    return add_squares(torch.zeros_like(density), tides)


def add_squares(total: Tensor, components: Iterable[tuple[tuple[int, int], Tensor]]) -> Tensor:
    """Add ``sum_ij K_ij^2`` of a symmetric tensor's components (i, j), i <= j, and return it."""
    for (i, j), component in components:
        total.addcmul_(component, component, value=1.0 if i == j else 2.0)
    return total


SETS: Final[dict[str, tuple[str, ...]]] = {
    "wiener-linear": ("contrast",),
    "wiener-log": ("contrast", "log_density"),
    "wiener": ("contrast", "log_density", "squared_contrast", "squared_tide"),
}
"""Sets of fields that make a useful filter, by name."""

FIELDS: Final[dict[str, Callable[[Tensor, float], Tensor]]] = {
    "contrast": _contrast,
    "log_density": _log_density,
    "squared_contrast": _squared_contrast,
    "squared_tide": _squared_tide,
}
"""The scalar fields by name: of the density over its mean, and the box size in Mpc/h."""


POINTWISE: Final = ("contrast", "log_density")
"""Of them, those that the density of a cell gives, whatever is around it."""


def field_modes(density: Tensor, box_size: float, names: Sequence[str]) -> Iterator[Tensor]:
    """Yield the modes of some of :data:`FIELDS`, each ``(n, n, n // 2 + 1)``, complex.

    Parameters
    ----------
    density : Tensor
        Shape ``(n, n, n)``, real, over its mean.
    box_size : float
        Mpc/h.
    names : sequence of str
        Which, in this order.
    """
    for name in names:
        yield fourier.forward(FIELDS[name](density, box_size))


@dataclass(frozen=True, slots=True)
class LinearTheory:
    """Linear theory as a source of flows: the contrast, smoothed by a Gaussian.

    Parameters
    ----------
    radius : float
        Radius of the Gaussian, Mpc/h.
    """

    radius: float
    fields: ClassVar[tuple[str, ...]] = ("contrast",)

    def velocity(self, density: Tensor, box_size: float, growth_rate_hubble: float) -> Tensor:
        """Return the flow of a density; see :meth:`WienerFilter.velocity`."""
        return fourier.linear_velocity(density, box_size, growth_rate_hubble, self.radius)

    def combine(self, modes: Iterable[Tensor], squared: Tensor) -> Tensor:
        """Return the smoothed modes; see :meth:`WienerFilter.combine`."""
        (contrast,) = modes
        return contrast * gaussian_window(squared, self.radius)


def gaussian_window(squared: Tensor, radius: float) -> Tensor:
    """Return the Gaussian of a radius, Mpc/h, for ``k^2`` in (h/Mpc)^2."""
    return torch.exp(squared * (-0.5 * radius**2))


@dataclass(frozen=True)
class WienerFilter:
    """The weights of some fields, bin by bin.

    Attributes
    ----------
    fields : tuple of str
        Of :data:`FIELDS`.
    width : float
        Of a bin, h/Mpc; bin ``b`` is centred on ``b`` widths.
    weights : tuple of tuple of float
        Of every bin, one a field; those of bin 0, which holds the mean alone, are never used.
    """

    fields: tuple[str, ...]
    width: float
    weights: tuple[tuple[float, ...], ...]

    @property
    def digest(self) -> str:
        """What tells this filter from others."""
        content = json.dumps([self.fields, self.width, self.weights])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def velocity(self, density: Tensor, box_size: float, growth_rate_hubble: float) -> Tensor:
        """Return the flow that the filter gives for a density.

        Parameters
        ----------
        density : Tensor
            Shape ``(n, n, n)``, float32, over its mean.
        box_size : float
            Mpc/h; it need not be that of the boxes that the weights come from: they are
            interpolated linearly in k, and constant beyond both ends.
        growth_rate_hubble : float
            ``f a H``, km/s per Mpc/h.

        Returns
        -------
        Tensor
            Shape ``(3, n, n, n)``, float32, km/s.
        """
        cells = density.shape[-1]
        squared = fourier.squared_wavenumber(cells, box_size)
        source = self.combine(field_modes(density, box_size, self.fields), squared)
        return fourier.linear_velocity(fourier.inverse(source, cells), box_size, growth_rate_hubble)

    def combine(self, modes: Iterable[Tensor], squared: Tensor) -> Tensor:
        """Return ``sum_a W_a phi_a`` on some modes.

        Parameters
        ----------
        modes : iterable of Tensor
            Of the fields, in their order, complex64: of the whole grid or of a slab.
        squared : Tensor
            ``k^2`` of these modes, float32, (h/Mpc)^2.
        """
        weights = torch.tensor(self.weights, dtype=torch.float32)
        columns = RadialBins(self.width, len(self.weights)).spread(weights, squared)
        source = torch.zeros(squared.shape, dtype=torch.complex64)
        for column, field in zip(columns, modes, strict=True):
            source.addcmul_(field, column)
        return source


FlowSource = LinearTheory | WienerFilter
"""Gives ``s(k)`` of a flow ``v(k) = i f a H s(k) k / k^2`` of a whole box or of a slab of modes."""


@dataclass(frozen=True, eq=False)
class WienerSum:
    """Products of fields and flow, summed over the modes of bins; those of several boxes add up.

    Attributes
    ----------
    fields : tuple of str
        Of :data:`FIELDS`.
    bins : RadialBins
        What is summed over.
    products : ndarray
        Shape ``(bins, fields, fields)``, float64: of the fields with one another.
    flow : ndarray
        Shape ``(bins, fields)``, float64: of the fields with ``-div v / (f a H)``.
    """

    fields: tuple[str, ...]
    bins: RadialBins
    products: Floats
    flow: Floats

    @classmethod
    def zero(cls, fields: Sequence[str], bins: RadialBins) -> Self:
        """Return the sum over no modes, the neutral element of ``+``."""
        shape = (bins.count, len(fields))
        return cls(tuple(fields), bins, np.zeros((*shape, len(fields))), np.zeros(shape))

    def __add__(self, other: WienerSum) -> WienerSum:
        mine, theirs = (self.fields, self.bins), (other.fields, other.bins)
        if mine != theirs:
            raise ValueError(f"sums over unlike bins (fields, bins): {mine}, {theirs}")
        return WienerSum(*mine, self.products + other.products, self.flow + other.flow)

    def solve(self) -> WienerFilter:
        """Return the filter that leaves the smallest residual flow.

        Where a smoothed field has nothing left but rounding its weight is 0: one fitted to rounding
        would multiply that of the next box. A bin without modes has the weights of the one below.
        """
        bins, fields = self.flow.shape
        weights = np.zeros((bins, fields))
        power = np.diagonal(self.products, axis1=1, axis2=2)
        floor = _ROUNDING * power.sum(axis=0)
        for b in range(bins):
            kept = np.flatnonzero(power[b] > floor)
            if not power[b].any():
                weights[b] = weights[b - 1] if b else 0.0
                continue
            size = np.sqrt(power[b, kept])
            matrix = self.products[b][np.ix_(kept, kept)] / np.outer(size, size)
            found = np.linalg.lstsq(matrix, self.flow[b, kept] / size, rcond=_CONDITION)[0]
            weights[b, kept] = found / size
        return WienerFilter(self.fields, self.bins.width, tuple(map(tuple, weights.tolist())))


def sum_products(
    density: Tensor,
    velocity: Tensor,
    box_size: float,
    growth_rate_hubble: float,
    fields: Sequence[str],
    bins: RadialBins,
) -> WienerSum:
    """Sum the products that :meth:`WienerSum.solve` needs over the modes of a box.

    Parameters
    ----------
    density : Tensor
        Shape ``(n, n, n)``, float32, over its mean.
    velocity : Tensor
        Shape ``(3, n, n, n)``, float32, km/s.
    box_size : float
        Mpc/h.
    growth_rate_hubble : float
        ``f a H``, km/s per Mpc/h.
    fields : sequence of str
        Of :data:`FIELDS`.
    bins : RadialBins
        What to sum over.
    """
    modes = list(field_modes(density, box_size, fields))
    flow = fourier.forward(velocity)
    flow = calculus.divergence_modes(flow, calculus.odd_wavenumbers(flow, box_size))
    flow = flow / -growth_rate_hubble
    index = bins.index(density.shape[-1], box_size)
    result = WienerSum.zero(fields, bins)
    for a, left in enumerate(modes):
        result.flow[:, a] = bins.sum_product(left, flow, index)
        for b, right in enumerate(modes[a:], start=a):
            products = bins.sum_product(left, right, index)
            result.products[:, a, b] = result.products[:, b, a] = products
    return result
