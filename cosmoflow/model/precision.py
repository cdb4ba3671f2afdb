"""Arithmetic precision of networks, by device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Check whether a device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        # GPUs older than Ampere emulate it.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):
        # torch 2.9. A processor that has AMX has AVX-512 for bfloat16, too.
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that networks run in.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        "auto" uses bfloat16 where the device has instructions for it.
    device : torch.device
        Device that runs the network.
    """
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def best_device() -> torch.device:
    """Return the GPU of this process if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_device(device: torch.device, *, same_shapes: bool) -> None:
    """Configure the convolutions of this process for a device.

    Parameters
    ----------
    device : torch.device
        Device that runs the networks. CPUs need no configuration.
    same_shapes : bool
        Whether all passes have the same shape, so that benchmarking the algorithms pays off.
    """
    if device.type == "cuda":
        # By default cuDNN rounds the factors of float32 convolutions to 10 bits (TensorFloat-32).
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = same_shapes
