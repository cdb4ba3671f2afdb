"""Parcels of other nodes: an actor on every node serves its folder.

The bytes travel as Ray's own objects, so they pass through the ports, the token and the encryption
that the cluster has already. The tasks that read own these objects; the driver does not know them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosmoflow.engine.exchange.bucket import BucketScratch
from cosmoflow.engine.exchange.parcels import DamagedParcelError, decode
from cosmoflow.engine.exchange.scratch import Scratch
from cosmoflow.engine.graph import Key
from cosmoflow.engine.waiting import wait_aside

REQUEST_BYTES: Final = 32 << 20
"""Bytes of parts that a server is asked for at once, unless a single part has more."""
REQUESTS: Final = 4
"""Requests that a task has under way."""
ANSWER_SECONDS: Final = 300.0
"""Seconds after which a server that does not answer counts as lost."""
RESTARTS: Final = 5
"""How often a server that dies is started again on its node."""
HANDOVER_SECONDS: Final = 30.0
"""Seconds to wait for the server of another run of the same name."""
_THREADS: Final = 8


class LostParcelsError(Exception):
    """Parcels that a task reads are missing or damaged.

    Parameters
    ----------
    lost : dict of Key to str
        What is wrong with the parcel of each task.
    """

    def __init__(self, lost: dict[Key, str]) -> None:
        super().__init__(lost)
        self.lost = lost


@cache
def this_node() -> str:
    """Return Ray's id of this node."""
    return str(ray.get_runtime_context().get_node_id())


def on_this_node(scratch: Scratch | BucketScratch) -> Scratch | BucketScratch:
    """Return the folder of this node, where nodes have folders of their own."""
    if isinstance(scratch, Scratch) and scratch.node:
        return replace(scratch, node=this_node())
    return scratch


