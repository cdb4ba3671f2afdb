"""The report page as a reader's browser would take it apart, and the files beside it."""

import base64
import itertools
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from cosmoflow.model.names import SHIPPED
from cosmoflow.numerics import fourier
from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.evaluate.report import figures, formats, head, methods, page, paper_tables
from cosmoflow.stages.evaluate.report.figures import counts, scales
from cosmoflow.stages.evaluate.report.figures.box import residual_by_density
from tests.cases import each

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Reader(HTMLParser):
    """Collect what a page holds and fail where tags do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def size_of(path):
    data = path.read_bytes()
    return tuple(int.from_bytes(data[at : at + 4], "big") for at in (16, 20))


def small_comparison(
    names=("network", "linear theory", "linear theory 4 Mpc/h"), subbox=64.0, **trust
):
    cells, box = 32, 128.0
    random = np.random.default_rng(0)
    density = np.exp(random.normal(0.0, 1.0, (cells,) * 3)).astype(np.float32)
    density /= density.mean()
    tensor = torch.from_numpy(density)
    truth = fourier.linear_velocity(tensor, box, 50.0, 3.0).numpy()
    noise = random.normal(0.0, 1.0, truth.shape).astype(np.float32)
    fields = {
        "network": truth + 0.02 * truth.std() * noise,
        "second": truth + 0.2 * truth.std() * noise,
        "linear theory": fourier.linear_velocity(tensor, box, 50.0).numpy(),
        "linear theory 4 Mpc/h": fourier.linear_velocity(tensor, box, 50.0, 4.0).numpy(),
        HOSTILE: truth + noise,
    }
    shown = {name: fields[name] for name in names}
    return compare(density, truth, shown, box, subbox=subbox, **trust)


def known_errors():
    """Return what the network of a small comparison knows of its errors, twice too small."""
    truth = small_comparison(subbox=200.0).metrics["truth"]
    std = np.full((3, 32, 32, 32), 0.01 * truth["rms"] / np.sqrt(3.0), np.float32)
    return {"errors": {"network": std}, "particles_per_cell": 2.0}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    found = small_comparison(**known_errors())
    drawn = figures.make_figures(found, folder / "figures")
    models = {"name": "mine", "architecture": "residual-tiny", "parameters": 198923}
    training = {"cell_size": [1.0, 4.0], "redshift": 0.5, "boxes": 2}
    training |= {"validation_boxes": 1, "steps": 1500, "start": "/models/older"}
    context = {
        "redshift": 0.5,
        "particles_per_cell": 2.0,
        "scheme": "cic",
        "models": {"network": [models | training]},
        "truth": "truth.zarr",
        "predictions": {"network": "mine.zarr"},
        "provenance": {
            "notes": ["truth: odd units", "network: fields: odd units", "mine.zarr: a: b", "alone"]
        },
        "config digest": "abc123",
        "inputs": ["truth.zarr", HOSTILE],
        "cosmology": {"h": 0.6777, "Omega_m": 0.31},
        "source": "https://example.org/box",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1622505600")
        path = page.write_report(found, drawn, context, folder)
        assert page.write_report(found, drawn, context, folder / "again").read_bytes() == (
            path.read_bytes()
        )
    return found, drawn, context, path


def test_every_figure_is_a_png_of_phone_width_and_a_pdf(report):
    _, drawn, _, _ = report
    names = [figure.path.stem for figure in drawn]
    assert names == [
        "slices",
        "histograms",
        "distributions",
        "slice_momentum",
        "slice_momentum_curl",
        "slice_divergence",
        "joint",
        "spectra_subbox",
        "spectra_full",
        "residual_map",
        "residual_by_density",
        "whole_box",
        "expected_errors",
    ]
    for figure in drawn:
        data = figure.path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width = int.from_bytes(data[16:20], "big")
        assert 900 <= width <= 1100
        assert figure.title
        assert len(figure.caption) > 40
        assert len(figure.alt) > 40
        document = figure.path.with_suffix(".pdf").read_bytes()
        assert document.startswith(b"%PDF-")
        for dated in (b"CreationDate", b"ModDate", b"Matplotlib v"):
            assert dated not in document


def test_the_same_numbers_give_the_same_bytes(report, tmp_path):
    """In another process, whose strings have other hashes."""
    found, drawn, _, _ = report
    (tmp_path / "comparison").write_bytes(pickle.dumps(found))
    program = (
        "import pathlib, pickle, sys\n"
        "from cosmoflow.stages.evaluate.report.figures.counts import joint_distributions\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "found = pickle.loads((folder / 'comparison').read_bytes())\n"
        "joint_distributions(found, folder)\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
    first = next(figure.path for figure in drawn if figure.path.stem == "joint")
    for kind in (".png", ".pdf"):
        assert (tmp_path / f"joint{kind}").read_bytes() == first.with_suffix(kind).read_bytes()


def test_the_page_holds_all_it_needs(report):
    _, drawn, _, path = report
    reader = read(path)
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(
        tag for tag, _ in reader.tags
    )
    images = reader.all("img")
    assert len(images) == len(drawn)
    by_alt = {figure.alt: figure for figure in drawn}
    assert len(by_alt) == len(drawn)
    for attrs in images:
        figure = by_alt.pop(attrs["alt"])
        head, data = attrs["src"].split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == figure.path.read_bytes()
        assert attrs["alt"] == figure.alt
        assert (int(attrs["width"]), int(attrs["height"])) == size_of(figure.path)
    for _, attrs in reader.tags:
        assert not any(name.startswith("on") for name in attrs)
        for value in (attrs.get("src"), attrs.get("href"), attrs.get("style")):
            outside = value is not None and "//" in value.split("base64,")[0]
            assert not outside or value == paper_tables.LINK
    style = path.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style


def test_the_page_is_accessible(report):
    reader = read(report[3])
    assert reader.all("html")[0]["lang"] == "en"
    assert "width=device-width" in reader.all("meta")[1]["content"]
    assert len(reader.all("h1")) == 1
    assert {"header", "main", "footer", "section"} <= {tag for tag, _ in reader.tags}
    links = [attrs["href"] for attrs in reader.all("a")]
    places = {attrs["id"] for tag, attrs in reader.tags if tag in {"h2", "figure"}}
    assert {link[1:] for link in links if link.startswith("#")} == places
    beside = {link for link in links if link.startswith("figures/")} - {"figures/"}
    folder = report[3].parent
    assert beside == {
        path.relative_to(folder).as_posix() for path in (folder / "figures").iterdir()
    }
    assert links[0] == paper_tables.LINK
    levels = [int(tag[1]) for tag, _ in reader.tags if tag in {"h1", "h2", "h3", "h4"}]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert all(attrs["scope"] in {"col", "row"} for attrs in reader.all("th"))
    identifiers = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_says_what_was_found_and_published(report):
    found, _, _, path = report
    text = " ".join(read(path).text)
    verdict = page.verdict(found)
    assert verdict.grade == "good"
    assert verdict.headline in text
    assert verdict.sentence in text
    # What is there twice says which is which, and why.
    for fact in (
        "Sub-boxes: spectra beside the paper's Figure 6", "Sub-boxes: power, ratio",
        "These quantities are on this page twice.", "Speed |v|, in sub-boxes, beside the paper's",
        "Whole box: spectra to judge", "Whole box: power, ratio", "Speed |v|, whole box: T(k)",
        "1 June 2021, cosmoflow", "128 Mpc/h, z = 0.5", "32³ of 4 Mpc/h", "65,536, 2 a cell, CIC",
        "mine, residual-tiny, 198,923 parameters",
        "older, trained further on 2 boxes (and 1 for validation), 1,500 steps",
        "cells of 1 to 4 Mpc/h, z = 0.5",
    ):  # fmt: skip
        assert fact in text
    gone = head.list_facts(found, {"models": {"network": [{"name": "gone"}]}})
    assert (gone["Model"], gone["Particles"]) == ("gone (not at hand)", "number not known")
    assert "Training" not in gone
    # Each note once, with what it is about, before the settings, which have all of them.
    assert " ".join(text.split()).count("odd units (truth, network) a: b (mine.zarr) alone") == 1
    for name, figure in found.metrics["residual"].items():
        assert name in text
        assert f"{figure['rms']:.1f}" in text
    for ratios in paper_tables.TRANSFER.values():
        for values in ratios.values():
            assert all(formats.ratio(value) in text for value in values)
    for places in found.metrics["largest_residuals"].values():
        assert len(places) == 5
    shown = methods.best_network(found)
    for place in found.metrics["largest_residuals"][shown]:
        assert f"{place['rms']:.0f}" in text
    assert "cosmology.Omega_m" in text
    assert "abc123" in text
    assert "the true errors are larger than the model expects" in text
    errors = found.metrics["errors"]["network"]
    assert formats.percent(errors["coverage_68"]) in text
    assert all(formats.percent(share) in text for share in errors["quartiles"]["coverage_95"])
    worst = max(abs(68.27 - 100.0 * share) for share in errors["quartiles"]["coverage_68"])
    assert f"it is off by {worst:.1f} points" in text
    counted = found.metrics["by_particles"]
    few = sum(counted["methods"]["network"]["share"][:2])
    assert f"they hold {formats.percent(few)} of the squared residual of network" in text


def test_everything_from_outside_is_escaped(tmp_path, report):
    assert HOSTILE in "".join(read(report[3]).text)
    found = small_comparison((HOSTILE, "linear theory"), subbox=200.0)
    drawn = [
        figures.Figure(topic, HOSTILE, HOSTILE, HOSTILE, report[1][0].path)
        for topic in {figure.topic for figure in report[1]}
    ]
    reader = read(page.write_report(found, drawn, {HOSTILE: HOSTILE}, tmp_path))
    assert reader.all("script") == []
    assert HOSTILE in "".join(reader.text)


def test_the_verdict_compares_with_the_best_smoothed_baseline(report):
    found = report[0]
    assert methods.best_network(found) == "network"
    assert methods.best_baseline(found) == "linear theory 4 Mpc/h"
    rms = {name: figure["rms"] for name, figure in found.metrics["residual"].items()}
    factor = rms["linear theory 4 Mpc/h"] / rms["network"]
    sentence = page.verdict(found).sentence
    assert f"{rms['network']:.1f} km/s" in sentence
    assert sentence.endswith(f"{factor:.2f} times closer to the truth.")


@each(
    ("residual", "grade", "end"),
    [
        ({"network": 50.0, "wiener": 25.0}, "bad", "2.00 times farther from the truth."),
        ({"network": 0.0, "wiener": 25.0}, "good", "it is exact."),
        ({"wiener": 25.0}, "plain", "wiener is off by 25.0 km/s rms in three dimensions."),
        ({"network": 25.0}, "plain", "network is off by 25.0 km/s rms in three dimensions."),
        # Beside the shipped model: added by `evaluate`, or predicted by the user.
        (
            {"a": 37.6, "b": 39.0, SHIPPED: 37.4, "wiener": 50.0},
            "plain",
            "a leaves 37.6 km/s, 0.5 % more than residual-small (ships): no clear difference.",
        ),
        (
            {"a": 30.0, "theirs": 40.0, "wiener": 50.0},
            "good",
            "a leaves 30.0 km/s, 25.0 % less than theirs: it is better in this box.",
        ),
        (
            {"theirs": 30.0, "theirs, power restored": 36.0, "wiener": 60.0},
            "good",
            "2.00 times closer to the truth.",
        ),
        (
            {"a": 60.0, SHIPPED: 40.0, "wiener": 50.0},
            "bad",
            "50.0 % more than residual-small (ships): no gain.",
        ),
    ],
)
def test_the_verdict_of_other_outcomes(report, residual, grade, end):
    found, rows = report[0], (SHIPPED, "theirs", "theirs, power restored")
    metrics = found.metrics | {"residual": {n: {"rms": rms} for n, rms in residual.items()}}
    metrics["shipped"] = {"rows": [name for name in residual if name in rows]}
    velocity = dict.fromkeys(["truth", *residual], found.velocity["truth"])
    verdict = page.verdict(replace(found, metrics=metrics, velocity=velocity))
    assert verdict.grade == grade
    assert verdict.sentence.endswith(end)
    outcomes = {
        "no clear difference": "as good as",
        "better": "better than",
        "no gain": "worse than",
    }
    said = [words for outcome, words in outcomes.items() if outcome in end]
    assert all(f", {words} the shipped model" in verdict.headline for words in said)


def test_the_score_counts_what_is_closer_to_one_than_the_paper():
    k = [0.05, *paper_tables.TABLE_K, 1.4]
    published = paper_tables.TRANSFER
    better = {q: [9.0, *(t**0.5 for t in published[q][paper_tables.UNET]), None] for q in published}
    better["speed"][1:4] = [1.0, 1.0 / 1.2, None]
    quantities = {
        q: {"methods": {"network": {"sampled": {"k": k, "T": t}}}} for q, t in better.items()
    }
    assert paper_tables.score(quantities, "network") == (10, 11)


def test_the_best_of_several_networks_is_shown():
    found = small_comparison(("second", "linear theory", "network"), subbox=200.0)
    assert methods.best_network(found) == "network"
    assert methods.paper_pair(found) == ("network", "linear theory")
    assert methods.ranked(found)[:2] == ["network", "second"]


def test_a_report_of_linear_theory_alone_in_a_small_box_at_rest(tmp_path):
    """No network, no sub-boxes, nothing that moves: no figure may stumble over it."""
    density, still = np.ones((16,) * 3, np.float32), np.zeros((3, 16, 16, 16), np.float32)
    found = compare(density, still, {"linear theory": still}, 32.0, subbox=200.0)
    assert found.metrics["spectra"]["subbox"] is None
    assert methods.paper_pair(found) == ("linear theory",)
    drawn = figures.make_figures(found, tmp_path)
    assert {"spectra_subbox", "expected_errors"}.isdisjoint(one.path.stem for one in drawn)
    assert (found.metrics["errors"], found.metrics["by_particles"]) == ({}, None)
    text = " ".join(read(page.write_report(found, drawn, {}, tmp_path)).text)
    assert page.verdict(found).sentence in text
    assert "expects an error of some size" not in text
    # Its first bin of modes is at 0.24 h/Mpc.
    columns = page.sampled_columns(found.metrics["spectra"]["full"]["quantities"])
    assert list(columns.values()) == ["0.6", "1", "1.4"]
    assert "of the density, smoothed by a Gaussian of the radius in the name" in text
    assert "particles" not in text
    assert "in the whole box, beside the paper's Table" in text
    assert "The box is smaller than a sub-box of the paper" in text
    assert "page twice" not in text
    assert "sub-boxes" not in text


def test_a_method_keeps_its_colour_whatever_else_is_shown():
    few = methods.styles(["network", "linear theory"])
    many = methods.styles(["network", "second", "linear theory 2 Mpc/h", "linear theory"])
    assert few["network"] == many["network"]
    assert few["linear theory"] == many["linear theory"]
    assert len({style.colour for style in many.values()}) == 4


def test_figures_leave_matplotlib_as_it_was(report, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    residual_by_density(report[0], tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_metrics_are_written_as_strict_json(report, tmp_path):
    found, _, context, _ = report
    path = page.write_metrics(found, context, tmp_path / "new" / "metrics.json")

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content == {"context": context, "metrics": found.metrics}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 6000


def test_numbers_are_as_short_as_they_may_be():
    assert [formats.ratio(value) for value in (0.9, 9.9996, 44.746, 479.5, None, 1e-5)] == [
        "0.900",
        "10.00",
        "44.75",
        "480",
        formats.NONE,
        "1e-05",
    ]
    assert formats.percent(0.0784) == "7.8 %"
    for low, high, wanted in (
        (0.5, 400.0, ["1", "10", "100"]),
        (30.0, 600.0, ["50", "100", "200", "500"]),
        (2e-8, 0.5, ["10⁻⁷", "10⁻⁵", "10⁻³", "10⁻¹"]),
        (90.0, 4e4, ["10²", "10³", "10⁴"]),
        (5e5, 9e5, ["5×10⁵", "6×10⁵", "8×10⁵"]),
        (0.0, 1.0, []),
    ):
        assert scales.labels(scales.round_values(low, high)) == wanted
    assert scales.labels([-100.0, 0.0, 100.0]) == ["−100", "0", "100"]
    macros = page.templates().get_template("macros.html").module
    assert macros.with_error(1.0, None) == "1.000"
    assert macros.with_error(1.0, 0.25) == "1.000<small>± 0.250</small>"


def test_errors_are_drawn_and_written_only_where_there_are_several_boxes(report):
    found, _, _, path = report
    assert found.metrics["spectra"]["subbox"]["boxes"] == 8
    text = "".join(read(path).text)
    errors = found.metrics["spectra"]["subbox"]["quantities"]["speed"]["methods"]["network"]
    sampled = np.interp(0.6, found.metrics["spectra"]["subbox"]["quantities"]["speed"]["k"],
                        errors["T_error"])  # fmt: skip
    assert f"± {formats.ratio(float(sampled))}" in text


def test_half_of_the_cells_are_below_the_median():
    # Four cells between 0 and 1, two between 1 and 3.
    edges, cells = np.array([0.0, 1.0, 3.0]), np.array([4.0, 2.0])
    assert [counts._quantile(cells, edges, share) for share in (0.5, 5 / 6, 1.0)] == [
        0.75,
        2.0,
        3.0,
    ]
