"""Snapshots that are damaged, incomplete or in doubt: one clear error, never wrong particles."""

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from cosmoflow.errors import ConfigError, DataError, StorageError
from cosmoflow.storage.snapshots import SnapshotHints, open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(16)


@pytest.fixture
def single(tmp_path, box):
    return write_single(tmp_path, box)


def write_single(folder, box):
    return files.write_gadget_hdf5(folder / "snapshot_003.hdf5", box)


@pytest.fixture
def parts(tmp_path, box):
    return files.write_gadget_set(tmp_path / "snapdir", box, 3)


def read(url, hints=None):
    source = open_particles(str(url), hints)
    return source.read(0, source.count)


def edit(url, key, value, name="Header"):
    with h5py.File(url, "r+") as file:
        file[name].attrs[key] = value


def cut(url, share=0.5):
    content = Path(url).read_bytes()
    Path(url).write_bytes(content[: int(len(content) * share)])


def test_nothing_there(tmp_path):
    refused(StorageError, 4, lambda: read(tmp_path / "absent.hdf5"), "absent.hdf5")
    refused(StorageError, 4, lambda: read(tmp_path / "snap_*.hdf5"), "snap_*")
    refused(StorageError, 4, lambda: read(tmp_path), "no such file")


def test_no_snapshot(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    refused(DataError, 3, lambda: read(tmp_path / "notes.txt"), "not a snapshot", "notes.txt")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["temperature"] = np.arange(5)
    refused(DataError, 3, lambda: read(tmp_path / "other.hdf5"), "no group Header")
    with h5py.File(tmp_path / "halos.hdf5", "w") as file:
        file.create_group("Header")
    refused(DataError, 3, lambda: read(tmp_path / "halos.hdf5"), "does not count particles")
    np.savez(tmp_path / "other.npz", density=np.ones((4, 4)))
    refused(DataError, 3, lambda: read(tmp_path / "other.npz"), "position")


@each("share", [0.1, 0.6, 0.99])
def test_truncated_hdf5(tmp_path, box, share):
    single = write_single(tmp_path, box)
    cut(single, share)
    refused(DataError, 3, lambda: read(single), "truncated", single)


def test_truncated_part(parts):
    damaged = parts.replace(".0.", ".2.")
    cut(damaged)
    refused(DataError, 3, lambda: read(parts), "truncated", damaged)


@each("share", [0.01, 0.3, 0.6, 0.999])
@each("labels", [False, True])
def test_truncated_gadget_binary(tmp_path, box, labels, share):
    url = files.write_gadget_binary(tmp_path / "snap_004", box, labels=labels)
    cut(url, share)
    refused(DataError, 3, lambda: read(url), "truncated")


@each("save", [np.savez, np.savez_compressed])
@each("share", [0.3, 0.9])
def test_truncated_npz(tmp_path, box, save, share):
    save(tmp_path / "box.npz", **files.npz_arrays(box))
    cut(tmp_path / "box.npz", share)
    refused(DataError, 3, lambda: read(tmp_path / "box.npz"), "truncated")


def test_damaged_compressed_chunk(tmp_path, box):
    url = files.write_gadget_hdf5(
        tmp_path / "snap.hdf5", box, options={"compression": "gzip", "chunks": (256, 3)}
    )
    with h5py.File(url) as file:
        chunk = file["PartType1/Coordinates"].id.get_chunk_info(1)
    content = bytearray(Path(url).read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 50] = bytes(50)
    Path(url).write_bytes(content)
    refused(DataError, 3, lambda: read(url), "damaged", "snap.hdf5")


def test_chunks_that_were_never_written(tmp_path, single, box):
    with h5py.File(single, "r+") as file:
        del file["PartType1/Velocities"]
        column = file["PartType1"].create_dataset(
            "Velocities", (box.count, 3), "f4", chunks=(256, 3)
        )
        column[:512] = 1.0
    refused(DataError, 3, lambda: read(single), "never written", "Velocities")


def test_missing_part(parts):
    missing = parts.replace(".0.", ".1.")
    Path(missing).unlink()
    for url in (parts, str(Path(parts).parent), parts.replace(".0.", ".*.")):
        refused(DataError, 3, lambda url=url: read(url), "missing", missing)


def test_missing_or_short_file_of_a_bigfile(tmp_path, box):
    pytest.importorskip("bigfile")
    header = files.gadget_bigfile_header(
        box, 1.0, files.MPC, UsePeculiarVelocity=np.array([1], "i4")
    )
    url = files.write_bigfile(tmp_path / "fastpm", box, header=header)
    data = Path(url, "1", "Velocity", "000001")
    cut(data, 0.9)
    refused(DataError, 3, lambda: read(url), "truncated", str(data))
    data.unlink()
    refused(DataError, 3, lambda: read(url), "missing", str(data))
    shutil.rmtree(data.parent)
    refused(StorageError, 4, lambda: read(url), "Velocity")


def test_bigfile_of_unknown_velocities(tmp_path, box):
    pytest.importorskip("bigfile")
    header = files.gadget_bigfile_header(
        box, 1.0, files.MPC, UsePeculiarVelocity=np.array([0], "i4")
    )
    url = files.write_bigfile(tmp_path / "PART_000", box, header=header)
    refused(DataError, 3, lambda: read(url), "UsePeculiarVelocity 0", "hint velocity")
    assert len(read(url, SnapshotHints(velocity="peculiar")).velocity) == box.count


def test_missing_slab_or_half_of_abacus(tmp_path, box):
    pytest.importorskip("asdf")
    url = files.write_abacus(tmp_path / "z", box)
    slab = tmp_path / "z" / "halo_rv_A" / "halo_rv_A_001.asdf"
    kept = slab.read_bytes()
    cut(slab)
    refused(DataError, 3, lambda: read(url), "truncated", str(slab))
    slab.unlink()
    refused(DataError, 3, lambda: read(url), "missing", str(slab))
    # Without the field the halos are no fair sample of matter.
    slab.write_bytes(kept)
    shutil.rmtree(tmp_path / "z" / "field_rv_A")
    refused(DataError, 3, lambda: read(slab), "missing", "field_rv_A_000.asdf")


def test_last_slabs_of_abacus_missing(tmp_path, box):
    pytest.importorskip("asdf")
    url = files.write_abacus(tmp_path / "z", box)
    for kind in ("field", "halo"):
        (tmp_path / "z" / f"{kind}_rv_A" / f"{kind}_rv_A_001.asdf").unlink()
    refused(DataError, 3, lambda: read(url), "particles of the subsample")


def test_time_slices_and_light_cones_of_abacus(tmp_path, box):
    asdf = pytest.importorskip("asdf")
    header = {"BoxSize": 500.0, "H0": 67.0, "Omega_M": 0.32, "Redshift": 1.0}
    tree = {"data": {"pack9": np.zeros((5, 9), np.uint8)}, "header": header}
    asdf.AsdfFile(tree).write_to(tmp_path / "slab.asdf")
    refused(DataError, 3, lambda: read(tmp_path / "slab.asdf"), "pack9", "abacusutils")
    tree = {
        "data": {"rvint": files.pack_rvint(box)},
        "header": {**header, "OutputType": "LightCone"},
    }
    asdf.AsdfFile(tree).write_to(tmp_path / "cone.asdf")
    refused(DataError, 3, lambda: read(tmp_path / "cone.asdf"), "light cone")


def test_counts_that_do_not_add_up(parts, single, box):
    edit(parts, "NumPart_Total", np.array([0, box.count + 5, 0, 0, 0, 0], np.uint32))
    for index in (1, 2):
        edit(parts.replace(".0.", f".{index}."), "NumPart_Total",
             np.array([0, box.count + 5, 0, 0, 0, 0], np.uint32))  # fmt: skip
    refused(DataError, 3, lambda: read(parts), str(box.count), str(box.count + 5))
    edit(single, "NumPart_Total_HighWord", np.array([0, 2, 0, 0, 0, 0], np.uint32))
    # 2^33 particles more than there are: the high words count.
    refused(DataError, 3, lambda: read(single), str(box.count + 2**33))
    edit(single, "NumPart_ThisFile", np.array([0, 7, 0, 0, 0, 0], np.int32))
    refused(DataError, 3, lambda: read(single), "number of particles", "differs from its header")


@each(
    ("key", "value"),
    [("BoxSize", 500.0), ("Redshift", 0.5), ("MassTable", np.zeros(6)), ("HubbleParam", 0.7)],
)
def test_parts_of_unlike_snapshots_or_units(tmp_path, box, key, value):
    parts = files.write_gadget_set(tmp_path / "snapdir", box, 3)
    other = parts.replace(".0.", ".2.")
    edit(other, key, value)
    refused(DataError, 3, lambda: read(parts), "do not agree", other, key)


def test_parts_with_columns_in_unlike_units(tmp_path, box):
    first = files.write_gadget_set(tmp_path, box, 2, columns=files.TNG_COLUMNS)
    other = first.replace(".0.", ".1.")
    edit(other, "a_scaling", 0.0, "PartType1/Velocities")
    refused(DataError, 3, lambda: read(first), "different units", other, "a_scaling")


def test_several_snapshots_in_a_folder(tmp_path, box):
    for index in (3, 4):
        files.write_gadget_hdf5(tmp_path / f"snap_00{index}.hdf5", box)
    refused(DataError, 3, lambda: read(tmp_path), "several snapshots", "snap_003", "snap_004")
    # Numbers that look like parts of one set.
    for name in ("a_0.5.hdf5", "a_0.6.hdf5"):
        files.write_gadget_hdf5(tmp_path / name, box)
    refused(DataError, 3, lambda: read(tmp_path / "a_*.hdf5"), "several snapshots", "a_0.6")
    for folder in ("one", "two"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        files.write_gadget_hdf5(tmp_path / "runs" / folder / "snap.hdf5", box)
    both = "one/snap.hdf5, two/snap.hdf5"
    refused(DataError, 3, lambda: read(tmp_path / "runs"), "several snapshots", both)
    np.savez(tmp_path / "box.npz", **files.npz_arrays(box))
    refused(DataError, 3, lambda: read(tmp_path), "several formats")


@each("value", [np.nan, np.inf])
@each("column", ["Coordinates", "Velocities"])
def test_numbers_that_are_none(tmp_path, box, value, column):
    single = write_single(tmp_path, box)
    with h5py.File(single, "r+") as file:
        file["PartType1"][column][1234, 1] = value
    word = "outside" if column == "Coordinates" and np.isinf(value) else "not finite"
    refused(DataError, 3, lambda: read(single), word, single)


@each("value", [-1.0, 500_001.0])
def test_outside_the_box(tmp_path, box, value):
    single = write_single(tmp_path, box)
    with h5py.File(single, "r+") as file:
        file["PartType1/Coordinates"][1234, 1] = value
    refused(DataError, 3, lambda: read(single), "outside the box", "hint wrap", single)
    wrapped = read(single, SnapshotHints(wrap=True)).position[1234, 1]
    assert wrapped == pytest.approx(value / 1e3 % box.size)


def test_rounding_at_the_edge_is_wrapped(single, box):
    with h5py.File(single, "r+") as file:
        file["PartType1/Coordinates"][:4, 0] = [500_000.0, 500_000.03, -0.03, 499_999.9]
    x = read(single).position[:4, 0]
    assert x[0] == 0.0
    assert x[1] == pytest.approx(3e-5, rel=0.1)
    assert (x[2:] > 499.99).all()
    assert (x < np.float32(box.size)).all()


def test_no_particles_of_the_wanted_type(single):
    hints = SnapshotHints(particle_types=(4,))
    refused(
        DataError, 3, lambda: read(single, hints), "no particles of the chosen type", "PartType1"
    )


def test_length_unit_that_the_masses_contradict(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box, UnitLength_in_cm=files.MPC)
    refused(DataError, 3, lambda: read(url), "mean density", "length_unit=kpc/h")
    assert open_particles(url, SnapshotHints(length_unit="kpc/h")).metadata.box_size == 500.0


def test_length_unit_that_nobody_knows(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box, MassTable=np.zeros(6))
    refused(ConfigError, 2, lambda: read(url), "unit of length", "length_unit")
    source = open_particles(url, SnapshotHints(length_unit="kpc/h"))
    assert source.metadata.box_size == 500.0
    assert any("same" in note for note in source.metadata.provenance["notes"])


def test_box_in_another_unit_than_the_positions(tmp_path, box):
    np.savez(tmp_path / "box.npz", **files.npz_arrays(box, box_size=55.0 * box.size))
    refused(DataError, 3, lambda: read(tmp_path / "box.npz"), "corner of the box", "length_unit")


@each("name", ["HubbleParam", "Omega0"])
def test_header_without_cosmology(tmp_path, box, name):
    single = write_single(tmp_path, box)
    edit(single, name, 0.0)
    key = {"HubbleParam": "h", "Omega0": "Omega_m"}[name]
    refused(ConfigError, 2, lambda: read(single), f"does not say {key}", f"hint {key}")
    value = {"h": files.H, "Omega_m": files.OMEGA_M}[key]
    source = open_particles(single, SnapshotHints(**{key: value}))
    assert getattr(source.metadata.cosmology, key) == value


def test_time_that_is_no_scale_factor(single):
    edit(single, "Time", 3.7)
    refused(DataError, 3, lambda: read(single), "Time", "comoving integration")


def test_missing_filter_names_the_command(tmp_path, box, monkeypatch):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box, options={"compression": "gzip"})
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    refused(ConfigError, 2, lambda: read(url), "not installed", "pip install 'cosmoflow[readers]'")


def test_npz_of_objects_or_columns(tmp_path, box):
    np.savez(tmp_path / "objects.npz", position=np.array([{}, {}]), velocity=np.zeros((2, 3)))
    refused(DataError, 3, lambda: read(tmp_path / "objects.npz"), "Python objects")
    np.savez(tmp_path / "f.npz", **files.npz_arrays(box, velocity=np.asfortranarray(box.velocity)))
    refused(DataError, 3, lambda: read(tmp_path / "f.npz"), "column by column")
    content = files.npz_arrays(box)
    del content["box_size"]
    np.savez(tmp_path / "nobox.npz", **content)
    refused(ConfigError, 2, lambda: read(tmp_path / "nobox.npz"), "box_size")
    assert len(read(tmp_path / "nobox.npz", SnapshotHints(box_size=500.0)).position) == box.count
