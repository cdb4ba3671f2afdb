"""Compare training that starts from a model with training from nothing, on the same boxes.

Usage: python benchmarks/fine_tuning.py FOLDER FIELDS... [--model NAME] [--steps 300 --scratch 1500]

The last of the fields validates both. Prints the residual in it against the crops seen, and after
how many crops training from nothing is as good as the model that it could have started from, as it
is and after each validation.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from pathlib import Path

from cosmoflow.config import load_settings
from cosmoflow.engine import Session
from cosmoflow.events import ignore
from cosmoflow.stages.run import Run
from cosmoflow.stages.train import train

BATCH = 4


def fit(fields: list[str], out: Path, **options: object) -> list[tuple[float, float]]:
    """Train; return the crops seen and the residual of each validation."""
    shutil.rmtree(out, ignore_errors=True)
    settings = load_settings(
        options={
            "engine": {"choice": "serial"},
            "train": {"batch": BATCH, "validate_every": 25, "measure_gain": 0, **options},
        }
    )
    with Session(settings.engine) as session:
        train(fields, str(out), Run(settings, session, "error", ignore))
    with (out / "history.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return [(BATCH * float(row["step"]), float(row["validation_rms"])) for row in rows]


def main() -> None:
    """Train both ways and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("fields", nargs="+")
    parser.add_argument("--model", default="residual-small")
    parser.add_argument("--architecture", default="residual-small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scratch", type=int, default=1500)
    given = parser.parse_args()
    # A rate of nearly zero leaves the model as it is.
    still = {"learning_rate": 1e-12, "muon_rate": 1e-12}
    kept = {"start": given.model, "error_steps": 0}
    (_, before), *_ = fit(given.fields, given.folder / "still", steps=1, **kept, **still)
    print(f"as it is: {before:.2f} km/s")
    found = {}
    for name, options in (
        ("tuned", {"steps": given.steps, **kept}),
        ("from nothing", {"steps": given.scratch, "model": given.architecture}),
    ):
        begun = time.perf_counter()
        found[name] = fit(given.fields, given.folder / name.replace(" ", "-"), **options)
        said = ", ".join(f"{crops:.0f}: {rms:.2f}" for crops, rms in found[name])
        print(f"{name}, {(time.perf_counter() - begun) / 60.0:.1f} min; {said}", flush=True)
    for crops, rms in [(0.0, before), *found["tuned"]]:
        reached = [later for later, other in found["from nothing"] if other <= rms]
        text = f"{reached[0]:.0f} crops" if reached else f"more than {BATCH * given.scratch} crops"
        print(f"{rms:.2f} km/s: tuned {crops:.0f} crops, from nothing {text}")


if __name__ == "__main__":
    main()
