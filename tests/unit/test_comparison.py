"""Comparisons whose outcome is known on paper."""

import json
import math

import numpy as np
import pytest
import torch

from cosmoflow.errors import DataError
from cosmoflow.numerics import fourier, spectra
from cosmoflow.numerics.blocks import central_boxes
from cosmoflow.numerics.comparison import QUANTITIES, SUBBOX_QUANTITIES, Patch, compare
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.residuals import ResidualSum, sum_residual
from tests.cases import each

BOX, CELLS = 96.0, 24


def fields(cells=CELLS, seed=0):
    random = np.random.default_rng(seed)
    density = np.exp(random.normal(0.0, 0.8, (cells,) * 3))
    density /= density.mean()
    velocity = 100.0 * random.normal(size=(3, cells, cells, cells))
    return density.astype(np.float32), velocity.astype(np.float32)


def curves(found):
    for part in ("full", "subbox"):
        for quantity, block in found.metrics["spectra"][part]["quantities"].items():
            for name, curve in block["methods"].items():
                yield part, quantity, name, block, curve


@pytest.fixture(scope="module")
def basics():
    """Compare the truth, half of it, its opposite and its rotation by 90 degrees about z."""
    density, truth = fields()
    rotated = np.stack([-truth[1], truth[0], truth[2]])
    predictions = {"same": truth, "half": 0.5 * truth, "opposite": -truth, "rotated": rotated}
    return density, truth, compare(density, truth, predictions, BOX, subbox=40.0)


def test_the_truth_has_no_residual(basics):
    _, _, found = basics
    same = found.metrics["residual"]["same"]
    for key in ("rms", "rms_1d", "mass_weighted_rms", "relative", "mean_residual"):
        assert same[key] == 0.0
    assert same["mean_cosine"] == pytest.approx(1.0, abs=1e-12)
    assert same["scatter_cosine"] == pytest.approx(0.0, abs=1e-6)
    assert same["correlation"] == pytest.approx(1.0, abs=1e-12)
    assert same["slope"] == pytest.approx(1.0, abs=1e-12)


def test_the_truth_has_unit_transfer_and_correlation(basics):
    seen = set()
    for part, quantity, name, block, curve in curves(basics[2]):
        if name == "same":
            seen.add((part, quantity))
            np.testing.assert_allclose(curve["T"], 1.0, rtol=1e-12)
            np.testing.assert_allclose(curve["r"], 1.0, rtol=1e-12)
            assert curve["power"] == block["truth"]
    assert seen == {("full", q) for q in QUANTITIES} | {("subbox", q) for q in SUBBOX_QUANTITIES}


def test_half_the_truth_is_off_by_half(basics):
    _, truth, found = basics
    rms = math.sqrt(float(np.mean(np.sum(truth.astype(np.float64) ** 2, axis=0))))
    assert found.metrics["truth"]["rms"] == pytest.approx(rms, rel=1e-12)
    half = found.metrics["residual"]["half"]
    assert half["rms"] == pytest.approx(0.5 * rms, rel=1e-12)
    assert half["relative"] == pytest.approx(0.5, rel=1e-12)
    assert half["slope"] == pytest.approx(0.5, rel=1e-12)
    assert half["mean_cosine"] == pytest.approx(1.0, abs=1e-12)
    for _, _, name, _, curve in curves(found):
        if name == "half":
            # Everything compared is linear in v or in |v|.
            np.testing.assert_allclose(curve["T"], 0.25, rtol=1e-4)
            np.testing.assert_allclose(curve["r"], 1.0, rtol=1e-5)


def test_the_opposite_of_the_truth_points_the_other_way(basics):
    found = basics[2]
    opposite = found.metrics["residual"]["opposite"]
    assert opposite["relative"] == pytest.approx(2.0, rel=1e-12)
    assert opposite["mean_cosine"] == pytest.approx(-1.0, abs=1e-12)
    assert opposite["correlation"] == pytest.approx(-1.0, abs=1e-12)
    quantities = found.metrics["spectra"]["full"]["quantities"]
    for quantity, sign in (
        ("speed", 1.0),
        ("momentum", 1.0),
        ("theta_p", 1.0),
        ("divergence", -1.0),
        ("vorticity", -1.0),
        ("momentum_vector", -1.0),
        ("momentum_curl_vector", -1.0),
    ):
        np.testing.assert_allclose(quantities[quantity]["methods"]["opposite"]["r"], sign, 1e-6)


