"""Gains that restore the power of a model's velocities, measured on known truth."""

from __future__ import annotations

from dataclasses import replace

import torch

from cosmoflow.config.settings import InferConfig
from cosmoflow.engine import available_memory
from cosmoflow.model.precision import best_device
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.restoration import GainSum, PowerGain, sum_powers
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.stages.train.data import Split
from cosmoflow.storage.fields import FieldStore

_BYTES_PER_CELL = 72
"""True and predicted velocity, the modes of one and of its potential part, float64 products."""


def measure_gain(model: VelocityModel, split: Split, symmetries: int) -> PowerGain | None:
    """Measure the gains of a velocity model in its validation boxes.

    Parameters
    ----------
    model : VelocityModel
        The model, in evaluation mode.
    split : Split
        The split, with at least one validation store.
    symmetries : int
        Number of turned frames to average predictions over.

    Returns
    -------
    PowerGain or None
        None if a box and its transforms do not fit into memory, so that a training does not fail
        at its very end.
    """
    device, config = best_device(), InferConfig(precision="auto", symmetries=symmetries)
    total: GainSum | None = None
    for url, flows in zip(
        split.fields[split.training :], split.flows[split.training :], strict=True
    ):
        store = FieldStore(url)
        if _BYTES_PER_CELL * store.grid**3 > available_memory():
            return None
        size = store.metadata.box_size
        predicted = predict_box([Member(model.to(device), flows)], store, config, device).mean
        true = store.read("velocity")
        bins = RadialBins.covering(store.grid, size) if total is None else total.bins
        found = sum_powers(torch.from_numpy(true), torch.from_numpy(predicted), size, bins)
        total = found if total is None else total + found
    assert total is not None
    return replace(total.solve(), symmetries=symmetries)
