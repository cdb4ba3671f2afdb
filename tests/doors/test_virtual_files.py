"""HDF5 files that point to others, or are open elsewhere: the right rows, or an error."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots import SnapshotHints, open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(8)


def read(url, **hints):
    source = open_particles(str(url), SnapshotHints(**hints))
    return source.read(0, source.count)


def same(particles, box, rows=slice(None)):
    apart = np.abs(particles.position - box.position[rows])
    assert np.minimum(apart, box.size - apart).max() < 1e-3
    np.testing.assert_allclose(particles.velocity, box.velocity[rows], atol=1e-2)


def write_pointer(path, box, make, *, count=None, columns=("Coordinates", "Velocities", "Masses")):
    """Write the header of a whole file, and columns that ``make`` maps: name, width to a layout."""
    count = count or box.count
    template = files.write_gadget_hdf5(Path(path).with_suffix(".template"), box)
    with h5py.File(template) as one, h5py.File(path, "w") as file:
        one.copy("Header", file)
        for name in ("NumPart_ThisFile", "NumPart_Total"):
            file["Header"].attrs[name] = np.array([0, count, 0, 0, 0, 0], np.uint32)
        file["Header"].attrs["MassTable"] = np.zeros(6)
        file["Header"].attrs["UnitLength_in_cm"] = files.KPC
        for name in columns:
            width = () if name == "Masses" else (3,)
            layout = h5py.VirtualLayout((count, *width), "f4")
            make(layout, f"PartType1/{name}", width)
            file.create_virtual_dataset(f"PartType1/{name}", layout)
    Path(template).unlink()
    return str(path)


@pytest.fixture
def halves(tmp_path, box):
    return write_halves(tmp_path, box)


def write_halves(folder, box):
    """Write two files of rows with masses, and the names that a pointer beside them gives them."""
    names = []
    for index, piece in enumerate(box.split(2)):
        names.append(f"rows.{index}.hdf5")
        files.write_gadget_hdf5(
            folder / names[-1], piece, files=2, total={1: box.count}, mass=0.0,
            UnitLength_in_cm=files.KPC,
            named={1: {"Masses": np.full(piece.count, box.mass, np.float32)}},
        )  # fmt: skip
    return names


def both(names, box):
    """Map two files one after the other."""
    counts = [piece.count for piece in box.split(2)]

    def make(layout, column, width):
        layout[: counts[0]] = h5py.VirtualSource(names[0], column, (counts[0], *width))
        layout[counts[0] :] = h5py.VirtualSource(names[1], column, (counts[1], *width))

    return make


def test_a_whole_pointer_is_its_parts(tmp_path, box, halves):
    url = write_pointer(tmp_path / "all.hdf5", box, both(halves, box))
    source = open_particles(url)
    same(source.read(0, source.count), box)
    assert {Path(part.file).name for part in source.parts} == set(halves)


@each("column", ["Coordinates", "Velocities", "Masses"])
def test_a_missing_source_of_any_column(tmp_path, box, column):
    halves = write_halves(tmp_path, box)
    whole = both(halves, box)

    def make(layout, name, width):
        names = [halves[0], "gone.hdf5"] if name.endswith(column) else halves
        both(names, box)(layout, name, width) if names != halves else whole(layout, name, width)

    url = write_pointer(tmp_path / "all.hdf5", box, make)
    refused(DataError, 3, lambda: read(url), "missing", "gone.hdf5", "all.hdf5")


@each("column", ["Coordinates", "Velocities", "Masses"])
def test_rows_without_a_source(tmp_path, box, column):
    halves = write_halves(tmp_path, box)
    first = box.split(2)[0].count

    def make(layout, name, width):
        if name.endswith(column):
            layout[:first] = h5py.VirtualSource(halves[0], name, (first, *width))
        else:
            both(halves, box)(layout, name, width)

    url = write_pointer(tmp_path / "all.hdf5", box, make)
    refused(DataError, 3, lambda: read(url), column, f"rows {first} to {box.count}")


def test_a_source_that_is_too_short(tmp_path, box, halves):
    url = write_pointer(tmp_path / "all.hdf5", box, both(halves, box))
    with h5py.File(tmp_path / halves[1], "r+") as file:
        short = file["PartType1/Velocities"][:-7]
        del file["PartType1/Velocities"]
        file["PartType1/Velocities"] = short
    refused(DataError, 3, lambda: read(url), "too short", halves[1], "Velocities")


def test_every_eighth_row_stays_every_eighth(tmp_path, box):
    files.write_gadget_hdf5(
        tmp_path / "full.hdf5", box, UnitLength_in_cm=files.KPC,
        named={1: {"Masses": np.full(box.count, 8.0 * box.mass, np.float32)}},
    )  # fmt: skip

    def make(layout, name, width):
        layout[:] = h5py.VirtualSource("full.hdf5", name, (box.count, *width))[3::8]

    url = write_pointer(tmp_path / "thin.hdf5", box, make, count=box.count // 8)
    source = open_particles(url)
    assert source.count == box.count // 8
    same(source.read(0, source.count), box, slice(3, None, 8))
    same(source.read(5, 20), box, slice(3 + 40, 3 + 160, 8))
    # Another full file is another snapshot, though the pointer is the same.
    (tmp_path / "full.hdf5").unlink()
    refused(DataError, 3, lambda: source.read(0, 10), "missing", "full.hdf5")


def test_source_in_the_same_file(tmp_path, box):
    def make(layout, name, width):
        layout[:] = h5py.VirtualSource(".", name.replace("PartType1", "raw"), (box.count, *width))

    url = write_pointer(tmp_path / "one.hdf5", box, make)
    with h5py.File(url, "r+") as file:
        file["raw/Coordinates"] = (box.position * 1e3).astype("f4")
        file["raw/Velocities"] = (box.velocity * files.A**-0.5).astype("f4")
        file["raw/Masses"] = np.full(box.count, box.mass, "f4")
    same(read(url), box)
    with h5py.File(url, "r+") as file:
        del file["raw/Velocities"]
    refused(DataError, 3, lambda: read(url), "lacks a column", "raw/Velocities")


def test_columns_in_files_of_their_own(tmp_path, box, halves):
    def make(layout, name, width):
        with h5py.File(tmp_path / f"{name.rsplit('/')[-1]}.h5", "w") as file:
            values = {"Coordinates": box.position * 1e3, "Velocities": box.velocity / files.A**0.5}
            file["x"] = values.get(name.rsplit("/")[-1], np.full(box.count, box.mass))
        layout[:] = h5py.VirtualSource(f"{name.rsplit('/')[-1]}.h5", "x", (box.count, *width))

    same(read(write_pointer(tmp_path / "columns.hdf5", box, make)), box)


@each("name", ["Header", "PartType1", "PartType1/Velocities"])
@each("link", [h5py.SoftLink("/nowhere"), h5py.ExternalLink("gone.h5", "/x")])
def test_a_link_that_leads_nowhere(tmp_path, box, name, link):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box)
    with h5py.File(url, "r+") as file:
        del file[name]
        file[name] = link
    refused(DataError, 3, lambda: read(url), "link", "leads nowhere", name, link.path)


def test_an_external_link_is_followed(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box)
    files.write_gadget_hdf5(tmp_path / "real.hdf5", box)
    with h5py.File(url, "r+") as file:
        del file["PartType1/Velocities"]
        file["PartType1/Velocities"] = h5py.ExternalLink("real.hdf5", "/PartType1/Velocities")
    same(read(url), box)


@each("locking", [None, True, False, "best-effort"])
def test_a_file_that_the_caller_reads_is_read(tmp_path, box, locking):
    halves = write_halves(tmp_path, box)
    url = write_pointer(tmp_path / "all.hdf5", box, both(halves, box))
    with (
        h5py.File(url, "r", locking=locking),
        h5py.File(tmp_path / halves[1], "r", locking=locking),
    ):
        same(read(url), box)


def test_a_file_that_the_caller_writes_is_open_not_damaged(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box)
    with h5py.File(url, "a"):
        refused(DataError, 3, lambda: read(url), "open for writing", "file.close()")
    same(read(url), box)


def test_a_file_that_another_program_writes(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box)
    code = (
        "import h5py, sys\n"
        "with h5py.File(sys.argv[1]) as a, h5py.File(sys.argv[2], 'w', libver='latest') as b:\n"
        "    [a.copy(name, b) for name in a]\n"
        "    b.flush(); print(flush=True); sys.stdin.read()\n"
    )
    busy = str(tmp_path / "busy.hdf5")
    with subprocess.Popen(
        [sys.executable, "-c", code, url, busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        writer.stdout.readline()
        refused(DataError, 3, lambda: read(busy), "open for writing", "h5clear")
        writer.stdin.close()
    same(read(busy), box)


def test_pointers_to_pointers(tmp_path, box):
    files.write_gadget_hdf5(
        tmp_path / "full.hdf5", box, UnitLength_in_cm=files.KPC,
        named={1: {"Masses": np.full(box.count, 8.0 * box.mass, np.float32)}},
    )  # fmt: skip

    def whole_of(target):
        def make(layout, name, width):
            layout[:] = h5py.VirtualSource(target, name, (box.count, *width))

        return make

    def eighth(layout, name, width):
        layout[:] = h5py.VirtualSource("near.hdf5", name, (box.count, *width))[::8]

    # An absolute name of a file that was moved means the one beside the pointer, as HDF5 has it.
    write_pointer(tmp_path / "near.hdf5", box, whole_of("/moved/full.hdf5"))
    thin = write_pointer(tmp_path / "thin.hdf5", box, eighth, count=box.count // 8)
    same(read(thin), box, slice(None, None, 8))
    content = (tmp_path / "full.hdf5").read_bytes()
    (tmp_path / "full.hdf5").write_bytes(content[: len(content) // 2])
    refused(DataError, 3, lambda: read(thin), "truncated", "full.hdf5")
    url = write_pointer(tmp_path / "loop.hdf5", box, whole_of("loop.hdf5"))
    refused(DataError, 3, lambda: read(url), "point to one another", "loop.hdf5")


def test_what_cannot_be_read_by_rows_is_refused(tmp_path, box, halves):
    def interleaved(layout, name, width):
        for first in (0, 1):
            source = h5py.VirtualSource("full.hdf5", name, (box.count, *width))
            layout[first::2] = source[first::2]

    url = write_pointer(tmp_path / "interleaved.hdf5", box, interleaved)
    refused(DataError, 3, lambda: read(url), "mapping", "not supported", "a step of 2 rows")
    url = files.write_gadget_hdf5(tmp_path / "raw.hdf5", box)
    with h5py.File(url, "r+") as file:
        del file["PartType1/Velocities"]
        file["PartType1"].create_dataset(
            "Velocities", (box.count, 3), "f4", external=[("raw.bin", 0, 12 * box.count)]
        )
    refused(DataError, 3, lambda: read(url), "raw files outside", "raw.bin")
