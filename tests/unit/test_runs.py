"""Every task is taken once, by workers that walk through runs and share what is left."""

from hypothesis import given
from hypothesis import strategies as st

from cosmoflow.engine.runs import Runs


def test_workers_walk_through_runs_and_share_the_longest():
    runs = Runs(range(10), run_of=lambda task: task // 5)
    assert [runs.take("a"), runs.take("b"), runs.take("a"), runs.take("b")] == [0, 5, 1, 6]
    # Three of each run are left: another worker takes the last two of the first.
    assert [runs.take("c"), runs.take("c")] == [3, 4]
    assert [runs.take("a"), len(runs)] == [2, 3]


def test_the_run_of_a_worker_that_died_begins_again_where_it_was():
    runs = Runs(range(6), run_of=lambda task: task // 3)
    lost = [runs.take("a"), runs.take("a")]
    runs.give_back("a", lost)
    assert [runs.take("b") for _ in range(6)] == [0, 1, 2, 3, 4, 5]


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60),
)
def test_no_task_is_lost_or_taken_twice(names, turns):
    runs = Runs(range(len(names)), run_of=names.__getitem__)
    in_hand, done = {worker: [] for worker in "abc"}, []
    for worker, dies in turns:
        if dies:
            runs.give_back(worker, in_hand[worker])
            in_hand[worker] = []
        elif len(runs):
            in_hand[worker].append(runs.take(worker))
            if len(in_hand[worker]) > 2:
                done.append(in_hand[worker].pop(0))
    done += [runs.take("d") for _ in range(len(runs))]
    done += [task for tasks in in_hand.values() for task in tasks]
    assert sorted(done) == list(range(len(names)))
