"""Making sure that all workers run the driver's code: a result must not depend on where it is made.

What a worker has is found by functions that are defined inside others. Ray ships those whole, while
it ships a module's function by its name, to mean whatever the worker's own copy of it is.
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
"""How long nodes have to tell their versions; one that takes longer is checked with its first task.
"""

LIBRARIES = ("ray", "torch", "numpy", "numba", "zarr", "numcodecs", "obstore", "dask")
"""Those on which a result, or its format, depends."""

Versions = dict[str, str]
"""Names, and what is installed of each."""

Mismatch = list[tuple[str, str, str]]
"""What differs: its name, what was found, what was expected."""


def make_probe() -> Callable[[], Versions]:
    """Return a function that tells the versions of the process that calls it.

    Beside cosmoflow's version stands a digest of its source: clones change between releases.
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
                # 2.13.0+cpu computes on CPUs what 2.13.0+cu126 does.
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
    """Return a function that tells what differs between the process that calls it and this one.

    It looks once in each process that it is shipped to.
    """
    probe, looked = make_probe(), {}
    expected = probe()

    def compare() -> Mismatch:
        if "wrong" not in looked:
            found = probe()
            looked["wrong"] = [
                (name, found[name], version)
                for name, version in expected.items()
                if found[name] != version
            ]
        return list(looked["wrong"])

    return compare


def check_nodes(nodes: Sequence[Node], compare: Callable[[], Mismatch]) -> None:
    """Compare what nodes have with what this process has.

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
            # The node has gone since. Whoever runs tasks copes with that.
            continue
        if wrong:
            raise refusal(asked[ref], wrong)


def guarded(function: Callable[..., Any], compare: Callable[[], Mismatch]) -> Callable[..., Any]:
    """Return a function, to be shipped whole, that calls another one where nothing differs.

    Nodes that join later than :func:`check_nodes` looks are found so.
    """

    def call(*arguments: Any) -> Any:
        if wrong := compare():
            raise refusal(platform.node(), wrong)
        return function(*arguments)

    return call


def refusal(node: str, wrong: Mismatch) -> ConfigError:
    """Return the error that names a node and what differs there."""
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
