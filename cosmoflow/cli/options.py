"""Arguments and options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cosmoflow.cli.collector import wake_collector
from cosmoflow.cli.console import Reporter
from cosmoflow.config import load_settings
from cosmoflow.config.folders import expand_home
from cosmoflow.errors import ConfigError
from cosmoflow.events import caution

# The stages and their libraries take seconds to import; `cosmoflow --help` avoids that.
if TYPE_CHECKING:
    from cosmoflow.stages.run import Run
    from cosmoflow.storage.outputs import Existing

Particles = Annotated[
    str,
    typer.Argument(metavar="PARTICLES", help="A particle store or a snapshot of another code."),
]
Fields = Annotated[str, typer.Argument(metavar="FIELDS", help="A fields store.")]
Out = Annotated[
    str, typer.Argument(metavar="OUT", help="The output: a path, s3://, gs://, az:// or file://.")
]

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="A YAML file or the name of a preset."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")]
"""Settings; :func:`set_example` adds the help."""
EngineOption = Annotated[
    Literal["auto", "serial", "ray"] | None,
    typer.Option(
        "--engine",
        help="auto runs small jobs in this process. All engines give the same results.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="Address of a Ray cluster; by default an instance on this machine."
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory limit of a worker, e.g. 8GiB."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Complete an output that an earlier run began.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and its requirements, then stop.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print events and results as JSON lines on stdout.")
]
JsonDocumentOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Print more.")]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print only results and warnings.")
]


@dataclass(frozen=True, slots=True)
class Invocation:
    """The common options of one call, its reporter, and what its command reads."""

    config: str | None
    overrides: tuple[str, ...]
    engine: Mapping[str, Any]
    existing: Existing
    dry_run: bool
    reporter: Reporter
    command: str
    reads: tuple[str, ...]

    @contextmanager
    def run(
        self, options: Mapping[str, Any], *, preset: str | None = None, workers: int | None = None
    ) -> Iterator[Run]:
        """Yield the run to pass to the stage.

        Settings come from the file or preset, then from ``--set``, then from the command's options;
        later sources take precedence.
        """
        from cosmoflow.engine import Session, return_freed_buffers
        from cosmoflow.stages.run import Run

        wake_collector()
        options = {**options, "engine": {**self.engine, "workers": workers}}
        settings = load_settings(self.config or preset, self.overrides, options)
        self._warn_of_unread()
        return_freed_buffers()
        with Session(settings.engine) as session:
            yield Run(settings, session, self.existing, self.reporter.listen)

    def _warn_of_unread(self) -> None:
        """Warn of ``--set`` that the command does not read. Files and presets serve many commands.

        It is no error: scripts give several commands the same settings.
        """
        keys = [text.partition("=")[0].strip() for text in self.overrides]
        unread = [key for key in keys if not any(_concerns(key, one) for one in self.reads)]
        if unread:
            caution(
                self.reporter.listen,
                f"{self.command} does not read {', '.join(dict.fromkeys(unread))}, given by --set; "
                f"it reads {', '.join(self.reads)}{_meant(unread, keys, self.reads)}",
            )


def _meant(unread: Sequence[str], given: Sequence[str], reads: Sequence[str]) -> str:
    """Return in words what is read, has the name of a setting that is not, and was not given."""
    from cosmoflow.config.reference import list_settings

    names = {key.rpartition(".")[2] for key in unread}
    meant = [
        row.key
        for row in list_settings()
        if row.key.rpartition(".")[2] in names
        and row.key not in given
        and any(_concerns(row.key, one) for one in reads)
    ]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


def _concerns(key: str, read: str) -> bool:
    """Return whether a key and what a command reads, sections or settings, have anything common."""
    return f"{key}.".startswith(f"{read}.") or f"{read}.".startswith(f"{key}.")


Command = Callable[..., None]


def set_example(example: str) -> Callable[[Command], Command]:
    """Return a decorator that gives ``--set`` of a command a help with an example.

    Parameters
    ----------
    example : str
        A setting that the command uses, as KEY=VALUE.
    """
    section = example.partition(".")[0]
    help_text = f"Any setting, e.g. {example}; see `cosmoflow settings {section}`."
    option = typer.Option("--set", metavar="KEY=VALUE", help=help_text)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            one.replace(annotation=Annotated[list[str] | None, option])
            if one.name == "overrides"
            else one
            for one in signature.parameters.values()
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def common_options(example: str, *reads: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the common options to a command.

    The command receives them as its first argument. typer reads a command's options from its
    signature, so the signature of the decorated function is the command's own parameters followed
    by the common ones.

    Parameters
    ----------
    example : str
        A setting that the command uses, for the help of ``--set``.
    *reads : str
        Sections and settings that the command reads, besides the section ``engine``.
    """
    return lambda function: set_example(example)(_with_common_options(function, reads))


def _with_common_options(function: Command, reads: tuple[str, ...]) -> Command:
    name = function.__name__.rstrip("_")

    def command(
        *,
        config: ConfigOption = None,
        overrides: SetOption = None,
        engine: EngineOption = None,
        address: AddressOption = None,
        memory: MemoryOption = None,
        resume: ResumeOption = False,
        overwrite: OverwriteOption = False,
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
        verbose: VerboseOption = False,
        quiet: QuietOption = False,
        **own: Any,
    ) -> None:
        reporter = Reporter(as_json=as_json, verbosity=int(verbose) - int(quiet))
        if resume and overwrite:
            raise ConfigError(
                "--resume and --overwrite exclude each other", remedy="give one of them"
            )
        existing: Existing = "resume" if resume else "overwrite" if overwrite else "error"
        chosen = {"choice": engine, "address": address, "memory": memory}
        invocation = Invocation(
            config,
            tuple(overrides or ()),
            chosen,
            existing,
            dry_run,
            reporter,
            command=name,
            reads=(*reads, "engine"),
        )
        if isinstance(out := own.get("out"), str):
            # Results contain this path, and programs that read them may not expand ~.
            own["out"] = expand_home(out)
        try:
            function(invocation, **own)
        finally:
            reporter.close()

    _, *own_parameters = inspect.signature(function, eval_str=True).parameters.values()
    *common, _ = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own_parameters, *common)
    ]
    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
