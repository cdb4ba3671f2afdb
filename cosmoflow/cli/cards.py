"""What ``cosmoflow info`` prints without ``-v``: the facts that matter, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cosmoflow.cli.verdicts import judge_training
from cosmoflow.model.names import OWN
from cosmoflow.units import COMPONENTS, LENGTH, MASS, VELOCITY, format_bytes

MOST_NOTES = 4
"""Notes on the card of a store."""

_MOST_SOURCES = 3
_FILLS = {
    "background": "the mean flow of the box",
    "nearest": "that of the nearest particle",
    "model": "predicted",
}
"""Velocity of cells without mass, by the fill of a store."""
_FLOWS = {
    "linear_velocity": "by linear theory",
    "wiener_velocity": "by a Wiener filter of the density",
}
"""Velocities that `infer` and `train` keep in the store that they read, and how they are made."""
_OWN = ("x", "y", "z", "component", "eigenvalue", "smoothing")
"""Arrays of coordinates."""


def make_card(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a description that matter most, as text by name.

    Parameters
    ----------
    content : mapping
        What :func:`cosmoflow.stages.inspect.inspect` returns.
    """
    facts = _CARDS.get(content["kind"], _other)(content)
    roles = (content.get("provenance") or {}).get("sources") or {}
    # Those of the store itself come before those that its inputs passed on.
    notes = sorted(
        _distinct(content.get("notes") or ()),
        key=lambda note: note.partition(": ")[0] in roles,
    )
    # Those of a snapshot are what to check before it is painted.
    shown = len(notes) if content["kind"] == "snapshot" else MOST_NOTES
    facts["notes"] = notes[:shown]
    if len(notes) > shown:
        facts["more notes"] = f"{len(notes) - shown}, with -v"
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _fields(content: Mapping[str, Any]) -> dict[str, Any]:
    grid, cell = content.get("grid"), content.get("cell_size")
    names = [name for name in content["arrays"] if name not in _OWN]
    flows = [name for name in names if name in _FLOWS]
    return {
        **_store(content),
        "grid": None if grid is None else f"{grid}^3 cells of {cell:.4g} {LENGTH}",
        "region": _region(content),
        "fields": ", ".join(name for name in names if name not in _FLOWS),
        "rms velocity": describe_rms(content.get("velocity_rms")),
        "kept flows": "; ".join(f"{name}, {_FLOWS[name]}, for networks" for name in flows),
        **describe_sampling(content.get("sampling") or {}, has_density="density" in names),
        **_box(content),
    }


def describe_rms(found: float | None) -> str | None:
    """Return the rms velocity of a box as text; None if it is not known."""
    return None if found is None else f"{found:.1f} {VELOCITY} (3-D, over all cells)"


def describe_sampling(sampling: Mapping[str, Any], *, has_density: bool = False) -> dict[str, Any]:
    """Return the particles per cell and the share of empty cells as text; None if not known.

    An unknown number of particles matters to networks that read the density: if there is one, the
    text says how to state the number.
    """
    unknown_number = (
        "not known; `infer --set infer.particles_per_cell=N` states it" if has_density else None
    )
    share, each = sampling.get("empty_share"), sampling.get("particles_per_cell")
    fill = _FILLS.get(sampling.get("fill", ""), "unknown")
    known = fill != "unknown"
    empty = f"{100 * share:.2g} %" + f", velocity there: {fill}" * known if share else "none"
    return {
        "particles per cell": unknown_number
        if each is None
        else f"{each:.3g}{', as stated' * bool(sampling.get('stated'))}",
        "empty cells": None if share is None else empty,
    }


def _particles(content: Mapping[str, Any]) -> dict[str, Any]:
    position = content["arrays"].get("position", {"shape": [0]})
    return {
        **_store(content),
        "particles": f"{position['shape'][0]:,}",
        "columns": ", ".join(content["arrays"]),
        **_box(content),
    }


def _snapshot(content: Mapping[str, Any]) -> dict[str, Any]:
    conventions, counts = content["conventions"], content.get("counts") or {}
    size, refused = content.get("bytes"), content.get("refused")
    return {
        "kind": f"snapshot, {content['format']}",
        "stored": None if size is None else format_bytes(size),
        "files": content.get("files"),
        "particles": f"{content['particles']:,}",
        "counts": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        **_box(content, made=False),
        "read as": "; ".join(
            f"{name.replace('_', ' ')} {one}" for name, one in conventions.items()
        ),
        "digest": content["digest"],
        "warning": None
        if refused is None
        else f"paint and convert refuse it: {refused}".replace("\n", "\n  "),
    }


def _spectra(content: Mapping[str, Any]) -> dict[str, Any]:
    config = (content.get("provenance") or {}).get("config") or {}
    k = content["arrays"].get("k", {"shape": [0]})
    return {
        **_store(content),
        "of": " x ".join(dict.fromkeys(config.get("fields", ()))),
        "bins": k["shape"][0],
        "variables": ", ".join(content["arrays"]),
        **_box(content),
    }


