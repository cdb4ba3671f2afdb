"""What `train` prints at its end: the new model beside others, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table

from cosmoflow.cli.cards import describe_boxes
from cosmoflow.cli.show import show_facts
from cosmoflow.model.names import DEFAULT_MODEL, OWN, SHIPPED, is_plain
from cosmoflow.units import format_count

_MOST_FIELDS = 8
"""Most stores that a suggested command names."""

_MOST_NAMED = 3
"""Most validation boxes that are named."""


def suggest_next(
    fields: Sequence[str],
    out: str,
    target: str,
    compared: Mapping[str, Any] | None,
    start: str | None,
) -> list[str]:
    """Return commands to type after a training, none of which meets an output that exists.

    Parameters
    ----------
    fields : sequence of str
        The stores trained on, as they were given. The last one is for validation.
    out : str
        Folder of the model.
    target : str
        Field that it predicts.
    compared : mapping or None
        The comparison with other models.
    start : str or None
        Model that the training went on from.
    """
    box = fields[-1]
    stem = PurePosixPath(box).stem
    # Without ./ the name of a model that ships would mean that model.
    models = {"": f"./{out}" if is_plain(out) else out}
    # A lone box trained the model, but for a slab: a report on it would flatter.
    reported = len(fields) > 1
    # `evaluate` adds the shipped model by itself, but not another start.
    learns = compared is None or compared.get("learns", True)
    # A filter that was copied equals its start: to compare the two would tell nothing.
    copied = not learns and compared is not None and compared["start"] in compared["rms"]
    if reported and not copied and start not in (None, DEFAULT_MODEL):
        models["-start"] = start
    predictions = {
        _unused(f"{stem}-{target}{end}", ".zarr"): model for end, model in models.items()
    }
    commands = [
        ["cosmoflow", "infer", box, prediction, "--model", model]
        for prediction, model in predictions.items()
    ]
    if reported:
        report = _unused(f"{stem}-report", "")
        commands.append(["cosmoflow", "evaluate", box, *predictions, "--out", report])
    # A training that began with the shipped model had too few steps, or gains nothing.
    fresh = start is None or not learns
    if is_behind(compared) and len(fields) <= _MOST_FIELDS and fresh:
        better = _unused(f"{out.rstrip('/')}-tuned", "")
        commands.append(["cosmoflow", "train", *fields, "--from", DEFAULT_MODEL, "--out", better])
    return [shlex.join(command) for command in commands]


def is_behind(compared: Mapping[str, Any] | None) -> bool:
    """Return whether the shipped model is closer to the truth than the new one."""
    rms = {} if compared is None else compared["rms"]
    return SHIPPED in rms and rms[SHIPPED] < rms[OWN]


def _unused(stem: str, ending: str) -> str:
    """Return a name that nothing has."""
    from cosmoflow.storage.urls import exists

    names = (f"{stem}{f'-{number}' * (number > 1)}{ending}" for number in count(1))
    return next(name for name in names if not exists(name))


def show_training(
    console: Console,
    facts: Mapping[str, Any],
    fields: Sequence[str],
    compared: Mapping[str, Any] | None,
    verdict: str | None,
    further: Sequence[str],
) -> None:
    """Print a trained model, its residual beside those of others, and what to do next.

    Parameters
    ----------
    console : Console
        Where to print.
    facts : mapping
        Facts of the model; ``boxes`` has the numbers of boxes that trained and validated it.
    fields : sequence of str
        The stores trained on, as they were given.
    compared : mapping or None
        The comparison with other models.
    verdict : str or None
        Which model is best, and whether tuning helped.
    further : sequence of str
        Commands to type next.
    """

    def write(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    boxes = facts["boxes"]
    shown = {name: one for name, one in facts.items() if name != "boxes"}
    show_facts(console, "trained", {**shown, "trained on": describe_boxes(boxes)})
    held_out = boxes["validation"]
    if compared is not None:
        table = Table(
            title=f"residual in {format_count(compared['blocks'], 'validation block')}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        table.add_column("model", overflow="fold")
        table.add_column("rms, km/s", justify="right", no_wrap=True)
        for name, rms in sorted(compared["rms"].items(), key=lambda row: row[1]):
            table.add_row(name, f"{rms:.1f}")
        console.print(table)
        place = ", ".join(fields[-held_out:]) if held_out else f"a slab of {fields[0]}"
        if held_out > _MOST_NAMED:
            place = f"the last {held_out} boxes"
        unseen = "" if compared.get("learned_from") else ", which the model did not learn from"
        write(f"validation blocks: cells of {place}{unseen}")
        for name, reason in compared["skipped"].items():
            write(f"{name} is not compared: {reason}")
        if verdict is not None:
            write(verdict)
    role = "validated" if held_out else "trained"
    write(f"next ({fields[-1]} {role} this model: replace it by a box that it has not seen):")
    for command in further:
        if f" --from {DEFAULT_MODEL} " in command:
            write(f"{DEFAULT_MODEL} is closer; to train it on these boxes:")
        write(f"  {command}")
