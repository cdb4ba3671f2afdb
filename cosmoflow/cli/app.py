"""The command line: its commands and its exit codes."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from cosmoflow import __version__
from cosmoflow.cli import boxes, networks, overview, planning, statistics
from cosmoflow.cli.console import Reporter
from cosmoflow.config.folders import require_working_directory
from cosmoflow.errors import CosmoflowError

INTERRUPTED = 130

app = typer.Typer(
    name="cosmoflow",
    help="Peculiar-velocity fields from N-body particles, on a laptop or a Ray cluster.",
    epilog="Start with: cosmoflow demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[Callable[..., None], str] = {
    boxes.simulate: "cosmoflow simulate box.zarr --box 256 --particles 256 --seed 7",
    boxes.convert: "cosmoflow convert snapdir_099 particles.zarr",
    boxes.paint: "cosmoflow paint box.zarr fields.zarr --grid 128",
    boxes.derive: "cosmoflow derive fields.zarr web.zarr --field velocity_shear",
    networks.train: "cosmoflow train a.zarr b.zarr --out model --set train.steps=2000",
    networks.infer: "cosmoflow infer fields.zarr velocity.zarr",
    statistics.evaluate: "cosmoflow evaluate fields.zarr velocity.zarr --out report",
    statistics.spectra: "cosmoflow spectra fields.zarr --field density --out power.zarr",
    networks.models: "cosmoflow models --json",
    planning.plan: "cosmoflow plan gigabox --hours 6 --spot",
    overview.info: "cosmoflow info fields.zarr",
    overview.demo: "cosmoflow demo --out demo-output",
}
"""Every command, and an example of it."""

for _command, _example in COMMANDS.items():
    app.command(epilog=f"Example: {_example}")(_command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cosmoflow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    require_working_directory()


def run_app(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    A person never sees a traceback for something that they can mend; a bug shows its own.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if threading.current_thread() is threading.main_thread():
        # A connection that is closed is Ctrl-C: what was asked of a cluster is taken back.
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    logging.getLogger("ray").setLevel(logging.ERROR)
    as_json = "--json" in arguments
    try:
        app(args=arguments)
    except CosmoflowError as error:
        Reporter(as_json=as_json, verbosity=0).error(error)
        return error.exit_code
    except KeyboardInterrupt:
        code: object = INTERRUPTED
    except SystemExit as ended:
        code = ended.code
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; run the same command with --resume to go on\n")
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run ``cosmoflow`` and exit with its documented code."""
    sys.exit(run_app(sys.argv[1:]))
