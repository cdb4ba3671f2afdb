"""Two runs and one output: who holds it, and who is refused."""

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.exceptions import NotSupportedError

from cosmoflow.errors import BusyError, StorageError
from cosmoflow.stages.run import Run, claiming
from cosmoflow.storage import urls
from cosmoflow.storage.checkpoints import CheckpointFolder
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.field_writing import create_fields
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.files import create_bytes
from cosmoflow.storage.holders import Holder
from cosmoflow.storage.urls import CLAIMS, exists, find_bytes, remove
from tests.cases import each
from tests.conftest import make_metadata
from tests.object_store import s3_bucket
from tests.rivals import DEAD, ELSEWHERE, FIRST, Bucket, claims, dead_process, leave, race

pytestmark = pytest.mark.usefixtures("quick_claims")


# Holding and letting go


def test_a_claim_leaves_nothing_behind(place):
    with claim(place) as held:
        assert held.holds()
        held.check()
        assert find_bytes(claims(place), FIRST)
    assert find_bytes(claims(place), FIRST) is None
    assert not exists(place)
    if "://" not in place:
        assert not Path(place).exists()


def test_a_run_that_fails_lets_go(place):
    def fail():
        with claim(place):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()


def test_what_is_stored_stays_when_a_claim_goes(place):
    with claim(place):
        urls.write_bytes(place, "data", b"mine")
        assert exists(place)
    assert urls.list_names(place) == ["data"]


@pytest.mark.usefixtures("long_lease")
@each("call", [claim, lambda url: claiming(url, Run())], ids=["claim", "claiming"])
def test_a_live_holder_is_not_disturbed(place, call):
    with claim(place) as held:
        began = time.monotonic()
        with pytest.raises(BusyError, match="another run is writing") as caught, call(place):
            pass
        assert time.monotonic() - began < Claim.LEASE
        assert caught.value.exit_code == 2
        assert caught.value.kind == "busy"
        assert caught.value.where == place
        assert f"process {Holder.here().pid} on {Holder.here().host}" in str(caught.value)
        assert "--resume" in caught.value.remedy
        time.sleep(3 * Claim.PERIOD)
        held.check()
    with claim(place):
        pass


def test_waiting_for_a_holder(place):
    order, told = [], []

    def second():
        with claim(place, wait=True, listener=told.append):
            order.append("second")

    with claim(place):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.5 * Claim.LEASE)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    (message,) = told
    assert f"waiting for process {Holder.here().pid} on" in message.text
    assert place in message.text


def test_nobody_is_told_of_a_place_that_is_free(place):
    told = []
    with claim(place, wait=True, listener=told.append):
        assert not told


# Races


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.cluster)])
@each("left", [None, "dead", "silent"])
def test_one_of_many_threads_wins(place, left, times):
    for _ in range(times):
        race_of_threads(place, left)


def race_of_threads(place, left):
    """Let eight threads go for a place that is free, or was left by a dead or a silent run."""
    if left:
        leave(place, DEAD if left == "dead" else ELSEWHERE)
    start, over = threading.Barrier(8), threading.Event()

    def attempt(_):
        start.wait()
        try:
            with claim(place) as held:
                over.wait(120.0)
                held.check()
                return True
        except BusyError:
            return False

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(attempt, index) for index in range(8)]
        deadline = time.monotonic() + 120.0
        while sum(future.done() for future in futures) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        over.set()
        assert sorted(future.result() for future in futures) == [False] * 7 + [True]
    assert not exists(place)


@pytest.mark.cluster
def test_one_of_many_processes_wins(tmp_path):
    url = str(tmp_path / "out.zarr")
    assert race(tmp_path, url, 8) == ["refused"] * 7 + ["won"]
    process, holder = dead_process()
    process.wait()
    leave(url, holder)
    assert race(tmp_path, url, 4) == ["refused"] * 3 + ["won"]
    assert not Path(url).exists()


def test_many_in_turn_never_hold_a_place_together(place):
    """Claims that come and go: the chain is cleared and begun anew under those who look at it."""
    inside, seen, turns = [], [], []

    def run(index):
        for _ in range(12):
            with claim(place, wait=True):
                inside.append(index)
                seen.append(len(inside))
                time.sleep(0.002)
                inside.remove(index)
                turns.append(index)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, index) for index in range(4)]:
            future.result()
    assert len(turns) == 48
    assert set(seen) == {1}


