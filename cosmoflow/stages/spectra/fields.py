"""Which fields a spectrum is of: variables of stores, and what follows from those."""

from __future__ import annotations

from dataclasses import dataclass

from cosmoflow.errors import ConfigError
from cosmoflow.numerics.quantities import FIELDS, QUANTITIES
from cosmoflow.numerics.spectra import WINDOWS, Term
from cosmoflow.stages.inputs.readers import StoreReader, painted_scheme
from cosmoflow.stages.slabs.sources import Derived, Source, Variable
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.variables import count_parts
from cosmoflow.units import FIELD_UNITS, INTERLACED

PAINTED = frozenset({"density", "momentum"})
"""Variables that are linear in the particles: only these are convolved with the window."""

UNITS = {
    "speed": "km/s",
    "momentum_speed": "km/s",
    "theta_p": "km/s/(Mpc/h)",
    "divergence": "km/s/(Mpc/h)",
    "vorticity": "km/s/(Mpc/h)",
    "momentum_curl": "km/s/(Mpc/h)",
}
"""Of what follows from density and velocity, by the name that :func:`choose_field` takes."""

_QUANTITY = {
    "speed": "speed",
    "momentum_speed": "momentum",
    "theta_p": "theta_p",
    "divergence": "divergence",
    "vorticity": "vorticity",
    "momentum_curl": "momentum_curl_vector",
}


@dataclass(frozen=True)
class ChosenField:
    """A field to measure.

    Parameters
    ----------
    name : str
        What it is called.
    unit : str
        Its unit.
    components : int
        Numbers in each cell: 1 of a scalar, 3 of a vector.
    sources : tuple of Source
        What is transformed for it; two, of an interlaced pair.
    term : Term
        What is made of those, by their place in ``sources``.
    scheme : str, optional
        The mass assignment whose window is divided out.
    smoothing : float, optional
        Gaussian radius that it comes smoothed with, Mpc/h.
    reads : tuple of str
        The variables that are read for it.
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
    """Find a field of a store, or what makes it of the store's density and velocity.

    Parameters
    ----------
    store : FieldStore
        Where to look.
    name : str
        A variable; or one of :data:`UNITS` where the store has no variable of that name.
    compensate : {"auto", "none"}
        Whether to divide painted fields by the window of the mass assignment.

    Raises
    ------
    ConfigError
        Nothing of that name is there, nor what it could be made of.
    """
    if name in store.variables:
        return _stored(store, name, compensate)
    if name not in UNITS:
        raise ConfigError(
            "the fields store has no such field, and it is none that follows from others",
            where=store.url, value=name,
            limit=f"stored: {', '.join(store.variables)}; made of density and velocity: "
            f"{', '.join(UNITS)}",
        )  # fmt: skip
    quantity = QUANTITIES[_QUANTITY[name]]
    lacking = [read for read in FIELDS[quantity.field].reads if read not in store.variables]
    if lacking:
        raise ConfigError(
            f"{name} is made of {' and '.join(FIELDS[quantity.field].reads)}",
            where=store.url,
            value=f"it has {', '.join(store.variables)}",
            remedy=f"a store with {' and '.join(lacking)}",
        )
    source = Derived(StoreReader.of(store), store.cell_size, quantity.field)
    components = 3 if name in ("vorticity", "momentum_curl") else 1
    scheme = painted_scheme(store) if compensate == "auto" and quantity.linear else None
    term = Term((0,), quantity.derive, WINDOWS[scheme] if scheme is not None else 0)
    reads = tuple(FIELDS[quantity.field].reads)
    return ChosenField(name, UNITS[name], components, (source,), term, scheme, reads=reads)


def _stored(store: FieldStore, name: str, compensate: str) -> ChosenField:
    scheme = painted_scheme(store) if compensate == "auto" and name in PAINTED else None
    offset = 1.0 if name == "density" else 0.0
    lead = (0,) if name == "linear_velocity" else ()
    scales = store.smoothing_scales() if lead else []
    names = [one for one in (name, INTERLACED + name) if one in store.variables]
    sources = tuple(Variable(store.url, one, count_parts(name), lead, offset) for one in names)
    window = WINDOWS[scheme] if scheme is not None else 0
    term = Term(tuple(range(len(sources))), None, window)
    unit = FIELD_UNITS[name][0]
    smoothing = scales[0] if scales else None
    return ChosenField(
        name, unit, count_parts(name), sources, term, scheme, smoothing, tuple(names)
    )
