"""Put what conditions_table.py measured in the held-out boxes into the tables of docs/accuracy.md.

    python benchmarks/conditions_table.py FOLDER/held_out/* --best --model residual-small \
        --model residual-medium --model wiener > measured.md
    python benchmarks/shipped/tables.py measured.md docs/accuracy.md

The columns of models that were not measured stay as they are. So do the last two, which
specialists.py measures: run that again for new networks. Folders named ``first-small``
and ``first-medium`` are the networks that shipped first. Prints how the errors are covered.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

BOXES = {
    "h00-128-64-z0": "fiducial, z = 0",
    "h00-128-64-z0.5": "z = 0.5",
    "h00-128-64-z1": "z = 1",
    "h00-128-64-z2": "z = 2",
    "h01-128-64-z0": "Ω_m 0.2, σ₈ 0.7, z = 0",
    "h02-128-64-z0": "Ω_m 0.4, σ₈ 0.95, z = 0",
    "h03-128-64-z0": "Ω_m 0.2, σ₈ 0.95, z = 0",
    "h04-128-64-z2": "Ω_m 0.4, σ₈ 0.7, z = 2",
    "h00-128-128-z0": "cells of 1 Mpc/h, 1 particle",
    "h05-192-128-z0": "1.5 Mpc/h, 3.4 particles",
    "h05-192-64-z0": "3 Mpc/h, 8 particles",
    "h06-256-64-z0": "4 Mpc/h, 8 particles",
    "h06-256-128-z0": "2 Mpc/h, 1 particle",
}
"""Boxes, and what the rows call them."""

RESIDUALS = {
    "residual-medium": "`residual-medium`",
    "residual-small": "`residual-small`",
    "wiener": "`wiener`",
    "wiener of the box": "filter fitted to the box",
    "first-medium": "first medium",
    "first-small": "first small",
}
"""Columns of the first table by model."""

SPECTRA = {name: f"`{name}`: T" for name in ("residual-small", "residual-medium")}
"""First of the three columns of a model in the second table."""

WANTED = (68.27, 95.0)
Rows = dict[tuple[str, str], list[str]]


def split(line: str) -> list[str]:
    """Return the cells of a row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def join(cells: list[str]) -> str:
    """Return a row of cells."""
    return f"| {' | '.join(cells)} |"


def rows_of(lines: list[str], title: str) -> tuple[list[str], dict[str, int]]:
    """Return the head of the table that begins so, and the lines of the rows by box."""
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    count = 2 + len(BOXES)
    places = {split(line)[0]: start + row for row, line in enumerate(lines[start : start + count])}
    return split(lines[start]), {box: places[label] for box, label in BOXES.items()}


def fill_residuals(lines: list[str], measured: Rows, names: list[str]) -> None:
    """Put residuals into the first table; the better one of the networks is in bold."""
    head, places = rows_of(lines, "| box | true rms |")
    shipped = [head.index(RESIDUALS[name]) for name in SPECTRA]
    for box, place in places.items():
        cells = split(lines[place])
        for name in names:
            cells[head.index(RESIDUALS[name])] = measured[box, name][2]
        least = min(float(cells[column].strip("*")) for column in shipped)
        for column in shipped:
            plain = cells[column].strip("*")
            cells[column] = f"**{plain}**" if float(plain) == least else plain
        lines[place] = join(cells)


def fill_spectra(lines: list[str], measured: Rows, name: str) -> None:
    """Put T, r and the coverage of a model into the second table; print how far it is off."""
    head, places = rows_of(lines, "| box | `residual-small`: T")
    column = head.index(SPECTRA[name])
    shares: list[tuple[list[float], list[float]]] = []
    for box, place in places.items():
        *_, one, two, three, inside = measured[box, name]
        pairs = [cell.split() for cell in (one, two, three)]
        found = re.findall(r"([\d.]+) \(([\d.]+)\)", inside)
        shares.append(([float(whole) for whole, _ in found], [float(worst) for _, worst in found]))
        cells = split(lines[place])
        cells[column : column + 3] = [
            " ".join(power for power, _ in pairs),
            " ".join(correlation for _, correlation in pairs),
            ", ".join(f"{whole} ({worst})" for whole, worst in found),
        ]
        lines[place] = join(cells)
    for index, wanted in enumerate(WANTED):
        whole = [one[index] for one, _ in shares]
        worst = max(abs(other[index] - wanted) for _, other in shares)
        near = sum(abs(one - wanted) <= 2.0 for one in whole)
        print(
            f"{name}, {wanted:g} %: {min(whole)} to {max(whole)}, within 2 points in {near} of "
            f"{len(whole)}; the worst quarter is off by {worst:.1f}"
        )


def main() -> None:
    """Fill both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    rows = [split(line) for line in given.measured.read_text().splitlines() if "|" in line]
    measured = {(row[0], row[1]): row for row in rows if row[0] in BOXES and len(row) > 3}
    names = [name for name in RESIDUALS if any(name == model for _, model in measured)]
    for name in names:
        if missing := [box for box in BOXES if (box, name) not in measured]:
            parser.error(f"{given.measured} has no {name} in {', '.join(missing)}")
    lines = given.page.read_text().splitlines()
    fill_residuals(lines, measured, names)
    for name in (name for name in SPECTRA if name in names):
        fill_spectra(lines, measured, name)
    given.page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
