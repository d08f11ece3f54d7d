"""What the tests of rewards share: a small base with dangers in it, ledgers and transitions written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medenv.cases.sampled import SampledCases
from medenv.knowledge.base import Condition, Finding, KnowledgeBase, Link
from medenv.knowledge.compiled import Compiled, compiled
from medenv.rewards.base import Transition
from medenv.rewards.ledger import Ledger


def wary_base() -> KnowledgeBase:
    """Three conditions of urgency 1, 3 and 5, the first must not be missed; red flags, one under a parent, one for women alone."""
    return KnowledgeBase(
        name="wary",
        version=1,
        conditions=(
            Condition("bleed", "Bleed", {"primary": 0.5}, age=(1.0,), triage=1, must_not_miss=True),
            Condition("migraine", "Migraine", {"primary": 0.3}, age=(1.0,), triage=3),
            Condition("cold", "Cold", {"primary": 0.2}, age=(1.0,), triage=5),
        ),
        findings=(
            Finding("fever", "fever", background=(0.95, 0.05), complaint=1.0),
            Finding("stiff_neck", "stiff neck", background=(0.9, 0.1), complaint=0.2, red_flag=True),
            Finding("headache", "headache", background=(0.8, 0.2), complaint=1.0),
            Finding(
                "onset",
                "onset",
                "categorical",
                ("sudden", "slow"),
                parent="headache",
                activated_by=("yes",),
                background=(0.1, 0.9),
                red_flag=True,
            ),
            Finding("scan", "scan", kind="order", cost=2.5, money=50.0, delay=2.0, invasiveness=0.1),
            Finding("pregnant", "pregnant", sex="female", background=(0.9, 0.1)),
            Finding("colour", "colour", "categorical", ("white", "red", "blue"), background=(0.6, 0.3, 0.1)),
            Finding("cough", "cough", background=(0.9, 0.1), complaint=1.0),
            Finding("bleeding", "bleeding", kind="examine", sex="female", red_flag=True, invasiveness=0.1),
        ),
        links=(
            Link("bleed", "fever", {"yes": 0.3}),
            Link("bleed", "stiff_neck", {"yes": 0.8}),
            Link("bleed", "headache", {"yes": 0.9}),
            Link("bleed", "onset", {"sudden": 0.9}),
            Link("bleed", "scan", {"yes": 0.95}),
            Link("bleed", "bleeding", {"yes": 0.5}),
            Link("migraine", "headache", {"yes": 0.9}),
            Link("migraine", "stiff_neck", {"yes": 0.15}),
            Link("cold", "fever", {"yes": 0.4}),
            Link("cold", "cough", {"yes": 0.5}),
            Link("cold", "scan", {"yes": 0.5}),
            Link("cold", "pregnant", {"yes": 0.98}),
        ),
    )


TABLES: Compiled = compiled(wary_base(), 0.0)
MALE, FEMALE = TABLES.cell(30, "male", "primary"), TABLES.cell(30, "female", "primary")
PRIOR = np.array([[0.5, 0.3, 0.2]])


def ledger(
    *told: Mapping[str, str], opening: str = "", cell: int = MALE, truth: tuple[int, ...] = (0, 1, 2), prior: Any = PRIOR, turns: int = 8
) -> Ledger:
    """The ledger of three consultations; `told` by each (or by all, if it is one) in this order, as finding: value."""
    base, out = TABLES.base, Ledger(SampledCases(TABLES), 3, turns)
    out.begin(np.arange(3), 0, truth, cell, base.finding_index[opening] if opening else -1, np.log(prior))
    for i in range(3):
        for turn, (name, value) in enumerate((told[i] if len(told) == 3 else told[0]).items()):
            q = base.finding_index[name]
            row = TABLES.row_of[cell, q] + base.findings[q].values.index(value)
            out.write(np.array([i]), np.array([turn]), np.array([q]), np.array([row]))
    return out


def transition(**changes: Any) -> Transition:
    """Three consultations: an answer, a repeated question, an end with a diagnosis; changed by `changes`."""
    before = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]], np.float32)
    after = np.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]], np.float32)
    values: dict[str, Any] = {
        "turn": np.ones(3, bool),
        "malformed": np.zeros(3, bool),
        "repeated": np.array([False, True, False]),
        "question": np.array([4, -1, -1]),
        "asked": np.array([True, False, False]),
        "answered": np.array([True, False, False]),
        "invalid": np.array([False, True, False]),
        "diagnosis": np.array([-1, -1, 2]),
        "referred": np.array([False, False, False]),
        "ended": np.array([False, False, True]),
        "truth": np.array([0, 1, 2]),
        "cost": np.array([2.5, 0.0, 0.0], np.float32),
        "entropy_before": entropy(before),
        "entropy_after": entropy(after),
        "belief_before": before,
        "belief_after": after,
    }
    return Transition(**values | changes)


def ended(diagnosis: Any = -1, referred: Any = False, **changes: Any) -> dict[str, Any]:
    """Changes that end all three consultations: with these diagnoses, with referrals, or with neither."""
    off = {name: np.zeros(3, bool) for name in ("asked", "answered", "invalid", "repeated")}
    end = {"ended": np.ones(3, bool), "question": np.full(3, -1), "cost": np.zeros(3, np.float32)}
    return off | end | {"diagnosis": np.full(3, diagnosis), "referred": np.full(3, referred)} | changes


def entropy(p: np.ndarray) -> np.ndarray:
    """[n] in nats."""
    return -(p * np.log(np.maximum(p, 1e-30))).sum(1)
