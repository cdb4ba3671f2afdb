"""What of a node the numerical libraries of this process use."""

from __future__ import annotations

import os
import sys

from cosmoflow.engine.base import Resources


def use_threads(count: int) -> None:
    """Let torch and numba use ``count`` threads, those of them that are loaded already.

    A worker of Ray has the cores that it asked for; left alone, each library would start as many
    threads as the machine has cores, in every worker.
    """
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch, numba = sys.modules.get("torch"), sys.modules.get("numba")
    if torch is not None:
        torch.set_num_threads(count)
    if numba is not None:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def use_share(share: Resources) -> None:
    """Keep to the cores that a worker has asked for, and off GPUs if it has asked for none."""
    if not share.gpus:
        hide_gpus()
    use_threads(share.cpus)


def hide_gpus() -> None:
    """Let torch find no GPU in this process, unless it has found one already."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
