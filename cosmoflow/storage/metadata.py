"""Attributes of every store: its kind, its box, its provenance, and whether it is complete."""

from __future__ import annotations

import importlib.metadata
import json
import math
import numbers
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import zarr

from cosmoflow import __version__
from cosmoflow.config.base import digest
from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.errors import ConfigError, DataError, IncompleteError
from cosmoflow.storage.sampling import Sampling
from cosmoflow.units import LARGEST_BOX

FORMAT_VERSION = 1
STATUS = "status"
IDENTITY = "identity_version"
"""Key in a provenance; its presence says that the digests of the inputs depend on their data."""
_IDENTITY_VERSION = 1
SAMPLING = "sampling"
VELOCITY_RMS = "velocity_rms"
"""Attribute of fields whose velocities were summed: the 3-D rms velocity over cells, km/s."""
INCOMPLETE = "incomplete"
COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class BoxMetadata:
    """Metadata of the box of a store of particles or fields.

    Parameters
    ----------
    box_size : float
        Side of the box, Mpc/h.
    redshift : float
        Redshift of the snapshot.
    cosmology : CosmologyConfig
        Parameters of the simulation.
    particle_mass : float or None
        Mass of each particle, M_sun/h, if all are equal.
    provenance : dict
        See :func:`make_provenance`.
    unknown_expansion : str, optional
        Why the expansion and growth of the box differ from those of ``cosmology``; by default they
        do not.
    redshift_space : {"x", "y", "z"}, optional
        Axis along which velocities displaced the particles before they were painted.
    sampling : Sampling, optional
        Particles per cell of fields, and their empty cells. It is known when all shards are
        painted, and passed on to what is made from the fields.
    """

    box_size: float
    redshift: float
    cosmology: CosmologyConfig
    particle_mass: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    unknown_expansion: str | None = None
    redshift_space: str | None = None
    sampling: Sampling | None = None

    @property
    def scale_factor(self) -> float:
        """``a = 1 / (1 + z)``."""
        return 1.0 / (1.0 + self.redshift)

    def to_attributes(self, kind: str) -> dict[str, Any]:
        """Return the group attributes of a store of the given kind."""
        attributes: dict[str, Any] = {
            "format": f"cosmoflow/{kind}",
            "format_version": FORMAT_VERSION,
            "box_size": self.box_size,
            "redshift": self.redshift,
            "cosmology": self.cosmology.model_dump(mode="json"),
            "provenance": self.provenance,
        }
        optional = {
            "particle_mass": self.particle_mass,
            "unknown_expansion": self.unknown_expansion,
            "redshift_space": self.redshift_space,
            SAMPLING: None if self.sampling is None else self.sampling.to_attribute(),
        }
        # Optional attributes are written only if they are set.
        return attributes | {key: value for key, value in optional.items() if value is not None}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> BoxMetadata:
        """Read the attributes back.

        Raises
        ------
        DataError
            An attribute is missing or invalid.
        """
        attributes = plain_attributes(attributes)
        try:
            box_size, redshift = float(attributes["box_size"]), float(attributes["redshift"])
            check_box(box_size, redshift, where)
            _check_cosmology(attributes["cosmology"], where)
            mass, sampling = attributes.get("particle_mass"), attributes.get(SAMPLING)
            unknown, axis = attributes.get("unknown_expansion"), attributes.get("redshift_space")
            if axis not in (None, "x", "y", "z"):
                raise ValueError(f"redshift_space {axis!r} is not one of x, y, z")
            if mass is not None and not 0.0 < float(mass) < math.inf:
                raise ValueError(f"particle_mass {mass!r} is not a mass")
            return cls(
                box_size,
                redshift,
                CosmologyConfig.model_validate(attributes["cosmology"]),
                None if mass is None else float(mass),
                dict(attributes.get("provenance", {})),
                None if unknown is None else str(unknown),
                None if axis is None else str(axis),
                None if sampling is None else Sampling.from_attribute(sampling),
            )
        except KeyError as error:
            raise DataError(
                f"the store lacks the attribute {error}",
                where=where,
                remedy="set it on the group: format, format_version, box_size (Mpc/h), redshift "
                "and cosmology (h, Omega_m, Omega_b, sigma8, n_s) are needed",
            ) from None
        except (TypeError, ValueError) as error:
            raise DataError(
                "the store's attributes are invalid", where=where, value=str(error)
            ) from None


class Box(Protocol):
    """A box of fields on a cubic grid; a fields store is one."""

    @property
    def url(self) -> str:
        """URL of the box, for messages."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""

    @property
    def metadata(self) -> BoxMetadata:
        """Size, redshift and cosmology of the box."""


class StoredBox(Box, Protocol):
    """A box that is kept in shards; a fields store is one."""

    @property
    def shard(self) -> int:
        """Cells per axis of a shard."""

    @property
    def chunk(self) -> int:
        """Cells per axis of a chunk."""


def check_box(
    box_size: float, redshift: float, where: str | None, *, remedy: str | None = None
) -> None:
    """Refuse an impossible box size or redshift.

    Parameters
    ----------
    box_size : float
        Side of the box, Mpc/h.
    where : str or None
        Where the values are, for messages; None for the options ``--box`` and ``--redshift``.
    remedy : str, optional
        What to do about a side in another unit; by default to give it in Mpc/h.

    Raises
    ------
    DataError
        ConfigError instead for options that are out of range.
    """
    error = DataError if where else ConfigError
    places = [f"{where}, box_size", f"{where}, redshift"] if where else ["--box", "--redshift"]
    for place, number in zip(places, (box_size, redshift), strict=True):
        require_number(number, place)
    if not 0.0 < box_size <= LARGEST_BOX:
        converted = f"{box_size:g} kpc/h are {box_size / 1e3:g} Mpc/h: " * (box_size > 0.0)
        raise error(
            "the side of the box cannot be that in Mpc/h",
            where=places[0],
            value=f"{box_size:g}",
            limit=f"above 0 and at most {LARGEST_BOX:g} Mpc/h",
            remedy=f"{converted}{remedy or 'give the side in Mpc/h'}",
        )
    if not -1.0 < redshift < math.inf:
        raise error(
            "this is no redshift", where=places[1], value=f"{redshift:g}", limit="finite, above -1"
        )


def require_number(value: object, where: str) -> None:
    """Refuse a value that is not a real number.

    Raises
    ------
    DataError
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise DataError(
            "this is not one number",
            where=where,
            value=repr(value),
            limit="a number: no text, array or unit",
        )


