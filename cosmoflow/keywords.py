"""Wrappers of the stages' functions that accept settings as keywords.

A stage takes its settings in a :class:`~cosmoflow.stages.run.Run`. Its wrapper, a "door", also
accepts the settings of the stage's section as keywords, and the other parts of a run: engine,
memory, treatment of an existing output, progress. A door's signature combines the parameters of the
stage with the settings of its section, so that ``help()`` and completion list them all.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import reprlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from cosmoflow.config import Settings, load_settings
from cosmoflow.config.base import Section
from cosmoflow.config.loading import merge, revise_settings
from cosmoflow.config.yaml_text import parse_yaml
from cosmoflow.errors import CosmoflowError, UsageError, closest

if TYPE_CHECKING:
    from cosmoflow.stages.run import Run


@dataclass(frozen=True, slots=True)
class Door:
    """Definition of the wrapper of a stage's function.

    Parameters
    ----------
    home, name : str
        Module and name of the stage's function.
    own : str, optional
        Section whose settings become keywords.
    sections : tuple of str
        Further keywords: names of sections, which take mappings, and ``seed``.
    aliases : mapping of str to str
        Additional keywords, mapped to the paths of their settings.
    preset : str, optional
        Preset of the initial settings.
    synonyms : mapping of str to str
        Additional keywords, mapped to the stage's own arguments of the same meaning.
    """

    home: str
    name: str
    own: str | None = None
    sections: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None
    synonyms: Mapping[str, str] = field(default_factory=dict)


_OF_RUNS = {
    "settings": (
        "Settings | Mapping | str | None",
        "initial settings: a Settings, a mapping of sections, a YAML file or the name of a preset; "
        "keywords take precedence",
    ),
    "engine": (
        "Literal['auto', 'serial', 'ray'] | Mapping | None",
        "engine to run on, or the section engine as a mapping",
    ),
    "address": ("str | None", "address of a Ray cluster; by default this machine"),
    "memory": ("int | str | None", "memory limit of a worker, e.g. '8GiB'"),
    "overwrite": ("bool", "replace an existing output"),
    "resume": ("bool", "complete an output that an earlier run began"),
    "progress": ("bool | None", "show progress; by default only in notebooks"),
}
"""Keywords of all functions that take a run: annotation and description."""

_ENGINE = {"engine": "engine", "address": "engine.address", "memory": "engine.memory"}


def open_door(name: str, door: Door) -> Callable[..., Any]:
    """Return the function of a stage, wrapped to accept settings as keywords.

    The wrapper raises UsageError for an unknown keyword.

    Parameters
    ----------
    name : str
        Name of the wrapper in ``cosmoflow``.
    door : Door
        Definition of the wrapper.
    """
    stage = getattr(importlib.import_module(door.home), door.name)
    signature = inspect.signature(stage)
    own = signature.parameters
    paths = _setting_paths(door, own)
    keywords = _keyword_parameters(door, own, paths)
    known = [one.name for one in (*own.values(), *keywords)]

    @functools.wraps(stage)
    def call(*args: Any, **given: Any) -> Any:
        for word in set(door.synonyms) & set(given):
            if (argument := door.synonyms[word]) in given:
                raise _both(name, word, argument)
            given[argument] = given.pop(word)
        chosen = {key: given.pop(key) for key in list(given) if key not in own and key in known}
        if unknown := [key for key in given if key not in own]:
            raise _unknown(name, unknown[0], known, given[unknown[0]])
        try:
            bound = signature.bind(*args, **given)
        except TypeError as error:
            raise UsageError(f"{name}(): {error}", remedy=_meant(name, door, given)) from None
        for argument, value in bound.arguments.items():
            bound.arguments[argument] = _as_urls(value)
        changes = _changes(chosen, paths)
        if "cosmology" in own and isinstance(found := bound.arguments.get("cosmology"), Mapping):
            changed = revise_settings(Settings(), {"cosmology": found})
            bound.arguments["cosmology"] = changed.cosmology
        with _in_python(door):
            if "run" in own:
                with _listening(name, bound.arguments, chosen, changes, door) as run:
                    bound.arguments["run"] = run
                    return stage(*bound.args, **bound.kwargs)
            _resolve(bound.arguments, own, changes)
            return stage(*bound.args, **bound.kwargs)

    call.__name__ = call.__qualname__ = name
    call.__module__ = "cosmoflow"
    call.__doc__ = _document(stage, keywords, paths, door.synonyms)
    parameters = sorted((*own.values(), *keywords), key=lambda one: one.kind)
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def _as_urls(value: Any) -> Any:
    """Convert path objects to text; return other values unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple) and any(isinstance(one, os.PathLike) for one in value):
        return [_as_urls(one) for one in value]
    if isinstance(value, Mapping) and any(isinstance(one, os.PathLike) for one in value.values()):
        return {key: _as_urls(one) for key, one in value.items()}
    return value


