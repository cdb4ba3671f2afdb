"""Memory of a forward pass, measured without computing anything."""

from __future__ import annotations

from functools import cache

import torch

from cosmoflow.model.geometry import Sides
from cosmoflow.model.registry import find_architecture, shapes_of
from cosmoflow.model.tally import tally


@cache
def count_activation_bytes(name: str, output: int | Sides, precision: str) -> int:
    """Return the peak memory of activations in a forward pass of one tile, bytes.

    Parameters
    ----------
    name : str
        Name of the architecture.
    output : int or (int, int, int)
        Output cells per axis of the tile: one number for all axes, or one for each.
    precision : {"float32", "bfloat16"}
        Precision of the arithmetic.
    """
    if not find_architecture(name).learns:
        return 0
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return tally(*shapes_of(name, output, dtype)).peak
