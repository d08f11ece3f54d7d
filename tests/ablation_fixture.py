"""Results of a plan by a generator, in place of training: learning curves that rise to what a mix is said to earn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medenv.runs.cells import Cell, Result

PLAN = """
title = "A test."
trainer = "ppo"
seeds = [0, 1, 2]
episodes = 8
judge = "accuracy - 0.01*question_cost"
baseline = "plain"
measure = "safety"
front = true
settings.steps = 64
[environments.one]
knowledge = "synthetic:8x16"
[environments.two]
knowledge = "synthetic:8x16"
noise = 0.1
[mixes]
plain = "accuracy"
"with, gain" = "accuracy + 0.1*information_gain"
"""
EARNED = {"greedy": 1.0, "random": 0.0, "plain": 0.85, "with, gain": 0.95}


def write_plan(folder: Path, text: str = PLAN) -> Path:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def invented(cell: Cell, folder: Path | None = None) -> Result:
    """A result as `run_cell` gives one: a pure function of the cell, and quick."""
    level = EARNED.get(cell.mix, 0.9) + (0.04 * (cell.seed - 1) if cell.trainer == "ppo" else 0.0)
    steps = [0, 100, 200, 300, 400]
    curve: dict[str, Any] = {}
    if cell.trainer == "ppo":
        rise = np.array([0.0, 0.5, 0.8, 0.95, 1.0]) * level
        curve = {"steps": steps, **{k: rise.tolist() for k in ("return", "accuracy", "best_guess")}, "questions": [1.0] * 5}
    earned = {"return": level, "accuracy": 0.9 * level, "questions": 4 + level, "cost": 5 + level, "components": {"test_cost": 0.5}}
    made = {"seconds": 1.0, "commit": "abc", "hardware": "none", "versions": "medenv"}
    return {**cell.told(), "curve": curve, "validation": earned, "test": {**earned, "return": level - 0.01}, **made}
