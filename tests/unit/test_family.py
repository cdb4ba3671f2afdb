"""Families of models: one network for many conditions, folded into a plain one for each."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.conditions import COORDINATES, find_condition
from cosmoflow.errors import DataError
from cosmoflow.model.errors import KNOTS, ErrorScale, calibrate, size_loss
from cosmoflow.model.family import Family, FamilySpec, ModelFamily
from cosmoflow.model.folder import from_files, to_files
from cosmoflow.model.modulation import ModulatedNetwork
from cosmoflow.model.names import DESCRIPTION
from cosmoflow.model.residual import ResidualUNet
from cosmoflow.model.starting import begin_model, choose_layers
from cosmoflow.model.velocity import Fit, ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.conditions import ConditionCurves, ConditionSpace
from tests.cases import each
from tests.conftest import UNIT_FILTER, narrow_networks

CONDITIONS = [
    find_condition(CosmologyConfig(Omega_m=matter), z, cell, count)
    for matter, z, cell, count in (
        (0.31, 0.0, 2.0, 8.0),
        (0.2, 1.0, 1.0, 1.0),
        (0.4, 0.5, 3.0, 8.0),
    )
]


@pytest.fixture(autouse=True)
def narrow():
    with narrow_networks():
        yield


def make_family(errors=None):
    points = np.array([one.coordinates(8.0) for one in CONDITIONS])
    low, high = points.min(axis=0), points.max(axis=0)
    space = ConditionSpace(tuple(low.tolist()), tuple(high.tolist()), 1)
    terms = 1 + len(COORDINATES)

    def first(value, slope=0.0):
        return (value, slope, *(0.0,) * (terms - 2))

    limits = {
        "redshift": (0.0, 1.0), "Omega_m": (0.2, 0.4), "sigma8": (0.83, 0.83),
        "cell_size": (1.0, 3.0), "particles_per_cell": (1.0, 8.0), "h": (0.6, 0.7),
    }  # fmt: skip
    weights = ConditionCurves(0.1, (tuple((one,) for one in first(1.0, 0.1)),) * 3)
    family = Family(
        space, limits, 4.0, ("contrast",), weights, first(-0.5, 0.1), first(0.0, 0.1), first(-2.0)
    )
    return FamilySpec("residual-tiny", "velocity", family, errors=errors)


def shaken(model):
    """Give all weights random changes, so that the modulation and the last layer act."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def make_tiles(count, cells=34):
    generator = torch.Generator().manual_seed(1)
    density = torch.rand((count, cells, cells, cells), generator=generator) * 3.0
    return density, 300.0 * torch.randn((count, 1, 3, cells, cells, cells), generator=generator)


def test_a_folded_model_gives_what_the_modulated_network_gives():
    family = shaken(ModelFamily(make_family()))
    density, flows = make_tiles(len(CONDITIONS))
    frames = torch.tensor([family.spec.family.frame(one) for one in CONDITIONS])
    with torch.inference_mode():
        together = family.predict(density, flows, frames)
        for number, condition in enumerate(CONDITIONS):
            one = slice(number, number + 1)
            alone = family.at(condition)(density[one], flows[one])
            torch.testing.assert_close(alone, together[one], rtol=1e-5, atol=1e-3)
    # The condition acts: another one gives another field.
    assert not torch.allclose(alone, family.at(CONDITIONS[0])(density[one], flows[one]), rtol=0.01)


