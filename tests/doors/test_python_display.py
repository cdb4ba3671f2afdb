"""Functions as people meet them: signatures, names, objects on a screen, progress, warnings."""

import ast
import inspect
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

import cosmoflow
from cosmoflow import api
from cosmoflow.config import Settings
from cosmoflow.events import CosmoflowWarning
from cosmoflow.model.names import model_folder
from cosmoflow.model.registry import count_parameters
from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.models import load_model
from cosmoflow.stages.run import Run
from tests.cases import each

ROOT = Path(cosmoflow.__file__).parents[1]
ONE_SCREEN = (45, 110)
"""Lines, and characters of a line."""


@each("name", sorted(api.DOORS))
def test_signatures_name_every_setting(name):
    function, door = getattr(cosmoflow, name), api.DOORS[name]
    parameters = inspect.signature(function).parameters
    if door.own is not None:
        section = getattr(Settings(), door.own)
        for setting, field in type(section).model_fields.items():
            aliases = [
                alias for alias, path in door.aliases.items() if path.endswith(f".{setting}")
            ]
            assert {setting, *aliases} & set(parameters)
            if setting in parameters and parameters[setting].kind.name == "KEYWORD_ONLY":
                assert parameters[setting].default == getattr(section, setting)
            if setting in parameters:
                said = " ".join(function.__doc__.lower().split())
                assert field.description.lower().split()[-1] in said
    assert pickle.loads(pickle.dumps(function)) is function


def test_types_for_editors_agree_with_the_functions():
    stub = ast.parse((ROOT / "cosmoflow" / "api.pyi").read_text())
    found = {node.name: node.args for node in stub.body if isinstance(node, ast.FunctionDef)}
    shared = {
        node.name: [field.target.id for field in node.body]
        for node in stub.body
        if isinstance(node, ast.ClassDef)
    }
    assert set(found) == set(api.DOORS)
    for name, arguments in found.items():
        parameters = inspect.signature(getattr(cosmoflow, name)).parameters
        before = [one.arg for one in arguments.args]
        assert before == list(parameters)[: len(before)]
        keywords = {one.arg for one in arguments.kwonlyargs}
        others = arguments.kwarg and arguments.kwarg.annotation
        if isinstance(others, ast.Subscript):
            keywords |= {*shared[others.slice.id]}
            assert keywords == set(parameters) - set(before)
        assert keywords <= set(parameters)


