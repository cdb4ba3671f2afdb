"""cosmoflow: peculiar-velocity fields from N-body particles, for boxes of any size."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# torch and numba each have an OpenMP pool. By default a pool's idle threads spin and take cores
# from the other pool, which made simulation steps 3 to 8 times slower on a busy machine. OpenMP
# reads this variable when the first of the two libraries is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cosmoflow.api import (
        convert,
        demo,
        derive,
        evaluate,
        import_fields,
        infer,
        infer_array,
        info,
        models,
        paint,
        plan,
        simulate,
        spectra,
        store_density,
        train,
        view,
    )
    from cosmoflow.api import inspect as inspect
    from cosmoflow.config import CosmologyConfig, Settings, load_settings
    from cosmoflow.engine import Session
    from cosmoflow.events import CosmoflowWarning
    from cosmoflow.stages.run import Run
    from cosmoflow.storage.fields import open_fields

_HOMES = {
    "CosmoflowWarning": "cosmoflow.events",
    "CosmologyConfig": "cosmoflow.config",
    "Run": "cosmoflow.stages.run",
    "Session": "cosmoflow.engine",
    "Settings": "cosmoflow.config",
    "load_settings": "cosmoflow.config",
    "open_fields": "cosmoflow.storage.fields",
}
"""Modules of the names that are not in ``cosmoflow.api``."""


def __getattr__(name: str) -> Any:
    """Import a stage on first access, as torch and zarr take seconds to load."""
    if name not in (*__all__, "inspect"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "cosmoflow.api")), name)


def __dir__() -> list[str]:
    """List public names, for completion."""
    return sorted({*__all__, "inspect", *(name for name in globals() if name.startswith("__"))})


# `inspect`, the older name of `info`, is excluded, because `from cosmoflow import *` would shadow
# the standard library's module.
__all__ = [
    "CosmoflowWarning",
    "CosmologyConfig",
    "Run",
    "Session",
    "Settings",
    "__version__",
    "convert",
    "demo",
    "derive",
    "evaluate",
    "import_fields",
    "infer",
    "infer_array",
    "info",
    "load_settings",
    "models",
    "open_fields",
    "paint",
    "plan",
    "simulate",
    "spectra",
    "store_density",
    "train",
    "view",
]
