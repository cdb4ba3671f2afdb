"""Notes on inputs: what was assumed or left out. Outputs keep those of what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmoflow.events import Listener, Message, caution
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.snapshots import ParticleSource
from cosmoflow.storage.snapshots.source import Snapshot


def tell_notes(source: ParticleSource, listener: Listener) -> None:
    """Notify a listener what was assumed of particles.

    Notes that may change the result are warnings; the rest are plain messages.
    """
    for note in source.metadata.provenance.get("notes", ()):
        if note in source.cautions:
            caution(listener, note)
        else:
            listener(Message(note))


def input_notes(stores: Mapping[str, FieldStore]) -> list[str]:
    """Return the notes of inputs, by role, for the provenance of what is made of them.

    Each note begins with the role, only once where it came through several stages.
    """
    return [
        note if note.startswith(f"{role}: ") else f"{role}: {note}"
        for role, store in stores.items()
        for note in store.metadata.provenance.get("notes", ())
    ]


def snapshot_config(source: ParticleSource) -> dict[str, Any]:
    """Return the section ``snapshot`` of the settings, where the particles are a snapshot's."""
    return {"snapshot": source.origin["hints"]} if isinstance(source, Snapshot) else {}
