"""When does a run reach 90 % of greedy's return on the validation cases of its own curve? For ablations of PPO that are finished.

    python -m medenv.runs.own_cases experiments/ablations/rewards.toml --data DIR

A training validates on cases of its own seed; `greedy` in an ablation's tables was measured on the cases that all share. Here `greedy`
plays each seed's own cases, and the times are taken again. Reads SETTINGS' folder (cells.jsonl), writes own_cases.csv and .md into it.

Does not cover: final returns, which are measured on shared cases anyway.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from medenv.agents.greedy import Greedy
from medenv.agents.ppo import PPOSettings, make_env
from medenv.hashing import seed_for
from medenv.runs.cells import Plan, read_plan
from medenv.runs.comparisons import first_reach, median_time
from medenv.runs.provenance import provenance
from medenv.runs.tables import write_table

SHARE = 0.9


@click.command(help=__doc__)
@click.argument("settings", type=click.Path(path_type=Path, exists=True))
@click.option("--data", default=None)
def main(settings: Path, data: str | None) -> None:
    """See the module."""
    plan = read_plan(settings, data)
    folder = settings.with_suffix("")
    results = [json.loads(line) for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = []
    for environment in plan.environments:
        greedy = {seed: greedy_return(plan, environment, seed) for seed in plan.seeds}
        rows.append({"environment": environment, "mix": "greedy", "greedy_by_seed": ", ".join(f"{r:.3f}" for r in greedy.values())})
        for mix in plan.mixes:
            runs = [r for r in results if (r["environment"], r["mix"]) == (environment, mix)]
            times = [first_reach(r["curve"]["steps"], r["curve"]["return"], SHARE * greedy[r["seed"]]) for r in runs]
            median = median_time(times)
            reached = f"{int(np.isfinite(times).sum())} of {len(runs)}"
            rows.append(
                {"environment": environment, "mix": mix, "reached": reached, "steps": round(median) if np.isfinite(median) else "never"}
            )
    notes = [
        f"Median steps over seeds to {SHARE:.0%} of greedy's return on each seed's own validation cases, and how many get there. "
        "The first crossing of a noisy curve is early rather than late."
    ]
    write_table(folder / "own_cases", rows, notes, provenance(f"python -m medenv.runs.own_cases {settings} --data DIR"))


def greedy_return(plan: Plan, environment: str, seed: int) -> float:
    """The judge's mean return of `greedy` on the validation cases of a run with this seed."""
    arguments = {k: v for k, v in plan.environments[environment].items() if k != "settings"}
    n = int(plan.settings["evaluate_episodes"])
    env = make_env(PPOSettings(env=arguments, seed=seed), "validation", n, plan.judge)
    doctor, alive, total = Greedy(env.setup.tables), np.ones(n, bool), np.zeros(n)
    observation = env.reset(seed=seed_for(seed, "ppo validation"))[0]
    while alive.any():
        observation, reward, terminated, truncated, _ = env.step(doctor.act(observation)[0])
        total += reward * alive
        alive &= ~(terminated | truncated)
    return float(total.mean())


if __name__ == "__main__":
    main()
