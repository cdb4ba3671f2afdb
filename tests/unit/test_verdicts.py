"""Verdicts in words: of a tuning and its history, and of expected errors."""

import io

from rich.console import Console

from cosmoflow.cli.training import show_training
from cosmoflow.cli.verdicts import judge_training
from cosmoflow.model.names import OWN
from cosmoflow.stages.evaluate.report import page
from cosmoflow.stages.inspect import read_validation
from tests.cases import each


@each(
    ("own", "kept", "words"),
    [
        (30.0, {"step": 600}, "helped: it leaves 30.0 km/s, 16.7 % less than the model that it"),
        (35.8, {"step": 600}, "made no clear difference: it leaves 35.8 km/s, 0.6 % less than"),
        (
            36.4,
            {"step": 600},
            "(36.0 km/s): keep the model that it started from, or tune for",
        ),
        (
            36.4,
            {"step": 200},
            "(37.6 km/s at step 600): keep the model that it started from, or try",
        ),
        (36.0, {"step": 0}, "(36.0 km/s), whose weights are kept; more steps make it worse"),
    ],
)
def test_a_tuning_is_judged_in_words(own, kept, words):
    kept |= {} if kept["step"] == 600 else {"later": {"step": 600, "rms": 37.6}}
    compared = {"rms": {"this model": own, "its start": 36.0}, "start": "its start"}
    rates = {"optimiser": "muon", "learning_rate": 5e-4, "muon_rate": 0.01}
    said = judge_training(compared, kept, {"config": {"train": rates}})
    assert words in said
    lower = "(--set train.learning_rate=0.00013 --set train.muon_rate=0.0025)"
    assert ("more steps make it worse" in said) == (lower in said) == ("later" in kept)
    assert "best of these" not in said
    assert judge_training({"rms": {OWN: own}, "start": None}, kept, None) is None


@each(
    ("rms", "start", "words"),
    [
        (
            {OWN: 81.0, "its Wiener filter": 84.5, "residual-small (ships)": 90.0},
            None,
            "this model is the best of these: it leaves 81.0 km/s, 4.1 % less than its Wiener "
            "filter (84.5 km/s)",
        ),
        (
            {OWN: 81.0, "its Wiener filter": 84.5, "residual-small (ships)": 75.9},
            None,
            "residual-small (ships) is the best of these: it leaves 75.9 km/s, 6.3 % less than "
            "this model (81.0 km/s)",
        ),
        ({OWN: 81.0, "residual-small (ships)": 80.5}, None, "neither is clearly best"),
        (
            {OWN: 81.0, "its Wiener filter": 76.0, "residual-small (ships)": 75.9},
            None,
            "residual-small (ships) (75.9 km/s) and its Wiener filter (76.0 km/s) differ by 1 % or "
            "less: neither is clearly best; residual-small (ships) leaves 6.3 % less than this "
            "model (81.0 km/s)",
        ),
        (
            {OWN: 81.0, "its start": 81.5, "its Wiener filter": 80.9},
            "its start",
            "the model that it started from (81.5 km/s): tune for more steps; its Wiener filter "
            "(80.9 km/s), this model (81.0 km/s) and its start (81.5 km/s) differ by 1 % or less: "
            "none of them is clearly best",
        ),
        ({OWN: 81.0, "its start": 90.0, "its Wiener filter": 70.0}, "its start", "tuning helped: "),
        (
            {OWN: 81.0, "its start": 90.0, "its Wiener filter": 70.0},
            "its start",
            "; its Wiener filter is the best of these: it leaves 70.0",
        ),
        (
            {OWN: 122.0, "wiener (ships)": 122.0, "residual-small (ships)": 110.2},
            "wiener (ships)",
            "it to these boxes, train --model wiener without --from; residual-small (ships) is the "
            "best of these: it leaves 110.2",
        ),
    ],
)
def test_the_best_of_the_models_compared_is_named(rms, start, words):
    compared = {"rms": rms, "start": start, "learns": start != "wiener (ships)"}
    assert words in judge_training(compared, None, {"config": {"train": {"model": "wiener"}}})


@each(
    ("inner", "outer", "words"),
    [
        (0.69, 0.94, "right within 2 points"),
        (0.5, 0.95, "larger than"),
        (0.68, 0.99, "smaller than"),
        (0.75, 0.9, "another distribution"),
    ],
)
def test_coverage_is_judged_in_words(inner, outer, words):
    found = {"coverage_68": inner, "coverage_95": outer, "expected": [0.6827, 0.95]}
    assert words in page.judge_errors(found)


@each(
    ("residuals", "kept", "worse"),
    [
        ((36.0, 36.1, 36.4, 36.6), 0, True),
        ((36.0, 35.0, 34.0, 34.1), 2, True),
        ((36.0, 36.9, 36.8, 36.7), 0, True),
        ((36.0, 36.3, 36.2, 36.1), 0, False),
        ((36.0, 35.0, 34.0, 33.0), 3, False),
    ],
)
def test_a_history_says_what_was_kept_and_whether_steps_made_it_worse(
    tmp_path, residuals, kept, worse
):
    rows = [f"{100.0 * place},,{rms}" for place, rms in enumerate(residuals)]
    (tmp_path / "history.csv").write_text("\n".join(["step,loss,validation_rms", *rows]))
    found = read_validation(str(tmp_path), None)
    assert (found["step"], found["rms"]) == (100 * kept, residuals[kept])
    assert found.get("later") == ({"step": 300, "rms": residuals[3]} if worse else None)


def test_validation_blocks_are_unseen_unless_their_box_is_a_copy():
    for copied in (False, True):
        console = Console(file=io.StringIO(), width=200)
        facts = {"boxes": {"training": 1, "validation": 1}}
        compared = {"blocks": 1, "rms": {OWN: 1.0}, "skipped": {}, "learned_from": copied}
        show_training(console, facts, ["a.zarr", "b.zarr"], compared, None, [])
        said = console.file.getvalue()
        assert ("cells of b.zarr, which the model did not learn from" in said) is not copied
