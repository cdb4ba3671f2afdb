"""Boxes that validate a model although their simulation trains it."""

from __future__ import annotations

from collections.abc import Sequence

from cosmoflow.events import Listener, caution
from cosmoflow.stages.inputs.lineage import lineage_of
from cosmoflow.storage.fields import FieldStore


def warn_of_relatives(stores: Sequence[FieldStore], validation: int, listener: Listener) -> None:
    """Warn if a store for validation is of the same box as one that trains.

    These are snapshots of one run of `simulate`, paintings of the same particles, and copies, as
    far as their metadata tell. The residual there is not that in a new box.

    Parameters
    ----------
    stores : sequence of FieldStore
        All stores of a training; the last ``validation`` of them are for validation.
    validation : int
        Number of stores for validation; 0 for a single one.
    listener : callable
        Receives the warning.
    """
    ancestors = [_ancestors(store) for store in stores]
    training = len(stores) - validation
    trained = {
        digest: store.url
        for store, digests in zip(stores[:training], ancestors[:training], strict=True)
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
    remedy = (
        "Name the stores of a box one after the other, and choose train.validation_fraction so "
        f"that those that validate (now the last {validation} of {len(stores)}) are whole boxes"
    )
    if all(set(ancestors[0]) & set(digests) for digests in ancestors):
        remedy = "Add stores of another box"
    caution(
        listener,
        f"{url} validates the model, but {before}, which trains it, is of the same box{more}: new "
        f"boxes have a larger residual. {remedy}",
    )


def _ancestors(store: FieldStore) -> list[str]:
    """Return the digests of a store, and of the particles and fields that it descends from."""
    return [digest for digests in lineage_of(store).values() for digest in digests]
