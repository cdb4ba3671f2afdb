"""Beginning, resuming and finishing an output store."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import zarr

from cosmoflow.errors import ConfigError, DataError, OutputExistsError, StorageError
from cosmoflow.storage.ledger import has_finished_shards
from cosmoflow.storage.metadata import (
    COMPLETE,
    FORMAT_VERSION,
    IDENTITY,
    INCOMPLETE,
    STATUS,
    attributes_of,
)
from cosmoflow.storage.urls import (
    damage,
    exists,
    find_bytes,
    has_file,
    holds_only_partial_files,
    local_path,
    open_group,
    open_group_for_writing,
    overlaps,
    remove,
    storage_errors,
    write_bytes,
    zarr_store,
)

Existing = Literal["error", "resume", "overwrite"]
"""Treatment of an existing output."""

OUTPUT_MARKS = ("cosmoflow.json", "run.json", "model.json")
"""Files that mark a folder as an output: of reports, demos and sets of boxes, and of models."""


def check_output(url: str, existing: Existing, inputs: Iterable[str] = ()) -> None:
    """Refuse an output that exists already, unless ``existing`` says what to do with it.

    Parameters
    ----------
    inputs : iterable of str
        URLs that the run reads; the output must not overlap with them.

    Raises
    ------
    OutputExistsError
        The output exists already, or it was not made by cosmoflow and is not overwritten.
    ConfigError
        The output is, holds or is inside an input, or is inside another store.
    StorageError
        The folder of a local output cannot be written.
    """
    for source in inputs:
        if overlaps(url, source):
            raise ConfigError(
                "the output would be written over an input",
                where=url,
                value=f"input {source}",
                remedy="give the output another name",
            )
    if (path := local_path(url)) is not None:
        _check_place(path)
    if existing == "resume" or not exists(url):
        return
    if not is_ours(url):
        raise OutputExistsError(
            "the output exists and was not made by cosmoflow, so --overwrite does not replace it",
            where=url,
            remedy="delete it yourself, or give the output another name",
        )
    if existing == "error":
        # Most stages resume with the same settings only, and say so; a demo may take more steps.
        finish = "--resume to finish it, "
        raise OutputExistsError(
            "the output exists already",
            where=url,
            remedy=f"{'' if _is_whole(url) else finish}--overwrite to replace it, or another name",
        )


def _check_place(path: Path) -> None:
    """Refuse a local output inside a store of cosmoflow's, or in a folder that is not writable."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    for parent in (folder, *folder.parents):
        if (parent / "zarr.json").is_file() and is_ours(str(parent)):
            raise ConfigError(
                "the output would be inside a store, which holds its own arrays only",
                where=str(path),
                value=f"store {parent}",
                remedy="give the output a place beside the store",
            )
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(
            "the folder of the output cannot be written",
            where=str(path),
            value=f"{folder} {'is read-only here' if folder.is_dir() else 'is a file'}",
            remedy="name another folder, or change its permissions",
        )


def is_ours(url: str) -> bool:
    """Return whether cosmoflow made what is at a URL: a store, a model, a report or a demo."""
    path = local_path(url)
    if path is not None and path.is_file():
        # A spectrum in netCDF is the only output that is one file.
        return path.suffix == ".nc" and _is_spectrum(path)
    if any(_is_mark(url, name) for name in OUTPUT_MARKS):
        return True
    try:
        attributes = attributes_of(open_group(url))
    except (DataError, StorageError):
        return holds_only_partial_files(url)
    return str(attributes.get("format", "")).startswith("cosmoflow/")


def _is_whole(url: str) -> bool:
    """Return whether nothing is left to finish in what cosmoflow made at a URL."""
    path = local_path(url)
    if path is not None and path.is_file():
        return True
    mark, *_, model = OUTPUT_MARKS
    if (content := find_bytes(url, mark)) is not None:
        try:
            return bool(json.loads(content).get(STATUS) == COMPLETE)
        except (ValueError, AttributeError):
            return False
    if any(_is_mark(url, name) for name in OUTPUT_MARKS):
        return has_file(url, model)
    try:
        return bool(attributes_of(open_group(url)).get(STATUS, COMPLETE) == COMPLETE)
    except (DataError, StorageError):
        return False


def _is_spectrum(path: Path) -> bool:
    import xarray as xr

    try:
        with xr.open_dataset(path, engine="scipy", decode_times=False) as found:
            return str(found.attrs.get("format", "")).startswith("cosmoflow/")
    except (OSError, ValueError, TypeError):
        return False


def _is_mark(url: str, name: str) -> bool:
    """Return whether a file says that cosmoflow made its folder; its name alone does not."""
    content = find_bytes(url, name)
    if content is None or name == OUTPUT_MARKS[0]:
        return content is not None
    text = content.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)
    except ValueError:
        said = text
    if isinstance(said, dict):
        return bool(said.keys() & {"weights_sha256", "digest"})
    # Older versions wrote the digest alone.
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def begin_group(
    url: str, attributes: dict[str, Any], existing: Existing
) -> tuple[zarr.Group, bool]:
    """Create an output group marked incomplete, or reopen one to continue it.

    Parameters
    ----------
    attributes : dict
        Group attributes, with the run's provenance.

    Returns
    -------
    group : zarr.Group
        The output, open for writing.
    resumed : bool
        Whether the output existed and is continued.

    Raises
    ------
    OutputExistsError
        The output exists and may neither be replaced nor resumed.
    ConfigError
        The output was made from other settings or inputs than this run's.
    """
    check_output(url, existing)
    if exists(url):
        if existing == "resume" and _is_resumable(url, attributes):
            return open_group_for_writing(url), True
        remove(url)
    with storage_errors(url):
        group = zarr.create_group(
            zarr_store(url, read_only=False), attributes={**attributes, STATUS: INCOMPLETE}
        )
    return group, False


