"""A Dask scheduler that runs every node of a graph as one Ray task.

It serves any Dask collection (``dask.compute(x, scheduler=get)``) and our own task graphs.
``ray.util.dask`` cannot be used: it rebuilds dataclasses field by field and so breaks on every
graph that holds a zarr 3 array.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import ray
from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.core import flatten, toposort
from ray.exceptions import RayTaskError

from cosmoflow.engine.base import ONE_CORE, Resources
from cosmoflow.engine.threads import use_threads

RETRIES = 5
"""How often a task is run again whose worker or node died."""


@ray.remote(max_retries=RETRIES)  # type: ignore[untyped-decorator]
def _run_node(node: GraphNode, threads: int, inputs: list[Hashable], *values: Any) -> Any:
    """Run one node. Ray has resolved the values, which lie in shared memory, by now."""
    use_threads(threads)
    return node(dict(zip(inputs, values, strict=True)))


def submit(
    graph: Mapping[Any, Any],
    parts: Mapping[Any, int] | None = None,
    needs: Resources = ONE_CORE,
) -> dict[Any, ray.ObjectRef]:
    """Submit a graph to Ray.

    Parameters
    ----------
    graph : mapping
        Dask graph.
    parts : mapping, optional
        Number of parts of the results that are to be shipped part by part; the node ``(key, i)`` is
        then part i of ``key``.
    needs : Resources
        What Ray reserves for each task.

    Returns
    -------
    dict
        A reference for every node that has not been replaced by a part.
    """
    # A single part is Ray's single return value, the sequence itself: getitem takes it out.
    parts = {key: count for key, count in (parts or {}).items() if count > 1}
    nodes = convert_legacy_graph(dict(graph))
    refs: dict[Any, Any] = {}
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
            task = _run_node.options(
                name=str(key),
                num_returns=count,
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                memory=needs.memory or None,
            )
            # Values travel as top-level arguments: Ray resolves only those.
            result = task.remote(node, needs.cpus, inputs, *(refs[name] for name in inputs))
            if key in parts:
                refs.update({(key, index): piece for index, piece in enumerate(result)})
                refs[key] = result[0]
            else:
                refs[key] = result
    return refs


def collect(
    refs: Mapping[Any, ray.ObjectRef],
    wanted: Sequence[Any],
    on_done: Callable[[Any, Any], None] | None = None,
) -> dict[Any, Any]:
    """Wait for some references, telling of each as it comes; cancel everything on an error."""
    waiting = {refs[key]: key for key in wanted}
    results: dict[Any, Any] = {}
    try:
        while waiting:
            # A timeout keeps the interpreter responsive to Ctrl-C.
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for ref in ready:
                key = waiting.pop(ref)
                results[key] = ray.get(ref)
                if on_done is not None:
                    on_done(key, results[key])
    except RayTaskError as error:
        _cancel(refs)
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except BaseException:
        _cancel(refs)
        raise
    return results


def _cancel(refs: Mapping[Any, ray.ObjectRef]) -> None:
    for ref in set(refs.values()):
        ray.cancel(ref, force=False)


def get(dsk: Any, keys: Any, **_: Any) -> Any:
    """Compute keys of a Dask graph on Ray: the ``scheduler=`` of any Dask collection."""
    if hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    refs = submit(dsk)
    results = collect(refs, list(set(flatten([keys]))))
    return _repack(keys, results)


def _repack(keys: Any, results: Mapping[Any, Any]) -> Any:
    if isinstance(keys, list):
        return [_repack(key, results) for key in keys]
    return results[keys]
