"""Validated settings from YAML files, presets and ``key.path=value`` options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cosmoflow.config.base import Section
from cosmoflow.config.folders import expand_home
from cosmoflow.config.reference import suggest_setting
from cosmoflow.config.settings import Settings
from cosmoflow.config.yaml_text import parse_yaml
from cosmoflow.errors import ConfigError, suggest

_PACKAGE = Path(__file__).parent

_ADVICE = {
    ("infer.fields", "velocity"): "the velocity is always written: leave it out",
    ("infer.fields", "velocity_std"): "--set infer.errors=true writes it",
    ("infer.fields", "velocity_spread"): "--set infer.spread=true writes it",
}
"""Remedies for values whose nearest valid value is not what was meant."""


def preset_folder() -> Path:
    """Return the folder of the presets: in the package if installed, ``configs/`` in a clone."""
    packaged = _PACKAGE / "presets"
    return packaged if packaged.is_dir() else _PACKAGE.parents[1] / "configs"


def preset_names() -> list[str]:
    """Return the names of the presets, which ``--config`` accepts besides paths."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def read_yaml(source: str) -> dict[str, Any]:
    """Read a configuration file or a named preset.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or does not hold a mapping.
    """
    path = Path(expand_home(source))
    if not path.is_file() and source in preset_names():
        path = preset_folder() / f"{source}.yaml"
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "cannot read the configuration",
            where=source,
            value=error.strerror,
            remedy=f"give a YAML file or a preset: {', '.join(preset_names())}",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("the configuration is not YAML", where=source, value=str(error)) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            "the configuration must be a mapping of sections",
            where=source,
            value=type(content).__name__,
        )
    return content


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``key.path=value`` into a nested mapping; the value is read as YAML.

    Raises
    ------
    ConfigError
        The ``=`` or the key is missing.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            "an override must read key.path=value",
            where="--set",
            value=text,
            remedy="for example --set train.steps=500",
        )
    try:
        nested: Any = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            "the value is not YAML", where=f"--set {text}", value=str(error)
        ) from None
    for key in reversed(keys):
        nested = {key: nested}
    return dict(nested)


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated with ``update``; nested mappings are merged key by key."""
    merged = dict(base)
    for key, value in update.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def load_settings(
    config: str | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Resolve the settings of a run: defaults, then the file, then ``--set``, then options.

    Later sources take precedence.

    Parameters
    ----------
    config : str, optional
        YAML file or name of a preset.
    overrides : iterable of str
        ``key.path=value`` items.
    options : mapping, optional
        Nested values of command-line options; entries that are None are ignored.

    Raises
    ------
    ConfigError
        The file or an override cannot be read, a key is unknown, or a value is out of range; the
        message names the file, override or key.
    """
    content = read_yaml(config) if config else {}
    for text in overrides:
        content = merge(content, parse_override(text))
    return _validate(merge(content, _without_none(options or {})), config)


def revise_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return a copy of the settings with nested changes. None is an ordinary value in them.

    Raises
    ------
    ConfigError
        A key is unknown or a value is out of range; the message names the key.
    """
    # Defaults stay marked as defaults: outputs note them as assumed.
    stated = settings.model_dump(exclude_unset=True)
    return _validate(merge(stated, changes)) if changes else settings


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            below = _without_none(value)
            # A section whose options were not given must not replace the file's value.
            if below:
                kept[key] = below
        elif value is not None:
            kept[key] = value
    return kept


def _validate(content: Mapping[str, Any], config: str | None = None) -> Settings:
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise _explain(error, config) from None


def _explain(error: ValidationError, config: str | None) -> ConfigError:
    """Turn pydantic's first error into a ConfigError that names key, value and remedy."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path) + (f" in {config}" if config else "")
    if first["type"] == "extra_forbidden":
        key, known = ".".join(path), ", ".join(_known_keys(path[:-1]))
        return ConfigError(
            f"unknown configuration key {key!r}",
            where=where,
            remedy=suggest_setting(key) or f"known keys here: {known}",
        )
    message = first["msg"].removeprefix("Value error, ")
    value, key = first["input"], _key_of(path)
    choices = first["ctx"]["expected"] if first["type"] == "literal_error" else ""
    return ConfigError(
        f"invalid configuration: {message}",
        where=key + (f" in {config}" if config else ""),
        value=None if isinstance(value, dict) else value,
        remedy=_ADVICE.get((key, str(value)))
        or suggest(str(value), re.findall("'([^']*)'", choices)),
    )


def _key_of(path: list[str]) -> str:
    """Return the key in a path of pydantic, which goes on with positions and types of the value."""
    section, kept = Settings.model_fields, list[str]()
    for part in path:
        if part not in section:
            break
        kept.append(part)
        kind = section[part].annotation
        section = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
    return ".".join(kept or path)


def _known_keys(path: list[str]) -> list[str]:
    section: type[Section] = Settings
    for part in path:
        field = section.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return []
        section = field.annotation
    return sorted(section.model_fields)
