"""The networks: their size, their reach, their symmetry and their units."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cosmoflow.config.networks import InferConfig
from cosmoflow.errors import ConfigError
from cosmoflow.model import residual
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import (
    ARCHITECTURES,
    count_parameters,
    find_architecture,
    summarise,
)
from cosmoflow.model.residual import ResidualUNet
from cosmoflow.model.samples import (
    TrainingBox,
    measure_normalisation,
)
from cosmoflow.model.sources import (
    MemoryFields,
    read_inputs,
)
from cosmoflow.model.velocity import ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.symmetry import CUBE_GROUP
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.infer.ensemble import Ensemble, Member
from cosmoflow.stages.infer.tiles import Layout
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore
from tests.cases import each
from tests.conftest import FLOWS, UNIT_FILTER, narrow_networks, synthetic_fields

RESIDUAL = sorted(name for name in ARCHITECTURES if name.startswith("residual"))
CPU = torch.device("cpu")
DEPTHS = {"shallow": ((1, 1, 2), (1, 2)), "deep": ((2, 2, 2), (2, 2))}


def make_spec(architecture="residual-tiny", target="velocity", **changes):
    constants = {"density_mean": -0.2, "density_std": 0.6, "velocity_scale": 210.0}
    normalisation = Normalisation(**{**constants, "target_scale": 80.0, **changes})
    wiener = None if find_architecture(architecture).filter is None else UNIT_FILTER
    return ModelSpec(architecture, target, 2.0, 0.0, {"h": 0.7}, normalisation, filter=wiener)


def make_model(architecture="residual-tiny", target="velocity", *, trained=True, seed=0):
    """A narrow model in evaluation mode; ``trained`` gives its last layer weights."""
    torch.manual_seed(seed)
    with narrow_networks():
        model = VelocityModel(make_spec(architecture, target))
    if trained:
        nn.init.normal_(model.network.output.weight, std=0.5)
        nn.init.normal_(model.network.output.bias, std=0.5)
    return model.eval()


def random_inputs(model, output=4, batch=1, seed=0):
    cells = model.geometry.input_cells(output)
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand((batch, *(cells,) * 3), generator=generator) * 3.0
    flows = torch.randn((batch, model.flows, 3, *(cells,) * 3), generator=generator)
    return density, flows * 200.0


def predict(model, fields, tile=8, block=None, **config):
    source = MemoryFields(fields)
    grid = source.grid
    block = block or Block((0, 0, 0), (grid, grid, grid))
    members = [Member(model, FLOWS[: model.flows])]
    layout = Layout(grid, (grid,) * 3, tile, config.pop("batch", 1))
    config = InferConfig(**{"precision": "float32"} | config)
    ensemble = Ensemble(members, layout, config, CPU)
    return ensemble.predict(ensemble.read(source, block)).mean


@pytest.fixture(scope="module")
def periodic():
    return synthetic_fields(16, seed=3)


@pytest.fixture(scope="module")
def predicted(periodic):
    return predict(make_model(), periodic)


def test_the_papers_network_has_the_published_size():
    paper = summarise("paper")
    assert (paper.parameters, paper.trainable) == (48_690_307, 48_680_067)
    assert (paper.input_cells, paper.output_cells, paper.channels) == (32, 20, 1)
    assert summarise("paper-text").parameters == 48_690_307 + 19_968


@each("name", ["paper", "paper-text"])
def test_the_papers_network_maps_32_cells_to_20(name):
    with torch.device("meta"):
        network = find_architecture(name).build()
        output = network(torch.empty(2, 1, 32, 32, 32))
    assert output.shape == (2, 3, 20, 20, 20)


def test_the_papers_network_has_one_output_size():
    geometry = ARCHITECTURES["paper"].build.geometry
    assert geometry.check_output(20, "here") == 20
    with pytest.raises(ConfigError) as caught:
        geometry.check_output(24, "infer.tile")
    assert (caught.value.where, caught.value.value, caught.value.limit) == ("infer.tile", 24, 20)


def test_the_papers_last_layer_can_put_out_negative_values():
    with torch.device("meta"):
        layers = list(find_architecture("paper").build().children())
    assert isinstance(layers[-1], nn.ConvTranspose3d)


@each("name", ARCHITECTURES)
def test_what_the_summary_says_of_cells_is_so(name):
    summary = summarise(name)
    with torch.device("meta"):
        network = find_architecture(name).build()
        output = network(torch.empty(1, summary.channels, *(summary.input_cells,) * 3))
    assert output.shape == (1, 3, *(summary.output_cells,) * 3)
    assert summary.input_cells == summary.output_cells + 2 * summary.halo
    assert summary.parameters >= summary.trainable >= 0
    assert bool(summary.trainable) == ARCHITECTURES[name].learns


def test_flops_grow_with_the_square_of_the_widths():
    small, tiny = summarise("residual-small"), summarise("residual-tiny")
    # Twice the widths: four times the work, less where the four input channels enter.
    assert 3.0 < small.flops_per_output_cell / tiny.flops_per_output_cell < 4.0


@each("depth", DEPTHS)
def test_a_tile_depends_on_its_halo_and_on_nothing_else(depth):
    torch.manual_seed(0)
    network = ResidualUNet(1, (2, 2, 2), *DEPTHS[depth]).double().eval()
    halo = network.geometry.halo
    names = {"shallow": ("tiny", "small"), "deep": ("medium", "large")}[depth]
    assert {summarise(f"residual-{name}").halo for name in names} == {halo}
    # Positive weights and inputs: every path counts, none cancels.
    for parameter in network.parameters():
        parameter.data.abs_()
    network.output.weight.data.fill_(1.0)
    # The middle one of three tiles, cells 4 to 7, sees the inputs 4 to 7 + 2 halo.
    tile = network.geometry.stride
    cells = 3 * tile + 2 * halo
    low, high = tile, 2 * tile + 2 * halo - 1
    inputs = torch.rand((1, 1, cells, cells, cells), dtype=torch.float64)
    with torch.inference_mode():
        before = network(inputs)
        for axis in range(3):
            for position, seen in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
                cell = [tile + halo] * 3
                cell[axis] = position
                changed = inputs.clone()
                changed[(0, 0, *cell)] += 1e3
                difference = network(changed) - before
                assert difference.abs().max() > 0.0
                middle = difference[(..., *(slice(tile, 2 * tile),) * 3)]
                assert bool(middle.abs().max() > 0.0) == seen, (axis, position)


@each("name", RESIDUAL)
def test_tiles_off_the_lattice_are_refused(name):
    with torch.device("meta"):
        geometry = find_architecture(name).build().geometry
    assert geometry.check_output(24, "here") == 24
    with pytest.raises(ConfigError) as caught:
        geometry.check_output(22, "train.crop")
    assert caught.value.where == "train.crop"
    assert "4" in caught.value.limit


def test_an_average_over_all_symmetries_turns_with_the_box(periodic):
    """Exactly what a network does in the mean only."""
    turn = CUBE_GROUP[29]
    turned = {
        name: turn.apply(torch.from_numpy(field), vector=name != "density").contiguous().numpy()
        for name, field in periodic.items()
    }
    for count, agree in ((48, True), (1, False)):
        whole, found = (
            torch.from_numpy(predict(make_model(), fields, tile=16, symmetries=count))
            for fields in (periodic, turned)
        )
        difference = (found - turn.apply(whole, vector=True)).abs().max()
        assert bool(difference < 5e-6 * whole.abs().max()) == agree


def test_an_average_does_not_depend_on_the_tiling(periodic):
    whole = predict(make_model(), periodic, tile=16, symmetries=5)
    for tile in (8, 12):
        found = predict(make_model(), periodic, tile=tile, symmetries=5)
        np.testing.assert_allclose(found, whole, rtol=0, atol=3e-6 * np.abs(whole).max())
    assert np.abs(whole - predict(make_model(), periodic, tile=16)).max() > 0.1


def test_depths_that_do_not_fit_the_lattice_are_refused():
    with pytest.raises(ValueError, match="stride 4"):
        ResidualUNet(1, (2, 2, 2), (1, 1, 2), (1, 1))


def test_crops_and_their_gradients_keep_the_order_of_channels():
    # A gradient in another order makes a step of a training half as long again.
    leaf = torch.randn(2, 5, 8, 8, 8, requires_grad=True)
    field = (2.0 * leaf).to(memory_format=torch.channels_last_3d)
    found = []
    field.register_hook(found.append)
    cropped = residual._crop(field, 2)
    cropped.backward(torch.ones_like(cropped))
    assert cropped.stride()[1] == found[0].stride()[1] == 1
    np.testing.assert_array_equal(found[0].sum((0, 1)), np.pad(np.full((4,) * 3, 10.0), 2))
    with torch.inference_mode():
        np.testing.assert_array_equal(residual._crop(field, 2), cropped.detach())


@each("shift", [(4, 0, 0), (-4, 8, 12)])
def test_shifts_by_the_stride_commute_with_the_network(periodic, predicted, shift):
    assert np.abs(predicted - periodic["wiener_velocity"]).max() > 10.0
    rolled = {name: np.roll(field, shift, axis=(-3, -2, -1)) for name, field in periodic.items()}
    np.testing.assert_allclose(
        predict(make_model(), rolled),
        np.roll(predicted, shift, axis=(-3, -2, -1)),
        rtol=0,
        atol=2e-6 * np.abs(predicted).max(),
    )


@each(("tile", "batch"), [(4, 1), (8, 3), (12, 2), (16, 1)])
def test_the_tiling_does_not_change_the_prediction(periodic, predicted, tile, batch):
    found = predict(make_model(), periodic, tile=tile, batch=batch)
    np.testing.assert_allclose(found, predicted, rtol=0, atol=2e-6 * np.abs(predicted).max())


@each(
    ("origin", "shape"), [((0, 0, 0), (8, 8, 8)), ((3, 8, 8), (8, 8, 1)), ((12, 4, 12), (4,) * 3)]
)
def test_a_block_of_the_box_is_cut_from_the_whole(periodic, predicted, origin, shape):
    part = (slice(None), *(slice(o, o + n) for o, n in zip(origin, shape, strict=True)))
    found = predict(make_model(), periodic, block=Block(origin, shape))
    # Kernels for other shapes may add in another order.
    np.testing.assert_allclose(found, predicted[part], rtol=0, atol=2e-6 * np.abs(predicted).max())


@each("name", ["residual-tiny", "residual-small", "wiener", "linear:4"])
def test_an_untrained_network_is_its_first_flow(name):
    model = make_model(name, trained=False)
    density, flows = random_inputs(model)
    with torch.inference_mode():
        found = model(density, flows)
    assert torch.equal(found, model.inner(flows[:, 0]))


@each("name", ["residual-tiny", "wiener-log"])
def test_an_untrained_network_of_momentum_is_its_first_flow_times_density(name):
    model = make_model(name, target="momentum", trained=False)
    density, flows = random_inputs(model)
    with torch.inference_mode():
        found = model(density, flows)
    for axis in range(3):
        assert torch.equal(found[:, axis], model.inner(flows[:, 0, axis] * density))


def test_a_model_that_wants_a_filter_must_have_one_and_no_other():
    for name, wiener in (("residual-tiny", None), ("paper", UNIT_FILTER)):
        with pytest.raises(ValueError, match="filter"):
            VelocityModel(replace(make_spec(name), filter=wiener))


def test_untrained_prediction_of_a_box_is_its_wiener_filtered_velocity(fields_store):
    url = fields_store(12).url
    model = make_model(trained=False)
    # The other radius first, so that the order in the store is not the network's.
    ensure_flows(url, (6.0,), None, Run())
    flows = ensure_flows(url, (2.0, 6.0), model.spec.filter, Run())
    assert flows == ("wiener_velocity", 1, 0)
    store = FieldStore(url)
    block = Block((0, 0, 0), (12, 12, 12))
    members, layout = [Member(model, flows[:1])], Layout(12, (12,) * 3, 4)
    ensemble = Ensemble(members, layout, InferConfig(), CPU)
    found = ensemble.predict(ensemble.read(store, block)).mean
    rate = growth_rate_hubble(store.metadata)
    expected = linear_velocity(torch.from_numpy(store.read("density")), 24.0, rate).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_store_keeps_the_velocity_of_the_newest_filter(fields_store):
    url = fields_store(12).url
    double = replace(UNIT_FILTER, weights=((2.0,),) * 3)
    told = []
    found = []
    for wiener in (UNIT_FILTER, double, double):
        assert ensure_flows(url, (), wiener, Run(listener=told.append)) == ("wiener_velocity",)
        found.append(FieldStore(url).read("wiener_velocity"))
    assert len(told) == 2
    np.testing.assert_allclose(found[1], 2.0 * found[0], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(found[2], found[1])


class Stub(nn.Module):
    """A network of one cell of halo that puts out its density channel thrice."""

    geometry = Geometry(halo=1, stride=1, fixed_output=None, default_output=2)

    def forward(self, inputs):
        return inputs[:, :1, 1:-1, 1:-1, 1:-1].expand(-1, 3, -1, -1, -1)


@each("architecture", ["residual-tiny", "paper"])
@each("target", ["velocity", "momentum"])
def test_normalisation_undoes_itself(architecture, target):
    """What the network puts out is the normalised target of what the model predicts."""
    with torch.device("meta"):
        model = VelocityModel(make_spec(architecture, target))
    model.network = Stub()
    density, flows = random_inputs(model, output=5, batch=2)
    wanted = model.network(model.channels(density, flows))
    predicted = model(density, flows)
    found = model.normalised_target(predicted, density, flows)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    if architecture == "paper":
        # No global flow: km/s are the output times its scale, and log(1 + rho) goes in.
        expected = 80.0 * (torch.log1p(density) + 0.2) / 0.6
        torch.testing.assert_close(
            predicted[:, 0], expected[:, 1:-1, 1:-1, 1:-1], rtol=1e-5, atol=1e-3
        )


def test_measured_constants_make_inputs_and_targets_of_order_one(periodic):
    box = TrainingBox.slab(MemoryFields(periodic), FLOWS, 0, 16)
    architecture = find_architecture("residual-tiny")
    constants = measure_normalisation([box], "velocity", architecture.offset)
    model = VelocityModel(replace(make_spec(), normalisation=constants))
    model.network = Stub()
    density, flows = read_inputs(box.source, FLOWS, Block((0, 0, 0), (16, 16, 16)), 0)
    channels = model.channels(density[None], flows[None]).double()
    assert channels.shape == (1, 4, 16, 16, 16)
    assert channels[:, 0].mean().item() == pytest.approx(0.0, abs=1e-4)
    assert channels[:, 0].std().item() == pytest.approx(1.0, abs=1e-3)
    assert channels[:, 1:4].square().mean().item() == pytest.approx(1.0, abs=1e-4)
    haloed, flows = read_inputs(box.source, FLOWS, Block((0, 0, 0), (16, 16, 16)), 1)
    target = torch.from_numpy(periodic["velocity"])[None]
    residual = model.normalised_target(target, haloed[None], flows[None])
    assert residual.square().mean().item() == pytest.approx(1.0, abs=1e-4)


@each(
    ("name", "words"),
    [("residual-tinny", "did you mean 'residual-tiny'?"), ("xyz", "residual-large")],
)
def test_an_unknown_model_is_refused_with_a_suggestion(name, words):
    for call in (find_architecture, summarise, lambda n: VelocityModel(make_spec(n))):
        with pytest.raises(ConfigError, match=name) as caught:
            call(name)
        assert caught.value.exit_code == 2
        assert words in caught.value.remedy


def test_running_statistics_count_as_the_papers_parameters():
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    assert count_parameters(network) == (27 * 4 + 4 + 8 + 8, 27 * 4 + 4 + 8)
