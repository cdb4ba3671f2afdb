"""Run every block of the documentation, each page in a folder of its own: `make docs`."""

import os
import shutil
import tempfile
from pathlib import Path

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import SkipParser
from sybil.parsers.myst import CodeBlockParser

from docs._checks import inputs
from docs._checks.blocks import FILES, SHOWN, OtherBlocks, run_session, run_shell, write_file
from docs._checks.warm import install

NOT_RUN = ("installation.md",)
"""Pages none of whose blocks is run here: those of installing need an empty environment."""
EVALUATORS = {
    "python": PythonEvaluator(),
    "bash": run_shell,
    "console": run_session,
    **dict.fromkeys((*FILES, *SHOWN), write_file),
}


def pytest_sessionstart(session):
    """Put a `cosmoflow` first in the path that does not import its libraries again and again."""
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", 0):
        session.warm_folder = tempfile.mkdtemp(prefix="cosmoflow-docs-")
        session.warm = install(session.warm_folder)
        os.environ.update(
            PATH=f"{session.warm_folder}:{os.environ['PATH']}",
            HOME=session.warm_folder,
            COLUMNS="80",
            MPLBACKEND="agg",
        )
        inputs.FOLDER = Path(session.warm_folder) / "inputs"


def pytest_sessionfinish(session):
    """End that process and delete the folder."""
    if hasattr(session, "warm"):
        session.warm.kill()
        session.warm.wait()
        shutil.rmtree(session.warm_folder, ignore_errors=True)


def _enter(namespace):
    namespace["given"] = inputs.given
    namespace["_home"] = Path.cwd()
    namespace["_folder"] = tempfile.mkdtemp(prefix="cosmoflow-page-")
    os.chdir(namespace["_folder"])


def _leave(namespace):
    os.chdir(namespace["_home"])
    shutil.rmtree(namespace["_folder"], ignore_errors=True)


pytest_collect_file = Sybil(
    parsers=[
        *(CodeBlockParser(language, run) for language, run in EVALUATORS.items()),
        OtherBlocks(EVALUATORS),
        SkipParser(),
    ],
    pattern="*.md",
    excludes=["_build/*", "reference/made/*", *NOT_RUN],
    setup=_enter,
    teardown=_leave,
).pytest()
