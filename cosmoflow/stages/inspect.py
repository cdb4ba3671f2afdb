"""Descriptions of stores, models and snapshots."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import zarr

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import DataError
from cosmoflow.model.names import COMPARISON, DESCRIPTION, HISTORY, RUN, is_named, is_plain
from cosmoflow.numerics.blocks import grid_blocks, intersect
from cosmoflow.storage.finite import REGION, region_block
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger
from cosmoflow.storage.metadata import (
    COMPLETE,
    SAMPLING,
    STATUS,
    VELOCITY_RMS,
    attributes_of,
    check_zarr_format,
)
from cosmoflow.storage.outputs import OUTPUT_MARKS
from cosmoflow.storage.snapshots import describe_snapshot
from cosmoflow.storage.urls import (
    absolute,
    count_bytes,
    exists,
    find_bytes,
    has_file,
    open_group,
)
from cosmoflow.tables import shorten
from cosmoflow.units import is_less

_RISE = 1e-3
"""Least relative rise of the validation residual that speaks against more steps."""
LINES_SHOWN = 40
"""Lines of a description that Python shows."""

_KINDS = ("particles", "fields", "spectra", "curves")


class Description(dict[str, Any]):
    """Facts of a store by name, nested as in the store."""

    def __repr__(self) -> str:
        lines = [shorten(f"{name}: {value}") for name, value in _flatten(self)]
        left = len(lines) - LINES_SHOWN
        return "\n".join([*lines[:LINES_SHOWN], *([f"... and {left} more"] if left > 0 else [])])


def inspect(url: str, hints: SnapshotHints | None = None) -> Description:
    """Describe a store, spectra, a report, a demo, a model, or a snapshot of another code.

    Parameters
    ----------
    url : str
        Location, or the name of a shipped model or of linear theory.
    hints : SnapshotHints, optional
        Facts that a snapshot's header lacks.

    Returns
    -------
    Description
        A dict with ``kind``, ``status`` and the facts of that kind: box, redshift, cosmology,
        arrays, ``bytes`` in storage, provenance. Fields have ``grid`` (cells per axis),
        ``cell_size`` (Mpc/h) and, if they hold a part of the box, ``region`` (cells ``[from, to]``
        of each axis). A trained model has ``validation``: ``step``, and ``rms`` in km/s, and
        ``comparison``: ``rms`` of it and of other models in the validation blocks.

    Raises
    ------
    StorageError
        Nothing is stored at the URL.
    ConfigError
        Nothing is stored there, and the name resembles that of a model.
    DataError
        The content is of another kind.
    """
    return Description(_inspect(url, hints))


def _inspect(url: str, hints: SnapshotHints | None) -> dict[str, Any]:
    name, url = url, absolute(url)
    # ./NAME is a folder with the name of a shipped model, as in `infer`.
    if is_named(name) or has_file(url, DESCRIPTION) or has_file(url, RUN):
        # Loaded here: models need torch, which stores do not.
        from cosmoflow.stages.models import describe_model

        return _with_training(describe_model(name if is_named(name) else url))
    if is_plain(name) and not exists(url):
        from cosmoflow.stages.models import near_model, unknown_model

        if near_model(name):
            raise unknown_model(name)
    if has_file(url, OUTPUT_MARKS[0]):
        return _describe_folder(find_bytes(url, OUTPUT_MARKS[0]) or b"{}")
    if has_file(url, ".zgroup"):
        check_zarr_format(open_group(url), url)
    if not has_file(url, "zarr.json"):
        return describe_snapshot(url, hints)
    return _describe_store(url)


def _describe_store(url: str) -> dict[str, Any]:
    """Return the facts of a store of cosmoflow's formats."""
    group = open_group(url)
    attributes = attributes_of(group)
    found = str(attributes.get("format", ""))
    kind = found.removeprefix("cosmoflow/")
    if kind not in _KINDS:
        raise DataError(
            "this is a zarr group, but none of cosmoflow's",
            where=url,
            value=f"format: {found or 'not said'}",
            limit=", ".join(f"cosmoflow/{name}" for name in _KINDS),
        )
    content: dict[str, Any] = {
        "kind": kind,
        "status": group.attrs.get(STATUS, COMPLETE),
        "arrays": {name: _describe(array) for name, array in sorted(group.arrays())},
        "bytes": count_bytes(url),
    }
    for key in (
        "box_size", "redshift", "cosmology", "unknown_expansion", "redshift_space",
        "particle_mass", SAMPLING, VELOCITY_RMS, REGION, "provenance",
    ):  # fmt: skip
        if key in attributes:
            content[key] = attributes[key]
    if kind == "fields" and (grid := _count_cells(group)) is not None:
        content["grid"] = grid
        if isinstance(size := content.get("box_size"), int | float):
            content["cell_size"] = size / grid
    # Assumptions come first, since the numbers depend on them.
    provenance = content.get("provenance", {})
    if provenance.get("notes"):
        content["notes"] = provenance["notes"]
    ledgers = group.get(LEDGER_GROUP)
    if isinstance(ledgers, zarr.Group):
        content["shards"] = {
            name: f"{int(Ledger(group, name).finished().sum())} of {_count_shards(content, flags)}"
            for name, flags in ledgers.arrays()
            # Other arrays beside the flags have more dimensions.
            if flags.ndim == 1
        }
    return content


