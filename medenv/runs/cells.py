"""A reward ablation as a plan and its cells: every environment × mix × seed, and each cell a pure function of its own description.

A plan is a TOML file:

    title = "..."
    trainer = "ppo"                       # or "grpo"
    seeds = [0, 1, 2, 3, 4]
    episodes = 2000                       # consultations of each final evaluation, on validation and on test cases
    judge = "accuracy - 0.01*question_cost"   # what every arm is measured by, whatever it was trained on
    baseline = "accuracy only"            # the mix that the others are compared with; of several, each with those that come after it
    measure = "safety + test_cost"        # optional: rewards whose unweighted means are reported of the final policy
    front = false                         # draw accuracy against cost

    [settings]                            # of the trainer, for every cell
    steps = 1_000_000

    [environments.builtin]                # arguments of the environment
    knowledge = "builtin"
    [environments.ddxplus]
    knowledge = "ddxplus:{data}"          # --data DIR
    settings.steps = 500_000              # settings of this environment's cells

    [mixes]
    "accuracy only" = "accuracy - 0.01*question_cost"
    "Shapley, each turn" = { reward = "accuracy + 0.1*shapley_credit", settings = { credit_each_turn = true } }

References, `greedy` and `random`, are cells too: what a doctor earns on the same cases.

Does not cover: where and when cells run (`ablate`), what is made of their results (`ablation_tables`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import medenv
from medenv.agents.doctor import make_doctor
from medenv.envs.setup import Setup, check_arguments
from medenv.errors import RunError, unknown
from medenv.rewards.mix import parse_mix
from medenv.runs.evaluate import evaluate
from medenv.runs.provenance import commit, hardware, versions
from medenv.runs.records import configuration_hash, locked, read_trajectories

REFERENCES = ("greedy", "random")
TRAINERS = ("ppo", "grpo")
IDS = {"ppo": "MedConsult-v0", "grpo": "MedConsultText-v0"}
SPLITS = ("validation", "test")
CURVE = {"steps": "steps", **{k: f"validation_{k}" for k in ("return", "accuracy", "questions", "best_guess")}}

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation, or a reference doctor's. Names are for people; the other fields decide the result."""

    environment: str  # name in the plan
    mix: str  # name in the plan, or the reference's
    trainer: str  # ppo, grpo, or one of REFERENCES
    seed: int
    reward: str  # trained on
    judge: str
    measure: str
    episodes: int
    env: dict[str, Any] = field(hash=False)  # arguments of the environment, but for reward and split
    settings: dict[str, Any] = field(hash=False)  # of the trainer, but for env, seed and judge
    start: dict[str, Any] = field(hash=False, default_factory=dict)  # settings of the SFT run that GRPO starts from

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits over what decides the result: these fields but for the names, medenv's version, the base."""
        return configuration_hash(self._without_base() | {"base": _fingerprint(str(self.env.get("knowledge", "builtin")))})

    @property
    def key_without_base(self) -> str:
        """The key but for the base, for machines that can't read it."""
        return configuration_hash(self._without_base())

    def _without_base(self) -> dict[str, Any]:
        about = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("environment", "mix")}
        about["env"] = {k: v for k, v in self.env.items() if k != "knowledge"}
        return about | {"medenv": medenv.__version__}

    def told(self) -> dict[str, Any]:
        """What a result says of its cell: keys, names, reward."""
        names = {name: getattr(self, name) for name in ("environment", "mix", "seed", "trainer", "reward")}
        return {"key": self.key, "key_without_base": self.key_without_base, **names}

    def __str__(self) -> str:
        return f"{self.environment}, {self.mix}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a TOML file asks for; see the module."""

    title: str
    trainer: str
    seeds: list[int]
    episodes: int
    judge: str
    baseline: list[str]
    environments: dict[str, dict[str, Any]]
    mixes: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    measure: str = ""
    front: bool = False
    start: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None  # seconds of one cell, with what it waits for its seed's start

    def cells(self) -> list[Cell]:
        """References first, then seed by seed, so that an interrupted ablation has whole seeds."""
        out = [self._cell(name, who, who, 0, {}) for name in self.environments for who in REFERENCES]
        for seed in self.seeds:
            out += [self._cell(name, mix, self.trainer, seed, about) for name in self.environments for mix, about in self.mixes.items()]
        return out

    def _cell(self, environment: str, mix: str, trainer: str, seed: int, about: Mapping[str, Any]) -> Cell:
        arguments = {k: v for k, v in self.environments[environment].items() if k != "settings"}
        own = self.environments[environment].get("settings", {})
        settings = {} if trainer in REFERENCES else self.settings | own | about.get("settings", {})
        return Cell(
            environment=environment,
            mix=mix,
            trainer=trainer,
            seed=seed,
            reward=about.get("reward", self.judge),
            judge=self.judge,
            measure=self.measure,
            episodes=self.episodes,
            env=arguments,
            settings=settings,
            start=self.start if trainer == "grpo" else {},
        )


