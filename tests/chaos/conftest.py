"""The chaos tests damage copies of the same chain that the end-to-end tests read."""

import pytest
import zarr

from cosmoflow.cli.app import run_app
from tests.e2e.conftest import SMALL, chain, copy_of, cosmoflow
from tests.shared import shared_folder

__all__ = ["chain", "copy_of", "cosmoflow"]


@pytest.fixture(scope="session")
def undisturbed(chain, tmp_path_factory):
    """The velocity of the chain's box in shards of 12^3 cells, by a run that was left alone."""

    def infer(folder):
        inputs = [chain / "fields.zarr", folder / "out.zarr", "--model", chain / "model"]
        assert run_app(["infer", *map(str, inputs), *SMALL, "--set=infer.shard=12", "--quiet"]) == 0

    out = shared_folder(tmp_path_factory, "undisturbed", infer) / "out.zarr"
    return zarr.open_group(out, mode="r")["velocity"][:]


@pytest.fixture(scope="session")
def particles(tmp_path_factory):
    path = tmp_path_factory.mktemp("chaos") / "particles.zarr"
    arguments = ["--box=128", "--particles=64", "--method=2lpt", "--quiet", "--engine=serial"]
    assert run_app(["simulate", str(path), *arguments]) == 0
    return path
