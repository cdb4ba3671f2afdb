"""`cosmoflow plan`: what a person reads, what a program reads, what is refused."""

import subprocess
import sys

import pytest

from cosmoflow.cli.app import run_app
from tests.cases import each


def test_a_table_with_the_limits_and_the_total(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert run_app(["plan", "gigabox"]) == 0
    out, err = capsys.readouterr()
    for word in ("paint", "flow", "infer", "spectra", "evaluate", "total:", "network", "peak"):
        assert word in out
    assert "…" not in out
    assert "ask the autoscaler for up to" in out
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_same_as_json(cosmoflow):
    code, events, err = cosmoflow("plan", "gigabox", "--nodes", "16", "--spot", "--json")
    assert (code, err) == (0, "")
    (result,) = events
    assert [stage["nodes"] for stage in result["stages"]] == [16] * 5
    assert result["usd"] > sum(stage["usd"] for stage in result["stages"]) > 0.0
    assert result["seconds"] == sum(stage["seconds"] for stage in result["stages"])


def test_settings_and_stages_are_those_asked_for(cosmoflow):
    arguments = [
        "plan",
        "gigabox",
        "--set",
        "paint.grid=8192",
        "--stages",
        "spectra,flow",
        "--json",
    ]
    code, events, err = cosmoflow(*arguments)
    assert code == 2
    assert "--stages" in err
    arguments[5] = "spectra"
    code, events, err = cosmoflow(*arguments)
    assert code == 0
    (stage,) = events[0]["stages"]
    assert stage["exchanged"] == pytest.approx(8 * 8192**2 * 4097)


@each(
    ("arguments", "words"),
    [
        (["nobox"], "presets"),
        (["gigabox", "--node", "m7i.16xlage"], "did you mean"),
        (["gigabox", "--hours", "0.001"], "fast enough"),
        (["gigabox", "--hours", "1", "--nodes", "3"], "exclude"),
    ],
)
def test_what_cannot_be_planned_is_refused(cosmoflow, arguments, words):
    code, _, err = cosmoflow("plan", *arguments)
    assert code == 2
    assert words in err or words.rstrip("s") in err


def test_neither_ray_nor_a_store_is_touched():
    program = (
        "import sys; from cosmoflow.cli.app import run_app; "
        "sys.exit(run_app(['plan', 'quickstart']) or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
