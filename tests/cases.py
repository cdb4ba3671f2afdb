"""Tables of cases: one test runs them all and names each case that fails."""

import inspect
from contextlib import ExitStack, contextmanager
from functools import wraps

import pytest


def each(names, cases, ids=None):
    """Run a test for every case of a table, as one test.

    It takes the place of ``pytest.mark.parametrize`` where a case is a row of a table and not a
    test of its own. A case that fails is reported by its name, and the cases after it still run.
    Each case has its own ``tmp_path`` and ``monkeypatch``; it shares all other fixtures.

    Parameters
    ----------
    names : str or sequence of str
        Arguments that a case gives; a string separates them by commas.
    cases : iterable
        Values, or tuples of values for several names; ``pytest.param`` gives a case a name.
    ids : iterable or callable, optional
        Names of the cases; a function is called with the values of a case.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    ids = list(ids) if ids is not None and not callable(ids) else ids
    table = [_row(case, number, ids, len(names)) for number, case in enumerate(cases)]

    def decorate(function):
        own = inspect.signature(function).parameters
        missing = set(names) - set(own)
        if missing:
            raise TypeError(f"{function.__name__} takes no {', '.join(sorted(missing))}")
        fixtures = [own[name] for name in own if name not in {*names, "subtests"}]
        subtests = inspect.Parameter("subtests", inspect.Parameter.POSITIONAL_OR_KEYWORD)

        @wraps(function)
        def test(subtests, **given):
            if "subtests" in own:
                given["subtests"] = subtests
            for number, (name, values) in enumerate(table):
                with subtests.test(name), _fresh(given, number) as arguments:
                    function(**arguments, **dict(zip(names, values, strict=True)))

        test.__signature__ = inspect.Signature([subtests, *fixtures])
        return test

    return decorate


def _row(case, number, ids, length):
    """Return the name and the values of a case."""
    name = None
    if hasattr(case, "marks"):
        if case.marks:
            raise TypeError("a case has no marks: use pytest.mark.parametrize")
        name, values = case.id, tuple(case.values)
    else:
        values = tuple(case) if length > 1 else (case,)
    if name is None and ids is not None:
        name = "-".join(map(str, map(ids, values))) if callable(ids) else str(ids[number])
    if name is None:
        name = "-".join(getattr(value, "__name__", None) or repr(value) for value in values)
    return name[:100], values


@contextmanager
def _fresh(given, number):
    """Give a case its own folder and patches, and none of the output of the case before."""
    given = dict(given)
    with ExitStack() as stack:
        if "tmp_path" in given:
            given["tmp_path"] = given["tmp_path"] / f"case-{number}"
            given["tmp_path"].mkdir()
        if "monkeypatch" in given:
            given["monkeypatch"] = stack.enter_context(pytest.MonkeyPatch.context())
        if "capsys" in given:
            given["capsys"].readouterr()
        yield given
