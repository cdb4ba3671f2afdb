"""The k-binned Wiener filter: exact where the answer is known, never worse than linear theory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmoflow.numerics.fourier import forward, inverse, linear_velocity
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.wiener import (
    FIELDS,
    SETS,
    WienerFilter,
    WienerSum,
    field_modes,
    sum_products,
)
from tests.cases import each
from tests.conftest import BOX, RATE, UNIT_FILTER, synthetic_fields

GRID = 32
BINS = RadialBins.covering(GRID, BOX)


@pytest.fixture(scope="module")
def density():
    return torch.from_numpy(synthetic_fields(GRID)["density"])


def fit(density, velocity, names):
    return sum_products(density, velocity, BOX, RATE, names, BINS).solve()


def rms(field):
    return float(field.double().square().sum(0).mean().sqrt())


def test_unit_weights_are_linear_theory(density):
    expected = linear_velocity(density, BOX, RATE)
    found = UNIT_FILTER.velocity(density, BOX, RATE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@each("names", SETS.values(), ids=SETS)
def test_a_flow_that_a_filter_made_is_found_again(density, names):
    """Weights that vary with k: those of the fit give the very flow, all that the grid holds."""
    rng = np.random.default_rng(1)
    weights = np.cumsum(rng.normal(0.0, 0.05, (BINS.count, len(names))), axis=0) + 1.0
    made = WienerFilter(names, BINS.width, tuple(map(tuple, weights.tolist())))
    velocity = made.velocity(density, BOX, RATE)
    again = fit(density, velocity, names).velocity(density, BOX, RATE)
    # Within a bin the weights are fitted as one and applied interpolated.
    assert rms(again - velocity) < 0.02 * rms(velocity)


def test_the_weight_of_a_smoothed_linear_flow_is_its_window(density):
    radius = 3.0
    velocity = linear_velocity(density, BOX, RATE, radius)
    found = np.array(fit(density, velocity, ("contrast",)).weights)[:, 0]
    k = BINS.width * np.arange(BINS.count)
    inside = slice(1, GRID // 2)
    # A weight is that of the mean mode of its bin, up to a fifth of a bin off the centre.
    np.testing.assert_allclose(found[inside], np.exp(-0.5 * (k * radius) ** 2)[inside], atol=0.03)


def test_rounding_is_given_no_weight():
    """A field smoothed away on small scales has weight 0 there, whatever its rounding says."""
    noise = np.random.default_rng(4).normal(size=(2, GRID, GRID, GRID)).astype(np.float32)
    density, source = torch.from_numpy(np.exp(0.7 * noise))
    # In cells of 1 Mpc/h the squares of what is smoothed at 4 Mpc/h end before the grid does.
    velocity = linear_velocity(density + 0.3 * source, GRID, RATE)
    bins = RadialBins.covering(GRID, GRID)
    weights = np.array(
        sum_products(density, velocity, GRID, RATE, SETS["wiener"], bins).solve().weights
    )
    last = GRID // 2
    assert (weights[1 : last + 1, :2] != 0.0).all()
    assert (weights[2, 2:] != 0.0).all()
    assert (weights[last:, 2:] == 0.0).all()


def test_more_fields_leave_less(density):
    velocity = torch.from_numpy(synthetic_fields(GRID)["velocity"])
    residuals = [
        rms(fit(density, velocity, SETS[name]).velocity(density, BOX, RATE) - velocity)
        for name in ("wiener-linear", "wiener-log", "wiener")
    ]
    linear = rms(linear_velocity(density, BOX, RATE) - velocity)
    assert linear > residuals[0] > residuals[1] > residuals[2]


def test_no_other_weights_leave_less(density):
    """The normal equations are those of the residual velocity, not of something near it."""
    velocity = torch.from_numpy(synthetic_fields(GRID)["velocity"])
    best = fit(density, velocity, SETS["wiener"])
    least = rms(best.velocity(density, BOX, RATE) - velocity)
    weights = np.array(best.weights)
    rng = np.random.default_rng(2)
    for _ in range(5):
        other = weights * (1.0 + 0.05 * rng.normal(size=weights.shape[1]))
        turned = replace(best, weights=tuple(map(tuple, other.tolist())))
        assert rms(turned.velocity(density, BOX, RATE) - velocity) > least


def test_sums_of_boxes_add_up(density):
    velocity = torch.from_numpy(synthetic_fields(GRID)["velocity"])
    one = sum_products(density, velocity, BOX, RATE, ("contrast",), BINS)
    two = WienerSum.zero(("contrast",), BINS) + one + one
    np.testing.assert_allclose(two.flow, 2.0 * one.flow)
    np.testing.assert_allclose(np.array(two.solve().weights), np.array(one.solve().weights))
    with pytest.raises(ValueError, match="different"):
        one + WienerSum.zero(("contrast",), replace(BINS, count=5))


def test_a_filter_of_one_box_serves_a_larger_one_with_the_same_cells(density):
    """A box of two copies along every axis has the same flow: bins are in k, not in modes."""
    smooth = WienerFilter(
        ("contrast",), BINS.width, tuple((1.0 / (1.0 + b),) for b in range(BINS.count))
    )
    small = smooth.velocity(density, BOX, RATE)
    large = smooth.velocity(density.repeat(2, 2, 2), 2.0 * BOX, RATE)
    torch.testing.assert_close(
        large[:, :GRID, GRID:, :GRID], small, rtol=0, atol=2e-5 * float(small.abs().max())
    )


def test_the_flow_has_no_curl_and_no_mean(density):
    names = SETS["wiener"]
    weights = ((0.5,) * len(names),) * BINS.count
    velocity = WienerFilter(names, BINS.width, weights).velocity(density, BOX, RATE)
    assert float(velocity.mean(dim=(1, 2, 3)).abs().max()) < 1e-4 * rms(velocity)
    modes = forward(velocity)
    k = 2.0 * np.pi * torch.fft.fftfreq(GRID, BOX / GRID)
    curl = k[:, None, None] * modes[1] - k[None, :, None] * modes[0]
    inner = curl[1 : GRID // 2, 1 : GRID // 2, 1 : GRID // 2]
    scale = float((k.max() * modes).abs().max())
    assert float(inner.abs().max()) < 1e-5 * scale


def test_the_squared_tide_of_a_plane_wave_is_its_squared_contrast():
    """One wave has a tide along its own direction only, and that is the contrast."""
    x = (torch.arange(GRID) + 0.5) * (BOX / GRID)
    density = 1.0 + 0.1 * torch.cos(2.0 * np.pi * 2.0 / BOX * x)[None, :, None].expand(
        GRID, GRID, GRID
    )
    tide, contrast = (
        inverse(modes, GRID)
        for modes in field_modes(density, BOX, ("squared_tide", "squared_contrast"))
    )
    torch.testing.assert_close(tide, contrast, rtol=1e-3, atol=1e-7)


def test_an_empty_cell_has_a_logarithm(density):
    emptied = density.clone()
    emptied[0, 0, 0] = 0.0
    for modes in field_modes(emptied, BOX, FIELDS):
        assert bool(torch.isfinite(torch.view_as_real(modes)).all())


def test_digests_do_not_depend_on_rounding():
    """A family's weights differ in their last bits from one processor to another."""
    one = WienerFilter(("contrast",), 0.1, ((0.0,), (0.7,), (-1e-12,)))
    other = WienerFilter(("contrast",), 0.1 + 1e-16, ((0.0,), (0.7 + 1e-15,), (1e-12,)))
    assert one != other
    assert one.digest == other.digest
    assert one.digest != replace(one, weights=((0.0,), (0.700001,), (0.0,))).digest


def test_digests_tell_filters_apart():
    other = replace(UNIT_FILTER, weights=((1.0,), (1.0,), (2.0,)))
    assert UNIT_FILTER.digest == replace(UNIT_FILTER).digest
    assert UNIT_FILTER.digest != other.digest
