"""What commands must not delete, and runs that must not end in a wrong field."""

import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

from tests.cases import each
from tests.e2e.conftest import SMALL
from tests.e2e.test_bad_input import refused
from tests.shared import written

pytestmark = pytest.mark.e2e


@each("place", ["particles.zarr", "particles.zarr/inside", "."])
def test_overwrite_never_touches_an_input(cosmoflow, copy_of, place):
    particles = copy_of("particles.zarr")
    out = particles.parent / place
    refused(cosmoflow("paint", particles, out, "--overwrite", *SMALL), 2, "input")
    assert zarr.open_group(particles)["position"].shape == (48**3, 3)


@each(
    "command",
    [
        ["simulate", "OUT", "--method=2lpt"],
        ["simulate", "OUT", "--method=2lpt", "--count=2"],
        ["paint", "particles.zarr", "OUT"],
        ["train", "fields.zarr", "--out", "OUT"],
        ["infer", "fields.zarr", "OUT", "--model", "model"],
        ["evaluate", "fields.zarr", "prediction.zarr", "--out", "OUT"],
        ["spectra", "fields.zarr", "--field=density", "--out", "OUT"],
        ["demo", "--out", "OUT"],
    ],
    ids=lambda command: " ".join(command[:1] + command[3:4]),
)
def test_overwrite_never_deletes_what_cosmoflow_did_not_make(cosmoflow, chain, tmp_path, command):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.tex").write_text("years of work")
    arguments = [str(out) if word == "OUT" else word for word in command]
    arguments = [str(chain / w) if (chain / w).exists() else w for w in arguments]
    refused(cosmoflow(*arguments, "--overwrite", *SMALL), 2, "not made by cosmoflow")
    assert (out / "chapter.tex").read_text() == "years of work"


def test_spectra_do_not_replace_another_output(cosmoflow, chain, copy_of):
    fields = copy_of("prediction.zarr")
    for option, word in (("--resume", "another kind"), ("--quiet", "exists")):
        arguments = ("spectra", chain / "fields.zarr", "--field=density", "--out", fields, option)
        refused(cosmoflow(*arguments), 2, word)
    assert "velocity" in zarr.open_group(fields)


@each(
    ("name", "row", "value", "words"),
    [
        ("velocity", 9, 3.1e5, ("faster than light", "particle 9")),
        ("mass", 11, np.nan, ("mass is invalid", "particle 11")),
        ("mass", 12, -1.0, ("mass is invalid", "particle 12")),
    ],
)
def test_absurd_particles(cosmoflow, copy_of, tmp_path, name, row, value, words):
    particles = copy_of("particles.zarr")
    group = zarr.open_group(particles, mode="r+")
    if name == "mass":
        group.create_array("mass", data=np.ones(48**3))
    group[name][row] = value
    out = tmp_path / "out.zarr"
    refused(cosmoflow("paint", particles, out, *SMALL), 3, *words)
    assert not out.exists()


def test_equal_masses_are_no_masses(cosmoflow, copy_of, chain, tmp_path):
    particles, out = copy_of("particles.zarr"), tmp_path / "out.zarr"
    zarr.open_group(particles, mode="r+").create_array("mass", data=np.full(48**3, 4.0))
    assert cosmoflow("paint", particles, out, *SMALL)[0] == 0
    fields = xr.open_zarr(out, consolidated=False)
    expected = xr.open_zarr(chain / "fields.zarr", consolidated=False)
    np.testing.assert_array_equal(fields["density"], expected["density"])


def test_a_ledger_without_its_arrays_is_not_believed(cosmoflow, copy_of, chain, tmp_path):
    fields = copy_of("fields.zarr")
    shutil.rmtree(fields / "velocity")
    assert cosmoflow("paint", chain / "particles.zarr", fields, "--resume", *SMALL)[0] == 0
    expected = xr.open_zarr(chain / "fields.zarr", consolidated=False)
    found = xr.open_zarr(fields, consolidated=False)
    np.testing.assert_array_equal(found["velocity"], expected["velocity"])


def test_a_finished_run_resumes_to_itself(cosmoflow, chain, copy_of):
    model = copy_of("model")
    before = written(model)
    arguments = ("train", chain / "fields.zarr", "--out", model, "--resume", *SMALL)
    code, _, err = cosmoflow(*arguments)
    assert code == 0, err
    # Other settings are refused, by the plan too.
    for further in ((), ("--dry-run",)):
        refused(cosmoflow(*arguments, "--steps=7", *further), 2, "other settings")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_model_far_from_home_warns(cosmoflow, copy_of, chain, tmp_path):
    fields = copy_of("fields.zarr")
    zarr.open_group(fields, mode="r+").attrs["redshift"] = 3.0
    out = tmp_path / "out.zarr"
    code, _, err = cosmoflow("infer", fields, out, "--model", chain / "model", *SMALL)
    assert code == 0
    assert "trained at redshift 0.0, the fields have 3.0" in err


def test_workers_that_cannot_be_are_refused(cosmoflow, chain, tmp_path):
    out = tmp_path / "model"
    refused(
        cosmoflow("train", chain / "fields.zarr", "--out", out, "--workers=2", *SMALL), 2, "Ray"
    )


def test_a_crop_larger_than_the_box(cosmoflow, chain, copy_of, tmp_path):
    arguments = ["--out", tmp_path / "model", *SMALL, "--set=train.crop=64"]
    refused(cosmoflow("train", chain / "fields.zarr", *arguments), 3, "train.crop")
    other = copy_of("fields.zarr")
    refused(cosmoflow("train", chain / "fields.zarr", other, *arguments), 3, "train.crop")
    refused(cosmoflow("train", other, "--out", other.parent / "m", "--set=train.crop=7"), 2, "crop")
    assert not (tmp_path / "model").exists()


def test_shards_off_the_lattice_change_nothing(cosmoflow, chain, tmp_path):
    out = tmp_path / "out.zarr"
    code, _, err = cosmoflow(
        "infer", chain / "fields.zarr", out, "--model", chain / "model", *SMALL,
        "--set=infer.shard=30",
    )  # fmt: skip
    assert code == 0, err
    expected = xr.open_zarr(chain / "prediction.zarr", consolidated=False)["velocity"].values
    found = xr.open_zarr(out, consolidated=False)["velocity"].values
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_a_section_that_is_no_mapping_is_refused(cosmoflow, chain, tmp_path):
    arguments = ("paint", chain / "particles.zarr", tmp_path / "out.zarr", "--set=paint=5")
    refused(cosmoflow(*arguments), 2, "paint")


@pytest.mark.slow
def test_fields_at_rest_can_be_evaluated(cosmoflow, copy_of, tmp_path):
    fields = copy_of("fields.zarr")
    zarr.open_group(fields, mode="r+")["velocity"][:] = 0.0
    truth = shutil.copytree(fields, tmp_path / "truth.zarr")
    code, _, err = cosmoflow("evaluate", truth, fields, "--out", tmp_path / "report", *SMALL)
    assert code == 0, err
