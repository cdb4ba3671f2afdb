"""Names of models and of the files in their folders; nothing here loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
HISTORY: Final = "history.csv"
"""Losses of the training, step by step."""

LINEAR: Final = "linear"
"""The name of linear theory; LINEAR:R smooths it by a Gaussian of radius R, Mpc/h."""

RUN = "run.json"
"""Says which run a model folder belongs to, from its first step on."""

PRETRAINED = Path(__file__).parent.parent / "pretrained"
"""The folders of the models that come with cosmoflow."""

DEFAULT_MODEL = "residual-small"
"""The shipped model that `infer` takes by default."""


def is_plain(name: str) -> bool:
    """Return whether a text could be a model's name: it has no part of a path or a URL."""
    return bool(name) and not set(name) & set("/\\:")


def is_linear(name: str) -> bool:
    """Return whether a model is linear theory, which has no files."""
    return name == LINEAR or name.startswith(f"{LINEAR}:")


def is_named(name: str) -> bool:
    """Return whether a name is linear theory or a shipped model, not a folder."""
    return is_linear(name) or name in pretrained_models()


def model_folder(name: str) -> str:
    """Return the folder of a model; of one that ships, in the installation of this node."""
    return str(PRETRAINED / name) if name in pretrained_models() else name


def pretrained_models() -> list[str]:
    """Return the names of the models that come with cosmoflow."""
    return sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())
