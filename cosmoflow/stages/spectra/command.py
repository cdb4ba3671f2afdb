"""Power spectra of stored fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import xarray as xr

from cosmoflow.events import Message, StageFinished, noting
from cosmoflow.numerics.spectra import PowerSum
from cosmoflow.stages.flows import check_flows, identify_flows
from cosmoflow.stages.inputs.density import check_contents
from cosmoflow.stages.inputs.empty_cells import examine
from cosmoflow.stages.inputs.notes import input_notes
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.requests import ONCE
from cosmoflow.stages.run import Run, claiming, start_engine
from cosmoflow.stages.spectra.boxes import BoxesPlan, plan_boxes, sum_boxes
from cosmoflow.stages.spectra.plan import SpectraPlan, plan_power
from cosmoflow.stages.spectra.power import sum_power
from cosmoflow.stages.spectra.request import Request, request_spectra
from cosmoflow.storage.metadata import COMPLETE, STATUS, make_provenance
from cosmoflow.storage.outputs import check_output
from cosmoflow.storage.spectra import (
    begin_spectra,
    describe_spectra,
    is_netcdf,
    read_spectra,
    write_netcdf,
    write_spectra,
)
from cosmoflow.storage.urls import absolute, exists


def plan_spectra(request: Request, run: Run) -> SpectraPlan | BoxesPlan:
    """Plan :func:`spectra`."""
    if request.config.subbox is not None:
        return plan_boxes(request, run)
    plan = plan_power(request.sources, request.grid, run, stage="spectra")
    bins = request.bins(request.grid.cells, request.grid.box_size).count
    names = [field.name for field in request.fields]
    whole = {"written": 8 * bins * 8, "requests": plan.requests + ONCE["spectra"]}
    return SpectraPlan(**{**vars(plan), **whole}, bins=bins, fields=names)


def spectra(
    fields: str,
    out: str,
    field: str,
    run: Run | None = None,
    *,
    cross: str | None = None,
    cross_fields: str | None = None,
    compensate: str = "auto",
) -> xr.Dataset:
    """Measure the power spectrum of a field, or the cross spectrum of two.

    The box may be larger than memory: it is transformed in slabs that tasks exchange, on Ray where
    one process is too small. If a store has the second grid of an interlaced pair, the spectrum is
    that of the pair.

    Parameters
    ----------
    fields : str
        URL of a fields store.
    out : str
        URL of the result: zarr, or netCDF when a local name ends in ``.nc``.
    field, cross : str
        Variables, or fields computed from density and velocity if the store has no such variable:
        ``speed``, ``momentum_speed`` (``|v| delta``), ``theta_p`` (``|curl(rho v)|`` by
        differences), ``divergence``, ``vorticity``, ``momentum_curl`` (spectral). The spectrum of
        a vector is the sum over components; that of ``linear_velocity`` is for the first smoothing
        scale, which the attributes name.
    cross_fields : str, optional
        URL of another store of the same box that has ``cross`` (by default the same name as
        ``field``).
    compensate : {"auto", "none"}
        Whether to divide painted fields by the window of the mass assignment: by
        ``sinc^p(k_i h / 2)`` along each axis, p = 1, 2, 3, 4 for NGP, CIC, TSC, PCS.
    run : Run, optional
        Settings (section ``spectra``), engine, what to do with an existing output, progress.

    Returns
    -------
    xr.Dataset
        ``power`` in field units squared times (Mpc/h)^3 and ``modes`` over ``k`` in h/Mpc. For two
        fields ``power`` is the cross power, and ``power_first``, ``power_second``, ``transfer`` and
        ``correlation`` are added. With multipoles ``power`` has a dimension ``pole``; with
        sub-boxes ``power_error`` and ``box_power`` are added. By default bins are one fundamental
        mode wide, with edges at its half-integer multiples.

    Raises
    ------
    DataError
        A variable is damaged or has values that are not finite, or the two stores hold different
        boxes.
    ConfigError
        A field is missing, a scalar is paired with a vector, or there is too little memory.
    """
    run, warned = run or Run(), list[str]()
    run = replace(run, listener=noting(run.listener, warned))
    out = absolute(out)
    request = request_spectra(
        fields, field, run, cross=cross, cross_fields=cross_fields, compensate=compensate
    )
    inputs = [store.url for store in request.stores]
    check_output(out, run.existing, inputs)
    for store, names in request.variables():
        check_contents(store, names, run)
    config = run.settings.resolved("spectra")
    asked = {
        "fields": [one.name for one in request.fields],
        "compensate": compensate,
        "windows": [one.scheme for one in request.fields],
    }
    stores = dict(zip(("fields", "cross_fields"), request.stores, strict=False))
    flows = {role: identify_flows(store, request.reads(store)) for role, store in stores.items()}
    provenance = make_provenance(
        "spectra",
        {**config, **asked},
        {
            **{role: store.digest for role, store in stores.items()},
            **{f"{role} {name}": found for role in flows for name, found in flows[role].items()},
        },
        sources={role: store.url for role, store in stores.items()},
        notes=[
            *input_notes(stores),
            *examine(request.stores_of_flows(), run.listener),
            *warned,
        ],
    )

    def check_inputs() -> None:
        for role, store in stores.items():
            store.check_unchanged()
            check_flows(store, flows[role])

    def describe(sums: Sequence[PowerSum]) -> xr.Dataset:
        return describe_spectra(
            sums,
            [(one.name, one.unit) for one in request.fields],
            request.stores[0].metadata,
            attributes=_attributes(request),
            averaged=request.config.subbox is not None,
        )

    plan = plan_spectra(request, run)
    if is_netcdf(out):
        if run.existing == "resume" and exists(out):
            # A netCDF file is written whole, so there is nothing to resume.
            check_output(out, "error", inputs)
        dataset = describe(measure(request, plan, run))
        check_inputs()
        # Checked again, as a large box takes hours and the output may have appeared meanwhile.
        check_output(out, run.existing, inputs)
        write_netcdf(dataset, out, provenance)
    else:
        # Too little memory is refused before anything is written.
        start_engine(run, plan, remedy=plan.remedy)
        with claiming(out, run) as claim:
            if begin_spectra(out, provenance, run.existing):
                run.listener(Message(f"{out} is already measured"))
                return read_spectra(out)
            dataset = describe(measure(request, plan, run, claim.check))
            claim.check()
            check_inputs()
            write_spectra(dataset, out, provenance)
    run.listener(StageFinished("spectra", {"out": out}))
    return dataset.assign_attrs({STATUS: COMPLETE})


def measure(
    request: Request,
    plan: SpectraPlan | BoxesPlan,
    run: Run,
    check: Callable[[], None] = lambda: None,
) -> Sequence[PowerSum]:
    """Return the sums of the box, or of each of its sub-boxes; ``check`` may end the run."""
    if isinstance(plan, BoxesPlan):
        return sum_boxes(request, plan, run, check)
    bins = request.bins(request.grid.cells, request.grid.box_size)
    return sum_power(request.sources, [request.products(bins)], plan, run, check=check)


def _attributes(request: Request) -> dict[str, object]:
    first, last = request.fields[0], request.fields[-1]
    paired = sorted({one.name for one in request.fields if len(one.sources) > 1})
    smoothing = [one.smoothing for one in request.fields if one.smoothing is not None]
    schemes = {one.scheme or "none" for one in request.fields}
    windows = [f"{one.name}: {one.scheme or 'none'}" for one in request.fields]
    window = ", ".join(schemes if len(schemes) == 1 else windows)
    axes = [painting_of(store).redshift_space for store in request.stores]
    spaces = {"redshift_space": ", ".join(axis or "none" for axis in axes)} if any(axes) else {}
    return {
        **spaces,
        "field": first.name,
        "cross": last.name,
        "interlaced": ", ".join(paired) or "none",
        "window": f"{window} divided out",
        "smoothing": smoothing,
    }
