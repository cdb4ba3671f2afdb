"""Measure what inference costs and how much memory it takes as the box grows.

Usage: python benchmarks/infer_scale.py FIELDS FOLDER [--memory SIZE] [--engine ENGINE] [--region R]
           [TIMES ...]

FIELDS is a fields store of 128^3 cells; it is repeated TIMES (1 2 4) along each axis in FOLDER. For
each box `cosmoflow infer` runs as a command of its own: the plan's seconds and memory stand beside
what was measured. Memory is the peak of what is a process's own, above that of one that only loads
the same libraries; with --engine ray that of the largest process. The result is compared with the
small box, whose periodic repetition it must be. --region takes a part of the box, --keep leaves the
stores where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from _boxes import make_flows, open_shipped, repeat_box, worst_difference

from cosmoflow.config.networks import InferConfig
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.stages.infer.request import Device
from cosmoflow.storage.fields import FieldStore

MODEL = "residual-small"
LOOK = 0.02
IMPORTS = "import cosmoflow.stages.infer.command, cosmoflow.stages.infer.plan, torch, ray"


class PeakMemory:
    """Watches the processes that descend from one, and notes the largest private memory of each."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.peaks: dict[int, int] = {}
        self._process = process
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._process.poll() is None:
            for pid in session_processes(os.getsid(self._process.pid)):
                self.peaks[pid] = max(self.peaks.get(pid, 0), private_memory(pid))
            time.sleep(LOOK)

    def largest(self) -> int:
        """Return the most that any of them took, bytes."""
        self._thread.join()
        return max(self.peaks.values(), default=0)


def session_processes(session: int) -> list[int]:
    """Return the Python processes of a session, and those of Ray's workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes()
                if os.getsid(int(entry.name)) == session or title.startswith(b"ray::_Worker"):
                    found.append(int(entry.name))
            except (OSError, ProcessLookupError):
                continue
    return found


def private_memory(pid: int) -> int:
    """Return the resident memory of a process that is its own, bytes."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) << 10
    except (OSError, ProcessLookupError):
        pass
    return 0


def measure(arguments: list[str]) -> tuple[float, int, bytes]:
    """Run a command; return its seconds, the peak memory of its largest process, its output."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(arguments, stdout=output, start_new_session=True)
        memory = PeakMemory(process)
        if process.wait():
            raise SystemExit(f"{arguments} failed")
        seconds = time.perf_counter() - begun
        output.seek(0)
        return seconds, memory.largest(), output.read()


def last_event(output: bytes) -> dict[str, Any]:
    """Return the last line of a command's JSON."""
    return dict(json.loads(output.decode().strip().splitlines()[-1]))


def main() -> None:
    """Print a line for every box."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields")
    parser.add_argument("folder", type=Path)
    parser.add_argument("times", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--memory")
    parser.add_argument("--engine", default="serial")
    parser.add_argument("--region")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    model = open_shipped(MODEL, given.fields)
    model.network.to(memory_format=torch.channels_last_3d)
    flows = make_flows(given.fields, model)
    config = InferConfig(precision=Device.here().precision)
    small = FieldStore(given.fields)
    exact = predict_box([Member(model, flows)], small, config, torch.device("cpu")).mean
    idle = measure([sys.executable, "-c", IMPORTS])
    print(f"imports alone: {idle[0]:.1f} s, {idle[1] / 1e9:.2f} GB")
    for times in given.times:
        box = str(given.folder / f"box-{times * small.grid}.zarr")
        if not Path(box).exists():
            repeat_box(given.fields, box, times)
        out = str(given.folder / "velocity.zarr")
        command = [sys.executable, "-m", "cosmoflow", "infer", box, out, "--json", "--overwrite"]
        command += ["--engine", given.engine]
        command += ["--memory", given.memory] if given.memory else []
        command += ["--region", given.region] if given.region else []
        plan = last_event(measure([*command, "--dry-run"])[2])
        seconds, memory, _ = measure(command)
        details = plan["details"]
        worst = worst_difference(out, "velocity", exact)
        cells = FieldStore(out).region
        count = times**3 * small.grid**3 if cells is None else int(torch.tensor(cells.shape).prod())
        print(
            f"{times * small.grid}^3: {seconds:.1f} s, {seconds - idle[0]:.1f} s less imports "
            f"(plan {details['seconds_here']} s), "
            f"{count / (seconds - idle[0]) / 1e6:.2f} Mcell/s; "
            f"memory {(memory - idle[1]) / 1e9:.2f} GB above imports "
            f"(plan {plan['worker_memory'] / 1e9:.2f} GB); "
            f"block {details['block']}, tile {details['tile']}; worst difference {worst:.2g} km/s",
            flush=True,
        )
        if not given.keep:
            shutil.rmtree(out)
            shutil.rmtree(box)


if __name__ == "__main__":
    main()
