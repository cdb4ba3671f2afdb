"""The matter that particles stand for: all of it, dark matter beside gas, a sample, or an error."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from cosmoflow.cli.cards import make_card
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import CosmoflowWarning, Message
from cosmoflow.stages.convert import convert
from cosmoflow.stages.inspect import inspect
from cosmoflow.stages.paint import paint
from cosmoflow.storage.snapshots import SnapshotHints, matter, open_particles
from cosmoflow.storage.urls import open_group, open_group_for_writing
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(16)


def write(path, box, shares, *, baryons=files.OMEGA_B, header=True, **more):
    """Write a Gadget file whose types hold shares of the matter, in columns of masses."""
    columns = {
        kind: {"Masses": np.full(box.count, share * box.mass, np.float32)}
        for kind, share in shares.items()
    }
    types = tuple(shares)
    return files.write_gadget_hdf5(
        path, box, types=types, total=dict.fromkeys(types, box.count), mass=0.0, named=columns,
        UnitLength_in_cm=files.KPC, OmegaBaryon=baryons, **more,
    )  # fmt: skip


def notes(source):
    return " ".join(source.metadata.provenance["notes"])


def share(source):
    """Return the mass of all particles over that of matter, from the file's own numbers."""
    total = float(source.read(0, source.count).mass.sum())
    size = source.metadata.box_size
    return total / (files.OMEGA_M * 1e10 * files.CRITICAL * size**3)


@each("kind", [2, 3, 5])
def test_dark_matter_of_other_types_is_not_left_out(tmp_path, box, kind):
    url = write(tmp_path / "zoom.hdf5", box, {1: 0.45, kind: 0.55})
    refused(
        DataError, 3, lambda: open_particles(url),
        "dark matter is left out", f"PartType{kind}", "0.45", "particle_types=all",
    )  # fmt: skip
    for types in ("all", (1, kind)):
        source = open_particles(url, SnapshotHints(particle_types=types))
        assert source.count == 2 * box.count
        assert share(source) == pytest.approx(1.0, rel=1e-3)


def test_a_little_dark_matter_left_out_is_warned_of(tmp_path, box, serial_run):
    url = write(tmp_path / "zoom.hdf5", box, {1: 0.97, 2: 0.03})
    assert any("PartType2 hold 0.03" in text for text in open_particles(url).cautions)
    heard = []
    run = serial_run(listener=heard.append, paint={"grid": 8})
    paint(url, str(tmp_path / "fields.zarr"), run)
    assert any(
        "PartType2 hold 0.03" in one.text and one.level == "warning"
        for one in heard
        if isinstance(one, Message)
    )


@each("shares", [{0: 0.15, 1: 0.85}, {0: 0.1, 1: 0.847, 4: 0.05, 5: 0.003}])
def test_dark_matter_beside_gas_and_stars(tmp_path, box, shares):
    source = open_particles(write(tmp_path / "hydro.hdf5", box, shares))
    assert source.count == box.count
    assert "gas and stars are left out" in notes(source)
    assert not source.cautions
    assert share(source) == pytest.approx(shares[1], rel=1e-3)


def test_less_dark_matter_than_the_baryons_leave_is_refused(tmp_path, box):
    # 45 % passed, whatever the cosmology.
    url = write(tmp_path / "hydro.hdf5", box, {0: 0.1, 1: 0.5})
    with pytest.raises(DataError, match=r"(?s)0\.5 of the mean density.*mass_share=0\.5") as caught:
        open_particles(url)
    assert "would fit" not in str(caught.value), "what is left out depends on Omega_m"
    source = open_particles(url, SnapshotHints(mass_share=0.5))
    assert "by hint" in notes(source)
    # With half of the matter in baryons, as CAMELS has it, half is right.
    url = write(tmp_path / "camels.hdf5", box, {0: 0.1, 1: 0.5}, baryons=0.5 * files.OMEGA_M)
    assert "0.5 of the matter" in notes(open_particles(url))


