"""Fields stores that tasks of a process open again."""

from __future__ import annotations

from typing import Final

from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import open_group

_reopened: dict[str, FieldStore] = {}
"""Stores that tasks of this process have read."""
_MOST_REOPENED: Final = 16


def reopen_fields(url: str, *names: str) -> FieldStore:
    """Return a fields store for a task that reads some variables.

    The tasks of a process share a store that cosmoflow wrote, as long as the metadata of the group
    and of these variables are the same. Other stores are opened again.
    """
    known = _reopened.get(url)
    if known is not None and known.has_metadata_of(open_group(url), names):
        return known
    store = FieldStore(url)
    _reopened.pop(url, None)
    if store.own:
        if len(_reopened) >= _MOST_REOPENED:
            _reopened.clear()
        _reopened[url] = store
    return store
