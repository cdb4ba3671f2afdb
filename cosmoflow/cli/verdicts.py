"""What a tuning achieved, and what to try next, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmoflow.model.names import OWN
from cosmoflow.units import VELOCITY, format_difference, is_less

_SLOWER = 4.0
"""Factor of the rates in the advice to lower them."""


def judge_tuning(
    compared: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
) -> str | None:
    """Return in a few sentences whether tuning helped; None if the start was not compared.

    Parameters
    ----------
    compared : mapping
        The comparison in the folder of a model.
    validation : mapping or None
        The validation of the weights that were kept, of
        :func:`cosmoflow.stages.inspect.read_validation`.
    provenance : mapping or None
        Provenance of the model, which has the rates of the training.
    """
    rms, start = compared["rms"], compared.get("start")
    if start not in rms:
        return None
    validation = validation or {}
    own, before = (f"{rms[one]:.1f} {VELOCITY}" for one in (OWN, start))
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
        rest = f"try more boxes, or a lower rate{_lower(provenance)}"
    return f"{text}: keep the model that it started from, or {rest}"


def _lower(provenance: Mapping[str, Any] | None) -> str:
    """Return the settings of lower rates, in brackets."""
    config = ((provenance or {}).get("config") or {}).get("train") or {}
    names = ["learning_rate"] + ["muon_rate"] * (config.get("optimiser") == "muon")
    rates = [f"--set train.{name}={config[name] / _SLOWER:.2g}" for name in names if name in config]
    return f" ({' '.join(rates)})" if rates else ""