def _model(content: Mapping[str, Any]) -> dict[str, Any]:
    cell, filtered = content["cell_size"], content.get("filter")
    inputs = ["density"]
    if filtered:
        inputs.append(f"velocity by a Wiener filter of {', '.join(filtered)}")
    inputs += [
        f"linear velocity smoothed at {radius:g} {LENGTH}" for radius in content["smoothing"]
    ]
    validation, compared = content.get("validation"), content.get("comparison")
    size = content.get("bytes")
    return {
        "kind": f"model{', ships with cosmoflow' if content.get('ships') else ''}",
        "architecture": f"{content['architecture']}: {content['summary']}",
        "parameters": _parameters(content),
        "stored": None if size is None else format_bytes(size),
        "predicts": content["target"],
        "inputs": "; ".join(inputs),
        "halo": f"{content['halo']} cells" if content["halo"] else "none",
        "cells": f"{_range(cell)} {LENGTH}" if cell != "any" else cell,
        "trained on": _training(content),
        "started from": ((content.get("provenance") or {}).get("sources") or {}).get("start"),
        **(_box(content, made=False) if "limits" not in content else _family(content)),
        "errors": "known" if content.get("knows_errors") else "not known",
        "validation residual": None
        if validation is None
        else f"{validation['rms']:.1f} {VELOCITY} rms at step {validation['step']:,}",
        "in the same blocks": None if compared is None else _others(compared["rms"]),
        "verdict": None
        if compared is None
        else judge_training(compared, validation, content.get("provenance")),
    }


def _others(rms: Mapping[str, float]) -> str:
    """Return the residuals of the models that a new one was compared with."""
    return ", ".join(f"{name} {one:.1f} {VELOCITY}" for name, one in rms.items() if name != OWN)


def _range(found: Any) -> str:
    """Return a number, or the two ends of a range, as text."""
    return f"{found[0]:g} to {found[1]:g}" if isinstance(found, list) else f"{found:g}"


def _parameters(content: Mapping[str, Any]) -> str:
    """Return the parameters of a model, and those of its architecture where it has fewer."""
    total, network = content["parameters"], content.get("network_parameters")
    if network in (None, total):
        return f"{total:,}"
    more = ["the condition"] * ("limits" in content) + ["the errors"] * bool(
        content.get("knows_errors")
    )
    return f"{total:,}: {network:,} of the network, the rest for {' and '.join(more)}"


def _family(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the range of the boxes that a family of models was trained on."""
    return {
        name.replace("_per_", " per "): _range(ends)
        for name, ends in content["limits"].items()
        if name != "cell_size"
    }


def _training(content: Mapping[str, Any]) -> str | None:
    """Return the number of boxes of a training, its steps, and its first inputs."""
    provenance, boxes = content.get("provenance") or {}, content.get("boxes")
    if not boxes:
        return None
    steps = content.get("steps")
    text = describe_boxes(boxes)
    text += "" if steps is None else f", {steps:,} steps"
    sources = _sources(provenance, but=("start",))
    return f"{text}: {sources}" if sources else text


def describe_boxes(boxes: Mapping[str, int]) -> str:
    """Return the numbers of boxes of a training in words."""
    training, validation = boxes["training"], boxes["validation"]
    text = f"{training} box{'es' if training > 1 else ''}"
    return f"{text}, validated on {validation}" if validation else f"{text} but for a slab"


def _other(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return all facts but the provenance, in which settings and digests are long."""
    facts = {name: value for name, value in content.items() if name not in ("provenance", "notes")}
    return {**facts, "made by": _origin(content)}


_CARDS = {
    "fields": _fields,
    "particles": _particles,
    "snapshot": _snapshot,
    "spectra": _spectra,
    "model": _model,
}


def _store(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return kind, status and size of a store; the finished shards only if some are missing."""
    status = content["status"]
    shards = ", ".join((content.get("shards") or {}).values())
    unfinished = f" ({shards} shards are finished)" if status != "complete" and shards else ""
    return {
        "kind": f"{content['kind']}, {status}{unfinished}",
        "stored": format_bytes(content["bytes"]),
    }


def _box(content: Mapping[str, Any], *, made: bool = True) -> dict[str, Any]:
    cosmology, mass = content.get("cosmology"), content.get("particle_mass")
    size = content.get("box_size")
    return {
        "box": None if size is None else f"{size:g} {LENGTH}",
        "redshift": content.get("redshift"),
        "redshift space": content.get("redshift_space"),
        "cosmology": ", ".join(f"{name} {value}" for name, value in cosmology.items())
        if isinstance(cosmology, Mapping)
        else cosmology,
        "unknown expansion": content.get("unknown_expansion"),
        "particle mass": None if mass is None else f"{mass:.3g} {MASS}",
        "made by": _origin(content) if made else None,
    }


def _region(content: Mapping[str, Any]) -> str | None:
    """Return the cells and the place of a region."""
    region, cell = content.get("region"), content.get("cell_size")
    if region is None or cell is None:
        return None
    shape = " x ".join(str(stop - start) for start, stop in region)
    ranges = ", ".join(
        f"{axis} {start * cell:g} to {stop * cell:g}"
        for axis, (start, stop) in zip(COMPONENTS, region, strict=True)
    )
    return f"{shape} cells, {ranges} {LENGTH}"


def _origin(content: Mapping[str, Any]) -> str | None:
    """Return the stage that made a store, and its inputs."""
    provenance = content.get("provenance") or {}
    stage, sources = provenance.get("stage"), _sources(provenance)
    return f"{stage} of {sources}" if stage and sources else stage


def _sources(provenance: Mapping[str, Any], but: Sequence[str] = ()) -> str:
    """Return the locations of the first inputs, without those of some roles."""
    sources = provenance.get("sources") or {}
    urls = list(dict.fromkeys(url for role, url in sources.items() if role not in but))
    left = len(urls) - _MOST_SOURCES
    return ", ".join([*map(str, urls[:_MOST_SOURCES]), *([f"{left} more"] if left > 0 else [])])


def _distinct(notes: Sequence[str]) -> list[str]:
    """Return notes without those that differ from an earlier one in the name of an input only."""
    kept, known = [], set[str]()
    for note in notes:
        texts = {note, note.partition(": ")[2]} - {""}
        if not texts & known:
            kept.append(note)
        known |= texts
    return kept
