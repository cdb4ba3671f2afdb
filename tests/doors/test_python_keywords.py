"""Functions take settings as keywords, and refuse calls and values that make no sense."""

import functools
import importlib
import json
from pathlib import Path

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
from cosmoflow.stages.models import load_model
from cosmoflow.stages.run import Run
from cosmoflow.stages.train.basis import settle
from tests.cases import each
from tests.conftest import BOX, refused


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
