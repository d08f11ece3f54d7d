"""What the simulation of scaling rests on, measured on this machine: PPO's and GRPO's times on one node, and PPO's on two processes.

Rollouts are timed at two sizes of batch, which gives a time for each turn and one for each consultation in it; learning likewise. Each time
is the least of several: what else runs on the machine only adds to it.

Does not cover: the simulation (`medenv.runs.scaling`); other machines than the one it runs on.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medenv.agents.ppo import PPO, PPOSettings
from medenv.agents.ppo_objective import Rollout
from medenv.runs.provenance import commit, hardware
from medenv.runs.scaling import Work, simulate

PPO_ENVS, GRPO_BATCHES = (256, 1024), (16, 64)
SETTINGS = PPOSettings(env={"observe_belief": True})
REPEATS = 20
UPDATES = 8  # of GRPO; the first warms up, the last validates
ENTROPY = 0.03  # of learning; no matter for its time


def calibrate() -> dict[str, Any]:
    """Everything that `medenv.runs.scaling` reads, with where it was measured. Takes some minutes."""
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    torch.set_num_threads(1)
    ppo = measure_ppo()
    with tempfile.TemporaryDirectory() as folder:
        grpo = measure_grpo(Path(folder))
    return {
        "works": [dataclasses.asdict(ppo), dataclasses.asdict(grpo)],
        "two processes": two_processes(ppo),
        "command": "python -m medenv.runs.scaling calibrate",
        "commit": commit(),
        "hardware": hardware(),
        "load": load,
    }


def measure_ppo(envs: Sequence[int] = PPO_ENVS, settings: PPOSettings = SETTINGS, repeats: int = REPEATS) -> Work:
    """PPO's rollout and update at two numbers of consultations side by side. Every place in the batch takes `rollout` turns."""
    learners = [PPO(replace(settings, num_envs=n)) for n in envs]
    spent = np.full((len(envs), 2), np.inf)
    for _ in range(repeats):  # in turns, so that a busy minute of the machine falls on both
        for k, learner in enumerate(learners):
            start = time.perf_counter()
            rollout, _ = learner.collect(0.0)
            middle = time.perf_counter()
            learner.learn(rollout, ENTROPY)
            spent[k] = np.minimum(spent[k], (middle - start, time.perf_counter() - middle))
    turns = settings.rollout
    turn, turn_each = _line([turns] * 2, [turns * n for n in envs], spent[:, 0])
    learn, learn_each = _line([1, 1], envs, spent[:, 1])
    start = time.perf_counter()
    learner.validate()
    return Work(
        name="PPO",
        batch=envs[-1],
        lengths=(float(turns),),
        turn=turn,
        turn_each=turn_each,
        learn=learn,
        learn_each=learn_each,
        weights=float(len(_packed(learner.policy.state_dict()))),
        each=len(_packed(_plain(rollout))) / envs[-1],
        validation=time.perf_counter() - start,
        evaluate_every=settings.evaluate_every,
    )


def measure_grpo(folder: Path, batches: Sequence[int] = GRPO_BATCHES, updates: int = UPDATES) -> Work:
    """GRPO of `medenv train grpo --smoke`'s small model, at two batch sizes, from the runs' own metrics."""
    from medenv.agents.grpo import GRPOSettings
    from medenv.agents.sft import SFTSettings
    from medenv.cli_train import SMOKE_GRPO, SMOKE_SFT
    from medenv.runs.evaluate import evaluate
    from medenv.runs.finetuning import train
    from medenv.runs.records import read_trajectories
    from medenv.runs.run_directory import read_metrics
    from medenv.runs.settings import read_settings

    train(read_settings(SFTSettings, SMOKE_SFT), folder / "sft")
    rollouts, learns, validation = [], [], 0.0
    for batch in batches:
        small = SMOKE_GRPO | {"model": str(folder / "sft"), "batch": batch, "steps": updates}
        settings = read_settings(GRPOSettings, small | {"evaluate_every": 1000, "checkpoint_every": 1000})
        train(settings, folder / str(batch))
        lines = {r["update"]: r for r in read_metrics(folder / str(batch) / "metrics.jsonl")}
        spent = {u: lines[u]["seconds"] - lines[u - 1]["seconds"] for u in range(1, updates + 1)}
        some = range(2, updates)
        rollouts.append(min(lines[u]["rollout_seconds"] for u in some))
        learns.append(min(spent[u] - lines[u]["rollout_seconds"] for u in some))
        validation = max(spent[updates] - rollouts[-1] - learns[-1], 0.0)
    agent = f"grpo:{folder / str(batches[-1])}"
    evaluate("MedConsultText-v0", agent, 64, 0, folder / "lengths", SMOKE_GRPO["env"], temperature=1.0)  # type: ignore[arg-type]
    lengths = tuple(float(max(len(r["turns"]), 1)) for r in read_trajectories(folder / "lengths"))
    longest = [_expected_longest(lengths, b) for b in batches]
    turn, turn_each = _line(longest, [b * float(np.mean(lengths)) for b in batches], rollouts)
    learn, learn_each = _line([1, 1], batches, learns)
    size = sum(f.stat().st_size for f in (folder / str(batches[-1]) / "policy").glob("*.safetensors"))
    return Work(
        "GRPO, a small model",
        batches[-1],
        lengths,
        turn,
        turn_each,
        learn,
        learn_each,
        "all",
        float(size),
        validation=validation,
        evaluate_every=25,
    )


