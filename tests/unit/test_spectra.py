"""Power spectra against single waves, noise and bins counted one mode at a time."""

import itertools
import math

import numpy as np
import pytest
import torch

from cosmoflow.numerics import fourier, spectra
from cosmoflow.numerics.spectra import PowerSum, WaveBins
from tests.cases import each

BOX = 80.0


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(cells, m, amplitude=1.0, phase=0.4):
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2.0 * math.pi / cells
    x, y, z = torch.meshgrid(x, x, x, indexing="ij")
    return amplitude * torch.cos(m[0] * x + m[1] * y + m[2] * z + phase)


def corner_bins(cells):
    return WaveBins.linear(cells, BOX, math.ceil(math.sqrt(3.0) * (cells // 2)))


@each("cells", [7, 8])
def test_modes_and_mean_k_match_a_count_of_every_wavevector(cells):
    axis = [i if 2 * i < cells else i - cells for i in range(cells)]
    members = {}
    for m in itertools.product(axis, axis, axis):
        length = math.sqrt(sum(i * i for i in m))
        members.setdefault(round(length), []).append(length)
    found = spectra.auto_power(noise((cells,) * 3), BOX)
    assert found.modes.size == cells // 2
    for b in range(1, cells // 2 + 1):
        assert found.modes[b - 1] == len(members[b])
        expected = 2.0 * math.pi / BOX * np.mean(members[b])
        assert found.k[b - 1] == pytest.approx(expected, rel=1e-14)


def test_no_mode_lies_on_an_edge_of_a_bin():
    bins = WaveBins.linear(80, BOX)
    assert bins.count == 40
    fundamental = 2.0 * math.pi / BOX
    for b, (low, high) in enumerate(itertools.pairwise(bins.limits), start=1):
        # Exact: (2 b - 1)^2 < 4 m^2 < (2 b + 1)^2.
        assert 4 * low < (2 * b - 1) ** 2 < 4 * (low + 1)
        assert 4 * high < (2 * b + 1) ** 2 < 4 * (high + 1)
    np.testing.assert_allclose(bins.edges, fundamental * (np.arange(41) + 0.5), rtol=1e-14)


@each(("cells", "per_decade"), [(8, 5), (31, 20), (64, 100)])
def test_logarithmic_bins_hold_every_mode_once_and_none_is_empty(cells, per_decade):
    bins = WaveBins.logarithmic(cells, BOX, per_decade)
    field = fourier.forward(noise((cells,) * 3))
    found = spectra.sum_products([field], [(0, 0)], bins)
    linear = spectra.sum_modes(field, cells=cells, box_size=BOX)
    assert found.modes.min() > 0
    assert found.modes.sum() == linear.modes.sum()
    assert found.products.sum() == pytest.approx(linear.products.sum(), rel=1e-12)
    assert (np.diff(found.mean_k) > 0).all()
    assert ((found.mean_k > bins.edges[:-1]) & (found.mean_k < bins.edges[1:])).all()
    # Where no bin was left out, each is as wide as all others in log k.
    wide = np.diff(np.log10(bins.edges))[-per_decade // 4 : -1]
    assert np.abs(wide - 1.0 / per_decade).max() < 0.3 / per_decade


@each("cells", [12, 13])
@each("m", [(1, 0, 0), (0, 2, 0), (0, 0, 3), (2, -1, 1), (-2, -3, 2)])
def test_a_plane_wave_has_its_power_in_its_bin(cells, m):
    amplitude = 3.0
    found = spectra.auto_power(wave(cells, m, amplitude), BOX)
    b = round(math.sqrt(sum(i * i for i in m)))
    # Two conjugate modes of amplitude A/2 each, V (A/2)^2 apiece.
    assert found.auto_a[b - 1] * found.modes[b - 1] == pytest.approx(
        2.0 * BOX**3 * (amplitude / 2.0) ** 2, rel=1e-12
    )
    others = np.delete(found.auto_a, b - 1)
    assert np.all(others < 1e-20 * found.auto_a[b - 1])


@each("axis", [0, 1, 2])
def test_the_nyquist_wave_counts_once(axis):
    cells = 8
    shape = [1, 1, 1]
    shape[axis] = cells
    field = (
        torch.tensor([1.0, -1.0] * 4, dtype=torch.float64).view(shape).expand(cells, cells, cells)
    )
    found = spectra.auto_power(field, BOX)
    assert found.auto_a[-1] * found.modes[-1] == pytest.approx(BOX**3, rel=1e-13)


@each("cells", [10, 11])
def test_all_modes_together_hold_the_variance(cells):
    field = noise((3, cells, cells, cells))
    total = spectra.sum_modes(
        fourier.forward(field), cells=cells, box_size=BOX, bins=corner_bins(cells)
    )
    assert total.modes.sum() == cells**3 - 1
    variance = float(field.var(dim=(1, 2, 3), correction=0).sum())
    assert total.products.sum() / cells**6 == pytest.approx(variance, rel=1e-12)


def test_white_noise_has_the_volume_of_a_cell_times_its_variance():
    cells, sigma = 48, 2.5
    found = spectra.auto_power(sigma * noise((cells,) * 3), BOX)
    expected = sigma**2 * (BOX / cells) ** 3
    # |a|^2 is exponentially distributed over modes / 2 independent modes.
    pull = (found.auto_a / expected - 1.0) * np.sqrt(found.modes / 2.0)
    assert np.abs(pull).max() < 5.0
    mean = np.average(found.auto_a, weights=found.modes)
    assert mean == pytest.approx(expected, rel=5.0 * math.sqrt(2.0 / found.modes.sum()))


def test_powers_of_a_vector_add_up():
    v = noise((3, 9, 9, 9))
    found = spectra.auto_power(v, BOX).auto_a
    expected = sum(spectra.auto_power(part, BOX).auto_a for part in v)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_cross_spectrum_transfer_and_correlation():
    a, b = noise((16,) * 3, 1), noise((16,) * 3, 2)
    found = spectra.cross_power(a, 2.0 * a, BOX)
    np.testing.assert_allclose(found.transfer, 4.0, rtol=1e-12)
    np.testing.assert_allclose(found.correlation, 1.0, rtol=1e-12)
    np.testing.assert_allclose(spectra.cross_power(a, -a, BOX).correlation, -1.0, rtol=1e-12)

    # |a + b|^2 = |a|^2 + |b|^2 + 2 Re a b*, bin by bin.
    found = spectra.cross_power(a, b, BOX)
    both = spectra.auto_power(a + b, BOX).auto_a
    np.testing.assert_allclose(both, found.auto_a + found.auto_b + 2.0 * found.cross, rtol=1e-11)
    assert np.all(np.abs(found.correlation) <= 1.0)


def test_nothing_correlates_with_nothing():
    a = noise((8,) * 3)
    found = spectra.cross_power(torch.zeros_like(a), a, BOX)
    assert np.isnan(found.transfer).all()
    assert np.isnan(found.correlation).all()


@each(("scheme", "power"), [("ngp", 1), ("cic", 2), ("tsc", 3), ("pcs", 4)])
def test_the_window_is_divided_out(scheme, power):
    assert spectra.WINDOWS[scheme] == power
    cells, m = 12, (4, -2, 1)
    damping = math.prod(math.sin(math.pi * i / cells) / (math.pi * i / cells) for i in m) ** power
    found = spectra.cross_power(wave(cells, m, damping), wave(cells, m), BOX, window=(power, 0))
    b = round(math.sqrt(21.0)) - 1
    assert found.auto_a[b] == pytest.approx(found.auto_b[b], rel=1e-12)
    assert found.cross[b] == pytest.approx(found.auto_b[b], rel=1e-12)


@each("axis", [None, 0, 1, 2])
@each("windows", [(0, 0), (2, 3)])
def test_sums_of_blocks_add_up_to_the_sum_of_the_box(windows, axis):
    cells, pairs = 10, ((0, 0), (1, 1), (0, 1))
    fields = [fourier.forward(noise((3, cells, cells, cells), seed)) for seed in (1, 2)]
    how = {"windows": windows, "axis": axis}
    bins = WaveBins.linear(cells, BOX)
    whole = spectra.sum_products(fields, pairs, bins, **how)
    total = PowerSum.zero(bins, pairs, 1 if axis is None else 3)
    for x, y, z in itertools.product(
        (slice(0, 3), slice(3, 10)), (slice(0, 7), slice(7, 10)), (slice(0, 2), slice(2, 6))
    ):
        blocks = [field[..., x, y, z] for field in fields]
        start = (x.start, y.start, z.start)
        total = total + spectra.sum_products(blocks, pairs, bins, start=start, **how)
    size = np.abs(whole.products).max()
    np.testing.assert_allclose(total.products, whole.products, rtol=1e-11, atol=1e-13 * size)
    np.testing.assert_allclose(total.k, whole.k, rtol=1e-12)
    np.testing.assert_array_equal(total.modes, whole.modes)


@each("cells", [8, 9])
@each("axis", [None, 2])
def test_pairs_that_share_a_field_are_the_same_alone(axis, cells):
    pairs = ((1, 1), (0, 2), (0, 0), (0, 1), (2, 2), (1, 2), (1, 1), (0, 1))
    fields = [fourier.forward(noise((3, cells, cells, cells), seed)) for seed in (1, 2, 3)]
    how = {"windows": (2, 0, 3), "axis": axis}
    bins = WaveBins.linear(cells, BOX)
    together = spectra.sum_products(fields, pairs, bins, **how)
    for pair, products in zip(pairs, together.products, strict=True):
        alone = spectra.sum_products(fields, [pair], bins, **how)
        np.testing.assert_allclose(products, alone.products[0], rtol=1e-13)


def test_large_transforms_are_summed_in_blocks_by_threads(monkeypatch):
    a = fourier.forward(noise((12,) * 3))
    whole = spectra.sum_modes(a, cells=12, box_size=BOX)
    monkeypatch.setattr(spectra.sums, "_BLOCK_MODES", 12 * 7 * 5)
    found = [spectra.sum_modes(a, cells=12, box_size=BOX) for _ in range(3)]
    np.testing.assert_allclose(found[0].products, whole.products, rtol=1e-13)
    np.testing.assert_array_equal(found[0].modes, whole.modes)
    # The order of additions is that of the blocks, whichever thread is first.
    for again in found[1:]:
        np.testing.assert_array_equal(again.products, found[0].products)


@each("axis", [0, 1, 2])
@each("m", [(1, 2, -2), (0, 0, 3), (-2, 3, 1)])
def test_multipoles_of_a_plane_wave_are_legendre_polynomials(axis, m):
    """All its power has one angle: P_l = (2 l + 1) L_l(mu) P_0."""
    cells = 12
    field = fourier.forward(wave(cells, m, 2.0))
    found = spectra.sum_products([field], [(0, 0)], WaveBins.linear(cells, BOX), axis=axis)
    b = round(math.sqrt(sum(i * i for i in m))) - 1
    mu = m[axis] / math.sqrt(sum(i * i for i in m))
    monopole = spectra.auto_power(wave(cells, m, 2.0), BOX).auto_a[b]
    for pole in (0, 2, 4):
        expected = (2 * pole + 1) * np.polynomial.Legendre.basis(pole)(mu) * monopole
        assert found.power(0, pole=pole)[b] == pytest.approx(expected, rel=1e-11, abs=1e-9)


def test_white_noise_has_no_multipoles_but_the_first():
    cells = 32
    field = fourier.forward(noise((cells,) * 3))
    found = spectra.sum_products([field], [(0, 0)], WaveBins.linear(cells, BOX), axis=2)
    for pole in (2, 4):
        ratio = found.power(0, pole=pole) / found.power(0)
        # The variance of the weights (2 l + 1) L_l(mu) is 2 l + 1, but in the first few bins.
        pull = ratio * np.sqrt(found.modes / 2.0 / (2 * pole + 1))
        assert np.abs(pull[3:]).max() < 4.5
    np.testing.assert_allclose(
        found.power(0), spectra.auto_power(noise((cells,) * 3), BOX).auto_a, rtol=1e-12
    )


def test_jackknife_of_the_mean_is_the_standard_error():
    """Leaving out one of n independent boxes gives s / sqrt(n), exactly."""
    cells = 8
    sums = [
        spectra.sum_modes(fourier.forward(noise((cells,) * 3, seed)), cells=cells, box_size=BOX)
        for seed in range(6)
    ]
    value, error = spectra.jackknife(sums, PowerSum.power)
    powers = np.stack([one.power() for one in sums])
    np.testing.assert_allclose(value, powers.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(error, powers.std(axis=0, ddof=1) / math.sqrt(6), rtol=1e-9)
    alone = spectra.jackknife(sums[:1], PowerSum.power)[1]
    assert np.isnan(alone).all()


def test_zero_is_neutral_and_the_sum_of_boxes_is_their_mean():
    cells = 8
    boxes = [noise((cells,) * 3, seed) for seed in (1, 2)]
    first, second = (
        spectra.sum_modes(fourier.forward(f), cells=cells, box_size=BOX) for f in boxes
    )
    zero = PowerSum.zero(WaveBins.linear(cells, BOX))
    for total in (zero + first, first + zero):
        np.testing.assert_array_equal(total.products, first.products)
        np.testing.assert_array_equal(total.modes, first.modes)
    np.testing.assert_array_equal((first + second).products, (second + first).products)
    mean = (first + second).spectrum()
    expected = 0.5 * (first.spectrum().auto_a + second.spectrum().auto_a)
    np.testing.assert_allclose(mean.auto_a, expected, rtol=1e-13)
    np.testing.assert_allclose(mean.k, first.spectrum().k, rtol=1e-13)


def test_unlike_boxes_do_not_add():
    zero = PowerSum.zero(WaveBins.linear(8, BOX))
    for other in (
        PowerSum.zero(WaveBins.linear(10, BOX)),
        PowerSum.zero(WaveBins.linear(8, 2.0 * BOX)),
        PowerSum.zero(WaveBins.linear(8, BOX), ((0, 0), (1, 1))),
        PowerSum.zero(WaveBins.linear(8, BOX), poles=3),
    ):
        with pytest.raises(ValueError, match="different boxes"):
            zero + other


def test_single_precision_is_summed_in_double():
    field = noise((32,) * 3)
    exact = spectra.auto_power(field, BOX)
    found = spectra.auto_power(field.float(), BOX)
    assert found.auto_a.dtype == np.float64
    np.testing.assert_allclose(found.auto_a, exact.auto_a, rtol=1e-5)


def test_sampling_is_linear_and_nothing_outside():
    found = spectra.auto_power(noise((8,) * 3), BOX)
    k = found.k
    at = [0.5 * k[0], k[1], 0.5 * (k[1] + k[2]), 2.0 * k[-1]]
    values = found.sample(3.0 * k, at)
    assert np.isnan(values[[0, 3]]).all()
    np.testing.assert_allclose(values[1:3], [3.0 * at[1], 3.0 * at[2]], rtol=1e-13)
