"""Scores of the differential that the doctor hands in, minus a price for each condition that it lists.

reward = score - price * (number of conditions with a probability above 0), with score one of:

- `reciprocal_rank`: 1 / rank of the truth (Voorhees 1999), 0 where it is not listed. Ties count against the doctor: the rank is the number
  of conditions at least as probable as the truth, so that giving all the same probability is worth 1 / D.
- `log_score`: log max(p(truth), 1e-6) (Good 1952), in nats.
- `brier_score`: 1 - sum over d of (p(d) - 1[d = truth])^2 / 2 (Brier 1950).

The last two are proper: without the price, saying what one believes earns most. The price is what a list costs whoever reads it: naming
everything loses, and a condition is worth listing only where it earns more than its price. An exact belief leaves almost no condition at
0, so a doctor that hands it in uncut pays for all of them.

Does not cover: the environment's own belief, which never takes the place of a differential: none handed in is not scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medenv.errors import RewardError
from medenv.rewards.base import FLOOR, OfBase, Transition, of_truth


@dataclass(frozen=True)
class _OfDifferential(OfBase):
    when: ClassVar[str] = "ended"
    needs_truth: ClassVar[bool] = True
    needs_differential: ClassVar[bool] = True
    price: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.price, int | float) or not 0.0 <= self.price < math.inf:
            raise RewardError(f"price of {getattr(self, 'name', '')} is {self.price!r}: give a number of at least 0")

    def __call__(self, t: Transition) -> NDArray[np.float64]:
        """float64 [N]; NaN where no differential was handed in."""
        out = np.where(t.ended, np.nan, 0.0)
        if t.differential is None:
            return out
        who = np.flatnonzero(t.ended & ~np.isnan(t.differential).any(1))
        p = t.differential[who].astype(np.float64)
        out[who] = self.score(p, t.truth[who]) - self.price * (p > 0).sum(1)
        return out

    def score(self, p: NDArray[np.float64], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """[m] of probabilities [m, D], before the price."""
        raise NotImplementedError

    def _priced(self, unlisted: float, last: float, best: float) -> tuple[float, float]:
        """Bounds from scores: the truth is left out of D - 1 listed, is the last of D listed, stands alone; 0 before the end."""
        most = max(best - self.price, 0.0)
        if not self.price:
            return min(unlisted, last), most
        if self.tables is None:
            return -math.inf, most
        D = self.tables.num_conditions
        return min(unlisted - self.price * (D - 1), last - self.price * D), most


@dataclass(frozen=True)
class ReciprocalRank(_OfDifferential):
    """Paid at the end, in (-price * D, 1). Fixtures: the truth alone 1 - price, not listed -price * listed, no differential NaN."""

    name: ClassVar[str] = "reciprocal_rank"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least is known once the number of conditions is."""
        return self._priced(0.0, 0.0 if self.tables is None else 1.0 / self.tables.num_conditions, 1.0)

    def score(self, p: NDArray[np.float64], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """1 / rank."""
        own = of_truth(p, truth)
        return np.asarray((own > 0) / (p >= own[:, None]).sum(1))


@dataclass(frozen=True)
class LogScore(_OfDifferential):
    """Paid at the end, in nats. Fixtures: the truth alone -price, not listed log 1e-6 - price * listed, no differential NaN."""

    name: ClassVar[str] = "log_score"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least is known once the number of conditions is."""
        return self._priced(math.log(FLOOR), math.log(FLOOR), 0.0)

    def score(self, p: NDArray[np.float64], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """log p(truth)."""
        return np.log(np.clip(of_truth(p, truth), FLOOR, 1.0))


@dataclass(frozen=True)
class BrierScore(_OfDifferential):
    """Paid at the end, in (-price * D, 1). Fixtures: the truth alone 1 - price, another alone -price, no differential NaN."""

    name: ClassVar[str] = "brier_score"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least is known once the number of conditions is."""
        return self._priced(0.0, 0.0, 1.0)

    def score(self, p: NDArray[np.float64], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """1 - half of the squared distance."""
        p = p / p.sum(1, keepdims=True)
        apart = p.copy()
        apart[np.arange(truth.size), truth] -= 1.0
        return 1.0 - (apart**2).sum(1) / 2.0
