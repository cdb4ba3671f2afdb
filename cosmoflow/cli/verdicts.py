"""What a training achieved, and what to try next, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmoflow.model.names import OWN
from cosmoflow.units import VELOCITY, format_difference, is_less

_SLOWER = 4.0
"""Factor of the rates in the advice to lower them."""


def judge_training(
    compared: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
) -> str | None:
    """Return in a few sentences which model is best, and whether tuning helped.

    Parameters
    ----------
    compared : mapping
        The comparison in the folder of a model.
    validation : mapping or None
        The validation of the weights that were kept, of
        :func:`cosmoflow.stages.inspect.read_validation`.
    provenance : mapping or None
        Provenance of the model, which has the settings of the training.

    Returns
    -------
    str or None
        None if the model was compared with no other.
    """
    rms = dict(compared["rms"])
    start: Any = compared.get("start")
    train = ((provenance or {}).get("config") or {}).get("train") or {}
    tuning = None
    if start in rms and not compared.get("learns", True):
        name = train.get("model", "its architecture")
        del rms[start]
        tuning = (
            f"nothing was tuned: {name} has no network, and this model is the one that it started "
            f"from; to fit it to these boxes, train --model {name} without --from"
        )
    elif start in rms:
        tuning = _judge_tuning(rms, start, validation or {}, train)
    best = _name_best(rms, tuned=None if tuning is None else start)
    return "; ".join(filter(None, (tuning, best))) or None


def _name_best(rms: Mapping[str, float], tuned: str | None) -> str | None:
    """Return which model is best; None if there is one, or if that of a tuning has been said.

    Parameters
    ----------
    rms : mapping
        Residual of each model, km/s.
    tuned : str or None
        Name of the model that a tuning, on which there is a verdict, started from.
    """
    best, *others = sorted(rms, key=lambda name: rms[name])
    if not others or (tuned in rms and best in (OWN, tuned)):
        return None
    said = {name: f"{one:.1f} {VELOCITY}" for name, one in rms.items()}
    tied = [name for name in others if not is_less(rms[best], rms[name])]
    other = others[0] if best == OWN else OWN
    difference = f"{format_difference(rms[best], rms[other])} {other} ({said[other]})"
    if not tied:
        return f"{best} is the best of these: it leaves {said[best]}, {difference}"
    *first, last = (f"{name} ({said[name]})" for name in (best, *tied))
    text = (
        f"{', '.join(first)} and {last} differ by 1 % or less: "
        f"{'neither' if len(tied) == 1 else 'none of them'} is clearly best"
    )
    return text if OWN in (best, *tied) else f"{text}; {best} leaves {difference}"


def _judge_tuning(
    rms: Mapping[str, float], start: str, validation: Mapping[str, Any], train: Mapping[str, Any]
) -> str:
    """Return whether tuning helped.

    Parameters
    ----------
    rms : mapping
        Residual of each model, km/s.
    start : str
        Name of the model that this one started from.
    validation, train : mapping
        The validation of the weights that were kept, and the settings of the training.
    """
    own, before = (f"{rms[name]:.1f} {VELOCITY}" for name in (OWN, start))
    difference = format_difference(rms[OWN], rms[start])
    helped = is_less(rms[OWN], rms[start])
    no_worse = rms[OWN] < rms[start]
    outcome = "helped" if helped else "made no clear difference" if no_worse else "did not help"
    if not helped and validation.get("step") == 0:
        text = (
            "tuning did not help: no validation was better than that of the model that it started "
            f"from ({before}), whose weights are kept"
        )
    else:
        text = (
            f"tuning {outcome}: it leaves {own}, {difference} the model that it started from "
            f"({before})"
        )
    later = validation.get("later")
    if later is not None:
        worse = f"{later['rms']:.1f} {VELOCITY} at step {later['step']:,}"
        text += f"; more steps make it worse ({worse})"
    if helped:
        return text
    rest = "tune for more steps"
    if later is not None:
        rest = f"try more boxes, or a lower rate{_lower(train)}"
    # To one decimal, as they are shown: weights that were kept have the residual of the start.
    best = round(min(rms.values()), 1) == round(rms[start], 1)
    return f"{text}: {'keep the model that it started from, or ' * best}{rest}"


def _lower(train: Mapping[str, Any]) -> str:
    """Return the settings of lower rates, in brackets."""
    names = ["learning_rate"] + ["muon_rate"] * (train.get("optimiser") == "muon")
    rates = [f"--set train.{name}={train[name] / _SLOWER:.2g}" for name in names if name in train]
    return f" ({' '.join(rates)})" if rates else ""
