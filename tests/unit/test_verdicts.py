"""Verdicts in words: of a tuning, and of expected errors."""

from cosmoflow.cli.verdicts import judge_tuning
from cosmoflow.stages.evaluate.report import page
from tests.cases import each


@each(
    ("own", "kept", "words"),
    [
        (30.0, {"step": 600}, "helped: it leaves 30.0 km/s, 16.7 % less than the model that it"),
        (35.8, {"step": 600}, "made no clear difference: it leaves 35.8 km/s, 0.6 % less than"),
        (36.4, {"step": 600}, "(36.0 km/s): keep that model, or tune for more steps"),
        (36.4, {"step": 200}, "(37.6 km/s at step 600): keep that model, or try more boxes"),
        (36.0, {"step": 0}, "(36.0 km/s), whose weights are kept; more steps make it worse"),
    ],
)
def test_a_tuning_is_judged_in_words(own, kept, words):
    kept |= {} if kept["step"] == 600 else {"later": {"step": 600, "rms": 37.6}}
    compared = {"rms": {"this model": own, "its start": 36.0}, "start": "its start"}
    rates = {"optimiser": "muon", "learning_rate": 5e-4, "muon_rate": 0.01}
    said = judge_tuning(compared, kept, {"config": {"train": rates}})
    assert words in said
    lower = "(--set train.learning_rate=0.00013 --set train.muon_rate=0.0025)"
    assert ("more steps make it worse" in said) == (lower in said) == ("later" in kept)
    assert judge_tuning(compared | {"start": None}, kept, None) is None


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
