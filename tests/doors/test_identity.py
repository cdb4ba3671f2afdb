"""What is taken to be the same input: content of stores, files and rows of snapshots."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.stages.paint import paint
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.identity import checksum_array
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.snapshots import describe_snapshot, open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.doors.changes import GRID, PAINT, correct, write_npz

# Snapshots


def write_set(path, box):
    return files.write_gadget_set(path, box, 2)


def write_bigfile(path, box):
    """Write a bigfile as its text says, without its library."""
    header = files.gadget_bigfile_header(
        box, 1e-3, files.KPC, UsePeculiarVelocity=np.array([1], "i4"), RSDFactor=np.array([1.0])
    )
    (path / "Header").mkdir(parents=True, exist_ok=True)
    lines = [f"{key} {v.dtype.str} {v.size} {v.tobytes().hex()} #" for key, v in header.items()]
    (path / "Header" / "attr-v2").write_text("\n".join(lines) + "\n")
    (path / "Header" / "header").write_text("DTYPE: <i8\nNMEMB: 0\nNFILE: 0\n")
    for name, values in (("Position", box.position / 1e-3), ("Velocity", box.velocity)):
        block = path / "1" / name
        block.mkdir(parents=True, exist_ok=True)
        cuts = {"000000": values[:1000], "000001": values[1000:], "000002": values[:0]}
        for file, rows in cuts.items():
            if len(rows):
                (block / file).write_bytes(rows.astype("<f4").tobytes())
        rows = "".join(f"{file}: {len(rows)} : 0\n" for file, rows in cuts.items())
        (block / "header").write_text(f"DTYPE: <f4\nNMEMB: 3\nNFILE: {len(cuts)}\n{rows}")
    return str(path)


FORMATS = {
    "snap.hdf5": files.write_gadget_hdf5,
    "set": write_set,
    "swift.hdf5": files.write_swift,
    "binary": files.write_gadget_binary,
    "abacus": files.write_abacus,
    "PART_003": write_bigfile,
}


@pytest.fixture(scope="module")
def zeldovich():
    return files.zeldovich_box(16)


def keep_times(path, times=None):
    """Return the times of change of a file or of all in a folder, or set them back."""
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    if times is None:
        return {one: (one.stat().st_size, one.stat().st_mtime_ns) for one in found}
    for one in found:
        os.utime(one, ns=(times[one][1], times[one][1]))
    return None


@each("name", FORMATS)
def test_rows_of_every_format_count(tmp_path, zeldovich, name):
    """Files of the same places, sizes and times of change, with other rows, are another input."""
    path, write = tmp_path / name, FORMATS[name]
    url = write(path, zeldovich) or str(path)
    times = keep_times(path)
    before = open_particles(str(url)).digest
    assert describe_snapshot(str(url))["digest"] == before
    found = {before}
    for column in ("position", "velocity"):
        values = np.roll(getattr(zeldovich, column), 1, axis=0)
        write(path, replace(zeldovich, **{column: values}))
        keep_times(path, times)
        assert keep_times(path) == times
        found.add(open_particles(str(url)).digest)
    assert len(found) == 3
    write(path, zeldovich)
    keep_times(path, times)
    assert open_particles(str(url)).digest == before


@each("save", [np.savez, np.savez_compressed])
def test_rows_of_npz_count(tmp_path, save):
    snapshot, digests = tmp_path / "snap.npz", set()
    for seed in (1, 2):
        write_npz(snapshot, seed, 100.0, save)
        os.utime(snapshot, ns=(10**18, 10**18))
        digests.add(open_particles(str(snapshot)).digest)
        assert open_particles(str(snapshot)).digest in digests
    assert len(digests) == 2


def test_place_and_time_of_change_count_unless_all_bytes_are_hashed(tmp_path):
    """A byte that no sample reads, changed with the time set back, is found by ``full_hash``."""
    box = files.zeldovich_box(18)
    path = Path(files.write_gadget_binary(tmp_path / "snap", box) or tmp_path / "snap")
    whole = SnapshotHints(full_hash=True)
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy2(path, tmp_path / "moved" / "snap"))

    def identities(hints=None):
        return [open_particles(str(one), hints).digest for one in (path, moved)]

    first, second = identities()
    assert first != second
    same, also = identities(whole)
    assert same == also
    stat = path.stat()
    os.utime(path, ns=(1, 1))
    assert identities()[0] != first
    assert identities(whole)[0] == same
    content = bytearray(path.read_bytes())
    # The positions come first: row 300 of 5832, of which 16 times 256 are sampled.
    content[256 + 8 + 4 + 300 * 12] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert identities()[0] == first
    assert identities(whole)[0] != same


# Stores


def test_a_store_is_what_it_holds(fields_store, tmp_path):
    made = fields_store(GRID, shard=4, chunk=2)
    before = FieldStore(made.url).digest
    copy = shutil.copytree(made.url, tmp_path / "copy.zarr")
    assert FieldStore(str(copy)).digest == before
    zarr.open_group(copy, mode="r+").attrs["provenance"] = {}
    assert FieldStore(str(copy)).digest == before
    seen = {before}
    for change in (
        lambda group: group.attrs.update(redshift=0.5),
        lambda group: group.attrs.update(box_size=25.0),
        lambda group: group.attrs.update(cosmology={"h": 0.7, "Omega_m": 0.3}),
        lambda group: group["density"].attrs.update(long_name="mass"),
        lambda group: group["x"].__setitem__(0, 0.5),
        lambda group: correct(copy),
        lambda group: correct(copy, "velocity"),
    ):
        change(zarr.open_group(copy, mode="r+"))
        digest = FieldStore(str(copy)).digest
        assert digest not in seen
        seen.add(digest)


def test_a_particle_store_is_what_it_holds(particle_store, tmp_path):
    made = particle_store(6, mass=True)
    before = ParticleStore(made.url).digest
    copy = str(shutil.copytree(made.url, tmp_path / "copy.zarr"))
    assert ParticleStore(copy).digest == before
    for name in ("position", "velocity", "mass"):
        shutil.rmtree(copy)
        shutil.copytree(made.url, copy)
        values = zarr.open_group(copy, mode="r+")[name]
        values[3] = values[3] * 0.5
        assert ParticleStore(copy).digest != before


@each(
    "layout",
    [
        {"chunks": (4, 4, 4), "zarr_format": 2},
        {"chunks": (4, 4, 4), "compressors": None},
        {"chunks": (4, 4, 4)},
        {"chunks": (4, 4, 4), "compressors": zarr.codecs.Crc32cCodec()},
        {"chunks": (4, 4, 4), "shards": (8, 8, 8)},
        {"chunks": (4, 4, 4), "shards": (8, 8, 8), "compressors": zarr.codecs.Crc32cCodec()},
    ],
    ids=["v2", "plain", "zstd", "crc", "shards", "shards-crc"],
)
def test_arrays_of_every_layout(tmp_path, layout):
    values = np.random.default_rng(0).random((8, 8, 8)).astype("f4")

    def checksum(name):
        group = zarr.open_group(tmp_path / name, mode="r")
        return checksum_array(str(tmp_path / name), "density", group["density"])

    for name in ("one", "two"):
        group = zarr.create_group(tmp_path / name, zarr_format=layout.get("zarr_format", 3))
        own = {key: value for key, value in layout.items() if key != "zarr_format"}
        group.create_array("density", data=values, **own)
    assert checksum("one") == checksum("two")
    zarr.open_group(tmp_path / "two", mode="r+")["density"][7, 7, 7] = 2.0
    assert checksum("one") != checksum("two")
    zarr.open_group(tmp_path / "two", mode="r+")["density"][7, 7, 7] = values[7, 7, 7]
    assert checksum("one") == checksum("two")


def test_the_same_particles_elsewhere_give_the_same_output(particle_store, tmp_path, serial_run):
    made = particle_store(6)
    copy = str(shutil.copytree(made.url, tmp_path / "copy.zarr"))
    found = []
    for index, url in enumerate((made.url, copy)):
        out = str(tmp_path / f"{index}.zarr")
        paint(url, out, serial_run(**PAINT))
        found.append(FieldStore(out))
    one, other = (store.metadata.provenance for store in found)
    assert one["digest"] == other["digest"]
    assert found[0].digest == found[1].digest