class Server:
    """The actor: serves the folder of one run on its node, and holds it."""

    def __init__(self, scratch: Scratch, keep: bool) -> None:
        self._scratch = scratch
        # A server that is started again keeps what its predecessor has served.
        again = ray.get_runtime_context().was_current_actor_reconstructed
        # The server of a driver that was killed takes a moment to end.
        self._held = scratch.hold(keep=keep or again, patience=HANDOVER_SECONDS)
        self._found = scratch.find() if keep else {}

    def find(self) -> tuple[dict[Key, Any], int]:
        """Return the values of the parcels that an earlier run left here, and the free bytes."""
        return self._found, self._scratch.free

    def sizes(self, keys: Sequence[Key], part: int) -> list[int | str]:
        """Return the bytes of a part of each of some parcels, or what is wrong with the parcel."""
        return [_size(self._scratch, key, part) for key in keys]

    def read(self, keys: Sequence[Key], part: int) -> list[NDArray[np.uint8] | str | None]:
        """Return a part of each of some parcels."""
        return list(self._scratch.blocks(keys, part))

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete some parcels."""
        self._scratch.remove(keys)

    def close(self) -> None:
        """Delete the folder."""
        self._held.delete()


def _size(scratch: Scratch, key: Key, part: int) -> int | str:
    try:
        return scratch.size(key, part)
    except DamagedParcelError as error:
        return str(error)


@lru_cache(maxsize=1)
def _get_servers(roster: ray.ObjectRef) -> list[tuple[str, Any]]:
    """Return the nodes of a roster and their servers: once in a process, as it takes long."""
    found: list[tuple[str, Any]] = wait_aside(ray.get, roster)
    return found


class Directory:
    """Where the parcels of some tasks of a family are.

    It is as small as it can be, since most tasks get one of their own from the driver.

    Parameters
    ----------
    family : str
        The family.
    numbers : sequence of int
        Numbers of its tasks.
    where : array of int, optional
        Place in the roster of the node of each parcel; by default all are on this node, or in a
        bucket.
    roster : ObjectRef, optional
        Nodes and their servers, see :attr:`Servers.roster`.
    """

    def __init__(
        self,
        family: str,
        numbers: Sequence[int] | NDArray[np.integer],
        where: NDArray[np.int32] | None = None,
        roster: ray.ObjectRef | None = None,
    ) -> None:
        self._family, self._where, self._roster = family, where, roster
        self._numbers = numbers if isinstance(numbers, range) else np.asarray(numbers, np.int32)

    def read(self, scratch: Scratch | BucketScratch, part: int) -> list[Any]:
        """Return a part of each parcel in the order of the tasks, without those that are absent.

        Raises
        ------
        LostParcelsError
        """
        found = dict(self.fetch(scratch, part))
        return [found[place] for place in sorted(found)]

    def stream(self, scratch: Scratch | BucketScratch, part: int) -> Parts:
        """Return a part of each parcel, in any order, for a task that fetches while it works."""
        return Parts(self, scratch, part)

    def fetch(self, scratch: Scratch | BucketScratch, part: int) -> Iterator[tuple[int, Any]]:
        """Yield places and parts, then raise LostParcelsError if any are lost."""
        lost: dict[Key, str] = {}
        for place, block in self._blocks(scratch, part):
            if isinstance(block, str):
                lost[self._key(place)] = block
            elif block is not None and not lost:
                yield place, decode(block)
        if lost:
            raise LostParcelsError(lost)

    def _key(self, place: int) -> Key:
        return self._family, int(self._numbers[place])

    def _blocks(
        self, scratch: Scratch | BucketScratch, part: int
    ) -> Iterator[tuple[int, NDArray[np.uint8] | str | None]]:
        """Yield places and blocks, or what is wrong.

        Those in the bucket or on this node come first, then those of other nodes.
        """
        here: list[int] = []
        elsewhere: dict[str, list[int]] = {}
        servers: dict[str, Any] = {}
        if self._where is None or self._roster is None:
            here += range(len(self._numbers))
        else:
            roster = _get_servers(self._roster)
            for index in np.unique(self._where).tolist():
                name, server = roster[index]
                places = np.flatnonzero(self._where == index).tolist()
                if name == this_node() or server is None:
                    here += places
                else:
                    elsewhere[name], servers[name] = places, server
        keys = [self._key(place) for place in here]
        yield from zip(here, scratch.blocks(keys, part), strict=True)
        yield from self._fetch(elsewhere, servers, part)

    def _fetch(
        self, elsewhere: dict[str, list[int]], servers: dict[str, Any], part: int
    ) -> Iterator[tuple[int, NDArray[np.uint8] | str | None]]:
        """Yield places and blocks from other nodes, with a few requests under way at a time."""
        requests: list[list[tuple[str, list[int]]]] = []
        asked: dict[Any, tuple[str, list[int]]] = {}
        for name, places in elsewhere.items():
            keys = [self._key(place) for place in places]
            asked[servers[name].sizes.remote(keys, part)] = (name, places)
        for (name, places), sizes in self._answers(asked):
            if isinstance(sizes, str):
                yield from ((place, sizes) for place in places)
                continue
            own, total = list[list[int]]([[]]), 0
            for place, size in zip(places, sizes, strict=True):
                if isinstance(size, str) or not size:
                    yield place, size or None
                    continue
                if own[-1] and total + size > REQUEST_BYTES:
                    own.append([])
                    total = 0
                own[-1].append(place)
                total += size
            requests.append([(name, places) for places in own if places])
        # The nodes take turns.
        turns = itertools.chain.from_iterable(itertools.zip_longest(*requests))
        yield from self._requested(deque(filter(None, turns)), servers, part)

    def _requested(
        self, waiting: deque[tuple[str, list[int]]], servers: dict[str, Any], part: int
    ) -> Iterator[tuple[int, NDArray[np.uint8] | str | None]]:
        asked: dict[Any, tuple[str, list[int]]] = {}
        while waiting or asked:
            while waiting and len(asked) < REQUESTS:
                name, places = waiting.popleft()
                keys = [self._key(place) for place in places]
                asked[servers[name].read.remote(keys, part)] = (name, places)
            (_, places), blocks = next(self._answers(asked))
            if isinstance(blocks, str):
                yield from ((place, blocks) for place in places)
            else:
                yield from zip(places, blocks, strict=True)

    def _answers(
        self, asked: dict[Any, tuple[str, list[int]]]
    ) -> Iterator[tuple[tuple[str, list[int]], Any]]:
        """Yield what was asked, and the answer or why there is none, as answers come."""
        while asked:
            ready, _ = wait_aside(ray.wait, list(asked), num_returns=1, timeout=ANSWER_SECONDS)
            ref = ready[0] if ready else next(iter(asked))
            request = asked.pop(ref)
            try:
                answer = wait_aside(ray.get, ref, timeout=ANSWER_SECONDS if ready else 0)
            except RayError as error:
                answer = f"its node does not answer: {type(error).__name__}"
            yield request, answer


class Parts:
    """The same part of several parcels, read from the start in each iteration.

    Parts of this node come first, then those of other nodes as they arrive.

    Parameters
    ----------
    directory : Directory
        Where the parcels are.
    scratch : Scratch
        The folder of this node.
    part : int
        Number of the part.
    """

    def __init__(self, directory: Directory, scratch: Scratch | BucketScratch, part: int) -> None:
        self._directory, self._scratch, self._part = directory, scratch, part

    def __iter__(self) -> Iterator[Any]:
        """Yield the parts that are there.

        Raises
        ------
        LostParcelsError
            Some are lost. It comes after the parts before the first lost one, and names all.
        """
        return (part for _, part in self._directory.fetch(self._scratch, self._part))


class Servers:
    """The servers of a run on all nodes of a cluster.

    Parameters
    ----------
    scratch : Scratch
        The folder of the run.
    keep : bool
        Use the parcels that a killed run has left.
    """

    def __init__(self, scratch: Scratch, keep: bool) -> None:
        self._scratch, self._keep = scratch, keep
        self.actors: dict[str, Any] = {}
        self._places: dict[str, int] = {}
        """Places of nodes in the roster. Nodes that are lost keep theirs."""
        self._roster: ray.ObjectRef | None = None
        self._unneeded: defaultdict[str, list[Key]] = defaultdict(list)

    @property
    def scratch(self) -> Scratch:
        """The folder of the run on this node."""
        return replace(self._scratch, node=this_node())

    def start(self, nodes: Sequence[str]) -> None:
        """Start a server on each node that has none."""
        for name in nodes:
            if name not in self.actors:
                self._roster = None
                self._places.setdefault(name, len(self._places))
                self.actors[name] = (
                    ray.remote(Server)
                    .options(
                        num_cpus=0,
                        max_restarts=RESTARTS,
                        max_task_retries=RESTARTS,
                        max_concurrency=_THREADS,
                        # The server of a node that is lost is not started again.
                        scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False),
                    )
                    .remote(replace(self._scratch, node=name), self._keep)
                )

    def place(self, node: str) -> int:
        """Return the place of a node in the roster."""
        # The node may have joined, and done a task, since the driver last looked.
        if node not in self._places:
            self.start([node])
        return self._places[node]

    @property
    def roster(self) -> ray.ObjectRef:
        """List of nodes and their servers, None for a server that is dropped.

        It is an object of its own since a list of a thousand servers takes 4 ms to pickle.
        """
        if self._roster is None:
            self._roster = ray.put([(name, self.actors.get(name)) for name in self._places])
        return self._roster

    def find(self) -> dict[str, tuple[dict[Key, Any], int]]:
        """Return what each node's server has found; nodes that do not answer are left out."""
        return dict(self._ask(lambda server: server.find.remote()))

    def _ask(self, call: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
        refs = {call(server): name for name, server in self.actors.items()}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=60.0) if refs else ([], [])
        for ref in ready:
            try:
                yield refs[ref], ray.get(ref)
            except RayError:
                continue

    def remove(self, keys: Sequence[Key], nodes: Sequence[str]) -> None:
        """Note that no task will read some parcels."""
        for key, name in zip(keys, nodes, strict=True):
            self._unneeded[name].append(key)

    def clear(self) -> None:
        """Delete the parcels that no task will read, with one call for each node."""
        for name, keys in self._unneeded.items():
            if name in self.actors:
                self.actors[name].remove.remote(keys)
        self._unneeded.clear()

    def drop(self, name: str) -> None:
        """Forget the server of a node that is lost, so that tasks do not wait for its answers."""
        if (server := self.actors.pop(name, None)) is not None:
            self._roster = None
            ray.kill(server)

    def close(self) -> None:
        """Delete the folders on all nodes, and stop the servers."""
        try:
            list(self._ask(lambda server: server.close.remote()))
        except RayError:
            return
        for server in self.actors.values():
            ray.kill(server)
