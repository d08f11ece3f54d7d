"""PPO on RLlib measured: steps a second beside `ppo` and a plain RLlib set-up, one runner against two, a killed runner; learning curves.

    python -m medenv.runs.bench_rllib            writes experiments/cluster/rllib.md, .csv and rllib_curves.png

Rollouts alone are asked for one after another, without learning between them. Two runners are set beside one that consults as many people
in all, and beside one that consults as many as each of the two. "Plain" is what RLlib's documentation leads to: one environment per runner
(`MedConsult-v0` with flat observations), RLlib's own network of the same width, the same minibatches, epochs and number of runners. Set-ups
are measured in turns, and each counts with the median of its iterations after the first.

Does not cover: many nodes (`scaling`), other machines.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

from medenv.agents.ppo import PPO, PPOSettings
from medenv.agents.rllib import OnRLlib, RLlibSettings
from medenv.runs.cluster import cluster
from medenv.runs.provenance import provenance
from medenv.runs.run_directory import read_metrics
from medenv.runs.tables import write_table
from medenv.runs.training import train

ENV: dict[str, Any] = {"knowledge": "builtin", "observe_belief": True}
UPDATES, ROLLOUTS = "with updates", "rollouts alone"  # steps a second of whole updates, or of their rollouts
ITERATIONS = 6
NUM_ENVS, MINIBATCH, EPOCHS, HIDDEN = 1024, 1024, 2, 128
PLAIN_BATCH = 2048  # of the plain set-up, so that an iteration takes seconds and not a minute; rates do not depend on it


@click.command(help=__doc__)
@click.option("--output", default="experiments/cluster", type=click.Path(path_type=Path))
@click.option("--steps", default=300_000, help="of each learning curve")
@click.option("--seeds", default=3, help="of the learning curves; 0: none")
@click.option("--rounds", default=2, help="turns in which the set-ups are measured")
def main(output: Path, steps: int, seeds: int, rounds: int) -> None:
    """See the module."""
    torch.set_num_threads(1)
    command = f"python -m medenv.runs.bench_rllib --steps {steps} --seeds {seeds} --rounds {rounds}"
    rates: dict[str, list[float]] = {}
    with cluster("local", own_cpus=4):
        for _ in range(rounds):
            for setup, measured in SETUPS.items():
                for what, found in measured().items():
                    rates.setdefault(f"{setup}, {what}", []).extend(found)
                    click.echo(f"{setup}, {what}: {np.median(found):.0f}")
        restart = _restart()
        click.echo(f"restart: {restart:.1f} s")
        curves = _curves(steps, seeds)
    rows: list[dict[str, Any]] = [{"what": name, "per_second": round(float(np.median(r)))} for name, r in rates.items()]
    median = {name: float(np.median(r)) for name, r in rates.items()}
    ours = max(median[f"RLlib, {n}, {UPDATES}"] for n in ("1 runner", "2 runners"))
    two = median[f"RLlib, 2 runners, {ROLLOUTS}"]
    rows += [
        {
            "what": "RLlib with updates, the better of 1 and 2 runners / plain RLlib",
            "ratio": round(ours / median[f"plain RLlib, {UPDATES}"], 1),
        },
        *(
            {"what": f"rollouts alone, 2 runners / 1 runner, {told}", "ratio": round(two / median[f"RLlib, {one}, {ROLLOUTS}"], 2)}
            for told, one in (("as many consultations in all", "1 runner"), ("as many in each", f"1 runner of {NUM_ENVS // 2}"))
        ),
        {"what": "seconds from a killed runner to its next rollout", "seconds": round(restart, 1)},
    ]
    for engine, runs in curves.items() if seeds else ():
        last = [run[-1][1] for run in runs]
        told = f"{np.mean(last):.3f} [{min(last):.3f} to {max(last):.3f}]"
        rows.append({"what": f"validation return of engine={engine} after {steps:,} steps, {seeds} seeds", "mean_and_range": told})
    notes = [
        f"{NUM_ENVS:,} consultations, 16 turns of each between two updates, {EPOCHS} epochs, minibatches of {MINIBATCH}; built-in base, "
        "belief observed; one thread a process."
    ]
    write_table(output / "rllib", rows, notes, provenance(command, "torch", "ray"))
    if seeds:
        _plot(curves, output / "rllib_curves.png")


def _settings(runners: int) -> RLlibSettings:
    return RLlibSettings(env=ENV, num_env_runners=runners, minibatch=MINIBATCH, epochs=EPOCHS, hidden=HIDDEN)


def _torch() -> dict[str, list[float]]:
    ppo = PPO(PPOSettings(env=ENV, minibatch=MINIBATCH, epochs=EPOCHS, hidden=HIDDEN))
    return {UPDATES: [ppo.update(0.1)["steps_per_second"] for _ in range(ITERATIONS)][1:]}


def _rllib(runners: int, num_envs: int = NUM_ENVS) -> dict[str, list[float]]:
    settings = replace(_settings(runners), num_envs=num_envs)
    learner = OnRLlib(settings)
    try:
        told = [learner.update(0.1) for _ in range(ITERATIONS)][1:]
        rates = []
        for _ in range(2 * ITERATIONS):
            start = time.perf_counter()
            learner.running().collect(0.1)
            rates.append(num_envs * settings.rollout / (time.perf_counter() - start))
    finally:
        learner.close()
    return {UPDATES: [t["steps_per_second"] for t in told], ROLLOUTS: rates}


def _plain() -> dict[str, list[float]]:
    """RLlib as it comes, one environment in each of two runners."""
    register_env("medconsult-flat", _flat)
    config = (
        PPOConfig()
        .environment("medconsult-flat")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=1)
        .training(train_batch_size_per_learner=PLAIN_BATCH, minibatch_size=MINIBATCH, num_epochs=EPOCHS)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[HIDDEN]))
        .debugging(log_level="ERROR")
    )
    algorithm = config.build_algo()
    out = []
    try:
        for _ in range(ITERATIONS):
            start = time.perf_counter()
            result = algorithm.train()
            out.append(result["env_runners"]["num_env_steps_sampled"] / (time.perf_counter() - start))
    finally:
        algorithm.stop()
    return {UPDATES: out[1:]}


def _flat(_: Any) -> gym.Env[Any, Any]:
    import medenv  # noqa: F401  (registers the environments, in the runner)
    from medenv.envs.wrappers import FlatObservation

    return FlatObservation(gym.make("MedConsult-v0", **ENV))


SETUPS: Mapping[str, Callable[[], dict[str, list[float]]]] = {
    "ppo, one process": _torch,
    "RLlib, 1 runner": lambda: _rllib(1),
    "RLlib, 2 runners": lambda: _rllib(2),
    f"RLlib, 1 runner of {NUM_ENVS // 2}": lambda: _rllib(1, NUM_ENVS // 2),
    "plain RLlib": _plain,
}


def _restart() -> float:
    """Seconds from a runner's SIGKILL to the end of the first rollout that it takes part in again; the other one goes on meanwhile."""
    learner = OnRLlib(_settings(2))
    try:
        learner.update(0.1)
        group = learner.running().env_runner_group
        pid = group.foreach_env_runner(lambda _: os.getpid(), remote_worker_ids=[1], local_env_runner=False)[0]
        os.kill(pid, signal.SIGKILL)
        start = time.perf_counter()
        while learner.update(0.1)["runner_restarts"] < 1:
            pass
        return time.perf_counter() - start
    finally:
        learner.close()


