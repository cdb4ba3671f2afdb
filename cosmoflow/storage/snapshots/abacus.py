"""AbacusSummit's subsamples of particles (ASDF): packed ``rvint``, or unpacked ``pos`` and ``vel``.

Positions are relative to the centre of the box, -L/2 to L/2. They are wrapped into [0, L), which
keeps coordinates up to a period.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import DataError
from cosmoflow.storage.places import split_name
from cosmoflow.storage.snapshots.asdf_files import AsdfArray, read_tree
from cosmoflow.storage.snapshots.building import build_snapshot, resolve_cosmology, resolve_redshift
from cosmoflow.storage.snapshots.catalogues import check_no_catalogue
from cosmoflow.storage.snapshots.conventions import (
    VELOCITY_POWER,
    Conversion,
    first_of,
    hinted_length,
    number_of,
)
from cosmoflow.storage.snapshots.expansion import read_expansion
from cosmoflow.storage.snapshots.facts import SnapshotFacts
from cosmoflow.storage.snapshots.files import SourceFile, list_files
from cosmoflow.storage.snapshots.source import Part, Snapshot

_PACKED_BITS: Final = 12
_PACKED_STEPS: Final = 1e6
"""Steps of packed positions per box size."""
_PACKED_ZERO: Final = 2048
_PACKED_SPEED: Final = 6000.0 / _PACKED_ZERO
"""km/s per step of a packed velocity."""

_SLAB: Final = re.compile(r"^(field|halo)_rv_([AB])_(\d+)\.asdf$")
_FOLDER: Final = re.compile(r"^(field|halo)_rv_[AB]$")


@dataclass(frozen=True, slots=True)
class AbacusReader:
    """Reads rows of the columns of each file; the format has no individual masses."""

    columns: Mapping[str, Mapping[str, AsdfArray]]

    def read(self, part: Part, start: int, stop: int, columns: Sequence[str]) -> list[NDArray[Any]]:
        """Return columns of the particles ``start`` to ``stop`` of a file, in its units."""
        arrays = self.columns[part.file]
        if "rvint" in arrays:
            packed = arrays["rvint"].read(start, stop)
            # The shift keeps the sign: positions are relative to the centre.
            position = packed >> _PACKED_BITS
            return [position, (packed & ((1 << _PACKED_BITS) - 1)) - _PACKED_ZERO]
        return [arrays["pos"].read(start, stop), arrays["vel"].read(start, stop)]


def open_abacus(url: str, found: Sequence[SourceFile], hints: SnapshotHints) -> Snapshot:
    """Open Abacus's files as a snapshot.

    Raises
    ------
    DataError
        A slab is missing, a file is damaged, or a file holds no particles of a box.
    """
    files, letters = _whole_sample(url, found)
    notes: list[str] = []
    columns: dict[str, dict[str, AsdfArray]] = {}
    header: dict[str, Any] = {}
    for file in files:
        tree, arrays = read_tree(file)
        said = tree.get("header")
        if not isinstance(said, dict):
            raise DataError("the file has no header", where=file.url, limit="a section 'header'")
        columns[file.url] = _check_columns(file, arrays)
        _check_header(file, said, header or said)
        header = header or said
    packed = "rvint" in columns[files[0].url]
    stated = _cosmology(header)
    cosmology = resolve_cosmology(url, stated, hints, notes)
    redshift = resolve_redshift(url, _number(header, "Redshift"), hints, notes)
    # BoxSize alone may be in Mpc.
    box_size = hints.box_size or first_of(header, "BoxSizeHMpc", "BoxSize")
    if box_size is None:
        raise DataError("the header does not say the size of the box", where=url, limit="BoxSize")
    length = hinted_length(hints, cosmology.h) or 1.0
    convention = hints.velocity or "peculiar"
    counts = {file.url: next(iter(columns[file.url].values())).shape[0] for file in files}
    share = _check_share(url, header, letters, sum(counts.values()), notes)
    mass = first_of(header, "ParticleMassHMsun")
    return build_snapshot(
        SnapshotFacts(
            url=url,
            format="Abacus ASDF",
            files=files,
            box_size=box_size,
            redshift=redshift,
            cosmology=cosmology,
            parts=[Part(file.url, "data", counts[file.url], mass) for file in files],
            reader=AbacusReader(columns),
            conversion=Conversion(
                box_size / _PACKED_STEPS if packed else length,
                (1.0 + redshift) ** -VELOCITY_POWER[convention]
                * (_PACKED_SPEED if packed else 1.0),
                lower=-0.5 * box_size,
                wrap=hints.wrap,
            ),
            counts={"particles": sum(counts.values())},
            conventions={
                "length": "packed: millionths of the box" if packed else f"{length:g} Mpc/h",
                "length_from": "format, from the centre of the box",
                "velocity": convention,
            },
            header={key: value for key, value in header.items() if isinstance(value, int | float)},
            notes=notes,
            fraction=share,
            said=stated,
        ),
        hints,
    )


def _whole_sample(url: str, found: Sequence[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Return all files of the subsamples that the found files belong to, and the samples' letters.

    Particles in halos and in the field are in separate files; neither alone is a fair sample of
    matter.
    """
    slabs = [(file, match) for file in found if (match := _SLAB.match(file.name))]
    if not slabs:
        return list(found), []
    letters = sorted({match[2] for _, match in slabs})
    folder = split_name(slabs[0][0].url)[0]
    if _FOLDER.match(split_name(folder)[1]):
        folder = split_name(folder)[0]
    every = {
        (match[2], match[1], int(match[3])): file
        for file in list_files(folder, deep=True)
        if (match := _SLAB.match(file.name)) and match[2] in letters
    }
    last = max(index for _, _, index in every)
    wanted = [
        (letter, kind, index)
        for letter in letters
        for kind in ("field", "halo")
        for index in range(last + 1)
    ]
    missing = [key for key in wanted if key not in every]
    if missing:
        letter, kind, index = missing[0]
        raise DataError(
            "a part of the snapshot is missing",
            where=f"{folder}/{kind}_rv_{letter}/{kind}_rv_{letter}_{index:03d}.asdf",
            value=f"{len(wanted) - len(missing)} files",
            limit=f"{len(wanted)} files: field and halo particles of every slab",
            remedy="copy the missing ones",
        )
    return [every[key] for key in wanted], letters


