"""Global velocities of a store that several runs use: one makes them, others read or wait."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cosmoflow.errors import DataError, IncompleteError, SupersededError
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.flows import stored as stage
from cosmoflow.storage import flows
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import (
    WIENER,
    adding_linear_velocity,
    adding_wiener_velocity,
    check_filter,
    filter_digest,
)
from cosmoflow.storage.urls import remove
from tests.cases import each
from tests.conftest import UNIT_FILTER, keep_linear_velocity

pytestmark = pytest.mark.usefixtures("quick_claims")

GRID = 12


@pytest.fixture
def url(fields_store):
    return make_store(fields_store)


def make_store(fields_store):
    return fields_store(GRID, shard=6, chunk=3).url


def constant(value):
    return np.full((3, GRID, GRID, GRID), value, np.float32)


def replaced(url, digest):
    with pytest.raises(IncompleteError, match="replaced") as caught:
        check_filter(url, digest)
    assert caught.value.exit_code == 5
    assert "--resume" in caught.value.remedy
    return str(caught.value)


# Readers


def test_a_filter_that_is_replaced_is_noticed(url, monkeypatch):
    replaced(url, "one")
    with adding_wiener_velocity(url, "one") as array:
        array.write(constant(1))
    check_filter(url, "one")
    create, seen = flows.create_variable, []

    def watch(*arguments, **options):
        seen.append(filter_digest(FieldStore(url)))
        return create(*arguments, **options)

    monkeypatch.setattr(flows, "create_variable", watch)
    with adding_wiener_velocity(url, "two") as array:
        assert seen == [""]
        assert "not whole" in replaced(url, "one")
        replaced(url, "two")
        array.write(constant(2))
        replaced(url, "one")
    assert "two" in replaced(url, "one")
    check_filter(url, "two")


# Writers that have lost their claim


@each("flow", ["linear", "wiener"])
@each("slabs", [False, True])
@each("moment", ["before", "meanwhile"])
def test_a_run_that_has_lost_its_claim_notes_nothing(
    fields_store, serial_run, monkeypatch, flow, slabs, moment
):
    url = make_store(fields_store)
    wanted = ((3.0,), None) if flow == "linear" else ((), UNIT_FILTER)
    write, make, held = flows.FlowArray.write, stage._make_missing, []

    def begin(*arguments):
        held.append(arguments[-1])
        held[0]._lost = moment == "before"
        make(*arguments)

    def lose(*arguments):
        write(*arguments)
        held[0]._lost = True

    monkeypatch.setattr(stage, "_fits", lambda *arguments: not slabs)
    monkeypatch.setattr(stage, "_make_missing", begin)
    monkeypatch.setattr(flows.FlowArray, "write", lose)
    with pytest.raises(SupersededError, match="lost"):
        ensure_flows(url, *wanted, serial_run())
    store = FieldStore(url)
    assert 3.0 not in store.smoothing_scales()
    assert filter_digest(store) == ""
    # Who has lost before it began anything leaves what its heir has begun.
    assert (store.variables == ["density", "velocity"]) == (moment == "before")


def test_tasks_of_a_run_that_lost_its_claim_write_nothing(url):
    """They may well go on while their driver sleeps."""
    with adding_wiener_velocity(url, "one") as late:
        late.write(constant(1))
        with adding_wiener_velocity(url, "two") as array:
            array.write(constant(2))
            with pytest.raises(SupersededError, match="another velocity") as caught:
                late.write(constant(1))
        assert caught.value.exit_code == 5
        np.testing.assert_array_equal(FieldStore(url).read(WIENER), constant(2))


def test_tasks_of_another_radius_write_nothing(url):
    keep_linear_velocity(url, 1.0, constant(1))
    with adding_linear_velocity(url, 2.0) as late, adding_linear_velocity(url, 4.0) as array:
        assert (late.lead, array.lead) == ((1,), (1,))
        array.write(constant(4))
        with pytest.raises(SupersededError):
            late.write(constant(2))
        found = FieldStore(url).read("linear_velocity", lead=(1,))
        np.testing.assert_array_equal(found, constant(4))


# What people are told


def test_who_waits_for_another_run_says_so(url, serial_run):
    told, holder = [], Claim(url)

    def listen(event):
        told.append(getattr(event, "text", ""))
        if len(told) == 1:
            holder.release()

    holder.acquire(wait=False)
    ensure_flows(url, (3.0,), None, serial_run(listener=listen))
    assert url in told[0]
    assert told[0].startswith("waiting for process")
    assert told[1].startswith("linear velocity")
    with claim(url):
        pass


@each("name", [WIENER, "linear_velocity", "velocity"])
def test_what_to_do_about_cells_that_are_missing(fields_store, serial_run, name):
    url = make_store(fields_store)
    ensure_flows(url, (3.0,), UNIT_FILTER, serial_run())
    lead = (0,) if name == "linear_velocity" else ()
    remove(f"{url}/{name}/c/0/{'0/' if lead else ''}1")
    with pytest.raises(DataError, match="not finite") as caught:
        FieldStore(url).read(name, lead=lead)
    if name == "velocity":
        assert caught.value.remedy == "make the store again: run paint with --overwrite"
        return
    assert f"delete {url}/{name}:" in caught.value.remedy
    remove(f"{url}/{name}")
    ensure_flows(url, (3.0,), UNIT_FILTER, serial_run())
    FieldStore(url).read(name, lead=lead)


@each(
    ("free", "allowed", "fits"),
    [(1.9, None, False), (2.1, None, True), (1.1, 1.1, True), (1.1, 0.9, False), (0.9, 9.0, False)],
)
def test_a_flow_takes_half_of_the_free_memory_unasked(serial_run, monkeypatch, free, allowed, fits):
    need, run = 40 * GRID**3, serial_run()
    monkeypatch.setattr("cosmoflow.stages.run.available_memory", lambda: int(free * need))
    if allowed is not None:
        engine = run.settings.engine.model_copy(update={"memory": int(allowed * need)})
        run = replace(run, settings=run.settings.model_copy(update={"engine": engine}))
    assert stage._fits(40, SimpleNamespace(grid=GRID), run) == fits
