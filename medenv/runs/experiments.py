"""The experiments whose tables are committed under `experiments/`: long commands of their own.

    python -m medenv.runs.experiments greedy                  the reference doctor's two settings, chosen on validation cases
    python -m medenv.runs.experiments ddxplus DIR             greedy and oracle on real DDXPlus test patients; floor, threshold, curve
    python -m medenv.runs.experiments ppo SETTINGS.toml       PPO over seeds beside random and greedy on shared test cases
    python -m medenv.runs.experiments attacks                 attackers against an honest doctor under every reward mix
    python -m medenv.runs.experiments one-more --data DIR     what one question too many is paid: information gain, Shapley credit
    python -m medenv.runs.experiments hacking                 PPO on rewards without accuracy: does accuracy follow the return?

Each cell is a run or an evaluation in a directory of its own under `runs/`, so an interrupted experiment goes on where it stopped.

Does not cover: reward ablations (`ablate`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from medenv.agents.greedy import CONFIDENCE, MIN_GAIN, Greedy
from medenv.cases.ddxplus import load_cases
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RunError
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.ddxplus import FLOOR, load_knowledge
from medenv.runs.evaluate import evaluate
from medenv.runs.provenance import provenance
from medenv.runs.records import read_trajectories
from medenv.runs.tables import write_table

ENV = "MedConsult-v0"
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
REAL_CONFIDENCES = (0.3, *CONFIDENCES, 0.999)
MIN_GAINS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06)
FLOORS = (1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2e-2)
QUESTIONS_AT_MOST = 3.5
SAMPLED = 4000


@click.group(help=__doc__)
def main() -> None:
    """See the module."""


@main.command()
@click.option("--output", default="experiments/greedy", type=click.Path(path_type=Path))
@click.option("--episodes", default=SAMPLED)
def greedy(output: Path, episodes: int) -> None:
    """Sweep `confidence` and `min_gain` on sampled validation cases of the built-in base; the best mean return is what greedy uses."""
    setup = Setup(split="validation")
    rows = []
    for min_gain in MIN_GAINS:
        for confidence in CONFIDENCES[3:]:
            s = evaluate(ENV, Greedy(setup.tables, confidence, min_gain), episodes, 0, env_arguments={"split": "validation"})
            rows.append({"confidence": confidence, "min_gain": min_gain} | _some(s))
            click.echo(f"{rows[-1]}")
    best = max(rows, key=lambda r: r["mean_return"])
    notes = [
        f"{episodes} sampled validation cases of {setup.base.id}, default mix, 20 turns. Best mean return: "
        f"confidence {best['confidence']}, min_gain {best['min_gain']}; in use: {CONFIDENCE}, {MIN_GAIN}."
    ]
    _write(output / "validation", rows, notes, f"python -m medenv.runs.experiments greedy --episodes {episodes}")


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--patients", default="", help="the patients file; default: the release's test file, or its sample, in DATA")
@click.option("--output", default="experiments/ddxplus", type=click.Path(path_type=Path))
def ddxplus(data: Path, patients: str, output: Path) -> None:
    """Greedy and oracle on real test patients. Floor and threshold are chosen on sampled patients before the real ones are read."""
    bases = {floor: load_knowledge(data, floor) for floor in FLOORS}
    sampled = {(f, c): _sampled(bases[f], c) for f in FLOORS for c in REAL_CONFIDENCES}
    allowed = [c for c in REAL_CONFIDENCES if sampled[FLOOR, c]["mean_questions"] <= QUESTIONS_AT_MOST]
    chosen = max(allowed, key=lambda c: sampled[FLOOR, c]["accuracy"])
    click.echo(f"chosen on sampled patients: floor {FLOOR}, confidence {chosen}")
    file = Path(patients) if patients else next(p for p in sorted(data.iterdir()) if p.name.startswith("release_test_patients"))
    rows = []
    for floor, base in bases.items():
        cases = load_cases(file, base, "test")[0]
        arguments = _arguments(base) | {"cases": cases, "split": "test"}
        oracle = evaluate(ENV, "oracle", len(cases), 0, env_arguments=arguments)
        for confidence in REAL_CONFIDENCES if floor == FLOOR else (chosen,):
            real = evaluate(ENV, Greedy(Setup(**arguments).tables, confidence), len(cases), 0, env_arguments=arguments)
            rows.append(
                {
                    "floor": floor,
                    "confidence": confidence,
                    "chosen": "yes" if (floor, confidence) == (FLOOR, chosen) else "",
                    "sampled_accuracy": sampled[floor, confidence]["accuracy"],
                    "sampled_questions": sampled[floor, confidence]["mean_questions"],
                }
                | _some(real)
                | {"top3": real["top3"], "brier": real["brier"], "ece": real["ece"], "oracle_accuracy": oracle["accuracy"]}
                | {"oracle_ci": _interval(oracle["accuracy_ci"])}
            )
            click.echo(f"{rows[-1]}")
    notes = [
        f"{len(cases)} real patients of {file.name}, after age, sex and opening evidence; 30 turns, no reporting noise. Sampled columns: "
        f"{SAMPLED} patients drawn from the same tables. The threshold is the most accurate one on sampled patients with at most "
        f"{QUESTIONS_AT_MOST} questions on average, at the committed floor {FLOOR:g}; {bases[FLOOR].notes[-1]}.",
    ]
    _write(output / "real_patients", rows, notes, "python -m medenv.runs.experiments ddxplus DIR")
    _plot_curve([r for r in rows if r["floor"] == FLOOR], output / "accuracy_questions.png")


@main.command()
@click.argument("settings", type=click.Path(path_type=Path, exists=True))
@click.option("--output", default=None, type=click.Path(path_type=Path), help="default: beside SETTINGS")
@click.option("--runs", default="runs", type=click.Path(path_type=Path), help="where the runs and evaluations are kept")
@click.option("--jobs", default=1, help="runs side by side")
@click.option("--data", default="", help="replaces {data} in the settings, such as a DDXPlus directory")
def ppo(settings: Path, output: Path | None, runs: Path, jobs: int, data: str) -> None:
    """Train over seeds, then evaluate on test cases that every doctor shares."""
    text = settings.read_text(encoding="utf-8")
    if "{data}" in text and not data:
        raise RunError(f"{settings} needs --data DIR")
    plan = tomllib.loads(text.replace("{data}", data))
    folder = runs / settings.stem
    seeds = [folder / f"seed{seed}" for seed in plan["seeds"]]
    _train(settings.stem, plan, seeds, jobs)
    tests = plan.get("test", {"cases": {}})
    rows: list[dict[str, Any]] = []
    for name, test in tests.items():
        arguments = plan.get("env", {}) | test
        episodes = plan.get("episodes", 4000)
        agents = {"random": "random", "greedy": "greedy", "oracle": "oracle"} | {d.name: f"ppo:{d}" for d in seeds}
        found = {k: _evaluated(folder / f"{name}-{k}", a, episodes, arguments, k) for k, a in agents.items()}
        curve = _greedy_curve(arguments, episodes)
        rows += [{"test": name} | _row(k, found, curve, seeds) for k in found]
    closed = [
        r["gap_closed"] for r in rows if r["agent"].startswith("seed") and r["gap_closed"] is not None and r["test"] == next(iter(tests))
    ]
    notes = [
        f"{plan['title']} Settings: `{settings.name}`. Training: {plan['train']['seconds']} s per seed, {plan['threads']} thread(s), "
        f"{jobs} run(s) side by side. Test cases are the same for every doctor. gap_closed = (return - random) / (greedy - random), "
        "interval: bootstrap over test cases. greedy_equal_questions: greedy's accuracy at the same mean number of questions, interpolated "
        "over its confidence."
    ]
    if closed:
        notes.append(f"gap_closed over {len(closed)} seeds: mean {np.mean(closed):.3f}, least {min(closed):.3f}.")
    _write(
        (output or settings.parent) / settings.stem, rows, notes, f"python -m medenv.runs.experiments ppo {settings} --jobs {jobs}", "torch"
    )


@main.command()
@click.argument("settings", type=click.Path(path_type=Path, exists=True), default="experiments/attacks/settings.toml")
@click.option("--output", default=None, type=click.Path(path_type=Path), help="default: beside SETTINGS")
@click.option("--runs", default="runs/attacks", type=click.Path(path_type=Path), help="where the result of each mix is kept")
def attacks(settings: Path, output: Path | None, runs: Path) -> None:
    """Every attacker against the honest doctor under every mix of SETTINGS."""
    from medenv.runs.attacks import attack_mixes, doctor_rows, mix_row

    plan = tomllib.loads(settings.read_text(encoding="utf-8"))
    found = attack_mixes(plan, runs, click.echo)
    stem = (output or settings.parent) / "attacks"
    notes = [
        f"{plan['episodes']} sampled {plan['split']} cases, the same for every doctor; {plan['max_turns']} turns; the honest doctor is "
        f"{plan['honest']}. An attack pays if its mean return reaches the lower end of the honest doctor's 95 % interval. best: the attack "
        "with the highest mean return. Settings: `settings.toml`; every attack: `attacks_each.md`."
    ]
    command = f"python -m medenv.runs.experiments attacks {settings}"
    _write(stem, [mix_row(title, plan["mixes"][title], result) for title, result in found.items()], notes, command)
    each = [row for title, result in found.items() for row in doctor_rows(title, result)]
    notes = ["What stands behind `attacks.md`, the honest doctor first. credit_ and gain_of_duplicates: nats per duplicate question."]
    _write(stem.with_name("attacks_each"), each, notes, command)


@main.command()
@click.argument("settings", type=click.Path(path_type=Path, exists=True), default="experiments/attacks/hacking.toml")
@click.option("--output", default=None, type=click.Path(path_type=Path), help="default: beside SETTINGS")
@click.option("--runs", default="runs", type=click.Path(path_type=Path), help="where the runs are kept")
@click.option("--jobs", default=1, help="runs side by side")
def hacking(settings: Path, output: Path | None, runs: Path, jobs: int) -> None:
    """PPO on reward mixes without accuracy: return against accuracy at every checkpoint."""
    from medenv.runs.hacking import plot, read_curves, verdict

    plan = tomllib.loads(settings.read_text(encoding="utf-8"))
    curves, rows, points = {}, [], []
    for name, mix in plan["mixes"].items():
        folders = [runs / settings.stem / name.replace(" ", "_").replace(",", "") / f"seed{seed}" for seed in plan["seeds"]]
        _train(name, plan | {"env": plan["env"] | {"reward": mix}}, folders, jobs)
        curves[name] = read_curves(folders)
        rows.append({"mix": name, "reward": mix} | verdict(curves[name]))
        points += [
            {"mix": name, "seed": seed} | dict(zip(run, values, strict=True))
            for seed, run in zip(plan["seeds"], curves[name], strict=True)
            for values in zip(*run.values(), strict=True)
        ]
        click.echo(f"{rows[-1]}")
    stem = (output or settings.parent) / settings.stem
    notes = [
        f"{plan['title']} {plan['train']['steps']:,} steps a run, {plan['train']['evaluate_episodes']} cases at each checkpoint, "
        "greedy decoding. Means over seeds, least and greatest in brackets. best_guess: the likeliest condition of the exact belief at the "
        "end. return_rose and best_guess_fell: from the checkpoint with the highest best guess to the last; parted: in every seed the "
        "return rose while the best guess fell by more than 2 points."
    ]
    command = f"python -m medenv.runs.experiments hacking {settings} --jobs {jobs}"
    _write(stem, rows, notes, command, "torch")
    _write(stem.with_name(f"{stem.name}_checkpoints"), points, [f"The checkpoints behind {stem.name}.md."], command, "torch")
    plot(curves, stem.with_suffix(".png"))


@main.command()
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="a DDXPlus release")
@click.option("--output", default="experiments/ablations", type=click.Path(path_type=Path))
@click.option("--consultations", default=2000)
def one_more(data: Path, output: Path, consultations: int) -> None:
    """Greedy asks on where it could stop: what is the last question paid?"""
    from medenv.runs.one_more import COST
    from medenv.runs.one_more import one_more as measure

    bases: dict[str, dict[str, Any]] = {"built-in": {"knowledge": "builtin"}, "DDXPlus": {"knowledge": f"ddxplus:{data}", "noise": 0.0}}
    rows = [{"environment": name} | row for name, about in bases.items() for row in measure(about, (1, 2, 4, 8), consultations)]
    notes = [
        "`greedy` consults until it would diagnose, then asks so many `more` questions, each the best by information gain. Means in nats "
        f"of the last one, over the consultations of {consultations} validation cases that had room for it: its information gain, its "
        "Shapley credit, and what the earlier answers lose to it. over_cost: how often it is over "
        f"{COST:g} nats, which is what a question costs where nats are paid .1 and a question costs .01."
    ]
    _write(output / "one_more", rows, notes, "python -m medenv.runs.experiments one-more --data DIR")


def _train(name: str, plan: Mapping[str, Any], folders: Sequence[Path], jobs: int) -> None:
    """One process per seed, `jobs` at a time; a run that is there already is resumed or left alone."""
    waiting = list(zip(plan["seeds"], folders, strict=True))
    running: list[tuple[int, subprocess.Popen[bytes]]] = []
    threads = str(plan["threads"])
    try:
        _run_all(name, plan, waiting, running, threads, jobs)
    finally:
        for _, process in running:
            process.terminate()


def _run_all(name: str, plan: Mapping[str, Any], waiting: list[tuple[int, Path]], running: list[Any], threads: str, jobs: int) -> None:
    while waiting or running:
        while waiting and len(running) < jobs:
            seed, folder = waiting.pop(0)
            keys = [f"env.{k}={json.dumps(v)}" for k, v in plan.get("env", {}).items()]
            keys += [f"{k}={json.dumps(v)}" for k, v in plan["train"].items()]
            command = [
                sys.executable,
                "-m",
                "medenv",
                "train",
                "ppo",
                f"seed={seed}",
                f"threads={threads}",
                *keys,
                "--output",
                str(folder),
                "--resume",
            ]
            click.echo(f"{name}, seed {seed}: {' '.join(command[1:])}")
            quiet = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            running.append((seed, subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL)))
        seed, process = running.pop(0)
        if process.wait():
            raise RunError(f"seed {seed} of {name} ended with exit code {process.returncode}: run the command again to resume it")


def _evaluated(folder: Path, agent: str, episodes: int, arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    click.echo(f"evaluate {name}")
    summary = evaluate(ENV, agent, episodes, 0, output=folder, env_arguments=arguments)
    records = sorted(read_trajectories(folder), key=lambda r: r["episode"])
    summary["returns"] = None if summary["mean_return"] is None else np.array([r["end"]["return"] for r in records])
    return summary


def _row(name: str, found: Mapping[str, Mapping[str, Any]], curve: list[tuple[float, float]], seeds: Sequence[Path]) -> dict[str, Any]:
    s = found[name]
    row: dict[str, Any] = {"agent": name} | _some(s)
    row["greedy_equal_questions"] = None
    row["gap_closed"] = row["gap_ci"] = None
    if s["returns"] is not None:
        questions, accuracy = zip(*sorted(curve), strict=True)
        row["greedy_equal_questions"] = round(float(np.interp(s["mean_questions"], questions, accuracy)), 4)
        low, high = found["random"]["returns"], found["greedy"]["returns"]
        row["gap_closed"] = round(float((s["returns"].mean() - low.mean()) / (high.mean() - low.mean())), 4)
        row["gap_ci"] = _interval(_gap_interval(s["returns"], low, high))
    folder = next((d for d in seeds if d.name == name), None)
    if folder is not None:
        row |= _trained(folder)
    return row


def _trained(folder: Path) -> dict[str, Any]:
    from medenv.runs.run_directory import read_metrics  # needs torch, which the other experiments do not

    lines = read_metrics(folder / "metrics.jsonl")
    last = lines[-1]
    rates = [r["steps_per_second"] for r in lines if r.get("steps_per_second")]
    return {"steps": last["steps"], "seconds": round(last["seconds"], 1), "steps_per_second": round(float(np.median(rates)))}


def _gap_interval(mine: NDArray, low: NDArray, high: NDArray, resamples: int = 2000) -> tuple[float, float]:
    pick = np.random.default_rng(0).integers(0, mine.size, (resamples, mine.size))
    a, b, c = (x[pick].mean(1) for x in (mine, low, high))
    return tuple(np.quantile((a - b) / (c - b), [0.025, 0.975]))


def _greedy_curve(arguments: Mapping[str, Any], episodes: int) -> list[tuple[float, float]]:
    tables = Setup(**arguments).tables
    out = []
    for confidence in CONFIDENCES[::3]:
        s = evaluate(ENV, Greedy(tables, confidence), min(episodes, 2000), 0, env_arguments=arguments)
        out.append((s["mean_questions"], s["accuracy"]))
    return out


def _arguments(base: KnowledgeBase) -> dict[str, Any]:
    return {"knowledge": base, "noise": 0.0, "max_turns": 30}


def _sampled(base: KnowledgeBase, confidence: float) -> dict[str, Any]:
    arguments = _arguments(base) | {"split": "validation"}
    return evaluate(ENV, Greedy(Setup(**arguments).tables, confidence), SAMPLED, 0, env_arguments=arguments)


def _some(s: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("accuracy", "mean_questions", "mean_cost", "mean_return")
    return {k: v for key in keys for k, v in ((key, _rounded(s[key])), (f"{key}_ci", _interval(s[f"{key}_ci"])))}


def _rounded(x: float | None) -> float | None:
    return None if x is None else round(float(x), 4)


def _interval(pair: Sequence[float] | None) -> str | None:
    return None if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}"


def _write(stem: Path, rows: Sequence[Mapping[str, Any]], notes: Sequence[str], command: str, *packages: str) -> None:
    write_table(stem, rows, notes, provenance(command, *packages))
    click.echo(f"written: {stem}.csv and .md")


def _plot_curve(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda r: r["mean_questions"])
    axes.plot([r["mean_questions"] for r in ordered], [r["accuracy"] for r in ordered], "o-", label="greedy, real test patients")
    axes.plot(
        [r["sampled_questions"] for r in ordered],
        [r["sampled_accuracy"] for r in ordered],
        "--",
        color="0.6",
        label="greedy, sampled patients",
    )
    axes.axhline(ordered[0]["oracle_accuracy"], color="tab:green", linestyle=":", label="oracle (all findings), real")
    for r in ordered:
        if r["chosen"]:
            axes.annotate(
                f"chosen: {r['accuracy']:.4f} at {r['mean_questions']:.2f}",
                (r["mean_questions"], r["accuracy"]),
                (10, -25),
                textcoords="offset points",
                arrowprops={"arrowstyle": "->"},
            )
    axes.set_xlabel("mean questions")
    axes.set_ylabel("top-1 accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (MedenvError, click.ClickException) as error:
        sys.exit(f"{error}")
