"""The report page as a reader's browser would take it apart, and the files beside it."""

import base64
import itertools
import json
import os
import pickle
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.evaluate.report import figures, formats, head, methods, page, paper_tables
from tests.unit.small_comparisons import HOSTILE, known_errors, small_comparison

VOID = {"meta", "img", "br", "hr", "link", "input"}


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


def test_metrics_are_written_as_strict_json(report, tmp_path):
    found, _, context, _ = report
    path = page.write_metrics(found, context, tmp_path / "new" / "metrics.json")

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content == {"context": context, "metrics": found.metrics}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 6000


def test_errors_are_drawn_and_written_only_where_there_are_several_boxes(report):
    found, _, _, path = report
    assert found.metrics["spectra"]["subbox"]["boxes"] == 8
    text = "".join(read(path).text)
    errors = found.metrics["spectra"]["subbox"]["quantities"]["speed"]["methods"]["network"]
    sampled = np.interp(0.6, found.metrics["spectra"]["subbox"]["quantities"]["speed"]["k"],
                        errors["T_error"])  # fmt: skip
    assert f"± {formats.ratio(float(sampled))}" in text
