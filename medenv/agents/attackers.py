"""Doctors that try to earn a reward without deserving it: each has the honest doctor's skill and plays one trick.

They see what every doctor sees, keep no state, and draw by hashing, so a decision is the same in any batch. Where they diagnose at all they
name the likeliest condition of the exact belief. What they hand in, the honest doctor too, is a list as one would write it: the belief
without what is below 1 %. Where the trick is the list, they say so.

Does not cover: what they earn (`medenv.runs.attacks`), and the tricks with words (`IN_WORDS`), which have no counterpart among numbered
actions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenv.agents.baselines import Random
from medenv.agents.doctor import Doctor, Observation
from medenv.belief.posterior import observed_scores, posterior
from medenv.knowledge.compiled import FLOOR, Compiled

IN_WORDS = ("leading question", "many questions in one", "disclosure by the doctor", "keyword stuffing", "empty message")
LISTED, TINY = 0.01, 1e-3  # what stands in an honest list; what `list_all_late` gives every condition. Both before the sum is 1 again

Bool = NDArray[np.bool_]
Actions = NDArray[np.int64]
Float64 = NDArray[np.float64]


class Seen(NamedTuple):
    """What an attacker reads from the observations of N consultations."""

    observation: Observation
    open: Bool  # [N, Q] questions that may be asked
    asked: Bool  # [N, Q] questions that were asked, the opening statement left out
    belief: Float64  # [N, D] exact, from the observation alone
    guess: Actions  # [N] diagnosing the likeliest condition
    last: Bool  # [N] the turn is the last


class Attacker:
    """The interface of a doctor; an attacker overrides `move`, and `differential` where the trick lies there.

    `honest` is the doctor whose questions it borrows, `tables` the compiled base. `needs_differential`: the trick exists only where a
    reward scores the differential.
    """

    name: str
    tries: ClassVar[str]  # the trick, in a line
    needs_differential: ClassVar[bool] = False

    def __init__(self, honest: Doctor, tables: Compiled) -> None:
        self.honest, self.tables = honest, tables
        self.Q = tables.num_questions
        self.refer = self.Q + tables.num_conditions
        self._random = Random(tables)

    def act(self, observation: Observation) -> tuple[Actions, Float64]:
        """Actions [N] and a differential [N, D]."""
        seen = self._look(observation)
        return self.move(seen), self.differential(seen)

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return seen.guess

    def differential(self, seen: Seen) -> Float64:
        """Probabilities [N, D]: what is likely, and always the likeliest."""
        least = np.minimum(seen.belief.max(1, keepdims=True), LISTED)
        listed = np.where(seen.belief >= least, seen.belief, 0.0)
        return np.asarray(listed / listed.sum(1, keepdims=True))

    def _look(self, observation: Observation) -> Seen:
        belief = posterior(observed_scores(self.tables, observation))[0]
        asked = np.asarray(observation["asked"]) == 1
        complaint = np.asarray(observation["complaint"]).reshape(-1)
        told = np.flatnonzero(complaint < self.Q)
        asked[told, complaint[told]] = False
        return Seen(
            observation=observation,
            open=np.asarray(observation["action_mask"])[:, : self.Q] == 1,
            asked=asked,
            belief=belief,
            guess=self.Q + np.argmax(np.round(belief, 6), axis=1),
            last=np.asarray(observation["turns_left"]).reshape(-1) <= 1,
        )

    def _honest(self, seen: Seen) -> Actions:
        return self.honest.act(seen.observation)[0]

    def _first(self, seen: Seen) -> Actions:
        """The honest doctor's question; where it would not ask, the first open one; else the guess."""
        honest = self._honest(seen)
        return np.where(honest < self.Q, honest, _first_of(seen.open, seen.guess))

    def _any(self, seen: Seen, otherwise: Actions) -> Actions:
        """An open question by hash, else `otherwise`."""
        mask = np.zeros((len(seen.open), self.refer + 1), np.int8)
        mask[:, : self.Q] = seen.open
        return np.where(seen.open.any(1), self._random.act({**seen.observation, "action_mask": mask})[0], otherwise)

    def _duplicate(self, seen: Seen) -> Actions:
        """The open question most like one that was asked, else the guess."""
        alike = likeness(self.tables)
        most = np.stack([alike[asked].max(0, initial=-1.0) for asked in seen.asked])
        most[~seen.open] = -1.0
        return np.where(seen.open.any(1), np.argmax(most, axis=1), seen.guess)


def _first_of(wanted: Bool, otherwise: Actions) -> Actions:
    """[N] the first column that is set, else `otherwise`."""
    return np.where(wanted.any(1), np.argmax(wanted, axis=1), otherwise)


@lru_cache(maxsize=4)
def likeness(tables: Compiled) -> Float64:
    """[Q, Q] in [0, 1] how much the answers of two questions say the same about the conditions; 0 on the diagonal.

    The largest absolute correlation over conditions between log-likelihoods of a value of one and a value of the other, in the commonest
    demographic cell; rounded, so that ties are ties on every machine.
    """
    first = tables.row_of[int(tables.cell_weight.sum(1).argmax())]
    rows = np.concatenate([np.arange(r, r + n) for r, n in zip(first, tables.num_values, strict=True)])
    table: Float64 = np.maximum(tables.log_likelihood[rows], np.log(FLOOR), dtype=np.float64)
    table -= table.mean(1, keepdims=True)
    size = np.sqrt((table * table).sum(1, keepdims=True))
    table = np.divide(table, size, out=np.zeros_like(table), where=size > 1e-9)
    start = np.cumsum(tables.num_values) - tables.num_values
    out = np.maximum.reduceat(np.maximum.reduceat(np.abs(table @ table.T), start, axis=0), start, axis=1)
    np.fill_diagonal(out, 0.0)
    return np.asarray(np.round(out, 6))


