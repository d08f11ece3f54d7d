"""Run a doctor on a fixed list of cases, keep every consultation, and report scores with intervals.

The cases are a pure function of (source, split, seed, episodes) and are assigned before the first consultation starts, so short ones are
not favoured and every doctor meets the same patients. Loaded cases come without replacement. With an output folder, finished
consultations are not repeated when the same command is given again.

The summary (null: does not apply; `<key>_ci`: [low, high], 95 % bootstrap over consultations):

- `episodes` consultations finished, failures among them; `failures` could not be scored (an exception in the doctor, numbers that are not
  finite): they count nowhere else, and never as 0.
- `accuracy`: share diagnosed right (a referral and an undiagnosed end are not right). `referral_rate`, `undiagnosed_rate`: shares.
- `mean_questions`: valid questions asked · `mean_cost`: their cost in the base's units · `mean_return`: sum of rewards ·
  `invalid_actions`: masked or unknown actions; among them `repeated_questions` (asked before, or answered by the opening) and
  `not_understood` (messages in words that meant nothing). All per consultation. `unscored`: consultations left out of `mean_return`
  because a reward component could not be scored; `unscored_components`: in how many each of these was not, {} where all were.
- `top3`, `top5`, `brier` (0-2, 0 best), `ece` (15 bins), `log_score` (nats, 0 best): of the last differential that the doctor gave. Null
  unless it gave one in every consultation; the environment's own belief never takes its place.
- `loaded`: where the cases were read from a file, how many there are and how often each thing had to be put right (null otherwise).

Does not cover: comparing doctors (`medenv.runs.statistics.paired_difference`), training, other rewards (`replay`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import medenv
from medenv.agents.demonstrations import Spoken
from medenv.agents.doctor import TEXT_KINDS, Doctor, make_doctor
from medenv.agents.oracle import oracle_beliefs
from medenv.agents.rollouts import DoctorInWords, Room
from medenv.cases.loaded import LoadedCases
from medenv.cases.source import CaseSource
from medenv.envs.registration import TEXT_IDS
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RewardError, RunError
from medenv.hashing import draw_array, seed_for
from medenv.runs import statistics
from medenv.runs.consultations import asking, consultations, in_words, make_setup, ranked, started
from medenv.runs.records import (
    SCHEMA,
    SUMMARY,
    TRAJECTORIES,
    WRONG,
    Record,
    Writer,
    configuration_hash,
    read_trajectories,
    write_atomically,
)

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
    "repeated_questions": "repeated",
    "not_understood": "not_understood",
}
KEYS = (*MEANS, "ece")
_NAMED = ("medenv", "environment", "arguments", "base", "configuration", "seed", "agent")
_ENDS = ("truth", "diagnosis", "correct", "referred", "undiagnosed", "questions", "cost", "return", "invalid_actions")
_GRADES = ("top1", "top3", "top5", "brier", "log_score", "confidence", "given_diagnosis", "given_truth")


def evaluate(
    env_id: str,
    agent: str | Doctor | DoctorInWords,
    episodes: int,
    seed: int,
    output: str | Path | None = None,
    env_arguments: Mapping[str, Any] | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """The summary of `agent` over `episodes` consultations of `env_id` (a split without `split` is "test").

    In words (`MedConsultText-v0`) the agent is a language-model doctor, a doctor in numbers whose actions are put into words, or an object
    with `write(openings, reply, seeds)`, see `medenv.agents.rollouts.DoctorInWords`. `temperature`: of a language model; 0 takes the
    likeliest token.

    `output`: a folder for trajectories.jsonl, wrong.csv and summary.json (written last). RunError when it holds a run of other
    arguments, or any run at all where `agent` is an object without a `fingerprint` (text that tells its versions apart).
    `progress` is called with (done, all), `tell` with the lines of the report on the cases' file, where they were read from one.
    """
    if episodes < 1 or batch < 1:
        raise MedenvError(f"episodes is {episodes} and batch {batch}: give numbers >= 1")
    if seed < 0:
        raise MedenvError(f"seed is {seed}: give an integer >= 0")
    setup, arguments = make_setup(env_id, {"split": "test"} | dict(env_arguments or {}))
    oracle = agent == ORACLE
    words = env_id in TEXT_IDS
    room = Room(dict(gym.spec(env_id).kwargs) | dict(env_arguments or {}), setup.source.split) if words else None
    doctor = (
        None if oracle else _doctor(agent, setup, room, seed_for(seed, "doctor"), (env_arguments or {}).get("format", "any"), temperature)
    )
    name = agent if isinstance(agent, str) else agent.name
    if setup.rewards.needs_differential and not getattr(doctor, "gives_differential", True):
        names = ", ".join(setup.rewards.needs_differential)
        raise RewardError(f"{names} scores a differential, and doctor {name!r} gives none: leave it out, or choose another doctor")
    report = setup.source.report if isinstance(setup.source, LoadedCases) else None
    if report is not None and tell is not None:
        for line in report.lines():
            tell(line)
    handles = assign(setup.source, seed, episodes)
    head: Record = {
        "schema": SCHEMA,
        "medenv": medenv.__version__,
        "environment": env_id,
        "arguments": arguments,
        "base": setup.base.fingerprint,
        "seed": seed,
        "agent": name,
        "doctor": ORACLE if doctor is None else _fingerprint(agent, doctor),
    }
    head["configuration"] = configuration_hash(head)
    folder = None if output is None else Path(output)
    rows: dict[int, dict[str, Any]] = {}
    writer = None if folder is None else _opened(folder)
    try:
        if folder is not None:
            rows = _finished(folder, head, len(handles))
            if rows and head["doctor"] is None:
                raise RunError(
                    f"{folder} holds {len(rows)} consultations, and whether they are this {type(agent).__name__}'s can't be told: "
                    "give it a `fingerprint` (text that tells its versions apart), or another output"
                )
            if len(rows) < len(handles):
                (folder / SUMMARY).unlink(missing_ok=True)  # a summary says that the run is complete
        for start in range(0, len(handles), batch):
            members = range(start, min(start + batch, len(handles)))
            missing = {e for e in members if e not in rows}
            if missing:  # the whole batch runs again, so that a resumed run is made of the same batches
                some = handles[start : start + batch]
                seeds = [seed_for(seed, "words", e) for e in members]
                made = _oracle(setup, some) if doctor is None else _run(setup, room, doctor, some, seeds)
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
    loaded = None if report is None else {"cases": report.cases, **report.counts}
    summary = {k: head[k] for k in _NAMED} | {"loaded": loaded} | summarise(table, seed)
    if folder is not None:
        write_atomically(folder / WRONG, wrong_cases(table))
        write_atomically(folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _doctor(agent: str | Doctor | DoctorInWords, setup: Setup, room: Room | None, seed: int, format: Any, temperature: float) -> Any:
    """The doctor that `agent` is or names: in words one that writes, else one that acts."""
    kind = agent.partition(":")[0] if isinstance(agent, str) else ""
    if kind in TEXT_KINDS:
        if room is None:
            raise RunError(f"agent {agent!r} speaks and this environment is in numbers: evaluate it in {TEXT_IDS[0]}")
        from medenv.agents.text_doctor import make_text_doctor

        return make_text_doctor(str(agent), setup, format, temperature)
    doctor = make_doctor(agent, setup.tables, seed) if isinstance(agent, str) else agent
    if room is None or hasattr(doctor, "write"):
        if room is None and not hasattr(doctor, "act"):
            raise RunError(f"doctor {doctor.name!r} has no `act`, and this environment is in numbers: evaluate it in {TEXT_IDS[0]}")
        return doctor
    return Spoken(doctor, room)


def _run(setup: Setup, room: Room | None, doctor: Any, some: NDArray[np.uint64], seeds: list[int]) -> list[Record]:
    return consultations(setup, some, asking(doctor, setup)) if room is None else in_words(room, some, doctor, seeds)


def assign(source: CaseSource, seed: int, episodes: int) -> NDArray[np.uint64]:
    """The handles of an evaluation, uint64 [n]: n = `episodes`, or all cases in a seeded order when the source holds fewer."""
    stream = np.uint64(seed_for(seed, "evaluate"))
    members = getattr(source, "members", None)
    if len(source) and members is not None:
        order = np.argsort(draw_array(np.full(len(members), stream), np.asarray(members)), kind="stable")
        return np.asarray(members, np.uint64)[order[:episodes]]
    return source.next(np.full(episodes, stream), np.arange(episodes, dtype=np.uint64))


def score_row(record: Record) -> dict[str, Any]:
    """One consultation's scores from its record alone; None: does not apply. Failures have `failure` set and no score."""
    row: dict[str, Any] = {"case_id": record["case_id"], "failure": record["failure"]}
    end = record["end"]
    if end is None:
        return row
    row |= {k: end[k] for k in _ENDS}
    row |= _lost(record)
    row["unscored"] = sorted({name for turn in record["turns"] for name, paid in turn["components"].items() if paid is None})
    given = end["differential"]
    if given is None:
        return row | dict.fromkeys(_GRADES)
    p = np.zeros((1, record["conditions"]))
    p[0, : len(given)] = list(given.values())
    truth = [list(given).index(end["truth"]) if end["truth"] in given else len(given)]
    return row | {
        "top1": float(statistics.top_k(p, truth, 1)[0]),
        "top3": float(statistics.top_k(p, truth, 3)[0]),
        "top5": float(statistics.top_k(p, truth, 5)[0]),
        "brier": float(statistics.brier_scores(p, truth)[0]),
        "log_score": float(statistics.log_scores(p, truth)[0]),
        "confidence": float(p.max()),
        "given_diagnosis": given.get(end["diagnosis"], 0.0) if end["diagnosis"] else None,
        "given_truth": given.get(end["truth"], 0.0),
    }


