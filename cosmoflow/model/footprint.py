"""Memory of a forward pass, measured without computing anything."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosmoflow.model.geometry import Sides
from cosmoflow.model.registry import find_architecture, shapes_of


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self._alive.values()))
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)


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
    network, tile = shapes_of(name, output, dtype)
    counter = _LiveBytes()
    with torch.inference_mode(), counter:
        result = network(tile)
    del result
    return counter.peak
