"""Fourier grids of a periodic cube and the filters of linear theory, in memory, in torch.

All transforms are ``torch.fft`` real-to-complex transforms in their half-complex layout: axes x and
y have ``n`` frequencies, axis z has ``n // 2 + 1``. The forward transform is unnormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cosmoflow.numerics.threads import map_ahead

AXES = (-3, -2, -1)

BLOCK_BYTES_CPU = 1 << 20
"""Bytes of modes transformed at once on a CPU: a block and its result fit in the L2 cache."""
BLOCK_BYTES_GPU = 1 << 28
"""The same on a GPU, where only the size of the temporaries matters."""


def empty(
    shape: tuple[int, ...],
    *,
    complex_modes: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return an uninitialised float32 or complex64 tensor, on huge pages if the system has any.

    In main memory numpy requests huge pages from the kernel and torch does not. Without them random
    access to a large grid misses the address cache, and a new grid causes a page fault every 4 kB.
    """
    if torch.device(device).type != "cpu":
        dtype = torch.complex64 if complex_modes else torch.float32
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, dtype=np.complex64 if complex_modes else np.float32))


def forward(field: Tensor) -> Tensor:
    """Transform a real field ``(..., n, n, n)`` to its modes ``(..., n, n, n // 2 + 1)``."""
    modes: Tensor = torch.fft.rfftn(field, dim=AXES)
    return modes


