"""Power spectra of stored fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from cosmoflow.config.settings import SpectraConfig
from cosmoflow.errors import ConfigError
from cosmoflow.events import StageFinished, caution, noting
from cosmoflow.numerics.spectra import PowerSum, Products, WaveBins
from cosmoflow.stages.flows import check_flows, identify_flows
from cosmoflow.stages.inputs.density import check_contents
from cosmoflow.stages.inputs.empty_cells import examine, rests_on_fill
from cosmoflow.stages.inputs.lineage import relate
from cosmoflow.stages.inputs.notes import input_notes
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.inputs.readers import check_same_box
from cosmoflow.stages.run import Plan, Run, claiming, start_engine
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Source, Variable
from cosmoflow.stages.spectra.boxes import plan_boxes, sum_boxes
from cosmoflow.stages.spectra.fields import ChosenField, choose_field
from cosmoflow.stages.spectra.plan import plan_power
from cosmoflow.stages.spectra.power import sum_power
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import COMPLETE, STATUS, make_provenance
from cosmoflow.storage.outputs import check_output
from cosmoflow.storage.spectra import (
    begin_spectra,
    describe_spectra,
    is_netcdf,
    write_netcdf,
    write_spectra,
)
from cosmoflow.storage.urls import absolute, exists


@dataclass(frozen=True)
class Request:
    """What was asked for, once it is known to be there.

    Parameters
    ----------
    stores : tuple of FieldStore
        Of the field, and of the one that it is crossed with if that lies elsewhere.
    fields : tuple of ChosenField
        One, or two to be crossed.
    config : SpectraConfig
        The bins, and the boxes.
    """

    stores: tuple[FieldStore, ...]
    fields: tuple[ChosenField, ...]
    config: SpectraConfig

    @property
    def grid(self) -> Grid:
        """The box."""
        return Grid.of(self.stores[0])

    @property
    def sources(self) -> list[Source]:
        """What is transformed, each once."""
        return list(dict.fromkeys(source for field in self.fields for source in field.sources))

    def reads(self, store: FieldStore) -> set[str]:
        """Return the stored variables that are transformed as they are."""
        found = (source for source in self.sources if isinstance(source, Variable))
        return {source.name for source in found if source.url == store.url}

    def variables(self) -> list[tuple[FieldStore, tuple[str, ...]]]:
        """Return the stores, and all variables that are read of each."""
        stores = (self.stores[0], self.stores[-1])
        return [(store, one.reads) for store, one in zip(stores, self.fields, strict=False)]

    def stores_of_flows(self) -> list[FieldStore]:
        """Return the stores whose velocity in empty cells has a part in the spectra."""
        own = (self.stores[0], self.stores[-1])
        named = zip(own, self.fields, strict=False)
        return list(dict.fromkeys(store for store, one in named if rests_on_fill(one.name)))

    def products(self, bins: WaveBins) -> Products:
        """Return what is summed."""
        place = {source: index for index, source in enumerate(self.sources)}
        terms = tuple(
            replace(field.term, transforms=tuple(place[source] for source in field.sources))
            for field in self.fields
        )
        pairs = ((0, 0),) if len(terms) == 1 else ((0, 0), (1, 1), (0, 1))
        axis = self.config.multipoles
        return Products(terms, pairs, bins, None if axis is None else "xyz".index(axis))

    def bins(self, cells: int, size: float) -> WaveBins:
        """Return the bins of a cube."""
        if self.config.bins == "linear":
            return WaveBins.linear(cells, size)
        return WaveBins.logarithmic(cells, size, self.config.per_decade)


def request_spectra(
    fields: str,
    field: str,
    run: Run,
    *,
    cross: str | None = None,
    cross_fields: str | None = None,
    compensate: str = "auto",
) -> Request:
    """Open the stores and find the fields.

    Raises
    ------
    ConfigError
        A field is not there, or a scalar was paired with a vector.
    DataError
        The stores hold different boxes.
    """
    # Workers open the stores too, in working folders of their own.
    first = FieldStore(absolute(fields))
    stores = [first]
    chosen = [choose_field(first, field, compensate)]
    if cross_fields is not None:
        stores.append(FieldStore(absolute(cross_fields)))
        check_same_box(*stores)
        if relate(*stores) == "other":
            caution(
                run.listener,
                f"{stores[0].url} and {stores[1].url} were made from different particles: their "
                "cross spectrum is that of two boxes",
            )
    if cross is not None or cross_fields is not None:
        chosen.append(choose_field(stores[-1], cross or field, compensate))
        if chosen[0].components != chosen[1].components:
            raise ConfigError(
                "a scalar, a vector and eigenvalues have no cross spectra", where="--cross",
                value=" and ".join(one.name for one in chosen),
            )  # fmt: skip
    config = run.settings.spectra
    for one in chosen:
        if config.subbox is not None and one.term.derive is not None:
            raise ConfigError(
                f"{one.name} takes spectral derivatives, and a sub-box is not periodic",
                where="spectra.subbox", value=one.name,
                remedy=f"store it first: cosmoflow derive FIELDS OUT --field {one.name}",
            )  # fmt: skip
    return Request(tuple(stores), tuple(chosen), config)


def plan_spectra(request: Request, run: Run) -> Plan:
    """Say what :func:`spectra` would do."""
    if request.config.subbox is not None:
        return plan_boxes(request, run)
    plan, _ = plan_power(request.sources, request.grid, run, stage="spectra")
    bins = request.bins(request.grid.cells, request.grid.box_size)
    names = [field.name for field in request.fields]
    return replace(
        plan,
        written=8 * bins.count * 8,
        entries={**plan.details, "bins": bins.count, "fields": names},  # type: ignore[call-arg]
    )


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

    The box may be larger than memory: it is transformed in slabs that tasks hand to each other,
    on Ray where one process is too small. Where a store has the second grid of an interlaced pair,
    its spectrum is that of the pair.

    Parameters
    ----------
    fields : str
        URL of a fields store.
    out : str
        URL of the result: zarr, or netCDF when a local name ends in ``.nc``.
    field, cross : str
        Variables, or what follows from density and velocity where the store has no such variable:
        ``speed``, ``momentum_speed`` (``|v| delta``), ``theta_p`` (``|curl(rho v)|`` by
        differences), ``divergence``, ``vorticity``, ``momentum_curl`` (spectral). Of a vector the
        sum over components is taken, of ``linear_velocity`` the first smoothing scale, which the
        attributes name.
    cross_fields : str, optional
        URL of another store of the same box, in which ``cross`` is looked for (the same name as
        ``field``, if none is given).
    compensate : {"auto", "none"}
        Whether to divide painted fields by the window of the mass assignment: by
        ``sinc^p(k_i h / 2)`` along each axis, p = 1, 2, 3, 4 for NGP, CIC, TSC, PCS.
    run : Run, optional
        Settings (section ``spectra``), engine, what to do with an existing output, progress.

    Returns
    -------
    xr.Dataset
        ``power`` in field units squared times (Mpc/h)^3 and ``modes`` over ``k`` in h/Mpc; for two
        fields ``power`` is the cross power, and ``power_first``, ``power_second``, ``transfer`` and
        ``correlation`` stand beside it; with multipoles ``power`` has a dimension ``pole``; of
        sub-boxes there are ``power_error`` and ``box_power``. Bins are one fundamental mode wide,
        edges on its half-integers, unless settings say otherwise.

    Raises
    ------
    DataError
        A variable is damaged or holds values that are not finite; two stores hold unlike boxes.
    ConfigError
        A field is not there; a scalar was paired with a vector; there is too little memory.
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
    asked = {"fields": [one.name for one in request.fields], "compensate": compensate}
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
            *(note for role, one in stores.items() for note in input_notes(role, one.metadata)),
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

    if is_netcdf(out):
        if run.existing == "resume" and exists(out):
            # One file is there whole or not at all.
            check_output(out, "error", inputs)
        dataset = describe(measure(request, run))
        check_inputs()
        # Somebody may have put something there meanwhile: that took hours of a large box.
        check_output(out, run.existing, inputs)
        write_netcdf(dataset, out, provenance)
    else:
        # Refused for lack of memory before anything is made.
        require_plan(request, run)
        with claiming(out, run) as claim:
            begin_spectra(out, provenance, run.existing)
            dataset = describe(measure(request, run, claim.check))
            claim.check()
            check_inputs()
            write_spectra(dataset, out, provenance)
    run.listener(StageFinished("spectra", {"out": out}))
    return dataset.assign_attrs({STATUS: COMPLETE})


def require_plan(request: Request, run: Run) -> None:
    """Refuse a request whose workers would need more memory than they may have."""
    plan = plan_spectra(request, run)
    start_engine(run, plan, remedy="thinner slabs are not possible: more memory for a worker")


def measure(
    request: Request, run: Run, check: Callable[[], None] = lambda: None
) -> Sequence[PowerSum]:
    """Return the sums of the box, or of each of its sub-boxes; ``check`` may end the run."""
    if request.config.subbox is not None:
        return sum_boxes(request, run, check)
    grid = request.grid
    products = request.products(request.bins(grid.cells, grid.box_size))
    return sum_power(request.sources, [products], grid, run, check=check)


def _attributes(request: Request) -> dict[str, object]:
    first, last = request.fields[0], request.fields[-1]
    paired = sorted({one.name for one in request.fields if len(one.sources) > 1})
    smoothing = [one.smoothing for one in request.fields if one.smoothing is not None]
    axes = [painting_of(store).redshift_space for store in request.stores]
    spaces = {"redshift_space": ", ".join(axis or "none" for axis in axes)} if any(axes) else {}
    return {
        **spaces,
        "field": first.name,
        "cross": last.name,
        "interlaced": ", ".join(paired) or "none",
        "window": f"{first.scheme} divided out" if first.scheme else "none divided out",
        "smoothing": smoothing,
    }
