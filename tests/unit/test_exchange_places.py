"""Nodes get as many tasks as they have room for, and fewer ahead towards the end."""

from cosmoflow.engine import TaskGraph
from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.places import Place, hand_out
from tests.cases import each

HANDED_OUT = {
    "fewer tasks than room: in turn": ([48, 24, 2], 7, [3, 2, 2]),
    "a quarter more": ([8, 8], 22, [10, 10]),
    "a quarter of the share of all": ([8, 8], 48, [14, 14]),
    "at most as many more as there is room for": ([8, 16], 9999, [16, 32]),
    "at least one": ([1, 1], 5, [2, 2]),
}


@each("rooms, tasks, expected", HANDED_OUT.values(), ids=HANDED_OUT)
def test_tasks_are_handed_out(rooms, tasks, expected):
    graph = TaskGraph()
    graph.add("work", None, range(tasks), output=True)
    places = [Place(None, room) for room in rooms]
    agenda = Agenda(graph)
    given = [key for _, key in hand_out(places, agenda)]
    assert given == [("work", number) for number in range(sum(expected))]
    assert [len(place.running) for place in places] == expected
    assert agenda.ready == tasks - sum(expected)
    assert not list(hand_out(places, agenda))


def test_a_node_with_less_to_do_gets_the_next_task():
    graph = TaskGraph()
    graph.add("work", None, range(3), output=True)
    busy, idle = Place(None, 2, running={("old", 0), ("old", 1)}), Place(None, 2)
    taken = [place for place, _ in hand_out([busy, idle], Agenda(graph))]
    assert taken[:2] == [idle, idle]
