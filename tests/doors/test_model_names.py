"""Models by name: what ships is shown, what does not exist is answered with what does."""

import json
import shutil
from types import SimpleNamespace

import pytest

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.errors import ConfigError, StorageError
from cosmoflow.model.names import pretrained_models
from cosmoflow.stages.models import find_model, load_model, warn_of_namesake
from tests.cases import each
from tests.conftest import refused

SHIPPED = ("residual-medium", "residual-small", "wiener")


@pytest.fixture
def call(capsys):
    """Return a function that runs one command and gives its exit code, output and messages."""

    def run(*arguments):
        capsys.readouterr()
        code = run_app([str(one) for one in arguments])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


@each(
    ("name", "words"),
    [
        ("residual-smal", "did you mean 'residual-small'?"),
        ("Residual-Medium", "did you mean 'residual-medium'?"),
        ("weiner", "did you mean 'wiener'?"),
        ("liner", "did you mean 'linear'?"),
        ("residual-large", "train it (cosmoflow train FIELDS --out DIR --model residual-large)"),
        ("residual-larg", "did you mean 'residual-large'? No trained model of it ships"),
        ("paper", "--model paper)"),
        ("my-model", "cosmoflow models"),
        ("tunned", "did you mean 'tuned'?"),
    ],
)
def test_a_name_of_no_model_lists_what_ships(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "model.json").touch()
    refused(ConfigError, 2, lambda: find_model(name), *SHIPPED, "linear:R", words)
    path = str(tmp_path / "tunned")
    refused(StorageError, 4, lambda: load_model(path), f"did you mean '{tmp_path / 'tuned'}'?")


def test_the_command_and_python_answer_alike(call, fields_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = fields_store(8)
    out = tmp_path / "out.zarr"
    words = ("did you mean 'residual-small'?", "residual-medium")
    refused(ConfigError, 2, lambda: cosmoflow.infer(store.url, str(out), "residual-smal"), *words)
    refused(
        ConfigError,
        2,
        lambda: cosmoflow.infer_array(store.density, 16, "residual-smal", redshift=0),
        *words,
    )
    found = call("infer", store.url, out, "--model", "residual-smal", "--engine=serial")
    assert found.code == 2
    assert "did you mean" in found.err
    assert not out.exists()


def test_a_path_that_leads_to_no_model_lists_what_ships(tmp_path):
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "other", tmp_path / "none"):
        call_infer = lambda path=path: cosmoflow.infer_array([[[1.0]]], 2.0, path, redshift=0.0)  # noqa: E731
        refused(StorageError, 4, call_infer, str(path), *SHIPPED)


@each("name", SHIPPED)
def test_info_shows_the_card_of_a_model_that_ships(call, name):
    assert set(SHIPPED) == set(pretrained_models())
    found = call("info", name, "--json")
    assert found.code == 0
    card = json.loads(found.out)
    assert (card["kind"], card["name"], card["architecture"]) == ("model", name, name)
    assert card["ships"]
    assert (card["cell_size"], card["redshift"]) == ([1.0, 4.0], [0.0, 2.0])
    assert card["filter"] == ["contrast", "log_density", "squared_contrast", "squared_tide"]
    assert card["halo"] == {"residual-medium": 20, "residual-small": 15, "wiener": 0}[name]
    assert card["provenance"]["stage"] == "train"
    assert set(card["files"]) == {"model.json", "model.safetensors"}


def test_info_shows_linear_theory():
    card = cosmoflow.inspect("linear:4")
    assert (card["kind"], card["smoothing"], card["cell_size"]) == ("model", [4.0], "any")
    assert cosmoflow.inspect("linear")["smoothing"] == [0.0]
    refused(ConfigError, 2, lambda: cosmoflow.inspect("linear:much"), "Mpc/h")


def test_a_folder_of_the_name_of_a_model_is_meant_by_its_path(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiener").mkdir()
    (tmp_path / "wiener" / "run.json").write_text("abc\n")
    assert cosmoflow.inspect("wiener")["ships"]
    assert call("info", "./wiener").code == 5
    assert find_model("./wiener") == str(tmp_path / "wiener")
    # A trained model there is not taken for the one that ships without a warning.
    warn_of_namesake("wiener", pytest.fail)
    (tmp_path / "wiener" / "model.json").write_text("{}")
    heard = []
    warn_of_namesake("wiener", heard.append)
    assert heard[0].text.endswith("is ./wiener")
    # A folder of another name is found without a path.
    (tmp_path / "residual-smal").mkdir()
    (tmp_path / "residual-smal" / "run.json").write_text("abc\n")
    assert find_model("residual-smal") == str(tmp_path / "residual-smal")
    # Without that folder, the name is nearly that of a model.
    shutil.rmtree(tmp_path / "residual-smal")
    found = call("info", "residual-smal")
    assert found.code == 2
    assert "did you mean 'residual-small'?" in found.err
    assert call("info", "no-such-thing.zarr").code == 4
