"""The head of the report: its date, the box, the models, and notes about the input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from cosmoflow import __version__
from cosmoflow.numerics.comparison import Comparison

EPOCH: Final = "SOURCE_DATE_EPOCH"
"""Environment variable with the date of reproducible builds, in seconds since 1970."""


class Note(NamedTuple):
    """A note, and the inputs that it is about."""

    text: str
    about: str


def made_on() -> str:
    """Return the date of the report, and the version that made it.

    The date is today's in UTC, or that of the environment variable ``SOURCE_DATE_EPOCH``. It is on
    the page only: all other files are the same whenever they are made.
    """
    said = os.environ.get(EPOCH, "")
    now = datetime.fromtimestamp(int(said), UTC) if said.isdigit() else datetime.now(UTC)
    return f"{now.day} {now:%B %Y}, cosmoflow {__version__}"


def list_facts(comparison: Comparison, context: Mapping[str, Any]) -> dict[str, str]:
    """Return what the head says about box, particles, models and their training, by label."""
    cells = int(comparison.metrics["cells"])
    size, redshift = f"{comparison.box_size:g} Mpc/h", context.get("redshift")
    facts = {
        "Box": size if redshift is None else f"{size}, z = {redshift:g}",
        "Cells": f"{cells}³ of {comparison.box_size / cells:.3g} Mpc/h",
        "Particles": _count_particles(context.get("particles_per_cell"), cells),
    }
    if scheme := context.get("scheme"):
        facts["Particles"] += f", {scheme.upper()}"
    for label, models in context.get("models", {}).items():
        several = len(context["models"]) > 1
        facts[f"Model of {label}" if several else "Model"] = "; ".join(map(_model, models)) or label
        if trained := "; ".join(filter(None, map(_training, models))):
            facts[f"Training of {label}" if several else "Training"] = trained
    return facts


def _count_particles(each: float | None, cells: int) -> str:
    if each is None:
        return "number not known"
    return f"{each * cells**3:,.0f}, {each:.3g} a cell"


def _model(said: Mapping[str, Any]) -> str:
    if "architecture" not in said:
        return f"{said['name']} (not at hand)"
    kind = "" if said["architecture"] == said["name"] else f", {said['architecture']}"
    return f"{said['name']}{kind}, {said['parameters']:,} parameters"


def _training(said: Mapping[str, Any]) -> str:
    if "boxes" not in said:
        return ""
    steps = "" if said["steps"] is None else f", {said['steps']:,} steps"
    kept = said.get("kept_step")
    if steps and kept == 0:
        steps += " (the weights of its start are kept)"
    elif steps and kept not in (None, said["steps"]):
        steps += f" (the weights of step {kept:,} are kept)"
    training, validation = said["boxes"], said.get("validation_boxes", 0)
    boxes = f"{training:,} box{'es' if training > 1 else ''}"
    boxes += f" (and {validation:,} for validation)" if validation else ""
    cell, redshift = (_span(said[key]) for key in ("cell_size", "redshift"))
    begun = f"{PurePosixPath(said['start']).name}, trained further on " if said.get("start") else ""
    return f"{begun}{boxes}{steps}; cells of {cell} Mpc/h, z = {redshift}"


def _span(found: Any) -> str:
    """Return a number, or both ends of a range, as text."""
    if isinstance(found, list | tuple):
        return " to ".join(f"{end:g}" for end in found)
    return found if isinstance(found, str) else f"{found:g}"


def gather_notes(
    notes: Iterable[str], names: Iterable[str], *, without: str | None = None
) -> list[Note]:
    """Return every note once, with the inputs that it is about.

    Parameters
    ----------
    notes : iterable of str
        Notes that begin with the names of what they are about, each with a colon.
    names : iterable of str
        These names: of inputs, of their roles, their URLs.
    without : str, optional
        A text that the head says already.
    """
    known, found = set(names), dict[str, list[str]]()
    for note in notes:
        about, text = list[str](), note
        head, colon, rest = text.partition(": ")
        while colon and head in known:
            about.append(head)
            text = rest
            head, colon, rest = text.partition(": ")
        if without is None or text.rstrip(".") != without.rstrip("."):
            found.setdefault(text, []).extend(about[:1])
    return [Note(text, ", ".join(dict.fromkeys(about))) for text, about in found.items()]
