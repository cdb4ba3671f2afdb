"""Surroundings that are unusual: streams, signals, folders, environments."""

import importlib.util
import io
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import pytest
import zarr

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.cli.console import Reporter
from cosmoflow.engine import surroundings
from cosmoflow.errors import ConfigError
from cosmoflow.numerics import cache_folder, compiled
from cosmoflow.numerics.cache_folder import choose_cache_folder
from cosmoflow.stages.run import Run
from cosmoflow.storage.claims import claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.particles import ParticleStore
from tests.cases import each
from tests.conftest import refused

ROOT = Path(cosmoflow.__file__).parents[1]
DEEP = "/deep" * 20


@pytest.fixture
def streams(monkeypatch):
    """Return a function that puts streams in the place of standard output and error."""

    def put(out, err=None):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err or io.TextIOWrapper(io.BytesIO(), "ascii"))

    return put


def test_names_that_the_encoding_lacks_are_escaped(tmp_path, fields_store, streams):
    url = fields_store(name=str(tmp_path / "ñandú-Σ.zarr")).url
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    streams(out)
    assert run_app(["info", url]) == 0
    assert rb"\xf1and\xfa-\u03a3.zarr:" in out.buffer.getvalue()


def test_names_that_are_no_text_are_written_as_their_bytes(tmp_path, fields_store, streams):
    url = fields_store(name=str(tmp_path / os.fsdecode(b"\xf1.zarr"))).url
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    streams(out)
    assert run_app(["info", url]) == 0
    assert b"/\xf1.zarr:" in out.buffer.getvalue()


@each("arguments", [[], ["--json"]])
def test_a_reader_that_has_gone_stops_nothing(tmp_path, particle_store, streams, arguments):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as out:
        streams(out)
        fields = str(tmp_path / "fields.zarr")
        assert run_app(["paint", particle_store(16).url, fields, "--grid", "8", *arguments]) == 0
    assert FieldStore(fields).grid == 8


def test_a_full_disk_is_said_at_the_end(tmp_path, particle_store, streams):
    err = io.StringIO()
    fields = str(tmp_path / "fields.zarr")
    with Path("/dev/full").open("w") as out:
        streams(out, err)
        assert run_app(["paint", particle_store(16).url, fields, "--grid", "8"]) == 4
    assert "No space left on device" in err.getvalue()
    assert FieldStore(fields).grid == 8


