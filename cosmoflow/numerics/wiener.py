r"""The k-binned Wiener filter: the best isotropic combination of scalar fields for the flow.

.. math:: v(k) = i f a H \frac{k}{k^2} \sum_a W_a(|k|) \varphi_a(k)

Linear theory is :math:`\varphi = \delta`, :math:`W = 1`. Fields that follow from the density
without learning are its logarithm and the squares of the smoothed density and of its tide, the
terms of second-order perturbation theory. With them the best :math:`W_a` halve the residual of the
best-smoothed linear theory. The weights are fitted bin by bin by least squares over boxes whose
velocity is known.
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

from cosmoflow.numerics import calculus, fourier, slabs
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.waves import WaveBlock

Floats = NDArray[np.float64]

_DECIMALS: Final = 8
"""Decimals of the weights that identify a filter; weights are of order one, and used in float32."""

LOG_OFFSET: Final = 0.1
"""Offset of the logarithmic field ``ln(rho + offset)``, which keeps empty cells finite."""

SQUARE_RADIUS: Final = 4.0
"""Gaussian radius, Mpc/h, that smooths the density before squaring; without it noise dominates."""

_CONDITION: Final = 1e-6
"""A solution leaves out combinations of fields with less than this share of the power."""


_ROUNDING: Final = 1e-7
"""A bin is not used if it has less than this share of a field's power: float32 transforms leave
a share of 1e-14 of rounding, which at this limit is a thousandth of the bin's waves."""


def _squared_contrast(smooth: Tensor, cells: int, box_size: float) -> Tensor:
    """Return the square of the contrast whose modes are given."""
    return fourier.inverse(smooth, cells).square_()


def _squared_tide(smooth: Tensor, cells: int, box_size: float) -> Tensor:
    """Return ``sum_ij K_ij^2`` of the tide ``K_ij = d_i d_j (inverse Laplacian of delta)``."""
    total = torch.zeros((cells,) * 3, dtype=smooth.real.dtype, device=smooth.device)
    return add_squares(total, fourier.tidal_components(smooth, box_size))


def add_squares(total: Tensor, components: Iterable[tuple[tuple[int, int], Tensor]]) -> Tensor:
    """Add ``sum_ij K_ij^2`` to ``total`` and return it; components (i, j) have i <= j."""
    for (i, j), component in components:
        total.addcmul_(component, component, value=1.0 if i == j else 2.0)
    return total


SETS: Final[dict[str, tuple[str, ...]]] = {
    "wiener-linear": ("contrast",),
    "wiener-log": ("contrast", "log_density"),
    "wiener": ("contrast", "log_density", "squared_contrast", "squared_tide"),
}
"""Named sets of fields for a filter."""

POINTWISE: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "contrast": lambda density: density - 1.0,
    "log_density": lambda density: (density + LOG_OFFSET).log_(),
}
"""Fields whose value in a cell depends on the density of that cell alone: functions of the density
over its mean."""

SQUARES: Final[dict[str, Callable[[Tensor, int, float], Tensor]]] = {
    "squared_contrast": _squared_contrast,
    "squared_tide": _squared_tide,
}
"""Fields made of the smoothed contrast: functions of its modes, the cells per axis and the box size
in Mpc/h."""

FIELDS: Final = (*POINTWISE, *SQUARES)
"""Names of the fields, all scalars."""


def field_modes(density: Tensor, box_size: float, names: Sequence[str]) -> Iterator[Tensor]:
    """Yield the modes of the named fields, each ``(n, n, n // 2 + 1)``, complex.

    Parameters
    ----------
    density : Tensor
        Shape ``(n, n, n)``, real, over its mean.
    box_size : float
        Box size, Mpc/h.
    names : sequence of str
        Names in :data:`FIELDS`.

    Notes
    -----
    The modes of the contrast are those of which others are made: they must not be changed before
    the last has come.
    """
    contrast = fourier.forward(POINTWISE["contrast"](density))
    for name in names:
        if name == "contrast":
            yield contrast
        elif name in POINTWISE:
            yield fourier.forward(POINTWISE[name](density))
        else:
            smooth = fourier.smooth_gaussian(contrast, box_size, SQUARE_RADIUS)
            yield fourier.forward(SQUARES[name](smooth, density.shape[-1], box_size))


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

    def flow_modes(self, contrast: Tensor, waves: WaveBlock, growth_rate_hubble: float) -> Tensor:
        """Return the modes of the flow in a block, from those of the density contrast.

        Parameters
        ----------
        contrast : Tensor
            Modes of the contrast, with the axes of ``waves``.
        waves : WaveBlock
            Wavenumbers of the block.
        growth_rate_hubble : float
            ``f a H`` in km/s per Mpc/h.

        Returns
        -------
        Tensor
            Shape ``(3, ...)``, km/s.
        """
        source = self.combine([contrast], waves.squared()).mul_(growth_rate_hubble)
        return torch.stack(list(slabs.gradient(source, waves)))


def gaussian_window(squared: Tensor, radius: float) -> Tensor:
    """Return the Gaussian window of a radius in Mpc/h at ``k^2`` in (h/Mpc)^2."""
    return torch.exp(squared * (-0.5 * radius**2))


