"""Designs: tables of boxes that differ in cosmology, size or redshift."""

from __future__ import annotations

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.loading import revise_settings
from cosmoflow.config.settings import Settings
from cosmoflow.config.yaml_text import parse_yaml
from cosmoflow.errors import ConfigError
from cosmoflow.storage.initial import read_box_table

_OF_SIMULATE = ("box_size", "redshift")
"""Columns that are settings of the section ``simulate``; the others are of ``cosmology``."""


def expand_design(settings: Settings) -> list[Settings]:
    """Return the settings of each row of a design, or the settings alone if there is none.

    Raises
    ------
    ConfigError
        A column is unknown, or a value is out of range; the message names the row.
    StorageError, DataError
        The table cannot be read.
    """
    url = settings.simulate.design
    if url is None:
        return [settings]
    rows = read_box_table(url)
    known = (*CosmologyConfig.model_fields, *_OF_SIMULATE)
    if unknown := [name for name in rows[0] if name not in known]:
        raise ConfigError(
            "the design has an unknown column",
            where=url,
            value=", ".join(unknown),
            limit=", ".join(known),
        )
    found = []
    for number, row in enumerate(rows, 1):
        changes: dict[str, dict[str, object]] = {"cosmology": {}, "simulate": {}}
        for name, text in row.items():
            if name == "redshift":
                # Several redshifts of a box are separated by blanks.
                changes["simulate"][name] = tuple(text.split())
            else:
                section = "simulate" if name in _OF_SIMULATE else "cosmology"
                changes[section][name] = parse_yaml(text)
        try:
            found.append(revise_settings(settings, changes))
        except ConfigError as error:
            error.where = f"{url}, row {number}: {error.where}"
            raise
    return found
