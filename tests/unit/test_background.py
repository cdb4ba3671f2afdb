from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import CubicSpline

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import EARLIEST, Background
from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.cosmology.spline import NaturalSpline
from cosmoflow.errors import ConfigError, DataError
from tests.cases import each

A = np.array([0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0])


def cosmology(**changes: float) -> CosmologyConfig:
    return CosmologyConfig(**changes)  # type: ignore[arg-type]


def test_einstein_de_sitter_grows_as_a() -> None:
    background = Background(cosmology(Omega_m=1.0))
    np.testing.assert_allclose(background.hubble_ratio(A), A**-1.5)
    np.testing.assert_allclose(background.growth(A), A, rtol=1e-8)
    np.testing.assert_allclose(background.growth2(A), -3.0 / 7.0 * A**2, rtol=1e-8)
    np.testing.assert_allclose(background.growth_rate(A), 1.0, rtol=1e-8)
    np.testing.assert_allclose(background.growth_rate2(A), 2.0, rtol=1e-8)
    np.testing.assert_allclose(background.growth_rate_hubble(A), 100.0 * A**-0.5, rtol=1e-8)


@each("Omega_m", [0.2, 0.31, 0.7])
def test_growth_equals_its_integral(Omega_m: float) -> None:
    """D1 is proportional to E(a) times the integral of (a E)^-3 (Heath 1977)."""
    background = Background(cosmology(Omega_m=Omega_m))

    def heath(a: float) -> float:
        integral, _ = quad(lambda x: (x * background.hubble_ratio(x)) ** -3, 0.0, a, epsrel=1e-12)
        return background.hubble_ratio(a) * integral

    expected = [heath(float(a)) / heath(1.0) for a in A]
    np.testing.assert_allclose(background.growth(A), expected, rtol=1e-8)


@each(
    "changes",
    [{}, {"Omega_k": -0.2}, {"w0": -2.5, "wa": 1.0}, {"Omega_m": 0.05, "Omega_k": 0.1, "w0": -0.7}],
)
def test_growth_solves_its_equations_as_scipy_does(changes: dict[str, float]) -> None:
    background = Background(cosmology(**changes))
    Omega_m = background.Omega_m

    def slopes(log_a: float, y: np.ndarray) -> list[float]:
        a = np.exp(log_a)
        rate = a**2 * background.hubble_ratio(a)
        d1, p1, d2, p2 = y
        force = 1.5 * Omega_m / (a * background.hubble_ratio(a))
        return [p1 / rate, force * d1, p2 / rate, force * (d2 - d1 * d1)]

    first, size = np.log(EARLIEST), EARLIEST
    root = Omega_m**0.5
    begin = [size, root * size**1.5, -3 / 7 * size**2, -6 / 7 * root * size**2.5]
    found = solve_ivp(slopes, (first, 0.0), begin, "DOP853", np.log(A), rtol=1e-13, atol=1e-30)
    d1, _, d2, _ = found.y / found.y[0, -1] ** np.array([1, 1, 2, 2])[:, None]
    np.testing.assert_allclose(background.growth(A), d1, rtol=1e-10)
    np.testing.assert_allclose(background.growth2(A), d2, rtol=1e-10)


def test_a_spline_is_scipys() -> None:
    x = np.sort(np.random.default_rng(1).uniform(-3.0, 3.0, 200))
    y = np.sin(x) + x
    for count in (4, 5, 200):
        expected = CubicSpline(x[:count], y[:count], bc_type="natural")
        found, at = NaturalSpline(x[:count], y[:count]), np.linspace(x[0], x[count - 1], 999)
        np.testing.assert_allclose(found(at), expected(at), rtol=1e-12)
        np.testing.assert_allclose(found.slope(at), expected(at, 1), rtol=1e-11)


