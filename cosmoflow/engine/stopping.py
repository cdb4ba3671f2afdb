"""How the tasks of a graph end when one of them has failed."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.experimental import internal_kv

PATIENCE: Final = 10.0
"""Seconds that running tasks have to end after another task has failed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A flag of the cluster that the driver sets and its tasks look at.

    ``ray.cancel`` cannot be used: Ray 2.60 aborts the driver ("Tried to complete task that was not
    pending") if a task is cancelled while it is being handed to a worker.
    """

    _flag: bytes = field(default_factory=lambda: b"cosmoflow stop " + uuid.uuid4().bytes)

    def check(self) -> None:
        """Raise an error if the flag is set. Called by tasks."""
        if internal_kv._internal_kv_exists(self._flag):
            raise RuntimeError("another task of this graph has failed")

    def set(self, running: Collection[Any] = ()) -> None:
        """Make tasks that have not begun end at once, and wait for those that run."""
        internal_kv._internal_kv_put(self._flag, b"stop")
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=PATIENCE, fetch_local=False)
