"""Notes on inputs: assumptions and omissions. Outputs keep the notes of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cosmoflow.events import Listener, Message, caution
from cosmoflow.storage.fields import FieldStore

if TYPE_CHECKING:
    from cosmoflow.storage.snapshots import ParticleSource


def tell_notes(source: ParticleSource, listener: Listener) -> None:
    """Send the notes on particles to a listener.

    Notes on assumptions that may affect the result are warnings; others are plain messages.
    """
    for note in source.metadata.provenance.get("notes", ()):
        if note in source.cautions:
            caution(listener, note)
        else:
            listener(Message(note))


def input_notes(stores: Mapping[str, FieldStore]) -> list[str]:
    """Return the notes of inputs, by role, for the provenance of an output.

    Each note starts with the role, once even after several stages.
    """
    return [
        note if note.startswith(f"{role}: ") else f"{role}: {note}"
        for role, store in stores.items()
        for note in store.metadata.provenance.get("notes", ())
    ]


def tell_assumed(
    values: Mapping[str, float], listener: Listener, *, warn: bool = False
) -> list[str]:
    """Tell a listener in one line which values were assumed; return the notes on them.

    Parameters
    ----------
    values : mapping of str to float
        The assumed values by name.
    listener : callable
        Receives the line.
    warn : bool
        Whether it is a warning.
    """
    if not values:
        return []
    listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
    note = f"assumed, as not stated: {listed}"
    listener(Message(note, "warning" if warn else "info"))
    return [note]


def snapshot_config(source: ParticleSource) -> dict[str, Any]:
    """Return the settings section ``snapshot`` if the particles come from a snapshot."""
    # Imported here: the readers of snapshots are many, and stages of fields need none of them.
    from cosmoflow.storage.snapshots.source import Snapshot

    return {"snapshot": source.origin["hints"]} if isinstance(source, Snapshot) else {}
