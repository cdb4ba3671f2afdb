"""Remake two figures of a report with nothing but xarray, numpy and matplotlib.

    cosmoflow evaluate truth.zarr prediction.zarr --out report
    python examples/plot_report.py report/curves.zarr truth.zarr prediction.zarr --out figures

`spectra.png` is T(k) and r(k) of every prediction, with the errors of the sub-boxes where there are
any; `slice.png` is the speed in a slice of the truth and of the prediction.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure


def plot_spectra(curves: xr.Dataset, path: Path) -> None:
    """Draw T(k) above and r(k) below, a column for each of four quantities."""
    # A box smaller than the sub-boxes has spectra of the whole box alone.
    prefix, quantity, k = (
        ("subbox_", "subbox_quantity", "k_subbox")
        if "subbox_transfer" in curves
        else ("", "quantity", "k")
    )
    names = ["speed", "divergence", "momentum", "theta_p"]
    figure = Figure(figsize=(12.0, 5.0), layout="constrained")
    grid = figure.subplots(2, len(names), sharex=True, sharey="row")
    for column, name in zip(grid.T, names, strict=True):
        column[0].set_title(name)
        column[1].set_xlabel(f"k [{curves[k].units}]")
        for axes, curve in zip(column, ("transfer", "correlation"), strict=True):
            for one in curves["prediction"].values:
                place = {quantity: name, "prediction": one}
                found = curves[f"{prefix}{curve}"].sel(place)
                line = axes.plot(curves[k], found, label=str(one))[0]
                if f"{prefix}{curve}_error" in curves:
                    error = curves[f"{prefix}{curve}_error"].sel(place)
                    band = {"color": line.get_color(), "alpha": 0.25}
                    axes.fill_between(curves[k], found - error, found + error, **band)
            axes.axhline(1.0, color="black", lw=0.7)
        column[0].set_xscale("log")
        column[0].set_yscale("log")
    grid[0, 0].set_ylabel("T(k)")
    grid[1, 0].set_ylabel("r(k)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=150)


def plot_slice(truth: xr.Dataset, prediction: xr.Dataset, z: float, path: Path) -> None:
    """Draw the speed in a slice, and the arrows of the velocity in its plane."""
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    top = None
    for axes, (title, fields) in zip(
        grid, {"truth": truth, "prediction": prediction}.items(), strict=True
    ):
        # Nothing is read of the stores but the chunks that the slice lies in.
        velocity = fields["velocity"].sel(z=z, method="nearest").load()
        speed = np.sqrt((velocity**2).sum("component"))
        top = float(speed.max()) if top is None else top
        speed.plot.imshow(
            ax=axes, x="x", y="y", vmin=0.0, vmax=top, cmap="YlGnBu", add_labels=False,
            cbar_kwargs={"label": "|v| [km/s]"},
        )  # fmt: skip
        step = max(1, velocity.sizes["x"] // 32)
        few = velocity.isel(x=slice(None, None, step), y=slice(None, None, step))
        u, v = (few.sel(component=axis).transpose("y", "x") for axis in "xy")
        axes.quiver(few["x"], few["y"], u, v, scale=14.0 * top, width=0.003)
        axes.set(title=title, xlabel="x [Mpc/h]", ylabel="y [Mpc/h]", aspect="equal")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves")
    parser.add_argument("truth")
    parser.add_argument("prediction")
    parser.add_argument("--z", type=float, default=0.0, help="height of the slice, Mpc/h")
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    curves, truth, prediction = (
        xr.open_zarr(url, consolidated=False)
        for url in (arguments.curves, arguments.truth, arguments.prediction)
    )
    plot_spectra(curves, arguments.out / "spectra.png")
    plot_slice(truth, prediction, arguments.z, arguments.out / "slice.png")


if __name__ == "__main__":
    main()
