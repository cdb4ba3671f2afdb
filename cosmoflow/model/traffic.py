"""Blocks on their way to a device and back, beside the work of the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Traffic:
    """Moves tensors in one direction, each call to its end.

    On a GPU the bytes go through pinned memory on a stream of their own, so that kernels of other
    threads run meanwhile. On a CPU tensors stay where they are.

    Parameters
    ----------
    device : torch.device
        The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def bring(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; one that is there already is not moved."""
        if self._stream is None or tensor.device.type == self._device.type:
            return tensor
        with self._running():
            moved = tensor.pin_memory().to(self._device, non_blocking=True)
        self._stream.synchronize()
        return moved

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the device in main memory. What it holds must be computed already."""
        if self._stream is None:
            return tensor
        with self._running():
            moved = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            moved.copy_(tensor, non_blocking=True)
        self._stream.synchronize()
        return moved

    def _running(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def finish(device: torch.device) -> None:
    """Wait until a device has computed all that this thread has asked of it.

    Tensors of other streams may be released, and results read by other streams, afterwards.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
