"""Validated requests for power spectra."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cosmoflow.config.settings import SpectraConfig
from cosmoflow.errors import ConfigError
from cosmoflow.events import caution
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.spectra import Products, WaveBins
from cosmoflow.stages.inputs.lineage import relate
from cosmoflow.stages.inputs.readers import check_same_box
from cosmoflow.stages.run import Run
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Source, Variable
from cosmoflow.stages.spectra.fields import ChosenField, choose_field
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import absolute


@dataclass(frozen=True)
class Request:
    """A validated request, whose fields exist.

    Parameters
    ----------
    stores : tuple of FieldStore
        Store of the field, and store of the second field if that is another one.
    fields : tuple of ChosenField
        One field, or two for a cross spectrum.
    config : SpectraConfig
        Settings of bins and sub-boxes.
    """

    stores: tuple[FieldStore, ...]
    fields: tuple[ChosenField, ...]
    config: SpectraConfig

    @property
    def grid(self) -> Grid:
        """Grid of the box."""
        return Grid.of(self.stores[0])

    @property
    def sources(self) -> list[Source]:
        """The distinct fields to transform."""
        return list(dict.fromkeys(source for field in self.fields for source in field.sources))

    def reads(self, store: FieldStore) -> set[str]:
        """Return the stored variables that are transformed directly."""
        found = (source for source in self.sources if isinstance(source, Variable))
        return {source.name for source in found if source.url == store.url}

    def variables(self) -> list[tuple[FieldStore, tuple[str, ...]]]:
        """Return the stores, and all variables read from each."""
        stores = (self.stores[0], self.stores[-1])
        return [(store, one.reads) for store, one in zip(stores, self.fields, strict=False)]

    def stores_of_flows(self) -> list[FieldStore]:
        """Return the stores whose velocity in empty cells affects the spectra."""
        own = (self.stores[0], self.stores[-1])
        named = zip(own, self.fields, strict=False)
        return list(dict.fromkeys(store for store, one in named if FIELDS[one.name].filled))

    def products(self, bins: WaveBins) -> Products:
        """Return the products of modes to sum."""
        place = {source: index for index, source in enumerate(self.sources)}
        terms = tuple(
            replace(field.term, transforms=tuple(place[source] for source in field.sources))
            for field in self.fields
        )
        pairs = ((0, 0),) if len(terms) == 1 else ((0, 0), (1, 1), (0, 1))
        axis = self.config.multipoles
        return Products(terms, pairs, bins, None if axis is None else "xyz".index(axis))

    def bins(self, cells: int, size: float) -> WaveBins:
        """Return the bins of k for a cube."""
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
        A field is missing, or a scalar is paired with a vector.
    DataError
        The stores hold different boxes.
    """
    # Workers also open the stores, from other working folders.
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
                "cross spectrum is between two different boxes",
            )
    if cross is not None or cross_fields is not None:
        chosen.append(choose_field(stores[-1], cross or field, compensate))
        if chosen[0].components != chosen[1].components:
            raise ConfigError(
                "a scalar, a vector and eigenvalues have no cross spectra",
                where="--cross",
                value=" and ".join(one.name for one in chosen),
            )
    config = run.settings.spectra
    for one in chosen:
        if config.subbox is not None and one.term.derive is not None:
            raise ConfigError(
                f"{one.name} takes spectral derivatives, and a sub-box is not periodic",
                where="spectra.subbox",
                value=one.name,
                remedy=f"store it first: cosmoflow derive FIELDS OUT --field {one.name}",
            )
    return Request(tuple(stores), tuple(chosen), config)
