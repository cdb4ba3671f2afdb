"""Checks that all workers have the driver's versions: a result must not depend on where it is made.

The versions of a worker are found by functions that are defined inside other functions. Ray ships
such a function by value, while it ships a function of a module by its name, which means the
worker's own copy.

The tasks make the check, once in each process. Ray's ``worker_process_setup_hook`` cannot: if it
raises, Ray ends the worker and retries the task, possibly on another node. The driver then gets a
``WorkerCrashedError`` without the cause, or no error at all.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosmoflow.engine.nodes import Node
from cosmoflow.errors import ConfigError

PROBE_SECONDS = 60.0
"""Seconds to wait for the versions of the nodes. A slower node is checked with its first task."""

LIBRARIES = ("ray", "torch", "numpy", "numba", "zarr", "numcodecs", "obstore", "dask")
"""Libraries on which results or their format depend."""

Versions = dict[str, str]
"""Installed version of each library."""

Mismatch = list[tuple[str, str, str]]
"""Names of what differs, with the found and the expected version."""


def make_probe() -> Callable[[], Versions]:
    """Return a function that returns the versions of the process that calls it.

    The version of cosmoflow includes a digest of its source, which may change between releases.
    """
    libraries = LIBRARIES

    def probe() -> Versions:
        import importlib.metadata
        import importlib.util
        from hashlib import sha256
        from pathlib import Path
        from platform import python_version_tuple
        from re import search

        def installed(name: str) -> str:
            try:
                # On CPUs 2.13.0+cpu and 2.13.0+cu126 compute the same.
                return importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                return "none"

        versions = {"cosmoflow": "none", "python": ".".join(python_version_tuple()[:2])}
        spec = importlib.util.find_spec("cosmoflow")
        if spec is not None and spec.submodule_search_locations:
            folder = Path(next(iter(spec.submodule_search_locations)))
            digest = sha256()
            for file in sorted(folder.rglob("*.py")):
                digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
            named = search(r'__version__ = "(.*)"', (folder / "__init__.py").read_text())
            release = named.group(1) if named else "of unknown version"
            versions["cosmoflow"] = f"{release} (source {digest.hexdigest()[:8]})"
        return versions | {name: installed(name) for name in libraries}

    return probe


def make_comparison() -> Callable[[], Mismatch]:
    """Return a function that compares the versions of its process with those of this process.

    In each process the comparison is made only once.
    """
    probe = make_probe()
    expected = probe()
    looked: list[Mismatch] = []

    def compare() -> Mismatch:
        if not looked:
            found = probe()
            looked.append(
                [
                    (name, found[name], version)
                    for name, version in expected.items()
                    if found[name] != version
                ]
            )
        return looked[0]

    return compare


def check_nodes(nodes: Sequence[Node], compare: Callable[[], Mismatch]) -> None:
    """Compare the versions of some nodes with those of this process.

    Raises
    ------
    ConfigError
        Something differs.
    """
    if not nodes:
        return
    task = ray.remote(num_cpus=0, max_retries=0)(compare)
    asked = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False)
        ).remote(): node.address
        for node in nodes
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
    for ref in answered:
        try:
            wrong = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise refusal(
                asked[ref], [("cosmoflow", f"unknown: {error.cause!r}", "ours")]
            ) from error
        except ray.exceptions.RayError:
            # The node has left the cluster; running the tasks deals with that.
            continue
        if wrong:
            raise refusal(asked[ref], wrong)


def guarded(function: Callable[..., Any], compare: Callable[[], Mismatch]) -> Callable[..., Any]:
    """Return a function, shipped by value, that checks versions and then calls another function.

    This finds nodes that join after :func:`check_nodes`.
    """

    def call(*arguments: Any) -> Any:
        if wrong := compare():
            raise refusal(platform.node(), wrong)
        return function(*arguments)

    return call


def refusal(node: str, wrong: Mismatch) -> ConfigError:
    """Return the error that names a node and the versions that differ."""
    remedy = "install the same on every node"
    if [name for name, _, _ in wrong] == ["cosmoflow"]:
        remedy += ", or send this code along: --set engine.ship_code=true"
    return ConfigError(
        "a node of the cluster has other versions than this process",
        where=f"node {node}",
        value=", ".join(f"{name} {found}" for name, found, _ in wrong),
        limit=", ".join(f"{name} {expected}" for name, _, expected in wrong),
        remedy=remedy,
    )
