"""Compare inference from and to a bucket with slow requests to that on the local disk.

Usage: python -m benchmarks.bucket_rate FIELDS [--latency 0.02] [--model residual-small]
           [--shard 64] [--region BOUNDS]

FIELDS is a fields store whose Wiener velocity is made; it is copied into a bucket of moto behind a
proxy that delays every request. `cosmoflow infer` runs as a command of its own from store to store,
first on the disk, then in the bucket, after a run of each that warms the caches of files. Server
and proxy take some of the same cores: their CPU time is printed, and the rate that the command
would have beside them if it never waited for a request. Run it in the root of the repository: the
server and the proxy are those of the tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import obstore
import psutil

from cosmoflow.stages.inputs.density import DENSITY_CHECKSUMS, checksum_densities
from cosmoflow.storage.buckets import connect
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import open_group_for_writing
from tests.faulty_proxy import faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of, using

PLACE = "s3://boxes/fields.zarr"


def upload(folder: Path) -> None:
    """Copy a store into the bucket."""
    bucket = connect(PLACE)
    for path in folder.rglob("*"):
        if path.is_file():
            obstore.put(bucket, str(path.relative_to(folder)), path.read_bytes())


@dataclass(frozen=True, order=True)
class Taken:
    """What a run took, s: time, CPU time of the command, CPU time of the server and the proxy."""

    seconds: float
    command: float
    servers: float


def run(fields: str, out: str, options: list[str], environment: dict[str, str]) -> Taken:
    """Run the command; return what it took."""
    command = [sys.executable, "-m", "cosmoflow", "infer", fields, out, "--overwrite"]
    begun, ours, theirs = time.perf_counter(), _cpu_seconds(RUSAGE_CHILDREN), _servers()
    subprocess.run(
        [*command, "--engine", "serial", "--json", *options],
        check=True, stdout=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    return Taken(seconds, _cpu_seconds(RUSAGE_CHILDREN) - ours, _servers() - theirs)


def _cpu_seconds(who: int) -> float:
    used = getrusage(who)
    return used.ru_utime + used.ru_stime


def _servers() -> float:
    """Return the CPU seconds of the server, which runs, and of the proxy, which is in here."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(one.user + one.system for one in times) + _cpu_seconds(RUSAGE_SELF)


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields")
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--model", default="residual-small")
    parser.add_argument("--shard", default="64")
    parser.add_argument("--region")
    given = parser.parse_args()
    options = ["--model", given.model, "--set", f"infer.shard={given.shard}"]
    options += ["--region", given.region] if given.region else []
    cells = FieldStore(given.fields).grid ** 3
    folder = tempfile.mkdtemp()
    with s3_server() as server, faulty_proxy(server, latency=given.latency) as proxy:
        settings = settings_of(proxy.url)
        with using(settings_of(server)):
            make_bucket(server, "boxes")
            upload(Path(given.fields))
            # As if it had been painted there: objects in a bucket have other checksums than files.
            open_group_for_writing(PLACE).attrs[DENSITY_CHECKSUMS] = checksum_densities(PLACE)
        environment = {**os.environ, **settings}
        local: list[Taken] = []
        remote: list[Taken] = []
        for _ in range(2):
            local.append(run(given.fields, f"{folder}/out.zarr", options, dict(os.environ)))
            remote.append(run(PLACE, "s3://boxes/out.zarr", options, environment))
        count = len(proxy.log)
    shutil.rmtree(folder)
    for name, one in (("disk", min(local)), ("bucket", min(remote))):
        print(
            f"{name:7s} {one.seconds:7.2f} s {cells / one.seconds / 1e6:7.3f} Mcell/s; "
            f"CPU: command {one.command:.1f} s, server and proxy {one.servers:.1f} s"
        )
    disk, bucket = min(local), min(remote)
    print(f"{disk.seconds / bucket.seconds:.2f} of the local rate; {count} requests in two runs")
    # As busy as on the disk, with the cores that the server and the proxy leave.
    cores = len(os.sched_getaffinity(0))
    free = disk.seconds * bucket.command / disk.command + bucket.servers / cores
    print(f"{disk.seconds / free:.2f} if it never waited for a request, beside these servers")


if __name__ == "__main__":
    main()
