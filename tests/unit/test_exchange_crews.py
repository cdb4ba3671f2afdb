"""A crew answers about several tasks together, but not late where somebody waits."""

from concurrent.futures import Future

from ray.exceptions import TaskUnschedulableError, WorkerCrashedError

from cosmoflow.engine.base import ONE_CORE
from cosmoflow.engine.exchange.crews import Crew, Order, Rooms
from tests.cases import each

ENDED, FAILED = None, WorkerCrashedError()
LONG = 600.0
"""Seconds, longer than a test may take."""

ANSWERS = {
    "enough have ended": ([ENDED] * 3, 9, 3, LONG),
    "more are there": ([ENDED] * 5, 9, 3, LONG),
    "one has failed": ([ENDED, FAILED], 9, 8, LONG),
    "no other task runs": ([ENDED] * 2, 2, 8, LONG),
    "a moment has passed": ([ENDED], 9, 8, 0.01),
}


@each("ends, given, enough, moment", ANSWERS.values(), ids=ANSWERS)
def test_a_crew_answers_when(ends, given, enough, moment):
    crew = Crew(lambda *order: None, {}, ONE_CORE)
    crew.submit([], enough)
    crew._running.update({("work", number): (None, None) for number in range(given)})
    for number, error in enumerate(ends):
        future = Future()
        future.set_exception(error) if error else future.set_result(number)
        crew._ended.put((("work", number), future))
    found = crew.ended(LONG, moment)
    assert [end.key for end in found] == [("work", number) for number in range(len(ends))]
    assert [end.error is None for end in found] == [error is None for error in ends]
    assert len(crew._running) == given - len(ends)


class Sent:
    """A task that was sent to a node."""

    def __init__(self):
        self._future = Future()

    def remote(self, *order):
        return self

    def future(self):
        return self._future


def test_a_crew_gives_tasks_to_the_node_with_the_most_room_and_none_to_one_that_has_left(
    monkeypatch,
):
    sent = []

    def remote_on(self, node, family):
        sent.append((node, Sent()))
        return sent[-1][1]

    monkeypatch.setattr(Crew, "_remote_on", remote_on)
    crew = Crew(lambda *order: None, {"work": None}, ONE_CORE, Rooms(3, {"small": 2, "large": 4}))
    orders = [Order(("work", number), False, [], []) for number in range(20)]

    def submit(count, *more):
        before = len(sent)
        crew.submit(orders[before : before + count], 1, *more)
        return [node for node, _ in sent[before:]]

    assert submit(6) == ["large", "large", "small", "large", "small", "large"]
    sent[2][1].future().set_result(7)
    sent[4][1].future().set_result(8)
    assert [end.value for end in crew.ended(LONG)] == [7, 8]
    assert submit(3) == ["small", "small", "small"]

    sent[0][1].future().set_exception(TaskUnschedulableError("its node is not there"))
    (end,) = crew.ended(LONG)
    assert (end.left, end.error) == (True, None)
    assert submit(3) == ["small"] * 3
    # Messages may overtake one another.
    assert submit(2, Rooms(5, {"small": 2, "new": 9, "large": 4})) == ["new", "new"]
    assert submit(1, Rooms(4, {"small": 20})) == ["new"]
