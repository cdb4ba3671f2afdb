"""The network of Wu et al. 2021, as published."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from cosmoflow.model.geometry import Geometry

INPUT_CELLS = 32
OUTPUT_CELLS = 20


def _convolution(inputs: int, outputs: int, *, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=padding),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


def _deconvolution(inputs: int, outputs: int) -> nn.Sequential:
    # Stride 2 doubles the size; the paper's "stride 1" cannot go from 8 to 16 to 32 cells.
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class PaperNetwork(nn.Module):
    """15 convolutions and 2 deconvolutions from 32^3 cells of density to 20^3 of a vector.

    Parameters
    ----------
    output_kernel : {1, 3}
        Kernel size of the last, linear layer. 1 gives the published 48,690,307 parameters
        (including batch-norm statistics); the paper's text says 3, which gives 19,968 more.
    narrowing : int
        Divides the features of every layer: 8 makes a network that a laptop can train.

    References
    ----------
    .. [1] Wu, Z. et al. 2021, "Cosmic Velocity Field Reconstruction Using AI", section 3, Figure 2.
    """

    geometry = Geometry(
        halo=(INPUT_CELLS - OUTPUT_CELLS) // 2,
        stride=4,
        fixed_output=OUTPUT_CELLS,
        default_output=OUTPUT_CELLS,
    )

    def __init__(self, output_kernel: int = 1, narrowing: int = 1) -> None:
        super().__init__()
        fine, middle, coarse = (width // narrowing for width in (128, 256, 512))
        self.encode_fine = nn.Sequential(_convolution(1, fine), _convolution(fine, fine))
        self.reduce_fine = _convolution(fine, fine, stride=2)
        self.encode_middle = nn.Sequential(_convolution(fine, middle), _convolution(middle, middle))
        self.reduce_middle = _convolution(middle, middle, stride=2)
        self.encode_coarse = nn.Sequential(
            _convolution(middle, coarse), _convolution(coarse, coarse)
        )
        self.expand_middle = _deconvolution(coarse, middle)
        self.decode_middle = _convolution(2 * middle, middle)
        self.expand_fine = _deconvolution(middle, fine)
        widths = (2 * fine, coarse, coarse, coarse, middle, middle, middle)
        self.decode_fine = nn.Sequential(
            *(
                _convolution(inputs, outputs, padding=0)
                for inputs, outputs in itertools.pairwise(widths)
            )
        )
        # Linear, because a ReLU would exclude negative velocities.
        self.output = nn.ConvTranspose3d(middle, 3, output_kernel, padding=output_kernel // 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(batch, 1, 32, 32, 32)`` to ``(batch, 3, 20, 20, 20)``."""
        fine = self.encode_fine(inputs)
        middle = self.encode_middle(self.reduce_fine(fine))
        coarse = self.encode_coarse(self.reduce_middle(middle))
        middle = self.decode_middle(torch.cat([self.expand_middle(coarse), middle], dim=1))
        fine = torch.cat([self.expand_fine(middle), fine], dim=1)
        result: Tensor = self.output(self.decode_fine(fine))
        return result
