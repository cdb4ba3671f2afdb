"""Draw one component of a velocity in a slice: the truth, a prediction, and what predictions leave.

    cosmoflow simulate particles.zarr --box 256 --particles 256 --seed 1001
    cosmoflow paint particles.zarr fields.zarr --grid 128
    cosmoflow infer fields.zarr network.zarr
    cosmoflow infer fields.zarr filter.zarr --model wiener
    python examples/plot_residuals.py fields.zarr network=network.zarr "Wiener filter=filter.zarr"

These commands make `docs/demo.png`. Nothing but xarray, numpy and matplotlib is used.
"""

import argparse

import numpy as np
import xarray as xr
from matplotlib.figure import Figure


def plot_residuals(truth: xr.DataArray, predictions: dict[str, xr.DataArray], path: str) -> None:
    """Draw the truth and the first prediction above, and the residuals of two below."""
    top = float(abs(truth).quantile(0.998))
    (first, prediction), (second, other) = predictions.items()
    panels = {
        "truth": truth,
        first: prediction,
        f"residual: {first}": prediction - truth,
        f"residual: {second}": other - truth,
    }
    figure = Figure(figsize=(7.0, 7.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=True):
        image = values.plot.imshow(
            ax=axes, x="x", y="y", vmin=-top, vmax=top, cmap="RdBu_r", add_labels=False,
            add_colorbar=False,
        )  # fmt: skip
        axes.set(title=title, aspect="equal")
    for axes in grid[1]:
        axes.set_xlabel("x [Mpc/h]")
    for axes in grid[:, 0]:
        axes.set_ylabel("y [Mpc/h]")
    label = f"v along {truth.component.item()} [km/s]"
    figure.colorbar(image, ax=grid, location="bottom", shrink=0.7, extend="both", label=label)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth")
    parser.add_argument("predictions", nargs=2, metavar="NAME=STORE")
    parser.add_argument("--component", choices="xyz", default="x")
    parser.add_argument("--z", type=float, default=128.0, help="height of the slice, Mpc/h")
    parser.add_argument("--out", default="residuals.png")
    arguments = parser.parse_args()

    def read(store: str) -> xr.DataArray:
        # Nothing is read of the store but the chunks that the slice lies in.
        velocity = xr.open_zarr(store, consolidated=False)["velocity"]
        plane = velocity.sel(component=arguments.component).sel(z=arguments.z, method="nearest")
        return plane.astype(np.float32).load()

    named = dict(one.split("=", 1) for one in arguments.predictions)
    predictions = {name: read(store) for name, store in named.items()}
    plot_residuals(read(arguments.truth), predictions, arguments.out)


if __name__ == "__main__":
    main()