_OPTION = re.compile(
    r"--set[ =](?P<section>\w+)\.(?P<setting>\w+)=(?P<value>[^\s,;()]*[^\s,;().])"
    r"|--(?P<flag>resume|overwrite)\b"
    r"|--(?P<name>engine|grid|workers|steps|quantity)[ =](?P<given>\w+)"
)
"""A command-line option in the text of a remedy."""


@contextmanager
def _in_python(door: Door) -> Iterator[None]:
    """Add the equivalent Python keywords to remedies that name command-line options."""
    try:
        yield
    except CosmoflowError as error:
        found = [_as_keyword(option, door) for option in _OPTION.finditer(error.remedy or "")]
        if found:
            error.remedy = f"{error.remedy}; in Python {', '.join(dict.fromkeys(found))}"
        raise


def _as_keyword(option: re.Match[str], door: Door) -> str:
    """Return the keyword equivalent to an option."""
    if option["flag"]:
        return f"{option['flag']}=True"
    value = parse_yaml(option["value"] or option["given"])
    if option["name"]:
        return f"{option['name']}={value!r}"
    section, setting = option["section"], option["setting"]
    if section == door.own:
        return f"{setting}={value!r}"
    if section in door.sections:
        return f"{section}={ {setting: value}!r}"
    return f"settings={ {section: {setting: value}}!r}"


def _setting_paths(door: Door, own: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings path of each keyword; a stage's own arguments take precedence."""
    paths: dict[str, str] = {}
    if door.own is not None:
        hidden = {*own, *(path.partition(".")[2] for path in door.aliases.values())}
        paths |= {
            setting: f"{door.own}.{setting}"
            for setting in _section(door.own).model_fields
            if setting not in hidden
        }
    return {**paths, **door.aliases, **{name: name for name in door.sections}}


def _section(name: str) -> type[Section]:
    """Return the class of a section of the settings."""
    return type(getattr(Settings(), name))


def _keyword_parameters(
    door: Door, own: Mapping[str, Any], paths: Mapping[str, str]
) -> list[inspect.Parameter]:
    """Return the keywords as parameters of a signature."""
    defaults = load_settings(door.preset)
    found: dict[str, tuple[str, Any]] = {
        word: (own[argument].annotation, None) for word, argument in door.synonyms.items()
    }
    for name, path in paths.items():
        section, _, setting = path.rpartition(".")
        if section:
            default = getattr(getattr(defaults, section), setting)
            found[name] = (_annotation(_section(section), setting), default)
        elif name == "seed":
            found[name] = ("int", defaults.seed)
        else:
            found[name] = ("Mapping | None", None)
    for name in _common(own):
        annotation = _OF_RUNS[name][0]
        found[name] = (annotation, False if annotation == "bool" else None)
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in found.items()
    ]


def _common(own: Mapping[str, Any]) -> Sequence[str]:
    """Return the keywords of :data:`_OF_RUNS` that suit a stage's arguments."""
    if "run" in own:
        return tuple(_OF_RUNS) if "out" in own else ("settings", "memory")
    return ("memory",) if "settings" in own else ()


def _annotation(section: type[Section], setting: str) -> str:
    """Return the type of a setting as text."""
    kind = section.model_fields[setting].annotation
    options = [one for one in get_args(kind) if one is not type(None)]
    if kind is None or get_origin(kind) not in (Union, UnionType):
        return inspect.formatannotation(kind).replace("typing.", "")
    if len(options) < len(get_args(kind)):
        options.append(None)
    return " | ".join(inspect.formatannotation(one).replace("typing.", "") for one in options)


def _document(
    stage: Callable[..., Any],
    keywords: Sequence[inspect.Parameter],
    paths: Mapping[str, str],
    synonyms: Mapping[str, str],
) -> str:
    """Return a stage's docstring with a section on the keywords."""
    text = inspect.getdoc(stage) or ""
    if not keywords:
        return text
    lines = ["Other Parameters", "----------------"]
    for one in keywords:
        default = "" if one.default is None else f", default {one.default!r}"
        lines.append(f"{one.name} : {one.annotation}{default}")
        if one.name in synonyms:
            lines.append(f"    Another name of ``{synonyms[one.name]}``.")
        else:
            lines += _meaning(one.name, paths)
    section = "\n".join(lines) + "\n\n"
    for heading in ("Returns\n-------", "Raises\n------", "Notes\n-----"):
        before, found, after = text.partition(heading)
        if found:
            return f"{before}{section}{found}{after}"
    return f"{text}\n\n{section}".rstrip()


def _meaning(name: str, paths: Mapping[str, str]) -> list[str]:
    """Return the description of a keyword as lines of a docstring."""
    path = paths.get(name)
    if name in _OF_RUNS:
        text = _OF_RUNS[name][1]
    elif path is not None and "." in path:
        section, setting = path.split(".")
        text = _section(section).model_fields[setting].description or ""
    elif name == "seed":
        text = Settings.model_fields[name].description or ""
    else:
        text = f"settings of the section {name}, by name"
    text = f"{text[:1].upper()}{text[1:]}."
    return textwrap.wrap(text, 80, initial_indent="    ", subsequent_indent="    ")


