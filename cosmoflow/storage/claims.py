"""One writer for each output: a run claims its output before it writes to it.

The claims on a place are small files beside what is stored there. They form a chain: the first is
``first.claim``, and the one that follows a claim is named after that claim's token. Files are
created exclusively, so that a claim has one successor at most however many runs want to follow it,
and whoever is last in the chain holds the place.
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
    """The right to write to a place; :func:`claim` gives it.

    Parameters
    ----------
    url : str
        The place.
    """

    PERIOD: ClassVar[float] = 2.0
    """Seconds between two signs of life."""
    LEASE: ClassVar[float] = 60.0
    """Seconds without one after which a holder counts as dead. A process may well be silent for
    some: while a library compiles, while storage is slow."""

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
        """Stop a run that has lost its place, because it slept for longer than the lease.

        Raises
        ------
        SupersededError
        """
        # The pulse of a process that has just woken up may not have looked yet. The clock is one
        # that goes on while a machine sleeps; where it jumps, one look too many does no harm.
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
        """Become the last of the chain, or raise BusyError."""
        told: Holder | None = None
        while True:
            last = _last(self._folder)
            if last is not None and not last.is_dead():
                if self._shows_life(last):
                    if wait:
                        if last != told:
                            listener(Message(f"waiting for {last}, which is writing to {self.url}"))
                        told = last
                        continue
                    raise BusyError(
                        "another run is writing this output",
                        where=self.url,
                        value=str(last),
                        remedy="let it finish, or stop it and run again with --resume",
                    )
                if _last(self._folder) != last:
                    continue
            name = _FIRST if last is None else last.token + _CLAIM
            content = json.dumps(self._holder.to_dict()).encode()
            if create_bytes(self._folder, name, content):
                # Was what we follow cleared away meanwhile, nobody would find us in the chain.
                if self._is_last():
                    break
                remove_file(self._folder, name)
        # Without it, zarr wonders what this folder is, and warns.
        write_bytes(self._folder, _GROUP, _GROUP_CONTENT)
        self._beat()
        self._pulse.start()

    def _shows_life(self, holder: Holder) -> bool:
        """Wait for a holder's next sign of life; False if none comes, or if it lets go or dies.

        Signs are compared with one another, never with a clock: those of two machines differ.
        """
        name = holder.token + _BEAT
        began, before = time.monotonic(), find_bytes(self._folder, name)
        while time.monotonic() - began < self.LEASE:
            time.sleep(self.PERIOD / 4)
            if _last(self._folder) != holder or holder.is_dead():
                return False
            if find_bytes(self._folder, name) != before:
                return True
        return False

    def _is_last(self) -> bool:
        return _last(self._folder) == self._holder

    def _live(self) -> None:
        while not self._lost and not self._ended.wait(self.PERIOD):
            # Storage that fails for a while is noticed by the run itself.
            with suppress(StorageError):
                self._beat()

    def _beat(self) -> None:
        """Give a sign of life, and look whether the place is still ours."""
        with self._beating:
            self._lost = self._lost or not self._is_last()
            if not self._lost:
                self._beats += 1
                name, content = self._holder.token + _BEAT, f"{self._beats}\n".encode()
                write_bytes(self._folder, name, content)
                self._beaten = time.time()

    def holds(self) -> bool:
        """Tell whether the place is still held."""
        return not self._lost and self._is_last()

    def release(self) -> None:
        """Let go, and clear away the claims on the place."""
        self._ended.set()
        if self._pulse.is_alive():
            self._pulse.join()
        # What cannot be deleted now is left to whoever comes next.
        with suppress(StorageError):
            if not self.holds():
                remove_file(self._folder, self._holder.token + _BEAT)
                return
            known = (_CLAIM, _BEAT, ".partial")
            names = [name for name in list_names(self._folder) if name.endswith(known)]
            # The whole chain goes with its first. Then the next one may begin at once, whose first
            # and whose group are not ours to delete.
            names.remove(_FIRST)
            for name in (_GROUP, _FIRST, *names):
                remove_file(self._folder, name)
            prune(self._folder)
            prune(self.url)


@contextmanager
def claim(url: str, *, wait: bool = False, listener: Listener = ignore) -> Iterator[Claim]:
    """Hold a place, so that no other run writes to it meanwhile.

    Parameters
    ----------
    url : str
        Of the output, or of the store that is added to.
    wait : bool
        Wait for a run that holds it instead of giving up.
    listener : callable
        Hears, once of each, which runs are waited for.

    Yields
    ------
    Claim
        Ask it now and then, with ``check``, whether the place is still held.

    Raises
    ------
    BusyError
        Another run holds it.
    StorageError
        It cannot be reached.

    Notes
    -----
    A run of this machine that has died is followed at once, any other when it has been silent for
    :attr:`Claim.LEASE`.
    """
    held = Claim(url)
    try:
        held.acquire(wait=wait, listener=listener)
        yield held
    finally:
        held.release()


def _last(folder: str) -> Holder | None:
    """Return the holder at the end of the chain, or None when there is no chain."""
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
