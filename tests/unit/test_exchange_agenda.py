"""Tasks run in an order that works, whatever is lost on the way."""

import random

from cosmoflow.engine import Column, TaskGraph
from cosmoflow.engine.exchange.agenda import Agenda
from tests.cases import each


def transform(slabs=5):
    """Three passes, and writes of pairs of neighbours: like the graph of a flow."""
    graph = TaskGraph()

    def every(family):
        return lambda number: [Column(family, number)]

    def pair(number):
        return [Column("finish", number % 2, [number // 2, number // 2 + 1]), Column("planes")]

    graph.add("planes", None, range(slabs), parts=slabs)
    graph.add("rows", None, range(slabs), reads=every("planes"), parts=slabs)
    graph.add("finish", None, range(slabs), reads=every("rows"), parts=2)
    graph.add("unread", None, range(3), parts=1)
    graph.add("write", None, range(2 * slabs - 2), reads=pair, output=True)
    return graph


def reads_of(graph, key):
    """Return the tasks whose parcels a task reads."""
    columns = graph.families[key[0]].reads(key[1])
    return {(c.family, n) for c in columns if c.part is not None for n in graph.numbers_of(c)}


def play(graph, chance, losses, *, workers=3, kept=()):
    """Run a graph, lose parcels at random; return how often each task ran, and what is left."""
    agenda, there, running = Agenda(graph, kept), set(kept), []
    ran, outputs = {}, set()
    while not agenda.finished:
        while len(running) < workers and (key := agenda.next()) is not None:
            assert all(
                agenda.is_complete(c.family) if c.numbers is None
                else all(agenda.is_done((c.family, n)) for n in c.numbers)
                for c in graph.families[key[0]].reads(key[1])
                if c.part is not None
            )  # fmt: skip
            running.append(key)
        assert running, "nothing runs, and not all is done"
        key = running.pop(chance.randrange(len(running)))
        missing = reads_of(graph, key) - there
        if missing:
            agenda.again(key, missing)
            continue
        ran[key] = ran.get(key, 0) + 1
        unneeded = agenda.finish(key)
        assert not any(reads_of(graph, other) & set(unneeded) for other in running)
        if graph.families[key[0]].parts:
            there.add(key)
        if graph.families[key[0]].output:
            outputs.add(key)
        there -= set(unneeded)
        if losses and there:
            losses -= 1
            lost = chance.choice(sorted(there))
            there.discard(lost)
            if chance.random() < 0.5:
                agenda.lose([lost])
    assert outputs == set(graph.outputs)
    return ran, there


def test_every_task_runs_once_and_its_parcel_goes():
    ran, left = play(transform(), random.Random(0), 0)
    assert set(ran.values()) == {1}
    assert {name for name, _ in ran} == {"planes", "rows", "finish", "write"}
    assert not left


@each("seed", range(20))
def test_lost_parcels_are_made_again(seed):
    chance = random.Random(seed)
    graph = transform(chance.randrange(2, 6))
    ran, _ = play(graph, chance, losses=chance.randrange(1, 12), workers=chance.randrange(1, 6))
    assert {key for key in ran if key[0] == "write"} == set(graph.outputs)


def test_what_is_kept_does_not_run_again():
    graph = transform()
    kept = {("finish", number) for number in range(5)} | {("planes", 2)}
    ran, left = play(graph, random.Random(1), 0, kept=kept)
    # A write waits for all planes, but the rows are not needed.
    assert not any(name in ("rows", "finish") for name, _ in ran)
    assert ("planes", 2) not in ran
    assert not left


def test_a_parcel_made_after_its_reader_began_is_not_lost_again():
    graph = TaskGraph()
    graph.add("hand", None, range(2), parts=2)
    graph.add("add", None, range(2), reads=lambda number: [Column("hand", number)], output=True)
    agenda = Agenda(graph)
    for key in (agenda.next(), agenda.next()):
        agenda.finish(key)
    first, second = agenda.next(), agenda.next()
    assert agenda.again(first, [("hand", 0)]) == [("hand", 0)]
    assert agenda.next() == ("hand", 0)
    agenda.finish(("hand", 0))
    assert agenda.again(second, [("hand", 0)]) == []
    assert {agenda.next(), agenda.next()} == {first, second}


def test_tasks_that_will_run_are_counted_from_the_first_of_their_family_on():
    graph = TaskGraph()
    graph.add("hand", None, range(4), parts=4)
    graph.add("add", None, range(4), reads=lambda n: [Column("hand", n, [n])], parts=1)
    graph.add("end", None, range(3), reads=lambda n: [Column("add", 0)], output=True)
    agenda = Agenda(graph)
    assert (agenda.ready, agenda.coming) == (4, 0)
    agenda.finish(agenda.next())
    assert (agenda.ready, agenda.coming) == (4, 3)
    # Put back, it can run at once.
    agenda.again(agenda.next())
    assert (agenda.ready, agenda.coming) == (4, 3)
    while not agenda.finished:
        agenda.finish(agenda.next())
    assert (agenda.ready, agenda.coming) == (0, 0)
