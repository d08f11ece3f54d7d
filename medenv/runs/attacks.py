"""Attacks on a reward mix: does any trick earn what honest consultations earn?

An honest doctor and every attacker of `medenv.agents.attackers` meet the same assigned cases. An attack pays if its mean return reaches the
lower end of the honest doctor's 95 % interval (bootstrap over consultations); a mix holds if none pays. With few consultations that end is
low, and an attack that falls just short of honesty reaches it. What could not be scored is counted and never taken for 0: such a mean is
null, and so is the verdict that needs it.

Does not cover: doctors that learn to exploit a reward, and tricks with words (`attackers.IN_WORDS`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medenv
from medenv.agents.attackers import ATTACKERS, IN_WORDS, Honest
from medenv.agents.doctor import Doctor, make_doctor
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RunError
from medenv.hashing import seed_for
from medenv.rewards.mix import RewardMix
from medenv.runs.consultations import asking, component_means, consultations, make_setup
from medenv.runs.evaluate import assign, score_row, summarise
from medenv.runs.records import configuration_hash, write_atomically

ENV = "MedConsult-v0"
HONEST, MAX_TURNS, SPLIT = "greedy:0.8", 20, "validation"  # as experiments/attacks/settings.toml has them
BATCH = 256


def attack(
    mix: str | Mapping[str, Any] | RewardMix,
    arguments: Mapping[str, Any],
    episodes: int,
    seed: int,
    honest: str = HONEST,
    max_turns: int = MAX_TURNS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """What the doctor `honest` and every attacker earn under `mix`, with `arguments` of the environment (they win over `max_turns`).

    `episodes`: consultations of each doctor, fewer than asked for where there are fewer cases; `honest`: {doctor, mean, ci, accuracy,
    questions, unscored, components}; `attacks`: by name the same and `pays`, without `doctor`.
    `mean` is the return per consultation with its 95 % interval `ci` [low, high], `components` what each weighted component adds to it,
    `unscored` how many consultations could not be scored (then `mean`, `ci` and `pays` are null). `duplicate_credit` has, under a mix that
    hands out credits, `credit_of_duplicates` and `gain_of_duplicates`, see `duplicates`. `holds`: no attack pays; null if that is not
    known. `does_not_apply`: attackers whose trick this mix can't see. `in_words`: tricks that need consultations in words.
    """
    if episodes < 1 or seed < 0:
        raise MedenvError(f"episodes is {episodes} and seed {seed}: give at least 1 consultation and a seed >= 0")
    setup, _ = make_setup(ENV, {"split": SPLIT, "max_turns": max_turns} | dict(arguments) | {"reward": mix})
    handles = assign(setup.source, seed, episodes)
    doctor = make_doctor(honest, setup.tables, seed_for(seed, "doctor"))
    differentials = bool(setup.rewards.needs_differential)
    tried = {n: a(doctor, setup.tables) for n, a in ATTACKERS.items() if differentials or not a.needs_differential}
    attacks: dict[str, dict[str, Any]] = {}
    fair = _earned(setup, handles, Honest(doctor, setup.tables), seed)
    for name, attacker in tried.items():
        if progress is not None:
            progress(len(attacks) + 1, len(tried) + 1)
        found = _earned(setup, handles, attacker, seed)
        known = fair["ci"] is not None and found["mean"] is not None
        found["pays"] = bool(found["mean"] >= fair["ci"][0]) if known else None
        attacks[name] = found
    if any(hasattr(reward, "credits") for _, _, reward in setup.rewards.terms):
        attacks["duplicate_credit"] |= duplicates(setup, handles, tried["duplicate_credit"])
    pays = [found["pays"] for found in attacks.values()]
    return {
        "episodes": len(handles),
        "honest": {"doctor": honest} | fair,
        "attacks": attacks,
        "holds": False if True in pays else None if None in pays else True,
        "does_not_apply": [n for n in ATTACKERS if n not in tried],
        "in_words": list(IN_WORDS),
    }


def duplicates(setup: Setup, handles: NDArray[np.uint64], doctor: Doctor) -> dict[str, float | None]:
    """`credit_of_duplicates` and `gain_of_duplicates` of `DuplicateCredit` under a mix that hands out credits; null if it asked none.

    Means per duplicate, which is the question of every odd turn: the credit that the mix hands out for its answer, unweighted, and by how
    much the answer reduced the entropy of the belief, in nats. Where the credits divide entropy, a credit above the gain pays for telling
    what other answers told.
    """
    engine = setup.engine(len(handles))
    engine.begin(handles=handles)
    credit, gain = np.zeros((2, len(handles), setup.max_turns))
    duplicate = np.zeros(credit.shape, bool)
    for turn in range(setup.max_turns):
        step = engine.step(doctor.act(engine.views())[0]).transition
        gain[:, turn] = step.entropy_before - step.entropy_after
        duplicate[:, turn] = step.asked & (turn % 2 == 1)
        given = setup.rewards.credits(step)
        if given is not None:
            credit[step.ended] = given[step.ended]
    some = bool(duplicate.any())
    means = {"credit_of_duplicates": credit, "gain_of_duplicates": gain}
    return {name: float(values[duplicate].mean()) if some else None for name, values in means.items()}


def _earned(setup: Setup, handles: NDArray[np.uint64], doctor: Doctor, seed: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    parts: dict[str, list[float | None]] = {name: [] for name in setup.rewards.names}
    for start in range(0, len(handles), BATCH):
        made = consultations(setup, handles[start : start + BATCH], asking(doctor, setup))
        rows += [score_row(r) for r in made]
        for name, mean in component_means(made).items():
            parts[name].append(None if mean is None else mean * len(made) / len(handles))
    scores = summarise(rows, seed)
    unscored = scores["unscored"] + scores["failures"]
    return {
        "mean": None if unscored else scores["mean_return"],
        "ci": None if unscored else scores["mean_return_ci"],
        "accuracy": scores["accuracy"],
        "questions": scores["mean_questions"],
        "unscored": unscored,
        "components": {name: _sum(means, bool(scores["failures"])) for name, means in parts.items()},
    }


def _sum(means: Sequence[float | None], failures: bool) -> float | None:
    known = [m for m in means if m is not None]
    return None if failures or len(known) < len(means) else math.fsum(known)


def attack_mixes(plan: Mapping[str, Any], runs: Path, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """`attack` for every mix of `plan` (the keys of experiments/attacks/settings.toml), by title.

    Each result is kept in a file of `runs` whose name is a hash of the settings and of the package's files; it is not made again.
    """
    keys = ("honest", "max_turns", "episodes", "seed", "split", "mixes")
    wrong = [key for key in keys if key not in plan] or [key for key in plan if key not in keys]
    if wrong:
        raise RunError(f"the settings lack or do not know {wrong[0]!r}: give {', '.join(keys)}")
    package = {"package": _package()}
    shared = {key: plan[key] for key in keys[:4]} | {"arguments": {"split": plan["split"]}}
    out: dict[str, dict[str, Any]] = {}
    for title, mix in plan["mixes"].items():
        cell = {"mix": mix} | shared
        file = runs / f"{configuration_hash(cell | package)}.json"
        if not file.is_file():
            write_atomically(file, json.dumps(cell | package | {"found": attack(**cell)}, indent=2, allow_nan=False) + "\n")
        out[title] = json.loads(file.read_text(encoding="utf-8"))["found"]
        tell(f"{title}: {verdict(out[title])}")
    return out


def _package() -> str:
    """A hash of the package's files: a result made before a change of them is not this one's."""
    out = hashlib.sha256()
    for file in sorted(Path(medenv.__file__).parent.rglob("*")):
        if file.suffix in (".py", ".csv", ".toml"):
            out.update(file.read_bytes())
    return out.hexdigest()[:12]


def verdict(found: Mapping[str, Any]) -> str:
    """A line on a result of `attack`."""
    honest, attacks = found["honest"], found["attacks"]
    pays = [name for name, a in attacks.items() if a["pays"]]
    unscored = [name for name, a in ({honest["doctor"]: honest} | attacks).items() if a["unscored"]]
    unknown = f"; not known for want of a score: {', '.join(unscored)}" if unscored else ""
    if honest["ci"] is None or (unscored and not pays):
        return f"not judged{unknown}"
    bound = f"the honest doctor's lower bound {honest['ci'][0]:.4g}"
    return (f"{', '.join(pays)} reached {bound}" if pays else f"holds: no attack reached {bound}") + unknown


def mix_row(title: str, mix: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """A mix as one row: the honest doctor, the best attack, and which attacks pay."""
    honest, attacks = found["honest"], found["attacks"]
    best = max((n for n in attacks if attacks[n]["mean"] is not None), key=lambda n: attacks[n]["mean"], default=None)
    row = {"mix": title, "reward": str(mix)} | _interval("honest", honest) | {"best_attack": best}
    row |= _interval("best", attacks[best]) if best else {}
    held = "none" if found["holds"] else "not judged"
    return row | {"pays": ", ".join(n for n, a in attacks.items() if a["pays"]) or held}


def doctor_rows(title: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each doctor of a mix as a row, the honest one first."""
    duplicates_ = ("credit_of_duplicates", "gain_of_duplicates")
    rows = []
    for name, a in ({found["honest"]["doctor"]: found["honest"]} | found["attacks"]).items():
        row = {"mix": title, "doctor": name} | _interval("return", a)
        row |= {k: None if a[k] is None else round(a[k], 4) for k in ("accuracy", "questions")}
        row |= {"pays": {True: "yes", False: "no"}.get(a.get("pays")), "unscored": a["unscored"]}
        rows.append(row | {k: round(a[k], 4) for k in duplicates_ if a.get(k) is not None})
    return rows


def _interval(name: str, earned: Mapping[str, Any]) -> dict[str, Any]:
    mean, ci = earned["mean"], earned["ci"]
    return {name: None if mean is None else round(mean, 4), f"{name}_ci": None if ci is None else f"{ci[0]:.4f} to {ci[1]:.4f}"}
