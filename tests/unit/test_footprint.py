"""The memory of a forward pass, found on the meta device, against what tensors really take."""

import pytest
import torch
from torch import nn

from cosmoflow.model.footprint import count_activation_bytes
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import ARCHITECTURES, Architecture
from tests.cases import each


class Chain(nn.Module):
    """Two convolutions, whose results live at once."""

    geometry = Geometry(halo=0, stride=1, fixed_output=None, default_output=8)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 5, 1), nn.Conv3d(5, 3, 1)

    def forward(self, inputs):
        return self.second(self.first(inputs))


@pytest.fixture
def chain(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "chain", Architecture("chain", "for a test", Chain))
    count_activation_bytes.cache_clear()
    yield "chain"
    count_activation_bytes.cache_clear()


@each(("precision", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_chain_holds_what_can_be_counted_by_hand(chain, precision, size):
    # Five channels and three are the results; the input is not the network's to hold.
    assert count_activation_bytes(chain, 8, precision) == size * 8**3 * (5 + 3)


def test_a_residual_network_frees_what_it_has_used():
    # The most is there when features are joined: those of the way down with 156 cells per axis,
    # those of the way up with 132, and both of them side by side. All levels have been freed.
    assert count_activation_bytes("residual-small", 128, "bfloat16") == 2 * 16 * (
        156**3 + (1 + 2) * 132**3
    )


@each("name", ["residual-tiny", "residual-small", "paper"])
def test_larger_tiles_and_float32_take_more(name):
    if name == "paper":
        small = count_activation_bytes(name, 20, "bfloat16")
    else:
        small = count_activation_bytes(name, 16, "bfloat16")
        assert count_activation_bytes(name, 32, "bfloat16") > small
    tile = 20 if name == "paper" else 16
    assert count_activation_bytes(name, tile, "float32") == 2 * small


def test_no_memory_is_taken_to_find_out():
    # A tile of 2,000 cells per axis would take terabytes.
    assert count_activation_bytes("residual-large", 2000, "float32") > 1e12
    assert torch.empty(0).device.type == "cpu"
