"""Tables of cases: each case runs, by itself, and those that fail are named."""

from contextlib import contextmanager

import pytest

from tests.cases import each


class Names:
    """In place of pytest's subtests: notes which were run and which failed."""

    def __init__(self):
        self.run, self.failed = [], []

    @contextmanager
    def test(self, name):
        self.run.append(name)
        try:
            yield
        except AssertionError:
            self.failed.append(name)


def test_a_case_that_fails_is_named_and_stops_no_other(tmp_path):
    folders = []

    @each("value", [1, 2], ids=["one", "two"])
    @each("other, more", [(0, 0), pytest.param(2, 2, id="pair")])
    def table(tmp_path, value, other, more):
        folders.append(tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert value + other + more != 5

    names = Names()
    table(subtests=names, tmp_path=tmp_path)
    assert names.run == ["one", "0-0", "pair", "two", "0-0", "pair"]
    assert names.failed == ["pair"]
    assert len(set(folders)) == 4


def test_arguments_that_a_test_does_not_take_are_refused():
    with pytest.raises(TypeError, match="takes no colour"):
        each("colour", [1])(lambda shape: None)
    with pytest.raises(TypeError, match="no marks"):
        each("colour", [pytest.param(1, marks=pytest.mark.slow)])
