"""Streams training boxes that do not fit in memory, a few blocks at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from cosmoflow.model.samples import TrainingBox, choose_box
from cosmoflow.model.sources import BlockFields, variable_of
from cosmoflow.numerics.blocks import grow

BLOCK_CELLS = 128
"""Cells per axis of a block: much larger than a crop, so that few cells are read in vain."""

POOL = 4
"""Blocks that supply a batch: several, as neighbouring crops of one block are correlated."""

_TURNS = 2.0
"""Mean number of times that a block's cells are used before the block is replaced."""

_STREAM = 0x57
"""Key that separates the random numbers of blocks from those of crops."""


def pool_bytes(crop: int, halo: int, flows: int) -> int:
    """Return the memory of the blocks in use, the next ones and those being released, bytes."""
    side = max(BLOCK_CELLS, crop) + 2 * halo
    return 3 * POOL * side**3 * 4 * (1 + 3 * (1 + flows))


class StreamedBoxes:
    """Supplies random blocks of boxes and reads the next ones in the background.

    Parameters
    ----------
    boxes : sequence of TrainingBox
        Boxes, drawn as :func:`cosmoflow.model.samples.choose_box` does.
    seed : int
        Seed that, with the step, determines the blocks, so a resumed run reads the same blocks as
        an uninterrupted one.
    crop, batch : int
        Output cells per axis of a crop, and crops per step over all workers.
    halo : int
        Halo of the network, cells.
    target : str
        Variable to predict.
    """

    def __init__(
        self, boxes: Sequence[TrainingBox], seed: int, crop: int, batch: int, halo: int, target: str
    ) -> None:
        self._boxes, self._seed, self._halo, self._target = boxes, seed, halo, target
        self._side = max(BLOCK_CELLS, crop)
        crops = _TURNS * POOL * (self._side / crop) ** 3
        self.steps = max(1, round(crops / batch))
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._windows: dict[int, Future[list[TrainingBox]]] = {}
        self._lock = threading.Lock()

    def at(self, step: int) -> list[TrainingBox]:
        """Return the blocks that a step trains on, as boxes in memory."""
        window = step // self.steps
        with self._lock:
            # Steps arrive nearly in order, so blocks farther behind can be released.
            for old in [w for w in self._windows if w < window - 1]:
                del self._windows[old]
            for wanted in (window, window + 1):
                if wanted not in self._windows:
                    self._windows[wanted] = self._reader.submit(self._read, wanted)
            found = self._windows[window]
        return found.result()

    def _read(self, window: int) -> list[TrainingBox]:
        found = []
        for number in range(POOL):
            key = (self._seed, window, number, _STREAM)
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
            box = choose_box(self._boxes, rng)
            side = min(self._side, *box.region.shape)
            region = box.place_crop(side, rng)
            variables = [("density", ()), (self._target, ()), *map(variable_of, box.flows)]
            held = BlockFields(box.source, variables, grow(region, self._halo))
            found.append(replace(box, source=held, region=region, periodic=False))
        return found
