"""What is said of likelihoods that are Gaussians of summaries, from facts about them."""

import json
from dataclasses import replace

import pytest

from pymc_ensemble.diagnosis.estimated import (
    described,
    judge_likelihoods,
    notes_on_likelihoods,
    results_of_tests,
)
from pymc_ensemble.diagnosis.facts import Facts, together
from pymc_ensemble.samplers.ensemble import Origin

GOOD = {
    "summaries": 8,
    "covariance": "estimated",
    "replicates": 200,
    "failed": 0,
    "correction": 1.05,
    "shrinkage": 0.4,
    "raised": [],
    "gaussian": 0.3,
    "odd": [],
    "skewness": 0.1,
    "skewed": 0,
    "checked": 200,
    "varying": [0.1, 0.02],
    "varying_by_chance": [0.3, 0.1],
    "misfit": 8.0,
}


def facts(**changed):
    known = {key: value for key, value in (GOOD | changed).items() if value is not None}
    origin = Origin("fit")
    return Facts("1", "EnsembleKalmanSampler", {}, origin, 50, None, (), likelihoods={"y": known})


def judged(**changed):
    found = facts(**changed)
    notes = " ".join(notes_on_likelihoods(found))
    return [(f.severity, f.reason, f.remedy) for f in judge_likelihoods(found)], notes


def test_a_good_likelihood_is_called_what_it_is_and_no_more():
    findings, notes = judged()
    assert findings == []
    assert "given a Gaussian of 8 summaries" in notes
    assert "what the summaries leave out of the data is not known" in notes
    assert "0.30 posterior standard deviations, and may have moved them by less" in notes


@pytest.mark.parametrize(
    ("changed", "severity", "word"),
    [
        ({"covariance": "prior", "pilot": 100}, "doubtful", "first guess"),
        ({"checked": None, "varying": None}, "doubtful", "nothing has tested"),
        ({"varying": [0.6, 0.0]}, "wrong", "means move by 0.60"),
        ({"varying": [0.1, -0.4]}, "wrong", "by a factor of 0.67"),
        ({"varying": [4.0, 3.0], "varying_by_chance": [4.1, 1.0]}, "doubtful", "do not tell"),
        ({"gaussian": 0.002}, "doubtful", "not Gaussian (p = 0.002)"),
        ({"gaussian": 0.002, "odd": [1], "without": [0.5, 0.0]}, "doubtful", "without it means"),
        ({"gaussian": 0.002, "odd": [1, 2], "without": [0.1, 0.4]}, "doubtful", "without them"),
        ({"raised": [3], "without_raised": [0.1, 0.4]}, "doubtful", "rests upon it"),
        ({"raised": list(range(8))}, "doubtful", "vary far less in the replicates"),
        ({"misfit": 60.0}, "doubtful", "does not make data like those"),
        ({"failed": 40}, "doubtful", "20% of the replicates"),
    ],
)
def test_what_speaks_against_it(changed, severity, word):
    [(found, reason, remedy)], _ = judged(**changed)
    assert (found, word in reason) == (severity, True), reason
    assert "`y`" in reason
    assert remedy.endswith(".")


def test_remedy_of_a_covariance_that_changes_all_the_same_is_another_one():
    [(_, _, once)], _ = judged(varying=[0.9, 0.0])
    [(_, _, twice)], _ = judged(varying=[0.9, 0.0], linear=True)
    assert 'covariance="linear"' in once
    assert 'covariance="linear"' not in twice


def test_what_is_found_by_chance_is_no_finding():
    assert judged(varying=[0.35, 0.1], varying_by_chance=[0.34, 0.1])[0] == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"gaussian": 0.002, "odd": [1, 3], "without": [0.05, 0.1]}, "summaries 1, 3; without"),
        ({"raised": [2], "without_raised": [0.05, 0.1]}, "summary 2 in `y` hardly varies"),
        ({"failed": 3}, "3 of the replicates for `y` failed"),
        ({"covariance": "given", "checked": None, "varying": None}, "was given and not tested"),
    ],
)
def test_what_does_not_matter_is_told(changed, word):
    findings, notes = judged(**changed)
    assert findings == []
    assert word in notes


def test_no_change_is_promised_to_be_seen_of_variances_that_are_all_raised():
    assert "would have been seen" not in judged(raised=list(range(8)))[1]


def test_reports_have_it_in_sentences():
    assert "covariance from 200 replicates at one point (enlarged by 5%" in described(GOOD)
    assert "linear in the parameters" in described(GOOD | {"linear": True})
    assert "p = 0.3; a covariance that changes as in 200 more replicates" in results_of_tests(GOOD)
    assert results_of_tests({"covariance": "given"}) == ""


def test_facts_survive_as_text_and_are_left_out_where_there_are_none():
    found = facts()
    assert Facts.of_text(found.text()).likelihoods == {"y": GOOD}
    assert "likelihoods" not in json.loads(replace(found, likelihoods={}).text())


def test_of_several_runs_the_least_known_likelihood_counts():
    good, guessed, off = facts(), facts(covariance="prior"), facts(varying=[-0.9, 0.0])
    assert together([good, off]).likelihoods["y"]["varying"] == [-0.9, 0.0]
    assert together([off, guessed, good]).likelihoods["y"]["covariance"] == "prior"
