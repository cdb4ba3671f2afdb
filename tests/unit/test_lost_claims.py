"""Claims that change hands: of runs that have died, fell silent, or slept for too long."""

import os
import threading
import time
from pathlib import Path

import pytest

from cosmoflow.errors import BusyError, IncompleteError, StorageError, SupersededError
from cosmoflow.stages.run import Progress
from cosmoflow.storage import urls
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.files import create_bytes
from cosmoflow.storage.urls import exists, find_bytes
from tests.rivals import (
    DEAD,
    ELSEWHERE,
    FIRST,
    claims,
    dead_process,
    leave,
    put_to_sleep,
    wake_up,
)

pytestmark = pytest.mark.usefixtures("quick_claims")


# Taking over


def test_a_dead_run_is_followed_at_once(place, monkeypatch):
    monkeypatch.setattr(Claim, "LEASE", 1000.0)
    process, holder = dead_process()
    leave(place, holder)
    # Its parent has not waited for it yet: a zombie is dead.
    deadline = time.monotonic() + 120.0
    while not holder.is_dead():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with claim(place) as held:
        held.check()
        with pytest.raises(BusyError), claim(place):
            pass
    process.wait()
    assert not exists(place)
    assert find_bytes(claims(place), FIRST) is None


def test_two_runs_that_found_the_same_dead_run_do_not_both_follow_it(place, monkeypatch):
    """If takeover deleted the dead claim, the slower run would delete that of the faster one.

    The digest in the ledger does not help: both runs have the same settings.
    """
    leave(place, DEAD)
    slow, faster, follow = Claim(place), Claim(place), Claim._follow

    def overtaken(self, last):
        if self is slow and not faster._pulse.is_alive():
            faster.acquire(wait=False)
        return follow(self, last)

    monkeypatch.setattr(Claim, "_follow", overtaken)
    with pytest.raises(BusyError):
        slow.acquire(wait=False)
    faster._beat()
    faster.check()
    faster.release()
    assert not exists(place)


def test_a_process_with_the_number_of_a_dead_one_is_another(place, monkeypatch):
    monkeypatch.setattr(Claim, "LEASE", 1000.0)
    leave(place, DEAD)
    with claim(place):
        pass


def test_a_process_that_is_hidden_is_not_dead(monkeypatch):
    """/proc does not show those of others under hidepid=2: os.kill alone says that they live."""
    process, holder = dead_process()
    process.wait()
    assert holder.is_dead()

    def refuse(pid, number):
        assert (pid, number) == (holder.pid, 0)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    assert not holder.is_dead()


def test_a_silent_run_elsewhere_is_followed_after_the_lease(place):
    leave(place, ELSEWHERE)
    began = time.monotonic()
    with claim(place) as held:
        assert time.monotonic() - began >= Claim.LEASE
        held.check()


@pytest.mark.usefixtures("long_lease")
def test_a_run_elsewhere_that_gives_signs_of_life_is_not_followed(place):
    leave(place, ELSEWHERE)
    over = threading.Event()

    def live():
        # Signs of any content will do: there is no clock in them.
        for sign in range(1000, 0, -1):
            urls.write_bytes(claims(place), f"{ELSEWHERE.token}.beat", str(sign).encode())
            if over.wait(0.2):
                return

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(BusyError, match="elsewhere"), claim(place):
        pass
    over.set()
    thread.join()


def test_a_sleeper_that_wakes_up_has_lost(place):
    with claim(place) as sleeper:
        put_to_sleep(sleeper)
        with claim(place) as heir:
            sleeper._beaten -= 100.0
            with pytest.raises(SupersededError, match="another") as caught:
                sleeper.check()
            assert caught.value.exit_code == 5
            assert isinstance(caught.value, IncompleteError)
            wake_up(sleeper)
            time.sleep(3 * Claim.PERIOD)
            heir.check()
            with pytest.raises(BusyError), claim(place):
                pass
    assert not exists(place)


def test_the_pulse_of_a_sleeper_finds_out_by_itself(place):
    with claim(place) as sleeper:
        put_to_sleep(sleeper)
        with claim(place):
            wake_up(sleeper)
            deadline = time.monotonic() + 120.0
            while not sleeper._lost:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_sleeper_that_ends_leaves_its_heir_alone(place):
    sleeper = Claim(place)
    sleeper.acquire(wait=False)
    put_to_sleep(sleeper)
    with claim(place) as heir:
        sleeper.release()
        heir._beat()
        heir.check()
        with pytest.raises(BusyError), claim(place):
            pass


def test_an_heir_that_was_released_lets_the_sleeper_wake_to_nothing(place):
    with claim(place) as sleeper:
        put_to_sleep(sleeper)
        with claim(place):
            pass
        with claim(place):
            sleeper._beat()
            with pytest.raises(SupersededError):
                sleeper.check()


def test_a_claim_that_somebody_deleted_is_lost(tmp_path):
    url = str(tmp_path / "out.zarr")
    with claim(url) as held:
        Path(claims(url), FIRST).unlink()
        held._beat()
        with pytest.raises(SupersededError):
            held.check()


def test_storage_that_fails_for_a_while_loses_no_claim(place, monkeypatch):
    with claim(place) as held:
        with monkeypatch.context() as broken:

            def fail(*arguments):
                raise StorageError("storage failed")  # fmt: skip

            broken.setattr("cosmoflow.storage.claims.write_bytes", fail)
            time.sleep(4 * Claim.PERIOD)
        held.check()


def test_a_claim_that_cannot_be_read_says_what_to_delete(place):
    assert create_bytes(claims(place), FIRST, b"")
    with pytest.raises(StorageError, match=r"delete .*\.claims"), claim(place):
        pass


def test_progress_stops_a_run_that_has_lost_its_output(place):
    events = []
    with claim(place) as held:
        progress = Progress(events.append, "test", 3, "shards", claim=held)
        progress.advance()
        held._lost = True
        with pytest.raises(SupersededError):
            progress.advance()
    assert len(events) == 3
