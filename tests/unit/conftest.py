"""Places that runs claim, in a folder and in an object store."""

import pytest
from obstore.store import MemoryStore

from cosmoflow.storage import files, places, urls
from cosmoflow.storage.claims import Claim
from tests.rivals import Bucket


@pytest.fixture
def quick_claims(monkeypatch):
    monkeypatch.setattr(Claim, "PERIOD", 0.05)
    monkeypatch.setattr(Claim, "LEASE", 1.0)


@pytest.fixture
def long_lease(monkeypatch):
    """Have signs of life count for longer than a thread of a busy machine can be kept waiting."""
    monkeypatch.setattr(Claim, "LEASE", 100.0)


@pytest.fixture
def bucket(monkeypatch):
    store = MemoryStore()
    monkeypatch.setattr(places, "REMOTE_SCHEMES", ("memory",))
    for module in (urls, files):
        monkeypatch.setattr(module, "open_bucket", lambda url: Bucket(store, url))
    return "memory://bucket/out.zarr"


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "out.zarr")
    return request.getfixturevalue("bucket")
