"""A quick look at a fields store: one slice, read chunk by chunk, as values and as a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import ConfigError, OutputExistsError, suggest
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.field_table import LABELS, STORED
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import absolute, exists, overlaps, write_bytes
from cosmoflow.units import COMPONENTS, DIMENSIONLESS, LENGTH

if TYPE_CHECKING:
    import xarray as xr

Axis = Literal["x", "y", "z"]

NORM: Final = "norm"
"""The component that means the length of a vector."""
_FIRST: Final = ("density", "velocity", "momentum")
"""Fields that are shown if none is named."""
_TAIL: Final = 0.005
"""Share of the cells beyond each end of the colours."""
_LEAST: Final = 1e-3
"""Smallest density over its mean that has a colour of its own."""


@dataclass(frozen=True, slots=True)
class ColourScale:
    """How values become colours.

    Parameters
    ----------
    kind : {"log", "signed", "linear"}
        Logarithmic for densities; from ``-high`` to ``high`` for values of both signs; else linear
        from 0.
    low, high : float
        Values of the first and the last colour.
    """

    kind: Literal["log", "signed", "linear"]
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: NDArray[np.float32]) -> ColourScale:
        """Return the scale of a slice of a field."""
        # Without NaN, which a slice never has: a store refuses to give it.
        high = float(np.quantile(np.abs(values), 1.0 - _TAIL)) or 1.0
        if values.min() < 0.0:
            return cls("signed", -high, high)
        positive = values[values > 0.0]
        if name.endswith("density") and positive.size:
            low = max(float(np.quantile(positive, _TAIL)), _LEAST)
            return cls("log", low, max(high, 1.001 * low))
        return cls("linear", 0.0, high)

    def levels(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return values as places between the first and the last colour, 0 to 1."""
        low, high, shown = self.low, self.high, np.asarray(values, np.float64)
        if self.kind == "log":
            low, high, shown = np.log(low), np.log(high), np.log(np.maximum(shown, low))
        clipped: NDArray[np.float64] = np.clip((shown - low) / (high - low), 0.0, 1.0)
        return clipped


