"""Training runs: PPO driven through a run directory, on a budget of seconds or steps.

A run that is killed at any moment continues from its last checkpoint; with `steps` as budget it ends, on one machine, with the same
parameters as a run that was never killed (not with engine=rllib, where open consultations begin anew). RUN/curve.png shows the learning
curve, where matplotlib is installed.

Does not cover: learning itself (`medenv.agents.ppo`), the files of a run (`run_directory`), evaluation on test cases.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from medenv.agents.policy import DAMAGED, policy_files
from medenv.agents.ppo import PPO, PPOSettings
from medenv.errors import RunError, unknown
from medenv.runs.cluster import PLACES, cluster
from medenv.runs.plots import plot_learning_curve
from medenv.runs.run_directory import RunDirectory, plain, read_metrics

Progress = Callable[[dict[str, Any]], None]

DEFAULT_SECONDS = 300.0
ENGINES = ("torch", "rllib")
CHANGEABLE = ("seconds", "steps", "tensorboard", "wandb")  # settings that a resumed run may change

GLOSSARY: dict[str, tuple[str, str, str]] = {  # key: (formula or meaning, healthy range, what a bad value means)
    "update": ("rollouts learned from", "rises by one", "a gap: lines were lost"),
    "steps": ("environment steps", "rises by num_envs · rollout", "-"),
    "seconds": ("time spent, with validation and the earlier parts of a resumed run", "-", "-"),
    "steps_per_second": ("of this update, learning included", "steady", "falling: the machine is shared, or too many threads"),
    "return": ("mean over consultations that ended, the environment's own mix", "rises", "flat: raise entropy or gain_bonus"),
    "accuracy": ("their share of right diagnoses", "rises", "high while return falls: questions cost more than they bring"),
    "questions": ("their mean number of questions", "falls, then settles", "near 0 early: it stops at once; lower gate_start"),
    "policy_loss": ("-mean min(r A, clip(r) A)", "-0.05 to 0", "above 0: learning_rate too high"),
    "value_loss": ("mean (V - return)^2 / 2", "falls", "rises for long: learning_rate too high"),
    "explained_variance": ("1 - var(return - V) / var(return)", "0.2 to 0.9", "below 0: worse than a constant"),
    "entropy": ("H(gate) + P(ask) H(question) + P(stop) H(diagnosis), nats", "falls slowly", "0 within minutes: raise entropy"),
    "approx_kl": ("mean r - 1 - log r", "0.002 to 0.03", "above 0.1: lower learning_rate or epochs"),
    "clip_fraction": ("share of transitions with |r - 1| > clip", "0.02 to 0.3", "above 0.4: as approx_kl"),
    "grad_norm": ("mean norm before clipping", "0.05 to 2", "explodes: lower learning_rate"),
    "tracker_loss": ("-mean log P(truth) of the policy's own belief, nats", "falls below log D", "flat: raise tracker_rate"),
    "stop_rate": ("share of transitions that stop", "near 1 / (questions + 1)", "near 1: it stops at once"),
    "unscored": ("transitions left out, a reward could not be scored", "0", "above 0: a component fails"),
    "consultations": ("that ended in the rollout and could be scored", "steady", "0: none ends within a rollout"),
    "sample_seconds": ("rllib: of this update's rollout", "steady", "-"),
    "learn_seconds": ("rllib: of what was learned from it", "steady", "-"),
    "runner_restarts": ("rllib: env runners that died and came back, so far", "0", "rises: look at their nodes' memory"),
    "runner_stalls": ("rllib: env runners ended because they did not reply, so far", "0", "rises: raise sample_timeout"),
    "environment_failures": ("rllib: rollouts thrown away because the environment raised, so far", "0", "rises: the cause is in the error"),
    "learner_failures": ("rllib: learners replaced, so far", "0", "rises: look at their nodes"),
    "learning_rate": ("Adam's, annealed", "-", "-"),
    "entropy_coefficient": ("annealed", "-", "-"),
    "gain_bonus": ("training reward per nat, annealed", "-", "-"),
    "imitation_accuracy": ("share of greedy's actions matched at the end of cloning", "above 0.6", "low: clone for longer"),
    "imitation_seconds": ("time spent cloning", "-", "-"),
    "imitation_steps": ("environment steps spent cloning, not in steps", "-", "-"),
    "validation_return": ("mean on the fixed validation cases, greedy decoding", "rises", "below return: sampling does better"),
    "validation_accuracy": ("share of right diagnoses on them", "rises", "-"),
    "validation_best_guess": (
        "share on which the likeliest condition of the exact belief at the end is right",
        "at or above validation_accuracy",
        "falls while return rises: the reward is hacked",
    ),
    "validation_questions": ("mean number of questions on them", "settles", "max_turns - 1: the gate never opens"),
}


def train(settings: PPOSettings, output: Path, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train PPO into the run directory `output`; returns the final metrics (see GLOSSARY).

    `progress` gets each metrics line. With `resume` the run in `output` goes on from its last checkpoint (an empty or missing
    directory starts one; a finished run returns its metrics). RunError: a directory that is not empty without `resume`, one of
    another version (see the module), base or settings (but `CHANGEABLE` ones), a damaged file, a full disk, or a setting out of range.
    """
    _check(settings)
    with _threads(settings.threads), _learner(settings) as learner:
        base = learner.tables.base
        chosen = plain({f.name: getattr(settings, f.name) for f in fields(settings)})
        about = {"kind": "ppo", "base": base.id, "fingerprint": base.fingerprint, "settings": chosen}
        run = RunDirectory(Path(output), about, resume, CHANGEABLE + (PLACES if settings.engine == "rllib" else ()))
        finished = run.final(lambda last: _spent(settings, last["steps"], last["seconds"]) >= 1.0)
        if finished is not None:
            return finished
        run.track(settings.tensorboard, settings.wandb)
        try:
            final = _train(learner, settings, run, progress or (lambda record: None))
        finally:
            run.close()
    if importlib.util.find_spec("matplotlib"):
        plot_learning_curve(read_metrics(run.path / "metrics.jsonl"), run.path / "curve.png")
    return final