@dataclass(frozen=True)
class WienerFilter:
    """Weights of fields in bins of k.

    Attributes
    ----------
    fields : tuple of str
        Names in :data:`FIELDS`.
    width : float
        Bin width, h/Mpc; bin ``b`` is centred on ``b`` widths.
    weights : tuple of tuple of float
        One tuple per bin with one weight per field. Bin 0 holds the mean alone and is never used.
    """

    fields: tuple[str, ...]
    width: float
    weights: tuple[tuple[float, ...], ...]

    @property
    def digest(self) -> str:
        """Hash that identifies this filter.

        The weights are rounded first: those of a family follow from its condition by functions that
        round differently on other processors.
        """
        # Adding 0 makes -0 a 0.
        rows = [[round(one, _DECIMALS) + 0.0 for one in row] for row in self.weights]
        content = json.dumps([self.fields, round(self.width, _DECIMALS), rows])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def velocity(self, density: Tensor, box_size: float, growth_rate_hubble: float) -> Tensor:
        """Return the flow that the filter gives for a density.

        Parameters
        ----------
        density : Tensor
            Shape ``(n, n, n)``, float32, over its mean.
        box_size : float
            Box size, Mpc/h. It may differ from that of the fitted boxes: weights are interpolated
            linearly in k and constant beyond both ends.
        growth_rate_hubble : float
            ``f a H``, km/s per Mpc/h.

        Returns
        -------
        Tensor
            Shape ``(3, n, n, n)``, float32, km/s.
        """
        fields = list(field_modes(density, box_size, self.fields))
        source = fields[0]
        waves = WaveBlock.box(density.shape[-1], box_size)

        def combine(x: slice) -> None:
            source[x] = self.combine([field[x] for field in fields], waves.part(x).squared())

        fourier.for_blocks(source, combine)
        fields.clear()
        return fourier.flow(source, box_size, growth_rate_hubble)

    def combine(self, modes: Iterable[Tensor], squared: Tensor) -> Tensor:
        """Return ``sum_a W_a phi_a``.

        Parameters
        ----------
        modes : iterable of Tensor
            Modes of the fields in their order, complex64, of the whole grid or of a slab.
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
"""Source ``s(k)`` of a flow ``v(k) = i f a H s(k) k / k^2``, for a box or for a slab of modes."""


@dataclass(frozen=True, eq=False)
class WienerSum:
    """Products of fields and flow, summed over the modes of bins; sums of boxes can be added.

    Attributes
    ----------
    fields : tuple of str
        Names in :data:`FIELDS`.
    bins : RadialBins
        Bins of k.
    products : ndarray
        Products of the fields with one another, shape ``(bins, fields, fields)``, float64.
    flow : ndarray
        Products of the fields with ``-div v / (f a H)``, shape ``(bins, fields)``, float64.
    power : ndarray
        Power of ``div v / (f a H)``, shape ``(bins,)``, float64.
    """

    fields: tuple[str, ...]
    bins: RadialBins
    products: Floats
    flow: Floats
    power: Floats

    @classmethod
    def zero(cls, fields: Sequence[str], bins: RadialBins) -> Self:
        """Return the sum over no modes, the neutral element of ``+``."""
        shape = (bins.count, len(fields))
        products, flow = np.zeros((*shape, len(fields))), np.zeros(shape)
        return cls(tuple(fields), bins, products, flow, np.zeros(bins.count))

    def __add__(self, other: WienerSum) -> WienerSum:
        mine, theirs = (self.fields, self.bins), (other.fields, other.bins)
        if mine != theirs:
            raise ValueError(f"cannot add sums with different (fields, bins): {mine}, {theirs}")
        return WienerSum(
            *mine,
            self.products + other.products,
            self.flow + other.flow,
            self.power + other.power,
        )

    def residual(self, weights: Floats) -> float:
        """Return the mean square of the residual displacement that weights leave, unnormalised.

        Parameters
        ----------
        weights : ndarray
            Weights of the fields at the centres of the bins, shape ``(bins, fields)``.
        """
        square = np.einsum("ba,bac,bc->b", weights, self.products, weights)
        left = self.power - 2.0 * (weights * self.flow).sum(axis=1) + square
        k = self.bins.width * np.arange(1, self.bins.count)
        return float((left[1:] / k**2).sum())

    def solve(self) -> WienerFilter:
        """Return the filter that leaves the smallest residual flow.

        A smoothed field that holds only rounding in a bin has weight 0: a weight fitted to rounding
        would amplify the rounding of the next box. A bin without modes has the weights of the bin
        below.
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
        Box size, Mpc/h.
    growth_rate_hubble : float
        ``f a H``, km/s per Mpc/h.
    fields : sequence of str
        Names in :data:`FIELDS`.
    bins : RadialBins
        Bins of k.
    """
    modes = list(field_modes(density, box_size, fields))
    flow = fourier.forward(velocity)
    flow = calculus.divergence_modes(flow, calculus.odd_wavenumbers(flow, box_size))
    flow = flow / -growth_rate_hubble
    index = bins.index(density.shape[-1], box_size)
    result = WienerSum.zero(fields, bins)
    result.power[:] = bins.sum_product(flow, flow, index)
    for a, left in enumerate(modes):
        result.flow[:, a] = bins.sum_product(left, flow, index)
        for b, right in enumerate(modes[a:], start=a):
            products = bins.sum_product(left, right, index)
            result.products[:, a, b] = result.products[:, b, a] = products
    return result
