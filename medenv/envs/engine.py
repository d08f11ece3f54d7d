"""The consultation engine: N consultations at once, in arrays. Every environment of medenv is a view of it.

Rules (tested as invariants): an answer is a pure function of (case, finding); every action takes a turn; an invalid action
is counted and changes nothing else; on the last turn only diagnosing and referring are open; evidence, asked and mask live in one
int8 buffer; beliefs are row-wise reductions, so a batch equals its consultations one by one, bit for bit.

Does not cover: Gymnasium's interface (`consult`, `vector`), words (`medenv.patients`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medenv.belief.posterior import posterior, posterior_one
from medenv.cases.source import NO_OPENING, CaseSource
from medenv.envs.steps import NONE, Step, StepOne
from medenv.errors import EpisodeError, MedenvError
from medenv.hashing import mix, seed_for
from medenv.knowledge.compiled import IMPOSSIBLE
from medenv.rewards.base import Transition
from medenv.rewards.ledger import Ledger
from medenv.rewards.mix import RewardMix


class Engine:
    """State of N consultations over one case source.

    Arrays (N consultations, S slots, Q questions, D conditions, A = Q + D + 1 actions): `buffer` int8 [N, S + Q + A + 1]
    (evidence, asked, mask, one spare column), `scores` and `belief` float32 [N, D], `entropy` float32 [N] in nats.
    """

    def __init__(self, source: CaseSource, rewards: RewardMix, num: int, max_turns: int) -> None:
        if num < 1:
            raise MedenvError(f"num_envs is {num}: give at least 1")
        if max_turns < 1:
            raise MedenvError(f"max_turns is {max_turns}: give at least 1")
        self.source, self.tables, self.rewards = source, source.tables, rewards
        self.num, self.max_turns = num, int(max_turns)
        t = self.tables
        self.S, self.Q, self.D = t.num_slots, t.num_questions, t.num_conditions
        self.A = self.Q + self.D + 1
        self.refer_action = self.A - 1
        self.asked_at, self.mask_at, self.spare = self.S, self.S + self.Q, self.S + self.Q + self.A
        self._template = self._templates()
        self._kids = np.where(source.children >= 0, source.children, self.A).astype(np.int32)
        self._has_kids = np.asarray((source.children >= 0).any(1))
        self._composite = np.zeros(source.row_slot.size, bool)
        self._composite[list(source.more_slots)] = True
        self._slot_width = np.diff(t.slot_start)
        self._cost = t.cost
        self._everyone, self._nobody = np.arange(num), np.zeros(num, bool)
        self._work, self._spare_belief = np.empty((num, self.D), np.float32), np.empty((num, self.D), np.float32)
        self.buffer = np.zeros((num, self.spare + 1), np.int8)
        self.scores = np.zeros((num, self.D), np.float32)
        self.belief = np.zeros((num, self.D), np.float32)
        self.entropy = np.zeros(num, np.float32)
        self.shift = np.zeros(num, np.float32)  # what the belief was computed with: it changes only with an answer,
        self.normaliser = np.zeros(num, np.float32)  # to this log-normaliser, so that equal scores give equal bits
        self.cell, self.truth = np.zeros(num, np.int32), np.zeros(num, np.int32)
        self.complaint = np.zeros(num, np.int64)
        self.demographics = np.zeros((num, 3), np.float32)
        self.turns_left = np.zeros(num, np.int32)
        self.handle = np.zeros(num, np.uint64)
        self.done = np.ones(num, bool)
        self.started = False
        self.stream, self.episode = np.zeros(num, np.uint64), np.zeros(num, np.uint64)
        self.differential: NDArray[np.float32] | None = None
        self.ledger = Ledger(source, num, self.max_turns) if rewards.needs_ledger else None

    def _templates(self) -> NDArray[np.int8]:
        """[C, width] the buffer of a consultation before its opening statement, for each demographic cell."""
        t = self.tables
        out = np.zeros((t.allowed.shape[0], self.spare + 1), np.int8)
        out[:, : self.S] = -1
        root = np.array([f.parent is None for f in t.base.findings])
        out[:, self.mask_at : self.mask_at + self.Q] = t.allowed * root
        out[:, self.mask_at + self.Q : self.spare] = 1
        return out

    # Starting

    def seed(self, seeds: NDArray[np.integer] | Sequence[int], who: NDArray[np.integer] | None = None) -> None:
        """Start streams `who` (default all) from one seed each; the first episode of each comes next."""
        who = self._everyone if who is None else who
        self.stream[who], self.episode[who] = np.array([mix(seed_for(int(s), "stream")) for s in seeds], np.uint64), 0

    def begin(self, who: NDArray[np.integer] | None = None, handles: NDArray[np.uint64] | None = None) -> None:
        """Start consultations `who` (default all) on given cases, or on the next ones of their streams."""
        who = self._everyone if who is None else who
        if handles is None:
            handles = self.source.next(self.stream[who], self.episode[who])
            self.episode[who] += np.uint64(1)
        self._open(who, handles)
        self._refresh(who)
        self.started = True

    def begin_one(self, handle: int | None = None) -> None:
        """`begin` for a batch of one, in plain numbers: the same bits."""
        t = self.tables
        if handle is None:
            handle = self.source.next_one(int(self.stream[0]), int(self.episode[0]))
            self.episode[0] += np.uint64(1)
        cell, truth, opening, age = self.source.open_one(handle)
        self.handle[0], self.cell[0], self.truth[0] = handle, cell, truth
        self.buffer[0] = self._template[cell]
        told = opening != NO_OPENING
        self.scores[0] = t.opening_log[cell, t.opening_of[opening] if told else -1]
        self.complaint[0] = opening if told else self.Q
        self.demographics[0] = (age, cell & 1, cell // (2 * len(t.base.age_bands)))
        self.turns_left[0], self.done[0], self.started, self.differential = self.max_turns, False, True, None
        self.shift[0] = 0.0
        if self.ledger is not None:
            self.ledger.begin(self._everyone, handle, truth, cell, opening if told else NONE, self.scores)
        if told:
            self._disclose_one(opening, int(t.row_of[cell, opening]) + 1)
        if self.max_turns == 1:
            self.buffer[0, self.mask_at : self.mask_at + self.Q] = 0
        belief, entropy, self.normaliser[0] = posterior_one(self.scores[0], self.shift[0])
        self.belief, self.entropy = belief[None], np.array([entropy], np.float32)

    def _open(self, who: NDArray[np.integer], handles: NDArray[np.uint64]) -> None:
        opened, t = self.source.open(handles), self.tables
        self.handle[who], self.cell[who], self.truth[who] = handles, opened.cell, opened.truth
        self.buffer[who] = self._template[opened.cell]
        opening = opened.opening
        self.scores[who] = t.opening_log[opened.cell, np.where(opening == NO_OPENING, -1, t.opening_of[opening])]
        self.complaint[who] = np.where(opening == NO_OPENING, self.Q, opening)
        self.shift[who] = 0.0
        if self.ledger is not None:
            self.ledger.begin(who, handles, opened.truth, opened.cell, opening, self.scores[who])
        sex, setting = opened.cell & 1, opened.cell // (2 * len(t.base.age_bands))
        self.demographics[who] = np.stack([opened.age, sex, setting], 1)
        self.turns_left[who] = self.max_turns
        self.done[who] = False
        if self.differential is not None:
            self.differential[who] = np.nan
        told = who if (opening >= 0).all() else who[opening >= 0]
        if told.size:
            q = self.complaint[told]
            self._disclose(told, q, t.row_of[self.cell[told], q] + 1)
        if self.max_turns == 1:
            self.buffer[who, self.mask_at : self.mask_at + self.Q] = 0

    def _refresh(self, who: NDArray[np.integer] | None = None) -> None:
        if who is None or who.size == self.num:
            old = self.belief
            self.belief, self.entropy, self.normaliser = posterior(self.scores, self.shift, self._spare_belief, self._work)
            self._spare_belief = old
        elif who.size:
            self.belief[who], self.entropy[who], self.normaliser[who] = posterior(self.scores[who], self.shift[who])

    def _disclose(self, who: NDArray[np.integer], question: NDArray[np.integer], row: NDArray[np.integer]) -> None:
        """Write answers into evidence, asked and mask."""
        t, width = self.tables, self.buffer.shape[1]
        flat = self.buffer.reshape(-1)
        start = who * width
        flat[start + (self.asked_at + question)] = 1
        flat[start + (self.mask_at + question)] = 0
        known = row != t.unknown_row
        slots, widths = start + t.slot_start[question], self._slot_width[question]
        flat[slots if known.all() else slots[known]] = 0
        wide = np.flatnonzero((widths > 1) & known)
        if wide.size:
            n = widths[wide]
            offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            flat[np.repeat(slots[wide], n) + offset] = 0
        slot = self.source.row_slot[row]
        one = np.flatnonzero(slot >= 0)
        flat[start[one] + slot[one]] = 1
        if self.source.more_slots:
            for i in np.flatnonzero(self._composite[row]):
                flat[start[i] + self.source.more_slots[int(row[i])]] = 1
        parent = np.flatnonzero(self._has_kids[row])
        if parent.size:
            kids = self._kids[row[parent]]
            cell = self.cell[who[parent]]
            allowed = np.where(kids < self.A, t.allowed[cell[:, None], np.minimum(kids, self.Q - 1)], 0)
            flat[start[parent, None] + self.mask_at + kids] = allowed

    # Stepping

    def step(self, action: NDArray[np.integer], resetting: NDArray[np.bool_] | None = None) -> Step:
        """One turn for everybody. Rows of `resetting` ignore their action and begin their next case instead."""
        if not self.started:
            raise EpisodeError("step before reset: call reset() first")
        action = np.asarray(action)
        inside = (action >= 0) & (action < self.A)
        index = action if inside.all() else np.where(inside, action, self.A)
        live = ~self.done
        valid = self.buffer.reshape(-1)[self._everyone * self.buffer.shape[1] + self.mask_at + index] == 1
        valid &= live
        asking = index < self.Q
        ask = valid & asking
        row = np.full(self.num, NONE, np.int64)
        belief, entropy = self.belief, self.entropy
        cost = np.zeros(self.num, np.float32)
        answered = ask
        who = np.flatnonzero(ask)
        if who.size:
            question = index[who]
            answer = self.source.rows(self.handle[who], self.truth[who], self.cell[who], question)
            row[who] = answer
            self.shift[who] = self.normaliser[who]
            heard = np.full(self.num, self.tables.unknown_row)
            heard[who] = answer
            self.scores += np.take(self.source.log_likelihood, heard, axis=0, out=self._work, mode="clip")
            if self.ledger is not None:
                self.ledger.write(who, self.max_turns - self.turns_left[who], question, answer)
            self._disclose(who, question, answer)
            cost[who] = self._cost[question]
            silent = answer == self.tables.unknown_row
            if silent.any():
                answered = ask.copy()
                answered[who[silent]] = False
        invalid = live > valid
        repeated = invalid & asking
        again = np.flatnonzero(repeated)
        repeated[again] = self.buffer[again, self.asked_at + index[again]] == 1
        self.turns_left -= live
        closed = valid > ask
        ended = (closed | (self.turns_left <= 0)) & live
        last = np.flatnonzero(self.turns_left == 1)
        if last.size:
            self.buffer[last, self.mask_at : self.mask_at + self.Q] = 0
        self.done |= ended
        if resetting is not None and resetting.any():
            fresh = np.flatnonzero(resetting)
            handles = self.source.next(self.stream[fresh], self.episode[fresh])
            self.episode[fresh] += np.uint64(1)
            self._open(fresh, handles)
        self._refresh()
        referred = closed & (index == self.refer_action)
        transition = Transition(
            turn=live,
            question=np.where(ask, index, NONE),
            asked=ask,
            answered=answered,
            invalid=invalid,
            malformed=self._nobody if index is action else live > inside,
            repeated=repeated,
            diagnosis=np.where(closed & ~referred, index - self.Q, NONE),
            referred=referred,
            ended=ended,
            truth=self.truth,
            cost=cost,
            entropy_before=entropy,
            entropy_after=self.entropy,
            belief_before=belief,
            belief_after=self.belief,
            differential=self.differential,
            ledger=self.ledger,
        )
        reward, components = self.rewards.score(transition)
        if self.differential is not None:  # it was for this turn; it stays only where it was the last word
            self.differential = np.where(ended[:, None], self.differential, np.float32(np.nan))
        return Step(transition, reward, components, _scored(components, live), row)

    def step_one(self, action: int) -> StepOne:
        """`step` for a batch of one, in plain numbers: the scalar environment's fast path, the same bits."""
        buffer, source = self.buffer[0], self.source
        valid = 0 <= action < self.A and buffer[self.mask_at + action] == 1
        ask = valid and action < self.Q
        row, before, entropy = NONE, self.belief, self.entropy
        flags = ["turn"] if valid else ["turn", "invalid"]
        if not valid:
            if not 0 <= action < self.A:
                flags.append("malformed")
            elif action < self.Q and buffer[self.asked_at + action] == 1:
                flags.append("repeated")
        if ask:
            flags.append("asked")
            row = source.row(int(self.handle[0]), int(self.truth[0]), int(self.cell[0]), action)
            scores = self.scores[0]
            scores += source.log_likelihood[row]
            self._disclose_one(action, row)
            if self.ledger is not None:
                self.ledger.write(self._everyone, self.max_turns - self.turns_left, np.array([action]), np.array([row]))
            self.shift[0] = self.normaliser[0]
            belief, h, self.normaliser[0] = posterior_one(scores, self.shift[0])
            self.belief, self.entropy = belief[None], np.array([h], np.float32)
            if row != self.tables.unknown_row:
                flags.append("answered")
        left = int(self.turns_left[0]) - 1
        self.turns_left[0] = left
        closed = valid and not ask
        ended = closed or left <= 0
        if ended:
            self.done[0] = True
            flags.append("ended")
        if left == 1:
            buffer[self.mask_at : self.mask_at + self.Q] = 0
        referred = closed and action == self.refer_action
        if referred:
            flags.append("referred")
        transition = Transition(
            turn=_TRUE,
            question=np.array([action]) if ask else _NEITHER,
            asked=_TRUE if ask else _FALSE,
            answered=_TRUE if "answered" in flags else _FALSE,
            invalid=_FALSE if valid else _TRUE,
            malformed=_TRUE if "malformed" in flags else _FALSE,
            repeated=_TRUE if "repeated" in flags else _FALSE,
            diagnosis=np.array([action - self.Q]) if closed and not referred else _NEITHER,
            referred=_TRUE if referred else _FALSE,
            ended=_TRUE if ended else _FALSE,
            truth=self.truth,
            cost=self._cost[action : action + 1] if ask else _NOTHING,
            entropy_before=entropy,
            entropy_after=self.entropy,
            belief_before=before,
            belief_after=self.belief,
            differential=self.differential,
            ledger=self.ledger,
        )
        reward, components = self.rewards.score_one(transition, flags)
        if not ended:
            self.differential = None
        return StepOne(transition, row, reward, components, not valid, ended)

    def _disclose_one(self, question: int, row: int) -> None:
        t, buffer, source = self.tables, self.buffer[0], self.source
        buffer[self.asked_at + question] = 1
        buffer[self.mask_at + question] = 0
        if row != t.unknown_row:
            buffer[t.slot_start[question] : t.slot_start[question + 1]] = 0
            slot = source.row_slot[row]
            if slot >= 0:
                buffer[slot] = 1
        if self._composite[row]:
            buffer[source.more_slots[row]] = 1
        if self._has_kids[row]:
            for kid in source.children[row]:
                if kid >= 0:
                    buffer[self.mask_at + kid] = t.allowed[self.cell[0], kid]

    # Looking

    def views(self, copy: bool = True) -> dict[str, NDArray]:
        """The parts of an observation that are arrays: evidence, asked, action_mask, complaint, demographics, turns_left."""
        buffer = self.buffer.copy() if copy else self.buffer
        return {
            "evidence": buffer[:, : self.S],
            "asked": buffer[:, self.asked_at : self.mask_at],
            "complaint": self.complaint.copy(),
            "demographics": self.demographics.copy(),
            "turns_left": self.turns_left.astype(np.float32)[:, None],
            "action_mask": buffer[:, self.mask_at : self.spare],
        }

    def submit(self, probabilities: NDArray) -> None:
        """Take the doctors' differentials [N, D] for this turn (NaN rows: none given)."""
        p = np.asarray(probabilities, np.float32)
        if p.shape != (self.num, self.D):
            raise MedenvError(f"a differential has shape [{self.num}, {self.D}], got {list(p.shape)}")
        given = ~np.isnan(p).all(1)
        total = p[given].sum(1)
        if (p[given] < 0).any() or np.isnan(total).any() or (np.abs(total - 1) > 1e-3).any():
            raise MedenvError(f"a differential must be probabilities >= 0 that sum to 1; sums seen: {np.round(total[:3], 4).tolist()}")
        self.differential = p.copy()

    def no_condition_fits(self) -> NDArray[np.bool_]:
        """[N] whether every condition is excluded by an answer of probability 0."""
        return self.normaliser < IMPOSSIBLE


_TRUE, _FALSE = np.ones(1, bool), np.zeros(1, bool)
_NOTHING, _NEITHER = np.zeros(1, np.float32), np.array([NONE])


def _scored(components: dict[str, NDArray[np.float64]], live: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] whether every due component was scored, `live` itself where all were; a row that had ended already is not."""
    missing = np.isnan(sum(components.values()))
    return live & ~missing if missing.any() else live
