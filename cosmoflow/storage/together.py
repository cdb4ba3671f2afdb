"""Several accesses at the same time: each mostly waits for an answer of storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from cosmoflow.storage.places import local_path

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 8
"""Accesses at the same time. Each may itself send several requests."""
_FILES_AT_ONCE: Final = 16
"""The same, where each is one request or reads one file."""


def together(
    url: str, function: Callable[[T], R], items: Iterable[T], *, most: int = AT_ONCE
) -> list[R]:
    """Return the results of a function for all items, in their order.

    Parameters
    ----------
    url : str
        What the function accesses. If it is in a bucket, calls run side by side in threads.
    function : callable
        It may be called from several threads.
    items : iterable
        Its arguments.
    most : int
        Most calls at the same time.
    """
    return in_threads(function, items, 1 if local_path(url) is not None else most)


def in_threads(
    function: Callable[[T], R], items: Iterable[T], most: int = _FILES_AT_ONCE
) -> list[R]:
    """Return the results of a function for all items, in their order, called in threads."""
    given = list(items)
    threads = min(most, len(given))
    if threads < 2:
        return [function(item) for item in given]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, given))