@each("column", [False, True])
def test_a_hint_sets_a_unit_and_nothing_else(tmp_path, box, column):
    url = str(tmp_path / "snap.hdf5")
    if column:
        write(url, box, {1: 1.0})
    else:
        files.write_gadget_hdf5(url, box)
    # A box of 500,000 Mpc/h.
    hints = SnapshotHints(length_unit="Mpc/h")
    remedy = "in kpc/h the particles would fit: --set snapshot.length_unit=kpc/h"
    refused(DataError, 3, lambda: open_particles(url, hints), "mean density", remedy)
    source = open_particles(url, SnapshotHints(length_unit="kpc/h"))
    assert source.metadata.box_size == pytest.approx(500.0)


@each("factor, remedies", [
    (0.93, {"Omega_m": 0.2976, "mass_share": 0.93}),
    (1.1, {"Omega_m": 0.352}),
    (1.0 / files.H, {"Omega_m": 0.4776}),
])  # fmt: skip
def test_masses_near_the_mean_density_have_remedies_that_work(tmp_path, box, factor, remedies):
    """A wrong unit of length gives a factor of 1e9, never 0.93; `info` shows the header."""
    mass = factor * box.mass
    url = files.write_gadget_hdf5(tmp_path / "s.hdf5", box, mass=mass, UnitLength_in_cm=files.KPC)
    with pytest.raises(DataError) as caught:
        open_particles(url)
    said = str(caught.value)
    assert f"{1e10 * mass:.4g} M_sun/h, where {1e10 * box.mass:.4g} M_sun/h are needed" in said
    assert "length_unit" not in said
    assert ("by a factor of h" in said) == (factor * files.H == 1.0)
    assert ("mass_share" in said) == ("mass_share" in remedies)
    for name, value in remedies.items():
        assert f"--set snapshot.{name}={value}" in said
        assert open_particles(url, SnapshotHints(**{name: value})).count == box.count
    content = inspect(url)
    assert content["refused"] == said
    card = make_card(content)
    assert card["box"] == "500 Mpc/h"
    assert card["warning"].startswith("paint and convert refuse it: the particles do not make up")


def swift(path, box, *, factor=1.0, mass=1.0, **header):
    """Write SWIFT's own masses: in the column, and none in MassTable."""
    url = files.write_swift(path, files.Box(box.position / factor, box.velocity, box.size / factor))
    with h5py.File(url, "r+") as file:
        file["PartType1/Masses"][...] = mass * box.mass / files.H
        attrs = file["Header"].attrs
        attrs["MassTable"] = np.zeros(7)
        attrs["InitialMassTable"] = np.array([0, mass * box.mass / files.H, 0, 0, 0, 0, 0])
        attrs.update(header)
    return url


def test_masses_in_the_column_of_swift_are_weighed(tmp_path, box):
    source = open_particles(swift(tmp_path / "right.hdf5", box))
    assert share(source) == pytest.approx(1.0, rel=1e-3)
    assert source.matter_shares == (1.0,)
    url = swift(tmp_path / "wrong.hdf5", box, factor=1.2)
    refused(DataError, 3, lambda: open_particles(url), "mean density", "1.728 of the")


def test_swift_without_a_column_of_masses(tmp_path, box):
    url = swift(tmp_path / "snap.hdf5", box)
    with h5py.File(url, "r+") as file:
        del file["PartType1/Masses"]
    mass = open_particles(url).metadata.particle_mass
    assert mass == pytest.approx(1e10 * box.mass, rel=1e-3)
    url = swift(tmp_path / "wrong.hdf5", box, factor=1.2)
    with h5py.File(url, "r+") as file:
        del file["PartType1/Masses"]
    refused(DataError, 3, lambda: open_particles(url), "mean density", "1.728 of the")


def test_subsampled_output_of_swift(tmp_path, box):
    sampled = {
        "OutputType": np.bytes_(b"SubSampled"),
        "SubSampleFractions": np.array([1, 0.1, 1, 1, 1, 1, 1], "f4"),
    }
    # The particles keep their masses: a tenth of them is a tenth of the matter.
    url = swift(tmp_path / "snap.hdf5", box, mass=0.1, **sampled)
    source = open_particles(url)
    assert "a random sample: 0.1 of all particles" in notes(source)
    assert fits_one(source, share(source))
    # A tenth of the matter without a word is no sample.
    url = swift(tmp_path / "silent.hdf5", box, mass=0.1)
    refused(DataError, 3, lambda: open_particles(url), "mean density", "mass_share=0.1")
    # A wrong unit of length does not pass for a sample.
    url = swift(tmp_path / "wrong.hdf5", box, mass=0.1, factor=1.2, **sampled)
    refused(DataError, 3, lambda: open_particles(url), "mean density")


