"""Run a doctor on a fixed list of cases, keep every consultation, and report scores with intervals.

The cases are a pure function of (source, split, seed, episodes) and are assigned before the first consultation starts, so short ones are
not favoured and every doctor meets the same patients. Loaded cases come without replacement. With an output folder, finished
consultations are not repeated when the same command is given again.

The summary (null: does not apply; `<key>_ci`: [low, high], 95 % bootstrap over consultations):

- `episodes` consultations finished, failures among them; `failures` could not be scored (an exception in the doctor, numbers that are not
  finite): they count nowhere else, and never as 0.
- `accuracy`: share diagnosed right (a referral and an undiagnosed end are not right). `referral_rate`, `undiagnosed_rate`: shares.
- `mean_questions`: answered questions · `mean_cost`: their cost in the base's units · `mean_return`: sum of rewards ·
  `invalid_actions`: masked or unknown actions. All per consultation. `unscored`: consultations left out of `mean_return` because a reward
  component could not be scored.
- `top3`, `top5`, `brier` (0-2, 0 best), `ece` (15 bins), `log_score` (nats, 0 best): of the last differential that the doctor gave. Null
  unless it gave one in every consultation; the environment's own belief never takes its place.

Does not cover: comparing doctors (`medenv.runs.statistics.paired_difference`), training, other rewards (`replay`).
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import medenv
from medenv.agents.doctor import Doctor, make_doctor
from medenv.cases.source import CaseSource
from medenv.envs.engine import NONE, Engine, Step
from medenv.envs.registration import environment_ids
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RunError, unknown
from medenv.hashing import draw_array, seed_for
from medenv.knowledge.base import SEXES, KnowledgeBase
from medenv.rewards.mix import RewardMix
from medenv.runs.records import SCHEMA, SUMMARY, TRAJECTORIES, WRONG, Record, Writer, configuration_hash, read_trajectories, trajectory_file, write_whole
from medenv.runs.statistics import bootstrap_calibration_error, bootstrap_mean, bootstrap_means, brier_scores, expected_calibration_error, log_scores, top_k

BATCH = 256
ORACLE = "oracle"
MEANS = {  # key of the summary: column of the score table
    "accuracy": "correct",
    "top3": "top3",
    "top5": "top5",
    "mean_questions": "questions",
    "mean_cost": "cost",
    "mean_return": "return",
    "brier": "brier",
    "log_score": "log_score",
    "referral_rate": "referred",
    "undiagnosed_rate": "undiagnosed",
    "invalid_actions": "invalid_actions",
}
KEYS = (*MEANS, "ece")


class Choice(NamedTuple):
    """What was chosen for m open consultations."""

    actions: NDArray[np.integer]  # [m]
    differential: NDArray[np.floating] | None  # [m, D], NaN rows: none
    failures: dict[int, str]  # position in [0, m): what went wrong


Choose = Callable[[Mapping[str, NDArray], NDArray[np.intp], int], Choice]  # (observation of m, their indices, turn)


def evaluate(
    env_id: str,
    agent: str | Doctor,
    episodes: int,
    seed: int,
    output: str | Path | None = None,
    env_arguments: Mapping[str, Any] | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The summary of `agent` over `episodes` consultations of `env_id` (a split without `split` is "test").

    `output`: a folder for trajectories.jsonl, wrong.csv and summary.json (written last). RunError when it holds a run of other
    arguments. `progress` is called with (done, all).
    """
    if episodes < 1 or batch < 1:
        raise MedenvError(f"episodes is {episodes} and batch {batch}: give numbers >= 1")
    if seed < 0:
        raise MedenvError(f"seed is {seed}: give an integer >= 0")
    setup, arguments = make_setup(env_id, {"split": "test"} | dict(env_arguments or {}))
    oracle = agent == ORACLE
    doctor = None if oracle else make_doctor(agent, setup.tables, seed_for(seed, "doctor")) if isinstance(agent, str) else agent
    handles = assign(setup.source, seed, episodes)
    head = {
        "schema": SCHEMA,
        "medenv": medenv.__version__,
        "environment": env_id,
        "arguments": arguments,
        "base": setup.base.fingerprint,
        "seed": seed,
        "agent": agent if isinstance(agent, str) else agent.name,
        "doctor": getattr(doctor, "fingerprint", None),
    }
    head["configuration"] = configuration_hash(head)
    folder = None if output is None else Path(output)
    rows = {} if folder is None else _finished(folder, head, len(handles))
    writer = None if folder is None else Writer(folder / TRAJECTORIES)
    try:
        for start in range(0, len(handles), batch):
            members = range(start, min(start + batch, len(handles)))
            missing = {e for e in members if e not in rows}
            if missing:  # the whole batch runs again, so that a resumed run is made of the same batches
                some = handles[start : start + batch]
                made = _oracle(setup, some) if doctor is None else consultations(setup, some, _asking(doctor, setup))
                new = [head | {"episode": e} | r for e, r in zip(members, made, strict=True) if e in missing]
                if writer is not None:
                    writer.write(new)
                rows |= {r["episode"]: score_row(r) for r in new}
            if progress is not None:
                progress(members.stop, len(handles))
    finally:
        if writer is not None:
            writer.close()
    table = [rows[e] for e in sorted(rows)]
    summary = {k: head[k] for k in ("medenv", "environment", "arguments", "base", "configuration", "seed", "agent")} | summarise(table, seed)
    if folder is not None:
        write_whole(folder / WRONG, wrong_cases(table))
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def make_setup(env_id: str, given: Mapping[str, Any]) -> tuple[Setup, dict[str, Any]]:
    """The environment's setup, and all of its arguments as JSON: what was given, the preset of the id, the defaults."""
    if env_id not in environment_ids():
        raise unknown("environment", env_id, environment_ids())
    defaults = {k: p.default for k, p in inspect.signature(Setup).parameters.items()}
    for key in given:
        if key not in defaults:
            raise unknown("environment argument", key, defaults)
    arguments = defaults | dict(gym.spec(env_id).kwargs) | dict(given)
    setup = Setup(**arguments)
    return setup, {k: _described(v) for k, v in arguments.items()}


