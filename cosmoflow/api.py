"""The stages as functions for notebooks and scripts, with settings as keywords.

``cosmoflow.paint(particles, out, grid=64)`` makes the :class:`~cosmoflow.stages.run.Run` that the
stage needs and shows its progress in a notebook. Types for editors are in ``api.pyi``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmoflow.keywords import Door, open_door

_INFER_ALIASES = {"field": "infer.fields"}
_CHAIN = ("seed", "cosmology", "simulate", "paint", "train", "infer", "evaluate")

DOORS: Mapping[str, Door] = {
    "simulate": Door("cosmoflow.stages.simulate", "simulate", "simulate", ("seed", "cosmology")),
    "convert": Door("cosmoflow.stages.convert", "convert", "snapshot"),
    "paint": Door("cosmoflow.stages.paint", "paint", "paint", ("snapshot",)),
    "derive": Door("cosmoflow.stages.derive", "derive", "derive", synonyms={"field": "names"}),
    "train": Door("cosmoflow.stages.train", "train", "train", ("seed",)),
    "infer": Door(
        "cosmoflow.stages.infer",
        "infer",
        "infer",
        aliases={**_INFER_ALIASES, "workers": "engine.workers"},
    ),
    "infer_array": Door("cosmoflow.stages.infer", "infer_array", "infer", aliases=_INFER_ALIASES),
    "import_fields": Door(
        "cosmoflow.stages.imports", "import_fields", sections=("cosmology", "paint")
    ),
    "store_density": Door("cosmoflow.stages.imports", "store_density", sections=("paint",)),
    "evaluate": Door("cosmoflow.stages.evaluate", "evaluate", "evaluate"),
    "spectra": Door("cosmoflow.stages.spectra", "spectra", "spectra"),
    "plan": Door("cosmoflow.stages.planning", "plan", sections=(*_CHAIN, "spectra")),
    "demo": Door("cosmoflow.stages.demo", "run_demo", sections=_CHAIN, preset="quickstart"),
    "info": Door("cosmoflow.stages.inspect", "inspect", "snapshot"),
    "inspect": Door("cosmoflow.stages.inspect", "inspect", "snapshot"),
    "view": Door("cosmoflow.stages.view", "view"),
    "models": Door("cosmoflow.stages.models", "models"),
}
"""Functions that accept settings as keywords."""


def __getattr__(name: str) -> Any:
    """Wrap a stage on first access, as its libraries take seconds to load; keep the wrapper."""
    if name not in DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, open_door(name, DOORS[name]))
