"""What a comparison is put together from: blocks, coarse cells, slices, sub-boxes."""

import itertools
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmoflow.numerics import spectra
from cosmoflow.numerics.blocks import central_block, central_boxes, grid_blocks, split_block
from cosmoflow.numerics.comparison import coarse, compare, power, slices, subboxes
from cosmoflow.numerics.comparison.readers import ArrayReader
from cosmoflow.numerics.comparison.subboxes import Subboxes
from tests import derivatives
from tests.cases import each
from tests.conftest import cut
from tests.unit.test_comparison import BOX, fields


def test_no_figure_depends_on_the_blocks():
    """Blocks that divide nothing: coarse cells and bins are shared among them."""
    density, truth = fields(20, seed=3)
    prediction = truth + fields(20, seed=4)[1]
    given = (density, truth, {"noise": prediction}, 100.0, 40.0)
    trust = {"errors": {"noise": np.abs(truth)}, "particles_per_cell": 1.5}
    whole, parts = (compare(*given, block=block, **trust) for block in (20, 7))
    assert parts.patch == whole.patch
    np.testing.assert_allclose(
        flat(parts.metrics["residual"]), flat(whole.metrics["residual"]), rtol=1e-11, atol=1e-9
    )
    for exact in ("errors", "by_particles"):
        assert parts.metrics[exact] == whole.metrics[exact]
    assert parts.metrics["distributions"] == whole.metrics["distributions"]
    for one, two in zip(*(worst(found) for found in (parts, whole)), strict=True):
        np.testing.assert_allclose(flat(one), flat(two), rtol=1e-12)
    np.testing.assert_array_equal(parts.density, whole.density)
    np.testing.assert_array_equal(parts.velocity["noise"], whole.velocity["noise"])
    np.testing.assert_allclose(parts.residual_map["noise"], whole.residual_map["noise"], rtol=1e-6)
    assert parts.metrics["spectra"] == whole.metrics["spectra"]


def worst(found):
    return found.metrics["largest_residuals"]["noise"]


def flat(metrics):
    """Return all numbers of nested metrics."""
    if isinstance(metrics, dict):
        return [number for value in metrics.values() for number in flat(value)]
    if isinstance(metrics, list):
        return [number for value in metrics for number in flat(value)]
    return [metrics]


def test_the_largest_residuals_are_where_they_are():
    """Boxes of 96 Mpc/h have coarse cells of 8 Mpc/h: 2 cells a side."""
    density, truth = fields()
    prediction = truth.copy()
    prediction[0, 4:6, 10:12, 20:22] += 30.0
    prediction[1, 23, 0, 7] += 40.0
    found = compare(density, truth, {"noise": prediction}, BOX)
    first, second, third, *_ = worst(found)
    assert len(worst(found)) == 5
    assert first["rms"] == pytest.approx(30.0, rel=1e-5)
    assert first["centre"] == pytest.approx([20.0, 44.0, 84.0])
    here = (slice(4, 6), slice(10, 12), slice(20, 22))
    assert first["density"] == pytest.approx(density[here].mean(), rel=1e-6)
    rms = np.sqrt((truth[(..., *here)].astype(float) ** 2).sum(axis=0).mean())
    assert first["truth_rms"] == pytest.approx(rms, rel=1e-6)
    assert second["rms"] == pytest.approx(40.0 / np.sqrt(8.0), rel=1e-5)
    assert second["centre"] == pytest.approx([92.0, 4.0, 28.0])
    assert third["rms"] == 0.0
    plane = found.residual_map["noise"]
    assert plane.shape == (12, 12)
    # One of twelve coarse cells of the column.
    assert plane[2, 5] == pytest.approx(30.0 / np.sqrt(12.0), rel=1e-5)
    assert np.count_nonzero(plane) == 2


@each(("cells", "bins"), [(24, 12), (20, 12), (28, 13), (7, 7), (5, 1)])
def test_every_cell_is_in_one_coarse_cell(cells, bins):
    starts = coarse.first_cells(cells, bins)
    assert starts[0] == 0
    assert starts[-1] == cells
    assert np.diff(starts).min() >= cells // bins
    values = np.random.default_rng(0).normal(size=(cells,) * 3)
    total = coarse.CoarseSum.zero(1, bins)
    for block in grid_blocks(cells, 3):
        runs = coarse.Runs(cells, bins, block.origin, block.shape)
        own = runs.sum(cut(values, block))
        total.add(coarse.CoarseSum(runs.origin, own[None]))
    index = np.arange(cells) * bins // cells
    expected = np.zeros((bins,) * 3)
    np.add.at(expected, np.ix_(index, index, index), values)
    np.testing.assert_allclose(total.values[0], expected, atol=1e-12)
    # In place, and to some of the quantities alone.
    whole = coarse.CoarseSum.zero(2, 4)
    whole.add(coarse.CoarseSum((1, 0, 2), np.ones((2, 2, 1, 1))))
    whole.add(coarse.CoarseSum((2, 0, 1), np.full((1, 1, 1, 2), 3.0)), 1)
    np.testing.assert_array_equal(whole.values[:, 1:3, 0, 1:3].sum(axis=2), [[1, 1], [1, 7]])
    assert whole.values.sum() == 10.0


