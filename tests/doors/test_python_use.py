"""Python as people use it: keywords, progress, completion, what is shown."""

import ast
import functools
import importlib
import inspect
import json
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
from cosmoflow.config import CosmologyConfig, Settings
from cosmoflow.errors import ConfigError, OutputExistsError, UsageError
from cosmoflow.events import CosmoflowWarning
from cosmoflow.keywords import open_door
from cosmoflow.model.names import model_folder
from cosmoflow.model.registry import count_parameters
from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.models import load_model
from cosmoflow.stages.run import Run
from cosmoflow.stages.train.basis import settle
from tests.cases import each
from tests.conftest import BOX, refused

ROOT = Path(cosmoflow.__file__).parents[1]
ONE_SCREEN = (45, 110)
"""Lines, and characters of a line."""


@pytest.fixture
def box(particle_store):
    made = particle_store(per_axis=16)
    # Particles that make up the mean density of matter: of others there is a warning.
    mass = 2.77536627e11 * CosmologyConfig().Omega_m * BOX**3 / 16**3
    zarr.open_group(made.url).attrs["particle_mass"] = mass
    return made


def counts(box, grid):
    """Density that NGP makes of equal particles."""
    edges = [np.linspace(0.0, BOX, grid + 1)] * 3
    found = np.histogramdd(box.position, edges)[0]
    return found / found.mean()


def test_keywords_are_settings(box, tmp_path):
    fields = cosmoflow.paint(box.url, str(tmp_path / "a"), grid=8, scheme="ngp", engine="serial")
    np.testing.assert_allclose(fields["density"], counts(box, 8), rtol=1e-6)


def test_paths_are_taken_as_text_is(box, tmp_path):
    fields = cosmoflow.paint(Path(box.url), tmp_path / "a", grid=8)
    assert fields.sizes["x"] == 8
    assert cosmoflow.info(tmp_path / "a")["kind"] == "fields"


def test_a_run_goes_on_being_the_third_argument(box, tmp_path, serial_run):
    run = serial_run(paint={"grid": 8, "scheme": "ngp"})
    one = cosmoflow.paint(box.url, str(tmp_path / "a"), run)
    two = cosmoflow.paint(box.url, str(tmp_path / "b"), grid=8, scheme="ngp")
    assert one.identical(two)


def test_keywords_outweigh_what_settings_and_runs_say(box, tmp_path, serial_run):
    given = {"paint": {"grid": 6, "scheme": "ngp"}}
    run = serial_run(**given)
    for index, how in enumerate(
        (
            {"run": run},
            {"settings": run.settings},
            {"settings": given},
            {"settings": {"paint": run.settings.paint}},
        )
    ):
        fields = cosmoflow.paint(box.url, str(tmp_path / f"{index}"), grid=8, **how)
        np.testing.assert_allclose(fields["density"], counts(box, 8), rtol=1e-6)
    preset = cosmoflow.paint(box.url, str(tmp_path / "p"), settings="quickstart", grid=8)
    assert preset.sizes["x"] == 8


@pytest.fixture
def runs(monkeypatch):
    """Return a function that opens a stage which does nothing but note what it is given."""
    noted = []

    def open_stage(name):
        door = api.DOORS[name]
        stage = getattr(importlib.import_module(door.home), door.name)

        @functools.wraps(stage)
        def note(*arguments):
            noted.append(arguments)

        monkeypatch.setattr(f"{door.home}.{door.name}", note)
        return open_door(name, door), noted

    return open_stage


def test_seed_cosmology_and_other_sections(runs):
    simulate, noted = runs("simulate")
    for cosmology in ({"Omega_m": 0.25}, CosmologyConfig(Omega_m=0.25)):
        simulate("a", seed=3, cosmology=cosmology, box_size=16.0, redshift=[1, 0])
    for out, run in noted:
        assert out == "a"
        changed = ["cosmology.Omega_m=0.25", "simulate.box_size=16", "simulate.redshift=[1,0]"]
        assert run.settings == cosmoflow.load_settings(overrides=["seed=3", *changed])


