"""A Dask scheduler that runs every node of a graph as one Ray task.

It runs any Dask collection (``dask.compute(x, scheduler=get)``) and our own task graphs.
``ray.util.dask`` cannot be used: it rebuilds dataclasses field by field, which fails for every
graph that holds a zarr 3 array.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import ray
from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.core import flatten, toposort
from ray.exceptions import RayTaskError
from ray.experimental import internal_kv

from cosmoflow.engine.base import ONE_CORE, Resources
from cosmoflow.engine.memory import return_freed_buffers
from cosmoflow.engine.nodes import placement
from cosmoflow.engine.telemetry import watched
from cosmoflow.engine.threads import use_share

_LOOK = 1.0
"""Seconds between two checks of which tasks have ended."""

_PATIENCE = 10.0
"""Seconds that running tasks have to end after another task has failed."""

RETRIES = 5
"""How often a task is run again if its worker or node dies."""


def _run_node(
    flag: bytes,
    key: Hashable,
    node: GraphNode,
    needs: Resources,
    inputs: list[Hashable],
    *values: Any,
) -> Any:
    """Run one node. Ray has replaced references by values, which are in shared memory."""
    if internal_kv._internal_kv_exists(flag):
        raise RuntimeError("another task of this graph has failed")
    use_share(needs)
    return_freed_buffers()
    with watched(str(key[0] if isinstance(key, tuple) else key), str(key)):
        return node(dict(zip(inputs, values, strict=True)))


def run(
    graph: Mapping[Any, Any],
    wanted: Sequence[Any],
    on_done: Callable[[Any, Any], None] | None = None,
    *,
    parts: Mapping[Any, int] | None = None,
    needs: Resources = ONE_CORE,
    guard: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> dict[Any, Any]:
    """Run a graph on Ray.

    Parameters
    ----------
    graph : mapping
        Dask graph.
    wanted : sequence
        Keys of the results to return.
    on_done : callable, optional
        Called with each wanted key and its result as soon as it is ready.
    parts : mapping, optional
        Number of parts of each result that is shipped part by part; the node ``(key, i)`` is then
        part i of ``key``.
    needs : Resources
        Resources that Ray reserves for each task.
    guard : callable
        Wraps what workers run, to check first whether they have the driver's versions.
    """
    function = ray.remote(max_retries=RETRIES)(guard(_run_node))
    flag = b"cosmoflow stop " + uuid.uuid4().bytes
    tasks: set[ray.ObjectRef] = set()
    try:
        refs = _submit(graph, function, parts or {}, needs, flag, tasks)
        waiting = {refs[key]: key for key in wanted}
        # Ray deletes a result without references, from the object store and from the disk, as soon
        # as the tasks that need it are done.
        del refs
        return _collect(waiting, tasks, on_done)
    except RayTaskError as error:
        _stop(tasks, flag)
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except BaseException:
        _stop(tasks, flag)
        raise


def _submit(
    graph: Mapping[Any, Any],
    function: Any,
    parts: Mapping[Any, int],
    needs: Resources,
    flag: bytes,
    tasks: set[ray.ObjectRef],
) -> dict[Any, ray.ObjectRef]:
    """Submit a graph; return a reference for every node, and note one for every task."""
    # With a single part Ray returns the sequence itself, so the getitem task takes the part out.
    parts = {key: count for key, count in parts.items() if count > 1}
    nodes = convert_legacy_graph(dict(graph))
    refs: dict[Any, Any] = {}
    first, later = placement(needs, spread=True), placement(needs)
    for key in toposort(nodes, {name: node.dependencies for name, node in nodes.items()}):
        if key in refs:
            continue
        node = nodes[key]
        if isinstance(node, Alias):
            refs[key] = refs[node.target]
        elif isinstance(node, DataNode):
            refs[key] = ray.put(node())
        else:
            inputs = list(node.dependencies)
            count = parts.get(key, 1)
            where = later if inputs else first
            task = function.options(name=str(key), num_returns=count, **where)
            # Ray replaces only references that are top-level arguments.
            values = (refs[name] for name in inputs)
            result = task.remote(flag, key, node, needs, inputs, *values)
            if key in parts:
                refs.update({(key, index): piece for index, piece in enumerate(result)})
                refs[key] = result[0]
            else:
                refs[key] = result
            tasks.add(refs[key])
    return refs


def _collect(
    waiting: dict[ray.ObjectRef, Any],
    tasks: set[ray.ObjectRef],
    on_done: Callable[[Any, Any], None] | None,
) -> dict[Any, Any]:
    """Wait for some references, and report each as it is ready; drop tasks that have ended."""
    results: dict[Any, Any] = {}
    looked = time.monotonic()
    while waiting:
        # The timeout keeps the interpreter responsive to Ctrl-C.
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
        for ref in ready:
            key = waiting.pop(ref)
            results[key] = ray.get(ref)
            if on_done is not None:
                on_done(key, results[key])
        del ready
        if time.monotonic() - looked > _LOOK:
            tasks -= set(_finished(tasks))
            looked = time.monotonic()
    return results


def _finished(tasks: set[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Return the tasks that have ended, without fetching their results."""
    if not tasks:
        return []
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0, fetch_local=False)
    return list(done)


def _stop(tasks: set[ray.ObjectRef], flag: bytes) -> None:
    """Make tasks that have not begun end at once, and wait for those that run.

    ``ray.cancel`` cannot be used: Ray 2.60 aborts the driver ("Tried to complete task that was not
    pending") if a task is cancelled while it is being handed to a worker.
    """
    internal_kv._internal_kv_put(flag, b"stop")
    if tasks:
        ray.wait(list(tasks), num_returns=len(tasks), timeout=_PATIENCE, fetch_local=False)


def get(dsk: Any, keys: Any, **_: Any) -> Any:
    """Compute keys of a Dask graph on Ray: the ``scheduler=`` of any Dask collection."""
    if hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    results = run(dsk, list(set(flatten([keys]))))
    return _repack(keys, results)


def _repack(keys: Any, results: Mapping[Any, Any]) -> Any:
    if isinstance(keys, list):
        return [_repack(key, results) for key in keys]
    return results[keys]