def two_processes(work: Work, settings: PPOSettings = SETTINGS, repeats: int = REPEATS) -> dict[str, Any]:
    """PPO's iteration with half of its rollouts in a second process, beside what the simulation says of it."""
    torch.set_num_threads(1)
    half = replace(settings, num_envs=work.batch // 2)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_second, args=(there, replace(half, seed=1)))
    process.start()
    try:
        learner = PPO(half)
        here.recv_bytes()  # it is ready
        bandwidth = _bandwidth(here, round(work.each * half.num_envs))
        spent = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            here.send_bytes(_packed(learner.policy.state_dict()))
            mine, _ = learner.collect(0.0)
            other = Rollout(**pickle.loads(here.recv_bytes()))
            learner.learn(_both(mine, other), ENTROPY)
            spent.append(time.perf_counter() - start)
        here.send_bytes(b"")
    finally:
        here.close()
        process.join(30)
        process.kill()
    measured = min(spent[1:])
    predicted = simulate(replace(work, bandwidth=bandwidth, latency=0.0, validation=0.0), 2, 20).per_iteration
    return {
        "measured": measured,
        "predicted": predicted,
        "error": predicted / measured - 1,
        "one process": simulate(replace(work, validation=0.0), 1, 20).per_iteration,
        "told": f"The least of {repeats} iterations of {work.batch} consultations; pipe of {bandwidth / 1e6:.0f} MB/s, pickling included.",
    }


def _second(pipe: Connection, settings: PPOSettings) -> None:
    """The second process: weights in, a rollout out, until nothing comes."""
    torch.set_num_threads(1)
    learner = PPO(settings)
    pipe.send_bytes(b"ready")
    while message := pipe.recv_bytes():
        given = pickle.loads(message)
        if isinstance(given, np.ndarray):
            pipe.send_bytes(b"echo")
            continue
        learner.policy.load_state_dict({k: torch.from_numpy(v) for k, v in given.items()})
        pipe.send_bytes(_packed(_plain(learner.collect(0.0)[0])))


def _bandwidth(pipe: Connection, size: int) -> float:
    """Bytes a second of an array that is pickled, sent and read; the best of some."""
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        pipe.send_bytes(_packed(np.zeros(size, np.int8)))
        pipe.recv_bytes()
        spent.append(time.perf_counter() - start)
    return size / min(spent)


def _packed(value: Any) -> bytes:
    """Pickled, tensors as arrays."""
    if isinstance(value, dict):
        value = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in value.items()}
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _plain(rollout: Rollout) -> dict[str, Any]:
    return {f.name: getattr(rollout, f.name) for f in fields(rollout)}


def _both(mine: Rollout, other: Rollout) -> Rollout:
    """The consultations of two rollouts side by side. `other` may hold arrays."""
    tensors = [f.name for f in fields(Rollout) if isinstance(getattr(mine, f.name), torch.Tensor)]
    joined: dict[str, Any] = {name: torch.cat([getattr(mine, name), torch.as_tensor(getattr(other, name))], dim=1) for name in tensors}
    return replace(mine, **joined)


def _line(fixed: Sequence[float], each: Sequence[float], seconds: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """(a, b), neither below 0, so that a·fixed + b·each = seconds in both measurements, or as near as can be."""
    a, b = np.linalg.solve(np.array([fixed, each], float).T, np.asarray(seconds, float))
    if a < 0:
        a, b = 0.0, seconds[-1] / each[-1]
    if b < 0:
        a, b = seconds[-1] / fixed[-1], 0.0
    return float(a), float(b)


def _expected_longest(lengths: Sequence[float], n: int) -> float:
    """Mean of the longest of n consultations whose lengths are drawn from `lengths`."""
    values, counts = np.unique(lengths, return_counts=True)
    below = np.cumsum(counts) / counts.sum()
    return float(np.sum(values * np.diff(np.concatenate([[0.0], below**n]))))