def _check_columns(file: SourceFile, arrays: Mapping[str, AsdfArray]) -> dict[str, AsdfArray]:
    """Return the columns to read."""
    if "rvint" in arrays:
        used, kinds = {"rvint": arrays["rvint"]}, "i"
    elif "pos" in arrays and "vel" in arrays:
        used, kinds = {"pos": arrays["pos"], "vel": arrays["vel"]}, "f"
    else:
        check_no_catalogue(file.url, arrays)
        raise DataError(
            "the file holds no particles that can be read",
            where=file.url,
            value=", ".join(arrays) or "nothing",
            limit="rvint, or pos and vel",
            remedy="unpack pack9 time slices with abacusutils and store pos and vel",
        )
    rows = {array.shape[0] for array in used.values()}
    for name, array in used.items():
        if array.shape[1:] != (3,) or len(rows) > 1 or array.dtype[1] != kinds:
            raise DataError(
                "a column has the wrong shape or type",
                where=f"{file.url}, {name}",
                value=f"{array.shape} {array.dtype}",
                limit="(n, 3), integers when packed",
            )
    return used


def _check_header(file: SourceFile, header: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Refuse light cones and files of another run or epoch."""
    if header.get("OutputType") == "LightCone":
        raise DataError(
            "a light cone is not a snapshot", where=file.url, value="OutputType LightCone"
        )
    for key in ("BoxSize", "Redshift", "SimName", "H0", "Omega_M", "VelZSpace_to_kms"):
        if header.get(key) != first.get(key):
            raise DataError(
                "the parts of the snapshot do not agree",
                where=f"{file.url}, {key}",
                value=header.get(key),
                limit=first.get(key),
                remedy="they belong to different snapshots; copy them again",
            )


def _number(header: Mapping[str, Any], name: str) -> float | None:
    value = header.get(name)
    return float(value) if isinstance(value, int | float) else None


def _cosmology(header: Mapping[str, Any]) -> dict[str, float | str | None]:
    hubble, now = first_of(header, "H0"), first_of(header, "HubbleNow")
    h = None if hubble is None else hubble / 100.0
    said = read_expansion(header)
    neutrinos = header.get("omega_ncdm")
    if neutrinos is not None and h is not None:
        # A number, a list, or a string with one number per species.
        text = str(neutrinos).replace(",", " ").split()
        parts = neutrinos if isinstance(neutrinos, list) else text
        said["Omega_nu"] = sum(float(part) for part in parts) / h**2
    # HubbleNow is in units of H0; older versions write km/s/Mpc.
    old = now is not None and hubble is not None and now >= hubble
    return {
        **said,
        "h": h,
        "Omega_m": first_of(header, "Omega_M"),
        "E": now / hubble if old and now and hubble else now,
        "f": number_of(header, "f_growth"),
    }


def _check_share(
    url: str, header: Mapping[str, Any], letters: Sequence[str], count: int, notes: list[str]
) -> float:
    """Return the subsamples' share of all particles, and refuse missing particles."""
    total = first_of(header, "NP")
    shares = [first_of(header, f"ParticleSubsample{letter}") for letter in letters]
    if not shares or total is None:
        return 1.0
    share = sum(one or 0.0 for one in shares)
    expected = share * total
    # Particles are sampled at random: their number fluctuates.
    if abs(count - expected) > 0.01 * expected + 5.0 * math.sqrt(expected):
        raise DataError(
            "the files do not hold the particles of the subsample",
            where=url,
            value=count,
            limit=f"about {expected:.0f}: {share:g} of {total:.0f}",
            remedy="slabs are missing; copy them again",
        )
    notes.append("particle_mass is the mass of one particle of the subsample")
    return share