def test_a_large_slice_is_averaged(monkeypatch):
    density, truth = fields(24)
    whole = compare(density, truth, {"half": 0.5 * truth}, BOX)
    monkeypatch.setattr(slices, "PLANE_CELLS", 12)
    found = compare(density, truth, {"half": 0.5 * truth}, BOX)
    assert found.density.shape == (12, 12)
    means = whole.velocity["truth"].reshape(3, 12, 2, 12, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found.velocity["truth"], means, rtol=1e-4, atol=1e-4)
    # The patch is that of the whole box, at its resolution.
    assert found.patch == whole.patch
    assert found.patch.cut(found.density).shape == (found.patch.cells,) * 2
    for quantity, named in whole.patch_fields.items():
        for name, field in named.items():
            np.testing.assert_array_equal(found.patch_fields[quantity][name], field)
    assert found.metrics["patch"] == whole.metrics["patch"]


def test_the_patch_has_the_derivatives_of_the_box():
    density, truth = fields(24)
    found = compare(density, truth, {"half": 0.5 * truth}, BOX)
    rho, v = torch.from_numpy(density), torch.from_numpy(truth)
    expected = {
        "density": rho,
        "velocity": v,
        "momentum": rho * v,
        "divergence": derivatives.divergence(v, BOX, "difference"),
        "momentum_curl": derivatives.curl(rho * v, BOX, "difference"),
    }
    layers = (np.arange(found.patch.layers) + found.patch.layer) % 24
    assert set(found.patch_fields) == set(expected)
    for name, field in expected.items():
        plane = found.patch.cut(field.numpy()[..., layers].mean(axis=-1))
        np.testing.assert_allclose(found.patch_fields[name]["truth"], plane, rtol=1e-5, atol=1e-4)


def test_errors_are_those_of_the_scatter_between_sub_boxes():
    """Of means of equal boxes the jackknife error is the standard error."""
    density, truth = fields(20, seed=6)
    found = compare(density, truth, {"half": 0.5 * truth}, BOX, subbox=48.0)
    block = found.metrics["spectra"]["subbox"]
    assert block["boxes"] == 8
    powers = []
    for x, y, z in itertools.product((0, 10), repeat=3):
        part = truth[:, x : x + 10, y : y + 10, z : z + 10].astype(float)
        speed = np.sqrt((part**2).sum(axis=0))
        powers.append(spectra.auto_power(torch.from_numpy(speed), 48.0).auto_a)
    speed = block["quantities"]["speed"]
    np.testing.assert_allclose(speed["truth"], np.mean(powers, axis=0), rtol=1e-5)
    error = np.std(powers, axis=0, ddof=1) / np.sqrt(8.0)
    np.testing.assert_allclose(speed["truth_error"], error, rtol=1e-4)
    half = speed["methods"]["half"]
    np.testing.assert_allclose(half["power_error"], 0.25 * error, rtol=1e-4)
    np.testing.assert_allclose(half["T_error"], 0.0, atol=1e-6)
    np.testing.assert_allclose(half["r_error"], 0.0, atol=1e-6)
    one = compare(density, truth, {"half": 0.5 * truth}, BOX, subbox=BOX)
    assert one.metrics["spectra"]["subbox"]["quantities"]["speed"]["truth_error"] is None


def test_groups_of_sub_boxes_in_any_order_are_single_ones_bit_for_bit(monkeypatch, tmp_path):
    """Also in a file, and their errors are those of the jackknife of all sums in memory."""
    density, truth = fields(22, seed=7)
    arrays = [ArrayReader(density, field, BOX) for field in (truth, 0.5 * truth + 3.0)]
    readers = dict(zip(("truth", "half"), arrays, strict=True))
    single = [power.sum_subboxes(readers, box, 5) for box in central_boxes(22, 5)]
    sums = [one.fields()["theta_p"] for one in single]
    sums = [replace(one, products=one.products[:, :, 0]) for one in sums]
    monkeypatch.setattr(subboxes, "HELD_BYTES", 1 << 10)
    monkeypatch.setattr(subboxes, "_BATCH_BYTES", 5000)
    with closing(Subboxes(22, 5, str(tmp_path))) as found:
        for group in split_block(central_block(22, 5), 10)[::-1]:
            found.put(group, power.sum_subboxes(readers, group, 5))
        assert found.count == len(sums) == 64
        total = found.total()["theta_p"]
        errors = found.jackknife(lambda given: given["theta_p"].spectrum(0, 1).correlation)
    value, expected = spectra.jackknife(sums, lambda one: one.spectrum(0, 1).correlation)
    np.testing.assert_array_equal(total.spectrum(0, 1).correlation, value)
    np.testing.assert_array_equal(total.mean_k, sum(sums[1:], start=sums[0]).mean_k)
    np.testing.assert_array_equal(errors, expected)
    assert not list(tmp_path.iterdir())