def test_weights_are_folded_in_float32_also_where_the_network_learns_in_bfloat16():
    """bfloat16 knows scales near 1 to 0.008, and inference folds in float32."""
    network = shaken(ModelFamily(make_family())).network
    condition = torch.tensor([0.3] * len(COORDINATES))
    plain = network.folded(condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.folded(condition)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_an_untrained_modulation_changes_nothing():
    network = ResidualUNet(4, (4, 8, 12), (1, 1, 2), (1, 2))
    torch.nn.init.normal_(network.output.weight)
    modulated = ModulatedNetwork(network, 5)
    inputs = torch.randn(2, 4, 34, 34, 34)
    with torch.inference_mode():
        torch.testing.assert_close(
            modulated(inputs, torch.randn(2, 5)), network(inputs), rtol=1e-4, atol=1e-3
        )


def test_a_family_begins_with_the_field_of_the_model_that_it_starts_from():
    condition = CONDITIONS[0]
    constants = Normalisation(-0.4, 0.8, 250.0, 40.0)
    start = shaken(
        VelocityModel(
            ModelSpec("residual-tiny", "velocity", 2.0, 0.0, {}, constants, filter=UNIT_FILTER)
        )
    )
    family = begin_model(make_family(), start, condition)
    density, flows = make_tiles(1)
    with torch.inference_mode():
        expected, found = start(density, flows), family.at(condition)(density, flows)
    assert float(expected.std()) > 100.0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.01)


def test_frozen_layers_do_not_learn():
    family = ModelFamily(make_family())
    choose_layers(family.network, "modulation")
    learning = {name for name, one in family.network.named_parameters() if one.requires_grad}
    assert learning == {
        "network.output.weight", "network.output.bias", "modulation.hidden.weight",
        "modulation.hidden.bias", "modulation.output.weight", "modulation.output.bias",
    }  # fmt: skip


@each("terms", [6, 21])
def test_a_stored_family_is_the_same(terms):
    reach = ((-1.0, 0.5),) * len(COORDINATES) if terms > 6 else ()  # earlier versions had none
    interval = (0.8, *(0.01,) * (terms - 1)) if terms > 6 else ()  # nor these
    errors = ErrorScale(((0.1,) * terms,) * KNOTS, 2.2, 1.5, 0.4, reach, interval)
    family = shaken(ModelFamily(make_family(errors)))
    files = to_files(family)
    again = from_files(files, "m")
    assert again.spec == family.spec
    for name, value in family.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], value, rtol=0, atol=0)
    # So is the model of one condition that it gives.
    one = family.at(CONDITIONS[1])
    assert from_files(to_files(one), "m").spec.errors == one.spec.errors
    # The range of training is kept, too.
    family = again.spec.family
    assert family.fit(CONDITIONS[1]) == Fit((), None)
    # Families of earlier versions have no limits of h or n_s.
    far = find_condition(CosmologyConfig(sigma8=0.9, h=0.5, n_s=1.2), 2.0, 4.0, None)
    fit = family.fit(far)
    assert fit.assumed_particles == 4.0
    found = {one.name: (one.value, one.low, one.high) for one in fit.excess}
    assert found == {
        "redshift": (2.0, 0.0, 1.0), "sigma8": (0.9, 0.83, 0.83), "cell_size": (4.0, 1.0, 3.0),
        "h": (0.5, 0.6, 0.7),
    }  # fmt: skip


def test_gains_are_those_at_the_edge_beyond_the_boxes_that_they_were_measured_in():
    coordinates = np.array([one.coordinates(8.0) for one in CONDITIONS])
    slopes = ((0.0, 0.0), (0.4, -0.2), *((0.0, 0.0),) * (len(COORDINATES) - 1))
    free = replace(make_family().family, gain=ConditionCurves(0.2, (slopes,) * 3))
    reach = tuple(zip(coordinates[0], coordinates[0], strict=True))
    tied = replace(free, gain_reach=reach)
    edge, beyond = (free.power_gain(one) for one in CONDITIONS[:2])
    assert edge.potential != pytest.approx(beyond.potential)
    for one in CONDITIONS:
        assert tied.power_gain(one).potential == pytest.approx(edge.potential)
        assert tied.power_gain(one).rotational == pytest.approx(edge.rotational)
    files = to_files(ModelFamily(replace(make_family(), family=tied)))
    assert from_files(files, "m").spec.family == tied
    files[DESCRIPTION] = files[DESCRIPTION].replace(
        b'"gain_reach": [', b'"gain_reach": [[2.0, 1.0],'
    )
    with pytest.raises(DataError, match="gain_reach"):
        from_files(files, "m")


