"""Runs that want the same place: dead, silent, asleep or racing one another."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

from cosmoflow.errors import BusyError
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.files import create_bytes
from cosmoflow.storage.holders import Holder, start_of_process
from cosmoflow.storage.urls import CLAIMS
from tests.forks import fork

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


def race(tmp_path, url, count, hold=2.0):
    """Start processes, let them go for one place at the same time; return what each says."""
    go = tmp_path / "go"
    places = [tmp_path / f"racer-{index}" for index in range(count)]
    racers = [fork(_claim_when_told, url, place, go, hold) for place in places]
    while not all(place.exists() for place in places):
        assert not any(racer.exitcode for racer in racers)
        time.sleep(0.01)
    go.touch()
    for racer in racers:
        racer.join(240)
        assert racer.exitcode == 0
    said = [place.read_text() for place in places]
    for path in (go, *places):
        path.unlink()
    return sorted(said)


def _claim_when_told(url, place, go, hold):
    """Say that this process is ready, wait, and say how it went."""
    Claim.PERIOD, Claim.LEASE = 0.1, 2.0
    place.touch()
    while not go.exists():
        time.sleep(0.001)
    try:
        with claim(url) as held:
            place.write_text("won")
            time.sleep(hold)
            held.check()
    except BusyError:
        place.write_text("refused")