def inverse(modes: Tensor, cells: int) -> Tensor:
    """Transform modes ``(..., n, n, n // 2 + 1)`` back to a real field of ``cells`` per axis.

    Raises
    ------
    ValueError
        The modes are not those of a field of so many cells.
    """
    if modes.shape[-3:] != (cells, cells, cells // 2 + 1):
        raise ValueError(f"modes {tuple(modes.shape)} of a field of {cells} cells per axis")
    if modes.device.type != "cpu":
        whole: Tensor = torch.fft.irfftn(modes, s=(cells, cells, cells), dim=AXES)
        return whole
    # By blocks that stay in the cache: irfftn takes twice as long in a large box.
    field = torch.empty((*modes.shape[:-3], cells, cells, cells), dtype=modes.real.dtype)
    work = torch.empty_like(modes)

    def along_x(y: slice) -> None:
        work[..., y, :] = torch.fft.ifft(modes[..., y, :], dim=-3)

    def across(x: slice) -> None:
        field[..., x, :, :] = torch.fft.irfft2(work[..., x, :, :], s=(cells, cells))

    for_blocks(modes, along_x)
    for_blocks(modes, across)
    return field


def wavenumbers(
    cells: int,
    box_size: float,
    *,
    odd: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wavenumbers along x, y and z, shaped to broadcast over a grid of modes.

    Parameters
    ----------
    cells : int
        Cells per axis.
    box_size : float
        Side of the box, Mpc/h.
    odd : bool
        Set the Nyquist frequency to zero, which every odd (derivative) filter of a real field
        needs: its sign is undefined there.

    Returns
    -------
    kx, ky, kz : Tensor
        Shapes ``(n, 1, 1)``, ``(1, n, 1)`` and ``(1, 1, n // 2 + 1)``, h/Mpc.
    """
    fundamental = 2.0 * math.pi / box_size
    full = torch.fft.fftfreq(cells, d=1.0 / cells, dtype=dtype, device=device) * fundamental
    half = torch.fft.rfftfreq(cells, d=1.0 / cells, dtype=dtype, device=device) * fundamental
    if odd and cells % 2 == 0:
        full[cells // 2] = 0.0
        half[cells // 2] = 0.0
    return full.view(-1, 1, 1), full.view(1, -1, 1), half.view(1, 1, -1)


def squared_wavenumber(
    cells: int,
    box_size: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return ``k^2`` on the grid of modes, shape ``(n, n, n // 2 + 1)``, (h/Mpc)^2."""
    kx, ky, kz = wavenumbers(cells, box_size, dtype=dtype, device=device)
    return kx**2 + ky**2 + kz**2


def inverse_laplacian(modes: Tensor, box_size: float) -> Tensor:
    """Divide modes by ``-k^2``; the mean, which has no potential, becomes zero."""
    k2 = squared_wavenumber(modes.shape[-3], box_size, dtype=modes.real.dtype, device=modes.device)
    k2[0, 0, 0] = 1.0
    result = modes / -k2
    result[..., 0, 0, 0] = 0.0
    return result


def smooth_gaussian(modes: Tensor, box_size: float, radius: float) -> Tensor:
    """Multiply modes by the Gaussian window ``exp(-k^2 R^2 / 2)``.

    Parameters
    ----------
    modes : Tensor
        Shape ``(..., n, n, n // 2 + 1)``, complex.
    box_size, radius : float
        Box size and radius of the Gaussian, Mpc/h. A radius of 0 changes nothing.
    """
    if radius == 0.0:
        return modes
    cells = modes.shape[-3]
    kx, ky, kz = wavenumbers(cells, box_size, dtype=modes.real.dtype, device=modes.device)
    smooth = torch.empty_like(modes)

    def multiply(x: slice) -> None:
        window = torch.exp(-0.5 * radius**2 * (kx[x] ** 2 + ky**2 + kz**2))
        torch.mul(modes[..., x, :, :], window, out=smooth[..., x, :, :])

    for_blocks(smooth, multiply)
    return smooth


def linear_velocity(
    density: Tensor, box_size: float, growth_rate_hubble: float, smoothing: float = 0.0
) -> Tensor:
    r"""Return the linear-theory velocity of a density field.

    ``v(k) = i f a H delta(k) k / k^2`` (Wu et al. 2021, section 4; the continuity equation at first
    order), with delta Gaussian-smoothed first.

    Parameters
    ----------
    density : Tensor
        Shape ``(n, n, n)``, density over its mean (or its contrast: the mean drops out).
    box_size : float
        Box size, Mpc/h.
    growth_rate_hubble : float
        ``f a H`` in km/s per Mpc/h.
    smoothing : float
        Radius of the Gaussian window, Mpc/h; 0 for none, as in the paper.

    Returns
    -------
    Tensor
        Shape ``(3, n, n, n)``, km/s, of the density's dtype.
    """
    modes = smooth_gaussian(forward(density), box_size, smoothing)
    return flow(modes, box_size, growth_rate_hubble)


def flow(source: Tensor, box_size: float, growth_rate_hubble: float) -> Tensor:
    """Return the flow ``v(k) = i f a H s(k) k / k^2`` of a source.

    Parameters
    ----------
    source : Tensor
        Modes of s, shape ``(n, n, n // 2 + 1)``, complex. **Overwritten**.
    box_size : float
        Box size, Mpc/h.
    growth_rate_hubble : float
        ``f a H`` in km/s per Mpc/h.

    Returns
    -------
    Tensor
        Shape ``(3, n, n, n)``, km/s.
    """
    shape = (source.shape[0],) * 3
    kind, device = source.real.dtype, source.device
    velocity = torch.empty((3, *shape), dtype=kind, device=device)
    # velocity[0] is the buffer that all components share: component 0 comes last.
    for axis, component in inverse_gradient(source, box_size, work=velocity[0]):
        torch.mul(component, growth_rate_hubble, out=velocity[axis])
    return velocity


def inverse_gradient(
    source: Tensor,
    box_size: float,
    *,
    work: Tensor | None = None,
    window: int = 0,
    differences: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    r"""Yield, one component at a time, ``g = -grad (inverse Laplacian of source)``.

    In Fourier space ``g(k) = i k s(k) / k^2``, which is both the gravity of a density contrast and
    the Zel'dovich displacement.

    Parameters
    ----------
    source : Tensor
        Either a real field ``(n, n, n)``, float32, or its modes ``(n, n, n // 2 + 1)``, complex64.
        **Overwritten**, so that two grids are enough.
    box_size : float
        Box size, Mpc/h.
    work : Tensor, optional
        The other grid, also overwritten: modes ``(n, n, n // 2 + 1)``, complex64, if ``source`` is
        real, and a real ``(n, n, n)``, float32, if it is modes.
    window : int
        Power of ``sinc(k_i h / 2)`` per axis by which to divide the modes; h is the side of a cell.
        A power of 2 undoes the smoothing of a cloud-in-cell density.
    differences : bool
        Differentiate by four-point differences, ``k -> (8 sin kh - sin 2kh) / 6h``, which suppress
        the waves that the mesh barely resolves, instead of exactly.

    Yields
    ------
    axis : int
        1, 2, 0 in this order.
    field : Tensor
        Shape ``(n, n, n)``, float32, in the unit of ``source`` times Mpc/h. All components share
        one buffer: use each before requesting the next.

    Notes
    -----
    The transforms work on blocks of planes that stay in the cache, which is twice as fast here as
    ``rfftn``/``irfftn`` on whole grids and needs no temporary grid. Common work is done once: the
    spectrum is transformed back to real space along x before the first component, so the y and z
    components take a two-dimensional transform each. The x component is last, since it must
    differentiate along the transformed axis.
    """
    cells = source.shape[0]
    if source.is_complex():
        field = empty((cells,) * 3, device=source.device) if work is None else work
        modes = source
    else:
        field = source
        if work is None:
            shape = (cells, cells, cells // 2 + 1)
            work = empty(shape, complex_modes=True, device=source.device)
        modes = work
        for_blocks(modes, lambda x: modes[x].copy_(torch.fft.rfft2(field[x])))
    spectrum_given = source.is_complex()
    kind = modes.real.dtype
    ks = wavenumbers(cells, box_size, dtype=kind, device=modes.device)
    kx, ky, kz = ks
    sx, sy, sz = (torch.sinc(k * (box_size / cells / (2.0 * math.pi))) ** window for k in ks)

    def solve(y: slice) -> None:
        block = modes[:, y] if spectrum_given else torch.fft.fft(modes[:, y], dim=0)
        k2 = kx**2 + ky[:, y] ** 2 + kz**2
        if y.start == 0:
            k2[0, 0, 0] = torch.inf  # the mean exerts no force
        if window:
            k2 *= sx * (sy[:, y] * sz)
        modes[:, y] = torch.fft.ifft(block * k2.reciprocal_(), dim=0)

    for_blocks(modes, solve)
    odd = wavenumbers(cells, box_size, odd=True, dtype=kind, device=modes.device)
    h = box_size / cells
    ikx, iky, ikz = (
        1j * ((8.0 * torch.sin(k * h) - torch.sin(2.0 * k * h)) / (6.0 * h) if differences else k)
        for k in odd
    )

    def differentiate(y: slice) -> None:
        modes[:, y] = torch.fft.ifft(torch.fft.fft(modes[:, y], dim=0) * ikx, dim=0)

    def transform(x: slice, factor: Tensor | None = None) -> None:
        block = modes[x] if factor is None else modes[x] * factor
        field[x] = torch.fft.irfft2(block, s=(cells, cells))

    for axis, ik in ((1, iky), (2, ikz)):
        for_blocks(modes, partial(transform, factor=ik))
        yield axis, field
    for_blocks(modes, differentiate)
    for_blocks(modes, transform)
    yield 0, field


def tidal_components(modes: Tensor, box_size: float) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield, one at a time, the six ``d_i d_j (inverse Laplacian)`` of a field.

    In Fourier space they are ``k_i k_j s(k) / k^2``; the three diagonal components sum to the field
    minus its mean.

    Parameters
    ----------
    modes : Tensor
        Modes of the field, shape ``(n, n, n // 2 + 1)``, complex64, left unchanged.
    box_size : float
        Box size, Mpc/h.

    Yields
    ------
    (i, j) : tuple of int
        Axes, i <= j: yy, zz, yz, then xy, xz, then xx.
    component : Tensor
        Shape ``(n, n, n)``, float32, in the unit of the field. All components share one buffer.
    """
    cells = modes.shape[0]
    work = empty(tuple(modes.shape), complex_modes=True, device=modes.device)
    out = empty((cells,) * 3, device=modes.device)
    kx, ky, kz = wavenumbers(cells, box_size, device=modes.device)
    dx, dy, dz = wavenumbers(cells, box_size, odd=True, device=modes.device)
    one = torch.ones((), device=modes.device)
    families = (
        {(1, 1): dy * dy, (2, 2): dz * dz, (1, 2): dy * dz},
        {(0, 1): dy, (0, 2): dz},
        {(0, 0): one},
    )
    for power, factors in enumerate(families):
        # All components with the same power of kx share their transform along x.
        def along_x(y: slice, power: int = power) -> None:
            k2 = kx**2 + ky[:, y] ** 2 + kz**2
            if y.start == 0:
                k2[0, 0, 0] = torch.inf
            work[:, y] = torch.fft.ifft(modes[:, y] * (dx**power / k2), dim=0)

        def across(x: slice, factor: Tensor) -> None:
            out[x] = torch.fft.irfft2(work[x] * factor, s=(cells, cells))

        for_blocks(modes, along_x)
        for axes, factor in factors.items():
            for_blocks(modes, partial(across, factor=factor))
            yield axes, out


def for_blocks(modes: Tensor, work: Callable[[slice], object]) -> None:
    """Call a function with every block of :func:`_plane_blocks`, in threads on a CPU."""
    inference = torch.is_inference_mode_enabled()

    def work_alike(block: slice) -> None:
        # Torch has this mode for each thread on its own.
        with torch.inference_mode(inference):
            work(block)

    blocks = _plane_blocks(modes)
    on_cpu = modes.device.type == "cpu"
    for _ in map_ahead(work_alike, blocks) if on_cpu else map(work, blocks):
        pass


def _plane_blocks(modes: Tensor) -> Iterator[slice]:
    """Cut the first (or the equally long second) axis into blocks of planes of a suitable size."""
    cells = modes.shape[-3]
    target = BLOCK_BYTES_CPU if modes.device.type == "cpu" else BLOCK_BYTES_GPU
    step = max(1, target // (modes.shape[-2] * modes.shape[-1] * modes.element_size()))
    for start in range(0, cells, step):
        yield slice(start, min(start + step, cells))
