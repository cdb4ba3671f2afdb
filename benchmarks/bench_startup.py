"""Start-up of commands: seconds until `infer` begins its first block, and until each command ends.

    python benchmarks/bench_startup.py [--runs 5] [--against CHECKOUT]

CPU seconds are those of the process, since wall time says little on a busy machine. Start-up is
what `infer` spends before its event `started`: libraries, settings, models, plan, claims. With
--against, another checkout of cosmoflow takes turns with this one, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
FIELDS = "fields.zarr"


def make_fields(folder: Path) -> None:
    """Store a density of 64^3 cells of 2 Mpc/h, lognormal and smooth."""
    import cosmoflow

    rng = np.random.default_rng(1)
    modes = np.fft.rfftn(rng.normal(size=(64, 64, 64)))
    k = np.fft.fftfreq(64)
    squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(64) ** 2
    field = np.fft.irfftn(modes * np.exp(-50.0 * squared), (64, 64, 64))
    density = np.exp(field / field.std())
    cosmoflow.store_density(
        (density / density.mean()).astype(np.float32),
        str(folder / FIELDS),
        box_size=128.0,
        redshift=0.0,
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / TICKS


def run(arguments: list[str], checkout: Path, folder: Path) -> dict[str, float]:
    """Run Python once; return wall and CPU seconds to the first block, if any, and to the end."""
    found: dict[str, float] = {}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"event": "started"') and json.loads(line)["stage"] == "infer":
            found["first block, CPU s"] = cpu_seconds(process.pid)
            found["first block, s"] = time.perf_counter() - begun
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed in {checkout}")
    found["end, CPU s"] = used.ru_utime + used.ru_stime
    found["end, s"] = time.perf_counter() - begun
    return found


def commands() -> dict[str, list[str]]:
    """Return the commands by name: floors first."""
    program = ["-m", "cosmoflow"]
    out = ["out.zarr", "--overwrite", "--json"]
    return {
        "python": ["-c", "pass"],
        "import torch": ["-c", "import torch"],
        "cosmoflow --version": [*program, "--version"],
        "cosmoflow info": [*program, "info", FIELDS],
        "infer --model wiener": [*program, "infer", FIELDS, *out, "--model", "wiener"],
        "infer": [*program, "infer", FIELDS, *out],
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of cosmoflow")
    options = parser.parse_args()
    checkouts = {"here": ROOT} | ({"there": options.against} if options.against else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_fields(folder)
        print("| command | figure | here |" + " there | ratio |" * bool(options.against))
        print("| --- | --- | --- |" + " --- | --- |" * bool(options.against))
        for command, arguments in commands().items():
            runs: dict[str, list[dict[str, float]]] = {one: [] for one in checkouts}
            # The first round fills the file cache, and keeps the flow in the store.
            for number in range(options.runs + 1):
                for one, checkout in checkouts.items():
                    found = run(arguments, checkout.resolve(), folder)
                    if number:
                        runs[one].append(found)
            for figure in runs["here"][0]:
                values = [median(found[figure] for found in runs[one]) for one in checkouts]
                ratio = f" {values[0] / values[1]:.2f} |" if options.against else ""
                cells = "".join(f" {value:.2f} |" for value in values)
                print(f"| {command} | {figure} |{cells}{ratio}", flush=True)


if __name__ == "__main__":
    main()
