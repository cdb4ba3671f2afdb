"""Commands on stores with damaged chunks: refused by name, with nothing that looks whole left."""

import pytest
import zarr

from tests.cases import each
from tests.e2e.conftest import SMALL
from tests.e2e.test_bad_input import refused

pytestmark = pytest.mark.e2e


def flip_payload(content):
    return content[:40] + bytes([content[40] ^ 0x10]) + content[41:]


def damage(shard, kind):
    """Damage a shard: tests/unit/test_checksums.py has all the ways."""
    if kind == "missing":
        shard.unlink()
    else:
        shard.write_bytes(flip_payload(shard.read_bytes()))


KINDS = ["payload", "missing"]


def unfinished(out):
    return not out.exists() or zarr.open_group(out, mode="r").attrs["status"] == "incomplete"


@each("kind", KINDS)
def test_infer(cosmoflow, copy_of, chain, tmp_path, kind):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    damage(fields / "density/c/1/0/1", kind)
    result = cosmoflow("infer", fields, out, "--model", chain / "model", *SMALL)
    refused(result, 3, f"{fields}, density", "cells from")
    assert unfinished(out)


@each("kind", KINDS)
def test_derive(cosmoflow, copy_of, tmp_path, kind):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    damage(fields / "velocity/c/0/1/1/1", kind)
    result = cosmoflow("derive", fields, out, "--field=divergence", "--set=derive.shard=12", *SMALL)
    refused(result, 3, f"{fields}, velocity", "cells from")
    assert unfinished(out)


@each("kind, name", [("payload", "position"), ("missing", "velocity")])
def test_paint(cosmoflow, copy_of, tmp_path, kind, name):
    particles, out = copy_of("particles.zarr"), tmp_path / "out.zarr"
    damage(particles / name / "c/0/0", kind)
    result = cosmoflow("paint", particles, out, *SMALL)
    refused(result, 3, str(particles), "particle")
    # Nothing was finished, so nothing is in the way of the next try.
    assert not out.exists()


def test_what_was_finished_before_the_damage_is_kept_and_mended(cosmoflow, chain, tmp_path):
    fields, out, whole = (tmp_path / name for name in ("fields.zarr", "out.zarr", "whole.zarr"))
    finer = (*SMALL, "--set=paint.shard=12", "--set=paint.chunk=12", "--set=derive.shard=12")
    assert cosmoflow("paint", chain / "particles.zarr", fields, *finer)[0] == 0
    # In the midst of the box: the first shards need none of it.
    shard = fields / "velocity/c/0/2/2/2"
    good = shard.read_bytes()
    arguments = ("--field=divergence", *finer)
    assert cosmoflow("derive", fields, whole, *arguments)[0] == 0
    damage(shard, "payload")
    refused(cosmoflow("derive", fields, out, *arguments), 3, "velocity")
    assert zarr.open_group(out, mode="r")["ledger/fields"][:].any()
    assert unfinished(out)
    shard.write_bytes(good)
    assert cosmoflow("derive", fields, out, *arguments, "--resume")[0] == 0
    found, expected = (zarr.open_group(url, mode="r")["divergence"][:] for url in (out, whole))
    assert (found == expected).all()
