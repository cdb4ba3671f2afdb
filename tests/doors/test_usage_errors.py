"""Usage errors: text for people, one line of JSON for programs."""

import json
import re
from pathlib import Path

import cosmoflow
from cosmoflow.cli import app as app_module
from cosmoflow.cli.app import run_app
from tests.cases import each

REFUSED = {
    "no argument": (["paint"], "PARTICLES", "paint"),
    "no output": (["paint", "a.zarr"], "OUT", "paint"),
    "no option": (["train", "a.zarr"], "--out", "train"),
    "unknown option": (["paint", "a", "b", "--gird", "8"], "--gird", "paint"),
    "a setting": (["infer", "a", "b", "--symmetries", "8"], "--set infer.symmetries=", "infer"),
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


SECTIONS = {
    "seed": "seed=1", "cosmology": "cosmology.h=0.7", "simulate": "simulate.steps=3",
    "snapshot": "snapshot.h=0.7", "paint": "paint={shard: 8}", "derive": "derive.smoothing=4",
    "train": "train.steps=3", "infer": "infer.tile=8", "evaluate": "evaluate.subbox=64",
    "spectra": "spectra.per_decade=9", "engine": "engine.choice=serial",
}  # fmt: skip
"""A setting of each section."""


@each(
    ("command", "arguments"),
    [
        ("simulate", ["o.zarr", "--dry-run"]),
        ("convert", ["none", "o.zarr"]),
        ("import", ["none.npy", "o.zarr", "--box=64", "--redshift=0"]),
        ("paint", ["none", "o.zarr"]),
        ("derive", ["none", "o.zarr", "--field=divergence"]),
        ("train", ["none", "--out=o"]),
        ("infer", ["none", "o.zarr"]),
        ("evaluate", ["none", "none", "--out=o"]),
        ("spectra", ["none", "--field=density", "--out=o.zarr"]),
    ],
)
def test_settings_that_a_command_does_not_read_are_announced(command, arguments, capsys):
    run_app([command, *arguments, *(f"--set={one}" for one in SECTIONS.values())])
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "does not read" in line)
    unread = said.partition("does not read ")[2].partition(", given by")[0].split(", ")
    place = Path(cosmoflow.__file__).parent / "stages" / {"import": "imports"}.get(command, command)
    files = [place.with_suffix(".py")] if not place.is_dir() else list(place.glob("*.py"))
    read = {one for file in files for one in re.findall(r"settings\.(\w+)", file.read_text())}
    assert {key.partition(".")[0] for key in unread} == set(SECTIONS) - read - {"engine"}
    # What it reads may have a setting of that name.
    run_app([command, *arguments, "--set=cosmology.sigma8=0.8"])
    meant = "did you mean snapshot.sigma8?" in capsys.readouterr().err
    assert meant is ("snapshot" in read and "cosmology" not in read)
    # Some settings of a section, and those of a file, which may serve other commands.
    run_app([command, *arguments, "--config=paper", "--set=paint.scheme=ngp"])
    assert ("does not read paint.scheme, given" in capsys.readouterr().err) is (command != "paint")


@each(("command", "advised"), [("info", False), ("paint", True)])
def test_an_interrupted_command_advises_what_it_can_do(command, advised, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(app_module.app), "__call__", interrupt)
    assert run_app([command, "a.zarr", "b.zarr"]) == app_module.INTERRUPTED
    assert ("--resume" in capsys.readouterr().err) is advised
