"""Runs that want the same place: dead, silent, asleep or racing one another."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

from cosmoflow.storage.files import create_bytes
from cosmoflow.storage.holders import Holder, start_of_process
from cosmoflow.storage.urls import CLAIMS

FIRST = "first.claim"
DEAD = replace(Holder.here(), started="12")
ELSEWHERE = replace(Holder.here(), host="elsewhere", machine="elsewhere", pid=1)


class Bucket:
    """A place in an object store in memory, which knows conditional writes as S3 does."""

    def __init__(self, store, url):
        self.store, self.prefix = store, f"{url.removeprefix('memory://')}/"

    def put(self, name, content, **options):
        self.store.put(self.prefix + name, content, **options)

    def get(self, name):
        return self.store.get(self.prefix + name)

    def head(self, name):
        return self.store.head(self.prefix + name)

    def delete(self, names):
        names = [names] if isinstance(names, str) else names
        self.store.delete([self.prefix + name for name in names])

    def list(self, **options):
        for page in self.store.list(self.prefix, **options):
            yield [{**item, "path": item["path"].removeprefix(self.prefix)} for item in page]

    def list_with_delimiter(self):
        return self.store.list_with_delimiter(self.prefix)


def claims(url):
    return f"{url}/{CLAIMS}"


def leave(url, holder, name=FIRST):
    """Leave the claim of a run that has not released it."""
    assert create_bytes(claims(url), name, json.dumps(holder.to_dict()).encode())


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = replace(Holder.here(), pid=process.pid, started=start_of_process(process.pid))
    process.kill()
    return process, holder


def put_to_sleep(held):
    """Stop the pulse of a claim, as SIGSTOP and a machine's sleep do."""
    held._ended.set()
    held._pulse.join()


def wake_up(held):
    held._ended.clear()
    held._pulse = threading.Thread(target=held._live, daemon=True)
    held._pulse.start()


RACER = """
import sys, time
from pathlib import Path
from cosmoflow.errors import BusyError
from cosmoflow.storage.claims import Claim, claim
Claim.PERIOD, Claim.LEASE = 0.1, 2.0
ready, go = Path(sys.argv[2]), Path(sys.argv[3])
ready.touch()
while not go.exists():
    time.sleep(0.001)
try:
    with claim(sys.argv[1]) as held:
        print("won", flush=True)
        time.sleep(float(sys.argv[4]))
        held.check()
except BusyError:
    print("refused", flush=True)
"""


def race(tmp_path, url, count, hold=2.0):
    """Start processes, let them go for one place at the same time; return what each says."""
    go = tmp_path / "go"
    ready = [tmp_path / f"ready-{index}" for index in range(count)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, str(path), str(go), str(hold)],
            stdout=subprocess.PIPE, text=True,
        )
        for path in ready
    ]  # fmt: skip
    while not all(path.exists() for path in ready):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    go.touch()
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert not any(racer.returncode for racer in racers)
    go.unlink()
    return sorted(said)
