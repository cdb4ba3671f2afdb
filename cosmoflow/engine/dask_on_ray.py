"""A Dask scheduler that runs every node of a graph as one Ray task.

It runs any Dask collection: ``dask.compute(x, scheduler=get)``. Our own task graphs run in
:mod:`cosmoflow.engine.exchange`. ``ray.util.dask`` cannot be used: it rebuilds dataclasses field by
field, which fails for every graph that holds a zarr 3 array.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import ray
from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.core import flatten, toposort
from ray.exceptions import RayTaskError

from cosmoflow.engine.base import ONE_CORE
from cosmoflow.engine.buffers import return_freed_buffers
from cosmoflow.engine.nodes import placement
from cosmoflow.engine.stopping import Stop
from cosmoflow.engine.telemetry import watched
from cosmoflow.engine.threads import use_share

RETRIES = 5
"""How often a task is run again if its worker or node dies."""


def _run_node(
    stop: Stop, key: Hashable, node: GraphNode, inputs: list[Hashable], *values: Any
) -> Any:
    """Run one node. Ray has replaced references by values, which are in shared memory."""
    stop.check()
    use_share(ONE_CORE)
    return_freed_buffers()
    with watched(str(key[0] if isinstance(key, tuple) else key), str(key)):
        return node(dict(zip(inputs, values, strict=True)))


def run(graph: Mapping[Any, Any], wanted: Sequence[Any]) -> dict[Any, Any]:
    """Run a Dask graph on Ray; return the results of some keys."""
    function = ray.remote(max_retries=RETRIES)(_run_node)
    nodes = convert_legacy_graph(dict(graph))
    refs: dict[Any, ray.ObjectRef] = {}
    stop, first, later = Stop(), placement(ONE_CORE, spread=True), placement(ONE_CORE)
    for key in toposort(nodes, {name: node.dependencies for name, node in nodes.items()}):
        node = nodes[key]
        if isinstance(node, Alias):
            refs[key] = refs[node.target]
        elif isinstance(node, DataNode):
            refs[key] = ray.put(node())
        else:
            inputs = list(node.dependencies)
            task = function.options(name=str(key), **(later if inputs else first))
            refs[key] = task.remote(stop, key, node, inputs, *(refs[name] for name in inputs))
    results = [refs[key] for key in wanted]
    # Ray deletes a result without references, from the object store and from the disk, as soon as
    # the tasks that need it are done.
    del refs
    try:
        return dict(zip(wanted, ray.get(results), strict=True))
    except BaseException as error:
        stop.set(results)
        if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
            raise error.cause from error
        raise


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
