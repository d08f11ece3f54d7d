"""Cells of an ablation: each is a pure function of its description, and what is measured is what the environment pays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ablation_fixture import PLAN, write_plan

pytest.importorskip("torch")

from medenv.agents.greedy import Greedy
from medenv.agents.ppo import PPO, PPOSettings
from medenv.envs.setup import Setup
from medenv.runs.cells import Cell, greedy_on_curve, read_plan, run_cell
from medenv.runs.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"steps": 256, "num_envs": 16, "rollout": 8, "minibatch": 64, "evaluate_every": 1, "evaluate_episodes": 32, "checkpoint_every": 1}


@pytest.fixture
def cells(tmp_path: Path) -> dict[tuple[str, str], Cell]:
    text = PLAN.replace('judge = "accuracy - 0.01*question_cost"', 'judge = "accuracy - 0.05*question_cost"')
    plan = read_plan(write_plan(tmp_path, text.replace('measure = "safety"', 'measure = "0.5*question_cost + safety"')))
    plan = dataclasses.replace(plan, settings=SMALL, seeds=[0])
    return {(c.environment, c.mix): c for c in plan.cells()}


def told(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "seconds"}


def test_cell__gives_the_same_result_again_also_where_it_was_interrupted(
    cells: dict[tuple[str, str], Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, update, progresses = cells["two", "plain"], PPO.update, list[float]()
    first = run_cell(cell, tmp_path / "one")
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(PPO, "update", lambda ppo, share: update(ppo, share) if share < 0.5 else (_ for _ in ()).throw(KeyboardInterrupt))
        run_cell(cell, tmp_path / "cut")
    monkeypatch.setattr(PPO, "update", lambda ppo, share: progresses.append(share) or update(ppo, share))
    assert told(run_cell(cell, tmp_path / "cut")) == told(first) and progresses == [0.5]  # the second of two updates
    assert told(run_cell(cell, tmp_path / "one")) == told(first) and progresses == [0.5]  # finished: nothing is trained
    assert first["curve"]["steps"] == [0, 128, 256] and len(first["curve"]["return"]) == 3
    assert {k: first[k] for k in ("environment", "mix", "seed", "reward")} == {
        "environment": "two", "mix": "plain", "seed": 0, "reward": "accuracy"
    }  # fmt: skip


def test_curve_and_final_returns__are_the_judges(cells: dict[tuple[str, str], Cell], tmp_path: Path) -> None:
    found = run_cell(cells["one", "plain"], tmp_path / "run")
    c = found["curve"]
    assert (np.array(c["return"]) <= np.array(c["accuracy"]) - 0.05 * np.array(c["questions"])).all()  # trained on accuracy alone
    for split in ("validation", "test"):
        v = found[split]
        assert v["return"] == pytest.approx(v["accuracy"] - 0.05 * v["cost"])
        assert v["components"]["question_cost"] == pytest.approx(v["cost"])  # unweighted
    assert found["validation"] != found["test"]


def test_measure__is_what_each_reward_pays(cells: dict[tuple[str, str], Cell], tmp_path: Path) -> None:
    cell = cells["one", "greedy"]
    found = run_cell(cell, tmp_path / "run")["test"]
    arguments = cell.env | {"split": "test"}
    alone = evaluate("MedConsult-v0", Greedy(Setup(**arguments).tables), cell.episodes, 0, env_arguments=arguments | {"reward": "safety"})
    assert found["components"]["safety"] == pytest.approx(alone["mean_return"])


def test_greedy_on_a_curve__plays_the_curves_own_patients(cells: dict[tuple[str, str], Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells["one", "plain"]
    settings = PPOSettings(env=dict(cell.env) | {"reward": "accuracy"}, judge=cell.judge, **SMALL)
    ppo = PPO(settings)
    greedy = Greedy(ppo.tables)
    monkeypatch.setattr(PPO, "_heads", lambda self, observation: observation)
    monkeypatch.setattr("medenv.agents.ppo.decide", lambda observation: greedy.act(observation)[0])
    assert greedy_on_curve(cell) == pytest.approx(ppo.validate()["validation_return"])
    assert greedy_on_curve(cell) != greedy_on_curve(dataclasses.replace(cell, seed=1))
