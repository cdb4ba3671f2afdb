"""A compact U-net without padding that learns the residual from a global flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosmoflow.model.geometry import Geometry


def _crop(field: Tensor, cells: int) -> Tensor:
    """Crop ``cells`` from every side."""
    if cells == 0:
        return field
    if field.requires_grad:
        # The gradient of a slice is always contiguous, which slows the rest of the backward pass;
        # that of negative padding keeps channels last.
        return nn.functional.pad(field, (-cells,) * 6)
    return field[..., cells:-cells, cells:-cells, cells:-cells]


def _stack(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Return ``depth`` unpadded 3^3 convolutions, each followed by a SiLU.

    With ReLU the same training leaves a residual 4 % larger: smooth activations suit a smooth
    field.
    """
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Conv3d(inputs if index == 0 else outputs, outputs, 3), nn.SiLU(inplace=True)]
    return nn.Sequential(*layers)


def _apply(layers: nn.Sequential, features: Tensor) -> Tensor:
    """Apply layers; ``features`` is freed after the first of them if the caller keeps no reference.

    A call of ``nn.Sequential`` would hold it until its end.
    """
    for layer in layers:
        features = layer(features)
    return features


def _join(parts: list[Tensor]) -> Tensor:
    """Join features, and empty the list, so that parts that nothing else holds are freed."""
    joined = torch.cat(parts, dim=1)
    parts.clear()
    return joined


class ResidualUNet(nn.Module):
    """Three levels of unpadded convolutions; total stride 4.

    Without padding, an output cell depends only on the input cells within the halo, so results do
    not depend on the tiling. For the same reason there is no normalisation over space. The last
    layer starts at zero, so an untrained network adds nothing to the flow.

    Parameters
    ----------
    channels : int
        Input channels.
    widths : (int, int, int)
        Features at resolutions of 1, 2 and 4 cells.
    encoder : (int, int, int)
        Convolutions on the way down, at 1, 2 and 4 cells.
    decoder : (int, int)
        Convolutions on the way up, at 2 cells and at 1.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int, int],
        encoder: tuple[int, int, int],
        decoder: tuple[int, int],
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        e0, e1, e2 = encoder
        d1, d0 = decoder
        # Cells to crop from the fine and middle features to match the upsampled ones.
        self._crop_middle = 2 * e2
        self._crop_fine = 2 * (e1 + 2 * e2 + d1)
        self.geometry = Geometry(
            halo=e0 + 2 * e1 + 4 * e2 + 2 * d1 + d0,
            stride=4,
            fixed_output=None,
            default_output=32,
        )
        if (self.geometry.halo - e0) % 2 or (4 * e2 - 2 * d1 - d0) % 2:
            raise ValueError(f"depths {encoder}, {decoder} do not fit a lattice of stride 4")
        self.encode_fine = _stack(channels, fine, e0)
        self.reduce_fine = nn.Conv3d(fine, middle, 2, stride=2)
        self.encode_middle = _stack(middle, middle, e1)
        self.reduce_middle = nn.Conv3d(middle, coarse, 2, stride=2)
        self.encode_coarse = _stack(coarse, coarse, e2)
        self.expand_middle = nn.ConvTranspose3d(coarse, middle, 2, stride=2)
        self.decode_middle = _stack(2 * middle, middle, d1)
        self.expand_fine = nn.ConvTranspose3d(middle, fine, 2, stride=2)
        self.decode_fine = _stack(2 * fine, fine, d0)
        self.output = nn.Conv3d(fine, 3, 1)
        for module in self.modules():
            # Drawing on the meta device, where there are no values, would load torch's compiler.
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if isinstance(module, nn.ConvTranspose3d):
                    # Kernel = stride, so every output cell has one input cell, not eight.
                    module.weight.data *= 8.0**0.5
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.output.weight)
        self.errors: nn.Sequential | None = None

    def add_errors(self) -> None:
        """Add the head that expects the size of the errors; it starts at the rms of the target."""
        features = self.output.in_channels
        last = nn.Conv3d(features, 3, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.errors = nn.Sequential(nn.Conv3d(features, features, 1), nn.SiLU(inplace=True), last)

    def forward(self, inputs: Tensor, *, errors: bool = False) -> Tensor:
        """Map ``(batch, channels, n, n, n)`` to ``(batch, 3, n - 2 halo, ...)``.

        With ``errors`` the result has three more channels, the logarithms of the sizes of the
        errors that the head for them expects.
        """
        fine = _apply(self.encode_fine, inputs)
        middle = _apply(self.encode_middle, self.reduce_fine(fine))
        coarse = _apply(self.encode_coarse, self.reduce_middle(middle))
        parts = [self.expand_middle(coarse), _crop(middle, self._crop_middle)]
        del coarse, middle
        middle = _apply(self.decode_middle, _join(parts))
        parts = [self.expand_fine(middle), _crop(fine, self._crop_fine)]
        del middle, fine
        fine = _apply(self.decode_fine, _join(parts))
        result: Tensor = self.output(fine)
        if not errors:
            return result
        assert self.errors is not None
        return torch.cat([result, self.errors(fine)], dim=1)