def assign(source: CaseSource, seed: int, episodes: int) -> NDArray[np.uint64]:
    """The handles of an evaluation, uint64 [n]: n = `episodes`, or all cases in a seeded order when the source holds fewer."""
    stream = np.uint64(seed_for(seed, "evaluate"))
    members = getattr(source, "members", None)
    if len(source) and members is not None:
        order = np.argsort(draw_array(np.full(len(members), stream), np.asarray(members)), kind="stable")
        return np.asarray(members, np.uint64)[order[:episodes]]
    return source.next(np.full(episodes, stream), np.arange(episodes, dtype=np.uint64))


def consultations(setup: Setup, handles: NDArray[np.uint64], choose: Choose) -> list[Record]:
    """Run the cases `handles` [n] to their ends in one batch; the parts of their records that come from the consultation.

    A differential is handed to the environment with the action that ends a consultation.
    """
    engine = setup.engine(len(handles))
    engine.begin(handles=np.asarray(handles, np.uint64))
    made = _started(setup, engine)
    returns = np.zeros(len(handles))
    meanings = setup.action_meanings()
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
        _note(setup, engine, step, made, live, actions, before, meanings)
        for i in live[step.transition.ended[live]]:
            made[i]["end"] = _end(setup, engine, made[i], int(i), int(actions[i]), float(returns[i]), differential[i])
    return made


