"""How many cores the numerical libraries of this process use."""

from __future__ import annotations

import os
import sys


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