def test_an_interval_that_does_not_fit_the_factors_is_refused():
    family = ModelFamily(make_family(ErrorScale(((0.1,) * 6,) * KNOTS, 2.2)))
    files = to_files(family)
    description = json.loads(files[DESCRIPTION])
    # What only some models have is left out of others.
    assert "log_interval_95" not in description["errors"]
    description["errors"]["log_interval_95"] = [0.8] * 5
    with pytest.raises(DataError, match="6 coefficients in errors"):
        from_files({**files, DESCRIPTION: json.dumps(description).encode()}, "m")
    # A damaged number gives a wide interval, and never one below that of 68 %.
    for value, expected in ((1e4, np.exp(5.0)), (-1e4, 1.0)):
        scale = ErrorScale(((0.1,) * 6,) * KNOTS, 2.2, log_interval_95=(value, *(0.0,) * 5))
        assert scale.at((0.0,) * 5).interval_95 == pytest.approx(expected)


def test_calibrated_sizes_hold_the_shares_that_they_promise():
    """Errors whose true size is known, of a network that misjudges dense cells by a factor of 2."""
    rng = np.random.default_rng(1)
    log_density = rng.normal(0.0, 1.0, (4, 24, 24, 24)).astype(np.float32)
    size = np.exp(0.3 * log_density)[:, None].repeat(3, axis=1).astype(np.float32)
    truth = size * np.where(log_density > 0.25, 2.0, 1.0)[:, None]
    residual = (truth * rng.standard_normal(size.shape)).astype(np.float32)
    scale = calibrate(list(residual), list(size), list(log_density), [()] * 4)
    scaled = size * scale.factor(torch.from_numpy(log_density)).numpy()[:, None]
    assert scale.interval_95 == pytest.approx(1.96, rel=0.05)
    for low, high in ((-9.0, -0.5), (-0.5, 0.0), (0.6, 9.0)):
        inside = (log_density > low) & (log_density < high)
        ratio = np.abs(residual / scaled).transpose(0, 2, 3, 4, 1)[inside]
        assert (ratio < 1.0).mean() == pytest.approx(0.6827, abs=0.01)
        assert (ratio < scale.interval_95).mean() == pytest.approx(0.95, abs=0.01)
    assert scale.log_factors[1] == pytest.approx((0.0,), abs=0.1)
    # The loss of sizes is least at the mean absolute error.
    residual = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    best = float(residual.abs().mean().log())
    losses = [float(size_loss(residual, torch.full((1,), best + d))) for d in (-0.1, 0.0, 0.1)]
    assert min(losses) == losses[1]


def test_the_interval_of_95_percent_depends_on_the_condition():
    """Errors are powers of Gaussian ones: the larger the power, the longer the tails."""
    rng = np.random.default_rng(6)
    places = np.linspace(-1.0, 1.0, 6)
    size = np.ones((3, 24, 24, 24), np.float32)
    residuals = [
        (np.abs(rng.standard_normal(size.shape)) ** (1.0 + 0.5 * x)).astype(np.float32)
        for x in places
    ]
    log_density = np.zeros(size.shape[1:], np.float32)
    blocks = [(x,) for x in places]
    scale = calibrate(residuals, [size] * len(blocks), [log_density] * len(blocks), blocks)
    for x, residual in zip(places, residuals, strict=True):
        one = scale.at((x,))
        assert one.interval_95 == pytest.approx(1.96 ** (1.0 + 0.5 * x), rel=0.04)
        inside = residual < one.interval_95 * np.exp(one.log_factors[4][0])
        assert inside.mean() == pytest.approx(0.95, abs=0.01)
    assert scale.at((5.0,)).interval_95 == scale.at((1.0,)).interval_95
    assert scale.at((1.0,)).at(()) == scale.at((1.0,))


