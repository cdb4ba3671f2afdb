"""Notes on inputs: what was assumed or left out. Outputs keep those of what they are made of."""

from __future__ import annotations

from typing import Any

from cosmoflow.events import Listener, Message, caution
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.snapshots import ParticleSource
from cosmoflow.storage.snapshots.source import Snapshot


def tell_notes(source: ParticleSource, listener: Listener) -> None:
    """Tell a listener what was assumed of particles.

    What may make the result other than expected is a warning; the rest is a plain message.
    """
    for note in source.metadata.provenance.get("notes", ()):
        if note in source.cautions:
            caution(listener, note)
        else:
            listener(Message(note))


def input_notes(role: str, metadata: BoxMetadata) -> list[str]:
    """Return the notes of an input for the provenance of what is made of it, with its role.

    A note that came through several stages has the role only once.
    """
    start = f"{role}: "
    notes = metadata.provenance.get("notes", ())
    return [note if note.startswith(start) else start + note for note in notes]


def snapshot_config(source: ParticleSource) -> dict[str, Any]:
    """Return the section ``snapshot`` of the settings, where the particles are a snapshot's."""
    return {"snapshot": source.origin["hints"]} if isinstance(source, Snapshot) else {}


def snapshot_facts(source: ParticleSource) -> dict[str, Any]:
    """Return what provenance keeps of the snapshot that particles come from, if they do."""
    return {"snapshot": source.origin} if source.origin else {}
