"""Open particles of any supported format by URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.metadata import check_zarr_format
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.snapshots.abacus import open_abacus
from cosmoflow.storage.snapshots.arrays import open_npz
from cosmoflow.storage.snapshots.asdf_files import MAGIC as ASDF_MAGIC
from cosmoflow.storage.snapshots.bigfiles import (
    BIGFILE_MARK,
    is_bigfile,
    is_catalogue,
    open_bigfile,
)
from cosmoflow.storage.snapshots.catalogues import check_no_table
from cosmoflow.storage.snapshots.files import SourceFile, base_name, find_files, open_file
from cosmoflow.storage.snapshots.gadget import open_gadget
from cosmoflow.storage.snapshots.gadget_binary import byte_order, open_gadget_binary
from cosmoflow.storage.snapshots.parts import gather_files, several_snapshots
from cosmoflow.storage.snapshots.source import ParticleSource, Snapshot
from cosmoflow.storage.urls import absolute, has_file, open_group

_ZARR_GROUP: Final = "zarr.json"
_PROBES: Final = 8
_PROBE_ROWS: Final = 256
# If a sample of the whole snapshot spans less of the box, the unit of length is wrong.
_LEAST_EXTENT: Final = 0.02

Probed = TypeVar("Probed", ParticleStore, Snapshot)
_Opener = Callable[[str, Sequence[SourceFile], SnapshotHints], Snapshot]


def open_particles(url: str, hints: SnapshotHints | None = None) -> ParticleSource:
    """Open particles: our particle store or a snapshot of another code.

    Parameters
    ----------
    url : str
        A file, a folder, a glob, one part of a set of files or their common name; local or in
        a bucket.
    hints : SnapshotHints, optional
        Particles to read, and values that the header lacks. Not for our own store.

    Returns
    -------
    ParticleSource
        Opened particles; only headers and a small sample have been read.

    Raises
    ------
    DataError
        It is not a snapshot, is damaged, lacks a part, or holds no particles of the chosen types.
    StorageError
        The URL does not exist or cannot be reached.
    ConfigError
        A hint or an optional library is needed.
    """
    source = _open(url, hints)
    if isinstance(source, ParticleStore):
        return source if source.own else _probed(source)
    if source.refusal is not None:
        raise source.refusal
    return _probed(source)


def _open(url: str, hints: SnapshotHints | None) -> ParticleSource:
    """Open particles from their headers; see :func:`open_particles`."""
    # Workers have other working folders, and the parts' URLs are derived from this one.
    url = absolute(url)
    if has_file(url, _ZARR_GROUP):
        if hints is not None and hints != SnapshotHints():
            raise ConfigError(
                "hints are for snapshots of other codes, and this is a zarr store", where=url
            )
        return ParticleStore(url)
    if has_file(url, ".zgroup"):
        check_zarr_format(open_group(url), url)
    hints = hints or SnapshotHints()
    if is_bigfile(url):
        return open_bigfile(url, hints)
    files = find_files(url)
    inside = [
        file.url.removesuffix(BIGFILE_MARK) for file in files if file.url.endswith(BIGFILE_MARK)
    ]
    if inside:
        return open_bigfile(_only_bigfile(url, inside), hints)
    opener, chosen = _choose(url, files)
    return opener(url, chosen, hints)


def describe_snapshot(url: str, hints: SnapshotHints | None = None) -> dict[str, Any]:
    """Return a summary of a snapshot as plain data, for display and JSON.

    Returns
    -------
    dict
        ``kind``, ``format``, ``files``, ``bytes``, ``counts`` of each particle type, ``particles``
        that would be read, ``box_size`` (Mpc/h), ``redshift``, ``cosmology``, ``particle_mass``
        (M_sun/h), ``conventions`` of the units and velocities, ``notes`` on assumptions; and
        ``refused``, the error of :func:`open_particles`, if the masses contradict box and
        cosmology.

    Raises
    ------
    DataError, StorageError, ConfigError
        As :func:`open_particles`, except for the masses.
    """
    source = _open(url, hints)
    if not isinstance(source, Snapshot):
        raise DataError("this is a particle store, not a snapshot of another code", where=url)
    return (source if source.refusal is not None else _probed(source)).describe()


def _only_bigfile(url: str, found: Sequence[str]) -> str:
    """Return the only bigfile snapshot in a folder; halo catalogues beside it are ignored."""
    snapshots = [one for one in found if not is_catalogue(one)] or list(found)
    if len(snapshots) > 1:
        raise several_snapshots(url, snapshots)
    return snapshots[0]


def _choose(url: str, files: Sequence[SourceFile]) -> tuple[_Opener, list[SourceFile]]:
    """Return the opener of the files, and the files that hold particles."""
    check_no_table(files)
    openers = {file: opener for file in files if (opener := _recognise(file)) is not None}
    if not openers:
        raise DataError(
            "this is not a snapshot that cosmoflow reads",
            where=url,
            value=", ".join(file.name for file in files[:4]) + (" ..." if files[4:] else ""),
            limit="HDF5 of Gadget, AREPO or SWIFT, Gadget's binary, bigfile, Abacus ASDF, npz, or "
            "a particle store",
            remedy="name the files of one snapshot, or write position, velocity, box_size, "
            "redshift, h and Omega_m with numpy.savez to a name that ends in .npz",
        )
    opener = openers[next(iter(openers))]
    chosen = [file for file, one in openers.items() if one is opener]
    others = sorted({base_name(file.name) for file, one in openers.items() if one is not opener})
    if others:
        raise DataError(
            "there are snapshots of several formats",
            where=url,
            value=", ".join([base_name(chosen[0].name), *others[:3]]),
            remedy="name one of them",
        )
    return opener, chosen


def _recognise(file: SourceFile) -> _Opener | None:
    """Return the opener of a file from its first bytes, or None."""
    if file.size < 8:
        return None
    with open_file(file.url) as stream:
        start = stream.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return _open_hdf5
    if start.startswith(ASDF_MAGIC):
        return open_abacus
    if start.startswith(b"PK\x03\x04") and file.name.endswith(".npz"):
        return open_npz
    return open_gadget_binary if byte_order(start) else None


def _open_hdf5(url: str, files: Sequence[SourceFile], hints: SnapshotHints) -> Snapshot:
    # HDF5 is slow to import, and our own store does not need it.
    from cosmoflow.storage.snapshots.hdf5 import Hdf5Reader, inspect_file
    from cosmoflow.storage.snapshots.swift import is_swift, open_swift

    facts = gather_files(url, files, inspect_file)
    if is_swift(facts[0]):
        return open_swift(url, facts, hints)
    form = "Gadget-4 HDF5" if "Git_commit" in facts[0].header else "Gadget HDF5"
    return open_gadget(url, facts, hints, Hdf5Reader(), form)


def _probed(snapshot: Probed) -> Probed:
    """Read a small sample, to find a wrong unit or a damaged column before the work starts."""
    rows = min(_PROBE_ROWS, snapshot.count)
    starts = np.linspace(0, snapshot.count - rows, _PROBES, dtype=np.int64)
    sample = np.concatenate(
        [snapshot.read(int(start), int(start) + rows).position for start in starts]
    )
    # The box is periodic, and its origin may be its centre: measure the extent by the widest gap.
    ordered = np.sort(sample, axis=0) / snapshot.metadata.box_size
    gaps = np.diff(ordered, axis=0, append=ordered[:1] + 1.0).max(axis=0)
    extent = 1.0 - float(gaps.min())
    if extent < _LEAST_EXTENT and snapshot.count > _PROBE_ROWS:
        raise DataError(
            "the particles fill only a corner of the box",
            where=snapshot.url,
            value=f"{extent:.2g} of its side, in a sample of {len(sample)}",
            limit=f"{_LEAST_EXTENT:g} at least",
            remedy="box and positions have different units: give the hint length_unit or box_size "
            "(--set snapshot.box_size=500, in Mpc/h)"
            if isinstance(snapshot, Snapshot)
            else "correct the positions or the attribute box_size: both are in Mpc/h",
        )
    return snapshot
