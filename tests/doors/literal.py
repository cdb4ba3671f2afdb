"""What the tests of literal names share: small boxes, quick options, all uses of a place."""

import numpy as np
import zarr

from cosmoflow.storage import urls
from cosmoflow.storage.checkpoints import CheckpointFolder
from cosmoflow.storage.claims import claim
from tests.snapshot_files import zeldovich_box

SERIAL = (
    *("--grid", "16", "--engine", "serial", "-q"),
    *("--set", "paint.shard=16", "--set", "paint.chunk=16"),
)
BOX, OTHER = zeldovich_box(8), zeldovich_box(8, seed=4)


def use(url):
    """Write, claim, list and read at a place; return what is there in the end."""
    checkpoints = CheckpointFolder(urls.join(url, "checkpoints"), keep=1)
    with claim(url):
        group = zarr.create_group(urls.zarr_store(url, read_only=False))
        group.create_array("n", shape=4, chunks=2, dtype="i4")[:] = np.arange(4)
        urls.write_bytes(url, "note", b"mine")
        checkpoints.save(1, b"state")
    assert urls.exists(url)
    assert urls.read_bytes(url, "note") == b"mine"
    assert urls.list_names(url) == ["checkpoints", "n", "note", "zarr.json"]
    assert urls.open_group(url)["n"][:].tolist() == [0, 1, 2, 3]
    assert checkpoints.newest() == b"state"
    checkpoint = "checkpoints/step-0000000001.ckpt"
    return {"zarr.json", "note", "n/zarr.json", "n/c/0", "n/c/1", checkpoint}