def view(
    url: str,
    field: str | None = None,
    *,
    axis: Axis = "z",
    position: float | None = None,
    component: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> xr.DataArray:
    """Read a slice of one cell of a fields store, and draw it if ``out`` is given.

    Only the chunks that the slice passes through are read.

    Parameters
    ----------
    url : str
        Fields store.
    field : str, optional
        Variable of the store; by default the density, or the velocity if there is none.
    axis : {"x", "y", "z"}
        Axis perpendicular to the slice.
    position : float, optional
        Place of the slice along the axis, Mpc/h; by default the middle of what the store holds.
    component : str, optional
        Component of a vector, ``x``, ``y`` or ``z``, or ``norm`` for its length (the default);
        eigenvalue of the shear, ``1``, ``2`` or ``3`` (the default, the largest).
    out : str, optional
        PNG file to write.
    overwrite : bool
        Replace an existing PNG file.

    Returns
    -------
    xr.DataArray
        The slice in memory, with the coordinates of its cells in Mpc/h.

    Raises
    ------
    ConfigError
        The store has no such field or component, or the position is outside of what it holds.
    OutputExistsError
        The PNG file exists.
    StorageError, DataError, IncompleteError
        The store cannot be read, is damaged, or is not complete.
    """
    if out is not None:
        _check_out(out, url, overwrite=overwrite)
    store = FieldStore(absolute(url))
    found = _read(store, _choose_field(store, field), axis, position, component)
    if out is not None:
        folder, _, name = absolute(out).rpartition("/")
        write_bytes(folder or "/", name, draw_slice(found))
    return found


def _check_out(out: str, url: str, *, overwrite: bool) -> None:
    """Refuse a picture that is no PNG, exists already, or would be inside the store."""
    if not out.lower().endswith(".png"):
        raise ConfigError(
            "the picture is a PNG file", where="--out", value=out, remedy=f"--out {out}.png"
        )
    if overlaps(out, url):
        raise ConfigError(
            "the output would be written over an input", where=out, value=f"input {url}",
            remedy="give the output another name",
        )  # fmt: skip
    if not overwrite and exists(out):
        raise OutputExistsError(
            "the output exists already", where=out, remedy="--overwrite to replace it"
        )


def _choose_field(store: FieldStore, field: str | None) -> str:
    """Return the variable to show."""
    if field is None:
        return next((name for name in _FIRST if name in store.variables), store.variables[0])
    if field not in store.variables:
        raise ConfigError(
            f"the store has no field {field!r}",
            where=store.url,
            limit=f"one of {', '.join(store.variables)}",
            remedy=suggest(
                field, store.variables, "cosmoflow derive makes other fields from these"
            ),
        )
    return field


def _choose_component(field: str, component: str | None) -> tuple[str | None, int | None]:
    """Return the name of a component, and its index; no index for a scalar or a whole vector."""
    lead = STORED[field].lead
    if lead is None:
        allowed: list[str] = []
    else:
        allowed = [*(str(label) for label in LABELS[lead]), *([NORM] * (lead == "component"))]
    if component is None:
        component = allowed[-1] if allowed else None
    elif component not in allowed:
        raise ConfigError(
            f"{field} has no component {component!r}",
            where="--component",
            value=component,
            limit=f"one of {', '.join(allowed)}" if allowed else "none: the field is a scalar",
        )
    index = None if component in (None, NORM) else allowed.index(component)
    return component, index


def _read(
    store: FieldStore, field: str, axis: Axis, position: float | None, component: str | None
) -> xr.DataArray:
    import xarray as xr

    component, index = _choose_component(field, component)
    held = store.region or Block((0, 0, 0), (store.grid,) * 3)
    along, cell = COMPONENTS.index(axis), store.cell_size
    first, count = held.origin[along], held.shape[along]
    if position is None:
        position = (first + count / 2) * cell
    if not first * cell <= position <= (first + count) * cell:
        raise ConfigError(
            "the slice is outside of what the store holds",
            where="--position",
            value=f"{position:g} {LENGTH}",
            limit=f"{first * cell:g} to {(first + count) * cell:g} {LENGTH} along {axis}",
        )
    place = min(int(position / cell), first + count - 1)
    origin, shape = list(held.origin), list(held.shape)
    origin[along], shape[along] = place, 1
    block = Block((origin[0], origin[1], origin[2]), (shape[0], shape[1], shape[2]))
    lead, attributes = _smoothing(store, field)
    values = store.read_block(field, block, lead=(*lead, *(() if index is None else (index,))))
    values = np.take(values, 0, axis=along - 3)
    if component == NORM:
        values = np.sqrt(np.einsum("ixy,ixy->xy", values, values))
    others = [name for name in COMPONENTS if name != axis]
    centres: dict[str, Any] = {
        name: (name, (held.origin[at] + np.arange(held.shape[at]) + 0.5) * cell, {"units": LENGTH})
        for at, name in enumerate(COMPONENTS)
        if name in others
    }
    centres[axis] = ((), (place + 0.5) * cell, {"units": LENGTH})
    row = STORED[field]
    attributes |= {"units": row.unit, "long_name": row.long_name, "cell_size": cell}
    if component is not None:
        attributes["component"] = component
    return xr.DataArray(values, centres, others, field, attributes)


def _smoothing(store: FieldStore, field: str) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the index of the first finished smoothing radius of a linear velocity, if it is one.

    Also return the radius, as an attribute of the slice.
    """
    if field != "linear_velocity":
        return (), {}
    index, radius = store.first_scale()
    return (index,), {} if radius is None else {"smoothing": radius}


def title_of(found: xr.DataArray) -> str:
    """Return the title of a slice: field, component and place."""
    (axis,) = set(COMPONENTS) - {str(name) for name in found.dims}
    component = found.attrs.get("component")
    name = f"|{found.name}|" if component == NORM else str(found.name)
    part = "" if component in (None, NORM) else f" {component}"
    smoothing, unit = found.attrs.get("smoothing"), found.attrs["units"]
    radius = "" if smoothing is None else f", smoothed at {smoothing:g} {LENGTH},"
    ending = "" if unit == DIMENSIONLESS else f", {unit}"
    return f"{name}{part}{radius} at {axis} = {float(found[axis]):g} {LENGTH}{ending}"


def draw_slice(found: xr.DataArray) -> bytes:
    """Return a PNG picture of a slice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    values = found.to_numpy()
    scale = ColourScale.of(str(found.name), values)
    norm = (LogNorm if scale.kind == "log" else Normalize)(scale.low, scale.high)
    beyond = (bool(values.min() < scale.low), bool(values.max() > scale.high))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The lowest colour is for cells without mass, whose logarithm is not defined.
    shown = np.maximum(values, scale.low).T
    horizontal, vertical = (str(name) for name in found.dims)
    x, y = (found[name].to_numpy() for name in found.dims)
    half = 0.5 * found.attrs["cell_size"]
    image = axes.imshow(
        shown,
        origin="lower",
        extent=(x[0] - half, x[-1] + half, y[0] - half, y[-1] + half),
        norm=norm,
        cmap="RdBu_r" if scale.kind == "signed" else "viridis",
        interpolation="nearest",
    )
    axes.set(xlabel=f"{horizontal}, {LENGTH}", ylabel=f"{vertical}, {LENGTH}")
    axes.set_title(title_of(found), fontsize="medium")
    unit = found.attrs["units"]
    label = found.attrs["long_name"] + ("" if unit == DIMENSIONLESS else f", {unit}")
    # The ends of the bar are arrows where values lie beyond its colours.
    figure.colorbar(image, ax=axes, extend=extend.get(beyond, "neither"), label=label)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
