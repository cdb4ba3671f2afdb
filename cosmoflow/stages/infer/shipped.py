"""The shipped model beside others: whether it fits a box, and its predictions in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from cosmoflow.config.networks import InferConfig
from cosmoflow.engine import keeping_freed_buffers
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import Event, Message
from cosmoflow.model.footprint import count_activation_bytes
from cosmoflow.model.names import DEFAULT_MODEL
from cosmoflow.model.precision import best_device, has_fast_bfloat16, prepare_device
from cosmoflow.model.registry import count_flops
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, grid_blocks, place
from cosmoflow.stages import costs
from cosmoflow.stages.flows.stored import WIENER_BYTES
from cosmoflow.stages.infer.arrays import BLOCK_CELLS, add_flows, predict_blocks
from cosmoflow.stages.infer.ensemble import Floats, Member
from cosmoflow.stages.inputs.condition import check_scatter, expects_scatter
from cosmoflow.stages.models import check_fits, open_model
from cosmoflow.storage.fields import FieldStore

_PASS: Final = 2.25
"""Memory of a forward pass over that of its activations (measured: 0.67 GB for 128^3 cells, 1.43 of
1.47 planned for 256^3, with the flow and the predicted box)."""


@dataclass(frozen=True)
class Shipped:
    """A shipped model for a box, or why it does not fit.

    Parameters
    ----------
    name : str
        Name of the model.
    model : VelocityModel or None
        The model, made for the box; None if it does not fit.
    reason : str
        Why it does not fit; empty if it does.
    sampled : bool
        Whether the density was sampled to find that out.
    """

    name: str
    model: VelocityModel | None
    reason: str = ""
    sampled: bool = False

    def memory(self, grid: int) -> int:
        """Return the bytes that this process needs to predict a box."""
        if self.model is None:
            return 0
        side, architecture = min(BLOCK_CELLS, grid), self.model.spec.architecture
        precision = _precision()
        activations = count_activation_bytes(architecture, _tile(self.model, side), precision)
        # Buffers of the flow stay with the process while it predicts.
        return costs.BLOCK_OVERHEAD + WIENER_BYTES * grid**3 + int(_PASS * activations)

    def seconds(self, grid: int, predicted: int | None = None) -> float:
        """Return the core-seconds of the flow of a box and of a prediction.

        Parameters
        ----------
        grid : int
            Cells per axis of the box.
        predicted : int, optional
            Number of cells to predict; by default the whole box.
        """
        return 0.0 if self.model is None else prediction_seconds(grid, predicted, self.name)


def prediction_seconds(grid: int, predicted: int | None = None, name: str = DEFAULT_MODEL) -> float:
    """Return the core-seconds of a model's flow of a box, and of its prediction of some cells."""
    cells = grid**3
    flops = count_flops(name, BLOCK_CELLS) / BLOCK_CELLS**3
    passing = (cells if predicted is None else predicted) * flops / costs.CPU_FLOPS[_precision()]
    return cells * (costs.FLOW_CELL + 4 * costs.MOVE_NUMBER) + passing


def find_shipped(store: FieldStore, name: str = DEFAULT_MODEL) -> Shipped:
    """Open a shipped model for a box if it fits without a warning.

    It fits if its cells, the redshift, cosmology and particles per cell of the box are in the range
    of its training, and if the density scatters as that of such a box should.

    Parameters
    ----------
    store : FieldStore
        The box, with its density.
    name : str
        Name of the model.
    """
    warned: list[str] = []
    sampled = False

    def hear(event: Event) -> None:
        if isinstance(event, Message) and event.level == "warning":
            warned.append(event.text)

    try:
        model = open_model(name, store)
        check_fits(model, name, store, hear)
        sampled = expects_scatter(model)
        check_scatter(store, store, [name], [model], hear)
    except (ConfigError, DataError) as error:
        warned.append(error.what if error.value is None else f"{error.what}: {error.value}")
    # The rest of a warning says what to do, or that the accuracy is unknown.
    reason = warned[0].partition(";")[0] if warned else ""
    return Shipped(name, None if warned else model, reason, sampled)


def predict_shipped(
    shipped: Shipped, store: FieldStore, blocks: Sequence[Block]
) -> Iterator[tuple[Block, Floats]]:
    """Yield blocks of a box and the velocities that a shipped model predicts there.

    Nothing is written: the global flow of the box, which ``infer`` keeps in the store, is made in
    memory.

    Parameters
    ----------
    shipped : Shipped
        A model that fits.
    store : FieldStore
        The box.
    blocks : sequence of Block
        The cells to predict.

    Yields
    ------
    block : Block
        One of the blocks.
    velocity : ndarray
        Shape ``(3, *block.shape)``, float32, km/s.

    Raises
    ------
    DataError
        The density is damaged, or its flow is not finite.
    """
    assert shipped.model is not None
    device, models = best_device(), [shipped.model]
    prepare_device(device, same_shapes=False)
    shipped.model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with keeping_freed_buffers():
        source, flows = add_flows(store.read("density"), store, models, [shipped.name])
        members = [Member(shipped.model.to(device), flows[0])]
        config = InferConfig(precision="auto")
        found = predict_blocks(members, source, blocks, config, device)
        for block, one in zip(blocks, found, strict=True):
            yield block, one.mean


def predict_shipped_box(shipped: Shipped, store: FieldStore) -> Floats:
    """Return the velocity of a whole box, shape ``(3, n, n, n)``; see :func:`predict_shipped`."""
    grid = store.grid
    whole = Block((0, 0, 0), (grid, grid, grid))
    result = np.empty((3, grid, grid, grid), np.float32)
    for block, found in predict_shipped(shipped, store, grid_blocks(grid, BLOCK_CELLS)):
        result[(..., *place(block, whole))] = found
    return result


def _precision() -> str:
    """Return the precision of networks in this process."""
    return "bfloat16" if has_fast_bfloat16(best_device()) else "float32"


def _tile(model: VelocityModel, side: int) -> int:
    """Return the cells per axis of the tiles of a block."""
    stride = model.geometry.stride
    return math.ceil(side / stride) * stride