def settings_class(engine: str) -> type[PPOSettings]:
    """The settings of an engine: `PPOSettings`, or those that add what runs where. RunError for an unknown one, or without Ray."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "torch":
        return PPOSettings
    try:
        from medenv.agents.rllib import RLlibSettings
    except ImportError as error:
        raise RunError(f'engine=rllib needs Ray with RLlib ({error}): pip install "medenv[ray]"') from error
    return RLlibSettings


@contextlib.contextmanager
def _learner(settings: PPOSettings) -> Iterator[Any]:
    """PPO in this process, or on RLlib with its cluster. RunError where the cluster can't be had."""
    if settings.engine == "torch":
        yield PPO(settings)
        return
    from medenv.agents.rllib import OnRLlib, RLlibSettings, check_rllib

    assert isinstance(settings, RLlibSettings)
    check_rllib(settings)
    gpus = settings.num_learners * settings.gpus_per_learner
    with cluster(settings.address, settings.num_env_runners + settings.num_learners, gpus), closing(OnRLlib(settings)) as learner:
        yield learner


def _train(learner: Any, settings: PPOSettings, run: RunDirectory, progress: Progress) -> dict[str, Any]:
    state = run.checkpoint()
    update, steps, spent = 0, 0, 0.0
    if state is not None:
        try:
            learner.load(state["learner"])
            update, steps, spent = state["update"], state["steps"], state["seconds"]
        except DAMAGED as error:
            raise run.damaged("checkpoint.pt", error) from error
    run.keep_metrics(update if state is not None else -1)
    if settings.engine == "rllib":
        learner.running()  # that runners start takes no part of the budget
    started = time.perf_counter() - spent

    def record(metrics: Mapping[str, float]) -> None:
        line = {"update": update, "steps": steps, "seconds": round(time.perf_counter() - started, 3), **metrics}
        run.log(line)
        progress(line)

    def save() -> None:
        base = learner.tables.base
        run.save_files(policy_files(learner.policy, learner.tracker, base.fingerprint, base.id, plain(settings.env)), "policy")
        run.save_checkpoint({"learner": learner.state(), "update": update, "steps": steps, "seconds": time.perf_counter() - started})

    if state is None:
        cloned = learner.imitate(settings.imitate) if settings.imitate > 0 else {}
        record(cloned | learner.validate())
        save()
    while (share := _spent(settings, steps, time.perf_counter() - started)) < 1.0:
        metrics = learner.update(share)
        update, steps = update + 1, steps + settings.num_envs * settings.rollout
        done = _spent(settings, steps, time.perf_counter() - started) >= 1.0
        if done or update % settings.evaluate_every == 0:
            metrics |= learner.validate()
        record(metrics)
        if done or update % settings.checkpoint_every == 0:
            save()
    return run.finish()


def _spent(settings: PPOSettings, steps: int, seconds: float) -> float:
    """Share of the budget that is used up."""
    shares = [] if settings.seconds is None else [seconds / settings.seconds]
    shares += [] if settings.steps is None else [steps / settings.steps]
    return max(shares) if shares else seconds / DEFAULT_SECONDS


_AT_LEAST = {
    "num_envs": 1, "rollout": 1, "minibatch": 1, "epochs": 1, "hidden": 1, "threads": 1, "evaluate_every": 1, "evaluate_episodes": 1,
    "checkpoint_every": 1, "seconds": 1e-3, "steps": 1, "seed": 0, "learning_rate": 0, "tracker_rate": 0, "clip": 0, "entropy": 0,
    "gain_bonus": 0, "imitate": 0,
}  # fmt: skip


def _check(settings: PPOSettings) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise RunError(f"setting {name} is {value!r}: give a number of at least {least}")
    for name in ("gamma", "gae_lambda", "learning_rate_end", "entropy_end", "gain_bonus_until"):
        if not 0.0 <= getattr(settings, name) <= 1.0:
            raise RunError(f"setting {name} is {getattr(settings, name)!r}: give a number in [0, 1]")
    if not isinstance(settings, settings_class(settings.engine)):
        raise RunError(f"engine is {settings.engine!r} and the settings are {type(settings).__name__}: give those of the engine")
    if settings.wandb not in ("off", "offline", "online"):
        raise RunError(f"setting wandb is {settings.wandb!r}: choose off, offline or online")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's thread count is one for the whole process: it is put back."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
