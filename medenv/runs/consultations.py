"""Run consultations in a batch and write down what happened: the loop under `evaluate` and `replay`.

Does not cover: which cases are met (`evaluate.assign`), files (`records`), scores (`evaluate.summarise`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from medenv.agents.doctor import Doctor
from medenv.agents.rollouts import DoctorInWords, Room
from medenv.envs.dialogue import MAX_CHARS
from medenv.envs.engine import Engine
from medenv.envs.registration import TEXT_IDS, environment_ids
from medenv.envs.setup import Setup
from medenv.envs.steps import NONE, Step
from medenv.errors import unknown
from medenv.knowledge.base import SEXES, KnowledgeBase
from medenv.rewards.mix import RewardMix
from medenv.runs.records import Record, configuration_hash


class Choice(NamedTuple):
    """What was chosen for m open consultations."""

    actions: NDArray[np.integer]  # [m]
    differential: NDArray[np.floating] | None  # [m, D], NaN rows: none
    failures: dict[int, str]  # position in [0, m): what went wrong


Observation = Mapping[str, NDArray[Any]]
Choose = Callable[[Observation, NDArray[np.intp], int], Choice]  # (observation of m, their indices, turn)


def make_setup(env_id: str, given: Mapping[str, Any]) -> tuple[Setup, dict[str, Any]]:
    """The environment's setup, and all of its arguments as JSON: what was given, the preset of the id, the defaults."""
    if env_id not in (*environment_ids(), *TEXT_IDS):
        raise unknown("environment", env_id, [*environment_ids(), *TEXT_IDS])
    defaults = {k: p.default for k, p in inspect.signature(Setup).parameters.items()}
    words: dict[str, Any] = {"format": "any", "max_chars": MAX_CHARS} if env_id in TEXT_IDS else {}
    for key in given:
        if key not in defaults | words:
            raise unknown("environment argument", key, defaults | words)
    arguments = defaults | words | dict(gym.spec(env_id).kwargs) | dict(given)
    setup = Setup(**{k: v for k, v in arguments.items() if k not in words})
    return setup, {k: _described(v) for k, v in arguments.items()}


def consultations(setup: Setup, handles: NDArray[np.uint64], choose: Choose) -> list[Record]:
    """Run the cases `handles` [n] to their ends in one batch; the parts of their records that come from the consultation.

    A differential is handed to the environment with the action that ends a consultation.
    """
    engine = setup.engine(len(handles))
    engine.begin(handles=np.asarray(handles, np.uint64))
    made = started(setup, engine)
    returns = np.zeros(len(handles))
    for turn in range(setup.max_turns):
        who = np.flatnonzero(~engine.done)
        if not who.size:
            break
        choice = choose({k: v[who] for k, v in _observation(setup, engine).items()}, who, turn)
        for position, failure in choice.failures.items():
            made[who[position]]["failure"] = failure
            engine.done[who[position]] = True
        actions = np.zeros(len(handles), np.int64)
        actions[who] = choice.actions
        differential = np.full((len(handles), engine.D), np.nan, np.float32)
        if choice.differential is not None:
            closing = (choice.actions >= engine.Q) | (engine.turns_left[who] == 1)
            differential[who[closing]] = choice.differential[closing]
            engine.submit(differential)
        live = np.flatnonzero(~engine.done)
        before = engine.entropy.copy()
        step = engine.step(actions)
        returns += step.reward
        _note(setup, engine, step, made, live, actions, before)
        for i in live[step.transition.ended[live]]:
            made[i]["end"] = _end(setup, engine, made[i], int(i), int(actions[i]), float(returns[i]), differential[i])
    return made


