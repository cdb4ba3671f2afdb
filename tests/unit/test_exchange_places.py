"""Nodes get as many tasks as they have room for, and fewer ahead towards the end."""

from cosmoflow.engine import TaskGraph
from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.places import MOST_AHEAD, Place, Places
from tests.cases import each

HANDED_OUT = {
    "fewer tasks than room: in turn": ([48, 24, 2], 7, [3, 2, 2]),
    "a quarter more": ([8, 8], 22, [10, 10]),
    "half of the share of what is left": ([8, 8], 36, [11, 11]),
    "at most as many more as there is room for": ([32, 64], 9999, [64, 128]),
    "or some more where there is little room": ([8, 2], 9999, [8 + MOST_AHEAD, 2 + MOST_AHEAD]),
    "at least one": ([1, 1], 5, [2, 2]),
}


class Recorder:
    """A crew that notes which nodes it is told to use."""

    rooms = None

    def use(self, rooms):
        self.rooms = rooms


def places_with(*rooms):
    places = Places()
    for number, room in enumerate(rooms):
        places.add(Place(Recorder(), {str(number): room}))
    return places


def agenda_of(tasks):
    graph = TaskGraph()
    graph.add("work", None, range(tasks), output=True)
    return Agenda(graph)


@each("rooms, tasks, expected", HANDED_OUT.values(), ids=HANDED_OUT)
def test_tasks_are_handed_out(rooms, tasks, expected):
    places, agenda = places_with(*rooms), agenda_of(tasks)
    given = [key for _, key in places.hand_out(agenda)]
    assert given == [("work", number) for number in range(sum(expected))]
    assert [len(place.running) for place in places] == expected
    assert agenda.ready == tasks - sum(expected)
    assert not list(places.hand_out(agenda))


def test_a_node_answers_when_half_of_its_tasks_ahead_have_begun_or_all_ended_if_none_is_left():
    places, agenda = places_with(8), agenda_of(100)
    (place,) = places
    list(places.hand_out(agenda))
    assert len(place.running) == 8 + MOST_AHEAD
    assert places.enough(place, agenda) == MOST_AHEAD // 2
    while agenda.ready:
        for key in list(place.running):
            places.note_ended(place, key)
        list(places.hand_out(agenda))
    assert places.enough(place, agenda) == len(place.running)


def test_a_node_with_less_to_do_gets_the_next_task():
    places = places_with(2, 2)
    busy, idle = places
    assert len(list(places.hand_out(agenda_of(4)))) == 4
    for key in list(idle.running):
        places.note_ended(idle, key)
    taken = [place for place, _ in places.hand_out(agenda_of(3))]
    assert taken == [idle, idle, busy]


def test_a_crew_that_has_died_gets_no_tasks():
    places = places_with(2, 2)
    gone, _ = places
    places.remove(gone)
    assert gone not in dict(places.hand_out(agenda_of(9)))
    assert "0" not in places


def test_crews_share_the_other_nodes_and_use_those_that_are_up():
    places = places_with(2, 2)
    one, two = places
    for node in "abc":
        places.add_node(node, 3)
    assert one.crew.rooms == {"0": 2, "a": 3, "c": 3}
    assert two.crew.rooms == {"1": 2, "b": 3}
    list(places.hand_out(agenda_of(13)))
    assert [len(place.running) for place in places] == [8, 5]

    # The crew on node 1 ends by itself when its node has left.
    places.keep_nodes({"0", "a", "b"})
    assert one.crew.rooms == {"0": 2, "a": 3}
    assert (one.room, two.room) == (5, 5)
    assert ("c" in places, "b" in places, places.at("a"), places.at("1")) == (False, True, one, two)
    places.remove(two)
    assert "b" not in places


def test_an_answer_leads_to_a_look_at_its_own_node_alone():
    class Unseen(set):
        def __len__(self):
            raise AssertionError("a node was looked at that has not answered")

    places, agenda = places_with(*[4] * 9), agenda_of(500)
    list(places.hand_out(agenda))
    answers, *others = places
    for other in others:
        other.running = Unseen(other.running)
    places.note_ended(answers, *list(answers.running)[:1])
    assert [place for place, _ in places.hand_out(agenda)] == [answers]