@each(
    ("conditions", "told"),
    [(1, "constant"), (8, "linear"), (14, "quadratic"), (40, "cubes")],
)
def test_factors_depend_on_conditions_as_far_as_there_are_enough(conditions, told):
    """Sizes are too small by a factor whose logarithm is a polynomial of two coordinates."""
    cubic = 0.2 if told == "cubes" else 0.0
    rng = np.random.default_rng(5)
    where = rng.uniform(-1.0, 1.0, (conditions, 2))
    blocks = [where[number % conditions] for number in range(max(conditions, 8))]
    log_factors = [
        0.3 + 0.2 * x - 0.1 * y + 0.2 * x * y - 0.1 * y * y + cubic * x**3 for x, y in blocks
    ]
    size = np.ones((3, 24, 24, 24), np.float32)
    residuals = [
        (np.exp(one) * rng.standard_normal(size.shape)).astype(np.float32) for one in log_factors
    ]
    log_density = np.zeros(size.shape[1:], np.float32)
    scale = calibrate(residuals, [size] * len(blocks), [log_density] * len(blocks), blocks)
    found = np.array(scale.log_factors[4])
    assert len(found) == 8
    assert (found[1:3] != 0.0).all() == (told != "constant")
    assert (found[3:6] != 0.0).all() == (told in {"quadratic", "cubes"})
    assert (found[6:] != 0.0).all() == (told == "cubes")
    assert len(scale.log_interval_95) == (0 if told == "constant" else 8)
    errors = [
        scale.at(one).log_factors[4][0] - true
        for one, true in zip(blocks, log_factors, strict=True)
    ]
    limits = {"constant": 0.03, "linear": 0.2, "quadratic": 0.04, "cubes": 0.04}
    assert np.abs(errors).max() < limits[told]
    # Beyond the blocks the factors are those at their edge.
    edge = blocks[np.argmax([x for x, _ in blocks])][0], 0.0
    assert scale.at((9.0, 0.0)).log_factors == scale.at(edge).log_factors
    # Calibrations of models of before have no products.
    linear = ErrorScale(tuple(row[:3] for row in scale.log_factors), scale.interval_95)
    x, y = blocks[0]
    assert linear.at((x, y)).log_factors[4][0] == pytest.approx(found[:3] @ [1.0, x, y])


def test_sizes_that_a_network_exaggerates_are_bent():
    """The true size grows with the root of a network's size above that of 99 % of the cells."""
    rng = np.random.default_rng(3)
    shape = (3, 48, 48, 48)
    size = np.exp(0.8 * rng.standard_normal(shape)).astype(np.float32)
    bend = np.quantile(size, 0.99)
    true = np.minimum(size, bend) * np.sqrt(np.maximum(size / bend, 1.0))
    residual = (true * rng.standard_normal(shape)).astype(np.float32)
    log_density = np.zeros(shape[1:], np.float32)
    scale = calibrate([residual] * 3, [size] * 3, [log_density] * 3, [()] * 3)
    assert scale.growth == pytest.approx(0.5, abs=0.1)
    found = scale.size(torch.from_numpy(np.log(size)), torch.from_numpy(log_density)).numpy()
    np.testing.assert_allclose(found, true, rtol=0.15)


def test_sizes_are_calibrated_by_condition():
    """Networks that misjudge all errors of a box by a factor that depends on its condition."""
    rng = np.random.default_rng(2)
    coordinates = [(float(where),) for where in np.linspace(-1.0, 1.0, 8)]
    shape = (3, 16, 16, 16)
    residuals = [
        (np.exp(0.5 * where) * rng.standard_normal(shape)).astype(np.float32)
        for (where,) in coordinates
    ]
    sizes, densities = [np.ones(shape, np.float32)] * 8, [np.zeros(shape[1:], np.float32)] * 8
    scale = calibrate(residuals, sizes, densities, coordinates)
    for residual, where in zip(residuals, coordinates, strict=True):
        size = scale.at(where).factor(torch.zeros(1)).numpy()
        assert (np.abs(residual) < size).mean() == pytest.approx(0.6827, abs=0.015)
