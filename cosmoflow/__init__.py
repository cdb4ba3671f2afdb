"""cosmoflow: peculiar-velocity fields from N-body particles, for boxes of any size."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# torch and numba keep an OpenMP pool each. By default a pool's idle threads spin, and then the one
# pool takes the cores from the other: steps of the simulation were 3 to 8 times slower on a busy
# machine. OpenMP reads this when the first of the two libraries is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cosmoflow.config import Settings, load_settings
    from cosmoflow.engine import Session
    from cosmoflow.stages.convert import convert
    from cosmoflow.stages.derive import derive
    from cosmoflow.stages.evaluate import evaluate
    from cosmoflow.stages.infer import infer
    from cosmoflow.stages.infer_arrays import infer_array
    from cosmoflow.stages.inspect import inspect
    from cosmoflow.stages.paint import paint
    from cosmoflow.stages.planning import plan
    from cosmoflow.stages.run import Run
    from cosmoflow.stages.simulate import simulate
    from cosmoflow.stages.spectra import spectra
    from cosmoflow.stages.train import train
    from cosmoflow.storage.fields import open_fields

_HOMES = {
    "Run": "cosmoflow.stages.run",
    "Session": "cosmoflow.engine",
    "Settings": "cosmoflow.config",
    "convert": "cosmoflow.stages.convert",
    "derive": "cosmoflow.stages.derive",
    "evaluate": "cosmoflow.stages.evaluate",
    "infer": "cosmoflow.stages.infer",
    "infer_array": "cosmoflow.stages.infer_arrays",
    "inspect": "cosmoflow.stages.inspect",
    "load_settings": "cosmoflow.config",
    "open_fields": "cosmoflow.storage.fields",
    "paint": "cosmoflow.stages.paint",
    "plan": "cosmoflow.stages.planning",
    "simulate": "cosmoflow.stages.simulate",
    "spectra": "cosmoflow.stages.spectra",
    "train": "cosmoflow.stages.train",
}


def __getattr__(name: str) -> Any:
    """Import a stage when it is first asked for: torch and zarr take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


__all__ = [
    "Run",
    "Session",
    "Settings",
    "__version__",
    "convert",
    "derive",
    "evaluate",
    "infer",
    "infer_array",
    "inspect",
    "load_settings",
    "open_fields",
    "paint",
    "plan",
    "simulate",
    "spectra",
    "train",
]
