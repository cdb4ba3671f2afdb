"""Every setting with its type, default, unit and meaning, read from the sections' models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from cosmoflow.config.base import Section
from cosmoflow.config.settings import Settings
from cosmoflow.errors import ConfigError, closest
from cosmoflow.units import LENGTH, VELOCITY

_UNIT: Final = re.compile(rf", ({re.escape(LENGTH)}|{re.escape(VELOCITY)}|eV|seconds)(?=$|[,;])")
"""A unit in a description: after a comma, at the end of a clause."""
_TYPES: Final[dict[Any, str]] = {type(None): "null", ByteSize: "int | str"}
_BOUNDS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting.

    Parameters
    ----------
    key : str
        Name for ``--set`` and YAML files, such as ``paint.grid``.
    type : str
        Type, or the allowed words, separated by ``|``.
    default : object
        Default as plain data: a tuple is a list.
    unit : str
        Unit; empty if there is none.
    limits : str
        Allowed range; empty if any value of the type is allowed.
    meaning : str
        Description without the unit.
    """

    key: str
    type: str
    default: Any
    unit: str
    limits: str
    meaning: str

    @property
    def default_text(self) -> str:
        """The default as a YAML file would have it."""
        return self.default if isinstance(self.default, str) else json.dumps(self.default)


def list_settings() -> list[SettingRow]:
    """Return all settings, in the order of the sections."""
    defaults = Settings()
    rows: list[SettingRow] = []
    for name, field in Settings.model_fields.items():
        value = getattr(defaults, name)
        if not isinstance(value, Section):
            rows.append(_describe(name, field, value))
            continue
        for key, inner in type(value).model_fields.items():
            rows.append(_describe(f"{name}.{key}", inner, getattr(value, key)))
    return rows


def describe_section(name: str) -> str:
    """Return what a section is for; empty for a setting outside of the sections."""
    section = getattr(Settings(), name)
    return (type(section).__doc__ or "").partition("\n")[0] if isinstance(section, Section) else ""


def find_settings(name: str | None = None) -> list[SettingRow]:
    """Return the settings of a section, the setting of a key, or all settings.

    Parameters
    ----------
    name : str, optional
        Section, such as ``paint``, or key, such as ``paint.grid``; by default all settings.

    Raises
    ------
    ConfigError
        There is no such section or key; the message names those that are close.
    """
    rows = list_settings()
    found = [row for row in rows if name in (None, row.key, row.key.partition(".")[0])]
    if not found:
        sections = dict.fromkeys(row.key.partition(".")[0] for row in rows)
        raise ConfigError(
            f"there is no section or setting {name!r}",
            where="cosmoflow settings",
            limit=f"a section ({', '.join(sections)}) or a key, such as paint.grid",
            remedy=suggest_setting(str(name)) or "`cosmoflow settings` lists all settings",
        )
    return found


def suggest_setting(name: str) -> str | None:
    """Return the remedy for a name that is neither a section nor a key; None if none is close.

    A key without its section, or with that of another one, counts as close.
    """
    section, _, last = name.rpartition(".")
    settings = [(row.key.rpartition(".")[2], row.key) for row in list_settings()]
    near = [key for setting, key in settings if setting == last]
    if not near and not section and (meant := closest(name, Settings.model_fields)):
        near = [meant]
    if not near:
        inside = [row for row in settings if row[1].startswith(f"{section}.")] or settings
        close = closest(last, (setting for setting, _ in inside))
        near = [key for setting, key in inside if setting == close]
    return f"did you mean {' or '.join(near)}?" if near else None


def _describe(key: str, field: FieldInfo, default: Any) -> SettingRow:
    meaning = field.description or ""
    unit = _UNIT.search(meaning)
    if unit is not None:
        meaning = meaning[: unit.start()] + meaning[unit.end() :]
    limits = [
        f"{sign} {_number(getattr(one, bound))}"
        for one in field.metadata
        for bound, sign in _BOUNDS.items()
        if getattr(one, bound, None) is not None
    ]
    return SettingRow(
        key,
        _type_text(field.annotation),
        json.loads(json.dumps(default)),
        unit[1] if unit is not None else "bytes" if _is_size(field.annotation) else "",
        ", ".join(limits),
        meaning,
    )


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_size(kind: Any) -> bool:
    return ByteSize in (kind, *get_args(kind))


def _type_text(kind: Any) -> str:
    """Return a type in words: ``int``, ``cic | tsc``, ``list of float``."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _TYPES:
        return _TYPES[kind]
    if origin is Literal:
        return " | ".join(str(one) for one in inner)
    if origin in (Union, UnionType):
        return " | ".join(_type_text(one) for one in inner)
    if origin is tuple:
        items = [_type_text(one) for one in inner if one is not Ellipsis]
        if inner[-1] is not Ellipsis:
            return f"[{', '.join(items)}]"
        return f"list of ({items[0]})" if " | " in items[0] else f"list of {items[0]}"
    return str(kind.__name__)