def _meant(name: str, door: Door, given: Mapping[str, Any]) -> str:
    """Return the remedy for arguments that do not fit, such as ``fields`` in place of ``field``."""
    words = (*door.aliases, *door.synonyms)
    near = [word for word in words for one in given if one != word and one.startswith(word)]
    return f"did you mean {near[0]!r}?" if near else f"help(cosmoflow.{name})"


def _unknown(name: str, keyword: str, known: Sequence[str], value: Any) -> UsageError:
    """Return the error for an unknown keyword."""
    alike = (one for one in known if one.startswith(keyword) or keyword.startswith(one))
    near = next(alike, None) or closest(keyword, known)
    others = [
        section
        for section, one in Settings.model_fields.items()
        if isinstance(one.annotation, type)
        and issubclass(one.annotation, Section)
        and keyword in one.annotation.model_fields
    ]
    if near:
        remedy = f"did you mean {near!r}?"
    elif taken := [section for section in others if section in known]:
        section = taken[0]
        stated = f"{{{keyword!r}: {reprlib.repr(value)}}}"
        remedy = f"{keyword} is a setting of {section}: give {section}={stated}"
    elif others:
        remedy = f"{keyword} is a setting of {' and '.join(others)}"
    else:
        remedy = f"help(cosmoflow.{name})"
    return UsageError(
        f"{name}() has no keyword {keyword!r}",
        where=f"cosmoflow.{name}",
        limit=", ".join(known),
        remedy=remedy,
    )


def _both(name: str, word: str, argument: str) -> UsageError:
    """Return the error for two keywords of the same meaning."""
    return UsageError(
        f"{word} and {argument} mean the same", where=f"cosmoflow.{name}", remedy="give one"
    )


def _changes(chosen: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Return the changes to the settings as nested mappings."""
    changes: dict[str, Any] = {}
    for name, value in chosen.items():
        path = paths.get(name, _ENGINE.get(name))
        if name == "engine" and isinstance(value, str):
            path = "engine.choice"
        # None is a valid value of many settings; for sections and the engine it means no change.
        if path is None or (value is None and (name not in paths or "." not in path)):
            continue
        # A section that is given as an object replaces that of the settings, and keeps which of its
        # values were stated.
        nested = _plain(value) if name == "engine" else value
        for key in reversed(path.split(".")):
            nested = {key: nested}
        changes = merge(changes, nested)
    return changes


def _plain(value: Any) -> Any:
    """Convert a section to a mapping; return other values unchanged."""
    return value.model_dump() if isinstance(value, Section) else value


def _base_settings(given: Any, preset: str | None = None) -> Settings:
    """Return the settings that the keywords then change."""
    if given is None:
        return load_settings(preset)
    if isinstance(given, Settings):
        return given
    if isinstance(given, Mapping):
        return revise_settings(Settings(), given)
    return load_settings(str(given))


def _resolve(
    arguments: dict[str, Any],
    own: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> None:
    """Set the settings or hints in the arguments of a stage that takes no run."""
    if "settings" in own:
        base = _base_settings(arguments.get("settings"))
        arguments["settings"] = revise_settings(base, changes)
    elif "hints" in own and changes:
        hints = arguments.get("hints")
        base = revise_settings(Settings(), {} if hints is None else {"snapshot": _plain(hints)})
        arguments["hints"] = revise_settings(base, changes).snapshot


@contextmanager
def _listening(
    name: str,
    arguments: Mapping[str, Any],
    chosen: Mapping[str, Any],
    changes: Mapping[str, Any],
    door: Door,
) -> Iterator[Run]:
    """Yield the run of one call and show its progress."""
    from cosmoflow.cli.progress import watching
    from cosmoflow.stages.run import Run

    run = arguments.get("run")
    if run is not None and not isinstance(run, Run):
        raise UsageError(
            f"{name}() expects a cosmoflow.Run here",
            where="run",
            value=type(run).__name__,
            remedy="settings=... accepts Settings, a mapping, or the name of a file",
        )
    if run is not None and chosen.get("settings") is not None:
        raise UsageError(
            "run and settings exclude each other",
            where=f"cosmoflow.{name}",
            remedy="pass settings to Run(settings); keywords take precedence over them",
        )
    if chosen.get("overwrite") and chosen.get("resume"):
        raise UsageError(
            "overwrite and resume exclude each other", where=f"cosmoflow.{name}", remedy="give one"
        )
    base = _base_settings(chosen.get("settings"), door.preset) if run is None else run.settings
    settings = revise_settings(base, changes)
    if run is None:
        run = Run(settings)
    elif settings.engine != base.engine:
        run = Run(settings, existing=run.existing, listener=run.listener)
    else:
        run = replace(run, settings=settings)
    for existing in ("overwrite", "resume"):
        if chosen.get(existing):
            run = replace(run, existing=existing)
    with watching(chosen.get("progress"), run.listener) as listener:
        yield replace(run, listener=listener)