def _lost(record: Record) -> dict[str, int]:
    """Turns that went on questions asked before, and on messages that meant nothing."""
    asked, repeated, nothing = {record["opening"]["finding"]}, 0, 0
    for turn in record["turns"]:
        finding = turn["ledger"]["finding"]
        nothing += turn["kind"] == "none"
        repeated += finding is not None and finding in asked
        asked.add(finding)
    return {"repeated": repeated, "not_understood": nothing}


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Episodes, failures, every key of `KEYS` and its `<key>_ci`, from score rows."""
    scored = [r for r in rows if r["failure"] is None]
    out: dict[str, Any] = {"episodes": len(rows), "failures": len(rows) - len(scored)}
    fine = [key for key, column in MEANS.items() if scored and all(r[column] is not None for r in scored)]
    values = np.array([[float(r[MEANS[key]]) for key in fine] for r in scored])
    draw = seed_for(seed, "bootstrap")
    means = {key: math.fsum(values[:, k]) / len(scored) for k, key in enumerate(fine)}
    low, high = statistics.bootstrap_means(values, draw) if fine else (np.zeros(0), np.zeros(0))
    intervals: dict[str, Any] = {key: [float(low[k]), float(high[k])] for k, key in enumerate(fine)}
    returns = [r["return"] for r in scored if r["return"] is not None]
    out["unscored"] = sum(bool(r["unscored"]) for r in scored)
    out["unscored_components"] = dict(sorted(Counter(name for r in scored for name in r["unscored"]).items()))
    if out["unscored"] and returns:
        means["mean_return"] = math.fsum(returns) / len(returns)
        intervals["mean_return"] = list(statistics.bootstrap_mean(returns, draw))
    if "brier" in fine:
        confidence, right = [r["confidence"] for r in scored], [r["top1"] for r in scored]
        means["ece"] = statistics.expected_calibration_error(confidence, right)
        intervals["ece"] = list(statistics.bootstrap_calibration_error(confidence, right, draw))
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


def _opened(folder: Path) -> Writer:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output {str(folder)!r} is a file: name a folder")
    return Writer(folder / TRAJECTORIES)


def _finished(folder: Path, head: Record, episodes: int) -> dict[int, dict[str, Any]]:
    """Score rows of the consultations that `folder` holds already, by episode. RunError if they are of another run."""
    rows: dict[int, dict[str, Any]] = {}
    for record in read_trajectories(folder):
        if record.get("configuration") != head["configuration"]:
            raise RunError(f"{folder} holds a run of other arguments ({_differences(record, head)}): give those, or another --output")
        if record["episode"] >= episodes:
            longer = f"{folder} holds consultation {record['episode'] + 1} of a longer run, asked for are {episodes}"
            raise RunError(f"{longer}: ask for as many, or give another --output")
        rows[record["episode"]] = score_row(record)
    return rows


def _fingerprint(agent: str | Doctor | DoctorInWords, doctor: Any) -> str | None:
    """What tells two versions of a doctor apart: its own `fingerprint`, else a hash of the weights in its run directory, else None."""
    own: str | None = getattr(doctor, "fingerprint", None)
    if own is not None or not isinstance(agent, str):
        return own
    run = Path(agent.partition(":")[2] or ".")
    weights = next((f for f in (run / "policy" / "weights.pt", run / "weights.pt") if ":" in agent and f.is_file()), None)
    return None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    pairs = [(k, old.get(k), new[k]) for k in ("medenv", "environment", "base", "seed", "agent", "doctor")]
    pairs += [(k, old["arguments"].get(k), v) for k, v in new["arguments"].items()]
    return "; ".join(f"{k} is {a!r} there, {b!r} here" for k, a, b in pairs if a != b)


def _oracle(setup: Setup, handles: NDArray[np.uint64]) -> list[Record]:
    """Records of the evaluator that sees the whole case: no turns, and null for what it does not do."""
    engine = setup.engine(len(handles))
    engine.begin(handles=handles)
    made = started(setup, engine)
    for record, belief, truth in zip(made, oracle_beliefs(setup.source, handles).astype(np.float32), engine.truth, strict=True):
        named = ranked(setup, belief)
        diagnosis, real = next(iter(named)), setup.base.conditions[int(truth)].id
        record["end"] = {
            "truth": real,
            "diagnosis": diagnosis,
            "referred": False,
            "undiagnosed": False,
            "differential": named,
            "correct": diagnosis == real,
            "return": None,
            "questions": None,
            "cost": None,
            "invalid_actions": 0,
        }
    return made
