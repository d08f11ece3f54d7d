"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) for `MedConsult-v0`, on one batch of consultations.

Reads top to bottom: settings, the learner (update, collect, learn, validate, imitate), advantages.

Three things are for training only, and settings: `expected_accuracy` pays belief[diagnosis] in place of 0 or 1 (the same mean, less
noise), `gain_bonus` adds information gain that fades to 0, and `credit_each_turn` moves Shapley credit from the end to its turns.
Reported returns are always the environment's own mix, or the judge's. Patients: seeds are hashed from the run's own; training uses the
split train, validation the split validation, and test is never touched.

What is logged is explained in `medenv.runs.training.GLOSSARY`.

Does not cover: run directories, checkpoints and time budgets (`medenv.runs.training`), recurrent policies, several machines (RLlib).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, nll_loss

import medenv  # noqa: F401  (registers the environments)
from medenv.agents.greedy import Greedy
from medenv.agents.policy import (
    Architecture,
    Heads,
    Policy,
    Tracker,
    believe,
    context,
    decide,
    open_questions,
    sample,
    tracked,
)  # fmt: skip
from medenv.agents.ppo_objective import LOSSES, Rollout, move_credit, normalised, ppo_loss, scheduled, transitions
from medenv.envs.setup import check_arguments
from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import RewardError, RunError
from medenv.hashing import seed_for
from medenv.rewards.mix import parse_mix


@dataclass
class PPOSettings:
    """Settings of one run; on the command line and in TOML each is a key. Fractions are of the budget."""

    engine: str = "torch"  # this file; or rllib, with settings of its own beside these (`medenv.agents.rllib`)
    env: dict[str, Any] = field(default_factory=dict)  # arguments of MedConsult-v0, except split
    seed: int = 0  # of the network, the sampling and the patients
    seconds: float | None = None  # budget in seconds, but for the start of other processes; with no budget at all: 300
    steps: int | None = None  # budget in environment steps; the first budget to run out ends the run
    num_envs: int = 1024  # consultations side by side
    rollout: int = 16  # turns of each between two updates
    learning_rate: float = 3e-3  # Adam's at the start; it falls linearly
    learning_rate_end: float = 0.03  # share of it that is left at the end of the budget
    minibatch: int = 1024  # transitions per gradient step
    epochs: int = 2  # passes over each rollout
    gamma: float = 1.0  # discount; consultations are short and end by themselves
    gae_lambda: float = 0.3  # low: the value starts from max belief, so that its bias is small and its lower variance pays
    clip: float = 0.2  # of the probability ratio
    value_coefficient: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # gradients are scaled down to it
    entropy: float = 0.03  # weight of the entropy bonus at the start; it falls linearly
    entropy_end: float = 0.1  # share of it that is left at the end
    expected_accuracy: bool = True  # train on belief[diagnosis] instead of 0 or 1
    gain_bonus: float = 0.2  # training reward per nat gained at the start; it falls linearly to 0
    gain_bonus_until: float = 0.4  # share of the budget
    credit_each_turn: bool = False  # pay `shapley_credit` to the turns whose answers earned it, not as a sum at the end
    judge: str = ""  # reward mix that validation is scored with, where several trainings are compared; empty: the environment's own
    gate_start: float = -4.0  # logit of stopping at the start: ask first
    sharpness_start: float = 3.0  # alpha of alpha·log belief at the start
    hidden: int = 128  # width of the two hidden layers (policy, value)
    tracker_rate: float = 1e-2  # learning rate of the policy's own belief, where the environment's is not observed
    imitate: float = 0.0  # seconds of cloning `greedy` before PPO, inside the budget and reported apart
    threads: int | None = 1  # of torch: so small a network gains little from more, and loses much on a busy machine; None: as it is
    evaluate_every: int = 20  # updates between validations
    evaluate_episodes: int = 2048  # fixed validation cases, greedy decoding
    checkpoint_every: int = 20  # updates between checkpoints
    tensorboard: bool = False  # write event files
    wandb: str = "off"  # off, offline or online