def _check_cosmology(said: Any, where: str) -> None:
    """Refuse a cosmology without the parameters of the expansion."""
    missing = [name for name in ("h", "Omega_m") if not isinstance(said, dict) or name not in said]
    if missing:
        raise DataError(
            f"the cosmology of the store lacks {' and '.join(missing)}",
            where=f"{where}, cosmology",
            value=said,
            remedy="set it on the group: cosmology with h, Omega_m, Omega_b, sigma8, n_s",
        )


def note_rms(squares: int | None, grid: int, variables: Iterable[str]) -> dict[str, float]:
    """Return the attribute with the rms velocity; empty if no velocity was summed.

    Parameters
    ----------
    squares : int or None
        Sum of the squared velocities over all cells, (km/s)^2.
    grid : int
        Cells per axis.
    variables : iterable of str
        Fields of the store.
    """
    if squares is None or "velocity" not in variables:
        return {}
    return {VELOCITY_RMS: math.sqrt(squares / grid**3)}


def attributes_of(group: zarr.Group) -> dict[str, Any]:
    """Return the attributes of a group as plain data."""
    return plain_attributes(dict(group.attrs))


def flat_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes in a form for netCDF, with nested ones as JSON text."""
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in attributes.items()
    }


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`flat_attributes`, for datasets that were written by xarray."""
    plain = dict(attributes)
    for key, value in plain.items():
        if isinstance(value, str) and value[:1] in ("{", "["):
            with suppress(ValueError):
                plain[key] = json.loads(value)
    return plain


def check_group(group: zarr.Group, kind: str, where: str, *, unfinished: bool = False) -> None:
    """Refuse a group of another kind or format, or whose run did not finish.

    With ``unfinished``, a store that is not complete is allowed.

    Raises
    ------
    DataError, IncompleteError
    """
    found = group.attrs.get("format")
    if found != f"cosmoflow/{kind}":
        raise DataError(
            f"this is not a store of {kind}",
            where=where,
            value=f"format: {found}",
            limit=f"format: cosmoflow/{kind}",
            remedy=f"see `cosmoflow info {where}`",
        )
    check_zarr_format(group, where)
    version = group.attrs.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise DataError(
            "the store's format version is not one that this cosmoflow reads",
            where=where,
            value=repr(version),
            limit=f"an integer, 1 to {FORMAT_VERSION}",
            remedy="upgrade cosmoflow"
            if isinstance(version, int)
            else f"set the attribute format_version to {FORMAT_VERSION}, a number",
        )
    if not unfinished and group.attrs.get(STATUS, COMPLETE) != COMPLETE:
        raise IncompleteError(
            "the run that writes this store did not finish",
            where=where,
            value=f"{STATUS}: {group.attrs[STATUS]}",
            remedy="finish it: run the same command again with --resume",
        )


def check_zarr_format(group: zarr.Group, where: str) -> None:
    """Refuse a group of another zarr format.

    Raises
    ------
    DataError
    """
    if group.metadata.zarr_format != 3:
        raise DataError(
            "the store is of another zarr format than cosmoflow's",
            where=where,
            value=group.metadata.zarr_format,
            limit=3,
            remedy=f"write it again: xarray.open_zarr({where!r}, consolidated=False)"
            ".drop_encoding().to_zarr(NEW, zarr_format=3)",
        )


def make_provenance(
    stage: str,
    config: dict[str, Any],
    inputs: Mapping[str, str] | None = None,
    *,
    sources: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the provenance of an output.

    Parameters
    ----------
    stage : str
        Command that makes the output.
    config : dict
        Resolved settings that determine the content, including the seed.
    inputs : mapping of str to str, optional
        Role and digest of each input; see :mod:`cosmoflow.storage.identity`.
    sources : mapping of str to str, optional
        Role and URL of each input.
    notes : iterable of str
        Assumptions, omissions and warnings, one sentence each.
    facts : mapping of str to object, optional
        Anything else that the result depends on, such as the conventions of a snapshot.

    Notes
    -----
    ``digest`` depends only on ``stage``, ``config`` and ``inputs``. There is no time stamp, so that
    the same run makes the same bytes.
    """
    inputs = dict(inputs or {})
    versions = {"cosmoflow": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "zarr"):
        versions[name] = importlib.metadata.version(name)
    return {
        "stage": stage,
        "config": config,
        "digest": digest({"stage": stage, "config": config, "inputs": inputs}),
        IDENTITY: _IDENTITY_VERSION,
        "inputs": inputs,
        "sources": dict(sources or {}),
        "notes": list(dict.fromkeys(notes)),
        **(facts or {}),
        "versions": versions,
    }
