"""What moves the weights: steps of the size that they should have, and a state to go on from."""

import copy

import pytest
import torch
from torch import nn

from cosmoflow.config.networks import TrainConfig
from cosmoflow.model.optimiser import Optimiser
from cosmoflow.model.registry import find_architecture


def test_muon_moves_all_directions_of_a_kernel_alike():
    """The step of a kernel, as a matrix, is far nearer to orthogonal than its gradient."""
    torch.manual_seed(0)
    network = find_architecture("residual-tiny").build()
    network = network.to(memory_format=torch.channels_last_3d)
    nn.init.normal_(network.output.weight)
    rate, slow = 0.01, 1e-4
    config = TrainConfig(
        steps=10, warmup=0.0, weight_decay=0.0, muon_rate=rate, learning_rate=slow,
        gradient_clip=1e9,
    )  # fmt: skip
    optimiser = Optimiser(network, config)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    network(torch.randn((1, 4, 38, 38, 38)) + 1.0).square().mean().backward()
    optimiser.step(0)
    for name, value in network.named_parameters():
        change = value.detach() - before[name]
        if value.dim() < 5 or name == "output.weight":
            # AdamW's first step is its rate for every weight that has a gradient.
            assert float(change.abs().max()) == pytest.approx(slow, rel=1e-2), name
            continue
        change, gradient = change.flatten(1), value.grad.flatten(1)
        # Torch scales tall matrices by the root of their aspect.
        scale = rate * max(1.0, change.shape[0] / change.shape[1]) ** 0.5
        sizes, given = torch.linalg.svdvals(change) / scale, torch.linalg.svdvals(gradient)
        assert 0.5 < float(sizes.max()) < 1.5, name
        spread, before_it = (float(one.median() / one.max()) for one in (sizes, given))
        assert spread > min(0.5, 4.0 * before_it), name


def test_an_optimiser_goes_on_from_its_state():
    config = TrainConfig(steps=10)

    def network():
        torch.manual_seed(0)
        made = find_architecture("residual-tiny").build()
        nn.init.normal_(made.output.weight)
        return made.to(memory_format=torch.channels_last_3d)

    def step(made, optimiser, number):
        generator = torch.Generator().manual_seed(number)
        optimiser.zero_grad()
        made(torch.randn((1, 4, 38, 38, 38), generator=generator)).square().mean().backward()
        optimiser.step(number)

    whole = network()
    optimiser = Optimiser(whole, config)
    step(whole, optimiser, 0)
    halfway = {name: value.clone() for name, value in whole.state_dict().items()}
    state = copy.deepcopy(optimiser.state_dict())
    step(whole, optimiser, 1)

    again = network()
    again.load_state_dict(halfway)
    resumed = Optimiser(again, config)
    resumed.load_state_dict(state)
    step(again, resumed, 1)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_batch_divides_among_workers():
    assert TrainConfig(batch=6, workers=3).workers == 3
    with pytest.raises(ValueError, match="batch 6"):
        TrainConfig(batch=6, workers=4)
