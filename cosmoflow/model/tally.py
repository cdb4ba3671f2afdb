"""Operations and memory of a forward pass, counted without computing anything."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count


class Tally(TorchFunctionMode):
    """Counts what a network does with a tile on the meta device, whose tensors have no values.

    It answers the usual operators itself. torch's answers are the same, but the first of them loads
    torch's compiler, which takes longer than all other libraries of ``infer`` together.

    Attributes
    ----------
    flops : int
        Floating-point operations of the convolutions; a multiplication and an addition are two.
    peak : int
        Largest number of bytes of tensors that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.conv3d:
            result = self._convolve(*args)
        elif function is torch.conv_transpose3d:
            result = self._convolve_transposed(*args)
        elif function is torch.cat:
            result = _concatenate(*args, **(kwargs or {}))
        elif function in (nn.functional.silu, nn.functional.relu):
            result = _activate(*args, **(kwargs or {}))
        elif function is nn.functional.batch_norm:
            result = args[0].new_empty(args[0].shape)
        else:
            result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self._alive.values()))
        return result

    def _convolve(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        axes = zip(inputs.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        sides = [
            (cells + 2 * pad - apart * (kernel - 1) - 1) // step + 1
            for cells, kernel, step, pad, apart in axes
        ]
        shape = [inputs.shape[0], weight.shape[0], *sides]
        self.flops += conv_flop_count(list(inputs.shape), list(weight.shape), shape)
        return inputs.new_empty(shape)

    def _convolve_transposed(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        more: Sequence[int],
        groups: int,
        dilation: Sequence[int],
    ) -> Tensor:
        axes = zip(inputs.shape[2:], weight.shape[2:], stride, padding, more, dilation, strict=True)
        sides = [
            (cells - 1) * step - 2 * pad + apart * (kernel - 1) + extra + 1
            for cells, kernel, step, pad, extra, apart in axes
        ]
        shape = [inputs.shape[0], weight.shape[1] * groups, *sides]
        self.flops += conv_flop_count(
            list(inputs.shape), list(weight.shape), shape, transposed=True
        )
        return inputs.new_empty(shape)

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)


def _concatenate(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(one.shape[dim] for one in tensors)
    return tensors[0].new_empty(shape)


def _activate(inputs: Tensor, inplace: bool = False) -> Tensor:
    return inputs if inplace else inputs.new_empty(inputs.shape)


def tally(network: nn.Module, tile: Tensor) -> Tally:
    """Count operations and memory of a tile's pass through a network, both on the meta device."""
    found = Tally()
    with torch.inference_mode(), found:
        network(tile)
    return found
