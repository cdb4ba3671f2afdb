"""A crew answers about several tasks together, but not late where somebody waits."""

from concurrent.futures import Future

from ray.exceptions import WorkerCrashedError

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
    crew._running.update(dict.fromkeys(("work", number) for number in range(given)))
    for number, error in enumerate(ends):
        future = Future()
        future.set_exception(error) if error else future.set_result(number)
        crew._ended.put((("work", number), future))
    found = crew.ended(LONG, moment)
    assert [end.key for end in found] == [("work", number) for number in range(len(ends))]
    assert [end.error is None for end in found] == [error is None for error in ends]
    assert len(crew._running) == given - len(ends)
