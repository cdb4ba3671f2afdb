"""Training, validation and normalisation data of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cosmoflow.config.networks import TrainConfig
from cosmoflow.config.settings import Settings
from cosmoflow.engine import available_memory
from cosmoflow.errors import ConfigError
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.precision import best_device
from cosmoflow.model.registry import find_architecture, geometry_of
from cosmoflow.model.samples import (
    TrainingBox,
    measure_normalisation,
    split_lone_box,
    validation_blocks,
)
from cosmoflow.model.sources import DeviceFields, FieldSource, Flow, MemoryFields
from cosmoflow.model.streams import StreamedBoxes
from cosmoflow.model.training_job import TrainingJob
from cosmoflow.model.velocity import Normalisation, Target
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.wiener import WienerFilter, WienerSum, sum_products
from cosmoflow.stages.inputs.boxes import count_validation
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.run import FIELDS_DEVICE_SHARE, FIELDS_SHARE
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import check_filter
from cosmoflow.storage.origins import Origin
from cosmoflow.units import format_bytes

VALIDATION_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Split:
    """Split of stores, or of the cells of a single store, into training and validation.

    Parameters
    ----------
    fields : tuple of str
        URLs of the stores; the last ``validation`` of them are for validation.
    flows : tuple of tuple of Flow
        Global velocities of each store.
    validation : int
        Number of validation stores; 0 for a single box.
    slab : int
        Cells along x of a single box that are for validation.
    filters : tuple of str
        Digest of the Wiener filter of each store, whose velocity is among the flows; empty for
        models without a filter.
    origins : tuple of mapping or None
        Origin of the Wiener velocity noted in each store.
    frames : tuple of tuple of float
        Numbers of each store that a family of models needs; empty for a model of one condition.
    """

    fields: tuple[str, ...]
    flows: tuple[tuple[Flow, ...], ...]
    validation: int
    slab: int
    filters: tuple[str, ...] = ()
    origins: tuple[Origin | None, ...] = ()
    frames: tuple[tuple[float, ...], ...] = ()

    @property
    def training(self) -> int:
        """Number of training stores."""
        return len(self.fields) - self.validation

    def check_flows(self, *urls: str) -> None:
        """Refuse Wiener velocities that another run has replaced; call this after reading them.

        Raises
        ------
        IncompleteError
        """
        if not self.filters:
            return
        for url, wiener, origin in zip(self.fields, self.filters, self.origins, strict=True):
            if url in (urls or self.fields):
                check_filter(url, wiener, origin)


def choose_split(
    fields: Sequence[str], grid: int, fraction: float, crop: int, geometry: Geometry
) -> Split:
    """Choose some of the stores, or a slab of a single one, for validation.

    Raises
    ------
    DataError
        A single box is too small for a crop and a validation slab.
    """
    if len(fields) == 1:
        slab = split_lone_box(grid, fraction, crop, geometry)
        return Split(tuple(fields), ((),), 0, slab)
    validation = count_validation(len(fields), fraction)
    return Split(tuple(fields), ((),) * len(fields), validation, 0)


_LINEAR_RADIUS = 4.0
_ROUNDS = 4
"""Passes that fill in the velocities of a slab; the change falls tenfold from pass to pass."""


def fit_filter(split: Split, names: Sequence[str]) -> WienerFilter:
    """Fit a Wiener filter to the velocities of the training boxes.

    The true velocities in the validation slab of a single box are not used. A Fourier transform
    needs values there: first those of linear theory and then, pass after pass, those of the
    previous filter, which do not pull the next filter away from the training cells.
    """
    stores = [FieldStore(url) for url in split.fields[: split.training]]
    # All cells have the same size, so the bins of the first box cover the modes of the others.
    bins = RadialBins.covering(stores[0].grid, stores[0].metadata.box_size)
    total = WienerSum.zero(names, bins)
    for store in stores:
        density = torch.from_numpy(store.read("density"))
        size, rate = store.metadata.box_size, growth_rate_hubble(store.metadata)
        velocity = torch.from_numpy(store.read("velocity"))
        if not split.slab:
            total = total + sum_products(density, velocity, size, rate, names, bins)
            continue
        guess = linear_velocity(density, size, rate, _LINEAR_RADIUS)
        for _ in range(_ROUNDS):
            velocity[:, -split.slab :] = guess[:, -split.slab :]
            total = sum_products(density, velocity, size, rate, names, bins)
            guess = total.solve().velocity(density, size, rate)
    return total.solve()


def normalise(split: Split, target: Target, offset: float) -> Normalisation:
    """Measure the constants of a model over its training cells."""
    boxes = [
        _part(FieldStore(url), flows, split.slab)
        for url, flows in zip(
            split.fields[: split.training], split.flows[: split.training], strict=True
        )
    ]
    return measure_normalisation(boxes, target, offset)


def _part(
    source: FieldSource, flows: tuple[Flow, ...], slab: int, frame: tuple[float, ...] = ()
) -> TrainingBox:
    return TrainingBox.slab(source, flows, 0, source.grid - slab, frame)


def make_job(split: Split, settings: Settings, crop: int) -> TrainingJob:
    """Open the training and validation fields; called in each worker."""
    config = settings.train
    geometry = geometry_of(find_architecture(config.model).build())
    hold = _holder(split, config, best_device())
    frames = split.frames or ((),) * len(split.fields)
    boxes = [
        _part(hold(url, flows), flows, 0, frame)
        for url, flows, frame in zip(split.fields, split.flows, frames, strict=True)
    ]
    validation: list[tuple[TrainingBox, Block]] = []
    if split.slab:
        box = boxes[0]
        first = box.source.grid - split.slab
        blocks = validation_blocks(
            box.source.grid, first, split.slab, crop, geometry, VALIDATION_BLOCKS
        )
        validation = [(box, block) for block in blocks]
        boxes = [_part(box.source, box.flows, split.slab, box.frame)]
    else:
        held_out, boxes = boxes[split.training :], boxes[: split.training]
        for box in held_out:
            grid = box.source.grid
            share = max(1, VALIDATION_BLOCKS // len(held_out))
            blocks = validation_blocks(grid, 0, grid, crop, geometry, share)
            validation += [(box, block) for block in blocks]
    training: Sequence[TrainingBox] | StreamedBoxes = boxes
    if any(isinstance(box.source, FieldStore) for box in boxes):
        training = StreamedBoxes(
            boxes, settings.seed, crop, config.batch, geometry.halo, config.target
        )
    return TrainingJob(config, settings.seed, crop, training, validation)


def field_bytes(grid: int, flows: int) -> int:
    """Return the memory of a box's density, target and global velocities."""
    return grid**3 * 4 * (1 + 3 * (1 + flows))


