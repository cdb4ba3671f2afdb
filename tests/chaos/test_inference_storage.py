"""Inference from damaged inputs, onto a disk that fills up, and of two drivers onto one output."""

import errno

import numpy as np
import pytest
import zarr

from tests.chaos.commands import start
from tests.e2e.conftest import SMALL

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.cluster]


def arguments_of(chain, out, *options):
    return [
        "infer", chain / "fields.zarr", out, "--model", chain / "model", *SMALL,
        "--set=infer.shard=12", *options,
    ]  # fmt: skip


@pytest.fixture
def full_after(monkeypatch):
    """Return a function that lets the disk be full after so many files, and one that frees it."""
    from zarr.storage import LocalStore

    write, state = LocalStore.set, {"left": None}

    async def limited(self, key, value, *rest, **more):
        if state["left"] is not None and "/c/" in key:
            state["left"] -= 1
            if state["left"] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return await write(self, key, value, *rest, **more)

    monkeypatch.setattr(LocalStore, "set", limited)
    return lambda files: state.update(left=files)


@pytest.mark.parametrize("files", [0, 21, 22])
def test_a_disk_that_fills_up_is_told_and_the_run_resumed(
    chain, tmp_path, cosmoflow, full_after, undisturbed, files
):
    """In the middle of a block: after a shard and before its note in the ledger, or the reverse."""
    out = tmp_path / "out.zarr"
    full_after(files)
    code, _, err = cosmoflow(*arguments_of(chain, out))
    assert code == 4
    assert "space" in err
    assert str(out) in err
    assert "Traceback" not in err
    if out.exists():
        assert zarr.open_group(out).attrs["status"] == "incomplete"
    full_after(None)
    code, _, err = cosmoflow(*arguments_of(chain, out, *(["--resume"] if out.exists() else [])))
    assert code == 0, err
    np.testing.assert_array_equal(zarr.open_group(out)["velocity"][:], undisturbed)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 3] ^= 4
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["density", "wiener_velocity"])
@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_damage_in_an_input_is_named_and_nothing_passes_for_whole(
    copy_of, chain, tmp_path, cosmoflow, name, how
):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    files = sorted(file for file in (fields / name / "c").rglob("*") if file.is_file())
    damage(files[-1], how)
    arguments = arguments_of(chain, out)
    arguments[1] = fields
    code, _, err = cosmoflow(*arguments)
    assert code == 3
    assert name in err
    assert str(fields) in err
    assert "cells from" in err
    assert not out.exists() or zarr.open_group(out).attrs["status"] == "incomplete"


def test_of_two_drivers_one_wins(chain, tmp_path, undisturbed):
    out = tmp_path / "out.zarr"
    drivers = [start(arguments_of(chain, out)) for _ in range(2)]
    errors = [driver.communicate(timeout=240)[1].decode() for driver in drivers]
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) == [0, 2], errors
    loser = errors[codes.index(2)]
    assert "another run is writing" in loser or "exists already" in loser
    np.testing.assert_array_equal(zarr.open_group(out)["velocity"][:], undisturbed)
