"""The lineage of a store, and whether two stores descend from the same box."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from cosmoflow.errors import CosmoflowError
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.storage.fields import FieldStore

if TYPE_CHECKING:
    from cosmoflow.storage.snapshots import ParticleSource

LINEAGE: Final = "lineage"
"""Key of a provenance: digests of all particles and fields that an output descends from."""
_KINDS: Final = {"fields": "fields", "particles": "particles", "snapshot": "particles"}
"""Inputs that identify a box, by role. Models and tables of linear power serve many boxes."""

Lineage = Mapping[str, Sequence[str]]
Relation = Literal["same", "other", "unknown"]


def descent_of(source: FieldStore | ParticleSource) -> dict[str, Any]:
    """Return the facts about its source box that the provenance of an output keeps.

    These are the lineage, and the painting of the density (for fields) or the snapshot of origin
    (for particles).
    """
    more: Mapping[str, Any]
    if isinstance(source, FieldStore):
        more = painting_of(source).as_facts()
    else:
        more = {"snapshot": source.origin} if source.origin else {}
    return {LINEAGE: lineage_of(source), **more}


def lineage_of(source: FieldStore | ParticleSource) -> Lineage:
    """Return the digests of a store and of all particles and fields that it descends from.

    Returns
    -------
    dict of list of str
        Digests by kind, ``fields`` or ``particles``, nearest first.
    """
    kind = "fields" if isinstance(source, FieldStore) else "particles"
    provenance = source.metadata.provenance
    found: dict[str, list[str]] = {"fields": [], "particles": []}
    found[kind].append(source.digest)
    if provenance.get("stage") == "snapshot":
        # The other digests of a snapshot are those of headers, which several boxes may share.
        return found
    found[kind] += _strings([provenance.get("digest")])
    inputs, before = provenance.get("inputs"), provenance.get(LINEAGE)
    for role, digest in (inputs if isinstance(inputs, dict) else {}).items():
        # Roles of several stores are numbered, as in "fields 0".
        group = _KINDS.get(str(role).partition(" ")[0])
        if group is not None:
            found[group] += _strings([digest])
    for group in found:
        if isinstance(before, dict):
            found[group] += _strings(before.get(group, ()))
    return {group: list(dict.fromkeys(digests)) for group, digests in found.items()}


def _strings(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def relate(truth: FieldStore, prediction: FieldStore) -> Relation:
    """Return whether a prediction was made from the box of the truth.

    Returns
    -------
    {"same", "other", "unknown"}
        ``other`` only if the particles of both are known, since two stores may be painted from the
        same particles in different ways.
    """
    mine, theirs = lineage_of(truth), dict(lineage_of(prediction))
    provenance = prediction.metadata.provenance
    inputs, sources = provenance.get("inputs"), provenance.get("sources")
    if not theirs["particles"] and isinstance(inputs, dict) and isinstance(sources, dict):
        theirs = _with_input(theirs, inputs.get("fields"), sources.get("fields"))
    if any(set(mine[group]) & set(theirs[group]) for group in mine):
        return "same"
    return "other" if mine["particles"] and theirs["particles"] else "unknown"


def _with_input(lineage: Lineage, digest: Any, url: Any) -> dict[str, Sequence[str]]:
    """Add the lineage of the fields store that a prediction was made from, if it still exists."""
    if not isinstance(url, str):
        return dict(lineage)
    try:
        before = lineage_of(FieldStore(url))
    except CosmoflowError:
        return dict(lineage)
    if digest not in before["fields"]:
        # Another store has replaced it.
        return dict(lineage)
    return {group: [*digests, *before[group]] for group, digests in lineage.items()}
