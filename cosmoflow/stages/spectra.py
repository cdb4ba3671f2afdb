"""Power spectra of stored fields."""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr

from cosmoflow.engine import available_memory
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import StageFinished
from cosmoflow.numerics import fourier
from cosmoflow.numerics.spectra import WINDOWS, join_interlaced, sum_modes
from cosmoflow.stages.run import Plan, Progress, Run, require_memory
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import COMPLETE, INCOMPLETE, STATUS, make_provenance
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.urls import (
    exists,
    local_path,
    open_group_for_writing,
    remove,
    storage_errors,
    write_bytes,
    zarr_store,
)
from cosmoflow.storage.variables import COMPRESSORS, count_parts, leading_dimension
from cosmoflow.units import DIMENSIONLESS, FIELD_UNITS, INTERLACED, WAVENUMBER

PAINTED = frozenset({"density", "momentum"})
"""Variables that are linear in the particles: only these are convolved with the window."""


def plan_spectra(fields: str, field: str, cross: str | None) -> Plan:
    """Say what :func:`spectra` would do."""
    store = FieldStore(fields)
    names = [field] if cross is None else [field, cross]
    store.require(*names)
    parts = sum(count_parts(name) for name in names)
    second = max(count_parts(name) * int(INTERLACED + name in store.variables) for name in names)
    cells = store.grid**3
    return Plan(
        stage="spectra",
        tasks=1,
        unit="spectrum",
        worker_memory=cells * 4 * (2 * parts + 4 + 3 * second),
        read=cells * 4 * (parts + second),
        written=4 * 8 * store.grid,
        cpu_seconds=cells * parts * 1e-7,
        details={"grid": store.grid, "bins": store.grid // 2, "field": field, "cross": cross},
    )


def spectra(
    fields: str,
    out: str,
    field: str,
    run: Run | None = None,
    *,
    cross: str | None = None,
    compensate: str = "auto",
) -> xr.Dataset:
    """Measure the power spectrum of a field, or the cross spectrum of two.

    Where a store has the second grid of an interlaced pair, its spectrum is that of the pair.

    Parameters
    ----------
    fields : str
        URL of a fields store.
    out : str
        URL of the result: zarr, or netCDF when a local name ends in ``.nc``.
    field, cross : str
        Variables; of a vector the sum over components is taken, of ``linear_velocity`` the first
        smoothing scale, which the attributes name.
    compensate : {"auto", "none"}
        Whether to divide painted fields by the window of the mass assignment.
    run : Run, optional
        What to do with an existing output, progress.

    Returns
    -------
    xr.Dataset
        ``power`` in field units squared times (Mpc/h)^3, ``modes``, over ``k`` in h/Mpc; for two
        fields ``correlation`` too. Bins are one fundamental mode wide, edges on its half-integers.

    Raises
    ------
    DataError
        A variable is missing or damaged.
    ConfigError
        A scalar was paired with a vector.
    """
    run = run or Run()
    # A spectrum is one piece of work: resuming one means making it anew where it is missing.
    check_output(out, "error" if run.existing == "resume" else run.existing, [fields])
    store = FieldStore(fields)
    plan = plan_spectra(fields, field, cross)
    if cross is not None and leading_dimension(cross) != leading_dimension(field):
        raise ConfigError(
            "a scalar, a vector and eigenvalues have no cross spectra", where="--cross",
            value=f"{field} and {cross}",
        )  # fmt: skip
    require_memory(
        run, plan, available_memory(), remedy="a machine with more memory, or a coarser grid"
    )
    progress = Progress(run.listener, "spectra", 1, "spectrum")
    size = store.metadata.box_size
    scheme = _scheme(store)

    def transform(name: str) -> torch.Tensor:
        values = store.read(name, lead=(0,) if name == "linear_velocity" else ())
        return fourier.forward(torch.from_numpy(values))

    def modes(name: str) -> torch.Tensor:
        found = transform(name)
        if INTERLACED + name in store.variables:
            found = join_interlaced(found, transform(INTERLACED + name))
        return found

    def window(name: str) -> int:
        if compensate == "none" or name not in PAINTED or scheme is None:
            return 0
        return WINDOWS[scheme]

    result = sum_modes(
        modes(field),
        None if cross is None else modes(cross),
        cells=store.grid,
        box_size=size,
        window=(window(field), window(cross or field)),
    ).spectrum()
    power, extra = result.cross, {}
    if cross is not None:
        extra = {"correlation": ("k", result.correlation)}
    unit = FIELD_UNITS[field][0] if cross in (None, field) else f"{field} {cross}"
    dataset = xr.Dataset(
        {"power": ("k", power), "modes": ("k", result.modes), **extra},
        coords={"k": ("k", result.k)},
        attrs={
            "format": "cosmoflow/spectra",
            "format_version": 1,
            "box_size": size,
            "redshift": store.metadata.redshift,
            "field": field,
            "cross": cross or field,
            "interlaced": ", ".join(
                sorted({n for n in (field, cross) if n and INTERLACED + n in store.variables})
            )
            or "none",
            "window": f"{scheme} divided out" if window(field) else "none divided out",
            "smoothing": store.smoothing_scales()[:1],
            "nyquist": math.pi * store.grid / size,
            STATUS: INCOMPLETE,
        },
    )
    dataset["k"].attrs = {"units": WAVENUMBER, "long_name": "mean wavenumber of the bin's modes"}
    dataset["power"].attrs = {"units": f"({unit})^2 (Mpc/h)^3", "long_name": f"power of {field}"}
    dataset["modes"].attrs = {"units": DIMENSIONLESS, "long_name": "number of modes"}
    _write(dataset, out, make_provenance("spectra", plan.details, {"fields": store.digest}))
    progress.advance()
    run.listener(StageFinished("spectra", {"out": out}))
    return dataset


def _scheme(store: FieldStore) -> str | None:
    """Return the mass-assignment scheme that a store was painted with, if it says."""
    config = store.metadata.provenance.get("config", {})
    scheme = config.get("paint", {}).get("scheme") if isinstance(config, dict) else None
    if scheme is not None and scheme not in WINDOWS:
        raise DataError("unknown mass-assignment scheme", where=store.url, value=scheme)
    return scheme


def _write(dataset: xr.Dataset, out: str, provenance: dict[str, object]) -> None:
    """Write a spectrum whole or not at all, as far as the store allows."""
    if exists(out):
        remove(out)
    path = local_path(out)
    with storage_errors(out):
        if path is not None and path.suffix == ".nc":
            flat = dataset.assign_attrs(provenance=str(provenance["digest"]))
            flat.attrs[STATUS] = COMPLETE
            content = np.asarray(flat.to_netcdf(engine="scipy")).tobytes()
            write_bytes(str(path.parent), path.name, content)
        else:
            dataset.assign_attrs(provenance=provenance).to_zarr(
                zarr_store(out, read_only=False), mode="w", consolidated=False, zarr_format=3,
                encoding={name: {"compressors": COMPRESSORS} for name in dataset.variables},
            )  # fmt: skip
            finish_group(open_group_for_writing(out))