def memory_for_fields() -> int:
    """Return the most bytes of fields to hold in memory; larger fields are streamed."""
    return int(FIELDS_SHARE * available_memory())


def is_streamed(data: str, needed: int) -> bool:
    """Return whether fields of ``needed`` bytes are streamed, given the setting ``train.data``."""
    return data == "stream" or (data == "auto" and needed > memory_for_fields())


def _holder(
    split: Split, config: TrainConfig, device: torch.device
) -> Callable[[str, tuple[Flow, ...]], FieldSource]:
    """Return the function that opens stores: on the device, in main memory, or for streaming.

    The fields of all stores go to the first of these places that they fit into together. Fields
    that do not fit into memory are refused if the settings require it.
    """
    count = len(split.flows[0])
    needed = sum(field_bytes(FieldStore(url).grid, count) for url in split.fields)
    if config.data == "memory" and needed > memory_for_fields():
        raise ConfigError(
            "the training fields do not fit into memory",
            where="train.data",
            value=format_bytes(needed),
            limit=f"{format_bytes(memory_for_fields())}, {FIELDS_SHARE:.0%} of what is free",
            remedy="train.data=stream",
        )
    if is_streamed(config.data, needed):
        return lambda url, flows: FieldStore(url)

    def read(url: str, flows: tuple[Flow, ...]) -> dict[str, NDArray[np.float32]]:
        try:
            return _read(url, config.target, flows)
        finally:
            split.check_flows(url)

    if device.type == "cuda" and needed < FIELDS_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return lambda url, flows: DeviceFields(read(url, flows), device)
    return lambda url, flows: MemoryFields(read(url, flows))


def _read(url: str, target: str, flows: tuple[Flow, ...]) -> dict[str, NDArray[np.float32]]:
    store = FieldStore(url)
    names = {"density", target, *(flow for flow in flows if isinstance(flow, str))}
    fields = {name: store.read(name) for name in sorted(names)}
    scales = [flow for flow in flows if isinstance(flow, int)]
    if scales:
        fields["linear_velocity"] = np.stack(
            [store.read("linear_velocity", lead=(scale,)) for scale in range(max(scales) + 1)]
        )
    return fields