def test_names_are_listed_and_nothing_heavy_is_loaded():
    code = (
        "import sys, cosmoflow; print(*dir(cosmoflow)); "
        "print(*{'torch', 'zarr', 'numba', 'ray', 'xarray', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names, heavy = done.stdout.splitlines()
    assert heavy == ""
    assert {*cosmoflow.__all__, "inspect"} <= set(names.split())
    assert not {"os", "importlib", "Any", "TYPE_CHECKING"} & set(names.split())
    star = {}
    exec("from cosmoflow import *", star)
    assert set(cosmoflow.__all__) <= set(star)
    assert "inspect" not in star


def test_commands_have_functions_of_their_names(fields_store, monkeypatch, tmp_path):
    url = fields_store().url
    assert cosmoflow.info(url)["kind"] == "fields"
    assert cosmoflow.inspect(url) == cosmoflow.info(url)
    ships = {one["name"] for one in cosmoflow.models() if one["ships"]}
    assert "residual-small" in ships
    given = []
    monkeypatch.setattr(
        "cosmoflow.stages.demo.demo", lambda out, run: (given.append((out, run)), {})
    )
    cosmoflow.demo(str(tmp_path), seed=5, train={"steps": 7}, resume=True)
    ((out, run),) = given
    assert out == str(tmp_path)
    assert (run.settings.seed, run.settings.train.steps, run.existing) == (5, 7, "resume")
    assert run.settings.paint == cosmoflow.load_settings("quickstart").paint


def on_one_screen(thing):
    lines = repr(thing).splitlines()
    return len(lines) <= ONE_SCREEN[0] and max(map(len, lines)) <= ONE_SCREEN[1]


def test_what_is_shown_fits_a_screen(box, fields_store):
    random = np.random.default_rng(0)
    truth = random.normal(0.0, 100.0, (3, 12, 12, 12)).astype(np.float32)
    density = random.lognormal(0.0, 0.5, (12,) * 3).astype(np.float32)
    found = compare(density / density.mean(), truth, {"half": 0.5 * truth}, 24.0, subbox=12.0)
    rms = np.sqrt((truth.astype(float) ** 2).sum(0).mean())
    assert f"{0.5 * rms:.1f}  " in repr(found)
    assert f"true rms {rms:.1f} km/s" in found._repr_html_()
    model = load_model(model_folder("residual-small"))
    assert f"{count_parameters(model.network)[0]:,} parameters" in repr(model)
    plan = cosmoflow.plan("gigabox", hours=6)
    assert f"{plan.usd:,.2f} USD" in repr(plan)
    particles = cosmoflow.info(box.url)
    assert "box_size: 64.0" in repr(particles)
    shown = [
        found, model, plan, particles, cosmoflow.info(fields_store().url), cosmoflow.models(),
        cosmoflow.info(model_folder("residual-small")), Settings(), Run(),
    ]  # fmt: skip
    assert [repr(one) for one in shown if not on_one_screen(one)] == []
    changed = cosmoflow.load_settings(overrides=["paint.grid=64"])
    assert repr(changed) == "Settings(paint=PaintConfig(grid=64))"


@pytest.fixture
def notebook(monkeypatch):
    """Let this process be the kernel of a notebook; return what its cells display."""
    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(content)

    def display(content, *, raw, display_id):
        shown.append(content)
        return Handle()

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_a_notebook_shows_progress(box, tmp_path, notebook):
    cosmoflow.paint(box.url, str(tmp_path / "a"), grid=8)
    assert notebook[0]["text/plain"] == "paint: 0/8 shards"
    assert notebook[-1]["text/plain"] == "paint: 8/8 shards"
    assert "value='8' max='8'" in notebook[-1]["text/html"]
    shown = len(notebook)
    cosmoflow.paint(box.url, str(tmp_path / "b"), grid=8, progress=False)
    heard = []
    cosmoflow.paint(box.url, str(tmp_path / "c"), Run(listener=heard.append), grid=8)
    assert len(notebook) == shown
    assert heard


def test_a_script_is_silent_unless_it_asks(box, tmp_path, capsys):
    cosmoflow.paint(box.url, str(tmp_path / "a"), grid=8)
    assert capsys.readouterr() == ("", "")
    heard = []
    run = Run(listener=heard.append)
    cosmoflow.paint(box.url, str(tmp_path / "b"), run, grid=8, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "paint: 8/8"
    assert heard


def test_warnings_reach_the_line_that_called(notebook, capsys):
    density = np.ones((16,) * 3)
    calls = {
        "in a notebook": {},
        "with a run": {"run": Run()},
    }
    for keywords in calls.values():
        with pytest.warns(CosmoflowWarning, match="scatter|particles per cell") as caught:
            cosmoflow.infer_array(density, 32.0, "wiener", redshift=1.0, **keywords)
        assert caught[0].filename == __file__
    assert capsys.readouterr() == ("", "")
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run(listener=heard.append)
        cosmoflow.infer_array(density, 32.0, "wiener", redshift=1.0, run=run)
    # The cosmology, and the particles, that are assumed, and the scatter.
    assert [event.level for event in heard] == ["info", *["warning"] * 2]


def test_warnings_of_a_store_reach_the_caller(tmp_path, fields_store, capsys):
    made = fields_store(grid=16, cell=2.0)
    zarr.open_group(made.url).attrs["redshift"] = 1.0
    with pytest.warns(CosmoflowWarning, match="scatter|particles per cell") as caught:
        cosmoflow.infer(made.url, str(tmp_path / "v"), "wiener", progress=True)
    assert caught[0].filename == __file__
    # Not printed on top of that.
    assert "scatter" not in capsys.readouterr().err
