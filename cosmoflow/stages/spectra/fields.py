"""Fields whose spectra are measured: stored variables, and fields computed from them."""

from __future__ import annotations

from dataclasses import dataclass

from cosmoflow.errors import ConfigError, suggest
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.quantities import QUANTITIES
from cosmoflow.numerics.spectra import WINDOWS, Term
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.inputs.readers import StoreReader
from cosmoflow.stages.slabs.sources import Derived, Source, Variable
from cosmoflow.storage.fields import FieldStore
from cosmoflow.units import INTERLACED

MADE = ("speed", "momentum_speed", "theta_p", "divergence", "vorticity", "momentum_curl")
"""Fields that :func:`choose_field` computes from the density and velocity of a store."""


@dataclass(frozen=True)
class ChosenField:
    """A field to measure.

    Parameters
    ----------
    name : str
        Name of the field.
    unit : str
        Unit of the field.
    components : int
        Numbers per cell: 1 for a scalar, 3 for a vector.
    sources : tuple of Source
        Fields to transform; two for an interlaced pair.
    term : Term
        Combination of the transforms, by their place in ``sources``.
    scheme : str, optional
        Mass assignment whose window is divided out.
    smoothing : float, optional
        Gaussian radius of the stored smoothing, Mpc/h.
    reads : tuple of str
        Variables that are read.
    """

    name: str
    unit: str
    components: int
    sources: tuple[Source, ...]
    term: Term
    scheme: str | None = None
    smoothing: float | None = None
    reads: tuple[str, ...] = ()


def choose_field(store: FieldStore, name: str, compensate: str) -> ChosenField:
    """Choose a variable of a store, or a field computed from its density and velocity.

    Parameters
    ----------
    store : FieldStore
        Fields store.
    name : str
        A variable; or one of :data:`MADE` if the store has no variable of that name.
    compensate : {"auto", "none"}
        Whether to divide painted fields by the window of the mass assignment.

    Raises
    ------
    ConfigError
        The store has neither this field nor the variables to compute it.
    """
    if name in store.variables:
        return _stored(store, name, compensate)
    if name not in MADE:
        raise ConfigError(
            "the fields store has no such field, and it cannot be computed from others",
            where=store.url,
            value=name,
            limit=f"stored: {', '.join(store.variables)}; computed from density and velocity: "
            f"{', '.join(MADE)}",
            remedy=suggest(name, [*store.variables, *MADE]),
        )
    quantity = QUANTITIES[name]
    reads = QUANTITIES[quantity.field].reads
    lacking = [read for read in reads if read not in store.variables]
    if lacking:
        raise ConfigError(
            f"{name} is computed from {' and '.join(reads)}",
            where=store.url,
            value=f"it has {', '.join(store.variables)}",
            remedy=f"a store with {' and '.join(lacking)}",
        )
    source = Derived(StoreReader.of(store), store.cell_size, (quantity.field,))
    return _choose(store, name, compensate, (source,), reads)


def _stored(store: FieldStore, name: str, compensate: str) -> ChosenField:
    offset = 1.0 if name == "density" else 0.0
    index, radius = store.first_scale() if name == "linear_velocity" else (None, None)
    lead = () if index is None else (index,)
    names = tuple(one for one in (name, INTERLACED + name) if one in store.variables)
    parts = FIELDS[name].parts
    sources = tuple(Variable(store.url, one, parts, lead, offset) for one in names)
    return _choose(store, name, compensate, sources, names, radius)


def _choose(
    store: FieldStore,
    name: str,
    compensate: str,
    sources: tuple[Source, ...],
    reads: tuple[str, ...],
    smoothing: float | None = None,
) -> ChosenField:
    row = FIELDS[name]
    scheme = painting_of(store).scheme if compensate == "auto" and row.linear else None
    derive = None if name in store.variables else QUANTITIES[name].derive
    window = WINDOWS[scheme] if scheme is not None else 0
    term = Term(tuple(range(len(sources))), derive, window)
    return ChosenField(name, row.unit, row.parts, sources, term, scheme, smoothing, reads)
