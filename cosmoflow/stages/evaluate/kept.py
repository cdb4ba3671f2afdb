"""Fields that are kept in memory for a comparison, where one process does all of it.

Blocks with halos, sub-boxes, slices and spectra all read the same fields, and each decodes the
chunks around its part once more: in a box of eight chunks, all of them for every block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block, cut_block
from cosmoflow.stages.inputs.readers import StoreReader


@dataclass(frozen=True, eq=False)
class KeptReader(StoreReader):
    """Reader of fields in memory; everything else is read from the stores.

    Parameters
    ----------
    kept : mapping of str to ndarray
        ``density`` and ``velocity`` of the whole box.
    """

    kept: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def read(self, name: str, block: Block) -> NDArray[np.float32]:
        """Return a field over a block; see :meth:`StoreReader.read`."""
        found = self.kept.get(name)
        return super().read(name, block) if found is None else cut_block(found, block)


def keep(readers: Mapping[str, StoreReader]) -> dict[str, StoreReader]:
    """Return readers with their fields in memory; all of them have the first one's density."""
    first = next(iter(readers.values()))
    whole = Block((0, 0, 0), (first.grid,) * 3)
    density = first.read("density", whole)

    def kept(reader: StoreReader) -> KeptReader:
        said = {one.name: getattr(reader, one.name) for one in fields(StoreReader)}
        held = {"density": density, "velocity": reader.read("velocity", whole)}
        return KeptReader(**said, kept=held)

    return {name: kept(reader) for name, reader in readers.items()}


def kept_bytes(readers: Iterable[StoreReader], grid: int) -> int:
    """Return the bytes of the kept fields, and of the one that is being read."""
    found = list(readers)
    return 4 * grid**3 * (1 + 3 * len(found) + max(one.held(("velocity",)) for one in found))
