"""Crews get as many tasks as their nodes have room for, and none ahead at the end."""

from cosmoflow.engine import TaskGraph
from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.crews import Rooms
from cosmoflow.engine.exchange.teams import MOST_AHEAD, Team, Teams, tasks_ahead
from tests.cases import each

HANDED_OUT = {
    "fewer tasks than room: in turn": ([48, 24, 2], 7, [3, 2, 2]),
    "none ahead if all that are left have room side by side": ([8, 8], 32, [8, 8]),
    "few ahead if hardly more are left": ([8, 8], 36, [9, 9]),
    "half of the share of what is left": ([8, 8], 60, [15, 15]),
    "at most as many more as there is room for": ([32, 64], 9999, [64, 128]),
    "or some more where there is little room": ([8, 2], 9999, [8 + MOST_AHEAD, 2 + MOST_AHEAD]),
}


def teams_with(*rooms):
    teams = Teams()
    for number, room in enumerate(rooms):
        teams.add(Team(None, Rooms(0, {str(number): room})))
    return teams


def agenda_of(tasks):
    graph = TaskGraph()
    graph.add("work", None, range(tasks), output=True)
    return Agenda(graph)


@each("rooms, tasks, expected", HANDED_OUT.values(), ids=HANDED_OUT)
def test_tasks_are_handed_out(rooms, tasks, expected):
    teams, agenda = teams_with(*rooms), agenda_of(tasks)
    given = [key for _, key in teams.hand_out(agenda)]
    assert given == [("work", number) for number in range(sum(expected))]
    assert [len(team.running) for team in teams] == expected
    assert agenda.ready == tasks - sum(expected)
    assert not list(teams.hand_out(agenda))


def test_a_quarter_is_ahead_while_more_of_the_same_will_come():
    assert [tasks_ahead(8, 1, coming) for coming in (0, 7, 8, 9, 99)] == [0, 0, 1, 2, 2]


def test_a_node_answers_when_half_of_its_tasks_ahead_have_begun_or_all_ended_if_none_is_left():
    teams, agenda = teams_with(8), agenda_of(100)
    (team,) = teams
    list(teams.hand_out(agenda))
    assert len(team.running) == 8 + MOST_AHEAD
    assert teams.enough(team, agenda) == MOST_AHEAD // 2
    while agenda.ready:
        for key in list(team.running):
            teams.note_ended(team, key)
        list(teams.hand_out(agenda))
    assert teams.enough(team, agenda) == len(team.running)


def test_a_node_with_less_to_do_gets_the_next_task():
    teams = teams_with(2, 2)
    busy, idle = teams
    assert len(list(teams.hand_out(agenda_of(4)))) == 4
    for key in list(idle.running):
        teams.note_ended(idle, key)
    taken = [team for team, _ in teams.hand_out(agenda_of(9))]
    assert taken[:2] == [idle, idle]
    assert taken.count(busy) == taken.count(idle) - 2


def test_a_team_that_is_gone_gets_no_tasks():
    teams = teams_with(2, 2)
    gone, _ = teams
    teams.remove(gone)
    assert gone not in dict(teams.hand_out(agenda_of(9)))
    assert teams.of_node("0") is None


def test_teams_share_the_other_nodes_and_give_up_those_that_leave():
    teams = teams_with(2, 2)
    one, two = teams
    for node in "abc":
        teams.add_node(node, 2)
    assert one.take_news() == (2, {"0": 2, "a": 2, "c": 2})
    assert two.take_news() == (1, {"1": 2, "b": 2})
    assert one.take_news() is None
    # Each node gets as many.
    list(teams.hand_out(agenda_of(5)))
    assert [len(team.running) for team in teams] == [3, 2]

    assert teams.keep_nodes({"0", "a", "b"}) == [two], "its crew is on a node that has left"
    assert one.take_news() == (3, {"0": 2, "a": 2})
    assert (one.room, two.room, teams.of_node("c"), teams.of_node("b")) == (4, 4, None, two)
    teams.remove(two)
    assert teams.of_node("b") is None


def test_an_answer_leads_to_a_look_at_its_own_node_alone():
    class Unseen(set):
        def __len__(self):
            raise AssertionError("a node was looked at that has not answered")

    teams, agenda = teams_with(*[4] * 9), agenda_of(500)
    list(teams.hand_out(agenda))
    answers, *others = teams
    for other in others:
        other.running = Unseen(other.running)
    teams.note_ended(answers, *list(answers.running)[:1])
    assert [team for team, _ in teams.hand_out(agenda)] == [answers]