def test_streams_that_are_closed_stop_nothing(fields_store, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_app(["info", fields_store().url]) == 0


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = (
        "import os, sys; from cosmoflow.cli.streams import open_descriptors; os.close(1); "
        "open_descriptors(); print('lost'); sys.exit(open(sys.argv[1], 'w').fileno())"
    )
    command = [sys.executable, "-c", code, tmp_path / "file"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    assert done.returncode > 2
    assert done.stdout == b""


@each("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_job_that_is_ended_can_be_resumed(tmp_path, particle_store, monkeypatch, capsys, number):
    def unexpected(*_):
        raise AssertionError("the command does not take the signal")

    before = signal.signal(number, unexpected)
    particles, fields = particle_store(16).url, str(tmp_path / "fields.zarr")
    command = ["paint", particles, fields, "--grid", "8", "--quiet"]
    try:
        with monkeypatch.context() as patch:
            progress = "cosmoflow.stages.paint.command.Progress.advance"
            patch.setattr(progress, lambda *_: os.kill(os.getpid(), number))
            assert run_app(command) == 130
        assert signal.getsignal(number) is unexpected
    finally:
        signal.signal(number, before)
    assert "--resume" in capsys.readouterr().err
    # Held by no run: whoever comes next need not wait.
    with claim(fields):
        pass
    assert zarr.open_group(fields).attrs["status"] != "complete"
    assert run_app([*command, "--resume"]) == 0
    assert FieldStore(fields).grid == 8


def test_a_compiler_that_is_switched_off_is_named(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    spec = importlib.util.spec_from_file_location("compiled_anew", compiled.__file__)
    module = importlib.util.module_from_spec(spec)
    refused(ConfigError, 2, lambda: spec.loader.exec_module(module), "unset NUMBA_DISABLE_JIT")


def test_compiled_functions_are_kept_where_neither_source_nor_home_can_be_written(
    tmp_path, monkeypatch
):
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        # Set first, so that it is taken back afterwards.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    choose_cache_folder()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setattr(cache_folder, "__file__", "/proc/none/cache_folder.py")
    choose_cache_folder()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("HOME", "/proc/none")
    choose_cache_folder()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert chosen.parent == tmp_path
    assert chosen.stat().st_mode & 0o777 == 0o700
    # numba says where it keeps a function.
    source = tmp_path / "twice.py"
    source.write_text("from numba import njit\n@njit(cache=True)\ndef twice(x): return 2 * x\n")
    found = runpy.run_path(str(source))["twice"]
    assert found(2) == 4
    assert str(chosen) in found._cache.cache_path
    # What another user may have put there would be executed.
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    chosen.chmod(0o777)
    choose_cache_folder()
    assert os.environ["NUMBA_CACHE_DIR"] != str(chosen)


def test_sockets_go_where_their_paths_are_short(tmp_path, monkeypatch):
    short = str(tmp_path / "s")
    monkeypatch.setattr(surroundings, "SHORT_FOLDERS", ("/proc/none", short))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    deep = f"{tmp_path}{DEEP}"
    monkeypatch.setenv("TMPDIR", deep)
    # What exceeds the memory is large, and stays where the caller has room.
    assert surroundings.choose_folders() == {
        "_temp_dir": short,
        "object_spilling_directory": f"{deep}/ray",
    }
    monkeypatch.setenv("TMPDIR", "/proc/none")
    assert surroundings.choose_folders() == {"_temp_dir": short}
    monkeypatch.chdir("/")
    monkeypatch.setenv("TMPDIR", "tmp")
    assert surroundings.choose_folders() == {"_temp_dir": "/tmp/ray"}
    monkeypatch.setenv("TMPDIR", "")
    assert surroundings.choose_folders() == {"_temp_dir": "/tmp/ray"}
    monkeypatch.setenv("TMPDIR", "/proc/none")
    monkeypatch.setattr(surroundings, "SHORT_FOLDERS", ())
    refused(ConfigError, 2, surroundings.choose_folders, "TMPDIR", "/proc/none", "--engine serial")


def test_the_longest_folder_has_room_for_a_socket(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(surroundings, "_is_usable", lambda folder: True)
    # Linux takes 107 bytes; sessions are named by date, time and number of the process.
    session = "session_2026-11-28_21-36-08_490693_4194304"
    longest = 107 - len(f"/{session}/sockets/plasma_store")
    for length, moved in ((longest, False), (longest + 1, True)):
        monkeypatch.setenv("TMPDIR", "/" + "d" * (length - len("//ray")))
        assert bool(surroundings.choose_folders()) is moved


@each(
    ("home", "made", "said"),
    [("/proc/none", True, "made for this run in RAY_AUTH_TOKEN"), (None, False, ".ray/auth_token")],
)
def test_a_home_that_cannot_be_written_to_needs_no_token_file(
    tmp_path, monkeypatch, capsys, home, made, said
):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that it is taken back afterwards.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", home or str(tmp_path))
    message = surroundings.ensure_token()
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == (64 if made else 0)
    assert said in message
    # Programs and -v hear of it.
    for as_json, verbosity, heard in ((False, 0, False), (False, 1, True), (True, 0, True)):
        run = Run(listener=Reporter(as_json=as_json, verbosity=verbosity).listen)
        run.session.explain(message)
        assert (message in "".join(capsys.readouterr())) is heard


def test_workers_look_for_modules_where_the_driver_does(tmp_path, monkeypatch):
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    own.mkdir()
    foreign.mkdir()
    monkeypatch.syspath_prepend(str(own))
    job = surroundings.describe_job()
    job._py_driver_sys_path.extend([str(own), str(foreign)])
    assert job._py_driver_sys_path == [str(ROOT), str(own)]


@pytest.mark.cluster
def test_ray_runs_in_hostile_surroundings_and_ends_politely(tmp_path):
    """Modules in the way, a deep TMPDIR, no home, an ASCII terminal; then SIGTERM, then resumed."""
    for name in ("zarr", "torch", "numpy", "yaml", "random"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not the library')")
    deep = Path(f"{tmp_path}{DEEP}")
    deep.mkdir(parents=True)
    odd = {
        "TMPDIR": str(deep),
        "HOME": "/proc/none",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(ROOT),
    }
    dropped = ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    out = tmp_path / "ñ"
    command = ["--box=16", "--particles=16", "--steps=1000"]
    run = subprocess.Popen(
        [sys.executable, "-m", "cosmoflow", "simulate", out.name, *command, "--engine=ray", "-v"],
        cwd=tmp_path,
        env={**kept, **odd},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background lets them ignore signals.
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),  # noqa: PLW1509
    )
    lines = []
    try:
        for line in run.stderr:
            lines.append(line)
            if "step 2 of" in line:
                run.send_signal(signal.SIGTERM)
                break
        _, rest = run.communicate(timeout=240)
    finally:
        run.kill()
    assert run.returncode == 130, "".join(lines) + rest
    assert "--resume" in rest
    with claim(str(out)):
        pass
    assert run_app(["simulate", str(out), *command, "--engine=serial", "--quiet", "--resume"]) == 0
    assert ParticleStore(str(out)).count == 16**3