def test_a_rotated_velocity_has_the_analytic_residual(basics):
    _, truth, found = basics
    x, y, z = truth.astype(np.float64)
    # (-y, x, z) - (x, y, z) squared is 2 (x^2 + y^2); the dot product is z^2.
    rotated = found.metrics["residual"]["rotated"]
    assert rotated["rms"] == pytest.approx(math.sqrt(np.mean(2.0 * (x**2 + y**2))), rel=1e-12)
    assert rotated["rms_per_axis"][2] == 0.0
    cosine = z**2 / (x**2 + y**2 + z**2)
    assert rotated["mean_cosine"] == pytest.approx(cosine.mean(), rel=1e-12)
    assert rotated["scatter_cosine"] == pytest.approx(cosine.std(), rel=1e-9)
    speeds = found.metrics["spectra"]["full"]["quantities"]["speed"]["methods"]["rotated"]
    np.testing.assert_allclose(speeds["r"], 1.0, rtol=1e-6)


def test_residual_figures_match_numpy_on_noise():
    density, truth = fields(seed=1)
    prediction = fields(seed=2)[1]
    metrics = compare(density, truth, {"noise": prediction}, BOX, subbox=200.0).metrics
    found = metrics["residual"]["noise"]
    difference = (prediction.astype(np.float64) - truth) ** 2
    size = np.sqrt(difference.sum(axis=0))
    assert found["rms"] == pytest.approx(math.sqrt(np.mean(size**2)), rel=1e-12)
    assert found["rms_1d"] == pytest.approx(math.sqrt(difference.mean()), rel=1e-12)
    assert found["mean_residual"] == pytest.approx(size.mean(), rel=1e-12)
    assert found["scatter_residual"] == pytest.approx(size.std(), rel=1e-9)
    weighted = math.sqrt(np.average(size**2, weights=density.astype(np.float64)))
    assert found["mass_weighted_rms"] == pytest.approx(weighted, rel=1e-12)
    assert metrics["spectra"]["subbox"] is None

    by_density = metrics["by_density"]
    edges = np.array(by_density["log10_density_edges"])
    index = np.digitize(np.log10(density.astype(np.float64)), edges) - 1
    assert sum(by_density["cells"]) == CELLS**3
    for i, value in enumerate(by_density["methods"]["noise"]):
        inside = index == i
        assert by_density["cells"][i] == inside.sum()
        if inside.any():
            assert value == pytest.approx(math.sqrt(np.mean(size[inside] ** 2)), rel=1e-10)
        else:
            assert value is None


def test_residual_sums_add_up():
    density, truth = (torch.from_numpy(f) for f in fields(8))
    prediction = torch.from_numpy(fields(8, seed=5)[1])
    whole = sum_residual(density, truth, prediction)
    parts = ResidualSum.zero()
    for half in (slice(0, 3), slice(3, 8)):
        parts = parts + sum_residual(density[half], truth[:, half], prediction[:, half])
    np.testing.assert_allclose(parts.totals, whole.totals, rtol=1e-12)
    np.testing.assert_allclose(parts.bins, whole.bins, rtol=1e-12)


def test_empty_cells_and_cells_at_rest_are_counted():
    density, truth = fields(8)
    density[0, 0, 0] = 0.0
    truth[:, 1, 1, 1] = 0.0
    found = compare(density, truth, {"half": 0.5 * truth}, BOX).metrics
    assert found["by_density"]["cells"][0] >= 1
    assert found["residual"]["half"]["mean_cosine"] == pytest.approx(1.0, abs=1e-12)


def test_full_box_spectra_are_those_of_the_fields():
    density, truth = fields(16)
    found = compare(density, truth, {"half": 0.5 * truth}, BOX).metrics["spectra"]["full"]
    rho, v = torch.from_numpy(density).double(), torch.from_numpy(truth).double()
    speed = (v**2).sum(0).sqrt()
    for quantity, field in (
        ("speed", speed),
        ("momentum", speed * (rho - 1.0)),
        ("momentum_vector", rho * v),
    ):
        expected = spectra.auto_power(field, BOX)
        block = found["quantities"][quantity]
        np.testing.assert_allclose(block["truth"], expected.auto_a, rtol=1e-4)
        np.testing.assert_allclose(block["k"], expected.k, rtol=1e-12)


def test_the_window_corrects_the_momentum_vector_alone():
    density, truth = fields(12)
    plain = compare(density, truth, {"half": 0.5 * truth}, BOX).metrics["spectra"]["full"]
    cic = compare(density, truth, {"half": 0.5 * truth}, BOX, scheme="cic").metrics["spectra"]
    for quantity in QUANTITIES:
        before = np.array(plain["quantities"][quantity]["truth"])
        after = np.array(cic["full"]["quantities"][quantity]["truth"])
        if quantity.endswith("_vector"):
            assert np.all(after[-1] > 1.5 * before[-1])
        else:
            np.testing.assert_array_equal(after, before)