def in_words(room: Room, handles: NDArray[np.uint64], doctor: DoctorInWords, seeds: Sequence[int]) -> list[Record]:
    """Run the cases `handles` [n] in words: records as `consultations` makes them of the engine's turns, with `messages`, [who, text] each.

    What the doctor's messages came to is taken again by an engine of its own, so records in words and in numbers hold the same.
    """
    setup = room.setup
    held = room.hold([setup.source.token(int(h)) for h in handles], doctor, seeds)

    def choose(observation: Observation, who: NDArray[np.intp], turn: int) -> Choice:
        over = {k: held[i].failure or "the consultation was cut" for k, i in enumerate(who) if turn >= len(held[i].actions)}
        return Choice(np.array([held[i].actions[turn] if k not in over else 0 for k, i in enumerate(who)]), None, over)

    made = consultations(setup, handles, choose)
    for record, h in zip(made, held, strict=True):
        record["messages"] = [[who, text] for who, text in h.transcript]
    return made


def component_means(records: Sequence[Record]) -> dict[str, float | None]:
    """Weighted sum of each reward component per consultation, averaged; None where one was not scored. Failures are left out."""
    ended = [r for r in records if r["end"] is not None and r["turns"]]
    names = list(ended[0]["turns"][0]["components"]) if ended else []
    out: dict[str, float | None] = {}
    for name in names:
        values = [t["components"][name] for r in ended for t in r["turns"]]
        out[name] = None if None in values else math.fsum(values) / len(ended)
    return out


def asking(doctor: Doctor, setup: Setup) -> Choose:
    """`Choose` by a doctor. What a doctor does wrong is a failure of the consultations concerned, found by asking one by one."""

    def choose(observation: Observation, who: NDArray[np.intp], turn: int) -> Choice:
        try:
            return _checked(*doctor.act(observation), len(who), setup.num_conditions)
        except Exception as error:  # a doctor is foreign code: whatever it raises is data, never a score
            if len(who) == 1:
                return Choice(np.zeros(1, np.int64), None, {0: f"{type(error).__name__}: {error}"})
        parts = [choose({k: v[i : i + 1] for k, v in observation.items()}, who[i : i + 1], turn) for i in range(len(who))]
        given = [p.differential for p in parts]
        none = np.full((1, setup.num_conditions), np.nan)
        differential = None if all(g is None for g in given) else np.concatenate([none if g is None else g for g in given])
        failures = {i: p.failures[0] for i, p in enumerate(parts) if p.failures}
        return Choice(np.concatenate([p.actions for p in parts]), differential, failures)

    return choose


def _checked(actions: Any, differential: Any, n: int, conditions: int) -> Choice:
    """A doctor's output as a Choice; a ValueError says what is wrong with all of it, `failures` what is wrong with single rows."""
    chosen = np.asarray(actions)
    if chosen.shape != (n,):
        raise ValueError(f"actions have shape {chosen.shape}, not ({n},)")
    failures: dict[int, str] = {}
    if not np.issubdtype(chosen.dtype, np.integer):
        for i in np.flatnonzero(~np.isfinite(chosen.astype(float)) | (chosen != np.round(chosen))).tolist():
            failures[i] = f"the action is {chosen[i]!r}, not an integer"
            chosen[i] = 0
        chosen = chosen.astype(np.int64)
    if differential is None:
        return Choice(chosen, None, failures)
    p = np.array(differential, np.float32)
    if p.shape != (n, conditions):
        raise ValueError(f"the differential has shape {p.shape}, not ({n}, {conditions})")
    for i in range(n):
        if np.isnan(p[i]).all():
            continue
        if not np.isfinite(p[i]).all() or (p[i] < 0).any() or abs(float(p[i].sum()) - 1.0) > 1e-3:
            seen = f"sum {float(p[i].sum()):.4g}, smallest {float(p[i].min()):.4g}"
            failures[i] = f"the differential is not probabilities that sum to 1: {seen}"
            p[i] = np.nan
    return Choice(chosen, p, failures)


