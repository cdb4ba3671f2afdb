"""Check that a density is 1 + delta, for stores, arrays and imported cubes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.events import Message, caution
from cosmoflow.numerics.blocks import Block, axis_blocks
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import attributes_of
from cosmoflow.units import INTERLACED, format_bytes

LEAST_MASS: Final = 1e6
"""Mean of a cube above which its values are masses rather than numbers of particles."""

MEAN_TOLERANCE: Final = 1e-3
"""Largest difference of the mean of 1 + delta from 1."""

DENSITY_CHECKSUMS: Final = "density_checksums"
"""Attribute of a store made by cosmoflow: the checksum of each density, which is 1 + delta by
construction. If the density changes, so does its checksum."""

_READERS: Final = 4
_ANNOUNCED: Final = 1 << 30
"""Bytes from which on reading takes long enough to be announced."""

DENSITIES: Final = ("density", f"{INTERLACED}density")


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary of values.

    Parameters
    ----------
    count, bad : int
        Number of values, and number of those that are not finite.
    total : float
        Sum of the finite values.
    lowest, highest : float
        Extremes of the finite values.
    whole : bool
        Whether all finite values are integers.
    """

    count: int
    bad: int
    total: float
    lowest: float
    highest: float
    whole: bool

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Summarise an array plane by plane: masks of the whole would double its memory."""
        planes = values if values.ndim > 2 else values[None]
        return reduce(cls.__add__, map(cls._of_plane, planes))

    @classmethod
    def _of_plane(cls, values: NDArray[Any]) -> Self:
        finite = np.isfinite(values)
        bad = int(values.size - finite.sum())
        if bad:
            values = values[finite]
        if not values.size:
            return cls(bad, bad, 0.0, np.inf, -np.inf, True)
        return cls(
            values.size + bad,
            bad,
            float(values.sum(dtype=np.float64)),
            float(values.min()),
            float(values.max()),
            bool((values == np.rint(values)).all()),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.count + other.count,
            self.bad + other.bad,
            self.total + other.total,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.whole and other.whole,
        )

    @property
    def mean(self) -> float:
        """Mean of the finite values."""
        return self.total / max(1, self.count - self.bad)

    @property
    def is_density(self) -> bool:
        """Whether the values can be 1 + delta."""
        return self.lowest >= 0.0 and abs(self.mean - 1.0) <= MEAN_TOLERANCE

    @property
    def counts_particles(self) -> bool:
        """Whether the values can be the numbers of particles in the cells."""
        return self.whole and self.lowest >= 0.0 and 0.0 < self.mean <= LEAST_MASS

    @property
    def is_delta(self) -> bool:
        """Whether the values can be delta."""
        return -1.0 - 1e-5 <= self.lowest < 0.0 and abs(self.mean) <= MEAN_TOLERANCE


def require_density(found: Summary, where: str) -> None:
    """Refuse values that are not 1 + delta; the error names what they look like.

    Raises
    ------
    DataError
    """
    if found.bad:
        raise DataError(
            "the density holds values that are not finite",
            where=where,
            value=f"{found.bad} of {found.count} cells",
            remedy="set cells without mass to 0, and find out why others are not finite: a masked "
            "or cut-out region cannot be filled in",
        )
    if found.is_density:
        return
    look, remedy = _look(found)
    raise DataError(
        f"the density is not 1 + delta: {look}",
        where=where,
        value=f"a mean of {found.mean:g} and a lowest value of {found.lowest:g}",
        limit="a mean of 1 and no value below 0",
        remedy=remedy,
    )


def _look(found: Summary) -> tuple[str, str]:
    """Return what values that are not 1 + delta look like, and a remedy."""
    mean, lowest = found.mean, found.lowest
    if found.is_delta:
        return "it looks like delta", "add 1"
    if lowest < 0.0 and abs(mean) <= MEAN_TOLERANCE:
        return "it looks like a contrast that falls below -1", (
            "a matter density is never below 0: give the nonlinear density, not a linear one"
        )
    if lowest < 0.0 and abs(mean - 1.0) <= MEAN_TOLERANCE:
        return "some values are below 0", (
            "a matter density is never below 0: set them to 0 and divide by the mean"
        )
    if lowest < 0.0:
        return "it may be the logarithm of one", (
            "undo the logarithm and divide by the mean, or give another field"
        )
    if mean == 0.0:
        return "it has no mass", "give a density that is not 0 everywhere"
    kind = (
        "masses" if mean > LEAST_MASS else "counts" if found.whole else "a density in another unit"
    )
    return f"it looks like {kind}", f"divide by its mean, {mean:.9g}"


def check_array(density: NDArray[Any], where: str) -> None:
    """Refuse an array that is not 1 + delta on a cubic grid.

    Raises
    ------
    DataError
    """
    if density.ndim != 3 or len(set(density.shape)) != 1 or density.size == 0:
        raise DataError(
            "a density has shape (n, n, n)", where=where, value=density.shape, limit="(n, n, n)"
        )
    if density.dtype.kind not in "fiu":
        raise DataError(
            "the density holds no real numbers",
            where=where,
            value=str(density.dtype),
            limit="floating point or integers",
        )
    require_density(Summary.of(density), where)


def check_contents(store: FieldStore, names: Iterable[str], run: Run) -> None:
    """Refuse a store whose density is not 1 + delta; warn about missing chunks.

    Parameters
    ----------
    store : FieldStore
        An input of a stage.
    names : iterable of str
        Variables that the stage reads; only these are checked.
    run : Run
        The listener receives warnings, and a message before a long read.

    Raises
    ------
    DataError

    Notes
    -----
    A density from elsewhere is read completely, once per run. A density that cosmoflow painted or
    imported is read only if its checksum has changed since.
    """
    if store.region is not None:
        return
    for name in dict.fromkeys(names):
        if name not in store.variables:
            continue
        missing, chunks = (0, 1) if store.own else store.missing_chunks(name)
        where = f"{store.url}, {name}"
        if name in DENSITIES:
            if _is_as_noted(store, name):
                continue
            found = summarise(store, name, run)
            _refuse_missing(found, missing, chunks, where)
            require_density(found, where)
        elif missing:
            caution(
                run.listener,
                f"{where}: {missing} of {chunks} chunks are not stored and read as 0",
            )


def _refuse_missing(found: Summary, missing: int, chunks: int, where: str) -> None:
    """Refuse a density if missing chunks explain its low mean."""
    share = missing / chunks
    if 0.0 < 0.5 * share < 1.0 - found.mean:
        raise DataError(
            "parts of the density are missing and read as 0",
            where=where,
            value=f"{missing} of {chunks} chunks are not stored, and the mean is {found.mean:g}",
            limit="a mean of 1",
            remedy="write the store again, or copy it again",
        )


def summarise(store: FieldStore, name: str, run: Run) -> Summary:
    """Read a whole variable block by block and summarise its values."""
    size = 4 * store.grid**3
    if size >= _ANNOUNCED:
        run.listener(
            Message(f"reading {format_bytes(size)}, to check that {store.url} holds 1 + delta")
        )

    def one(block: Block) -> Summary:
        return Summary.of(store.read_block(name, block))

    with ThreadPoolExecutor(min(_READERS, len(os.sched_getaffinity(0)))) as pool:
        return reduce(Summary.__add__, pool.map(one, _blocks(store, name)))


def _blocks(store: FieldStore, name: str) -> Iterator[Block]:
    """Yield the blocks that are stored as one unit, in C order."""
    axes = (axis_blocks(store.grid, size) for size in store.stored_shape(name))
    for x, y, z in itertools.product(*axes):
        yield Block((x[0], y[0], z[0]), (x[1], y[1], z[1]))


def checksum_densities(url: str) -> dict[str, str]:
    """Return the checksums of the densities of an output, to note once it is complete."""
    store = FieldStore(url, unfinished=True)
    return {name: store.checksum(name) for name in DENSITIES if name in store.variables}


def _is_as_noted(store: FieldStore, name: str) -> bool:
    """Return whether a density is still the one that cosmoflow painted or imported."""
    noted = attributes_of(store.group).get(DENSITY_CHECKSUMS)
    return isinstance(noted, dict) and noted.get(name) == store.checksum(name)
