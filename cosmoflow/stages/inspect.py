"""Descriptions of stores, models and snapshots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import zarr

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import DataError
from cosmoflow.model.names import DESCRIPTION, RUN, is_named, is_plain
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger
from cosmoflow.storage.metadata import (
    COMPLETE,
    SAMPLING,
    STATUS,
    attributes_of,
    check_zarr_format,
)
from cosmoflow.storage.outputs import OUTPUT_MARKS
from cosmoflow.storage.snapshots import describe_snapshot
from cosmoflow.storage.urls import absolute, exists, find_bytes, has_file, open_group
from cosmoflow.tables import shorten

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
        arrays, provenance.

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

        return describe_model(name if is_named(name) else url)
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
    }
    for key in (
        "box_size", "redshift", "cosmology", "unknown_expansion", "redshift_space",
        "particle_mass", SAMPLING, "provenance",
    ):  # fmt: skip
        if key in attributes:
            content[key] = attributes[key]
    # Assumptions come first, since the numbers depend on them.
    provenance = content.get("provenance", {})
    if provenance.get("notes"):
        content["notes"] = provenance["notes"]
    ledgers = group.get(LEDGER_GROUP)
    if isinstance(ledgers, zarr.Group):
        content["shards"] = {
            name: f"{int(Ledger(group, name).finished().sum())} of {flags.shape[0]}"
            for name, flags in ledgers.arrays()
            # Other arrays beside the flags have more dimensions.
            if flags.ndim == 1
        }
    return content


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
