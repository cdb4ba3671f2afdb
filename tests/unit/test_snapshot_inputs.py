"""Where snapshots lie, which particles are read, and what hints and notes say."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cosmoflow.errors import ConfigError, DataError, StorageError
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.snapshots import SnapshotHints, describe_snapshot, open_particles
from cosmoflow.storage.snapshots.facts import FileFacts
from cosmoflow.storage.snapshots.files import SourceFile
from cosmoflow.storage.snapshots.parts import total_counts
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused
from tests.object_store import s3_bucket


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(16)


def whole(url, hints=None):
    source = open_particles(str(url), hints)
    return source.read(0, source.count)


def same(one, other):
    np.testing.assert_array_equal(one.position, other.position)
    np.testing.assert_array_equal(one.velocity, other.velocity)


def test_our_own_store_is_opened_unchanged(particle_store):
    made = particle_store()
    assert isinstance(open_particles(made.url), ParticleStore)
    refused(ConfigError, 2, lambda: open_particles(made.url, SnapshotHints(wrap=True)), "hints")
    refused(DataError, 3, lambda: describe_snapshot(made.url), "particle store")


def test_file_folder_glob_member_and_base_name_are_one(tmp_path, box, monkeypatch):
    folder = tmp_path / "snapdir_004"
    first = files.write_gadget_set(folder, box, 3)
    (folder / "README").write_text("Quijote, fiducial")
    expected = whole(first)
    digests = set()
    for url in (
        first, first.replace(".0.", ".2."), folder, f"{folder}/", f"{folder}/snap_004.*.hdf5",
        f"{folder}/snap_004", f"file://{folder}/snap_004.1.hdf5", f"file://{folder}",
    ):  # fmt: skip
        same(whole(url), expected)
        digests.add(open_particles(str(url)).digest)
    assert len(digests) == 1
    monkeypatch.chdir(folder)
    for url in ("snap_004.1.hdf5", "snap_004", "snap_004.?.hdf5", "."):
        same(whole(url), expected)
    # Another place is another input, unless all bytes are hashed; another size always is.
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_particles(str(moved)).digest not in digests
    whole_files = SnapshotHints(full_hash=True)
    digests.add(open_particles(str(folder), whole_files).digest)
    assert open_particles(str(moved), whole_files).digest in digests
    with (moved / "snap_004.1.hdf5").open("ab") as file:
        file.write(b"0")
    assert open_particles(str(moved), whole_files).digest not in digests


def test_ten_parts_come_in_the_order_of_their_numbers(tmp_path, box):
    files.write_gadget_set(tmp_path, box, 12)
    apart = np.abs(whole(tmp_path).position - box.position)
    assert np.minimum(apart, box.size - apart).max() < 1e-3


def test_only_the_files_of_a_range_are_opened(tmp_path, box):
    first = files.write_gadget_set(tmp_path, box, 3)
    source = open_particles(first)
    Path(first.replace(".0.", ".2.")).unlink()
    assert len(source.read(0, source.parts[0].count).position)
    refused(StorageError, 4, lambda: source.read(source.count - 1, source.count), ".2.hdf5")


def test_types_with_masses_of_their_own(tmp_path, box):
    url = files.write_gadget_hdf5(
        tmp_path / "snap.hdf5", box, types=(0, 1, 4), total=dict.fromkeys((0, 1, 4), box.count),
        mass=0.85 * box.mass,
        named={
            t: {"Masses": np.full(box.count, files.SHARES[t] * box.mass, np.float32)}
            for t in (0, 4)
        },
    )  # fmt: skip
    dark = open_particles(url)
    assert not dark.has_mass
    assert dark.metadata.particle_mass == pytest.approx(0.85e10 * box.mass)
    everything = open_particles(url, SnapshotHints(particle_types="all"))
    mass = everything.read(0, everything.count).mass.reshape(3, -1)
    np.testing.assert_allclose(mass[:, 0] / (1e10 * box.mass), [0.13, 0.85, 0.02], rtol=1e-6)
    stars = open_particles(url, SnapshotHints(particle_types=(4,)))
    assert stars.has_mass
    assert stars.metadata.particle_mass is None
    said = everything.describe()
    assert said["particles"] == 3 * box.count
    assert said["counts"] == dict.fromkeys(("PartType0", "PartType1", "PartType4"), box.count)


def test_tracers_without_positions_are_no_matter(tmp_path, box):
    url = files.write_gadget_hdf5(
        tmp_path / "snap.hdf5", box, NumPart_ThisFile=np.array([0, box.count, 0, 9, 0, 0]),
        NumPart_Total=np.array([0, box.count, 0, 9, 0, 0]),
    )  # fmt: skip
    assert open_particles(url, SnapshotHints(particle_types="all")).count == box.count
    hints = SnapshotHints(particle_types=(3,))
    refused(DataError, 3, lambda: open_particles(url, hints), "no positions", "PartType3")


def test_a_column_says_its_power_of_a(tmp_path, box):
    # As EAGLE names it; here peculiar velocities in a file of Gadget's kind.
    url = files.write_gadget_hdf5(
        tmp_path / "snap.hdf5", box, velocity_factor=1.0,
        columns={"Velocities": {"aexp-scale-exponent": 0.0}},
    )  # fmt: skip
    np.testing.assert_allclose(whole(url).velocity, box.velocity, atol=1e-3)


def test_a_source_works_in_another_working_folder(tmp_path, box, monkeypatch):
    files.write_gadget_set(tmp_path / "snapdir", box, 2)
    monkeypatch.chdir(tmp_path)
    source = open_particles("snapdir/snap_004")
    monkeypatch.chdir(tmp_path.parent)
    assert len(source.read(0, 10).position) == 10


def test_types_of_a_gadget_binary(tmp_path, box):
    gas, dark, stars = box.split(3)
    url = files.write_gadget_binary(tmp_path / "ics", box, types={0: gas, 1: dark, 4: stars})
    hints = {"length_unit": "kpc/h"}
    one = whole(url, SnapshotHints(particle_types=(4,), **hints))
    np.testing.assert_allclose(one.velocity, stars.velocity, atol=1e-3)
    np.testing.assert_allclose(one.mass, 0.02e10 * stars.mass, rtol=1e-6)
    assert len(whole(url, SnapshotHints(**hints)).position) == dark.count


def test_masses_that_nobody_knows_are_refused_among_others(tmp_path, box):
    url = files.write_gadget_hdf5(
        tmp_path / "snap.hdf5", box, types=(0, 1), total=dict.fromkeys((0, 1), box.count)
    )
    hints = SnapshotHints(particle_types="all")
    refused(DataError, 3, lambda: open_particles(url, hints), "masses", "PartType0")


def test_masses_of_npz(tmp_path, box):
    mass = np.random.default_rng(0).random(box.count)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "box.npz", **files.npz_arrays(box, mass=mass))
        np.testing.assert_array_equal(whole(tmp_path / "box.npz").mass, mass)


def test_notes_tell_what_was_assumed(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box, OmegaLambda=0.7)
    notes = " ".join(describe_snapshot(url)["notes"])
    for word in ("Omega_b is not in the header", "sigma8", "n_s", "Omega_Lambda is 0.7"):
        assert word in notes
    said = describe_snapshot(url, SnapshotHints(Omega_b=0.04, sigma8=0.8, n_s=0.97, h=0.7))
    assert said["cosmology"]["Omega_b"] == 0.04
    assert any("h is 0.7 by hint; the header says 0.67" in note for note in said["notes"])
    assert said["conventions"]["length_from"] == "mean density of the particles"
    assert said["conventions"]["velocity"] == "gadget: times sqrt(a)"


def test_high_words_of_the_counts():
    header = {"NumPart_Total": [0, 5, 0], "NumPart_Total_HighWord": [0, 2, 0]}
    facts = FileFacts(SourceFile("snap.hdf5", 1), {"Header": header})
    assert total_counts(facts) == [0, 5 + 2 * 2**32, 0]
    # Gadget-4 counts in 64 bits.
    wide = FileFacts(SourceFile("s", 1), {"Header": {"NumPart_Total": [0, 2**33 + 5, 0]}})
    assert total_counts(wide) == [0, 2**33 + 5, 0]


@pytest.fixture(scope="module")
def bucket():
    """Return a function that puts files into a bucket of a stand-in for S3, and its URL."""
    with s3_bucket("snapshots"):

        def put(folder):
            from obstore.store import from_url

            store = from_url("s3://snapshots")
            for file in Path(folder).rglob("*"):
                if file.is_file():
                    store.put(f"{folder.name}/{file.relative_to(folder)}", file.read_bytes())
            return f"s3://snapshots/{folder.name}"

        yield put


def test_hdf5_set_in_a_bucket(bucket, tmp_path, box):
    local = tmp_path / "snapdir_004"
    files.write_gadget_set(local, box, 3, options={"compression": "gzip", "chunks": (256, 3)})
    remote = bucket(local)
    expected = whole(local)
    for url in (remote, f"{remote}/snap_004.1.hdf5", f"{remote}/snap_004.*.hdf5",
                f"{remote}/snap_004"):  # fmt: skip
        same(whole(url), expected)
    assert open_particles(remote).digest == open_particles(f"{remote}/snap_004").digest
    assert open_particles(remote).digest != open_particles(str(local)).digest
    hints = SnapshotHints(full_hash=True)
    assert open_particles(remote, hints).digest == open_particles(str(local), hints).digest
    refused(StorageError, 4, lambda: whole(f"{remote}/absent.hdf5"), "absent")
    (local / "snap_004.2.hdf5").unlink()
    incomplete = bucket(local.rename(tmp_path / "incomplete"))
    refused(DataError, 3, lambda: whole(incomplete), "missing", "snap_004.2.hdf5")


@each("kind", ["bigfile", "abacus", "npz", "binary"])
def test_other_formats_in_a_bucket(kind, bucket, tmp_path, box):
    local = tmp_path / f"in-{kind}"
    local.mkdir()
    inside = local
    if kind == "bigfile":
        pytest.importorskip("bigfile")
        header = files.gadget_bigfile_header(
            box, 1.0, files.MPC, UsePeculiarVelocity=np.array([1], "i4")
        )
        files.write_bigfile(local, box, header=header)
    elif kind == "abacus":
        pytest.importorskip("asdf")
        files.write_abacus(local, box)
    elif kind == "npz":
        inside = local / "box.npz"
        np.savez_compressed(inside, **files.npz_arrays(box))
    else:
        inside = Path(files.write_gadget_binary(local / "snap_004", box))
    remote = bucket(local)
    source = open_particles(f"{remote}/{inside.relative_to(local)}".removesuffix("/."))
    same(source.read(100, 900), open_particles(str(inside)).read(100, 900))
