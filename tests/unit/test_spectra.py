"""Power spectra against single waves, noise and bins counted one mode at a time."""

import itertools
import math

import numpy as np
import pytest
import torch

from cosmoflow.numerics import fourier, spectra
from cosmoflow.numerics.spectra import PowerSum

BOX = 80.0


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(cells, m, amplitude=1.0, phase=0.4):
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) * 2.0 * math.pi / cells
    x, y, z = torch.meshgrid(x, x, x, indexing="ij")
    return amplitude * torch.cos(m[0] * x + m[1] * y + m[2] * z + phase)


def corner_bins(cells):
    return math.ceil(math.sqrt(3.0) * (cells // 2)) + 1


@pytest.mark.parametrize("cells", [7, 8])
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


def test_the_bin_table_holds_every_squared_length():
    bins = 40
    table = spectra.bin_table(bins)
    for squared, b in enumerate(table[:-1].tolist()):
        # Exact: (2 b - 1)^2 < 4 m^2 < (2 b + 1)^2.
        assert 4 * squared < (2 * b + 1) ** 2
        assert b == 0 or 4 * squared > (2 * b - 1) ** 2
    assert table[-1] == bins


@pytest.mark.parametrize("cells", [12, 13])
@pytest.mark.parametrize("m", [(1, 0, 0), (0, 2, 0), (0, 0, 3), (2, -1, 1), (-2, -3, 2)])
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


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_nyquist_wave_counts_once(axis):
    cells = 8
    shape = [1, 1, 1]
    shape[axis] = cells
    field = (
        torch.tensor([1.0, -1.0] * 4, dtype=torch.float64).view(shape).expand(cells, cells, cells)
    )
    found = spectra.auto_power(field, BOX)
    assert found.auto_a[-1] * found.modes[-1] == pytest.approx(BOX**3, rel=1e-13)


@pytest.mark.parametrize("cells", [10, 11])
def test_all_modes_together_hold_the_variance(cells):
    field = noise((3, cells, cells, cells))
    total = spectra.sum_modes(
        fourier.forward(field), cells=cells, box_size=BOX, bins=corner_bins(cells)
    )
    assert total.modes.sum() == cells**3
    assert total.modes[0] == 1
    assert total.aa.sum() / cells**6 == pytest.approx(float((field**2).sum()) / cells**3, rel=1e-12)


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


@pytest.mark.parametrize(("scheme", "power"), [("ngp", 1), ("cic", 2), ("tsc", 3), ("pcs", 4)])
def test_the_window_is_divided_out(scheme, power):
    assert spectra.WINDOWS[scheme] == power
    cells, m = 12, (4, -2, 1)
    damping = math.prod(math.sin(math.pi * i / cells) / (math.pi * i / cells) for i in m) ** power
    found = spectra.cross_power(wave(cells, m, damping), wave(cells, m), BOX, window=(power, 0))
    b = round(math.sqrt(21.0)) - 1
    assert found.auto_a[b] == pytest.approx(found.auto_b[b], rel=1e-12)
    assert found.cross[b] == pytest.approx(found.auto_b[b], rel=1e-12)


@pytest.mark.parametrize("window", [(0, 0), (2, 2)])
def test_sums_of_blocks_add_up_to_the_sum_of_the_box(window):
    cells = 10
    a, b = (fourier.forward(noise((3, cells, cells, cells), seed)) for seed in (1, 2))
    whole = spectra.sum_modes(a, b, cells=cells, box_size=BOX, window=window)
    total = PowerSum.zero(cells, BOX)
    for x, y, z in itertools.product(
        (slice(0, 3), slice(3, 10)), (slice(0, 10),), (slice(0, 2), slice(2, 6))
    ):
        total = total + spectra.sum_modes(
            a[..., x, y, z],
            b[..., x, y, z],
            cells=cells,
            box_size=BOX,
            window=window,
            start=(x.start, y.start, z.start),
        )
    for name in ("aa", "bb", "ab", "k", "modes"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-11)


def test_large_transforms_are_summed_in_slabs(monkeypatch):
    a = fourier.forward(noise((12,) * 3))
    whole = spectra.sum_modes(a, cells=12, box_size=BOX)
    monkeypatch.setattr(spectra, "_BLOCK_MODES", 12 * 7 * 5)
    slabs = spectra.sum_modes(a, cells=12, box_size=BOX)
    np.testing.assert_allclose(slabs.aa, whole.aa, rtol=1e-13)
    np.testing.assert_array_equal(slabs.modes, whole.modes)


def test_zero_is_neutral_and_the_sum_of_boxes_is_their_mean():
    cells = 8
    boxes = [noise((cells,) * 3, seed) for seed in (1, 2)]
    first, second = (
        spectra.sum_modes(fourier.forward(f), cells=cells, box_size=BOX) for f in boxes
    )
    zero = PowerSum.zero(cells, BOX)
    for total in (zero + first, first + zero):
        np.testing.assert_array_equal(total.aa, first.aa)
        np.testing.assert_array_equal(total.modes, first.modes)
    np.testing.assert_array_equal((first + second).ab, (second + first).ab)
    mean = (first + second).spectrum()
    expected = 0.5 * (first.spectrum().auto_a + second.spectrum().auto_a)
    np.testing.assert_allclose(mean.auto_a, expected, rtol=1e-13)
    np.testing.assert_allclose(mean.k, first.spectrum().k, rtol=1e-13)


def test_unlike_boxes_do_not_add():
    with pytest.raises(ValueError, match="unlike boxes"):
        PowerSum.zero(8, BOX) + PowerSum.zero(10, BOX)
    with pytest.raises(ValueError, match="unlike boxes"):
        PowerSum.zero(8, BOX) + PowerSum.zero(8, 2.0 * BOX)


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