def test_second_order_solves_its_equation() -> None:
    background = Background(cosmology())
    step = 1e-4

    def operator(function, a):
        slope = (function(a + step) - function(a - step)) / (2.0 * step)
        return a**3 * background.hubble_ratio(a) * slope

    a = np.array([0.2, 0.6, 0.95])
    left = operator(lambda b: operator(background.growth2, b), a)
    d1, d2 = background.growth(a), background.growth2(a)
    np.testing.assert_allclose(left, 1.5 * 0.31 * a * (d2 - d1**2), rtol=1e-5)
    # The fit of Bouchet et al. 1995.
    Omega = 0.31 * a**-3 / background.hubble_ratio(a) ** 2
    np.testing.assert_allclose(d2, -3.0 / 7.0 * d1**2 * Omega ** (-1.0 / 143.0), rtol=2e-3)


def test_growth_rate_is_near_the_known_power_of_omega() -> None:
    background = Background(cosmology())
    assert background.growth_rate(1.0) == pytest.approx(0.31**0.55, rel=1e-2)
    assert background.growth_rate_hubble(1.0) == pytest.approx(100 * background.growth_rate(1.0))


def test_scalars_arrays_and_pickles() -> None:
    background = Background(cosmology())
    assert isinstance(background.growth(0.5), float)
    assert background.growth(np.full((2, 3), 0.5)).shape == (2, 3)
    assert pickle.loads(pickle.dumps(background)).growth(0.5) == background.growth(0.5)
    with pytest.raises(ConfigError, match="scale factor"):
        background.growth(0.0)
    with pytest.raises(ConfigError, match="scale factor"):
        background.growth(float("nan"))


def test_power_has_the_sigma8_asked_for() -> None:
    power = LinearPower.from_cosmology(cosmology())
    assert LinearPower.from_cosmology(cosmology()) is power

    def integrand(log_k: float) -> float:
        k = np.exp(log_k)
        x = 8.0 * k
        window = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
        return float(k**3 * power(k) * window**2 / (2.0 * np.pi**2))

    pieces = [quad(integrand, *np.log(e), limit=400)[0] for e in ((1e-4, 0.1), (0.1, 1), (1, 20))]
    assert np.sqrt(sum(pieces)) == pytest.approx(0.83, rel=1e-5)


def test_power_is_a_sensible_spectrum() -> None:
    power = LinearPower.from_cosmology(cosmology())
    k = np.geomspace(1e-3, 10.0, 400)
    assert 0.013 < k[power(k).argmax()] < 0.02
    # Primordial at large scales, a power law beyond the table, nothing at k = 0.
    assert np.log(power(2e-5) / power(1e-5)) / np.log(2.0) == pytest.approx(0.96, abs=0.02)
    assert power(400.0) * power(100.0) == pytest.approx(power(200.0) ** 2, rel=1e-6)
    assert power(0.0) == 0.0
    assert power(np.zeros((2, 3))).shape == (2, 3)
    assert power(0.1) == pytest.approx(5700, rel=0.03)


def test_power_from_a_table() -> None:
    k = np.geomspace(0.01, 1.0, 20)
    power = LinearPower(k, 3.0 * k**-1.5)
    np.testing.assert_allclose(
        power([1e-4, 0.05, 50.0]), 3.0 * np.array([1e-4, 0.05, 50.0]) ** -1.5
    )
    assert LinearPower(k, k**-1.5).scaled_to(0.7).sigma(8.0) == pytest.approx(0.7)


@each(
    ("k", "values", "message"),
    [
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], "four"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0], "equal numbers"),
        ([0.0, 1.0, 2.0, 3.0], [1.0] * 4, "increasing"),
        ([1.0, 3.0, 2.0, 4.0], [1.0] * 4, "increasing"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 1.0, 1.0], "positive"),
        ([1.0, 2.0, 3.0, float("inf")], [1.0] * 4, "finite"),
    ],
)
def test_a_bad_table_is_refused(k: list[float], values: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LinearPower(k, values)


def test_impossible_requests_are_refused() -> None:
    power = LinearPower(np.arange(1.0, 6.0), np.ones(5))
    with pytest.raises(DataError, match="negative"):
        power(-1.0)
    with pytest.raises(ConfigError, match="baryons"):
        LinearPower.from_cosmology(cosmology(Omega_m=0.04))