class PPO:
    """The learner: environment, networks, optimisers and its own generator. `state()` and `load()` are exact.

    `stream`: numbers that set this one's patients and sampling apart from those of the run's other ones, where there are several.
    """

    def __init__(self, settings: PPOSettings, *stream: int) -> None:
        self.settings = s = settings
        self.env = make_env(s, "train", s.num_envs)
        setup = self.env.setup
        setup.rewards.check_gamma(s.gamma)
        for mix in (setup.rewards, *([parse_mix(s.judge)] if s.judge else [])):
            if mix.needs_differential:
                names = ", ".join(mix.needs_differential)
                raise RewardError(f"{names} scores a differential, and PPO hands in none while it trains: leave it out of the reward mix")
        self.credit_weight = setup.rewards.weight_of_credit() if s.credit_each_turn else 0.0
        if s.credit_each_turn and not self.credit_weight:
            raise RewardError(f"credit_each_turn moves Shapley credit to its turns, and {setup.rewards} has none: add shapley_credit")
        self.tables, self.Q = setup.tables, setup.num_questions
        self.generator = torch.Generator().manual_seed(seed_for(s.seed, "ppo network"))
        self.architecture = Architecture(
            num_slots=setup.tables.num_slots,
            num_questions=setup.num_questions,
            num_conditions=setup.num_conditions,
            num_settings=len(setup.base.settings),
            max_turns=setup.max_turns,
            observe_belief=setup.observe_belief,
            hidden=s.hidden,
            gate_start=s.gate_start,
            sharpness_start=s.sharpness_start,
        )
        self.policy = Policy(self.architecture, self.generator)
        self.tracker = None if setup.observe_belief else Tracker(self.architecture)
        self.accuracy_weight = setup.rewards.weight_of_right()
        if stream:
            self.generator.manual_seed(seed_for(s.seed, "ppo sampling", *stream))
        self.observation = self.env.reset(seed=seed_for(s.seed, "ppo train", *stream))[0]
        self.episode_return = np.zeros(s.num_envs)
        self.episode_questions = np.zeros(s.num_envs)
        self.episode_turns = np.zeros(s.num_envs, np.int64)

    @cached_property
    def optimiser(self) -> torch.optim.Adam:
        """The policy's; made when it is needed, because torch takes seconds to load it and collecting does without."""
        return torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate, eps=1e-5)

    @cached_property
    def tracker_optimiser(self) -> torch.optim.Adam | None:
        """The tracker's, where there is one."""
        return None if self.tracker is None else torch.optim.Adam(self.tracker.parameters(), self.settings.tracker_rate)

    def update(self, progress: float) -> dict[str, float]:
        """One rollout and what is learned from it; `progress` in [0, 1] is the share of the budget that is spent."""
        s = self.settings
        start = time.perf_counter()
        schedule = scheduled(s, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = schedule["learning_rate"]
        rollout, metrics = self.collect(schedule["gain_bonus"])
        metrics |= self.learn(rollout, schedule["entropy_coefficient"])
        if self.tracker_optimiser is not None:
            for group in self.tracker_optimiser.param_groups:
                group["lr"] = schedule["tracker_rate"]
            metrics["tracker_loss"] = self.learn_to_track(rollout)
        del schedule["tracker_rate"]
        return metrics | schedule | {"steps_per_second": s.num_envs * s.rollout / (time.perf_counter() - start)}

    @torch.no_grad()
    def collect(self, gain_bonus: float) -> tuple[Rollout, dict[str, float]]:
        """Play `rollout` turns of every consultation. The batch resets in the same step, so that every transition happened."""
        s, engine, rows = self.settings, self.env.engine, np.arange(self.settings.num_envs)
        turns: list[tuple[Any, ...]] = []
        evidence, values, finished = [], [], []
        paid = np.zeros((s.rollout, s.num_envs))
        for turn in range(s.rollout):
            observation, truth, entropy = self.observation, engine.truth.copy(), engine.entropy.copy()
            belief, about = believe(observation, self.tracker), torch.from_numpy(context(observation, self.architecture))
            open_ = torch.from_numpy(open_questions(observation, self.Q))
            heads = self.policy(belief, about, open_)
            action, log_probability = sample(heads, self.generator)
            chosen = action.numpy()
            self.observation, reward, terminated, truncated, info = self.env.step(chosen)
            ended = terminated | truncated
            last = info.get("final_info", info)
            self.episode_return += reward
            self.episode_questions += chosen < self.Q
            paid[turn] = reward + gain_bonus * np.where(ended, 0.0, entropy - engine.entropy)
            if ended.any():
                over = np.flatnonzero(ended & last["scored"])
                finished.append(np.stack([self.episode_return[over], self.episode_questions[over], chosen[over] - self.Q == truth[over]]))
                if s.expected_accuracy and self.accuracy_weight:
                    hit = last["belief"][rows, np.maximum(chosen - self.Q, 0)] - (chosen - self.Q == truth)
                    paid[turn] += np.where(ended & (chosen >= self.Q), self.accuracy_weight * hit, 0.0)
                if truncated.any():
                    paid[turn] += s.gamma * np.where(truncated, self._value(info["final_obs"]), 0.0)
                if self.credit_weight:
                    move_credit(paid, turn, over, self.episode_turns[over], self.credit_weight * last["credits"][over])
                self.episode_return[ended] = 0.0
                self.episode_questions[ended] = 0.0
            self.episode_turns = np.where(ended, 0, self.episode_turns + 1)
            if self.tracker is not None:
                evidence.append(tracked(observation))
            values.append(heads.value)
            turns.append((belief, about, open_, action, log_probability, ended, last["scored"], truth.astype(np.int64)))
        values.append(torch.from_numpy(self._value(self.observation)))
        b, c, o, a, lp, e, sc, tr = (torch.stack([torch.as_tensor(x) for x in column]) for column in zip(*turns, strict=True))
        metrics = {"stop_rate": float((a >= self.Q).float().mean()), "unscored": float((~sc).sum())}
        metrics["consultations"] = float(sum(f.shape[1] for f in finished))
        if metrics["consultations"]:
            means = np.concatenate(finished, axis=1).mean(axis=1)
            metrics |= {"return": float(means[0]), "questions": float(means[1]), "accuracy": float(means[2])}
        reward_ = torch.from_numpy(paid.astype(np.float32))
        return Rollout(b, c, o, a, lp, torch.stack(values), reward_, e, sc, tr, evidence), metrics

    def learn(self, rollout: Rollout, entropy_coefficient: float) -> dict[str, float]:
        """PPO's clipped objective over shuffled minibatches of the transitions that were scored."""
        s = self.settings
        flat = transitions(rollout, s.gamma, s.gae_lambda)
        advantage, target = flat["advantage"], flat["target"]
        variance = target.var(correction=0)
        explained = float(1 - (advantage.var(correction=0) / variance)) if variance > 0 else 0.0
        flat["advantage"] = normalised(advantage)
        sums, count = torch.zeros(len(LOSSES) + 1), 0
        for _ in range(s.epochs):
            for index in torch.split(torch.randperm(len(target), generator=self.generator), s.minibatch):
                some = {k: v[index] for k, v in flat.items()}
                loss, parts = ppo_loss(self.policy(some["belief"], some["context"], some["open"]), some, s, entropy_coefficient)
                self.optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), s.max_grad_norm)
                self.optimiser.step()
                sums += torch.cat([parts, norm[None]])
                count += 1
        names = (*LOSSES, "grad_norm")
        return dict(zip(names, (sums / max(count, 1)).tolist(), strict=True)) | {"explained_variance": explained}

    def learn_to_track(self, rollout: Rollout) -> float:
        """Fit the policy's own belief to the diagnoses of the training cases; returns the mean cross-entropy before each step."""
        assert self.tracker is not None and self.tracker_optimiser is not None
        total = 0.0
        for turn, seen in enumerate(rollout.evidence):
            loss = nll_loss(self.tracker(*seen), rollout.truth[turn])
            self.tracker_optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.tracker_optimiser.step()
            total += float(loss.detach())
        return total / len(rollout.evidence)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Greedy decoding on the run's fixed validation cases; every case counts once, short or long."""
        env, observation = validation_cases(self.settings)
        n = env.num_envs
        alive, total, questions, right = np.ones(n, bool), np.zeros(n), np.zeros(n), np.zeros(n, bool)
        scored, guessed = np.ones(n, bool), np.zeros(n, bool)
        while alive.any():
            truth = env.engine.truth.copy()
            action = decide(self._heads(observation))
            observation, reward, terminated, truncated, info = env.step(action)
            last = info.get("final_info", info)
            total += reward * alive
            questions += alive & (action < self.Q)
            right |= alive & (action - self.Q == truth)
            scored &= last["scored"] | ~alive
            ended = terminated | truncated
            if ended.any():
                guessed |= alive & ended & (last["belief"].argmax(1) == truth)
            alive &= ~ended
        if not scored.any():
            raise RunError(f"none of {n} validation consultations could be scored under {env.setup.rewards}: choose another reward mix")
        found = {"return": total, "accuracy": right, "best_guess": guessed, "questions": questions}
        return {f"validation_{name}": float(values[scored].mean()) for name, values in found.items()}

    def imitate(self, seconds: float) -> dict[str, float]:
        """Clone `greedy` on training cases for some seconds: cross-entropy on gate and question, value untouched."""
        greedy, start, matched, seen = Greedy(self.tables), time.perf_counter(), 0.0, 0
        optimiser = torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate)
        while time.perf_counter() - start < seconds:
            observation, truth = self.observation, torch.from_numpy(self.env.engine.truth.astype(np.int64))
            action = torch.from_numpy(greedy.act(observation)[0])
            if self.tracker is not None and self.tracker_optimiser is not None:
                self.tracker_optimiser.zero_grad()
                nll_loss(self.tracker(*tracked(observation)), truth).backward()  # type: ignore[no-untyped-call]
                self.tracker_optimiser.step()
            heads = self._heads(observation)
            asks = action < self.Q
            loss = binary_cross_entropy_with_logits(heads.gate, (~asks).float())
            if asks.any():
                loss = loss + nll_loss(heads.question[asks], action[asks])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen += len(action)
            matched = 0.9 * matched + 0.1 * float((torch.from_numpy(decide(heads)) == action).float().mean())
            self.observation = self.env.step(action.numpy())[0]
        self.observation = self.env.reset()[0]
        return {"imitation_accuracy": matched, "imitation_seconds": time.perf_counter() - start, "imitation_steps": float(seen)}

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on, as tensors and plain values."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "tracker": None if self.tracker is None else self.tracker.state_dict(),
            "tracker_optimiser": None if self.tracker_optimiser is None else self.tracker_optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "env": {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in self.env.snapshot().items()},
            "episode": [torch.from_numpy(x.copy()) for x in (self.episode_return, self.episode_questions, self.episode_turns)],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a `state()` of a learner with equal settings."""
        self.policy.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.tracker is not None and self.tracker_optimiser is not None:
            self.tracker.load_state_dict(state["tracker"])
            self.tracker_optimiser.load_state_dict(state["tracker_optimiser"])
        self.generator.set_state(state["generator"])
        self.observation = self.env.restore({k: v.numpy() if isinstance(v, Tensor) else v for k, v in state["env"].items()})
        self.episode_return, self.episode_questions, self.episode_turns = (x.numpy().copy() for x in state["episode"])

    def _heads(self, observation: dict[str, NDArray]) -> Heads:
        about = torch.from_numpy(context(observation, self.architecture))
        heads: Heads = self.policy(believe(observation, self.tracker), about, torch.from_numpy(open_questions(observation, self.Q)))
        return heads

    @torch.no_grad()
    def _value(self, observation: dict[str, NDArray]) -> NDArray[np.float32]:
        return self._heads(observation).value.numpy()


def make_env(settings: PPOSettings, split: str, num_envs: int, judge: str = "") -> ConsultVectorEnv:
    """The batch of one split that the settings ask for; it resets within the step. RunError for an unknown argument.

    `judge`: another reward mix than the settings'.
    """
    check_arguments(settings.env)
    arguments = settings.env | ({"reward": judge} if judge else {})
    env = gym.make_vec("MedConsult-v0", num_envs=num_envs, split=split, autoreset_mode="SameStep", **arguments)
    assert isinstance(env.unwrapped, ConsultVectorEnv)
    return env.unwrapped


def validation_cases(settings: PPOSettings) -> tuple[ConsultVectorEnv, dict[str, NDArray]]:
    """The batch of a run's fixed validation cases, scored by its judge, at their openings."""
    env = make_env(settings, "validation", settings.evaluate_episodes, settings.judge)
    return env, env.reset(seed=seed_for(settings.seed, "ppo validation"))[0]
