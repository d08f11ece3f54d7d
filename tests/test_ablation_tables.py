"""Tables, pictures and page of an ablation, from invented results."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path
from typing import Any

import pytest
from ablation_fixture import PLAN, invented, write_plan

from medenv.errors import RunError
from medenv.notice import NOTICE
from medenv.runs.ablate import report, write_cells, write_report
from medenv.runs.ablation_plots import pareto
from medenv.runs.ablation_tables import ALL, Outcomes, comparison_rows, name_of, result_rows, unfinished
from medenv.runs.cells import Plan, read_plan

pytest.importorskip("torch")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return read_plan(write_plan(tmp_path))


@pytest.fixture
def found(plan: Plan) -> Outcomes:
    return Outcomes(plan, {name_of(c): invented(c) for c in plan.cells()})


def row_of(rows: list[dict[str, Any]], environment: str, mix: str) -> dict[str, Any]:
    (row,) = (r for r in rows if (r["environment"], r["mix"]) == (environment, mix))
    return row


def test_results__by_hand(found: Outcomes) -> None:
    row = row_of(result_rows(found), "one", "plain")
    # seeds earn .81, .85, .89; greedy earns 1 and random 0; in test all earn .01 less
    assert (row["seeds"], row["return"], row["accuracy"], row["questions"]) == ("3 of 3", 0.85, 0.765, 4.85)
    assert row["return_ci"] == "0.81 to 0.89" and row["normalised"] == 0.85
    assert (row["measured_test_cost"], row["test_measured_test_cost"]) == (0.5, 0.5), "a reward of that name is not the tests' cost:"
    assert row["test_cost"] == 5.85
    assert row["test_return"] == 0.84 and row["test_normalised"] == 0.85
    assert (row["reached"], row["steps_to_90"], row["steps_to_90_ci"]) == ("0 of 3", "never", "never to never")
    row = row_of(result_rows(found), "one", "with, gain")  # .91, .95, .99: .9 lies between 300 and 400, 200 and 300 steps and so on
    assert row["reached"] == "3 of 3" and float(row["steps_to_90"]) == pytest.approx(300 - 100 * (0.9025 - 0.9) / (0.95 * 0.15), abs=1)
    greedy = row_of(result_rows(found), "two", "greedy")
    assert greedy["normalised"] == 1.0 and greedy["seeds"] == "1 of 1" and greedy["return_ci"] is greedy["steps_to_90"] is None
    over_all = row_of(result_rows(found), ALL, "plain")
    assert over_all["normalised"] == 0.85 and "return" not in over_all


def test_comparisons__by_hand(found: Outcomes) -> None:
    rows = comparison_rows(found)
    assert [(r["environment"], r["mix"]) for r in rows] == [("one", "with, gain"), ("two", "with, gain"), (ALL, "with, gain")]
    assert all(r["improvement"] == 1.0 and r["faster"] == 1.0 and r["improvement_ci"] == "1.0 to 1.0" for r in rows)
    assert rows[0]["return_difference_ci"] == "0.1 to 0.1", "seed by seed the arms are .1 apart"
    assert rows[0]["measured_test_cost_difference"] == 0.0 and "measured_test_cost_difference" not in rows[2]
    assert rows[0]["return_difference"] == 0.1 and rows[0]["test_normalised_difference"] == 0.1 and "return_difference" not in rows[2]


def test_comparisons__are_of_the_seeds_that_both_have(found: Outcomes) -> None:
    some = {k: v for k, v in found.results.items() if k not in {("one", "plain", 0), ("one", "with, gain", 2)}}  # .85, .89 and .91, .95
    row = comparison_rows(Outcomes(found.plan, some))[0]
    assert (row["return_difference"], row["seeds"], row["return_difference_ci"]) == (0.1, "2 and 2", None)


def test_comparisons__of_several_baselines_each_with_those_after_it(tmp_path: Path) -> None:
    mixes = PLAN.replace('baseline = "plain"', 'baseline = ["plain", "with, gain"]') + 'third = "log_score"\n'
    plan = read_plan(write_plan(tmp_path, mixes))
    rows = comparison_rows(Outcomes(plan, {name_of(c): invented(c) for c in plan.cells()}))
    pairs = [("with, gain", "plain"), ("third", "plain"), ("third", "with, gain")]
    assert [(r["mix"], r["baseline"]) for r in rows] == 3 * pairs
    assert [r["return_difference"] for r in rows[:3]] == [0.1, 0.05, -0.05]


def test_steps_to_the_target__are_against_greedy_on_the_curves_own_cases(found: Outcomes) -> None:
    easy = {k: r | {"greedy": 0.5} if r["trainer"] == "ppo" else r for k, r in found.results.items()}
    row = row_of(result_rows(Outcomes(found.plan, easy)), "one", "plain")  # .81, .85, .89 at the end, .45 between 100 and 200 steps
    assert row["reached"] == "3 of 3" and float(row["steps_to_90"]) == pytest.approx(100 + 100 * (0.45 - 0.425) / (0.85 * 0.3), abs=1)
    assert Outcomes(found.plan, easy).greedy_on_curves("one") == [0.5] * 6 and found.greedy_on_curves("one") == [1.0]


def test_some_reach_the_target__the_median_counts_the_others_as_later(found: Outcomes) -> None:
    slow = dict(found.results)
    for seed in (0, 1):
        slow["one", "with, gain", seed] = slow["one", "plain", seed] | {"mix": "with, gain"}
    row = row_of(result_rows(Outcomes(found.plan, slow)), "one", "with, gain")
    assert row["reached"] == "1 of 3" and row["steps_to_90"] == "never" and re.fullmatch(r"\d+ to never", row["steps_to_90_ci"])


def test_missing_cells__are_named_and_never_numbers(found: Outcomes) -> None:
    some = dict(found.results)
    for name in (("one", "plain", 1), ("two", "greedy", 0), *(("two", "with, gain", s) for s in range(3))):
        del some[name]
    left = Outcomes(found.plan, some, {("one", "plain", 1): "ValueError: no"})
    assert left.missing == [
        ("two", "greedy", 0),
        ("two", "with, gain", 0),
        ("one", "plain", 1),
        ("two", "with, gain", 1),
        ("two", "with, gain", 2),
    ]
    text = "\n".join(unfinished(left))
    assert "Missing cells: 5 of 16" in text and "one, plain, seed 1: ValueError: no" in text and "two, greedy, seed 0: not run" in text
    row = row_of(result_rows(left), "one", "plain")
    assert row["seeds"] == "2 of 3" and row["return"] == 0.85 and row["return_ci"] == "0.81 to 0.89"
    row = row_of(result_rows(left), "two", "plain")
    assert row["return"] == 0.85 and row["normalised"] is row["steps_to_90"] is row["reached"] is None  # no greedy, no scale
    empty = row_of(result_rows(left), "two", "with, gain")
    assert empty["seeds"] == "0 of 3" and {
        empty[k] for k in ("return", "accuracy", "questions", "normalised", "test_return", "seconds")
    } == {None}
    assert row_of(comparison_rows(left), ALL, "with, gain")["normalised_difference"] is None


def test_report__is_one_page_that_asks_no_other_place(found: Outcomes, tmp_path: Path) -> None:
    found.causes = {("one", "plain", 0): "<b>"}
    results = dict(found.results)
    del results["one", "plain", 0]
    write_report(Outcomes(found.plan, results, found.causes), tmp_path / "out", "medenv ablate plan.toml")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert NOTICE in page and "Unfinished." in page and "one, plain, seed 0: &lt;b&gt;" in page and "<b>" not in page
    assert not re.search(r"https?:|src=\"(?!data:)|<script|<link|url\(", page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    files = [tmp_path / "out" / f"{name}.png" for name in ("curves", "profile", "front")]
    assert [base64.b64decode(i) for i in images] == [f.read_bytes() for f in files]
    assert "medenv ablate plan.toml" in page and "with, gain" in page
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        assert row_of(list(csv.DictReader(file)), "one", "plain")["seeds"] == "2 of 3"


def test_report__again_from_the_committed_results_is_the_same(found: Outcomes, plan: Plan, tmp_path: Path, monkeypatch: Any) -> None:
    write_report(found, tmp_path, f"medenv ablate {(tmp_path / 'plan.toml').as_posix()}")
    write_cells(found, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "results.csv").unlink()
    report(tmp_path / "plan.toml", tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before and len(before) == 10
    monkeypatch.setattr("medenv.runs.ablation_plots.pictures", lambda found: {})
    monkeypatch.setattr("medenv.__version__", "99.0")  # of another version: told, not hidden
    again = report(tmp_path / "plan.toml", tmp_path)
    assert not again.missing and again.other_keys == 16 and "16 results are of another version" in (tmp_path / "results.md").read_text()
    write_plan(tmp_path, PLAN.replace("0.1*information_gain", "0.2*information_gain"))  # another reward: not these results
    assert len(report(tmp_path / "plan.toml", tmp_path).missing) == 6


def test_report__of_another_plan_leaves_the_results_alone(found: Outcomes, tmp_path: Path) -> None:
    write_cells(found, tmp_path)
    before = (tmp_path / "cells.jsonl").read_bytes()
    write_plan(tmp_path, PLAN.replace("[0, 1, 2]", "[1]"))
    assert not report(tmp_path / "plan.toml", tmp_path).missing and (tmp_path / "cells.jsonl").read_bytes() == before
    few = {k: v for k, v in found.results.items() if k[2] == 1}
    write_cells(Outcomes(found.plan, few), tmp_path)  # as an ablation of that plan does: the others go aside
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 4 and len(list((tmp_path / "cells").iterdir())) == 12
    assert not report(write_plan(tmp_path), tmp_path).missing


def test_report__without_the_base_knows_results_of_other_settings(found: Outcomes, tmp_path: Path, monkeypatch: Any) -> None:
    write_cells(found, tmp_path)

    def gone(knowledge: str) -> str:
        raise RunError(f"{knowledge} can't be read")

    monkeypatch.setattr("medenv.runs.cells._fingerprint", gone)
    assert report(write_plan(tmp_path), tmp_path).other_keys == 0
    assert report(write_plan(tmp_path, PLAN.replace("settings.steps = 64", "settings.steps = 65")), tmp_path).other_keys == 12


def test_pareto__keeps_what_no_other_beats() -> None:
    assert pareto([(1, 0.5), (1, 0.6), (2, 0.6), (3, 0.9), (0.5, 0.1), (3, 0.9)]) == [1, 3, 4, 5]
