"""The cores and GPUs that the numerical libraries of this process use."""

from __future__ import annotations

import os
import sys

from cosmoflow.engine.base import Resources


def use_threads(count: int) -> None:
    """Make torch and numba use ``count`` threads, if they are loaded.

    By default, in every worker each library would start as many threads as the machine has cores.
    """
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch, numba = sys.modules.get("torch"), sys.modules.get("numba")
    if torch is not None:
        torch.set_num_threads(count)
    if numba is not None:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def use_share(share: Resources) -> None:
    """Use only the cores that a worker has asked for, and GPUs only if it has asked for any."""
    if not share.gpus:
        hide_gpus()
    use_threads(share.cpus)


def hide_gpus() -> None:
    """Hide GPUs from torch in this process, unless torch has found them already."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