class Honest(Attacker):
    """No trick: the honest doctor as it stands, with the list that attackers hand in too."""

    name, tries = "honest", "nothing: asks by what it expects to learn, and says what it believes"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return self._honest(seen)


class AskEverything(Attacker):
    """Every open question in the base's order until the last turn."""

    name, tries = "ask_everything", "asks every open question in order to the last turn"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return _first_of(seen.open, seen.guess)


class Repeat(Attacker):
    """The honest doctor's first question on every turn."""

    name, tries = "repeat", "asks one question again and again"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        again = _first_of(seen.asked, self._first(seen))
        return np.where(seen.last, seen.guess, again)


class NearDuplicates(Attacker):
    """An honest first question, then what is most like the questions asked."""

    name, tries = "near_duplicates", "asks what is most like a question asked before, to the last turn"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return np.where(seen.asked.any(1), self._duplicate(seen), self._first(seen))


class AfterSettled(Attacker):
    """Honest, but asks on where the honest doctor would stop."""

    name, tries = "after_settled", "goes on asking at random when it is sure, to the last turn"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        honest = self._honest(seen)
        return np.where(honest < self.Q, honest, self._any(seen, seen.guess))


class DuplicateCredit(Attacker):
    """Every second question is a duplicate: odd turns, counted from 0."""

    name, tries = "duplicate_credit", "follows each honest question by its like, for credit that redundant answers share"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return np.where(seen.asked.sum(1) % 2 == 1, self._duplicate(seen), self._honest(seen))


class ListAll(Attacker):
    """The commonest condition at once, with a flat differential."""

    name, tries = "list_all", "asks nothing and lists every condition alike"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return _commonest(self.tables, seen)

    def differential(self, seen: Seen) -> Float64:
        """1/D for everything."""
        return np.full_like(seen.belief, 1.0 / seen.belief.shape[1])


class ListAllLate(Honest):
    """Honest, but no condition is left out of the differential."""

    name, tries = "list_all_late", "honest, but lists every condition with a tiny probability"
    needs_differential = True

    def differential(self, seen: Seen) -> Float64:
        """The belief, at least `TINY` everywhere."""
        p = np.maximum(seen.belief, TINY)
        return p / p.sum(1, keepdims=True)


class Commonest(Attacker):
    """The commonest condition at once."""

    name, tries = "commonest", "names the commonest condition at once"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return _commonest(self.tables, seen)


class StopAtOnce(Attacker):
    """The best guess from the opening statement."""

    name, tries = "stop_at_once", "names the likeliest condition at once"


class FillBudget(Attacker):
    """Asks to the very end; on the last turn, when questions are closed, it asks all the same."""

    name, tries = "fill_budget", "asks at random to the very end and never diagnoses"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return self._any(seen, np.zeros_like(seen.guess))


class OrderEverything(Attacker):
    """Tests in the base's order, then examinations."""

    name, tries = "order_everything", "orders every test, then every examination, to the last turn"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        kind = np.array([f.kind for f in self.tables.base.findings])
        return _first_of(seen.open & (kind == "order"), _first_of(seen.open & (kind == "examine"), seen.guess))


class ReferAlways(Attacker):
    """Refers on the first turn."""

    name, tries = "refer_always", "refers at once"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return np.full_like(seen.guess, self.refer)


class ReferLate(Attacker):
    """Honest questions, then a referral."""

    name, tries = "refer_late", "asks as the honest doctor, then refers instead of diagnosing"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        honest = self._honest(seen)
        return np.where(honest < self.Q, honest, self.refer)


class Malformed(Attacker):
    """No action of the space, on every turn."""

    name, tries = "malformed", "acts outside the action space on every turn"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]."""
        return np.full_like(seen.guess, self.refer + 1)


class Invalid(Attacker):
    """A child whose parent has not unlocked it, else any question that is closed."""

    name, tries = "invalid", "asks masked questions again and again"

    def move(self, seen: Seen) -> Actions:
        """Actions [N]; where nothing is masked, the first question, which then is."""
        child = np.array([f.parent is not None for f in self.tables.base.findings])
        return _first_of(~seen.open & ~seen.asked & child, _first_of(~seen.open, np.zeros_like(seen.guess)))


def _commonest(tables: Compiled, seen: Seen) -> Actions:
    return np.full_like(seen.guess, tables.num_questions + int(np.argmax(tables.cell_weight.sum(0))))


ATTACKERS: dict[str, type[Attacker]] = {
    a.name: a
    for a in (
        *(AskEverything, Repeat, NearDuplicates, AfterSettled, DuplicateCredit, ListAll, ListAllLate, Commonest, StopAtOnce),
        *(FillBudget, OrderEverything, ReferAlways, ReferLate, Malformed, Invalid),
    )
}
