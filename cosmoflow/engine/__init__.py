"""Engines that run Dask graphs, pools of actors and training loops, in this process or on Ray.

No other package imports Dask or Ray, and this one contains no cosmology.
"""

import os
import sys

# Ray reads these variables when it is imported, by any module of ours or by a notebook.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray warns at length that a later version will leave GPUs visible to tasks that ask for none.
    # Our workers hide them themselves.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from cosmoflow.engine.base import USEFUL_CORES, Engine, Exchange, Resources, TrainingContext
from cosmoflow.engine.buffers import keeping_freed_buffers, return_freed_buffers
from cosmoflow.engine.graph import Column, Handout, Key, TaskGraph
from cosmoflow.engine.memory import FREE_SHARE, available_memory
from cosmoflow.engine.pipeline import Pipeline
from cosmoflow.engine.session import Session

__all__ = [
    "FREE_SHARE",
    "USEFUL_CORES",
    "Column",
    "Engine",
    "Exchange",
    "Handout",
    "Key",
    "Pipeline",
    "Resources",
    "Session",
    "TaskGraph",
    "TrainingContext",
    "available_memory",
    "keeping_freed_buffers",
    "return_freed_buffers",
]
