"""Position of a network's output cells within its input cells."""

from __future__ import annotations

from dataclasses import dataclass

from cosmoflow.errors import ConfigError

Sides = tuple[int, int, int]
"""Cells of each axis."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cells in and out of a convolutional network, per axis.

    Parameters
    ----------
    halo : int
        Input cells beyond the output on every side.
    stride : int
        Total stride. Tile origins and sizes are multiples of the stride, because a strided network
        commutes only with such shifts.
    fixed_output : int or None
        The only output size that the network supports, if its padding makes results depend on it.
    default_output : int
        A sensible output size for training crops and listings.
    """

    halo: int
    stride: int
    fixed_output: int | None
    default_output: int

    def input_cells(self, output: int) -> int:
        """Return the input cells that give ``output`` cells."""
        return output + 2 * self.halo

    def input_shape(self, output: int | Sides) -> Sides:
        """Return the input cells along each axis; ``output`` is one number or one per axis."""
        x, y, z = (output, output, output) if isinstance(output, int) else output
        return self.input_cells(x), self.input_cells(y), self.input_cells(z)

    def check_output(self, output: int, where: str) -> int:
        """Return ``output`` if the network supports that output size.

        Raises
        ------
        ConfigError
        """
        if self.fixed_output is not None:
            if output != self.fixed_output:
                raise ConfigError(
                    "this network supports only one output size",
                    where=where,
                    value=output,
                    limit=self.fixed_output,
                    remedy="leave out the setting",
                )
        elif output % self.stride:
            raise ConfigError(
                "the tile size is not a multiple of the network's stride",
                where=where,
                value=output,
                limit=f"a multiple of {self.stride}",
            )
        return output
