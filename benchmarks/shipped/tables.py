"""Put what conditions_table.py measured in the held-out boxes into the tables of docs/accuracy.md.

    python benchmarks/conditions_table.py FOLDER/held_out/* --best --model residual-small \
        --model residual-medium --model wiener > measured.md
    python benchmarks/shipped/tables.py measured.md docs/accuracy.md

The columns of models that were not measured stay as they are. Folders named ``first-small`` and
``first-medium`` are the networks that shipped first. Prints how the errors are covered.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

BOXES = (
    "h00-128-64-z0", "h00-128-64-z0.5", "h00-128-64-z1", "h00-128-64-z2", "h01-128-64-z0",
    "h02-128-64-z0", "h03-128-64-z0", "h04-128-64-z2", "h00-128-128-z0", "h05-192-128-z0",
    "h05-192-64-z0", "h06-256-64-z0", "h06-256-128-z0",
)  # fmt: skip
"""The boxes in the order of the rows."""

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


def fill_residuals(table: list[str], measured: Rows) -> None:
    """Put residuals into the first table; the better one of the networks is in bold."""
    head = split(table[0])
    for place, box in enumerate(BOXES, 2):
        cells = split(table[place])
        for name, title in RESIDUALS.items():
            if (box, name) in measured:
                cells[head.index(title)] = measured[box, name][2]
        shipped = [head.index(RESIDUALS[name]) for name in ("residual-medium", "residual-small")]
        least = min(float(cells[column].strip("*")) for column in shipped)
        for column in shipped:
            plain = cells[column].strip("*")
            cells[column] = f"**{plain}**" if float(plain) == least else plain
        table[place] = join(cells)


def fill_spectra(table: list[str], measured: Rows, name: str) -> None:
    """Put T, r and the coverage of a model into the second table; print how far it is off."""
    column = split(table[0]).index(SPECTRA[name])
    shares: list[tuple[list[float], list[float]]] = []
    for place, box in enumerate(BOXES, 2):
        *_, one, two, three, inside = measured[box, name]
        pairs = [cell.split() for cell in (one, two, three)]
        found = re.findall(r"([\d.]+) \(([\d.]+)\)", inside)
        shares.append(([float(whole) for whole, _ in found], [float(worst) for _, worst in found]))
        cells = split(table[place])
        cells[column : column + 3] = [
            " ".join(power for power, _ in pairs),
            " ".join(correlation for _, correlation in pairs),
            ", ".join(f"{whole} ({worst})" for whole, worst in found),
        ]
        table[place] = join(cells)
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
    lines = given.page.read_text().splitlines()
    size = 2 + len(BOXES)
    for title, fill in (("| box | true rms |", "residuals"), ("| box | `residual-small`: T", "")):
        start = next(place for place, line in enumerate(lines) if line.startswith(title))
        table = lines[start : start + size]
        if fill:
            fill_residuals(table, measured)
        for name in () if fill else SPECTRA:
            if (BOXES[0], name) in measured:
                fill_spectra(table, measured, name)
        lines[start : start + size] = table
    given.page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
