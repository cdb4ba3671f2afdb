"""Crops of small boxes, and a source that notes what is read of it, for the tests of training."""

import numpy as np

from cosmoflow.model.geometry import Geometry

CROP = 8
GEOMETRY = Geometry(halo=3, stride=4, fixed_output=None, default_output=8)


class Watched:
    """A source that notes what is read of it, and may spoil it."""

    def __init__(self, source, spoil=None):
        self.source = source
        self.read = []
        self.spoil = spoil

    @property
    def grid(self):
        return self.source.grid

    def read_block(self, name, block, *, lead=()):
        self.read.append((name, block))
        values = self.source.read_block(name, block, lead=lead)
        times = sum(1 for other, _ in self.read if other == name)
        return np.full_like(values, np.nan) if self.spoil == (name, times) else values
