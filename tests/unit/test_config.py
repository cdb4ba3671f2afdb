"""Settings: refused when wrong, merged in order, digested alike everywhere."""

import json
import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from cosmoflow.cli.app import run_app
from cosmoflow.config import Settings, load_settings
from cosmoflow.config.loading import preset_folder, preset_names
from cosmoflow.config.reference import find_settings
from cosmoflow.errors import ConfigError
from cosmoflow.stages.paint import paint
from cosmoflow.storage.fields import FieldStore
from tests.cases import each

STAGES = ("seed", "cosmology", "simulate", "paint", "train", "infer", "evaluate")


def refused(**arguments):
    with pytest.raises(ConfigError) as caught:
        load_settings(**arguments)
    assert caught.value.exit_code == 2
    return caught.value


@each(
    ("key", "suggestion"),
    [("paint.gird", " paint.grid?"), ("pant.grid", " paint?"), ("grid", " paint.grid?")],
)
def test_unknown_key_is_refused_with_a_suggestion(key, suggestion):
    error = refused(overrides=[f"{key}=64"])
    unknown = key.removesuffix(".grid")
    assert repr(unknown) in error.what
    assert error.where == unknown
    assert error.remedy == f"did you mean{suggestion}"
    assert refused(overrides=["paint.scheme=cci"]).remedy == "did you mean 'cic'?"
    # Its nearest name is velocity_shear, which is another field.
    error = refused(overrides=["infer.fields=[velocity]"])
    assert error.remedy == "the velocity is always written: leave it out"


def test_unknown_key_lists_the_known_ones_and_names_the_file(tmp_path):
    error = refused(overrides=["engine.qqq=1"])
    for name in ("address", "choice", "workers"):
        assert name in error.remedy
    path = tmp_path / "mine.yaml"
    path.write_text("infer:\n  tyle: 8\n")
    error = refused(config=str(path))
    assert "infer.tyle" in error.where
    assert str(path) in error.where


@each(
    ("override", "key", "value"),
    [
        ("paint.grid=1", "paint.grid", 1),
        ("paint.grid=many", "paint.grid", "many"),
        ("paint.scheme=spline", "paint.scheme", "spline"),
        ("train.average=1.0", "train.average", 1.0),
        ("simulate.box_size=-5", "simulate.box_size", -5),
        ("simulate.box_size=.nan", "simulate.box_size", None),
        ("simulate.box_size=.inf", "simulate.box_size", float("inf")),
        ("cosmology.Omega_m=1.5", "cosmology.Omega_m", 1.5),
        ("seed=-1", "seed", -1),
        ("train=5", "train", 5),
        ("snapshot.length_unit=parsec", "snapshot.length_unit", "parsec"),
        ("infer.fields=[divergence, shear]", "infer.fields", "shear"),
    ],
)
def test_bad_value_names_its_key_and_value(override, key, value):
    error = refused(overrides=[override])
    assert error.where == key
    if value is not None:
        assert error.value == value


@each(
    ("overrides", "section", "words"),
    [
        (["simulate.particles=7"], "simulate", ("particles", "even", "7")),
        (["simulate.redshift=10.0"], "simulate", ("start_redshift", "10.0")),
        (["paint.shard=16", "paint.chunk=5"], "paint", ("shard 16", "chunk 5")),
        (["evaluate.smoothing=[-1.0]"], "evaluate", ("smoothing",)),
    ],
)
def test_values_that_do_not_go_together_are_named(overrides, section, words):
    error = refused(overrides=overrides)
    assert error.where == section
    for word in words:
        assert word in str(error)


@each("text", ["paint.grid", "=5", ".grid=5", "paint.=5", "paint.grid=[1"])
def test_malformed_override_is_refused(text):
    assert text in str(refused(overrides=[text]))


@each("content", ["- a\n- b\n", "paint: [1\n", "just words\n"])
def test_file_that_is_missing_or_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert refused(config=str(path)).where == str(path)
    # A missing one lists the presets.
    error = refused(config="nowhere.yaml")
    assert error.where == "nowhere.yaml"
    for name in preset_names():
        assert name in error.remedy