def score_row(record: Record) -> dict[str, Any]:
    """One consultation's scores from its record alone; None: does not apply. Failures have `failure` set and no score."""
    row: dict[str, Any] = {"case_id": record["case_id"], "failure": record["failure"]}
    end = record["end"]
    if end is None:
        return row
    row |= {k: end[k] for k in ("truth", "diagnosis", "correct", "referred", "undiagnosed", "questions", "cost", "return", "invalid_actions")}
    given = end["differential"]
    if given is None:
        return row | dict.fromkeys(("top3", "top5", "brier", "log_score", "confidence", "top1", "given_diagnosis", "given_truth"))
    p = np.zeros((1, record["conditions"]))
    p[0, : len(given)] = list(given.values())
    truth = [list(given).index(end["truth"]) if end["truth"] in given else len(given)]
    return row | {
        "top1": float(top_k(p, truth, 1)[0]),
        "top3": float(top_k(p, truth, 3)[0]),
        "top5": float(top_k(p, truth, 5)[0]),
        "brier": float(brier_scores(p, truth)[0]),
        "log_score": float(log_scores(p, truth)[0]),
        "confidence": float(p.max()),
        "given_diagnosis": given.get(end["diagnosis"], 0.0) if end["diagnosis"] else None,
        "given_truth": given.get(end["truth"], 0.0),
    }


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Episodes, failures, every key of `KEYS` and its `<key>_ci`, from score rows."""
    scored = [r for r in rows if r["failure"] is None]
    out: dict[str, Any] = {"episodes": len(rows), "failures": len(rows) - len(scored)}
    fine = [key for key, column in MEANS.items() if scored and all(r[column] is not None for r in scored)]
    values = np.array([[float(r[MEANS[key]]) for key in fine] for r in scored])
    draw = seed_for(seed, "bootstrap")
    means = dict(zip(fine, values.mean(0).tolist(), strict=True)) if fine else {}
    low, high = bootstrap_means(values, draw) if fine else (np.zeros(0), np.zeros(0))
    intervals: dict[str, Any] = {key: [float(low[k]), float(high[k])] for k, key in enumerate(fine)}
    returns = [r["return"] for r in scored if r["return"] is not None]
    out["unscored"] = len(scored) - len(returns) if returns else 0
    if out["unscored"]:
        means["mean_return"] = float(np.mean(returns))
        intervals["mean_return"] = list(bootstrap_mean(returns, draw))
    if "brier" in fine:
        confidence, right = [r["confidence"] for r in scored], [r["top1"] for r in scored]
        means["ece"] = expected_calibration_error(confidence, right)
        intervals["ece"] = list(bootstrap_calibration_error(confidence, right, draw))
    for key in KEYS:
        out[key] = means.get(key)
        out[f"{key}_ci"] = intervals.get(key)
    return out


def wrong_cases(rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV of the consultations that ended without the right diagnosis; failures are not among them."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case_id", "truth", "diagnosis", "probability_of_diagnosis", "probability_of_truth", "questions"])
    for r in rows:
        if r["failure"] is None and not r["correct"]:
            said = r["diagnosis"] or ("(referred)" if r["referred"] else "(undiagnosed)")
            table.writerow([r["case_id"], r["truth"], said, r["given_diagnosis"], r["given_truth"], r["questions"]])
    return text.getvalue()


def _finished(folder: Path, head: Record, episodes: int) -> dict[int, dict[str, Any]]:
    """Score rows of the consultations that `folder` holds already, by episode. RunError if they are of another run."""
    rows: dict[int, dict[str, Any]] = {}
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output {str(folder)!r} is a file: name a folder")
    if not trajectory_file(folder).is_file():
        return rows
    for record in read_trajectories(folder):
        if record.get("configuration") != head["configuration"]:
            raise RunError(f"{folder} holds a run of other arguments ({_differences(record, head)}): give those, or another --output")
        if record["episode"] >= episodes:
            raise RunError(f"{folder} holds consultation {record['episode'] + 1} of a longer run, {episodes} were asked for: ask for as many, or another --output")
        rows[record["episode"]] = score_row(record)
    return rows


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    pairs = [(k, old.get(k), new[k]) for k in ("medenv", "environment", "base", "seed", "agent", "doctor")]
    pairs += [(k, old["arguments"].get(k), v) for k, v in new["arguments"].items()]
    return "; ".join(f"{k} is {a!r} there, {b!r} here" for k, a, b in pairs if a != b)


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


def _asking(doctor: Doctor, setup: Setup) -> Choose:
    """`Choose` by a doctor. What a doctor does wrong is a failure of the consultations concerned, found by asking one by one."""

    def choose(observation: Mapping[str, NDArray], who: NDArray[np.intp], turn: int) -> Choice:
        try:
            return _checked(*doctor.act(observation), len(who), setup.num_conditions)
        except Exception as error:  # a doctor is foreign code: whatever it raises is data, see DESIGN invariant 3
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
        for i in np.flatnonzero(~np.isfinite(chosen.astype(float)) | (chosen != np.round(chosen))):
            failures[int(i)] = f"the action is {chosen[i]!r}, not an integer"
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
            failures[i] = f"the differential is not probabilities that sum to 1 (sum {float(p[i].sum()):.4g}, smallest {float(p[i].min()):.4g})"
            p[i] = np.nan
    return Choice(chosen, p, failures)


def _observation(setup: Setup, engine: Engine) -> dict[str, NDArray]:
    out = engine.views()
    if setup.observe_belief:
        out["belief"] = engine.belief.copy()
    return out


def _started(setup: Setup, engine: Engine) -> list[Record]:
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


def _note(setup: Setup, engine: Engine, step: Step, made: list[Record], live: NDArray[np.intp], actions: NDArray, before: NDArray, meanings: list[str]) -> None:
    """Append the step to the records of the consultations that took part in it."""
    base = setup.base
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
                "components": {k: None if math.isnan(v[i]) else float(v[i]) for k, v in step.components.items()},
                "reward": float(step.reward[i]),
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
        "differential": None if np.isnan(differential).any() else _ranked(setup, differential),
        "correct": diagnosis == truth,
        "return": None if any(c is None for t in turns for c in t["components"].values()) else total,
        "questions": len(asked),
        "cost": float(setup.tables.cost[asked].sum()),
        "invalid_actions": sum(t["ledger"]["invalid"] for t in turns),
    }


def _ranked(setup: Setup, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """{condition: probability > 0}, likeliest first."""
    order = np.argsort(-probabilities, kind="stable")
    return {setup.base.conditions[d].id: _short(probabilities[d]) for d in order if probabilities[d] > 0}


def _short(x: np.floating) -> float:
    """The shortest decimal that gives this float32 back."""
    return float(str(x))


def _oracle(setup: Setup, handles: NDArray[np.uint64]) -> list[Record]:
    """Records of the evaluator that sees the whole case: no turns, and null for what it does not do."""
    from medenv.agents.oracle import oracle_beliefs

    engine = setup.engine(len(handles))
    engine.begin(handles=handles)
    made = _started(setup, engine)
    for record, belief, truth in zip(made, oracle_beliefs(setup.source, handles).astype(np.float32), engine.truth, strict=True):
        named = _ranked(setup, belief)
        diagnosis, real = next(iter(named)), setup.base.conditions[int(truth)].id
        record["end"] = {
            "truth": real, "diagnosis": diagnosis, "referred": False, "undiagnosed": False, "differential": named, "correct": diagnosis == real,
            "return": None, "questions": None, "cost": None, "invalid_actions": 0,
        }  # fmt: skip
    return made
