"""How a report judges and ranks methods, and how it draws and writes their numbers."""

from dataclasses import replace

import numpy as np
import pytest

from cosmoflow.model.names import SHIPPED
from cosmoflow.stages.evaluate.report import formats, methods, page, paper_tables
from cosmoflow.stages.evaluate.report.figures import counts, scales
from cosmoflow.stages.evaluate.report.figures.box import residual_by_density
from tests.cases import each
from tests.unit.small_comparisons import known_errors, small_comparison


@pytest.fixture(scope="module")
def report():
    """Return what of a report is looked at here: its comparison, without figures and page."""
    return (small_comparison(**known_errors()),)


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


def test_half_of_the_cells_are_below_the_median():
    # Four cells between 0 and 1, two between 1 and 3.
    edges, cells = np.array([0.0, 1.0, 3.0]), np.array([4.0, 2.0])
    assert [counts._quantile(cells, edges, share) for share in (0.5, 5 / 6, 1.0)] == [
        0.75,
        2.0,
        3.0,
    ]


@each(
    ("name", "baseline"),
    [
        ("linear theory", True),
        ("linear theory 4 Mpc/h", True),
        ("linear:4", True),
        ("wiener", True),
        ("wiener, mine", True),
        ("wiener-log", True),
        ("wiener-linear", True),
        ("wiener-plus", False),
        ("linear_large", False),
        ("residual-small", False),
    ],
)
def test_a_network_may_be_named_after_a_baseline(name, baseline):
    assert methods.is_baseline(name) is baseline
