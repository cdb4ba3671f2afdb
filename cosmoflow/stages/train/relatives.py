"""Boxes that validate a model although their simulation trains it."""

from __future__ import annotations

from collections.abc import Sequence

from cosmoflow.events import Listener, caution
from cosmoflow.stages.inputs.lineage import lineage_of
from cosmoflow.storage.fields import FieldStore


def warn_of_relatives(stores: Sequence[FieldStore], validation: int, listener: Listener) -> None:
    """Warn if a box for validation is of a simulation or snapshot that also trains.

    It has the structures of a training box, whatever its redshift, its cells or the name of its
    copy. The residual there is not that in a new box.

    Parameters
    ----------
    stores : sequence of FieldStore
        All stores of a training; the last ``validation`` of them are for validation.
    validation : int
    listener : callable
        Receives the warning.
    """
    ancestors = [_ancestors(store) for store in stores]
    training = len(stores) - validation
    trained = {
        digest: store.url
        for store, digests in zip(stores[:training], ancestors, strict=False)
        for digest in digests
    }
    pairs = [
        (store.url, trained[shared[0]])
        for store, digests in zip(stores[training:], ancestors[training:], strict=True)
        if (shared := [digest for digest in digests if digest in trained])
    ]
    if not pairs:
        return
    url, before = pairs[0]
    more = f" (and so for {len(pairs) - 1} more)" if len(pairs) > 1 else ""
    last = "last validates" if validation == 1 else f"last {validation} validate"
    caution(
        listener,
        f"{url}, which validates the model, is of the same box as {before}, which trains it{more}: "
        f"new boxes have a larger residual. Of {len(stores)} stores the {last}: name all stores of "
        "a box before them, or among them",
    )


def _ancestors(store: FieldStore) -> list[str]:
    """Return the digests of a store, and of the particles and fields that it descends from."""
    return [digest for digests in lineage_of(store).values() for digest in digests]