def _is_resumable(url: str, attributes: dict[str, Any]) -> bool:
    """Return whether a run can continue an output; False if a killed run left nothing."""
    try:
        found = open_group(url)
    except DataError:
        if holds_only_partial_files(url):
            return False
        replace = "--overwrite to replace it, or another name"
        raise OutputExistsError(
            "the output exists and cannot be resumed",
            where=url,
            remedy=replace if is_ours(url) else "delete it yourself, or another name",
        ) from None
    if found.attrs.get("format") != attributes["format"]:
        raise ConfigError(
            "the output is of another kind than what this run makes",
            where=url,
            value=found.attrs.get("format"),
            limit=attributes["format"],
            remedy="--overwrite it, or give another name",
        )
    check_same_run(attributes_of(found).get("provenance", {}), attributes["provenance"], url)
    return True


def check_same_run(
    before: Mapping[str, Any], now: Mapping[str, Any], where: str, what: str = "output"
) -> None:
    """Refuse to resume an output of other settings or inputs, and name those that differ.

    Parameters
    ----------
    before, now : mapping
        Provenance of the output, and of the run that would continue it.
    what : str
        Kind of the output, for the message.

    Raises
    ------
    ConfigError
    """
    now = json.loads(json.dumps(now))
    first, second = before.get("digest"), now["digest"]
    if first == second:
        return
    value, limit = [f"digest {first}"], [f"digest {second}"]
    if before and IDENTITY not in before:
        raise ConfigError(
            f"the {what} was begun by an older cosmoflow, whose digests do not depend on data, so "
            "nothing says that its inputs are still the same",
            where=where,
            value=value[0],
            limit=limit[0],
            remedy=f"make the {what} again with --overwrite",
        )
    inputs = _differing(before.get("inputs", {}), now["inputs"])
    causes: list[str] = []
    for role, found in inputs.items():
        urls = [part.get("sources", {}).get(role) for part in (before, now)]
        causes.append(f"another {'state of the ' * (urls[0] == urls[1])}input {role!r}")
        for text, one, url in zip((value, limit), found, urls, strict=True):
            text.append(f"{role} {one or 'none'}" + (f" ({url})" if url else ""))
    own = [{key: part.get(key) for key in ("stage", "config")} for part in (before, now)]
    settings = _differing(*(_flatten(part) for part in own))
    for name, (one, other) in settings.items():
        value.append(f"{name.removeprefix('config.')} {one}")
        limit.append(f"{name.removeprefix('config.')} {other}")
    if settings or not causes:
        causes.append("other settings")
    raise ConfigError(
        f"the {what} was begun with {' and with '.join(causes)}",
        where=where,
        value="; ".join(value),
        limit="; ".join(limit),
        remedy="resume with the settings and inputs that it was begun with, or --overwrite it",
    )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ in two mappings, with both values."""
    pairs = {key: (before.get(key), now.get(key)) for key in {**before, **now}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    if not isinstance(content, Mapping):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def begun_config(url: str) -> dict[str, Any]:
    """Return the settings that an output was begun with; empty if the output cannot be read."""
    try:
        config = attributes_of(open_group(url)).get("provenance", {}).get("config", {})
    except (DataError, StorageError):
        return {}
    return dict(config)


def mark_folder(url: str, stage: str, status: str | None = None) -> None:
    """Mark a folder as an output of a stage, which ``--overwrite`` may replace.

    Parameters
    ----------
    status : str, optional
        :data:`INCOMPLETE` or :data:`COMPLETE`, if the stage keeps it up to date.
    """
    content = {"format": f"cosmoflow/{stage}", "format_version": FORMAT_VERSION}
    content |= {} if status is None else {STATUS: status}
    write_bytes(url, OUTPUT_MARKS[0], f"{json.dumps(content)}\n".encode())


def is_barely_begun(url: str) -> bool:
    """Return whether an output was created by a run that has finished no shard."""
    try:
        group = open_group(url)
        with storage_errors(url), damage(url):
            return group.attrs.get(STATUS) == INCOMPLETE and not has_finished_shards(group)
    except (DataError, StorageError):
        return False


def add_notes(url: str, notes: Iterable[str]) -> None:
    """Add notes to an output's provenance that were not known when the output was begun."""
    group = open_group_for_writing(url)
    with storage_errors(url):
        provenance = dict(attributes_of(group).get("provenance", {}))
        provenance["notes"] = list(dict.fromkeys([*provenance.get("notes", []), *notes]))
        group.attrs["provenance"] = provenance


def finish_group(group: zarr.Group, attributes: Mapping[str, Any] | None = None) -> None:
    """Mark an output as complete. Call it when every shard is written.

    Parameters
    ----------
    group : zarr.Group
        The output. Open it for writing after checking that the claim is still held.
    attributes : mapping, optional
        Attributes that were not known before. They are set in the same write as the mark.
    """
    group.attrs.update({**(attributes or {}), STATUS: COMPLETE})
