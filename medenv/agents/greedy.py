"""The reference doctor: the question with the greatest exact information gain per cost, until it is sure enough.

It keeps its own exact belief from the observation alone. Questions are shortlisted by one float32 matrix product, the shortlist is
scored again in float64 in a fixed order, rounded to 1e-6, ties to the lowest index: so decisions are the same in any batch.
It diagnoses when the likeliest condition reaches `confidence`, when no question promises `min_gain` nats per unit of cost, or
when only diagnosing is open.

Does not cover: look-ahead. One step of gain is not optimal where a question pays only through the next one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medenv.agents.doctor import Observation
from medenv.belief.gain import InformationGain
from medenv.belief.posterior import observed_cell, observed_scores, posterior
from medenv.errors import MedenvError
from medenv.knowledge.compiled import Compiled

CONFIDENCE, MIN_GAIN = 0.95, 0.03  # chosen on sampled validation cases: experiments/greedy
SHORTLIST = 6


class Greedy:
    """`confidence` in (0, 1], `min_gain` >= 0 in nats per unit of cost."""

    name = "greedy"
    gives_differential = True

    def __init__(self, tables: Compiled, confidence: float = CONFIDENCE, min_gain: float = MIN_GAIN) -> None:
        if not 0.0 < confidence <= 1.0 or not min_gain >= 0.0:
            raise MedenvError(f"greedy: confidence {confidence!r} must be in (0, 1], min_gain {min_gain!r} at least 0")
        self.tables, self.confidence, self.min_gain = tables, confidence, min_gain
        self.gain = InformationGain(tables)
        self._cost = np.maximum(tables.cost, 0.1).astype(np.float64)

    @property
    def fingerprint(self) -> str:
        """The parameters: two doctors of one base with the same decide alike."""
        return f"confidence={self.confidence!r} min_gain={self.min_gain!r}"

    def act(self, observation: Observation) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Actions [N] and the belief [N, D] as differential."""
        Q = self.tables.num_questions
        belief = posterior(observed_scores(self.tables, observation))[0]
        rounded = np.round(belief, 6)
        action = Q + np.argmax(rounded, axis=1)
        open_ = np.asarray(observation["action_mask"])[:, :Q] == 1
        unsure = np.flatnonzero((rounded.max(1) < self.confidence) & open_.any(1))
        if unsure.size:
            question, worth = self._best(belief[unsure], observed_cell(self.tables, observation["demographics"])[unsure], open_[unsure])
            ask = worth >= self.min_gain
            action[unsure[ask]] = question[ask]
        return action, belief

    def _best(
        self, belief: NDArray[np.float64], cell: NDArray[np.integer], open_: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        worth = np.where(open_, self.gain(belief, cell) / self._cost, -1.0)
        k = min(SHORTLIST, worth.shape[1])
        short = np.sort(np.argpartition(-worth, k - 1, axis=1)[:, :k], axis=1)
        exact = np.full(short.shape, -1.0)
        for i in range(len(short)):
            exact[i] = np.round(self.gain.exact(belief[i], int(cell[i]), short[i]) / self._cost[short[i]], 6)
        exact[~np.take_along_axis(open_, short, 1)] = -1.0
        best = np.argmax(exact, axis=1)
        rows = np.arange(len(short))
        return short[rows, best], exact[rows, best]