def test_keywords_of_the_engine(runs):
    paint, noted = runs("paint")
    given = Run(settings=cosmoflow.load_settings(overrides=["engine.workers=3"]))
    paint("p", "f", given, engine="ray", address="auto", memory="1GiB", snapshot={"h": 0.7})
    paint("p", "f", engine={"choice": "serial", "patience": 1.0}, address=None)
    paint("p", "f", given, grid=8)
    one, two, three = (run for _, _, run in noted)
    engine = one.settings.engine
    assert (engine.choice, engine.address, engine.memory) == ("ray", "auto", 1 << 30)
    assert engine.workers == 3
    assert one.settings.snapshot.h == 0.7
    assert one.session.config == engine
    assert (two.settings.engine.choice, two.settings.engine.patience) == ("serial", 1.0)
    # The caller's session, and a Ray that it has started, are kept.
    assert three.session is given.session


def test_workers_and_fields_of_a_prediction(runs):
    infer, noted = runs("infer")
    infer("f", "v", "linear", workers=2, field=["divergence"], region="0:8,0:8,0:8")
    ((_, _, model, run),) = noted
    assert model == "linear"
    assert run.settings.engine.workers == 2
    assert run.settings.infer.fields == ("divergence",)
    assert run.settings.infer.region == ((0.0, 8.0),) * 3


def test_names_of_fields_and_of_predictions(runs, tmp_path):
    """A field is a field in every function, and names may come with the stores."""
    derive, noted = runs("derive")
    for keyword in ("names", "field"):
        derive("f", "d", **{keyword: "divergence"}, smoothing=4.0)
        assert noted.pop()[2] == "divergence"
    refused(
        UsageError, 2, lambda: derive("f", "d", names="count", field="count"),
        "field and names mean the same",
    )  # fmt: skip
    evaluate, _ = runs("evaluate")
    evaluate("t", {"mine": tmp_path / "a"}, "report")
    assert noted.pop()[1] == {"mine": str(tmp_path / "a")}


def test_one_field_is_derived_and_one_box_trained_on(box, tmp_path):
    fields = cosmoflow.paint(box.url, str(tmp_path / "a"), grid=8, scheme="tsc")
    derived = cosmoflow.derive(str(tmp_path / "a"), tmp_path / "b", field="momentum")
    expected = fields["density"].values * fields["velocity"].values
    np.testing.assert_allclose(derived["momentum"].values, expected, rtol=1e-6)
    made = cosmoflow.train(tmp_path / "a", tmp_path / "m", model="wiener", crop=4)
    assert made.spec.provenance["sources"] == {"fields 0": str(tmp_path / "a")}


def test_settings_that_are_not_given_follow_from_the_model_to_start_from(runs):
    """As for the command, whose options are the only settings that are set."""
    train, noted = runs("train")
    given = {"start": "residual-small", "steps": 3000}
    train(["f"], "m", **given)
    train(["f"], "m", **given, learning_rate=2e-3, error_steps=0)
    train(["f"], "m", start="residual-small", steps=300)
    start = load_model(model_folder("residual-small"))
    one, two, short = (settle(run.settings.train, start) for *_, run in noted)
    assert (one.model, one.learning_rate, one.error_steps) == ("residual-small", 5e-4, 300)
    assert (two.learning_rate, two.muon_rate, two.error_steps) == (2e-3, one.muon_rate, 0)
    assert (one.validate_every, short.validate_every) == (200, 30)


def test_existing_outputs(box, tmp_path):
    out = str(tmp_path / "a")
    cosmoflow.paint(box.url, out, grid=8)
    # The remedies are those of Python.
    remedies = {"complete": "; in Python overwrite=True", "incomplete": "; in Python resume=True, "}
    for status, remedy in remedies.items():
        zarr.open_group(out).attrs["status"] = status
        refused(
            OutputExistsError, 2, lambda: cosmoflow.paint(box.url, out, grid=8), "overwrite=True",
            remedy,
        )  # fmt: skip
    assert cosmoflow.paint(box.url, out, grid=8, resume=True).sizes["x"] == 8
    assert cosmoflow.paint(box.url, out, grid=6, overwrite=True).sizes["x"] == 6


