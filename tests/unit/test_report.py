"""The report page as a reader's browser would take it apart, and the files beside it."""

import base64
import itertools
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from cosmoflow.numerics import fourier
from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.report import figures, methods, page, paper_tables

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


def small_comparison(names=("network", "linear theory", "linear theory 4 Mpc/h"), subbox=64.0):
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
    return compare(density, truth, {name: fields[name] for name in names}, box, subbox=subbox)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    found = small_comparison()
    drawn = figures.make_figures(found, folder / "figures")
    context = {
        "config digest": "abc123",
        "inputs": ["truth.zarr", HOSTILE],
        "cosmology": {"h": 0.6777, "Omega_m": 0.31},
        "source": "https://example.org/box",
    }
    return found, drawn, context, page.write_report(found, drawn, context, folder)


def test_every_figure_is_a_png_of_phone_width(report):
    _, drawn, _, _ = report
    names = [figure.path.stem for figure in drawn]
    assert names == [
        "slices",
        "histograms",
        "spectra_subbox",
        "spectra_full",
        "whole_box",
        "residual_by_density",
    ]
    for figure in drawn:
        data = figure.path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width = int.from_bytes(data[16:20], "big")
        assert 900 <= width <= 1100
        assert figure.title
        assert len(figure.caption) > 40


def test_the_page_holds_all_it_needs(report):
    _, drawn, _, path = report
    reader = read(path)
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(
        tag for tag, _ in reader.tags
    )
    images = reader.all("img")
    assert len(images) == len(drawn)
    for attrs, figure in zip(images, drawn, strict=True):
        head, data = attrs["src"].split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == figure.path.read_bytes()
        assert figure.title in attrs["alt"]
    for _, attrs in reader.tags:
        assert not any(name.startswith("on") for name in attrs)
        for value in (attrs.get("src"), attrs.get("href"), attrs.get("style")):
            assert value is None or "//" not in value.split("base64,")[0]
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
    levels = [int(tag[1]) for tag, _ in reader.tags if tag in {"h1", "h2", "h3", "h4"}]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert all(attrs["scope"] in {"col", "row"} for attrs in reader.all("th"))
    identifiers = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_says_what_was_found_and_published(report):
    found, _, _, path = report
    text = " ".join(read(path).text)
    assert page.verdict(found) in text
    for name, figure in found.metrics["residual"].items():
        assert name in text
        assert f"{figure['rms']:.1f}" in text
    for ratios in paper_tables.TRANSFER.values():
        for values in ratios.values():
            assert all(f"{value:.3f}" in text for value in values)
    assert "cosmology.Omega_m" in text
    assert "abc123" in text


def test_everything_from_outside_is_escaped(tmp_path, report):
    assert HOSTILE in "".join(read(report[3]).text)
    found = small_comparison((HOSTILE, "linear theory"), subbox=200.0)
    title = figures.Figure(HOSTILE, HOSTILE, report[1][0].path)
    reader = read(page.write_report(found, [title], {HOSTILE: HOSTILE}, tmp_path))
    assert reader.all("script") == []
    assert HOSTILE in "".join(reader.text)


def test_the_verdict_compares_with_the_best_smoothed_baseline(report):
    found = report[0]
    assert methods.best_network(found) == "network"
    assert methods.best_baseline(found) == "linear theory 4 Mpc/h"
    rms = {name: figure["rms"] for name, figure in found.metrics["residual"].items()}
    factor = rms["linear theory 4 Mpc/h"] / rms["network"]
    assert f"{rms['network']:.1f} km/s" in page.verdict(found)
    assert page.verdict(found).endswith(f"{factor:.2f} times closer to the truth.")


def test_reports_with_other_sets_of_methods(tmp_path):
    for names in (("linear theory",), ("second", "network", "linear theory")):
        found = small_comparison(names, subbox=200.0)
        assert found.metrics["spectra"]["subbox"] is None
        drawn = figures.make_figures(found, tmp_path)
        assert "spectra_subbox" not in [figure.path.stem for figure in drawn]
        text = " ".join(read(page.write_report(found, drawn, {}, tmp_path)).text)
        assert page.verdict(found) in text


def test_a_method_keeps_its_colour_whatever_else_is_shown():
    few = methods.styles(["network", "linear theory"])
    many = methods.styles(["network", "second", "linear theory 2 Mpc/h", "linear theory"])
    assert few["network"] == many["network"]
    assert few["linear theory"] == many["linear theory"]
    assert len({style.colour for style in many.values()}) == 4


def test_figures_leave_matplotlib_as_it_was(report, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.residual_by_density(report[0], tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_metrics_are_written_as_strict_json(report, tmp_path):
    found, _, context, _ = report
    path = page.write_metrics(found, context, tmp_path / "new" / "metrics.json")

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content == {"context": context, "metrics": found.metrics}
