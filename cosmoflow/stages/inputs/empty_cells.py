"""Warnings about cells without mass, for results that use their velocities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from cosmoflow.config.settings import PaintConfig
from cosmoflow.errors import CosmoflowError
from cosmoflow.events import Listener, caution
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.sampling import BACKGROUND, MODEL, NEAREST, UNKNOWN, Sampling

MOST_EMPTY: Final = 1e-3
"""Share of empty cells that triggers a warning: the error of the velocity is 3 % of its rms."""
FEW_PARTICLES: Final = 4.0
"""Particles per cell below which cells may stay empty at low redshift (0.2 % at 4, measured)."""
ENOUGH_PARTICLES: Final = 8
"""Particles per cell that leave almost no cell of 2 Mpc/h empty at z = 0; used to train models."""
ENOUGH_TO_FILL: Final = 0.5
"""Particles per cell from which on the nearest particle is a good estimate in empty cells: the
error of the velocity is 10 % of its rms at 1, and 27 % at 1/8 (docs/accuracy.md)."""
MOST_COUNTED: Final = 512
"""Cells per axis up to which the empty cells of a store that does not state them are counted."""


def caution_of_plan(count: int, config: PaintConfig) -> str | None:
    """Return a warning to issue before the ``count`` particles of a box are painted, or None."""
    each = count / config.grid**3
    if each >= FEW_PARTICLES or config.fill != BACKGROUND or "velocity" not in config.fields:
        return None
    return (
        f"{_format_particles(each)}: cells may stay empty, and their velocity is then the mean "
        f"flow of the box; {_remedies(each, config.grid)}"
    )


def caution_of(sampling: Sampling | None, grid: int) -> str | None:
    """Return a warning to issue where velocities of a store are used, or None."""
    if sampling is None or sampling.empty_share <= MOST_EMPTY:
        return None
    each = sampling.particles_per_cell
    said = "" if each is None else f" ({_format_particles(each)})"
    start = f"{format_share(sampling.empty_share)} of the cells hold no mass{said}"
    if sampling.fill == UNKNOWN:
        return (
            f"{start}, and the store does not say how their velocity was made: "
            "where it is a mean flow or zero, velocities and their spectra are wrong; paint it "
            "again from the particles, or say how in the attribute sampling (fill: nearest)"
        )
    if sampling.unfilled_share > MOST_EMPTY:
        return (
            f"{start}; {format_share(sampling.unfilled_share)} of the cells have no particle near "
            f"enough and keep the mean flow of the box; {_remedies(each, grid, filled=True)}"
        )
    if sampling.fill == NEAREST and each is not None and each < ENOUGH_TO_FILL:
        return (
            f"{start}, and their velocity is that of the nearest particle: scales below the mean "
            f"separation of the particles, {1.0 / math.cbrt(each):.1f} cells, are not resolved; "
            f"{_remedies(each, grid, filled=True)}"
        )
    if sampling.fill != BACKGROUND:
        return None
    return (
        f"{start}, and their velocity is the mean flow of the box: the error of the velocity is "
        f"about {math.sqrt(sampling.empty_share):.0%} of its rms, and its power on large scales is "
        f"too low; {_remedies(each, grid)}"
    )


def describe_empty(sampling: Sampling, grid: int) -> str:
    """Return a sentence for the report about the empty cells of a truth."""
    text = caution_of(sampling, grid)
    if text is not None:
        return f"{text[0].upper()}{text[1:]}."
    if sampling.empty_share <= MOST_EMPTY:
        return f"{format_share(sampling.empty_share)} of the cells hold no mass."
    made = {NEAREST: "that of the nearest particle", MODEL: "a model's"}
    return (
        f"{format_share(sampling.empty_share)} of the cells hold no mass; their velocity is "
        f"{made.get(sampling.fill, sampling.fill)}."
    )


def examine(stores: Iterable[FieldStore], listener: Listener) -> list[str]:
    """Warn about empty cells in stores whose velocities are used; equal warnings are merged.

    Returns
    -------
    list of str
        Notes for the provenance: the warnings, and stores whose empty cells are not known.
    """
    cautions: dict[str, list[str]] = {}
    notes = []
    for store in stores:
        sampling = sampling_of(store)
        if text := caution_of(sampling, store.grid):
            cautions.setdefault(text, []).append(store.url)
        elif sampling is None and store.metadata.provenance.get("stage") != "infer":
            notes.append(f"{store.url}: the number of cells without mass is not known")
    texts = [
        f"{urls[0]}{f' and {len(urls) - 1} more' if len(urls) > 1 else ''}: {text}"
        for text, urls in cautions.items()
    ]
    for text in texts:
        caution(listener, text)
    return texts + notes


def sampling_of(store: FieldStore) -> Sampling | None:
    """Return the sampling that a store states or that can be counted quickly, else None."""
    said = store.metadata.sampling
    made_by_model = store.metadata.provenance.get("stage") == "infer"
    if said is not None or made_by_model or "density" not in store.variables:
        return said
    if store.region is not None or store.grid > MOST_COUNTED:
        return None
    empty = 0
    # The stage that needs the density refuses it if it cannot be read.
    with suppress(CosmoflowError):
        for block in grid_blocks(store.grid, min(store.shard, store.grid)):
            empty += int((store.read_block("density", block) == 0.0).sum())
        return sampling_with(store, empty / store.grid**3)
    return None


def sampling_with(store: FieldStore, empty_share: float) -> Sampling:
    """Return the sampling of a store whose empty cells have been counted."""
    said = store.metadata.sampling
    if said is not None:
        return replace(said, empty_share=empty_share)
    painted = store.metadata.provenance.get("stage") == "paint"
    return Sampling(None, empty_share, BACKGROUND if painted else UNKNOWN)


def format_share(share: float) -> str:
    """Return a share in per cent, to two digits."""
    return f"{100.0 * share:.2g} %"


def _format_particles(each: float) -> str:
    number = f"{each:.2g}"
    return f"{number} particle{'' if number == '1' else 's'} a cell"


def _remedies(each: float | None, grid: int, *, filled: bool = False) -> str:
    coarser = 0 if each is None else math.floor(grid * math.cbrt(each / ENOUGH_PARTICLES) + 1e-9)
    size = f"--grid {coarser} ({ENOUGH_PARTICLES} particles a cell)"
    start = f"paint with {size if 2 <= coarser < grid else 'a coarser --grid'}"
    if filled:
        return f"{start} or with more particles"
    few = each is not None and each < ENOUGH_TO_FILL
    scales = ", for scales above the mean separation of the particles," if few else ""
    return f"{start}, with more particles, or{scales} with --set paint.fill=nearest"