@each(
    ("name", "remedy", "keyword"),
    [
        ("paint", "--set paint.grid=64 or less", "grid=64"),
        ("paint", "try --set snapshot.h=0.7.", "snapshot={'h': 0.7}"),
        ("evaluate", "if it is, --set evaluate.force=true", "force=True"),
        (
            "infer",
            "--set snapshot.velocity=gadget",
            "settings={'snapshot': {'velocity': 'gadget'}}",
        ),
        ("paint", "paint the box onto --grid 64", "grid=64"),
        ("train", "run it again with --resume", "resume=True"),
        ("infer", "a smaller tile, or --engine ray", "engine='ray'"),
    ],
)
def test_remedies_name_keywords(name, remedy, keyword, monkeypatch):
    def refuse(*_, **__):
        raise ConfigError("no", remedy=remedy)

    door = api.DOORS[name]
    original = getattr(importlib.import_module(door.home), door.name)
    monkeypatch.setattr(f"{door.home}.{door.name}", functools.wraps(original)(refuse))
    call = open_door(name, door)
    arguments = {"paint": 2, "train": 2, "infer": 2, "evaluate": 3}[name] * ["a"]
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert caught.value.remedy == f"{remedy}; in Python {keyword}"


@each(
    ("call", "words"),
    [
        (lambda: cosmoflow.paint("p", "f", gird=8), ["'gird'", "did you mean 'grid'", "scheme"]),
        (lambda: cosmoflow.simulate("p", box=8), ["did you mean 'box_size'"]),
        (lambda: cosmoflow.simulate("p", grid=8), ["grid is a setting of paint"]),
        (
            lambda: cosmoflow.infer_array(np.ones((4, 4, 4)), 8.0, sigma8=0.8),
            ["give cosmology={'sigma8': 0.8}"],
        ),
        (
            lambda: cosmoflow.infer("f", "v", fields=["divergence"]),
            ["values for argument 'fields'", "did you mean 'field'?"],
        ),
        (lambda: cosmoflow.models(8), ["models()"]),
        (lambda: cosmoflow.paint("p"), ["'out'"]),
        (lambda: cosmoflow.paint("p", "f", Settings()), ["settings="]),
        (lambda: cosmoflow.paint("p", "f", Run(), settings={}), ["exclude"]),
        (lambda: cosmoflow.paint("p", "f", overwrite=True, resume=True), ["exclude"]),
        (lambda: cosmoflow.infer_array(np.ones((4, 4, 4)), 8.0, overwrite=True), ["'overwrite'"]),
    ],
)
def test_calls_that_make_no_sense(call, words):
    refused(UsageError, 2, call, *words)
    with pytest.raises(TypeError):
        call()


def test_values_that_make_no_sense():
    refused(ConfigError, 2, lambda: cosmoflow.paint("p", "f", grid=1), "paint.grid", "1")
    refused(
        ConfigError,
        2,
        lambda: cosmoflow.simulate("p", cosmology={"omega_m": 0.3}),
        "cosmology.Omega_m?",
    )


def test_density_in_memory_takes_keywords_and_a_mapping_as_cosmology():
    density = 1.0 + 0.1 * np.cos(2.0 * np.pi * (np.arange(16) + 0.5) / 16)[:, None, None]
    density = np.broadcast_to(density, (16,) * 3)
    said = "assumed, as not stated: redshift 0, h 0.6777, Omega_b 0.05, sigma8 0.83, n_s 0.96"
    with pytest.warns(CosmoflowWarning, match=f"^{said}$"):
        fields = cosmoflow.infer_array(
            density, 32.0, "linear", cosmology={"Omega_m": 0.25}, field="divergence"
        )
    provenance = json.loads(fields.attrs["provenance"])
    assert provenance["notes"] == [said]
    assert provenance["sources"] == {"fields": "an array in memory", "models": "linear"}
    assert provenance["versions"]["cosmoflow"] == cosmoflow.__version__
    assert provenance["inputs"]["models"] == "linear"
    assert provenance["config"]["infer"]["fields"] == ["divergence"]
    # div v = -a f H delta, f = Omega_m^0.55 to a per cent at z = 0, and H = 100 km/s/(Mpc/h).
    wave = np.asarray(fields["velocity"].sel(component="x"))[:, 0, 0]
    phase = 2.0 * np.pi * (np.arange(16) + 0.5) / 16
    expected = -100.0 * 0.25**0.55 * 0.1 * np.sin(phase) * 32.0 / (2.0 * np.pi)
    np.testing.assert_allclose(wave, expected, rtol=0.01, atol=0.01)
    assert fields["divergence"].shape == (16, 16, 16)


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
