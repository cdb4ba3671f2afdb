"""Usage errors: text for people, one line of JSON for programs."""

import json

from cosmoflow.cli.app import run_app
from tests.cases import each

REFUSED = {
    "no argument": (["paint"], "PARTICLES", "paint"),
    "no output": (["paint", "a.zarr"], "OUT", "paint"),
    "no option": (["train", "a.zarr"], "--out", "train"),
    "unknown option": (["paint", "a", "b", "--gird", "8"], "--gird", "paint"),
    "no number": (["paint", "a", "b", "--grid", "x"], "--grid", "paint"),
    "no choice": (["paint", "a", "b", "--scheme", "tcs"], "--scheme", "paint"),
    "no value": (["plan", "gigabox", "--hours"], "--hours", ""),
    "too many": (["info", "a", "b"], "b", "info"),
    "unknown command": (["pant"], "pant", ""),
}
"""Arguments, what the message names, and the command that it belongs to."""


@each("case", REFUSED)
def test_a_program_reads_one_line_of_json(case, capsys):
    arguments, named, command = REFUSED[case]
    # Before the last one, which may be an option that lacks its value.
    place = len(arguments) - 1 if case == "no value" else len(arguments)
    assert run_app([*arguments[:place], "--json", *arguments[place:]]) == 2
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    found = json.loads(line)
    assert (found["event"], found["kind"], found["exit_code"]) == ("error", "usage", 2)
    assert named in found["message"]
    assert found["where"].split()[-1] == command or not command
    assert found["remedy"].endswith(f"{command} --help")
    assert named in err


@each("case", ["no argument", "unknown command"])
def test_a_person_reads_words(case, capsys):
    arguments, named, _ = REFUSED[case]
    assert run_app(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert "Usage:" in err


def test_help_is_no_error_and_contradictions_are(capsys):
    assert run_app(["paint", "--help"]) == 0
    assert "--grid" in capsys.readouterr().out
    assert run_app([]) == 2
    assert "paint" in capsys.readouterr().err
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cosmoflow ")
    # Options that exclude each other are a line of JSON too.
    assert run_app(["paint", "a", "b", "--resume", "--overwrite", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["event"], found["kind"], found["exit_code"]) == ("error", "config", 2)