def fits_one(source, value):
    return any(abs(value / one - 1.0) < 0.05 for one in source.matter_shares)


def write_bigfile(path, box, *, header=None, blocks=("1/Position", "1/Velocity"), mass=None):
    """Write a bigfile by hand, as its format is documented."""
    path = Path(path)
    header = header or files.gadget_bigfile_header(
        box, 1.0, files.MPC, UsePeculiarVelocity=np.array([1], "i4")
    )
    (path / "Header").mkdir(parents=True)
    lines = [
        f"{name} {value.dtype.str} {value.size} {value.tobytes().hex().upper()} #HUMANE [ ]"
        for name, value in header.items()
    ]
    (path / "Header" / "attr-v2").write_text("\n".join(lines) + "\n")
    columns = {"1/Position": box.position, "1/Velocity": box.velocity, "1/Mass": mass}
    for name in [*blocks, *(["1/Mass"] if mass is not None else [])]:
        values = columns[name].astype("<f4")
        (path / name).mkdir(parents=True)
        width = values.shape[1] if values.ndim > 1 else 1
        text = f"DTYPE: <f4\nNMEMB: {width}\nNFILE: 1\n000000: {len(values)} : 0 : 0\n"
        (path / name / "header").write_text(text)
        (path / name / "000000").write_bytes(values.tobytes())
    return str(path)


def test_particle_fraction_of_fastpm(tmp_path, box):
    def header(**more):
        # MassTable is the mass of a particle of the whole.
        table = np.array([0.0, 0.25 * box.mass, 0, 0, 0, 0])
        return files.gadget_bigfile_header(
            box, 1.0, files.MPC, ScalingFactor=np.array([files.A]),
            OmegaM=np.array([files.OMEGA_M]),
            UsePeculiarVelocity=np.array([1], "i4"), **{"MassTable": table, **more},
        )  # fmt: skip

    url = write_bigfile(tmp_path / "sampled", box, header=header(ParticleFraction=np.array([0.25])))
    source = open_particles(url)
    assert "a random sample: 0.25 of all particles" in notes(source)
    assert source.metadata.particle_mass == pytest.approx(0.25e10 * box.mass, rel=1e-3)
    url = write_bigfile(tmp_path / "whole", box, header=header(ParticleFraction=np.array([1.0])))
    refused(DataError, 3, lambda: open_particles(url), "mean density", "0.25 of the")


def test_other_types_of_a_bigfile(tmp_path, box):
    header = files.gadget_bigfile_header(
        box, 1.0, files.MPC, UsePeculiarVelocity=np.array([1], "i4"),
        MassTable=np.array([0, 0.6 * box.mass, 0.4 * box.mass, 0, 0, 0]),
    )  # fmt: skip
    header["TotNumPart"] = np.array([0, box.count, box.count, 0, 0, 0], "i8")
    url = write_bigfile(tmp_path / "PART_000", box, header=header)
    refused(DataError, 3, lambda: open_particles(url), "dark matter is left out", "particle_types")


def test_long_columns_are_sampled_and_weighed_after_painting(
    tmp_path, box, serial_run, monkeypatch
):
    monkeypatch.setattr(matter, "_EXACT_ROWS", 0)
    monkeypatch.setattr(matter, "_RUN_ROWS", 8)
    rng = np.random.default_rng(1)
    mass = rng.lognormal(0.0, 0.1, box.count)
    mass *= 0.9 * box.mass / mass.mean()
    url = write(tmp_path / "snap.hdf5", box, {1: 1.0})
    with h5py.File(url, "r+") as file:
        file["PartType1/Masses"][...] = mass
    # A tenth of the matter is missing: too little to tell from a sample, and plain from the sum.
    assert open_particles(url).matter_shares == (1.0,)
    run = serial_run(paint={"grid": 8})
    for stage, out in ((paint, tmp_path / "f.zarr"), (convert, tmp_path / "p.zarr")):
        refused(
            DataError, 3, lambda stage=stage, out=out: stage(url, str(out), run),
            "mean density", "0.9 of it", "mass_share=0.9",
        )  # fmt: skip
        assert not out.exists()
    # The remedy works.
    run = serial_run(paint={"grid": 8}, snapshot={"mass_share": 0.9})
    paint(url, str(tmp_path / "f.zarr"), run)
    totals = open_group(str(tmp_path / "f.zarr")).attrs["totals"]
    assert totals["mass"] == pytest.approx(0.9e10 * box.mass * box.count, rel=1e-3)
    store = convert(url, str(tmp_path / "p.zarr"), run)
    assert store.matter_shares == (0.9,)


