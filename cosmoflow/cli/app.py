"""The commands and exit codes of the command line."""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from cosmoflow import __version__
from cosmoflow.cli import boxes, demo, networks, overview, planning, statistics
from cosmoflow.cli.collector import dismiss_collector, rest_collector
from cosmoflow.cli.console import Reporter
from cosmoflow.cli.streams import has_gone, open_descriptors, steady_streams
from cosmoflow.config.folders import require_working_directory
from cosmoflow.config.reference import list_settings
from cosmoflow.errors import CosmoflowError, StorageError, UsageError

try:
    from typer.exceptions import TyperException
except ImportError:
    # Before typer 0.28 its errors are click's: BadParameter is a UsageError is a ClickException.
    TyperException = typer.BadParameter.__mro__[2]  # type: ignore[misc, assignment]

INTERRUPTED = 130


class _Command(TyperCommand):
    """A command whose usage line names its arguments as its help does."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line; typer has ``{FIELDS...}...`` for ``FIELDS...``."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"[{}]", "", piece).replace("......", "...") for piece in pieces]


app = typer.Typer(
    name="cosmoflow",
    help="Peculiar-velocity fields from N-body particles, on a laptop or a Ray cluster.",
    epilog="Start with: cosmoflow demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[Callable[..., None], str] = {
    boxes.simulate: "cosmoflow simulate box.zarr --box 256 --particles 256 --seed 7",
    boxes.convert: "cosmoflow convert snapdir_099 particles.zarr",
    boxes.import_: "cosmoflow import cube.npy fields.zarr --box 256 --redshift 0",
    boxes.paint: "cosmoflow paint box.zarr fields.zarr --grid 128",
    boxes.derive: "cosmoflow derive fields.zarr web.zarr --field velocity_shear",
    networks.train: "cosmoflow train a.zarr b.zarr --out model --set train.steps=2000",
    networks.infer: "cosmoflow infer fields.zarr velocity.zarr",
    statistics.evaluate: "cosmoflow evaluate fields.zarr velocity.zarr --out report",
    statistics.spectra: "cosmoflow spectra fields.zarr --field density --out power.zarr",
    networks.models: "cosmoflow models --json",
    planning.plan: "cosmoflow plan gigabox --hours 6 --spot",
    overview.info: "cosmoflow info fields.zarr",
    overview.view: "cosmoflow view fields.zarr --field velocity",
    overview.settings: "cosmoflow settings paint",
    demo.demo: "cosmoflow demo --out demo-output",
}
"""Function of each command, with an example of its use."""

for _command, _example in COMMANDS.items():
    app.command(
        # `import` is a Python keyword, so its function ends in an underscore.
        _command.__name__.rstrip("_"),
        cls=_Command,
        # The list of commands has room for the first clause.
        short_help=re.split(r"[.:;(]|, (?:and|or) ", _command.__doc__ or "")[0].strip(),
        epilog=f"Example: {_example}",
    )(_command)


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

    Errors that the user can fix show no traceback; bugs do.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    for library in ("ray", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with _ended_politely(), steady_streams() as out:
        code = _call(arguments)
        out.flush()
        if out.failure is None or has_gone(out.failure):
            return code
        lost = StorageError(
            f"the printed output is lost: {out.failure.strerror}",
            where="standard output",
            remedy="free space there; the command's own output is not affected",
        )
        Reporter(as_json=False, verbosity=0).error(lost)
    return code or lost.exit_code


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Treat SIGHUP (a closed connection) and SIGTERM (from a scheduler) as Ctrl-C.

    The interrupted command releases its claims on outputs, keeps its outputs for ``--resume`` and
    withdraws its requests to the cluster.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _call(arguments: list[str]) -> int:
    """Run one command, report an error if it fails, and return its exit code."""
    reporter = Reporter(as_json="--json" in arguments, verbosity=0)
    try:
        code: object = app(args=arguments, standalone_mode=False)
    except TyperException as error:
        return _refuse(error, reporter)
    except CosmoflowError as error:
        reporter.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as ended:
        # If a signal arrives while Ray starts, Ray exits with the signal's number.
        code = INTERRUPTED if ended.code == signal.SIGTERM else ended.code
    if code == INTERRUPTED:
        advice = "; run the same command with --resume to continue" if _resumes(arguments) else ""
        sys.stderr.write(f"interrupted{advice}\n")
    return code if isinstance(code, int) else 0


def _resumes(arguments: list[str]) -> bool:
    """Return whether the command of these arguments has the option ``--resume``."""
    named = getattr(get_command(app), "commands", {}).get(next(iter(arguments), ""))
    return named is not None and any("--resume" in one.opts for one in named.params)


def _refuse(error: TyperException, reporter: Reporter) -> int:
    """Show typer's error on stderr, also as JSON if requested, and return the exit code."""
    context = getattr(error, "ctx", None)
    if (option := getattr(error, "option_name", None)) and context is not None:
        settings = [row.key for row in list_settings()]
        key = f"{context.info_name}.{option.lstrip('-').replace('-', '_')}"
        if key in settings:
            error.message += f"; it is a setting: --set {key}=VALUE"
    command = context.command_path if context is not None else "cosmoflow"
    if reporter.as_json:
        # If no command is given, the message is the whole help text.
        what, *_ = error.format_message().splitlines() or [""]
        reporter.write_error(UsageError(what, where=command, remedy=f"{command} --help"))
    show = getattr(error, "show", None)
    if show is not None:
        show(file=sys.stderr)
    else:
        sys.stderr.write(f"Error: {error.format_message()}\n")
    return UsageError.exit_code


def main() -> None:
    """Run ``cosmoflow`` and exit with its documented code."""
    rest_collector()
    open_descriptors()
    code = run_app(sys.argv[1:])
    dismiss_collector()
    sys.exit(code)