# Creating files that nobody else has


def test_a_file_is_created_once(place):
    assert create_bytes(place, "a", b"mine")
    assert not create_bytes(place, "a", b"yours")
    assert find_bytes(place, "a") == b"mine"
    assert urls.list_names(place) == ["a"]


def test_a_folder_that_vanishes_meanwhile_is_made_again(tmp_path, monkeypatch):
    link, failures = Path.hardlink_to, [1, 2]

    def vanish(self, target):
        if failures:
            failures.pop()
            target.unlink()
            target.parent.rmdir()
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", vanish)
    assert create_bytes(str(tmp_path / "out"), "a", b"mine")
    assert not failures


@each("inside", ["", "deeper"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, inside):
    link = tmp_path / "out.zarr"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match="leads nowhere") as caught, claim(str(link / inside)):
        pass
    assert caught.value.where == str(link)
    assert str(tmp_path / "gone") in caught.value.value


def test_a_file_where_a_folder_should_be_is_refused(tmp_path):
    (tmp_path / CLAIMS).touch()
    with pytest.raises(StorageError), claim(str(tmp_path)):
        pass


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.zarr"
    link.symlink_to(tmp_path / "real")
    with claim(str(link)):
        assert (tmp_path / "real" / CLAIMS).is_dir()


@each("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_without_hard_links(tmp_path, monkeypatch, number):
    def refuse(self, target):
        raise OSError(number, "no hard links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    url = str(tmp_path / "out")
    assert create_bytes(url, "a", b"mine")
    assert not create_bytes(url, "a", b"yours")
    assert find_bytes(url, "a") == b"mine"
    with claim(url), pytest.raises(BusyError), claim(url):
        pass
    assert urls.list_names(url) == ["a"]


def test_an_object_whose_answer_was_lost_is_ours(bucket):
    urls.write_bytes(bucket, "a", b"mine")
    assert create_bytes(bucket, "a", b"mine")
    assert not create_bytes(bucket, "a", b"yours")


def test_object_stores_without_conditional_writes(bucket, monkeypatch):
    put = Bucket.put

    def put_plainly(self, name, content, mode="overwrite"):
        if mode == "create":
            raise NotSupportedError("If-None-Match")
        put(self, name, content)

    monkeypatch.setattr(Bucket, "put", put_plainly)
    with claim(bucket), pytest.raises(BusyError), claim(bucket):
        pass
    assert not list(Bucket.list(urls.open_bucket(bucket)))


# On S3


@pytest.fixture(scope="module")
def s3():
    with s3_bucket("claims") as url:
        yield url


@pytest.mark.cluster
def test_a_claim_on_s3(s3, monkeypatch):
    monkeypatch.setattr(Claim, "LEASE", 10.0)
    url = f"{s3}/fields.zarr"
    arguments = (url, make_metadata(), 8, ("density",))
    for existing in ("error", "overwrite", "resume"):
        with claim(url) as held:
            assert exists(url) == (existing != "error")
            create_fields(*arguments, shard=8, chunk=4, existing=existing)
            assert exists(url)
            assert FieldStore(url, unfinished=True).variables == ["density"]
            with pytest.raises(BusyError), claim(url):
                pass
            held.check()
        assert CLAIMS not in urls.list_names(url)
    remove(url)
    assert not exists(url)


@pytest.mark.cluster
def test_one_of_many_processes_wins_on_s3(s3, tmp_path):
    url = f"{s3}/out.zarr"
    assert race(tmp_path, url, 6) == ["refused"] * 5 + ["won"]
    process, holder = dead_process()
    process.wait()
    leave(url, holder)
    assert race(tmp_path, url, 4) == ["refused"] * 3 + ["won"]
    assert not exists(url)
    assert find_bytes(claims(url), FIRST) is None


@pytest.mark.cluster
def test_checkpoints_on_s3_are_dropped(s3):
    folder = CheckpointFolder(f"{s3}/model/checkpoints", 2)
    for step in range(4):
        folder.save(step, b"state")
    names = urls.list_names(folder.url)
    assert [name[5:15] for name in names] == ["0000000002", "0000000003"]
    folder.clear()
    assert urls.list_names(folder.url) == []
