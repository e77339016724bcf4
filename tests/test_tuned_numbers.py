"""The table of numbers that somebody chose, and the command that measures what they do."""

import csv
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from known_runs import standard_normal_run

import pymc_ensemble.samplers.moves

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import count_numbers  # noqa: E402
import tuned_numbers  # noqa: E402

EQUATIONS = re.compile(r"\beqs?\. (\([A-Z]\d+\)(?: and \([A-Z]\d+\))*)")


def numbers():
    """Values by the names that the table has for them."""
    found = {}
    for room in tuned_numbers.ROOMS:
        for number in count_numbers.chosen_numbers(ROOT / "pymc_ensemble" / room):
            if number.kind != count_numbers.GUARD:
                found.setdefault(tuned_numbers.key_of(number), []).append(number.text)
    return {key: ", ".join(values) for key, values in found.items()}


def table():
    """Rows of the table by the names of the numbers."""
    with tuned_numbers.TABLE.open(encoding="utf-8", newline="") as file:
        return {row["number"].strip("`"): row for row in csv.DictReader(file)}


def test_every_number_has_a_row_with_its_value_and_nothing_else_has():
    assert {key: row["value"] for key, row in table().items()} == numbers()


def test_the_specification_tells_what_the_command_runs():
    text = (ROOT / "docs" / "mathematics.md").read_text("utf-8")
    words = {6: "six"}[tuned_numbers.QUICK_RUNS]
    assert f"{len(tuned_numbers.SAMPLED)} problems with known posteriors" in " ".join(text.split())
    assert f"{words} finished runs" in text


def test_every_row_says_what_it_decides_and_why():
    assert [key for key, row in table().items() if not (row["decides"] and row["why"])] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", ("2", "6")),
        ("1", ("1", "2")),
        ("-4", ("-2", "-8")),
        ("0.2", ("0.1", "0.4")),
        ("0.9", ("0.45", "0.95")),
        ("1 / 3", ("0.5 * (1 / 3)", "2 * (1 / 3)")),
    ],
)
def test_half_and_twice(text, expected):
    assert tuned_numbers.variants(text) == expected


def test_a_number_is_changed_in_its_module_and_nowhere_else():
    (number,) = [
        number
        for number in count_numbers.chosen_numbers(ROOT / "pymc_ensemble" / "samplers")
        if number.name == "INDEPENDENT_SHARE"
    ]
    module = tuned_numbers.module_of(number.file)
    before = importlib.import_module(module)
    changed = tuned_numbers.Changed(module, number.line, number.column, number.text, "0.25")
    with tuned_numbers.package_with(changed):
        inside = importlib.import_module(module)
    after = importlib.import_module(module)
    shares = [part.INDEPENDENT_SHARE for part in (before, inside, after)]
    assert shares == [float(number.text), 0.25, float(number.text)]
    names = [{k for k in vars(part) if k.isupper()} for part in (before, inside)]
    assert names[0] == names[1]
    assert after is before
    assert pymc_ensemble.samplers.moves is before


def test_effects_are_told_relative_to_the_numbers_as_they_are():
    reference = {
        ("linear", seed): {"error": error, "evaluations": 100, "converged": True, "digest": "a"}
        for seed, error in enumerate([0.1, 0.1, 0.12])
    }
    line = {"case": "linear", "seed": 0, "evaluations": 200, "converged": False, "digest": "b"}
    told = tuned_numbers.effect([line | {"error": 0.2}], reference)
    assert told.startswith("error ×2.00 ± 0.")
    assert "evaluations ×2.00" in told
    assert "1 of 1 do not converge (linear)" in told
    same = [line | {"error": 0.1, "digest": "a"}]
    assert tuned_numbers.effect(same, reference) == "the same, bit for bit"
    assert tuned_numbers.effect([line | {"case": ""}], reference) == "not reached"
    assert tuned_numbers.effect([], reference) == "not measured"


def test_a_finished_run_is_diagnosed_with_a_number_changed(monkeypatch):
    shifted = standard_normal_run(np.random.default_rng(1), shift=1.0)
    monkeypatch.setattr(tuned_numbers, "finished_run", lambda name, seed: (shifted, True))
    (number,) = [
        number
        for number in count_numbers.chosen_numbers(ROOT / "pymc_ensemble" / "diagnosis")
        if number.name == "WRONG_MEAN"
    ]
    module = tuned_numbers.module_of(number.file)
    changed = tuned_numbers.Changed(module, number.line, number.column, number.text, "1e3")
    measured = []
    for one in (None, changed):
        with tuned_numbers.package_with(one):
            measured.append(tuned_numbers.Diagnosed("shifted").measure(0))
    assert [one["verdict"] for one in measured] == ["wrong", "trustworthy"]
    assert [one["right"] for one in measured] == [True, False]
    assert measured[0]["estimates"] == pytest.approx([1.0, 1.0, 1.0, 1.0], abs=0.1)


def test_the_command_leaves_rows_that_it_did_not_measure(tmp_path, monkeypatch):
    before = list(table().values())
    monkeypatch.setattr(tuned_numbers, "TABLE", tmp_path / "table.csv")
    tuned_numbers.write_table(tmp_path / "nothing.jsonl")
    assert list(table().values()) == before


def test_the_columns_tell_conventions_and_guards_from_numbers_that_are_tuned():
    halves = ["convention: the unit.", "guard: never reached.", "error ×1.20 ± 0.10"]
    told = [count_numbers.class_of({"half": half}) for half in halves]
    assert told == ["convention", "guard", "tuned"]


def test_comments_cite_the_equations_of_the_specification():
    """Those that exist, and all of them but laws that nothing computes."""
    page = (ROOT / "docs" / "mathematics.md").read_text("utf-8")
    known = set(re.findall(r"\\tag\{(\w+)\}", page))
    [laws] = re.findall(r"Nothing computes ([^:]+):", page)
    cited = {
        (file.name, name)
        for file in (ROOT / "pymc_ensemble").rglob("*.py")
        for some in EQUATIONS.findall(file.read_text("utf-8"))
        for name in re.findall(r"[A-Z]\d+", some)
    }
    assert {(file, name) for file, name in cited if name not in known} == set()
    assert known - {name for _, name in cited} == set(re.findall(r"[A-Z]\d+", laws))
