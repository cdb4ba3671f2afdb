"""Gradient, divergence and curl of whole cubes, by both rules of cosmoflow.numerics.calculus."""

from functools import partial

import torch

from cosmoflow.numerics import calculus, fourier


def gradient(field, box_size, method="spectral", *, periodic=True):
    """Return the gradient of a scalar field ``(..., n, n, n)``."""
    cells = field.shape[-1]
    if method == "difference":
        differentiate = differences(cells, box_size, periodic=periodic)
        return torch.stack([differentiate(field, axis) for axis in fourier.AXES], dim=-4)
    modes = fourier.forward(field)
    ks = calculus.odd_wavenumbers(modes, box_size)
    return torch.stack([fourier.inverse(modes * k * 1j, cells) for k in ks], dim=-4)


def divergence(v, box_size, method="spectral", *, periodic=True):
    """Return the divergence of a vector field ``(..., 3, n, n, n)``."""
    cells = v.shape[-1]
    if method == "difference":
        return calculus.cell_divergence(v, differences(cells, box_size, periodic=periodic))
    modes = fourier.forward(v)
    waves = calculus.odd_wavenumbers(modes, box_size)
    return fourier.inverse(calculus.divergence_modes(modes, waves), cells)


def curl(v, box_size, method="spectral", *, periodic=True):
    """Return the curl of a vector field ``(..., 3, n, n, n)``."""
    cells = v.shape[-1]
    if method == "difference":
        return calculus.cell_curl(v, differences(cells, box_size, periodic=periodic))
    modes = fourier.forward(v)
    waves = calculus.odd_wavenumbers(modes, box_size)
    return fourier.inverse(calculus.curl_modes(modes, waves), cells)


def differences(cells, box_size, *, periodic):
    """Return what differentiates a cube, one-sided at the faces if it is not periodic."""
    return partial(calculus.difference, cell=box_size / cells, periodic=periodic)
