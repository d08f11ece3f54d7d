"""From what consultations were paid to an advantage for each turn of the doctor's, group by group.

A group is a few consultations about one case. A turn's advantage has two parts, each a deviation from the group's mean:

- the outcome: the consultation's return against the mean of the group (Shao et al. 2024, arXiv 2402.03300), the same for all its turns;
- its own part, with a baseline for each kind of turn. A question's credit is set against the mean credit of the group's questions at the
  same place in the consultation: asking in itself is neither paid nor punished, which question is asked decides. A diagnosis, worth the
  exact belief in it, is set against what the same answers allowed, the likeliest condition's belief, times the share of that which the
  group realised: it is not blamed for answers that say little. Each sums to 0 over the turns that are compared.

Where diagnoses have a part of their own, what one lost against the likeliest condition is theirs alone: it is put back into the outcome, so
that questions are judged by what their answers allowed and not by what was made of them.

Parts are divided by their standard deviations over the batch (all processes), so that weights compare like with like. A consultation that
could not be scored is left out of the means and out of the loss. A group with nothing to learn from (fewer than two members scored, or no
spread in any part) is skipped: advantages of 0, no tokens in the loss, counted.

Does not cover: where the numbers come from (`rollouts`), the loss (`grpo`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.agents.conversation import Conversation
from medenv.errors import RunError

OUTCOME = "outcome"  # questions have no part of their own; with a `diagnosis_weight` of 0 the return is alone
SPREAD = 1e-6  # a standard deviation below it is none
Float64 = NDArray[np.float64]


@dataclass
class Paid:
    """What one consultation was paid: `total`, its return, NaN where it could not be scored; for each message of the doctor's its credit
    and whether it `asks` (False: it concluded; a message that was not understood asks, to no avail). `worth` and `best`: the exact belief
    in the diagnosis that it ended with and in the likeliest condition; 0 where it ended otherwise. `lost`: what the difference took from
    `total`.
    """

    total: float
    credits: list[float] = field(default_factory=list)
    asks: list[bool] = field(default_factory=list)
    worth: float = 0.0
    best: float = 0.0
    lost: float = 0.0

    @property
    def scored(self) -> bool:
        """Whether it may be learned from."""
        return bool(np.isfinite(self.total) and np.isfinite(self.credits).all())


@dataclass
class Advantages:
    """`turns`: float64 [messages] for each consultation. `kept`: bool, whether it stands in the loss. `skipped` groups, `failed` ones."""

    turns: list[Float64]
    kept: list[bool]
    skipped: int
    failed: int


def advantages(
    paid: Sequence[Paid],
    group: int,
    weight: float,
    diagnosis_weight: float = 0.0,
    total: Callable[[Float64], Float64] | None = None,
    scale: bool = True,
) -> Advantages:
    """Advantages of consultations that stand group by group, `group` of each case.

    `weight` of the questions' own part, `diagnosis_weight` of the diagnoses', both >= 0 (with 0 and 0: outcome only). `total` adds a few
    sums up over all processes (none: there is one). Without `scale` deviations stay as they are, in units of the reward. RunError when the
    group size does not divide the batch.

    >>> a = advantages([Paid(1.0, [0.2, 0.0], [True, False]), Paid(0.0, [0.4, 0.0], [True, False])], 2, weight=1.0, scale=False)
    >>> [turn.round(2).tolist() for turn in a.turns]
    [[0.4, 0.5], [-0.4, -0.5]]
    """
    if group < 2 or len(paid) % group:
        raise RunError(f"{len(paid)} consultations in groups of {group}: give a group size of at least 2 that divides the batch")
    longest = max(len(p.credits) for p in paid)
    scored = np.array([p.scored for p in paid])
    outcome = np.array([p.total + p.lost * (diagnosis_weight > 0) if p.scored else 0.0 for p in paid])
    credit, asks, ends = np.zeros((len(paid), longest)), np.zeros((len(paid), longest), bool), np.zeros((len(paid), longest), bool)
    for i, p in enumerate(paid):
        if p.scored and weight > 0:
            credit[i, : len(p.credits)], asks[i, : len(p.asks)] = p.credits, p.asks
        ends[i, len(p.asks) - 1] = p.scored and p.best > 0 and diagnosis_weight > 0
    worth, best = (np.where(ends.any(1), [getattr(p, name) for p in paid], 0.0) for name in ("worth", "best"))
    parts = [
        _deviation(outcome.reshape(-1, group), scored.reshape(-1, group)).reshape(-1, 1),
        _deviation(credit.reshape(-1, group, longest), asks.reshape(-1, group, longest)).reshape(-1, longest),
        np.where(ends, (worth - best * _share(worth, best, group))[:, None], 0.0),
    ]
    spread = np.max([np.abs(part).max(1) for part in parts], axis=0) > SPREAD
    learns = (scored.reshape(-1, group).sum(1) >= 2) & spread.reshape(-1, group).any(1)
    kept = scored & np.repeat(learns, group)
    if scale:
        sums = np.array([(kept.sum(), asks[kept].sum(), ends[kept].sum()), [(part[kept] ** 2).sum() for part in parts]], np.float64)
        count, squares = sums if total is None else total(sums)
        parts = [part / max(np.sqrt(q / max(n, 1.0)), SPREAD) for part, n, q in zip(parts, count, squares, strict=True)]
    each = np.where(kept[:, None], parts[0] + weight * parts[1] + diagnosis_weight * parts[2], 0.0)
    turns = [each[i, : len(p.credits)].copy() for i, p in enumerate(paid)]
    return Advantages(turns, kept.tolist(), int((~learns).sum()), int((~scored).sum()))


def _share(worth: Float64, best: Float64, group: int) -> Float64:
    """[n] the share of what the answers allowed that each group's diagnoses realised."""
    realised, allowed = (x.reshape(-1, group).sum(1) for x in (worth, best))
    return np.repeat(realised / np.where(allowed > 0, allowed, 1.0), group)


def _deviation(values: Float64, counted: NDArray[np.bool_]) -> Float64:
    """[g, n, ...] minus the mean over the counted members of each group [g, 1, ...]; 0 where not counted."""
    mean = (values * counted).sum(1, keepdims=True) / np.maximum(counted.sum(1, keepdims=True), 1)
    return np.where(counted, values - mean, 0.0)


def token_advantages(conversation: Conversation, turns: Sequence[float] | Float64) -> list[float]:
    """The advantages of the tokens after the prompt: a turn's for each token that the doctor wrote in it, 0 for the patient's."""
    out = [0.0] * (len(conversation.ids) - conversation.prompt_length)
    for span, value in zip(conversation.spans, turns, strict=True):
        for at in range(span.start, span.stop):
            out[at - conversation.prompt_length] = float(value)
    return out


def check_credit(credit: str, rewards: Any) -> None:
    """RunError for a credit that the mix does not hand out turn by turn. `rewards`: a `RewardMix`."""
    if credit == OUTCOME:
        return
    terms = {name: reward for name, _, reward in rewards.terms}
    fits = " or ".join([OUTCOME, *(name for name, reward in terms.items() if _by_turn(reward))])
    if credit not in terms:
        raise RunError(f"setting credit is {credit!r}, which is not in the mix {str(rewards)!r}: choose {fits}, or add it to env.reward")
    if not _by_turn(terms[credit]):
        raise RunError(
            f"setting credit is {credit!r}, which is paid once, at the end, and can't be scored per turn: choose {fits}, or add "
            "shapley_credit or information_gain to env.reward"
        )


def _by_turn(reward: Any) -> bool:
    return hasattr(reward, "credits") or reward.when not in ("ended", "diagnosed", "referred")
