"""Names of models and of the files in their folders; nothing here loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
HISTORY: Final = "history.csv"
"""Training losses by step."""
COMPARISON: Final = "comparison.json"
"""Residuals of a new model and of others in its validation blocks."""

LINEAR: Final = "linear"
"""Name of linear theory; ``linear:R`` smooths it with a Gaussian of radius R, Mpc/h."""

RUN = "run.json"
"""File that identifies the run of a model folder, present from the first step on."""

PRETRAINED = Path(__file__).parent.parent / "pretrained"
"""Parent folder of the pretrained models."""

DEFAULT_MODEL = "residual-small"
"""Pretrained model that `infer` uses by default."""

OWN: Final = "this model"
"""Name of a new model where others are compared with it."""

SHIPPED: Final = f"{DEFAULT_MODEL} (ships)"
"""Name of that model where other models are compared with it unasked."""


def is_plain(name: str) -> bool:
    """Check whether a text can be a model's name rather than a path or URL."""
    return bool(name) and not set(name) & set("/\\:")


def is_linear(name: str) -> bool:
    """Check whether a name means linear theory, which has no files to load."""
    return name == LINEAR or name.startswith(f"{LINEAR}:")


def is_named(name: str) -> bool:
    """Check whether a name means linear theory or a pretrained model, not a user's folder."""
    return is_linear(name) or name in pretrained_models()


def model_folder(name: str) -> str:
    """Return a model's folder; that of a pretrained model is in this node's installation."""
    return str(PRETRAINED / name) if name in pretrained_models() else name


def pretrained_models() -> list[str]:
    """Return the names of the pretrained models."""
    return sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())
