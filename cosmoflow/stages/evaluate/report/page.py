"""The report as one HTML page that needs nothing but itself, and its numbers as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosmoflow.numerics.comparison import SAMPLED_AT, Comparison
from cosmoflow.stages.evaluate.report import markup, paper_tables, sections
from cosmoflow.stages.evaluate.report.figures import Figure
from cosmoflow.stages.evaluate.report.methods import best_baseline, best_network
from cosmoflow.stages.evaluate.report.style import CSS
from cosmoflow.stages.inputs.empty_cells import MOST_EMPTY

TITLE: Final = "Velocity reconstruction report"

_CONTENTS: Final = {
    "residuals": "Residual velocity",
    "slice": "A slice, as in Figure 3",
    "momentum": "Momentum, its curl and the divergence, as in Figure 4",
    "joint": "Divergence and curl against density, as in Figure 5",
    "paper": "Spectra beside the paper's, as in Figure 6 and Tables 1 to 4",
    "where": "Where the residual is largest",
    "full": "Spectra of the periodic box",
    "provenance": "Provenance",
}

_TILE_K: Final = 0.6


class Verdict(NamedTuple):
    """How well the best network does.

    Attributes
    ----------
    grade : {'good', 'bad', 'plain'}
        Whether it beats the best baseline; plain where there is no such pair.
    headline, sentence : str
        In a few words, and in numbers.
    """

    grade: str
    headline: str
    sentence: str


def verdict(comparison: Comparison) -> Verdict:
    """Return the one sentence that says how well the best network does."""
    residual, truth = comparison.metrics["residual"], comparison.metrics["truth"]["rms"]
    network, baseline = best_network(comparison), best_baseline(comparison)
    where = f"In this box of {comparison.box_size:g} Mpc/h, whose velocity is {truth:.0f} km/s rms"
    if network is None or baseline is None:
        name = network or baseline or comparison.methods[0]
        off = f"{name} is off by {residual[name]['rms']:.1f} km/s rms in three dimensions."
        return Verdict("plain", "Nothing to compare with", f"{where}, {off}")
    mine, other = float(residual[network]["rms"]), float(residual[baseline]["rms"])
    start = (
        f"{where}, {network} is off by {mine:.1f} km/s rms in three dimensions against "
        f"{other:.1f} km/s for {baseline}"
    )
    if mine == 0.0:
        return Verdict("good", "Exact", f"{start}: it is exact.")
    if mine <= other:
        closer = f"{start}: {other / mine:.2f} times closer to the truth."
        return Verdict("good", "Better than every baseline", closer)
    farther = f"{start}: {mine / max(other, 1e-30):.2f} times farther from the truth."
    return Verdict("bad", "Worse than the best baseline", farther)


def write_report(
    comparison: Comparison,
    figures: Sequence[Figure],
    context: Mapping[str, Any],
    out_dir: Path,
) -> Path:
    """Write ``report.html``, which holds its images and loads nothing.

    Parameters
    ----------
    comparison : Comparison
        What was measured.
    figures : sequence of Figure
        Drawn PNG files, in the order to show them.
    context : mapping
        What the run was: config digest, versions, inputs, cells, redshift, cosmology and the like;
        shown as it is, nested mappings with dotted keys.
    out_dir : Path
        Folder to write to; made if it is not there.

    Returns
    -------
    Path
        The page.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "report.html"
    path.write_text("".join(_page(comparison, figures, context)), encoding="utf-8")
    return path


def write_metrics(comparison: Comparison, context: Mapping[str, Any], path: Path) -> Path:
    """Write every number of the comparison and the run's context as strict JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"context": context, "metrics": comparison.to_json()}
    text = json.dumps(content, indent=1, allow_nan=False, default=str)
    # A line for every number of a list would be a hundred thousand lines. A string holds neither
    # line breaks nor bare quotes, so that what is matched is a list of numbers.
    text = re.sub(r'\[\n[^\[\]{}"]*\]', lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _page(
    comparison: Comparison, figures: Sequence[Figure], context: Mapping[str, Any]
) -> Iterator[str]:
    found = verdict(comparison)
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(TITLE)}</title><style>{CSS}</style></head>\n<body><header>"
        f"<h1>{escape(TITLE)}</h1>"
        f'<p class="verdict {found.grade}"><b>{escape(found.headline)}</b> '
        f"{escape(found.sentence)}</p>"
    )
    if comparison.metrics["truth"]["empty_share"] > MOST_EMPTY and "empty_cells" in context:
        yield f'<p class="caution"><b>Empty cells</b> {escape(context["empty_cells"])}</p>'
    yield from _tiles(comparison)
    links = "".join(
        f'<li><a href="#{name}">{escape(title.partition(", as in")[0])}</a></li>'
        for name, title in _CONTENTS.items()
    )
    yield f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>'
    content = {
        "residuals": sections.residuals(comparison, figures),
        "slice": sections.the_slice(comparison, figures),
        "momentum": sections.derived(figures),
        "joint": sections.joint(figures),
        "paper": sections.beside_the_paper(comparison, figures),
        "where": sections.where(comparison, figures),
        "full": sections.full_box(comparison, figures),
        "provenance": sections.provenance(comparison, context),
    }
    # What was warned of or could not be checked comes before any figure.
    yield from map(markup.note, context.get("provenance", {}).get("notes", ()))
    for name, title in _CONTENTS.items():
        yield from markup.section(name, title, content[name])
    published = markup.note(f"Published numbers: {paper_tables.SOURCE}.")
    files = markup.note("Beside this page: figures/ as PNG and PDF, metrics.json, curves.zarr.")
    yield f"</main><footer>{published}{files}</footer></body></html>\n"


def _tiles(comparison: Comparison) -> Iterator[str]:
    """Yield the handful of numbers that a reader in a hurry wants."""
    name = best_network(comparison) or best_baseline(comparison) or comparison.methods[0]
    residual, spectra = comparison.metrics["residual"][name], comparison.metrics["spectra"]
    quantities = (spectra["subbox"] or spectra["full"])["quantities"]
    tiles = [
        (f"{markup.number(residual['rms'], 1)} km/s", "residual, rms of all cells"),
        (markup.percent(residual["relative"]), "of the true velocity's rms"),
        (markup.number(residual["correlation"], 3), "correlation with the truth, cell by cell"),
    ]
    sampled = quantities["divergence"]["methods"][name]["sampled"]
    match = sampled["r"][SAMPLED_AT.index(_TILE_K)]
    if match is not None:
        tiles.append((f"{match:.3f}", f"r of the divergence at k = {_TILE_K:g} h/Mpc"))
    closer, known = paper_tables.score(quantities, name)
    if known:
        tiles.append((f"{closer} of {known}", "T(k) closer to 1 than the paper's U-net"))
    items = "".join(
        f"<li><strong>{escape(value)}</strong>{escape(words)}</li>" for value, words in tiles
    )
    yield f'<ul class="tiles" aria-label="Key numbers of {escape(name)}">{items}</ul>'
