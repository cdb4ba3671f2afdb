"""The 48 symmetries of the cube, acting on scalar and vector fields."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Symmetry:
    """A signed permutation of the axes: ``y[i] = sign[i] * x[axes[i]]``.

    Parameters
    ----------
    axes : tuple of int
        New axis i is old axis ``axes[i]``.
    signs : tuple of int
        -1 where the new axis i is reversed.
    """

    axes: tuple[int, int, int]
    signs: tuple[int, int, int]

    def apply(self, field: Tensor, *, vector: bool) -> Tensor:
        """Transform a field ``(..., nx, ny, nz)`` or a vector field ``(..., 3, nx, ny, nz)``.

        The components of a vector are transformed with the grid, so that the result is the field
        in the transformed frame. The identity returns the field itself.
        """
        if self == CUBE_GROUP[0]:
            return field
        lead = field.dim() - 3
        order = [*range(lead), *(lead + axis for axis in self.axes)]
        turned = field.permute(order)
        flipped = [lead + i for i, sign in enumerate(self.signs) if sign < 0]
        if flipped:
            turned = turned.flip(flipped)
        if vector:
            # No indexing or multiplication by lists: copying them to a GPU would block it.
            parts = (turned.select(-4, axis) for axis in self.axes)
            signed = [part if s > 0 else -part for part, s in zip(parts, self.signs, strict=True)]
            turned = torch.stack(signed, dim=-4)
        return turned

    def compose(self, first: Symmetry) -> Symmetry:
        """Return the symmetry that applies ``first`` and then this one."""
        axes = tuple(first.axes[a] for a in self.axes)
        signs = tuple(s * first.signs[a] for s, a in zip(self.signs, self.axes, strict=True))
        return Symmetry((axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2]))

    def inverse(self) -> Symmetry:
        """Return the symmetry that undoes this one."""
        axes = [0, 0, 0]
        signs = [0, 0, 0]
        for new, (old, sign) in enumerate(zip(self.axes, self.signs, strict=True)):
            axes[old] = new
            signs[old] = sign
        return Symmetry((axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2]))


CUBE_GROUP: tuple[Symmetry, ...] = tuple(
    Symmetry(axes, signs)  # type: ignore[arg-type]
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
)
"""All 48 symmetries; the first is the identity."""


def spread_symmetries(count: int) -> tuple[Symmetry, ...]:
    """Return ``count`` distinct symmetries, the identity first; a larger set contains a smaller.

    Parameters
    ----------
    count : int
        Number of symmetries, 1 to 48.
    """
    # 7 and 48 have no common divisor: no symmetry repeats before all 48 have occurred.
    return tuple(CUBE_GROUP[7 * i % len(CUBE_GROUP)] for i in range(count))
