"""What the scalar and the vector environment share: their arguments, spaces, names and the engine behind them.

Does not cover: Gymnasium's calls (`consult`, `vector`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from medenv.cases.case import Case
from medenv.cases.named import case_source
from medenv.cases.sampled import SampledCases
from medenv.cases.source import ALL, CaseSource
from medenv.envs.copies import imagined
from medenv.envs.engine import Engine
from medenv.errors import CaseError, KnowledgeError, MedenvError, RunError, unknown
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.patients.scripted import Patient, ScriptedPatient
from medenv.rewards.mix import DEFAULT, RewardMix, parse_mix

DDXPLUS = "ddxplus"  # with MEDENV_DDXPLUS=DIR in the environment


class Setup:
    """The arguments of an environment, checked and resolved. Attributes: base, tables, source, rewards, patient, spaces."""

    def __init__(
        self,
        knowledge: str | KnowledgeBase = "builtin@0",
        cases: str | Sequence[Case] | CaseSource = "sampled",
        split: str = "train",
        reward: str | Mapping[str, Any] | RewardMix = DEFAULT,
        max_turns: int = 20,
        noise: float = 0.02,
        persona: str | Patient = "plain",
        difficulty: float = 0.0,
        setting: str | None = None,
        complaint: str | None = None,
        observe_belief: bool = False,
    ) -> None:
        if knowledge == DDXPLUS:
            if not os.environ.get("MEDENV_DDXPLUS"):
                raise KnowledgeError(
                    "the DDXPlus preset needs a DDXPlus release: pass knowledge='ddxplus:DIR', or set MEDENV_DDXPLUS=DIR "
                    "(release_conditions.json and release_evidences.json with a training file or conditional_tables.json)"
                )
            knowledge = f"ddxplus:{os.environ['MEDENV_DDXPLUS']}"
        self.base = knowledge_base(knowledge)
        self.tables: Compiled = compiled(self.base, noise, difficulty, setting, complaint)
        self.source = case_source(cases, self.tables, split)
        self.rewards = parse_mix(reward).bound(self.tables)
        if not isinstance(observe_belief, bool):
            raise MedenvError(f"observe_belief is {observe_belief!r}: give true or false")
        self.patient: Patient = ScriptedPatient(self.base, persona) if isinstance(persona, str) else persona
        if isinstance(max_turns, bool) or not isinstance(max_turns, int | np.integer):
            raise MedenvError(f"max_turns is {max_turns!r}: give an integer of at least 1")
        self.max_turns, self.observe_belief = int(max_turns), observe_belief
        self.num_questions, self.num_conditions = self.tables.num_questions, self.tables.num_conditions
        self.num_actions = self.num_questions + self.num_conditions + 1

    def engine(self, num: int) -> Engine:
        """A fresh engine of `num` consultations."""
        return Engine(self.source, self.rewards, num, self.max_turns)

    def imagined(self, engine: Engine, index: int, num: int, seed: int) -> Engine:
        """See `copies.imagined`; the patients are always drawn from the base."""
        return imagined(engine, index, num, seed, SampledCases(self.tables, ALL))

    def observation_space(self) -> spaces.Dict:
        """The space of one observation."""
        settings = max(2, len(self.base.settings))  # Gymnasium warns of a range of one point
        highest = np.array([self.base.oldest, 1, settings - 1], np.float32)
        parts: dict[str, spaces.Space] = {
            "evidence": spaces.Box(-1, 1, (self.tables.num_slots,), np.int8),
            "asked": spaces.MultiBinary(self.num_questions),
            "complaint": spaces.Discrete(self.num_questions + 1),
            "demographics": spaces.Box(np.zeros(3, np.float32), highest, dtype=np.float32),
            "turns_left": spaces.Box(0.0, float(self.max_turns), (1,), np.float32),
            "action_mask": spaces.MultiBinary(self.num_actions),
        }
        if self.observe_belief:
            parts["belief"] = spaces.Box(0.0, 1.0, (self.num_conditions,), np.float32)
        return spaces.Dict(parts)

    def action_meanings(self) -> list[str]:
        """One line per action: `ask: …`, `examine: …`, `order: …`, `diagnose: …`, and `refer` last."""
        questions = [f"{f.kind}: {f.name}" for f in self.base.findings]
        return [*questions, *(f"diagnose: {c.name}" for c in self.base.conditions), "refer"]

    def handles(self, case: Any, num: int) -> NDArray[np.uint64]:
        """Handles [num] of `options["case"]`: one id for everybody, or a list of `num` ids."""
        ids = [case] * num if isinstance(case, str) else list(case) if isinstance(case, Sequence | np.ndarray) else None
        if ids is None or len(ids) != num or not all(isinstance(i, str) for i in ids):
            raise CaseError(
                f"options['case'] is {case!r}: give one case id (info['case_id'] of a finished consultation), or a list of {num}"
            )
        return np.array([self.source.handle(i) for i in ids], np.uint64)

    def values(self, row: int) -> tuple[str, ...]:
        """The names of the values that an answer's row stands for; none: unknown."""
        if row == self.tables.unknown_row:
            return ()
        slots = self.source.more_slots.get(row)
        if slots is None:
            return (self.base.findings[self.tables.row_finding[row]].values[self.tables.row_value[row]],)
        q = int(np.searchsorted(self.tables.slot_start, slots[0], side="right")) - 1
        return tuple(self.base.findings[q].values[s - self.tables.slot_start[q]] for s in slots)


class Names:
    """What both environments tell of themselves, from their `setup`."""

    setup: Setup

    @property
    def num_questions(self) -> int:
        """Q: actions 0 … Q-1 ask."""
        return self.setup.num_questions

    @property
    def num_conditions(self) -> int:
        """D: actions Q … Q+D-1 diagnose."""
        return self.setup.num_conditions

    @property
    def tables(self) -> Compiled:
        """The compiled knowledge base."""
        return self.setup.tables

    def action_meanings(self) -> list[str]:
        """One line for each action."""
        return self.setup.action_meanings()


def check_options(options: Mapping[str, Any] | None, known: Sequence[str] = ("case",)) -> Mapping[str, Any]:
    """Reset options, unknown ones refused."""
    extra = set(options or {}) - set(known)
    if extra:
        raise CaseError(f"reset options {sorted(extra)} are unknown here: use {' or '.join(known)}")
    return options or {}


def check_arguments(given: Iterable[str], words: bool = False) -> None:
    """RunError for a name that is no argument of a training's environment (`words`: of MedConsultText-v0). split is the trainer's own."""
    allowed = [*(name for name in inspect.signature(Setup).parameters if name != "split"), *(("format", "max_chars") if words else ())]
    for name in given:
        if name not in allowed:
            why = "; training uses train, validation uses validation" if name == "split" else ""
            raise RunError(f"{unknown('environment argument', name, allowed)}{why}")
