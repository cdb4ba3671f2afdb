"""The report as one HTML page that needs nothing but itself, and its numbers as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from cosmoflow.numerics.comparison import DEFINITIONS, QUANTITIES, SAMPLED_AT, Comparison
from cosmoflow.stages.report import paper_tables
from cosmoflow.stages.report.figures import Figure
from cosmoflow.stages.report.methods import best_baseline, best_network, styles

TITLE: Final = "Velocity reconstruction report"

_NAMES: Final = {
    "speed": "Speed |v|",
    "momentum": "Momentum |v| δ, a scalar",
    "divergence": "Divergence of the velocity",
    "theta_p": "Curl of the momentum, its magnitude",
    "momentum_vector": "Momentum as a vector",
    "momentum_curl_vector": "Curl of the momentum as a vector",
}

_NONE: Final = "\N{EN DASH}"

_CSS: Final = """
:root{color-scheme:light dark;--ink:#1c2127;--soft:#57606a;--page:#fff;--card:#f4f6f8;
--rule:#d0d7de;--accent:#0060a0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a3adb8;--page:#14181d;--card:#1e242b;
--rule:#39424d;--accent:#79bdf2}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
header,main,footer{max-width:52rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;margin:.6rem 0}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.4rem 0 .3rem}
.verdict{font-size:1.15rem;line-height:1.45;background:var(--card);padding:.9rem 1rem;
border-left:.3rem solid var(--accent);border-radius:.3rem;margin:.8rem 0}
.scroll{overflow-x:auto;margin:.6rem 0 1rem}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;color:var(--soft);padding-bottom:.3rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
th[scope=row]{font-weight:500;white-space:normal;min-width:8rem}
tr.published th,tr.published td{color:var(--soft);font-style:italic}
.swatch{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.45em}
figure{margin:1rem 0 1.8rem}
figure img{display:block;width:100%;max-width:40rem;height:auto;margin:0 auto;background:#fff;
border:1px solid var(--rule);border-radius:.3rem}
figcaption,.note{color:var(--soft);font-size:.92rem;margin:.5rem auto 0}
figcaption{max-width:40rem}
.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere;font-size:.85rem;
font-family:ui-monospace,monospace}
"""


def verdict(comparison: Comparison) -> str:
    """Return the one sentence that says how well the best network does."""
    residual, truth = comparison.metrics["residual"], comparison.metrics["truth"]["rms"]
    network, baseline = best_network(comparison), best_baseline(comparison)
    where = f"In this box of {comparison.box_size:g} Mpc/h, whose velocity is {truth:.0f} km/s rms"
    if network is None or baseline is None:
        name = network or baseline or comparison.methods[0]
        return (
            f"{where}, {name} is off by {residual[name]['rms']:.1f} km/s rms in three dimensions."
        )
    mine, other = float(residual[network]["rms"]), float(residual[baseline]["rms"])
    start = (
        f"{where}, {network} is off by {mine:.1f} km/s rms in three dimensions against "
        f"{other:.1f} km/s for {baseline}"
    )
    if mine == 0.0:
        return f"{start}: it is exact."
    if mine <= other:
        return f"{start}: {other / mine:.2f} times closer to the truth."
    return f"{start}: {mine / max(other, 1e-30):.2f} times farther from the truth."


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
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _page(
    comparison: Comparison, figures: Sequence[Figure], context: Mapping[str, Any]
) -> Iterator[str]:
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(TITLE)}</title><style>{_CSS}</style></head>\n<body><header>"
        f'<h1>{escape(TITLE)}</h1><p class="verdict">{escape(verdict(comparison))}</p></header>\n'
        "<main>"
    )
    yield from _residuals(comparison)
    yield from _beside_the_paper(comparison)
    yield from _full_box(comparison)
    yield '<section aria-labelledby="figures"><h2 id="figures">Figures</h2>'
    for figure in figures:
        yield _figure(figure)
    yield '</section><section aria-labelledby="provenance"><h2 id="provenance">Provenance</h2>'
    facts = {
        "box size": f"{comparison.box_size:g} Mpc/h",
        "cells per axis": comparison.metrics["cells"],
        **dict(_flatten(context)),
    }
    yield _table("What was compared", ("item", "value"), [_row(*i) for i in facts.items()], "facts")
    source = escape(f"Published numbers: {paper_tables.SOURCE}")
    yield f'</section></main><footer><p class="note">{source}</p></footer>'
    yield "</body></html>\n"


def _residuals(comparison: Comparison) -> Iterator[str]:
    metrics, look = comparison.metrics, styles(comparison.methods)
    yield '<section aria-labelledby="residuals"><h2 id="residuals">Residual velocity</h2>'
    columns = {
        "3-D rms": ("rms", 1),
        "over truth": ("relative", 3),
        "1-D rms": ("rms_1d", 1),
        "mass-weighted": ("mass_weighted_rms", 1),
    }
    rows = [
        _row(name, *(_number(found[key], digits) for key, digits in columns.values()), look=look)
        for name, found in metrics["residual"].items()
    ]
    caption = (
        "Root mean square over all cells of the difference between predicted and true velocity, "
        f"km/s. The truth: {_number(metrics['truth']['rms'], 1)}, mass-weighted "
        f"{_number(metrics['truth']['mass_weighted_rms'], 1)}."
    )
    yield _table(caption, ("method", *columns), rows)
    for title, residual in (
        ("All cells", metrics["residual"]),
        ("The slice of the figures", metrics["patch"]["residual"]),
    ):
        rows = [
            _row(
                name,
                _spread(found, "residual", 0),
                _spread(found, "cosine", 2),
                _number(found["correlation"], 3),
                _number(found["slope"], 3),
                look=look,
            )
            for name, found in residual.items()
        ]
        if residual is not metrics["residual"]:
            rows += _published_slices()
        head = ("method", "|residual|", "cosine", "correlation", "slope")
        yield _table(f"{title}: mean ± scatter over cells, |residual| in km/s", head, rows)
    yield (
        '<p class="note">Cosine: of the angle to the true velocity. Correlation and slope: of '
        "predicted on true velocity, all components together. The paper's slices were chosen by "
        "its authors, are 40 Mpc/h wide and come from other boxes: they set the scale, no more."
        "</p></section>"
    )


def _published_slices() -> Iterator[str]:
    for method in (paper_tables.UNET, paper_tables.LINEAR):
        slices = zip(
            paper_tables.SLICE_RESIDUAL[method], paper_tables.SLICE_COSINE[method], strict=True
        )
        for number, (residual, cosine) in enumerate(slices, start=1):
            yield _row(
                f"paper, slice {number}: {method}",
                f"{residual[0]:.0f} ± {residual[1]:.0f}",
                f"{cosine[0]:.2f} ± {cosine[1]:.2f}",
                _NONE,
                _NONE,
                published=True,
            )


def _beside_the_paper(comparison: Comparison) -> Iterator[str]:
    measured, look = comparison.metrics["spectra"], styles(comparison.methods)
    box = measured["subbox"]
    yield '<section aria-labelledby="paper"><h2 id="paper">Spectra beside the paper\'s</h2>'
    if box is None:
        yield '<p class="note">The box is smaller than the paper\'s sub-boxes: whole box shown.</p>'
    else:
        yield (
            f'<p class="note">Mean over {box["boxes"]} sub-boxes of ({box["side"]:g} Mpc/h)³, '
            "measured as in the paper. T is predicted over true power; r the cross-correlation "
            "coefficient, which the paper does not give.</p>"
        )
    quantities = (box or measured["full"])["quantities"]
    at = [SAMPLED_AT.index(k) for k in paper_tables.TABLE_K]
    head = ("method", *(f"T({k:g})" for k in paper_tables.TABLE_K))
    head += tuple(f"r({k:g})" for k in paper_tables.TABLE_K)
    for quantity, number in paper_tables.TABLE_NUMBER.items():
        rows = [
            _row(
                name,
                *(_number(found["sampled"][key][i], 3) for key in "Tr" for i in at),
                look=look,
            )
            for name, found in quantities[quantity]["methods"].items()
        ]
        rows += [
            _row(f"paper: {name}", *(f"{t:.3f}" for t in ratios), *[_NONE] * 3, published=True)
            for name, ratios in paper_tables.TRANSFER[quantity].items()
        ]
        yield f"<h3>{escape(_NAMES[quantity])}</h3>"
        yield _table(f"Beside the paper's Table {number}; k in h/Mpc", head, rows)
        yield _worst(quantities[quantity]["methods"], quantity)
    yield "</section>"


def _worst(methods: Mapping[str, Any], quantity: str) -> str:
    k, ratio = paper_tables.WORST[quantity]
    found = [
        f"{name} {_number(m['worst']['T'], 3)} at {m['worst']['k']:.2f}"
        for name, m in methods.items()
        if m["worst"] is not None
    ]
    text = "; ".join([*found, f"the paper's U-net {ratio:.3f} at {k:.2f}"])
    return f'<p class="note">T farthest from 1 in 0.2 &lt; k &lt; 1.4: {escape(text)}.</p>'


def _full_box(comparison: Comparison) -> Iterator[str]:
    full, look = comparison.metrics["spectra"]["full"], styles(comparison.methods)
    yield '<section aria-labelledby="full"><h2 id="full">Spectra of the periodic box</h2>'
    window = full["scheme"]
    corrected = (
        f"the vectors corrected for the {window} window" if window else "no window corrected"
    )
    yield (
        f'<p class="note">One transform of the whole box, {escape(corrected)}. Values are linear '
        "in k between bins one fundamental mode wide; a dash where the box has no such mode.</p>"
    )
    for quantity in QUANTITIES:
        methods = full["quantities"][quantity]["methods"]
        yield f"<h3>{escape(_NAMES[quantity])}</h3>"
        for key, label in (("T", "T(k), predicted over true power"), ("r", "r(k), correlation")):
            rows = [
                _row(name, *(_number(v, 3) for v in found["sampled"][key]), look=look)
                for name, found in methods.items()
            ]
            caption = f"{label} of {DEFINITIONS[quantity]}"
            yield _table(caption, ("k [h/Mpc]", *(f"{k:g}" for k in SAMPLED_AT)), rows)
    yield "</section>"


def _figure(figure: Figure) -> str:
    image = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    alt = f"{figure.title}; described in the caption"
    return (
        f'<figure><h3>{escape(figure.title)}</h3><img alt="{escape(alt)}" loading="lazy" '
        f'src="data:image/png;base64,{image}"><figcaption>{escape(figure.caption)}</figcaption>'
        "</figure>"
    )


def _table(caption: str, head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    # A region that scrolls must be reachable by keyboard, and named.
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{columns}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(
    name: str, *cells: object, look: Mapping[str, Any] | None = None, published: bool = False
) -> str:
    dot = ""
    if look is not None:
        dot = f'<span class="swatch" style="background:{look[name].colour}"></span>'
    values = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    kind = ' class="published"' if published else ""
    return f'<tr{kind}><th scope="row">{dot}{escape(str(name))}</th>{values}</tr>'


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return _NONE
    if value != 0.0 and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.0e}"
    return f"{value:.{digits}f}"


def _spread(found: Mapping[str, Any], name: str, digits: int) -> str:
    mean, scatter = found[f"mean_{name}"], found[f"scatter_{name}"]
    return f"{_number(mean, digits)} ± {_number(scatter, digits)}"


def _flatten(context: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in context.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(part) for part in value)
        else:
            yield f"{prefix}{key}", str(value)
