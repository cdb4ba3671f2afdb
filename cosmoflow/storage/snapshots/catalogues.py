"""Detect halo catalogues, which are stored beside snapshots and look like them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.files import SourceFile, open_file

_GROUPS: Final = ("Group", "Subhalo", "FOF", "FOFGroups", "Groups", "Halos", "halos", "SO")
"""Tables of haloes: SUBFIND and AREPO, EAGLE, MP-Gadget, SWIFT's FOF and SOAP, Rockstar."""
_COUNTS: Final = (
    *("Ngroups_Total", "Ngroups_ThisFile", "Nsubgroups_Total", "Nhalos_Total", "NumGroup_Total"),
    *("NumFOFGroupsTotal", "NumPartInGroupTotal", "Num_of_groups", "NumSubhalos_Total"),
)
"""Attributes that count haloes."""
_COLUMNS: Final = ("npstartA", "x_com", "x_L2com")
"""Columns of Abacus's CompaSO catalogues."""


_TABLE_WORDS: Final = (b"mvir", b"m200", b"rvir", b"vmax")
"""Columns of the tables of Rockstar, AHF and consistent-trees."""


def has_catalogue_signs(names: Iterable[str], header: Mapping[str, Any]) -> list[str]:
    """Return the names and attributes that mark a halo catalogue; empty for snapshots."""
    names = list(names)
    signs = [name for name in names if name in _COLUMNS]
    signs += [name for name in header if name in _COUNTS]
    # A snapshot may keep groups beside its particles.
    if not any(name.startswith("PartType") for name in names):
        signs += [name for name in names if name in _GROUPS]
    elif "NumPart_ThisFile" in header:
        signs = []
    return [] if "TotNumPart" in header else signs


def check_no_table(files: Sequence[SourceFile]) -> None:
    """Refuse text tables of haloes, judged by the first file.

    Raises
    ------
    DataError
    """
    for file in files[:1]:
        with open_file(file.url) as stream:
            line = stream.readline(4096).lower()
        if line.startswith(b"#") and (found := [word for word in _TABLE_WORDS if word in line]):
            check_no_catalogue(file.url, [word.decode() for word in found])


def check_no_catalogue(
    url: str, names: Iterable[str], header: Mapping[str, Any] | None = None
) -> None:
    """Refuse a halo catalogue, by the groups or columns of a file and the attributes of its header.

    Raises
    ------
    DataError
    """
    names = list(names)
    signs = has_catalogue_signs(names, header or {})
    signs += [name for name in names if name.encode() in _TABLE_WORDS]
    if signs:
        raise DataError(
            "this is a halo catalogue, not a snapshot of particles",
            where=url,
            value=", ".join(signs[:4]),
            limit="positions and velocities of particles, as in PartType1",
            remedy="name the snapshot of the same epoch: it is often beside the catalogue "
            "(snapdir_... beside groups_..., PART_... beside PIG_...)",
        )
