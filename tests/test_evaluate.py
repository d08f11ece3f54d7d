"""Evaluation: fixed cases, failures that are no scores, intervals, resuming after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ddxplus_fixture import draw_rows, row, write_patients, write_release

from medenv.agents.baselines import Checklist
from medenv.agents.doctor import BUILT_IN, Observation, make_doctor
from medenv.agents.greedy import Greedy
from medenv.cases.case import Case
from medenv.cases.loaded import LoadedCases
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RewardError, RunError, UnknownName
from medenv.runs.evaluate import KEYS, assign, evaluate
from medenv.runs.records import TRAJECTORIES, read_trajectories

SMALL = {"knowledge": "synthetic:12x30", "max_turns": 8}
ID = "MedConsult-v0"
RANKED = ("top3", "top5", "brier", "ece", "log_score")


def cases(number: int, split: str = "") -> list[Case]:
    """Loaded patients: sampled ones written down."""
    setup = Setup(**SMALL, split="all")
    handles = setup.source.next(np.full(number, 5, np.uint64), np.arange(number, dtype=np.uint64))
    made = [setup.source.case(int(h)) for h in handles]
    return [Case(c.age, c.sex, c.setting, c.truth, c.values, c.opening, split) for c in made]


def greedy() -> Any:
    return make_doctor("greedy", Setup(**SMALL).tables)


@pytest.mark.parametrize("agent", ["random", "prevalence", "checklist", "greedy", "oracle"])
def test_evaluate__reports_every_key_with_an_ordered_interval(agent: str) -> None:
    summary = evaluate(ID, agent, 80, 0, env_arguments=SMALL)
    assert summary["episodes"] == 80 and summary["failures"] == 0 and summary["arguments"]["split"] == "test"
    for key in KEYS:
        assert (summary[key] is None) == (summary[f"{key}_ci"] is None)
        if summary[key] is not None:
            low, high = summary[f"{key}_ci"]
            assert low <= summary[key] <= high
    null = {k for k in KEYS if summary[k] is None}
    assert null == (set(RANKED) if agent == "random" else {"mean_questions", "mean_cost", "mean_return"} if agent == "oracle" else set())
    json.dumps(summary, allow_nan=False)


def test_evaluate__a_seed_decides_everything() -> None:
    first, second, other = (evaluate(ID, "random", 50, seed, env_arguments=SMALL) for seed in (1, 1, 2))
    assert first == second and first["mean_return"] != other["mean_return"]


@pytest.mark.parametrize("agent", ["random", "checklist", "greedy"])
def test_evaluate__does_not_depend_on_the_batch(agent: str, tmp_path: Path) -> None:
    for batch in (1, 7, 64):
        evaluate(ID, agent, 40, 0, tmp_path / str(batch), SMALL, batch=batch)
    one, *others = ((tmp_path / str(batch) / TRAJECTORIES).read_text() for batch in (1, 7, 64))
    assert others == [one, one]


def test_evaluate__every_doctor_meets_the_same_patients(tmp_path: Path) -> None:
    for agent in ("random", "greedy", "oracle"):
        evaluate(ID, agent, 30, 4, tmp_path / agent, SMALL)
    runs = [list(read_trajectories(tmp_path / agent)) for agent in ("random", "greedy", "oracle")]
    met = [[(r["case_id"], r["demographics"], r["opening"]) for r in run] for run in runs]
    assert met[0] == met[1] == met[2]


def test_evaluate__loaded_cases_come_without_replacement(tmp_path: Path) -> None:
    mine = cases(40, "test") + cases(50, "train")[40:]
    all_ = evaluate(ID, "greedy", 1000, 0, tmp_path / "all", SMALL | {"cases": mine})
    assert all_["episodes"] == 40
    assert sorted(r["case_id"] for r in read_trajectories(tmp_path / "all")) == sorted(c.id for c in mine[:40])
    evaluate(ID, "greedy", 25, 0, tmp_path / "some", SMALL | {"cases": mine})
    some = [r["case_id"] for r in read_trajectories(tmp_path / "some")]
    assert len(set(some)) == 25 and some == [r["case_id"] for r in read_trajectories(tmp_path / "all")][:25]


def test_assign__order_is_seeded() -> None:
    source = LoadedCases(Setup(**SMALL).tables, cases(30), "all")
    first = assign(source, 0, 30)
    assert (first == assign(source, 0, 30)).all() and (first != assign(source, 1, 30)).any()
    assert sorted(first.tolist()) == list(range(30)) and first.tolist() != list(range(30))


class Sulking:
    """Greedy, but raises for women; `how` says in which way it fails."""

    name = "sulking"

    def __init__(self, how: str) -> None:
        self.inner, self.how = greedy(), how

    def act(self, observation: Observation) -> tuple[Any, Any]:
        action, belief = self.inner.act(observation)
        bad = np.asarray(observation["demographics"])[:, 1] == 0
        if self.how == "raise" and bad.any():
            raise KeyError("no women")
        if self.how == "nan action":
            return np.where(bad, np.nan, action), belief
        if self.how == "nan differential":
            belief = belief.copy()
            belief[bad, 0] = np.nan
        if self.how == "negative differential":
            belief = belief.copy()
            belief[bad, 0] -= 2.0
        return action, belief


@pytest.mark.parametrize("how", ["raise", "nan action", "nan differential", "negative differential"])
def test_evaluate__a_failure_is_never_a_score(how: str, tmp_path: Path) -> None:
    summary = evaluate(ID, Sulking(how), 60, 0, tmp_path / "a", SMALL, batch=16)
    evaluate(ID, greedy(), 60, 0, tmp_path / "b", SMALL)
    failed, fine = list(read_trajectories(tmp_path / "a")), list(read_trajectories(tmp_path / "b"))
    women = [r["demographics"]["sex"] == "female" for r in fine]
    assert [r["failure"] is not None for r in failed] == women and summary["failures"] == sum(women) and summary["episodes"] == 60
    assert all(r["end"] is None for r in failed if r["failure"])
    men = [(a, b) for a, b in zip(failed, fine, strict=True) if not a["failure"]]
    assert all(a["turns"] == b["turns"] and a["end"] == b["end"] for a, b in men)
    assert summary["accuracy"] == pytest.approx(np.mean([b["end"]["correct"] for _, b in men]))


class Hopeless:
    name = "hopeless"

    def act(self, observation: Observation) -> tuple[Any, Any]:
        raise RuntimeError("no")


def test_evaluate__all_failed_gives_null_not_zero() -> None:
    summary = evaluate(ID, Hopeless(), 5, 0, env_arguments=SMALL)
    assert summary["failures"] == 5 and all(summary[k] is None for k in KEYS)


class Stubborn:
    """Repeats one question for ever: answered once, then invalid."""

    name = "stubborn"

    def act(self, observation: Observation) -> tuple[Any, Any]:
        return np.zeros(len(observation["evidence"]), np.int64), None


def test_evaluate__undiagnosed_and_invalid_are_counted(tmp_path: Path) -> None:
    summary = evaluate(ID, Stubborn(), 20, 0, tmp_path, SMALL)
    assert summary["undiagnosed_rate"] == 1.0 and summary["accuracy"] == 0.0 and summary["brier"] is None
    assert summary["mean_questions"] + summary["invalid_actions"] == 8.0
    rows = list(csv.DictReader((tmp_path / "wrong.csv").read_text().splitlines()))
    assert len(rows) == 20 and rows[0]["diagnosis"] == "(undiagnosed)" and rows[0]["probability_of_truth"] == ""


def test_evaluate__wrong_cases_are_listed(tmp_path: Path) -> None:
    summary = evaluate(ID, "greedy", 80, 0, tmp_path, SMALL)
    wrong = [r for r in read_trajectories(tmp_path) if not r["end"]["correct"]]
    rows = list(csv.DictReader((tmp_path / "wrong.csv").read_text().splitlines()))
    assert [r["case_id"] for r in rows] == [r["case_id"] for r in wrong] and len(rows) == round(80 * (1 - summary["accuracy"]))
    assert all(0 <= float(r["probability_of_truth"]) <= float(r["probability_of_diagnosis"]) <= 1 for r in rows)


def test_evaluate__resumes_and_grows(tmp_path: Path) -> None:
    whole = evaluate(ID, "greedy", 60, 0, tmp_path / "whole", SMALL, batch=10)
    evaluate(ID, "greedy", 25, 0, tmp_path / "part", SMALL, batch=10)
    file = tmp_path / "part" / TRAJECTORIES
    file.write_bytes(file.read_bytes()[:-200])  # torn
    calls: list[int] = []

    class Counting:
        name = "greedy"
        fingerprint = greedy().fingerprint

        def act(self, observation: Observation) -> tuple[Any, Any]:
            calls.append(len(observation["evidence"]))
            return greedy_.act(observation)

    greedy_ = greedy()
    assert evaluate(ID, "greedy", 60, 0, tmp_path / "part", SMALL, batch=10) == whole
    assert sorted(r["episode"] for r in read_trajectories(tmp_path / "part")) == list(range(60))
    assert (tmp_path / "part" / "summary.json").read_text() == (tmp_path / "whole" / "summary.json").read_text()
    assert (tmp_path / "part" / "wrong.csv").read_text() == (tmp_path / "whole" / "wrong.csv").read_text()
    again = evaluate(ID, Counting(), 60, 0, tmp_path / "part", SMALL, batch=10)
    assert again == whole and not calls


def test_evaluate__refuses_a_folder_of_another_run(tmp_path: Path) -> None:
    evaluate(ID, "greedy", 20, 0, tmp_path, SMALL)
    for agent, episodes, seed, arguments, said in (
        ("random", 20, 0, SMALL, "agent is 'greedy' there, 'random' here"),
        ("greedy", 20, 1, SMALL, "seed is 0 there, 1 here"),
        ("greedy", 20, 0, SMALL | {"noise": 0.1}, "noise is 0.02 there, 0.1 here"),
        ("greedy", 20, 0, SMALL | {"knowledge": "synthetic:12x31"}, "base is"),
        ("greedy", 10, 0, SMALL, "of a longer run"),
    ):
        with pytest.raises(RunError, match=said):
            evaluate(ID, agent, episodes, seed, tmp_path, arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        evaluate(ID, "greedy", 20, 0, tmp_path / "file", SMALL)


def test_evaluate__an_object_does_not_take_over_another_doctors_consultations(tmp_path: Path) -> None:
    tables = Setup(**SMALL).tables
    whole = evaluate(ID, Greedy(tables, 0.9), 20, 0, tmp_path / "greedy", SMALL)
    assert evaluate(ID, Greedy(tables, 0.9), 20, 0, tmp_path / "greedy", SMALL) == whole
    with pytest.raises(RunError, match=r"doctor is 'confidence=0\.9 .* there, 'confidence=0\.5 .* here"):
        evaluate(ID, Greedy(tables, 0.5), 20, 0, tmp_path / "greedy", SMALL)
    evaluate(ID, Checklist(tables, 3), 20, 0, tmp_path / "checklist", SMALL)
    with pytest.raises(RunError, match="length=3' there, 'length=4' here"):
        evaluate(ID, Checklist(tables, 4), 20, 0, tmp_path / "checklist", SMALL)
    evaluate(ID, Stubborn(), 20, 0, tmp_path / "object", SMALL)
    with pytest.raises(RunError, match="20 consultations, and whether they are this Stubborn's can't be told: give it a `fingerprint`"):
        evaluate(ID, Stubborn(), 20, 0, tmp_path / "object", SMALL)


def test_evaluate__says_what_loading_the_cases_met(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    file = write_patients(tmp_path / "my_test.csv", [row(["E_1", "E_1"], "E_2"), *draw_rows(5, 0)])
    said: list[str] = []
    arguments = {"knowledge": f"ddxplus:{release}", "cases": f"ddxplus:{file}"}
    summary = evaluate(ID, "greedy", 6, 0, tmp_path / "run", arguments, tell=said.append)
    assert summary["loaded"]["cases"] == 6 and summary["loaded"]["repeated"] >= 1 and summary["loaded"]["opening_not_listed"] == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["loaded"] == summary["loaded"]
    assert said[0] == f"{file}: 6 cases, split test" and any("an evidence listed twice" in line for line in said)
    assert evaluate(ID, "greedy", 2, 0, env_arguments=SMALL)["loaded"] is None


class Halting:
    """Greedy, but it hands in a differential for women alone; whether it gives one it does not say."""

    name = "halting"

    def __init__(self) -> None:
        self.inner = greedy()

    def act(self, observation: Observation) -> tuple[Any, Any]:
        action, belief = self.inner.act(observation)
        return action, np.where(np.asarray(observation["demographics"])[:, 1:2] == 0, belief, np.nan)


def test_evaluate__what_is_not_scored_is_counted_for_each_component(tmp_path: Path) -> None:
    mix = {"reward": "accuracy + brier_score + log_score(price=0)"}
    some = evaluate(ID, Halting(), 60, 0, tmp_path, SMALL | mix)
    records = list(read_trajectories(tmp_path))
    men = sum(r["demographics"]["sex"] == "male" for r in records)
    assert 0 < men < 60 and some["failures"] == 0
    assert some["unscored"] == men and some["unscored_components"] == {"brier_score": men, "log_score": men}
    scored = [r["end"]["return"] for r in records if r["end"]["return"] is not None]
    assert some["mean_return"] == pytest.approx(np.mean(scored)) and len(scored) == 60 - men
    none = evaluate(ID, Stubborn(), 20, 0, env_arguments=SMALL | mix)
    assert none["unscored"] == 20 and none["unscored_components"] == {"brier_score": 20, "log_score": 20} and none["mean_return"] is None
    every = evaluate(ID, "greedy", 20, 0, env_arguments=SMALL | mix)
    assert every["unscored"] == 0 and every["unscored_components"] == {}
    assert evaluate(ID, "oracle", 20, 0, env_arguments=SMALL | mix)["unscored"] == 0


def test_evaluate__a_reward_of_the_differential_needs_a_doctor_that_gives_one(tmp_path: Path) -> None:
    mix = {"reward": "accuracy + reciprocal_rank - brier_score"}
    with pytest.raises(RewardError, match="reciprocal_rank, brier_score scores a differential, and doctor 'random' gives none"):
        evaluate(ID, "random", 5, 0, tmp_path / "none", SMALL | mix)
    assert not (tmp_path / "none").exists()
    assert evaluate(ID, "checklist", 5, 0, env_arguments=SMALL | mix)["mean_return"] is not None


@pytest.mark.parametrize("agent", BUILT_IN)
def test_built_in_doctors__say_whether_they_give_a_differential(agent: str) -> None:
    setup = Setup(**SMALL)
    doctor = make_doctor(agent, setup.tables)
    engine = setup.engine(3)
    engine.seed([1, 2, 3])
    engine.begin()
    assert doctor.gives_differential == (doctor.act(engine.views())[1] is not None)  # type: ignore[attr-defined]


def test_evaluate__refuses_bad_arguments() -> None:
    with pytest.raises(UnknownName, match="greedy"):
        evaluate(ID, "gredy", 1, 0, env_arguments=SMALL)
    with pytest.raises(UnknownName, match="max_turns"):
        evaluate(ID, "greedy", 1, 0, env_arguments=SMALL | {"max_turn": 3})
    with pytest.raises(UnknownName, match="MedConsult-v0"):
        evaluate("MedConsult-v7", "greedy", 1, 0)
    with pytest.raises(MedenvError, match="episodes is 0"):
        evaluate(ID, "greedy", 0, 0, env_arguments=SMALL)
    with pytest.raises(MedenvError, match="seed is -1"):
        evaluate(ID, "greedy", 1, -1, env_arguments=SMALL)


def test_evaluate__killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    episodes, file = 600, tmp_path / "killed" / TRAJECTORIES
    command = [sys.executable, "-m", "medenv", "evaluate", ID, "--agent", "greedy", "--episodes", str(episodes), "--batch", "4"]
    command += ["--knowledge", SMALL["knowledge"], "--max-turns", "8", "--output", str(file.parent)]
    root = str(Path(__file__).parents[1])
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": root})
    try:
        deadline = time.monotonic() + 60
        while not (file.is_file() and file.stat().st_size > 50_000):
            assert time.monotonic() < deadline and child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    held = file.read_bytes().count(b"\n")
    assert 0 < held < episodes and not (file.parent / "summary.json").exists()
    resumed = evaluate(ID, "greedy", episodes, 0, file.parent, SMALL)
    assert resumed == evaluate(ID, "greedy", episodes, 0, tmp_path / "whole", SMALL)
    times = Counter(r["episode"] for r in read_trajectories(file))
    assert set(times) == set(range(episodes)) and set(times.values()) == {1}
    assert sorted(file.read_text().splitlines()) == sorted((tmp_path / "whole" / TRAJECTORIES).read_text().splitlines())