def test_every_setting_is_listed_with_its_unit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run_app(["settings", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    defaults = Settings()
    keys = ["seed"]
    for name, section in defaults:
        if name != "seed":
            keys += [f"{name}.{key}" for key in type(section).model_fields]
    assert list(rows) == keys
    for key, row in rows.items():
        # The default that is listed, read like any other value, changes nothing.
        assert load_settings(overrides=[f"{key}={json.dumps(row['default'])}"]) == defaults, key
        assert row["type"]
        assert row["meaning"]
    assert rows["simulate.box_size"] == {
        "key": "simulate.box_size", "type": "float", "default": 256.0, "unit": "Mpc/h",
        "limits": "> 0, <= 30000", "meaning": "side of the box",
    }  # fmt: skip
    units = {"infer.rounding": "km/s", "cosmology.m_nu": "eV", "engine.patience": "seconds"}
    units |= {"engine.memory": "bytes", "paint.grid": "", "snapshot.h": ""}
    assert {key: rows[key]["unit"] for key in units} == units
    assert run_app(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split(" = ")[0] for line in lines if not line.startswith(" ")] == keys
    assert run_app(["settings", "paint.grid"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["paint.grid", "=", "128", "int,", ">=", "2"]
    assert second == "    cells per axis"


@each(
    ("name", "remedy"),
    [
        ("trian", "did you mean train?"),
        ("paint.gird", "did you mean paint.grid?"),
        ("gird", "did you mean paint.grid?"),
        ("steps", "did you mean simulate.steps or train.steps?"),
        ("train.tile", "did you mean infer.tile?"),
        ("paint.xyz", None),
        ("zzz", None),
    ],
)
def test_an_unknown_section_or_setting_has_a_remedy(name, remedy):
    with pytest.raises(ConfigError) as caught:
        find_settings(name)
    assert caught.value.remedy == (remedy or "`cosmoflow settings` lists all settings")


def test_options_win_over_overrides_over_file_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("paint: {grid: 10, scheme: tsc, shard: 5}\ntrain: {steps: 7}\n")
    settings = load_settings(
        str(path),
        ["paint.grid=20", "paint.shard=10", "paint.chunk=5", "paint.grid=30"],
        {"paint": {"grid": 40, "scheme": None}, "seed": None},
    )
    paint = settings.paint
    assert (paint.grid, paint.scheme, paint.shard, paint.chunk) == (40, "tsc", 10, 5)
    assert (settings.train.steps, settings.seed) == (7, Settings().seed)


def test_an_empty_file_is_the_defaults_which_cannot_be_changed(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_settings(str(path)) == load_settings() == Settings()
    with pytest.raises(ValidationError):
        load_settings().paint.grid = 3


@each("name", sorted({"paper", "quickstart", *preset_names()}))
def test_preset_loads_by_name_as_by_path(name):
    by_name = load_settings(name)
    assert by_name == load_settings(str(preset_folder() / f"{name}.yaml"))
    assert by_name != Settings()


def test_paper_preset_is_the_papers_set_up():
    settings = load_settings("paper")
    cosmology = settings.cosmology
    assert (cosmology.Omega_m, cosmology.h, cosmology.sigma8) == (0.31, 0.6777, 0.83)
    assert (settings.simulate.box_size, settings.simulate.particles) == (512.0, 512)
    assert settings.simulate.box_size / settings.paint.grid == 2.0
    assert (settings.simulate.count, settings.train.model, settings.train.batch) == (14, "paper", 6)


def test_digest_does_not_depend_on_the_process():
    code = "from cosmoflow.config import load_settings as l; print(l('paper').digest(*%r))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code % (STAGES,)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {load_settings("paper").digest(*STAGES)}


def test_digest_does_not_depend_on_the_order_or_the_source(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {steps: 9}\nseed: 4\n")
    one = load_settings(str(path))
    other = load_settings(overrides=["seed=4", "train.steps=9"])
    assert one.digest("train", "seed") == other.digest("seed", "train")


CHANGES = {
    "seed=2": "seed", "cosmology.h=0.7": "cosmology", "cosmology.n_s=0.9600000001": "cosmology",
    "simulate.steps=16": "simulate", "simulate.count=2": "simulate", "paint.grid=64": "paint",
    "paint.scheme=tsc": "paint", "paint.shard=32": "paint", "train.augment=false": "train",
    "train.target=momentum": "train", "train.learning_rate=0.0021": "train",
    "infer.batch=2": "infer", "evaluate.smoothing=[0.0, 2.0]": "evaluate",
}  # fmt: skip


@each("override", CHANGES)
def test_digest_of_a_section_follows_that_section_alone(override):
    changed, default = load_settings(overrides=[override]), Settings()
    for section in STAGES:
        same = changed.digest(section) == default.digest(section)
        assert same == (section != CHANGES[override]), section


def test_engine_does_not_touch_the_digest_of_an_output(particle_store, serial_run, tmp_path):
    particles = particle_store(8).url
    digests = []
    for index, (workers, grid) in enumerate([(1, 8), (3, 8), (1, 6)]):
        out = str(tmp_path / f"{index}.zarr")
        run = serial_run(paint={"grid": grid})
        settings = run.settings.model_copy(
            update={"engine": run.settings.engine.model_copy(update={"workers": workers})}
        )
        paint(particles, out, type(run)(settings, run.session, listener=run.listener))
        store = FieldStore(out)
        assert "engine" not in str(store.metadata.provenance["config"])
        digests.append(store.digest)
    assert digests[0] == digests[1] != digests[2]


@each("paint", [{"fields": ["density", "density"]}, {"fields": ["velocity"], "interlaced": True}])
def test_fields_that_make_no_sense_together(paint):
    with pytest.raises(ConfigError, match="fields"):
        load_settings(options={"paint": paint})