def _described(value: Any) -> Any:
    """An argument as JSON; what can't be written down is named (such a run is not replayed without the object)."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, KnowledgeBase):
        return f"<{value.id} {value.fingerprint}>"
    if isinstance(value, RewardMix):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return f"<{len(value)} cases {configuration_hash({'cases': [c.id for c in value]})}>"
    return f"<{type(value).__name__}>"


def _observation(setup: Setup, engine: Engine) -> dict[str, NDArray[Any]]:
    out = engine.views()
    if setup.observe_belief:
        out["belief"] = engine.belief.copy()
    return out


def started(setup: Setup, engine: Engine) -> list[Record]:
    """Records [N] of consultations that have begun and taken no turn."""
    base = setup.base
    settings = list(base.settings)
    made = []
    for i in range(engine.num):
        age, sex, setting = (float(x) for x in engine.demographics[i])
        finding = base.findings[engine.complaint[i]] if engine.complaint[i] < engine.Q else None
        made.append(
            {
                "case_id": setup.source.token(int(engine.handle[i])),
                "conditions": engine.D,
                "demographics": {"age": age, "sex": SEXES[int(sex)], "setting": settings[int(setting)]},
                "opening": {"finding": None if finding is None else finding.id, "reply": setup.patient.opening(finding)},
                "turns": [],
                "end": None,
                "failure": None,
            }
        )
    return made


def _note(setup: Setup, engine: Engine, step: Step, made: list[Record], live: NDArray, actions: NDArray, before: NDArray) -> None:
    """Append the step to the records of the consultations that took part in it."""
    base, meanings = setup.base, setup.action_meanings()
    top = np.argsort(-engine.belief[live], axis=1, kind="stable")[:, :3]
    for i, likeliest in zip(live, top, strict=True):
        action, row = int(actions[i]), int(step.row[i])
        inside = 0 <= action < engine.A
        values = () if row == NONE else setup.values(row)
        finding = base.findings[action] if 0 <= action < engine.Q else None
        made[i]["turns"].append(
            {
                "action": action,
                "meaning": meanings[action] if inside else "outside the action space",
                "kind": finding.kind if finding else "refer" if action == engine.refer_action else "diagnose" if inside else "none",
                "reply": "" if row == NONE or finding is None else setup.patient.answer(finding, values),
                "ledger": {
                    "finding": finding.id if finding else None,
                    "values": list(values),
                    "refused": row != NONE and not values,
                    "invalid": bool(step.transition.invalid[i]),
                },
                "components": {k: None if math.isnan(v[i]) else float(v[i]) + 0.0 for k, v in step.components.items()},
                "reward": float(step.reward[i]) + 0.0,  # -0.0 becomes 0.0
                "entropy": [_short(before[i]), _short(engine.entropy[i])],
                "belief": [[base.conditions[d].id, _short(engine.belief[i, d])] for d in likeliest],
            }
        )


def _end(setup: Setup, engine: Engine, record: Record, i: int, action: int, total: float, differential: NDArray[np.float32]) -> Record:
    conditions, turns = setup.base.conditions, record["turns"]
    closed = engine.Q <= action < engine.A
    referred = action == engine.refer_action
    diagnosis = conditions[action - engine.Q].id if closed and not referred else None
    truth = conditions[int(engine.truth[i])].id
    asked = [setup.base.finding_index[t["ledger"]["finding"]] for t in turns if t["ledger"]["finding"] and not t["ledger"]["invalid"]]
    return {
        "truth": truth,
        "diagnosis": diagnosis,
        "referred": referred,
        "undiagnosed": not closed,
        "differential": None if np.isnan(differential).any() else ranked(setup, differential),
        "correct": diagnosis == truth,
        "return": None if any(c is None for t in turns for c in t["components"].values()) else total,
        "questions": len(asked),
        "cost": float(setup.tables.cost[asked].sum()),
        "invalid_actions": sum(t["ledger"]["invalid"] for t in turns),
    }


def ranked(setup: Setup, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """{condition: probability > 0}, likeliest first."""
    order = np.argsort(-probabilities, kind="stable")
    return {setup.base.conditions[d].id: _short(probabilities[d]) for d in order if probabilities[d] > 0}


def _short(x: np.floating) -> float:
    """The shortest decimal that gives this float32 back."""
    return float(str(x))
