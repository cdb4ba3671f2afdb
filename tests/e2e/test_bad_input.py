"""Bad input: a message that says what to do, the documented exit code, nothing that looks whole."""

import json
import shutil

import numpy as np
import pytest
import zarr

from tests.cases import each
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


def refused(result, code, *words):
    """Assert the exit code, one clear error without a traceback, and what it mentions."""
    found, _, err = result
    assert found == code, err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


def test_missing_store(cosmoflow, tmp_path):
    refused(cosmoflow("paint", tmp_path / "none.zarr", tmp_path / "out.zarr"), 4, "none.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_wrong_kind_of_store(cosmoflow, chain, tmp_path):
    out = tmp_path / "out.zarr"
    refused(cosmoflow("paint", chain / "fields.zarr", out), 3, "cosmoflow/particles", "info")
    refused(cosmoflow("infer", chain / "particles.zarr", out, "--model", chain / "model"), 3)
    assert not out.exists()


def test_a_folder_that_is_no_store(cosmoflow, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    refused(cosmoflow("info", tmp_path / "text"), 3, "not a snapshot")


@each("engine", ["serial"])
@each(
    ("row", "value", "words"),
    [
        (17, np.nan, ("not finite", "particle 17")),
        (40_000, -0.5, ("outside the box", "particle 40000")),
        (5, 96.0, ("outside the box", "96.0")),
    ],
)
def test_bad_positions(cosmoflow, copy_of, tmp_path, row, value, words, engine):
    particles = copy_of("particles.zarr")
    zarr.open_group(particles, mode="r+")["position"][row, 1] = value
    out = tmp_path / "out.zarr"
    refused(cosmoflow("paint", particles, out, *SMALL, f"--engine={engine}"), 3, *words)
    # Nothing was finished, so nothing is in the way of the next try.
    assert not out.exists()


def test_grid_that_does_not_divide(cosmoflow, chain, tmp_path):
    out = tmp_path / "out.zarr"
    refused(
        cosmoflow("paint", chain / "particles.zarr", out, "--set=paint.shard=16",
                  "--set=paint.chunk=5"),
        2, "not a multiple", "paint",
    )  # fmt: skip
    assert not out.exists()


def test_a_grid_that_the_stride_does_not_divide_is_predicted(cosmoflow, chain, tmp_path):
    out, fields, model = (tmp_path / name for name in ("out.zarr", "fields50.zarr", "model"))
    assert cosmoflow("paint", chain / "particles.zarr", fields, "--grid=50")[0] == 0
    shutil.copytree(chain / "model", model)
    description = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**description, "cell_size": 96.0 / 50}))
    code, _, err = cosmoflow("infer", fields, out, "--model", model, "--engine=serial")
    assert code == 0, err
    assert np.isfinite(zarr.open_group(out)["velocity"][:]).all()


def test_unknown_config_key(cosmoflow, chain, tmp_path):
    out = tmp_path / "out.zarr"
    refused(
        cosmoflow("paint", chain / "particles.zarr", out, "--set=paint.gird=64"), 2, " paint.grid?"
    )
    config = tmp_path / "my.yaml"
    config.write_text("paint:\n  gird: 64\n")
    refused(
        cosmoflow("paint", chain / "particles.zarr", out, "--config", config), 2, "gird", "my.yaml"
    )
    assert not out.exists()


def test_unknown_option_and_missing_argument(cosmoflow):
    assert cosmoflow("paint", "--no-such-option")[0] == 2
    assert cosmoflow("paint")[0] == 2


def test_model_of_another_cell_size(cosmoflow, chain, tmp_path):
    coarse, out = tmp_path / "coarse.zarr", tmp_path / "out.zarr"
    assert cosmoflow("paint", chain / "particles.zarr", coarse, "--grid=24")[0] == 0
    refused(cosmoflow("infer", coarse, out, "--model", chain / "model"), 3, "4 Mpc/h", "--grid 48")
    assert not out.exists()


def test_truncated_model(cosmoflow, chain, copy_of, tmp_path):
    model, out = copy_of("model"), tmp_path / "out.zarr"
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(cosmoflow("infer", chain / "fields.zarr", out, "--model", model), 3, "truncated")
    assert not out.exists()


def test_truncated_training_checkpoint_falls_back_to_an_older_one(cosmoflow, chain, copy_of):
    model = copy_of("model")
    arguments = ("train", chain / "fields.zarr", "--out", model, *SMALL)
    expected = (model / "model.safetensors").read_bytes()
    newest = sorted((model / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    (model / "model.safetensors").unlink()
    code, _, err = cosmoflow(*arguments, "--resume")
    assert code == 0
    assert "damaged checkpoint" in err
    assert newest.name in err
    assert (model / "model.safetensors").read_bytes() == expected


def test_unfinished_model_is_refused(cosmoflow, chain, copy_of, tmp_path):
    model = copy_of("model")
    (model / "model.json").unlink()
    refused(
        cosmoflow("infer", chain / "fields.zarr", tmp_path / "out.zarr", "--model", model),
        5, "--resume",
    )  # fmt: skip


def test_existing_output(cosmoflow, chain, copy_of):
    fields = copy_of("fields.zarr")
    before = zarr.open_group(fields)["density"][:]
    arguments = ("paint", chain / "particles.zarr", fields, *SMALL)
    result = cosmoflow(*arguments)
    refused(result, 2, "--overwrite")
    assert "--resume" not in result[2]  # nothing is left to finish
    refused(cosmoflow(*arguments, "--resume", "--scheme=tsc"), 2, "digest")
    np.testing.assert_array_equal(zarr.open_group(fields)["density"][:], before)
    assert cosmoflow(*arguments, "--overwrite", "--scheme=tsc")[0] == 0
    assert not np.array_equal(zarr.open_group(fields)["density"][:], before)


def test_unfinished_store_is_refused_by_the_next_stage(cosmoflow, copy_of, chain, tmp_path):
    fields = copy_of("fields.zarr")
    zarr.open_group(fields, mode="r+").attrs["status"] = "incomplete"
    refused(
        cosmoflow("infer", fields, tmp_path / "out.zarr", "--model", chain / "model"), 5, "--resume"
    )


def test_damaged_chunk_is_named_and_no_output_claims_to_be_whole(
    cosmoflow, copy_of, chain, tmp_path
):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    shard = next(path for path in (fields / "density").rglob("1") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content[: len(content) - 7])
    result = cosmoflow("infer", fields, out, "--model", chain / "model", *SMALL)
    refused(result, 3, "density")
    assert not out.exists() or zarr.open_group(out).attrs["status"] == "incomplete"


def test_errors_are_json_when_asked(cosmoflow, tmp_path):
    code, events, _ = cosmoflow("paint", tmp_path / "none.zarr", tmp_path / "out.zarr", "--json")
    assert code == 4
    assert events[-1]["event"] == "error"
    assert events[-1]["exit_code"] == 4
    assert events[-1]["where"].endswith("none.zarr")


def test_omega_m_without_matter(cosmoflow, tmp_path):
    refused(cosmoflow("simulate", tmp_path / "out", "--set=cosmology.Omega_m=0"), 2, "Omega_m")
    refused(cosmoflow("simulate", tmp_path / "out", "--particles=33"), 2, "even")
    assert not (tmp_path / "out").exists()