def test_subboxes_fill_the_centre():
    boxes = central_boxes(256, 60)
    assert len(boxes) == 64
    assert {box.shape for box in boxes} == {(60, 60, 60)}
    corners = [box.origin for box in boxes]
    assert corners == sorted(corners)
    assert corners[0] == (8, 8, 8)
    assert corners[-1] == (188, 188, 188)
    assert central_boxes(10, 12) == []


def test_every_spectrum_says_what_it_is_of(basics):
    spectra = basics[2].metrics["spectra"]
    assert list(spectra["full"]["quantities"]) == list(QUANTITIES)
    for quantity, block in spectra["full"]["quantities"].items():
        assert block["definition"] == FIELDS[QUANTITIES[quantity]].definition
    box = spectra["subbox"]["quantities"]
    assert "finite differences" in box["divergence"]["definition"]
    assert box["momentum"]["definition"] == spectra["full"]["quantities"]["momentum"]["definition"]


def test_a_single_subbox_is_the_plain_transform_of_the_whole():
    density, truth = fields(16)
    found = compare(density, truth, {"half": 0.5 * truth}, BOX, subbox=BOX).metrics["spectra"]
    box, full = found["subbox"], found["full"]
    assert (box["boxes"], box["cells"], box["side"]) == (1, 16, BOX)
    for quantity in ("speed", "momentum"):
        np.testing.assert_allclose(
            box["quantities"][quantity]["truth"], full["quantities"][quantity]["truth"], rtol=1e-5
        )
    # Differences at the faces are one-sided here and wrap there.
    assert box["quantities"]["theta_p"]["truth"] != full["quantities"]["theta_p"]["truth"]


def test_the_worst_transfer_and_the_samples_come_from_the_curve(basics):
    for _, _, _, block, curve in curves(basics[2]):
        k, transfer = np.array(block["k"]), np.array(curve["T"])
        inside = (k >= 0.2) & (k <= 1.4)
        worst = transfer[inside][np.argmax(np.abs(transfer[inside] - 1.0))]
        assert curve["worst"]["T"] == pytest.approx(worst)
        for at, value in zip(curve["sampled"]["k"], curve["sampled"]["T"], strict=True):
            if k[0] <= at <= k[-1]:
                assert value == pytest.approx(np.interp(at, k, transfer))
            else:
                assert value is None


def test_the_patch_is_centred_on_the_strongest_infall_and_wraps():
    cells, box = 64, 256.0
    density = np.ones((cells,) * 3, np.float32)
    density[1, 60, 30] = 500.0
    flow = fourier.linear_velocity(torch.from_numpy(density), box, 50.0, 6.0).numpy()
    found = compare(density, flow, {"half": 0.5 * flow}, box)
    assert found.patch == Patch(corner=(55, 50), cells=20, layer=30, layers=1, grid=64)
    cut = found.patch.cut(found.density)
    assert cut.shape == (20, 20)
    assert cut[10, 10] == 500.0
    assert found.patch.cut(found.velocity["half"]).shape == (3, 20, 20)
    np.testing.assert_array_equal(found.velocity["truth"], flow[..., 30])


def test_metrics_are_strict_json(basics):
    text = json.dumps(basics[2].to_json(), allow_nan=False)
    assert json.loads(text) == basics[2].metrics


def test_read_only_and_strided_arrays_are_welcome():
    density, truth = fields(8)
    swapped = np.asfortranarray(truth)
    for field in (density, truth, swapped):
        field.flags.writeable = False
    assert compare(density, truth, {"same": swapped}, BOX).metrics["residual"]["same"]["rms"] == 0.0


@each(
    ("change", "where"),
    [
        (lambda d, t, p: (d[:-1], t, p), "density"),
        (lambda d, t, p: (d, t[:2], p), "truth"),
        (lambda d, t, p: (d, t, {"net": p["net"][:, :-1]}), "net"),
        (lambda d, t, p: (d, t, {}), "predictions"),
        (lambda d, t, p: (d, t, {"truth": t}), "predictions"),
        (lambda d, t, p: (d, t, {"net": np.where(t > 250.0, np.nan, t)}), "net"),
        (lambda d, t, p: (d, np.where(np.abs(t) > 250.0, np.copysign(np.inf, t), t), p), "truth"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, where):
    density, truth = fields(8)
    with pytest.raises(DataError) as error:
        compare(*change(density, truth, {"net": truth}), BOX)
    assert error.value.where == where
