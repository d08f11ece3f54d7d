"""What PPO learns from: rollouts, advantages, the loss of a minibatch, and what anneals; `ppo` and RLlib's learner share them.

Does not cover: collecting and optimising (`ppo`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medenv.agents.policy import Heads, entropy_of, log_probability_of

if TYPE_CHECKING:
    from medenv.agents.ppo import PPOSettings

LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


@dataclass
class Rollout:
    """T turns of N consultations. `ended`: the consultation ended with this transition; `scored`: it may be learned from."""

    belief: Tensor  # float32 [T, N, D] what the policy decided from
    context: Tensor  # float32 [T, N, C]
    open: Tensor  # bool [T, N, Q]
    action: Tensor  # int64 [T, N]
    log_probability: Tensor  # float32 [T, N]
    value: Tensor  # float32 [T + 1, N], the last row of the state that follows
    reward: Tensor  # float32 [T, N] for training
    ended: Tensor  # bool [T, N]
    scored: Tensor  # bool [T, N]
    truth: Tensor  # int64 [T, N], for the tracker
    evidence: list[tuple[Tensor, Tensor, Tensor]]  # T times what the tracker reads; empty without one


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates [T, N] (Schulman et al. 2016, arXiv 1506.02438).

    Nothing flows back over an end. An unscored transition has advantage 0 and hands on the value of its own state, so that
    what was not scored is not read as 0.
    """
    out = torch.zeros_like(rollout.reward)
    carry = torch.zeros_like(rollout.reward[0])
    for t in reversed(range(len(out))):
        going = (~rollout.ended[t]).float()
        delta = rollout.reward[t] + gamma * rollout.value[t + 1] * going - rollout.value[t]
        carry = (delta + gamma * gae_lambda * going * carry) * rollout.scored[t]
        out[t] = carry
    return out


def transitions(rollout: Rollout, gamma: float, gae_lambda: float) -> dict[str, Tensor]:
    """The transitions of a rollout that were scored, flat [M, …], with their advantages (not normalised) and value targets."""
    advantage = advantages(rollout, gamma, gae_lambda)
    keep = rollout.scored.flatten()
    columns = {
        "belief": rollout.belief,
        "context": rollout.context,
        "open": rollout.open,
        "action": rollout.action,
        "log_probability": rollout.log_probability,
        "advantage": advantage,
        "target": advantage + rollout.value[:-1],
    }
    return {name: column.flatten(0, 1)[keep] for name, column in columns.items()}


def normalised(advantage: Tensor) -> Tensor:
    """[M], mean 0 and standard deviation 1."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


def ppo_loss(heads: Heads, batch: dict[str, Tensor], settings: PPOSettings, entropy_coefficient: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective on one minibatch of `transitions`, and its parts [5] without gradient, named by LOSSES."""
    log_ratio = log_probability_of(heads, batch["action"]) - batch["log_probability"]
    ratio, clip, gain = log_ratio.exp(), settings.clip, batch["advantage"]
    policy_loss = -torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()
    value_loss = (heads.value - batch["target"]).square().mean() / 2
    entropy = entropy_of(heads).mean()
    with torch.no_grad():
        kl, clipped = (ratio - 1 - log_ratio).mean(), ((ratio - 1).abs() > clip).float().mean()
        parts = torch.stack([policy_loss, value_loss, entropy, kl, clipped])
    return policy_loss + settings.value_coefficient * value_loss - entropy_coefficient * entropy, parts


def move_credit(
    paid: NDArray[np.float64], turn: int, rows: NDArray[np.intp], before: NDArray[np.int64], credits: NDArray[np.float64]
) -> None:
    """Take `credits` [k, max_turns] out of what the consultations `rows` [k] were paid at `turn` and pay each to its own turn, in place.

    `paid` [T, N]; `before` [k]: turns of each consultation before this one. What was earned before this rollout stays at the end.
    """
    for j in range(int(before.max(initial=0))):
        at = turn - before + j
        some = np.flatnonzero((j < before) & (at >= 0))
        paid[at[some], rows[some]] += credits[some, j]
        paid[turn, rows[some]] -= credits[some, j]


def scheduled(settings: PPOSettings, progress: float) -> dict[str, float]:
    """What anneals, where the share `progress` in [0, 1] of the budget is spent."""
    s = settings
    return {
        "learning_rate": s.learning_rate * _fade(s.learning_rate_end, progress),
        "entropy_coefficient": s.entropy * _fade(s.entropy_end, progress),
        "gain_bonus": s.gain_bonus * max(0.0, 1.0 - progress / s.gain_bonus_until) if s.gain_bonus_until > 0 else 0.0,
        "tracker_rate": s.tracker_rate * _fade(s.learning_rate_end, progress),
    }


def _fade(end: float, progress: float) -> float:
    return 1.0 + (end - 1.0) * min(progress, 1.0)
