"""Scores, and what Google's `rliable` makes of them: `rliable_numbers.json`, written by this file run as a program.

rliable 1.2.0 asks for arch < 8, and no such arch can be imported beside the pandas of constraints.txt, so it has an environment of its own:

    python -m venv rl && rl/bin/pip install rliable==1.2.0 arch==7.2.0 "pandas<3" && rl/bin/python tests/rliable_fixture.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("rliable_numbers.json")
THRESHOLDS = [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
REPS = 20_000


def scores() -> dict[str, np.ndarray]:
    """Two arms [runs, environments] with ties between them, and one of more runs."""
    rng = np.random.Generator(np.random.PCG64(11))
    x = np.round(rng.normal([0.5, 0.7, 0.4], [0.1, 0.2, 0.3], (6, 3)), 2)
    y = np.round(rng.normal([0.45, 0.75, 0.2], [0.1, 0.1, 0.2], (6, 3)), 2)
    y[0] = x[0]
    return {"x": x, "y": y, "z": np.round(rng.normal(0.6, 0.3, (9, 3)), 2)}


def numbers() -> dict[str, Any]:
    """Estimates and 95 % percentile intervals by rliable."""
    from rliable import library, metrics

    np.random.seed(0)  # its resampling reads the global generator
    s = scores()
    out: dict[str, Any] = {}
    for name, function in (("mean", metrics.aggregate_mean), ("iqm", metrics.aggregate_iqm)):
        found, intervals = library.get_interval_estimates(s, lambda v, f=function: np.array([f(v)]), reps=REPS)
        out[name] = {k: [float(found[k][0]), *intervals[k].ravel().tolist()] for k in s}
    pairs = {"x,y": [s["x"], s["y"]], "x,z": [s["x"], s["z"]]}
    found, intervals = library.get_interval_estimates(pairs, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=4000)
    out["improvement"] = {k: [float(found[k][0]), *intervals[k].ravel().tolist()] for k in pairs}
    found, intervals = library.create_performance_profile(s, np.array(THRESHOLDS), reps=REPS)
    out["profile"] = {k: [found[k].tolist(), *intervals[k].tolist()] for k in s}
    return out


if __name__ == "__main__":
    FILE.write_text(json.dumps(numbers(), indent=1) + "\n", encoding="utf-8")
