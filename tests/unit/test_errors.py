"""Errors: whole after a journey between processes, complete for a person."""

import copy
import pickle

from cosmoflow.errors import (
    BusyError,
    ConfigError,
    CosmoflowError,
    DataError,
    IncompleteError,
    OutputExistsError,
    StorageError,
    SupersededError,
    UsageError,
)
from tests.cases import each

EXIT_CODES = {
    CosmoflowError: 1,
    ConfigError: 2,
    UsageError: 2,
    OutputExistsError: 2,
    BusyError: 2,
    DataError: 3,
    StorageError: 4,
    IncompleteError: 5,
    SupersededError: 5,
}
KINDS = sorted(EXIT_CODES, key=lambda kind: kind.__name__)
PARTS = {"where": "a.zarr, particle 7", "value": [1.5, None], "limit": (0, 8), "remedy": "mend it"}


def test_every_kind_has_its_exit_code_and_name_and_travels_as_the_base_class_says():
    for kind in KINDS:
        assert kind("no").exit_code == EXIT_CODES[kind]
        assert kind.__reduce__ is CosmoflowError.__reduce__
        assert type(copy.copy(kind("what happened"))) is kind
    assert len({kind.kind for kind in KINDS}) == len(KINDS)
    assert isinstance(OutputExistsError("there"), ConfigError)
    # There is no error without an exit code here.
    known, todo = set(), [CosmoflowError]
    while todo:
        kind = todo.pop()
        known.add(kind)
        todo += [sub for sub in kind.__subclasses__() if sub.__module__ == "cosmoflow.errors"]
    assert known == set(EXIT_CODES)


@each("parts", [PARTS, {}, {"value": 0}, {"remedy": "x"}])
@each("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_every_part_survives_pickling(parts, travel):
    """The base class says how; the others inherit it."""
    error = StorageError("what happened", **parts)
    found = travel(error)
    assert type(found) is StorageError
    assert found.what == "what happened"
    assert found.details() == {**dict.fromkeys(PARTS), **parts}
    assert str(found) == str(error)


def test_message_lists_its_parts_in_order_and_leaves_out_those_that_are_missing():
    lines = str(DataError("it broke", **PARTS)).splitlines()
    assert lines[0] == "it broke"
    assert [line.split() for line in lines[1:]] == [
        ["where:", "a.zarr,", "particle", "7"],
        ["found:", "[1.5,", "None]"],
        ["expected:", "(0,", "8)"],
        ["remedy:", "mend", "it"],
    ]
    columns = {line.index(line.split(":", 1)[1].strip()) for line in lines[1:]}
    assert len(columns) == 1
    assert str(DataError("it broke")) == "it broke"
    # A value that is false is not missing.
    assert [line.split() for line in str(DataError("it broke", value=0)).splitlines()[1:]] == [
        ["found:", "0"]
    ]
