"""Compare a family of models with specialists: the family tuned in boxes of one condition alone.

Usage: python benchmarks/specialists.py FOLDER [--model residual-small] [--steps 300] [--only TEXT]

FOLDER is that of ``benchmarks/shipped/boxes.py``, with the tables ``held_out`` and ``specialists``.
For each held-out box, three other boxes of its condition train a specialist from the model's
weights (two for training, one that chooses the step), four crops a step. Prints the 3-D rms
residual of both in the held-out box, which neither has seen, and their ratio. A specialist that
starts from the family knows all that the family knows, so the ratio says what the other conditions
cost the family in this one, as far as the steps go.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

from _measure import rms
from conditions_table import predict
from fine_tuning import fit

from cosmoflow.stages.models import find_model, open_model
from cosmoflow.storage.fields import FieldStore

EACH = 3
"""Boxes of a condition, of which the last validates."""


def like(url: Path, folder: Path) -> list[str]:
    """Return the other boxes of the condition of a held-out one, h02-128-64-z0 for example."""
    number, rest = url.name[1:].split("-", 1)
    places = range(EACH * int(number), EACH * (int(number) + 1))
    return [str(folder / f"s{place:02d}-{rest}") for place in places]


def residual(name: str, store: FieldStore) -> float:
    """Return the 3-D rms residual of a model in a box, km/s."""
    mean, _ = predict(open_model(find_model(name), store), store, name)
    return rms(store.read("velocity") - mean)


def main() -> None:
    """Print a line for every held-out box that has others of its condition."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="residual-small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", default="", help="boxes whose names have this text")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"| box | {given.model}, km/s | specialist | ratio | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for url in sorted((given.folder / "held_out").glob("*.zarr")):
        if given.only not in url.name:
            continue
        fields = like(url, given.folder / "specialists")
        if missing := [one for one in fields if not Path(one).exists()]:
            parser.error(f"there is no {missing[0]}: run boxes.py --only specialists first")
        out = given.folder / f"specialist-{url.stem}"
        begun = time.perf_counter()
        fit(fields, out, start=given.model, steps=given.steps, error_steps=0, compare=False)
        taken = time.perf_counter() - begun
        store = FieldStore(str(url))
        family, own = (residual(name, store) for name in (given.model, str(out)))
        ratio = family / own
        print(f"| {url.stem} | {family:.1f} | {own:.1f} | {ratio:.3f} | {taken:.0f} |", flush=True)


if __name__ == "__main__":
    main()
