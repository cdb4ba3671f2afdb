"""A crew answers about several tasks together, but not late where somebody waits."""

from concurrent.futures import Future

from ray.exceptions import TaskUnschedulableError, WorkerCrashedError

from cosmoflow.engine.base import ONE_CORE
from cosmoflow.engine.exchange.crews import Crew
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


def test_a_crew_gives_tasks_to_the_node_with_the_most_room_and_none_to_one_that_has_left():
    crew = Crew(lambda *order: None, {}, ONE_CORE, {"small": 2, "large": 4})
    chosen = []
    for number in range(6):
        chosen.append(crew._choose_node())
        crew._loads[chosen[-1]] += 1
        crew._running["work", number] = None, chosen[-1]
    assert chosen == ["large", "large", "small", "large", "small", "large"]

    lost = Future()
    lost.set_exception(TaskUnschedulableError("its node is not there"))
    crew._ended.put((("work", 0), lost))
    (end,) = crew.ended(LONG)
    assert end.left
    assert end.error is None
    assert crew._choose_node() == "small"
    crew.use({"new": 9})
    assert crew._choose_node() == "new"
