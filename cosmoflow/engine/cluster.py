"""Joining a Ray cluster, or starting an instance on this machine.

Ray itself waits for minutes for a cluster that does not exist, reports a wrong token as "failed to
connect", and aborts the driver's process if there is no token. So all of this is checked first.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

import cosmoflow
from cosmoflow.engine.surroundings import (
    choose_folders,
    describe_job,
    ensure_token,
    keeping_sigterm,
)
from cosmoflow.errors import ConfigError, StorageError
from cosmoflow.units import format_bytes, format_count

LEAST_STORE = 80 << 20
"""Bytes below which Ray starts no object store."""

CONNECT_SECONDS = 5.0
"""Seconds within which a cluster must accept a connection."""

_ON_HEAD = "run the command on a node of the cluster, with --address auto"


def start_instance(memory: int | None, explain: Callable[[str], None] = lambda text: None) -> None:
    """Start Ray on this machine, for this process alone.

    Parameters
    ----------
    memory : int, optional
        Size of its object store, bytes; by default Ray decides.
    explain : callable
        Called with a sentence about the token of Ray.

    Raises
    ------
    ConfigError
        There is too little memory, or no folder for the sockets.
    StorageError
        Ray does not start.
    """
    folders = choose_folders()
    explain(ensure_token())
    try:
        with keeping_sigterm():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=None if memory is None else max(memory, LEAST_STORE),
                job_config=describe_job(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                **folders,
            )
    except ValueError as error:
        raise ConfigError(
            f"Ray cannot have an object store of this size: {_first_line(error)}",
            where="--memory",
            value=None if memory is None else format_bytes(memory),
            remedy="less; in a container, more shared memory (docker run --shm-size)",
        ) from error
    except Exception as error:
        # Ray also raises plain exceptions, when its processes do not come up in time.
        folder = folders.get("_temp_dir", get_default_ray_temp_dir())
        raise StorageError(
            f"Ray does not start on this machine: {_first_line(error)}",
            remedy=f"see its logs in {folder}/session_latest/logs, or do without: --engine serial",
        ) from error


def join(address: str, *, ship_code: bool = False) -> None:
    """Become a driver of a running cluster.

    Parameters
    ----------
    address : str
        ``host:port`` of its head, or ``auto`` for the cluster that this machine belongs to.
    ship_code : bool
        Send this process's cosmoflow to the workers, in place of theirs.

    Raises
    ------
    ConfigError
        The address is of another kind, the token is missing or wrong, or the cluster has another
        Python or Ray.
    StorageError
        The cluster cannot be reached.
    """
    gcs = _resolve(address)
    _require_token()
    _knock(gcs, address)
    runtime_env: dict[str, Any] = {}
    if ship_code:
        runtime_env["py_modules"] = [str(Path(cosmoflow.__file__).parent)]
    try:
        with keeping_sigterm():
            ray.init(
                address=gcs,
                runtime_env=runtime_env or None,
                job_config=describe_job(),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        if "Version mismatch" in str(error):
            raise ConfigError(
                "the cluster has another Python or Ray than this process",
                where=address,
                value=" ".join(str(error).split()),
                remedy="install the same on every node",
            ) from error
        raise _unreachable(address, error) from error


def describe() -> str:
    """Return a line about the cluster that this process has joined: size, dashboard, logs."""
    context = ray.get_runtime_context()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    have = ray.cluster_resources()
    line = (
        f"Ray cluster at {context.gcs_address}: {format_count(len(nodes), 'node')}, "
        f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    )
    worker = ray._private.worker.global_worker
    if dashboard := worker.node.address_info.get("webui_url"):
        line += f"; dashboard at http://{dashboard}"
    return f"{line}; a log of each worker in {worker.node.get_session_dir_path()}/logs of its node"


def _resolve(address: str) -> str:
    """Return host and port of the cluster's head."""
    if "://" in address:
        raise ConfigError(
            "this address is not of a kind that a driver can join",
            where="--address",
            value=address,
            limit="HOST:PORT of the cluster's head, or auto",
            remedy=f"{_ON_HEAD}: `ray exec CLUSTER.yaml 'cosmoflow ...'`, or "
            "`ray job submit -- cosmoflow ...`",
        )
    try:
        gcs = str(canonicalize_bootstrap_address(address))
    except (ConnectionError, ValueError) as error:
        raise _unreachable(address, error) from error
    host, _, port = gcs.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            "this is not the address of a Ray cluster",
            where="--address",
            value=address,
            limit="HOST:PORT of its head, or auto",
        )
    return gcs


def _require_token() -> None:
    """Make sure that there is a token, if the cluster requires one."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        found = path.read_text().strip()
    except OSError:
        found = ""
    if not found:
        raise ConfigError(
            "there is no token for the Ray cluster",
            where=str(path),
            limit="the token that its nodes were started with",
            remedy="copy it from the head's ~/.ray/auth_token, mode 600, or name its file in "
            "RAY_AUTH_TOKEN_PATH; RAY_AUTH_MODE=disabled if the cluster really has none",
        )


def _knock(gcs: str, address: str) -> None:
    """Find out at once whether the head can be reached and accepts the token."""
    host, _, port = gcs.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error) from error
    try:
        GcsClient(address=gcs).internal_kv_get(b"cosmoflow", None, timeout=CONNECT_SECONDS)
    except AuthenticationError as error:
        raise ConfigError(
            "the Ray cluster does not take our token",
            where=address,
            value=f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'unset')}",
            limit="the token that its nodes were started with",
            remedy="copy it from the head's ~/.ray/auth_token, mode 600, or name its file in "
            "RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token",
        ) from error
    except RayError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> StorageError:
    return StorageError(
        f"cannot reach the Ray cluster: {_first_line(error)}",
        where=address,
        remedy="check the address and that the cluster is up: `ray status`",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