def _count_cells(group: zarr.Group) -> int | None:
    """Return the cells per axis of fields; None if no array has the dimension x."""
    for _, array in group.arrays():
        names = getattr(array.metadata, "dimension_names", None) or ()
        if "x" in names:
            return int(array.shape[names.index("x")])
    return None


def _count_shards(content: Mapping[str, Any], flags: zarr.Array[Any]) -> int:
    """Return how many shards of a store its run writes: those of the region, if there is one."""
    if REGION not in content:
        return int(flags.shape[0])
    shard = next(array["shards"][-1] for array in content["arrays"].values() if array["shards"])
    region = region_block(content[REGION])
    blocks = grid_blocks(content["grid"], shard)
    return sum(intersect(block, region) is not None for block in blocks)


def _with_training(card: dict[str, Any]) -> dict[str, Any]:
    """Add the size of a model's folder, and the last validation of its training, if it is known."""
    if "folder" in card:
        card["bytes"] = count_bytes(card["folder"])
    if HISTORY in card["files"]:
        kept = read_validation(card["folder"], card.get("provenance"))
        card |= {} if kept is None else {"validation": kept}
    if "folder" in card and (compared := read_comparison(card["folder"])) is not None:
        card["comparison"] = compared
    return card


def read_validation(folder: str, provenance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the validation of the weights that a training kept; None if it is not known.

    Parameters
    ----------
    folder : str
        URL of the model's folder.
    provenance : mapping or None
        Provenance of the model, whose settings say whether the best weights were kept.

    Returns
    -------
    dict or None
        ``step`` and ``rms``, km/s. If more steps made it worse, ``later`` has those of the last.
    """
    history = (find_bytes(folder, HISTORY) or b"").decode("utf-8", "replace")
    # The file is a log for people: a model is as good without it.
    with suppress(IndexError, KeyError, TypeError, ValueError):
        found = [
            {"step": int(float(row["step"])), "rms": float(row["validation_rms"])}
            for row in csv.DictReader(history.splitlines())
        ]
        train = ((provenance or {}).get("config") or {}).get("train") or {}
        last = kept = found[-1]
        # Tunings have kept the best weights since they measure their start.
        if found[0]["step"] == 0 or train.get("patience") is not None:
            kept = min(found, key=lambda one: one["rms"])
        # A residual that still falls, or hardly rises, says nothing against more steps.
        rises = kept is not last and last["rms"] > (1.0 + _RISE) * found[-2]["rms"]
        return {**kept, "later": last} if rises or is_less(kept["rms"], last["rms"]) else kept
    return None


def read_comparison(out: str) -> dict[str, Any] | None:
    """Return the comparison in a model's folder; None if there is none."""
    content = find_bytes(out, COMPARISON)
    try:
        found = None if content is None else json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "rms" in found else None


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and values; a mapping of plain values is one value, other mappings come last."""
    nested = {name: value for name, value in facts.items() if isinstance(value, Mapping)}
    for name, value in facts.items():
        if name not in nested:
            yield f"{prefix}{name}", value
    for name, value in nested.items():
        if any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(f"{key} {one}" for key, one in value.items())


def _describe_folder(mark: bytes) -> dict[str, Any]:
    """Return the content of a folder's mark: that of a report, a demo or a set of boxes."""
    content = dict(json.loads(mark))
    kind = str(content.pop("format", "")).removeprefix("cosmoflow/")
    return {"kind": kind, "status": content.pop(STATUS, "not said"), **content}


def _describe(array: zarr.Array[Any]) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "units": array.attrs.get("units", ""),
        "chunks": list(array.chunks),
        "shards": list(array.shards) if array.shards else None,
    }