def read_plan(path: Path, data: str | None = None) -> Plan:
    """The plan in a TOML file; `data` takes the place of {data} in it.

    RunError for a key that is not known or missing, a mix, environment or trainer that can't be, no or repeated seeds, {data} without data.
    """
    text = Path(path).read_text(encoding="utf-8")
    if "{data}" in text and data is None:
        raise RunError(f"{path} reads {{data}}: give --data DIR, the folder with the release")
    try:
        table = tomllib.loads(text.replace("{data}", str(data)))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path} is not TOML: {error}") from error
    known = {f.name: f for f in dataclasses.fields(Plan)}
    for key in table:
        if key not in known:
            raise RunError(f"{path}: {unknown('key', key, known)}")
    missing = [k for k, f in known.items() if f.default is f.default_factory is dataclasses.MISSING and k not in table]
    if missing:
        raise RunError(f"{path}: {', '.join(missing)} missing: see the head of medenv/runs/cells.py for the form")
    table["mixes"] = {k: {"reward": v} if isinstance(v, str) else v for k, v in table["mixes"].items()}
    if isinstance(table["baseline"], str):
        table["baseline"] = [table["baseline"]]
    plan = Plan(**table)
    _check(plan, path)
    return plan


def _check(plan: Plan, path: Path) -> None:
    if plan.trainer not in TRAINERS:
        raise RunError(f"{path}: {unknown('trainer', plan.trainer, TRAINERS)}")
    seeds = plan.seeds
    if not isinstance(seeds, list) or not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int and s >= 0 for s in seeds):
        raise RunError(f"{path}: seeds is {seeds!r}: give a list of different integers, each at least 0")
    if type(plan.episodes) is not int or plan.episodes < 1:
        raise RunError(f"{path}: episodes is {plan.episodes!r}: give an integer of at least 1")
    for name in ("environments", "mixes"):
        if not getattr(plan, name):
            raise RunError(f"{path}: no {name}: give at least one")
    for base in plan.baseline if isinstance(plan.baseline, list) and plan.baseline else [plan.baseline]:
        if base not in list(plan.mixes):
            raise RunError(f"{path}: {unknown('baseline', str(base), plan.mixes)}")
    for name, about in plan.mixes.items():
        if name in REFERENCES or set(about) - {"reward", "settings"} or not isinstance(about.get("reward"), str):
            raise RunError(f"{path}: mix {name!r} is {about!r}: give a mix as text, or a table of reward and settings, and another name")
        parse_mix(about["reward"])
    for mix in (plan.judge, *([plan.measure] if plan.measure else [])):
        parse_mix(mix)
    for about in plan.environments.values():
        for key in ("reward", "split"):
            if key in about:
                raise RunError(f"{path}: an environment has {key}={about[key]!r}: {key} is not an environment's, leave it out")


def check_names(plan: Plan, path: Path) -> None:
    """RunError for a setting of a trainer, or an argument of an environment, that there is not: before the first cell is run."""
    from medenv.agents.ppo import PPOSettings

    kinds: dict[str, type] = {"settings": PPOSettings}
    if plan.trainer == "grpo":
        from medenv.agents.grpo import GRPOSettings
        from medenv.agents.sft import SFTSettings

        kinds = {"settings": GRPOSettings, "start": SFTSettings}
    own = ("env", "seed", "judge")
    for name, about in plan.environments.items():
        try:
            check_arguments(about.keys() - {"settings"}, words=plan.trainer == "grpo")
        except RunError as error:
            raise RunError(f"{path}: environment {name}: {error}") from error
    tables = [
        ("settings", t) for t in (plan.settings, *(x.get("settings", {}) for x in (*plan.environments.values(), *plan.mixes.values())))
    ]
    for what, table in (*tables, *([("start", plan.start)] if plan.start else [])):
        if what not in kinds:
            raise RunError(f"{path}: a start is what GRPO starts from, and the trainer is {plan.trainer!r}: leave it out")
        known = [f.name for f in dataclasses.fields(kinds[what]) if f.name not in own]
        for key in table:
            if key.partition(".")[0] not in known:
                raise RunError(f"{path}: {unknown(f'key of {what}', key, known)}")


