"""One writer for each output: a run claims its output before it writes to it.

A claim is a small file beside the data. A run that takes over from a dead run adds a claim to the
chain: the first claim is ``first.claim``, and each later one is named after the token of the claim
that it follows. The files are created exclusively, so a claim has at most one successor, however
many runs try to take over. The last claim of the chain holds the place.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from cosmoflow.errors import BusyError, StorageError, SupersededError
from cosmoflow.events import Listener, Message, ignore
from cosmoflow.storage.files import create_bytes, remove_file
from cosmoflow.storage.holders import Holder
from cosmoflow.storage.urls import (
    CLAIMS,
    find_bytes,
    join,
    list_names,
    prune,
    write_bytes,
)

_FIRST, _CLAIM, _BEAT, _GROUP = "first.claim", ".claim", ".beat", "zarr.json"
_GROUP_CONTENT = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}\n'


class Claim:
    """The right to write to a place, by its URL; :func:`claim` returns one that is held."""

    PERIOD: ClassVar[float] = 2.0
    """Seconds between two heartbeats."""
    LEASE: ClassVar[float] = 60.0
    """Seconds without a heartbeat after which a holder counts as dead. A live process may miss
    several: while a library compiles, or while storage is slow."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._folder = join(url, CLAIMS)
        self._holder = Holder.here()
        self._beats = 0
        self._beaten = 0.0
        self._lost = False
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._live, daemon=True)

    def check(self) -> None:
        """Stop a run that has lost its claim, because it slept for longer than the lease.

        Raises
        ------
        SupersededError
        """
        # In a process that has just woken up, the heartbeat thread may not have run yet.
        # time.time() goes on while a machine sleeps. If it jumps, one check too many does no harm.
        if not self._lost and abs(time.time() - self._beaten) > 2 * self.PERIOD:
            self._beat()
        if self._lost:
            raise SupersededError(
                "this run has lost its output to another one",
                where=self.url,
                value="no sign of life of this run for too long, or its claim was deleted",
                remedy="let the other run finish; run again with --resume if there is none",
            )

    def acquire(self, *, wait: bool, listener: Listener = ignore) -> None:
        """Become the last claim of the chain, or raise BusyError."""
        announced: Holder | None = None
        while True:
            last = _last(self._folder)
            if last is not None and self._shows_life(last):
                if not wait:
                    raise BusyError(
                        "another run is writing this output",
                        where=self.url,
                        value=str(last),
                        remedy="let it finish, or stop it and run again with --resume",
                    )
                if last != announced:
                    listener(Message(f"waiting for {last}, which is writing to {self.url}"))
                announced = last
            elif self._follow(last):
                break
        # zarr warns of a folder that is no group.
        write_bytes(self._folder, _GROUP, _GROUP_CONTENT)
        self._beat()
        self._pulse.start()

    def _follow(self, last: Holder | None) -> bool:
        """Create the claim that follows ``last``; False if another run was faster."""
        name = _FIRST if last is None else last.token + _CLAIM
        if not create_bytes(self._folder, name, json.dumps(self._holder.to_dict()).encode()):
            return False
        if self._is_last():
            return True
        # The holder that we follow has released its claim, so the chain no longer reaches ours.
        remove_file(self._folder, name)
        return False

    def _shows_life(self, holder: Holder) -> bool:
        """Wait for a holder's next heartbeat; False if none comes, or if it lets go or dies.

        Heartbeats are compared with one another, never with a clock: two machines' clocks differ.
        """
        name = holder.token + _BEAT
        began, before = time.monotonic(), find_bytes(self._folder, name)
        while time.monotonic() - began < self.LEASE and not holder.is_dead():
            time.sleep(self.PERIOD / 4)
            if _last(self._folder) != holder:
                return False
            if find_bytes(self._folder, name) != before:
                return not holder.is_dead()
        return False

    def _is_last(self) -> bool:
        return _last(self._folder) == self._holder

    def _live(self) -> None:
        while not self._lost and not self._ended.wait(self.PERIOD):
            # If storage fails for long, the run's own reads and writes raise.
            with suppress(StorageError):
                self._beat()

    def _beat(self) -> None:
        """Check that the place is still ours, and write a heartbeat."""
        with self._beating:
            # A lost claim stays lost, also if that is found out while this looks.
            if not self._is_last():
                self._lost = True
            if not self._lost:
                self._beats += 1
                name, content = self._holder.token + _BEAT, f"{self._beats}\n".encode()
                write_bytes(self._folder, name, content)
                self._beaten = time.time()

    def holds(self) -> bool:
        """Return whether the place is still held."""
        return not self._lost and self._is_last()

    def release(self) -> None:
        """Release the place, and delete the claims on it."""
        self._ended.set()
        if self._pulse.is_alive():
            self._pulse.join()
        # The next run deletes what cannot be deleted now.
        with suppress(StorageError):
            if not self.holds():
                remove_file(self._folder, self._holder.token + _BEAT)
                return
            known = (_CLAIM, _BEAT, ".partial")
            names = [name for name in list_names(self._folder) if name.endswith(known)]
            # Without its first claim there is no chain, and another run may begin one. The first
            # claim and the group are then that run's, so ours are deleted before anything else.
            for name in (_GROUP, _FIRST, *(name for name in names if name != _FIRST)):
                remove_file(self._folder, name)
            prune(self._folder)
            prune(self.url)


@contextmanager
def claim(url: str, *, wait: bool = False, listener: Listener = ignore) -> Iterator[Claim]:
    """Hold a place while the ``with`` block runs, so that no other run writes to it.

    Parameters
    ----------
    url : str
        URL of the output, or of the store that is added to.
    wait : bool
        Wait for the run that holds the place instead of raising BusyError.
    listener : callable
        Receives one message for each run that is waited for.

    Yields
    ------
    Claim
        Call its ``check`` now and then: it raises when the place is no longer held.

    Raises
    ------
    BusyError
        Another run holds the place.
    StorageError
        The place cannot be reached.

    Notes
    -----
    The place of a run that died on this machine is taken over at once. A run on another machine
    counts as dead when it has written no heartbeat for :attr:`Claim.LEASE`.
    """
    held = Claim(url)
    try:
        held.acquire(wait=wait, listener=listener)
        yield held
    finally:
        held.release()


def _last(folder: str) -> Holder | None:
    """Return the holder of the last claim of the chain, or None if there is no chain."""
    last: Holder | None = None
    name = _FIRST
    while (content := find_bytes(folder, name)) is not None:
        try:
            last = Holder(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise StorageError(
                "the claim of a run cannot be read",
                where=join(folder, name),
                remedy=f"if no run writes there, delete {folder}",
            ) from error
        name = last.token + _CLAIM
    return last
