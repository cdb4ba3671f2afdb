"""Expected errors and numbers of particles against residuals that are known on paper."""

import math

import numpy as np
import pytest

from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.evaluate.report import page
from tests.cases import each

BOX, CELLS = 64.0, 32


@pytest.fixture(scope="module")
def box():
    """A box, normal errors that grow with density, and a velocity that is off by them."""
    random = np.random.default_rng(0)
    density = np.exp(random.normal(0.0, 1.0, (CELLS,) * 3)).astype(np.float32)
    density /= density.mean()
    truth = random.normal(0.0, 200.0, (3, *density.shape)).astype(np.float32)
    std = 20.0 * np.sqrt(density) * np.exp(random.normal(0.0, 0.3, truth.shape))
    std = std.astype(np.float32)
    prediction = (truth + std * random.normal(size=truth.shape)).astype(np.float32)
    return density, truth, prediction, std


@each(
    ("factor", "intervals"),
    [(1.0, (1.0, 1.96)), (0.5, (1.0, 1.96)), (2.0, (1.0, 1.96)), (0.5, (2.0, 3.92))],
)
def test_coverage_is_that_of_the_normal_distribution(box, factor, intervals):
    """Overall, in every quartile, and along the reliability curve; to four standard errors."""
    density, truth, prediction, std = box
    given = {"errors": {"a": np.float32(factor) * std}, "intervals": intervals}
    predictions = {"a": prediction, "b": prediction}
    found = compare(density, truth, predictions, BOX, 200.0, **given).metrics["errors"]
    assert list(found) == ["a"]
    found = found["a"]
    assert found["components"] == 3 * CELLS**3
    assert found["intervals"] == list(intervals)
    quartiles = found["quartiles"]
    assert sum(quartiles["cell_share"]) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(quartiles["cell_share"], 0.25, atol=0.05)
    for key, width in zip(("coverage_68", "coverage_95"), intervals, strict=True):
        expected = math.erf(factor * width / math.sqrt(2.0))
        error = math.sqrt(expected * (1.0 - expected) / found["components"])
        assert found[key] == pytest.approx(expected, abs=4.0 * error)
        for share in quartiles[key]:
            assert share == pytest.approx(expected, abs=8.0 * error)
        merged = np.array(found["by_density"][key], float)
        cells = np.array(found["by_density"]["cells"])
        assert np.nansum(merged * cells) / CELLS**3 == pytest.approx(found[key], rel=1e-12)
    curve = found["reliability"]
    numbers = {key: np.array(curve[key], float) for key in ("expected", "rms", "components")}
    full = numbers["components"] > 1000
    assert full.sum() > 5
    np.testing.assert_allclose(numbers["rms"][full], numbers["expected"][full] / factor, rtol=0.1)
    edges = np.array(curve["std_edges"])
    inside = (numbers["expected"] >= edges[:-1]) & (numbers["expected"] < edges[1:])
    assert inside[full].all()
    residual = (prediction.astype(float) - truth) ** 2
    total = np.nansum(numbers["rms"] ** 2 * numbers["components"])
    assert total == pytest.approx(residual.sum(), rel=1e-12)
    assert found["rms"] == pytest.approx(math.sqrt(residual.mean()), rel=1e-12)


def test_a_model_that_expects_no_error_is_right_only_where_it_is_exact(box):
    density, truth, *_ = box
    prediction = truth.copy()
    prediction[:, :8] += 1.0
    given = {"errors": {"a": np.zeros_like(truth)}}
    found = compare(density, truth, {"a": prediction}, BOX, 200.0, **given).metrics["errors"]["a"]
    assert found["coverage_68"] == found["coverage_95"] == 0.75
    assert found["reliability"]["components"][0] == found["components"]


@each("mean", [3.0, 7.0, 0.7])
def test_residuals_are_split_by_the_number_of_particles(box, mean):
    """Whole numbers of particles, as NGP paints them, are in the bin that they begin."""
    _, truth, prediction, _ = box
    values = [0, 0.4, 1, 2, 3, 4, 7.9, 8, 15, 16, 90]
    counts = np.random.default_rng(1).choice(values, (CELLS,) * 3)
    density = (counts / mean).astype(np.float32)
    metrics = compare(
        density, truth, {"a": prediction}, BOX, 200.0, particles_per_cell=mean
    ).metrics
    found = metrics["by_particles"]
    own = found["methods"]["a"]
    assert found["particles"] == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    residual = ((prediction.astype(float) - truth) ** 2).sum(axis=0)
    speed = (truth.astype(float) ** 2).sum(axis=0)
    bins = [counts == 0, (counts > 0) & (counts < 1)]
    bins += [(counts >= low) & (counts < 2 * low) for low in (1, 2, 4, 8)] + [counts >= 16]
    for place, inside in enumerate(bins):
        assert found["cells"][place] == inside.sum()
        assert found["truth"][place] == pytest.approx(np.sqrt(speed[inside].mean()), rel=1e-12)
        assert own["residual"][place] == pytest.approx(np.sqrt(residual[inside].mean()), rel=1e-12)
        assert own["share"][place] == pytest.approx(residual[inside].sum() / residual.sum())
    assert sum(own["share"]) == pytest.approx(1.0, abs=1e-12)


@each(
    ("components", "sizes", "found"),
    [
        ([0, 990, 10], (10.0, 1000.0), {"share": 0.01, "rms": 12.0, "expected_rms": 10.0}),
        ([0, 980, 20], (10.0, 1000.0), None),
        ([0, 990, 10], (10.0, 20.0), None),
    ],
)
def test_few_large_expected_errors_are_told_apart(components, sizes, found):
    curve = {"components": components, "expected": [None, *sizes], "rms": [None, 12.0, 100.0]}
    mean = np.average(np.square(sizes), weights=components[1:])
    errors = {"reliability": curve, "expected_rms": mean**0.5}
    assert page.without_largest(errors) == (found and pytest.approx(found))
