"""Whether predictions belong to the box that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cosmoflow.errors import DataError
from cosmoflow.events import Listener, Message, caution
from cosmoflow.stages.evaluate.inputs import Inputs
from cosmoflow.stages.inputs.lineage import relate
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.storage.fields import FieldStore

LEAST_CORRELATION: Final = 0.3
"""Correlation of true and predicted velocities below which they look like those of two boxes, whose
correlation is 0 but for chance."""


@dataclass
class Origins:
    """What is known of where predictions come from.

    Parameters
    ----------
    notes : list of str
        What the report keeps of it.
    unchecked : list of str
        Names of the predictions whose box is not known.
    """

    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check_origins(inputs: Inputs, listener: Listener, *, force: bool) -> Origins:
    """Refuse predictions that were made from another box than the truth.

    Parameters
    ----------
    inputs : Inputs
        The stores.
    listener : callable
        Hears of what could not be checked, and warnings.
    force : bool
        Compare predictions of other boxes all the same.

    Raises
    ------
    DataError
        One was made from other particles.
    """
    found = Origins()
    space = painting_of(inputs.true)
    if space.redshift_space is not None:
        caution(
            listener,
            f"the truth {inputs.true.url} was painted in {space.space}: its velocities lie where "
            "redshifts put the particles",
        )
    for name, store in inputs.found.items():
        relation = relate(inputs.true, store)
        if relation == "other":
            if not force:
                raise _refusal(inputs.true, store)
            caution(listener, f"{name} ({store.url}) was made from another box than the truth")
        elif relation == "unknown":
            note = f"that {name} ({store.url}) is of the truth's box could not be checked"
            found.notes.append(note)
            found.unchecked.append(name)
            listener(Message(note))
        painting = painting_of(store)
        if painting.redshift_space != space.redshift_space:
            caution(
                listener,
                f"{name} ({store.url}) is of a density in {painting.space}, the truth in "
                f"{space.space}",
            )
    return found


def _refusal(true: FieldStore, store: FieldStore) -> DataError:
    provenance = store.metadata.provenance
    inputs, sources = provenance.get("inputs", {}), provenance.get("sources", {})
    digest = inputs.get("fields", "unknown")
    source = sources.get("fields", "a fields store")
    return DataError(
        "the prediction was made from another box than the truth",
        where=store.url,
        value=f"made from {source}, digest {digest}",
        limit=f"{true.url}, digest {true.digest}, or fields painted from the same particles",
        remedy="name the truth of the same box; where the two are of one box all the same (files "
        "that were moved or read with other hints, particles that were sampled), "
        "--set evaluate.force=true",
    )


def check_agreement(
    residual: Mapping[str, Mapping[str, Any]], origins: Origins, listener: Listener
) -> None:
    """Warn of unchecked predictions that look like those of another box.

    Parameters
    ----------
    residual : mapping
        Of each method, its ``correlation`` with the truth.
    origins : Origins
        Which predictions could not be checked.
    listener : callable
        Hears of them.
    """
    for name in origins.unchecked:
        found = residual.get(name, {}).get("correlation")
        if found is not None and found < LEAST_CORRELATION:
            caution(
                listener,
                f"{name} and the truth look like different boxes: the correlation of their "
                f"velocities is {found:.2f}",
            )
