"""Counts of cells against numpy's histograms of whole boxes, and where the answer is known."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from numba import njit

from cosmoflow.numerics.bin_search import find_asinh, find_log10, place, prepare_search
from cosmoflow.numerics.distributions import (
    AXES,
    JOINT,
    ONE_POINT,
    DistributionSum,
    bin_edges,
    sum_distributions,
)
from tests import derivatives
from tests.cases import each

CELLS, CELL, RATE = 20, 2.0, 50.0


@pytest.fixture(scope="module")
def box():
    """Density, truth and prediction, float32: the velocities of clusters and voids, and holes."""
    random = np.random.default_rng(5)
    density = np.exp(random.normal(0.0, 1.5, (CELLS,) * 3)).astype(np.float32)
    density[random.random(density.shape) < 0.05] = 0.0
    truth = random.normal(0.0, 250.0, (3, *density.shape)).astype(np.float32)
    prediction = truth + random.normal(0.0, 80.0, truth.shape).astype(np.float32)
    truth[:, 0, 0, :3] = 0.0
    prediction[:, 0, 0, 2:5] = 0.0
    prediction[:, 7, 7, 7] *= 1e4
    return density, truth, prediction


def with_halo(field, corner=(0, 0, 0), cells=(CELLS,) * 3):
    """Cut a block and one cell around it out of the periodic box."""
    at = np.ix_(*(np.arange(c - 1, c + n + 1) % CELLS for c, n in zip(corner, cells, strict=True)))
    return torch.from_numpy(np.ascontiguousarray(field[(..., *at)]))


def count(box, corner=(0, 0, 0), cells=(CELLS,) * 3):
    return sum_distributions(*(with_halo(field, corner, cells) for field in box), CELL, RATE)


def same(a, b):
    return a.cells == b.cells and all(np.array_equal(a.counts[n], b.counts[n]) for n in a.counts)


def wide(axis):
    """Return the edges of an axis with the outermost bins open, in the function's own values."""
    edges = axis.first + axis.step * np.arange(axis.bins + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    return edges


def scaled(name, values):
    with np.errstate(divide="ignore"):
        return {"linear": np.positive, "log10": np.log10, "asinh": np.arcsinh}[AXES[name].scale](
            values
        )


def histogram(name, values):
    # numpy leaves what is infinite out of bins, even of open ones.
    finite = np.nan_to_num(scaled(name, values), posinf=1e300, neginf=-1e300)
    return np.histogram(finite, wide(AXES[name]))[0]


def test_one_point_counts_are_numpys_of_the_whole_box(box):
    density, truth, prediction = (field.astype(np.float64) for field in box)
    true_speed, speed = (np.sqrt((field**2).sum(axis=0)) for field in (truth, prediction))
    residual = np.sqrt(((prediction - truth) ** 2).sum(axis=0))
    moving, directed = true_speed > 0.0, true_speed * speed > 0.0
    cosine = (truth * prediction).sum(axis=0)[directed] / (true_speed * speed)[directed]
    expected = {
        "speed": speed,
        "residual": residual,
        "ratio": residual[moving] / true_speed[moving],
        "cosine": cosine,
        "momentum": density * speed,
    }
    found = count(box)
    assert found.cells == CELLS**3
    for name in ONE_POINT:
        np.testing.assert_array_equal(found.counts[name], histogram(name, expected[name]), name)
    assert found.counts["ratio"].sum() == CELLS**3 - 3
    assert found.counts["cosine"].sum() == CELLS**3 - 5


def test_joint_counts_are_numpys_of_the_fields_that_calculus_derives(box):
    density, _, prediction = (torch.from_numpy(field) for field in box)
    side = CELLS * CELL
    theta = derivatives.divergence(prediction, side, "difference").double().numpy() / RATE
    curl = derivatives.curl(density * prediction, side, "difference")[0].double().numpy() / RATE
    found = count(box)
    rho = np.nan_to_num(scaled("density", box[0].astype(np.float64)), neginf=-1e300)
    for name, field in (("density_divergence", theta), ("density_curl", curl)):
        other = JOINT[name][1]
        expected = np.histogram2d(
            rho.ravel(), scaled(other, field).ravel(), (wide(AXES["density"]), wide(AXES[other]))
        )[0]
        np.testing.assert_array_equal(found.counts[name], expected, name)


@each("cuts", [((7,), (), ()), ((), (10,), (3, 17)), ((1, 2), (19,), (4, 9, 13))], ids=str)
def test_any_decomposition_gives_the_same_counts(box, cuts):
    spans = [list(itertools.pairwise((0, *inner, CELLS))) for inner in cuts]
    total = DistributionSum.zero()
    for block in itertools.product(*spans):
        corner, cells = [first for first, _ in block], [last - first for first, last in block]
        total = total + count(box, corner, cells)
    assert same(total, count(box))
    assert same(total + DistributionSum.zero(), total)


def test_a_hubble_flow_has_one_divergence_no_curl_and_no_residual():
    """v = -f a H delta x of one density: theta / (f a H) is minus the contrast everywhere."""
    cells, contrast = 6, 0.5
    x = CELL * (np.arange(cells + 2) - 2.25)
    velocity = np.stack(np.meshgrid(x, x, x, indexing="ij")).astype(np.float32)
    velocity *= -RATE * contrast / 3.0
    density = torch.full((cells + 2,) * 3, 1.0 + contrast)
    field = torch.from_numpy(velocity)
    found = sum_distributions(density, field, field, CELL, RATE)
    row = found.counts["density_divergence"].sum(axis=1).nonzero()[0]
    column = found.counts["density_divergence"].sum(axis=0).nonzero()[0]
    edges = bin_edges()
    assert len(row) == len(column) == 1
    assert edges["density"][row[0]] <= 1.5 < edges["density"][row[0] + 1]
    assert edges["divergence"][column[0]] <= -contrast < edges["divergence"][column[0] + 1]
    still = found.counts["density_curl"][row[0]].nonzero()[0]
    # Round-off may turn no curl into a tiny one on either side of zero.
    assert set(still) <= {AXES["curl"].bins // 2 - 1, AXES["curl"].bins // 2}
    assert found.counts["residual"][0] == found.counts["ratio"][0] == cells**3
    assert found.counts["cosine"][-1] == cells**3


def test_a_turned_velocity_is_at_a_right_angle_and_as_far_off_as_it_is_fast():
    truth = torch.zeros(3, 5, 5, 5)
    truth[0] = 100.0
    turned = truth.roll(1, 0)
    found = sum_distributions(torch.ones(5, 5, 5), truth, turned, CELL, RATE)
    place = {name: int(found.counts[name].nonzero()[0][0]) for name in ONE_POINT}
    edges = bin_edges()
    assert edges["speed"][place["speed"]] == 100.0
    assert edges["cosine"][place["cosine"]] == 0.0
    assert edges["residual"][place["residual"]] == 140.0
    assert edges["ratio"][place["ratio"]] <= 2.0**0.5 < edges["ratio"][place["ratio"] + 1]
    assert edges["momentum"][place["momentum"]] == pytest.approx(100.0)


def test_a_solid_rotation_has_the_curl_of_its_momentum():
    """p = rho omega x r has curl 2 rho omega."""
    cells, omega, rho = 5, 40.0, 2.0
    x = CELL * (np.arange(cells + 2) - 3.0)
    _, y, z = np.meshgrid(x, x, x, indexing="ij")
    velocity = torch.from_numpy(np.stack([0.0 * y, -omega * z, omega * y]).astype(np.float32))
    density = torch.full((cells + 2,) * 3, rho)
    found = sum_distributions(density, velocity, velocity, CELL, RATE)
    column = found.counts["density_curl"].sum(axis=0).nonzero()[0]
    edges = bin_edges()["curl"]
    assert len(column) == 1
    assert edges[column[0]] <= 2.0 * rho * omega / RATE < edges[column[0] + 1]


def test_what_has_no_mass_or_is_no_number_is_in_the_lowest_bins():
    """Ringing leaves densities below zero, and a count of them must not leave its array."""
    density, velocity = torch.ones(5, 5, 5), torch.full((3, 5, 5, 5), 100.0)
    density[2, 2, 2], density[1, 2, 3] = -0.01, 0.0
    found = sum_distributions(density, velocity, velocity, CELL, RATE)
    assert found.counts["momentum"][0] == 2
    assert found.counts["density_divergence"][0].sum() == 2
    assert found.counts["density_curl"][0].sum() == 2
    for name in (*ONE_POINT, *JOINT):
        assert found.counts[name].sum() == 27
    density[2, 2, 2], velocity[0, 1, 1, 1] = math.nan, math.nan
    counts = sum_distributions(density, velocity, velocity, CELL, RATE).counts
    for name, values in counts.items():
        assert values.min() >= 0
        assert values.sum() >= 25, name


def test_searched_bins_are_those_of_the_function():
    """Everywhere, and next to edges, where both round."""
    random = np.random.default_rng(3)
    special = [0.0, -0.0, 5e-324, -5e-324, 1e308, -1e308, np.inf, -np.inf, np.nan]
    for name in ("momentum", "density", "divergence", "curl"):
        axis = AXES[name]
        edges, scale = axis.edges(), axis.scale
        near = [
            edges + s * m * k for k in range(8) for s in (-1, 1) for m in (edges * 2e-16, 1e-16)
        ]
        wide = 10.0 ** random.uniform(-20.0, 20.0, 20_000)
        values = np.concatenate([*near, random.normal(size=20_000), wide, -wide, special])
        values = np.concatenate([values, edges.astype(np.float32), wide.astype(np.float32)])
        values = values[values > 0.0] if scale == "log10" else values
        search = prepare_search(edges, axis.first, axis.step)
        found, expected = bins_of(values, search, scale == "log10")
        np.testing.assert_array_equal(found, expected, err_msg=name)


@njit
def bins_of(values, search, logarithm):
    """Return the bins by search, and by the function."""
    found, expected = np.empty(values.size, np.int64), np.empty(values.size, np.int64)
    for i, value in enumerate(values):
        if logarithm:
            found[i] = find_log10(value, search)
            expected[i] = place(math.log10(value), search[2])
        else:
            found[i] = find_asinh(value, search)
            expected[i] = place(math.asinh(value), search[2])
    return found, expected


def test_figures_are_json_and_match_their_edges(box):
    figures, edges = count(box).figures(), bin_edges()
    assert json.loads(json.dumps(figures)) == figures
    assert set(figures) == {"cells", *ONE_POINT, *JOINT}
    for name, (rho, other) in JOINT.items():
        assert np.shape(figures[name]) == (len(edges[rho]) - 1, len(edges[other]) - 1)
        assert np.sum(figures[name]) == figures["cells"]
    for name in ONE_POINT:
        assert len(figures[name]) == len(edges[name]) - 1
    assert all(np.all(np.diff(values) > 0.0) for values in edges.values())


def test_what_does_not_fit_is_refused():
    density, velocity = torch.ones(5, 5, 5), torch.ones(3, 5, 5, 5)
    with pytest.raises(ValueError, match="halo"):
        sum_distributions(density[:2], velocity[:, :2], velocity[:, :2], CELL, RATE)
    with pytest.raises(ValueError, match="does not match"):
        sum_distributions(density, velocity, velocity[:, 1:], CELL, RATE)
    with pytest.raises(ValueError, match="not positive"):
        sum_distributions(density, velocity, velocity, CELL, 0.0)
