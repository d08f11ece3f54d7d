"""Simple doctors to compare with: random, prevalence, checklist.

Does not cover: doctors that choose questions by what they would tell (`greedy`) or that learn (`ppo`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medenv.agents.doctor import Observation
from medenv.belief.gain import InformationGain
from medenv.belief.posterior import observed_scores, posterior
from medenv.hashing import draw_array, seed_for
from medenv.knowledge.compiled import Compiled


class Random:
    """Any valid action, uniformly: a hash of the seed and of what has been observed, so the same in any batch."""

    name = "random"
    gives_differential = False

    def __init__(self, tables: Compiled, seed: int = 0) -> None:
        self.seed = seed
        self._weights = draw_array(
            np.full(tables.num_slots + tables.num_questions + 5, seed_for(seed, "random doctor"), np.uint64),
            np.arange(tables.num_slots + tables.num_questions + 5),
        )

    @property
    def fingerprint(self) -> str:
        """The parameters: two doctors of one base with the same decide alike."""
        return f"seed={self.seed}"

    def act(self, observation: Observation) -> tuple[NDArray[np.int64], None]:
        """Actions [N]."""
        seen = np.concatenate(
            [
                np.asarray(observation["evidence"]).astype(np.int64),
                np.asarray(observation["asked"]).astype(np.int64),
                np.asarray(observation["complaint"]).reshape(-1, 1).astype(np.int64),
                np.asarray(observation["demographics"]).astype(np.int64),
                np.asarray(observation["turns_left"]).astype(np.int64),
            ],
            axis=1,
        ).astype(np.uint64)
        key = (seen * self._weights).sum(1, dtype=np.uint64)
        mask = np.asarray(observation["action_mask"]) == 1
        count = mask.sum(1).astype(np.uint64)
        pick = ((draw_array(key, 0) >> np.uint64(32)) * count) >> np.uint64(32)
        place = np.cumsum(mask, axis=1, dtype=np.int64) == (pick.astype(np.int64) + 1)[:, None]
        return np.argmax(place & mask, axis=1), None


class Prevalence:
    """Diagnoses the commonest condition of the base at once."""

    name = "prevalence"
    gives_differential = True

    def __init__(self, tables: Compiled) -> None:
        self._prior = tables.cell_weight.sum(0)
        self._action = tables.num_questions + int(np.argmax(self._prior))

    @property
    def fingerprint(self) -> str:
        """The parameters: two doctors of one base with the same decide alike."""
        return "no parameters"

    def act(self, observation: Observation) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The same action and the prior for everybody."""
        n = len(observation["evidence"])
        return np.full(n, self._action), np.tile(self._prior, (n, 1))


class Checklist:
    """Asks a fixed list in a fixed order, whatever the answers, then diagnoses the likeliest condition.

    The list holds the `length` questions with the greatest expected gain per cost over the base's whole population.
    """

    name = "checklist"
    gives_differential = True

    def __init__(self, tables: Compiled, length: int = 12) -> None:
        self.tables = tables
        cells = np.flatnonzero(tables.cell_weight.sum(1) > 0)
        share = tables.cell_weight[cells].sum(1)
        gain = InformationGain(tables)(tables.cell_weight[cells] / share[:, None], cells)
        roots = np.array([f.parent is None for f in tables.base.findings])
        worth = np.round((gain * share[:, None]).sum(0) / np.maximum(tables.cost, 0.1), 6) * roots
        self.order = np.argsort(-worth, kind="stable")[:length]

    @property
    def fingerprint(self) -> str:
        """The parameters: two doctors of one base with the same decide alike."""
        return f"length={len(self.order)}"

    def act(self, observation: Observation) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The first question of the list that is open and not asked, else the likeliest condition."""
        open_ = np.asarray(observation["action_mask"])[:, self.order] == 1
        belief = posterior(observed_scores(self.tables, observation))[0]
        diagnosis = self.tables.num_questions + np.argmax(np.round(belief, 6), axis=1)
        return np.where(open_.any(1), self.order[np.argmax(open_, axis=1)], diagnosis), belief