def test_a_particle_store_of_other_masses_is_warned_of(tmp_path, box, serial_run):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box)
    store = convert(url, str(tmp_path / "particles.zarr"), serial_run())
    heard = []
    run = serial_run(listener=heard.append, paint={"grid": 8})
    paint(store.url, str(tmp_path / "right.zarr"), run)
    assert not [one for one in heard if isinstance(one, Message) and one.level == "warning"]
    open_group_for_writing(store.url).attrs["box_size"] = box.size / 0.8
    out = str(tmp_path / "wrong.zarr")
    paint(store.url, out, run)
    text = [one.text for one in heard if isinstance(one, Message) and one.level == "warning"]
    assert "0.512 of the mean density" in text[0]
    assert text[0] in inspect(out)["notes"]


def test_masses_of_unknown_unit_are_not_weighed(tmp_path, box, serial_run):
    mass = np.random.default_rng(0).random(box.count)
    np.savez(tmp_path / "box.npz", **files.npz_arrays(box, mass=mass))
    run = serial_run(paint={"grid": 8})
    store = convert(str(tmp_path / "box.npz"), str(tmp_path / "p.zarr"), run)
    assert store.mass_unit == "unknown"
    paint(store.url, str(tmp_path / "f.zarr"), run)
    assert any("does not say the unit of the masses" in one for one in inspect(store.url)["notes"])


def test_python_callers_are_warned(tmp_path, box):
    url = write(tmp_path / "zoom.hdf5", box, {1: 0.97, 2: 0.03})
    with pytest.warns(CosmoflowWarning, match="PartType2 hold"):
        convert(url, str(tmp_path / "p.zarr"))


def test_several_bigfiles_and_halo_catalogues(tmp_path, box):
    run = tmp_path / "output"
    for name in ("PART_000", "PART_001"):
        write_bigfile(run / name, box)
    groups = {"NumFOFGroupsTotal": np.array([5], "i8"), "BoxSize": np.array([500.0])}
    write_bigfile(run / "PIG_001", box, header=groups, blocks=())
    refused(DataError, 3, lambda: open_particles(str(run)), "several", "PART_000, PART_001")
    url = str(run / "PIG_001")
    refused(DataError, 3, lambda: open_particles(url), "halo catalogue", "NumFOFGroupsTotal")
    (run / "PART_000").rename(tmp_path / "elsewhere")
    assert open_particles(str(run)).url == str(run / "PART_001")
    with h5py.File(tmp_path / "fof_subhalo_tab_090.hdf5", "w") as file:
        file.create_group("Header").attrs["Ngroups_Total"] = 3
        file["Group/GroupPos"], file["Subhalo/SubhaloPos"] = np.zeros((3, 3)), np.zeros((3, 3))
    url = str(tmp_path / "fof_subhalo_tab_090.hdf5")
    refused(DataError, 3, lambda: open_particles(url), "halo catalogue", "snapdir_")
    (tmp_path / "out_0.list").write_text("#ID DescID Mvir Vmax Vrms Rvir Rs Np X Y Z\n1 -1 1e12\n")
    url = str(tmp_path / "out_0.list")
    refused(DataError, 3, lambda: open_particles(url), "halo catalogue", "mvir")


def test_what_a_header_leaves_out_is_an_option(tmp_path, box):
    url = files.write_gadget_hdf5(tmp_path / "snap.hdf5", box, HubbleParam=0.0)
    refused(ConfigError, 2, lambda: open_particles(url), "--set snapshot.h=0.7")
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    with pytest.raises(DataError) as caught:
        open_particles(str(tmp_path / "notes.txt"))
    assert "docs/" not in str(caught.value)


def test_no_message_points_to_the_documentation_folder():
    import cosmoflow

    for path in Path(cosmoflow.__file__).parent.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not ("docs/" in line and ("remedy" in line or "help" in line)), path