def run_cell(cell: Cell, folder: Path) -> Result:
    """Train and evaluate `cell`; `folder` is its own, for the run, and an interrupted cell goes on in it.

    Returns keys, names, reward, the curve (lists by validation: steps, and the judge's return, accuracy, questions, best_guess), and
    for validation and test what the final policy earns: return (the judge's), accuracy, questions, cost, and `components`, the unweighted
    means of the measure's rewards; for PPO `greedy`, the judge's return of `greedy` on the curve's cases. The same cell gives the same
    numbers on one machine, interrupted or not.
    """
    started = time.perf_counter()
    agent, curve = cell.trainer, dict[str, list[float | None]]()
    if cell.trainer not in REFERENCES:
        _train(cell, Path(folder))
        agent = f"{cell.trainer}:{folder}"
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line.get("validation_return") is not None]
        curve = {name: [line.get(key) for line in lines] for name, key in CURVE.items()}
    found = {split: _earned(cell, agent, split, Path(folder)) for split in SPLITS}
    about = cell.told()
    made = {"seconds": round(time.perf_counter() - started, 1), "commit": commit(), "hardware": hardware()}
    made["versions"] = versions("numpy", "torch", "ray", "trl")
    if cell.trainer == "ppo":
        about["greedy"] = greedy_on_curve(cell)
    return {**about, "curve": curve, **found, **made}


def greedy_on_curve(cell: Cell) -> float:
    """The judge's mean return of `greedy` on the cases of a PPO cell's curve, which are its seed's own."""
    from medenv.agents.greedy import Greedy
    from medenv.agents.ppo import PPOSettings, validation_cases
    from medenv.runs.settings import read_settings

    settings = read_settings(PPOSettings, cell.settings | {"env": dict(cell.env), "seed": cell.seed, "judge": cell.judge})
    env, observation = validation_cases(settings)
    doctor, total = Greedy(env.setup.tables), np.zeros(env.num_envs)
    alive = np.ones(env.num_envs, bool)
    while alive.any():
        observation, reward, terminated, truncated, _ = env.step(doctor.act(observation)[0])
        total += reward * alive
        alive &= ~(terminated | truncated)
    return float(total.mean())


def _train(cell: Cell, folder: Path) -> None:
    from medenv.runs.settings import read_settings

    own: dict[str, Any] = {"env": cell.env | {"reward": cell.reward}, "seed": cell.seed, "judge": cell.judge}
    if cell.trainer == "ppo":
        from medenv.agents.ppo import PPOSettings
        from medenv.runs.training import train

        train(read_settings(PPOSettings, cell.settings | own), folder, resume=True)
        return
    from medenv.agents.grpo import GRPOSettings
    from medenv.agents.sft import SFTSettings
    from medenv.runs.finetuning import train as train_words

    first = folder.with_name(f"start-{configuration_hash({'env': cell.env, 'start': cell.start, 'seed': cell.seed})}")
    with locked(first.with_suffix(".lock"), math.inf):  # the seed's other cells start from it too
        train_words(read_settings(SFTSettings, cell.start | {"env": dict(cell.env), "seed": cell.seed}), first, resume=True)
    train_words(read_settings(GRPOSettings, cell.settings | own | {"model": str(first)}), folder, resume=True)


def _earned(cell: Cell, agent: str, split: str, folder: Path) -> dict[str, Any]:
    """What the doctor earns on the split's cases, under the judge and under each reward of the measure."""
    words = cell.trainer == "grpo"
    env_id = IDS["grpo" if words else "ppo"]
    arguments = {k: v for k, v in cell.env.items() if words or k not in ("format", "max_chars")}
    arguments |= {"split": split, "reward": cell.judge}
    doctor: Any = agent
    if cell.trainer in REFERENCES:
        doctor = make_doctor(agent, Setup(**arguments).tables, 0)
    s = evaluate(env_id, doctor, cell.episodes, 0, env_arguments=arguments)
    if s["failures"] or s["unscored"]:
        raise RunError(f"{cell}: {s['failures']} of {cell.episodes} consultations failed and {s['unscored']} could not be scored")
    out: dict[str, Any] = {"return": s["mean_return"], "accuracy": s["accuracy"], "questions": s["mean_questions"], "cost": s["mean_cost"]}
    return out | {"components": _measured(cell, env_id, doctor, arguments, folder / f"measure-{split}") if cell.measure else {}}


def _measured(cell: Cell, env_id: str, doctor: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Unweighted means of the measure's rewards, summed over a consultation, from the records of one more evaluation."""
    shutil.rmtree(folder, ignore_errors=True)  # references are objects, whose records can't be told to be theirs
    s = evaluate(env_id, doctor, cell.episodes, 0, folder, {**arguments, "reward": cell.measure})
    if s["failures"] or s["unscored"]:
        raise RunError(
            f"{cell}: {s['failures']} of {cell.episodes} consultations failed, {s['unscored']} could not be scored by the measure"
        )
    sums: dict[str, float] = {}
    for record in read_trajectories(folder):
        for turn in record["turns"]:
            for name, paid in turn["components"].items():
                sums[name] = sums.get(name, 0.0) + paid
    shutil.rmtree(folder)
    return {name: sums[name] / weight / cell.episodes for name, weight, _ in parse_mix(cell.measure).terms}


@cache
def _fingerprint(knowledge: str) -> str:
    return Setup(knowledge=knowledge).base.fingerprint
