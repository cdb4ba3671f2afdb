"""Running callables: Dask graphs, actor pools and training loops, in this process or on Ray.

The only importer of Dask and Ray. It knows no cosmology.
"""

import os
import sys

# Ray reads these when it is imported, whichever module of ours (or notebook) does that first.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray is about to leave GPUs visible to tasks that asked for none, and says so at length: our
    # workers hide them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from cosmoflow.engine.base import USEFUL_CORES, Engine, Resources, TrainingContext
from cosmoflow.engine.graph import Key, TaskGraph
from cosmoflow.engine.memory import (
    available_memory,
    keeping_freed_buffers,
    return_freed_buffers,
)
from cosmoflow.engine.pipeline import Pipeline
from cosmoflow.engine.session import Session

__all__ = [
    "USEFUL_CORES",
    "Engine",
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
