"""Finds models by name, checks that they fit a box, and describes them."""

from cosmoflow.stages.models.fits import check_fits, fitting_grid, has_cells
from cosmoflow.stages.models.folders import (
    find_model,
    load_model,
    model_digest,
    near_model,
    open_model,
    save_model,
    unknown_model,
    warn_of_namesake,
)
from cosmoflow.stages.models.listing import ModelList, describe_model, models

__all__ = [
    "ModelList",
    "check_fits",
    "describe_model",
    "find_model",
    "fitting_grid",
    "has_cells",
    "load_model",
    "model_digest",
    "models",
    "near_model",
    "open_model",
    "save_model",
    "unknown_model",
    "warn_of_namesake",
]
