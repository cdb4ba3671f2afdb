"""What any store or model is."""

from __future__ import annotations

from typing import Any

import zarr

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import DataError
from cosmoflow.model.folder import DESCRIPTION
from cosmoflow.stages.models import RUN
from cosmoflow.stages.train import describe_model
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger
from cosmoflow.storage.metadata import COMPLETE, STATUS
from cosmoflow.storage.snapshots import describe_snapshot
from cosmoflow.storage.urls import has_file, open_group


def inspect(url: str, hints: SnapshotHints | None = None) -> dict[str, Any]:
    """Describe a particle store, a fields store, spectra, a model, or a snapshot of another code.

    Parameters
    ----------
    url : str
        Where it is.
    hints : SnapshotHints, optional
        What a snapshot's header leaves out.

    Returns
    -------
    dict
        ``kind``, ``status`` and what the kind has: box, redshift, cosmology, arrays, provenance.

    Raises
    ------
    StorageError
        There is nothing.
    DataError
        There is something else.
    """
    if has_file(url, DESCRIPTION) or has_file(url, RUN):
        return describe_model(url)
    if not has_file(url, "zarr.json"):
        return describe_snapshot(url, hints)
    group = open_group(url)
    found = str(group.attrs.get("format", ""))
    kind = found.removeprefix("cosmoflow/")
    if kind not in ("particles", "fields", "spectra"):
        raise DataError(
            "this is a zarr group, but none of cosmoflow's",
            where=url,
            value=f"format: {found or 'not said'}",
            limit="cosmoflow/particles, cosmoflow/fields or cosmoflow/spectra",
        )
    content: dict[str, Any] = {
        "kind": kind,
        "status": group.attrs.get(STATUS, COMPLETE),
        "arrays": {name: _describe(array) for name, array in sorted(group.arrays())},
    }
    for key in ("box_size", "redshift", "cosmology", "particle_mass", "provenance"):
        if key in group.attrs:
            content[key] = group.attrs[key]
    ledgers = group.get(LEDGER_GROUP)
    if isinstance(ledgers, zarr.Group):
        content["shards"] = {
            name: f"{int(Ledger(group, name).finished().sum())} of {flags.shape[0]}"
            for name, flags in ledgers.arrays()
        }
    return content


def _describe(array: zarr.Array[Any]) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "units": array.attrs.get("units", ""),
        "chunks": list(array.chunks),
        "shards": list(array.shards) if array.shards else None,
    }