def _curves(steps: int, seeds: int) -> dict[str, list[list[tuple[int, float]]]]:
    """(steps, validation return) of both trainers with the same settings."""
    out: dict[str, list[list[tuple[int, float]]]] = {"torch": [], "rllib": []}
    for seed in range(seeds):
        for engine, runs in out.items():
            settings: Any = PPOSettings(env=ENV, num_envs=512, minibatch=512) if engine == "torch" else None
            settings = settings or RLlibSettings(env=ENV, num_envs=512, minibatch=512, num_env_runners=1)
            settings = replace(settings, seed=seed, steps=steps, evaluate_every=6, evaluate_episodes=1024, checkpoint_every=1000)
            with tempfile.TemporaryDirectory() as folder:
                train(settings, Path(folder) / "run")
                lines = read_metrics(Path(folder) / "run" / "metrics.jsonl")
            runs.append([(r["steps"], r["validation_return"]) for r in lines if r.get("validation_return") is not None])
    return out


def _plot(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k, (engine, runs) in enumerate(curves.items()):
        steps = np.array([s for s, _ in runs[0]])
        returns = np.array([[r for _, r in run] for run in runs])
        axes.fill_between(steps, returns.min(0), returns.max(0), color=f"C{k}", alpha=0.2)
        axes.plot(steps, returns.mean(0), color=f"C{k}", label=f"engine={engine}, {len(runs)} seeds: mean, least and greatest")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("validation return")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
