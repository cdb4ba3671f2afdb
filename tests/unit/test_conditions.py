"""Conditions of boxes, and functions of the condition: exact where the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.conditions import find_condition
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.cosmology.transfer import smooth_power
from cosmoflow.numerics.conditions import ConditionCurves, ConditionSpace
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.restoration import GAIN_STEP, GainSum, fit_gains
from cosmoflow.numerics.wiener import WienerFilter, sum_products
from cosmoflow.numerics.wiener_curves import STEP, fit_weights
from tests.cases import each
from tests.conftest import BOX, RATE, synthetic_fields

GRID = 24
BINS = RadialBins.covering(GRID, BOX)
FIELDS = ("contrast", "log_density")


@each(
    "parameters",
    [{}, {"Omega_m": 0.2, "sigma8": 0.7}, {"Omega_m": 0.4, "h": 0.6, "n_s": 1.0}],
)
def test_the_fitting_formula_agrees_with_the_boltzmann_code(parameters):
    cosmology = CosmologyConfig(**parameters)
    formula, code = smooth_power(cosmology), LinearPower.from_cosmology(cosmology)
    for radius in (0.6, 2.5, 8.0, 20.0):
        assert formula.sigma(radius) == pytest.approx(code.sigma(radius), rel=0.02)


def test_a_condition_is_that_of_linear_theory():
    cosmology = CosmologyConfig()
    now, then = (find_condition(cosmology, z, 2.0, 8.0) for z in (0.0, 1.0))
    growth = float(Background(cosmology).growth(0.5))
    assert then.fluctuation / now.fluctuation == pytest.approx(growth)
    assert then.displacement / now.displacement == pytest.approx(growth)
    assert (now.slope, now.matter) == (then.slope, pytest.approx(0.31))
    # A sphere of 8 Mpc/h has the volume of a cell of 12.9 Mpc/h.
    side = 8.0 * (4.0 * np.pi / 3.0) ** (1.0 / 3.0)
    assert find_condition(cosmology, 0.0, side, None).fluctuation == pytest.approx(0.83)
    unknown = replace(now, particles_per_cell=None)
    assert unknown.coordinates(8.0) == now.coordinates(1.0)
    assert unknown.coordinates(2.0) != now.coordinates(2.0)


def test_polynomials_need_boxes_and_do_not_extrapolate():
    rng = np.random.default_rng(1)
    points = rng.uniform(-3.0, 5.0, (60, 5))
    assert [ConditionSpace.covering(points[:count]).degree for count in (1, 11, 12, 60)] == [
        0, 0, 1, 2,
    ]  # fmt: skip
    space = ConditionSpace.covering(points)
    np.testing.assert_array_equal(space.terms(points.max(axis=0)), np.ones(21))
    np.testing.assert_array_equal(space.terms(points.max(axis=0) + 7.0), np.ones(21))
    # A coordinate that is the same in all boxes has no terms.
    points[:, 2] = 4.0
    assert ConditionSpace.covering(points).terms(points[0]).size == 15
    assert ConditionSpace.covering(points).linear == 5


def test_weights_that_vary_with_the_condition_are_found_again():
    """Flows made with weights that are linear in a coordinate, of boxes of other amplitudes."""
    coordinates = np.linspace(-1.0, 1.0, 8)[:, None]
    space = ConditionSpace((-1.0,), (1.0,), 1)
    design = np.stack([space.terms(one) for one in coordinates])
    k = BINS.width * np.arange(BINS.count)
    sums, made = [], []
    for seed, (where,) in enumerate(coordinates):
        density = torch.from_numpy(synthetic_fields(GRID, BOX / GRID, seed=seed)["density"])
        weights = np.stack([0.8 + 0.1 * where - 0.05 * k, 0.2 - 0.1 * where + 0.0 * k], axis=1)
        made.append(WienerFilter(FIELDS, BINS.width, tuple(map(tuple, weights.tolist()))))
        velocity = made[-1].velocity(density, BOX, RATE)
        sums.append(sum_products(density, velocity, BOX, RATE, FIELDS, BINS))
    curves = fit_weights(sums, design)
    assert curves.step == STEP
    for one, row, expected in zip(sums, design, made, strict=True):
        found = curves.at(row, k)
        # Within a bin, weights are fitted as one and applied interpolated.
        assert one.residual(found) < 1e-3 * (one.power[1:] / k[1:] ** 2).sum()
        held = slice(1, GRID // 2)
        np.testing.assert_allclose(found[held], np.array(expected.weights)[held], atol=0.05)


def test_gains_of_one_condition_are_the_roots_of_the_ratios():
    rng = np.random.default_rng(2)
    predicted = rng.uniform(1.0, 2.0, (2, BINS.count))
    # Linear in k, so that no knot averages over it.
    wanted = 1.0 + 0.2 * BINS.width * np.arange(BINS.count)
    sums = [GainSum(BINS, predicted * np.exp(2.0 * np.log(wanted)), predicted)] * 3
    curves = fit_gains(sums, [2.0] * 3, np.ones((3, 1)))
    k = np.arange(2, 20) * GAIN_STEP / 2.0
    found = np.exp(curves.at(np.ones(1), 2.0 * k))
    np.testing.assert_allclose(found, np.stack([1.0 + 0.2 * k] * 2, axis=1), rtol=2e-3)
    # Curves are linear between knots and constant beyond the last.
    curves = ConditionCurves(0.5, (((0.0,), (0.0,)), ((1.0,), (10.0,)), ((3.0,), (0.0,))))
    found = curves.at(np.array([1.0, 0.1]), [0.0, 0.25, 0.5, 0.75, 1.0, 9.0])
    np.testing.assert_allclose(found[:, 0], [0.0, 1.0, 2.0, 2.5, 3.0, 3.0])
