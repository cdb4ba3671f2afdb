"""Residual networks of the registered depths reach as far as their summary says, and no further."""

import numpy as np
import pytest
import torch

from cosmoflow.config.networks import InferConfig
from cosmoflow.model.registry import find_architecture, summarise
from cosmoflow.model.sources import (
    MemoryFields,
)
from cosmoflow.model.velocity import ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.infer.ensemble import Ensemble, Member
from cosmoflow.stages.infer.tiles import Layout
from tests.cases import each
from tests.conftest import FLOWS, UNIT_FILTER, narrow_networks

NAMES = ("residual-tiny", "residual-medium")


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """The number of features has no say in how far a network reaches."""
    halos = [summarise(name).halo for name in NAMES]
    with narrow_networks():
        assert [summarise(name).halo for name in NAMES] == halos
        yield


def randomise(network, seed=0):
    """Give every layer random weights, the last one too, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.4 * spread)
            assert (parameter != 0).all()
    return network.eval()


@pytest.fixture(scope="module", params=NAMES)
def probe(request):
    """A network, its halo, an input one stride wider than one tile needs, and its output."""
    torch.manual_seed(0)
    architecture = find_architecture(request.param)
    summary = summarise(request.param)
    network = randomise(architecture.build())
    side = 2 * summary.stride + 2 * summary.halo
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn((1, architecture.channels, side, side, side), generator=generator)
    with torch.inference_mode():
        return network, summary.halo, summary.stride, inputs, network(inputs)


def changed_cells(probe, axis, layer):
    """Which output cells change when a whole layer of input cells does."""
    network, _, _, inputs, before = probe
    altered = inputs.clone()
    altered.select(2 + axis, layer).mul_(-3.0)
    with torch.inference_mode():
        difference = (network(altered) - before)[0].abs().amax(dim=0)
    return difference.movedim(axis, 0).flatten(1).amax(dim=1)


def test_output_is_the_input_less_a_halo_on_every_side(probe):
    _, halo, stride, inputs, before = probe
    assert before.shape == (1, 3, *(2 * stride,) * 3)
    assert inputs.shape[-1] - before.shape[-1] == 2 * halo


@each("axis", [0, 1, 2])
def test_the_first_tile_sees_its_halo_and_nothing_beyond(probe, axis):
    """The first of two tiles along an axis takes the inputs 0 to stride + 2 halo."""
    _, halo, stride, _, _ = probe
    last = stride + 2 * halo - 1
    assert changed_cells(probe, axis, last)[:stride].max() > 0.0
    assert changed_cells(probe, axis, last + 1)[:stride].max() == 0.0
    assert changed_cells(probe, axis, last + 1)[stride:].max() > 0.0


@each("axis", [0, 1, 2])
def test_the_second_tile_sees_its_halo_and_nothing_beyond(probe, axis):
    _, _, stride, _, _ = probe
    assert changed_cells(probe, axis, stride)[stride:].max() > 0.0
    assert changed_cells(probe, axis, stride - 1)[stride:].max() == 0.0
    assert changed_cells(probe, axis, stride - 1)[:stride].max() > 0.0


@pytest.fixture(scope="module")
def box():
    """A periodic box of noise; every channel counts."""
    rng = np.random.default_rng(5)
    return {
        "density": rng.lognormal(0.0, 0.8, (16,) * 3).astype(np.float32),
        "linear_velocity": (200.0 * rng.normal(size=(2, 3, *(16,) * 3))).astype(np.float32),
        "wiener_velocity": (200.0 * rng.normal(size=(3, *(16,) * 3))).astype(np.float32),
    }


def predict(name, fields, tile, block=None):
    constants = Normalisation(-0.2, 0.6, 210.0, 80.0)
    model = VelocityModel(
        ModelSpec(name, "velocity", 2.0, 0.0, {}, constants, filter=UNIT_FILTER)
    ).eval()
    randomise(model.network)
    block = block or Block((0, 0, 0), (16, 16, 16))
    layout = Layout(16, (16,) * 3, tile, batch=2)
    config, device = InferConfig(precision="float32"), torch.device("cpu")
    ensemble = Ensemble([Member(model, FLOWS)], layout, config, device)
    return ensemble.predict(ensemble.read(MemoryFields(fields), block)).mean


@each("name", NAMES)
def test_tiles_and_shifts_by_the_stride_change_rounding_only(name, box):
    whole = predict(name, box, 16)
    # The network's own part is not small beside the flow, so that rounding is all it hides.
    own = whole - box["wiener_velocity"]
    assert own.std() > 5.0
    scale = np.abs(whole).max()
    np.testing.assert_allclose(predict(name, box, 8), whole, rtol=0, atol=3e-6 * scale)
    shift = (4, -8, 12)
    rolled = {key: np.roll(field, shift, axis=(-3, -2, -1)) for key, field in box.items()}
    expected = np.roll(whole, shift, axis=(-3, -2, -1))
    np.testing.assert_allclose(predict(name, rolled, 16), expected, rtol=0, atol=3e-6 * scale)
    # Tiles of 12 hang over the end of the box of 16 and go on around the corner.
    np.testing.assert_allclose(predict(name, box, 12), whole, rtol=0, atol=3e-6 * scale)


def test_a_shift_off_the_lattice_does_change_the_answer(box):
    """Else the test above could not fail."""
    whole = predict("residual-tiny", box, 16)
    rolled = {key: np.roll(field, 1, axis=-1) for key, field in box.items()}
    found = np.roll(predict("residual-tiny", rolled, 16), -1, axis=-1)
    assert np.abs(found - whole).max() > 1e-2 * np.abs(whole).max()


def replace_activations(network):
    """Make a network linear."""
    for stack in network.children():
        for index, layer in enumerate(stack.children()):
            if isinstance(layer, torch.nn.SiLU):
                stack[index] = torch.nn.Identity()


@each("name", NAMES)
@each("level", [0, 1])
def test_skips_are_cut_around_the_same_cells(name, level):
    """With kernels that copy, each skip alone puts out the input (its mean over 2 cells) in place.

    Neither the halo nor a shift of the box can see a skip that is one cell off.
    """
    network = find_architecture(name).build().eval()
    replace_activations(network)
    halo, widths = network.geometry.halo, [network.encode_fine[0], network.encode_middle[0]]
    fine, middle = (layer.out_channels for layer in widths)
    first = sum(isinstance(layer, torch.nn.Conv3d) for layer in network.encode_fine)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        # A decoder's channels are what comes up from below, then the skip.
        wired = [(network.encode_fine, 0), (network.decode_fine, fine if level == 0 else 0)]
        if level == 1:
            wired += [(network.encode_middle, 0), (network.decode_middle, middle)]
            network.reduce_fine.weight[0, 0] = 0.125
            network.expand_fine.weight[0, 0] = 1.0
        for stack, channel in wired:
            for index, layer in enumerate(stack[::2]):
                layer.weight[0, channel if index == 0 else 0, 1, 1, 1] = 1.0
        network.output.weight[0, 0] = 1.0
    side = 8 + 2 * halo
    inputs = torch.rand((1, find_architecture(name).channels, side, side, side))
    with torch.inference_mode():
        found = network(inputs)[0, 0].numpy()
    field = inputs[0, 0].numpy()
    expected = field
    if level == 1:
        n = (side - 2 * first) // 2
        pairs = field[first:-first, first:-first, first:-first].reshape(n, 2, n, 2, n, 2)
        means = np.broadcast_to(pairs.mean(axis=(1, 3, 5), keepdims=True), pairs.shape)
        expected = np.pad(means.reshape((2 * n,) * 3), first)
    expected = expected[halo:-halo, halo:-halo, halo:-halo]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
