"""Requests that each command sends to a bucket, by method and kind of key.

Usage: python -m benchmarks.bucket_requests [COMMAND...] [--grid 64] [--shard 32] [--chunk 16]
           [--particles 64] [--latency 0.02] [--set KEY=VALUE...] [--keys]

The commands run one after the other, each in a process of its own, on stores in a bucket of moto
behind a proxy that counts requests. ``--latency`` delays every request by some seconds. ``--keys``
also lists every key with its number of requests. Run it in the root of the repository: the server
and the proxy are those of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote, urlsplit

from tests.faulty_proxy import faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of

Request = tuple[str, str, str | None]

PLACE = "s3://boxes/run"

KINDS = (
    ("claims", r"/\.claims/"),
    ("metadata", r"/zarr\.json$|/\.z\w+$"),
    ("ledger", r"/ledger/"),
    ("shards", r"/(position|velocity|momentum|density|mass|\w+_velocity|divergence|power)/c/"),
    ("coordinates", r"/c(/\d+)*$"),
)


def kind_of(request: Request) -> tuple[str, str]:
    """Return the method of a request, LIST for a listing, and the kind of its key."""
    method, path, _ = request
    found = urlsplit(path)
    if method == "GET" and "list-type" in parse_qs(found.query):
        return "LIST", "all"
    key = unquote(found.path)
    return method, next((kind for kind, name in KINDS if re.search(name, key)), "other")


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the arguments of the commands by name."""
    particles, fields, prediction = (
        f"{PLACE}/{name}.zarr" for name in ("particles", "fields", "prediction")
    )
    report = tempfile.mkdtemp(prefix="requests-")
    return {
        "simulate": ["simulate", particles, "--method=2lpt"],
        "paint": ["paint", particles, fields],
        "spectra": ["spectra", fields, "--field=density", "--out", f"{PLACE}/power.zarr"],
        "infer": ["infer", fields, prediction, "--model=wiener"],
        "infer tiny": [
            "infer", fields, f"{PLACE}/tiny.zarr", "--model", options.model
        ] if options.model else [],
        "derive": ["derive", prediction, f"{PLACE}/flow.zarr", "--field=divergence"],
        "evaluate": ["evaluate", fields, prediction, "--out", f"{report}/report"],
    }  # fmt: skip


def show(name: str, log: Iterable[Request], seconds: float, keys: bool) -> None:
    """Print the requests of one command."""
    log = list(log)
    found = Counter(map(kind_of, log))
    gets = sum(count for (method, _), count in found.items() if method == "GET")
    print(f"{name}: {seconds:.1f} s, {len(log)} requests, {gets} GET")
    for (method, kind), count in sorted(found.items()):
        print(f"    {method:6} {kind:12} {count:6}")
    if keys:
        for (method, path), count in sorted(Counter((m, p) for m, p, _ in log).items()):
            print(f"        {count:4} {method:6} {unquote(path)}")


def main() -> None:
    """Run the commands and print their requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*")
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--shard", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--model", help="folder of a model for `infer tiny`")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--keys", action="store_true")
    options = parser.parse_args()
    settings = [
        f"simulate.particles={options.particles}", f"simulate.box_size={2.0 * options.grid}",
        f"paint.grid={options.grid}", f"paint.shard={options.shard}",
        f"paint.chunk={options.chunk}", "evaluate.subbox=64.0", "evaluate.smoothing=[4.0]",
        *options.set,
    ]  # fmt: skip
    common = [f"--set={one}" for one in settings] + ["--engine=serial", "--overwrite"]
    with s3_server() as server, faulty_proxy(server) as proxy:
        make_bucket(server, "boxes")
        environment = {**os.environ, **settings_of(proxy.url)}
        todo = {name: own for name, own in commands(options).items() if own}
        last = max((list(todo).index(name) for name in options.commands), default=len(todo))
        for name, arguments in list(todo.items())[: last + 1]:
            measured = not options.commands or name in options.commands
            proxy.latency = options.latency if measured else 0.0
            command = [sys.executable, "-m", "cosmoflow", *arguments, *common]
            if measured:
                planned = subprocess.run(
                    [*command, "--dry-run", "--json"], env=environment, text=True,
                    stdout=subprocess.PIPE, check=True,
                )  # fmt: skip
            proxy.log.clear()
            began = time.monotonic()
            subprocess.run([*command, "--quiet"], env=environment, check=True)
            if measured:
                show(name, proxy.log, time.monotonic() - began, options.keys)
                plans = [json.loads(line) for line in planned.stdout.splitlines()]
                said = [one["requests"] for one in plans if "requests" in one]
                print(f"    planned: {said[-1] if said else 'not said'}", flush=True)


if __name__ == "__main__":
    main()
