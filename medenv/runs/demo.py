"""What `make demo` shows: a doctor that learns in minutes on a CPU, compared with others on the same patients.

Everything lies under one folder: the training run, the evaluations, the learning curve (PNG), the table (CSV, Markdown), and one
consultation of the trained doctor (text, PNG). Given again, the same command goes on where it was and repeats nothing.

Does not cover: several seeds, or settings other than the defaults: a demonstration, not an experiment.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from medenv.agents.doctor import make_doctor, one
from medenv.envs import rendering
from medenv.envs.consult import ConsultEnv
from medenv.errors import MedenvError
from medenv.notice import NOTICE
from medenv.runs.evaluate import evaluate
from medenv.runs.plots import plot_learning_curve
from medenv.runs.records import read_trajectories, write_atomically
from medenv.runs.statistics import paired_difference

ENV_ID, SEED = "MedConsult-v0", 0
OTHERS = ("random", "prevalence", "checklist", "greedy", "oracle")
COLUMNS = ("accuracy", "top3", "mean_questions", "mean_cost", "mean_return", "brier", "ece")


def demo(
    output: Path,
    seconds: float = 180.0,
    episodes: int = 2000,
    knowledge: str = "builtin",
    write: Callable[[str], None] = print,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train for `seconds`, evaluate on `episodes` test cases, write table and pictures under `output`; returns their paths and scores."""
    from medenv.agents.ppo import PPOSettings
    from medenv.runs.run_directory import read_metrics
    from medenv.runs.training import train

    if output.exists() and not output.is_dir():
        raise MedenvError(f"output {str(output)!r} is a file: name a folder")
    run = output / "ppo"
    write(f"1. Training a doctor on {knowledge} for {seconds:.0f} s (the folder is {output}; a finished run is not trained again) ...")
    settings = PPOSettings(env={"knowledge": knowledge, "observe_belief": True}, seed=SEED, seconds=seconds)
    final = train(settings, run, resume=True, progress=progress)
    write(f"   {final['steps']:,} steps in {final['seconds']:.0f} s; on validation cases it earns {final['validation_return']:.3f}.")

    write(f"2. Evaluating {len(OTHERS) + 1} doctors on the same {episodes} test cases ...")
    summaries: dict[str, dict[str, Any]] = {}
    folders: dict[str, Path] = {}
    for name in (*OTHERS, "ppo"):
        agent = f"ppo:{run}" if name == "ppo" else name
        folders[name] = output / "evaluations" / (f"ppo-{final['update']}-{episodes}" if name == "ppo" else f"{name}-{episodes}")
        summaries[name] = evaluate(ENV_ID, agent, episodes, SEED, folders[name], {"knowledge": knowledge})
    rows = [[name, *(_shown(summary, key) for key in COLUMNS)] for name, summary in summaries.items()]
    files = {
        "table": output / "results.md",
        "csv": output / "results.csv",
        "curve": output / "learning_curve.png",
        "consultation": output / "consultation.txt",
        "picture": output / "consultation.png",
    }
    gained = _gained(folders["ppo"], folders["greedy"])
    table = _aligned([["doctor", *COLUMNS], *rows]) + f"\n{gained}"
    write_atomically(files["csv"], _csv(summaries))
    write_atomically(files["table"], _markdown(knowledge, final["seconds"], episodes, rows, gained))
    references = {name: summaries[name]["mean_return"] for name in ("random", "checklist", "greedy")}
    plot_learning_curve(read_metrics(run / "metrics.jsonl"), files["curve"], references)
    write("   Means with 95 % intervals; '-' does not apply (the oracle sees everything and asks nothing).\n\n" + table + "\n")

    case = _telling_case(folders["ppo"])
    write("3. One consultation of the trained doctor:\n")
    write(_consultation(knowledge, run, case, files["consultation"], files["picture"]))
    write("\nWritten:\n" + "\n".join(f"  {file}" for file in files.values()) + f"\n  {run}, {output / 'evaluations'}\n{NOTICE}")
    return {"files": {k: str(v) for k, v in files.items()}, "scores": summaries}


def _telling_case(folder: Path) -> str:
    """A case that the doctor got right with about the median number of questions, and at least two."""
    right = [(r["end"]["questions"], r["case_id"]) for r in read_trajectories(folder) if r["end"] and r["end"]["correct"]]
    enough = sorted(c for c in right if c[0] >= 2) or sorted(right) or [(0, next(read_trajectories(folder))["case_id"])]
    return enough[len(enough) // 2][1]


def _consultation(knowledge: str, run: Path, case: str, text: Path, picture: Path) -> str:
    """Play the case, write both renderings, return the text."""
    from PIL import Image

    env = gym.make(ENV_ID, disable_env_checker=True, knowledge=knowledge, split="test", observe_belief=True)
    consult = env.unwrapped
    assert isinstance(consult, ConsultEnv)
    doctor = make_doctor(f"ppo:{run}", consult.setup.tables)
    observation, _ = env.reset(seed=SEED, options={"case": case})
    ended = False
    while not ended:
        action, _ = doctor.act(one(observation))
        observation, _, ended, _, _ = env.step(action[0])
    said = rendering.text(consult)
    write_atomically(text, said + "\n")
    Image.fromarray(rendering.picture(consult)).save(picture)
    return said


def _gained(mine: Path, other: Path) -> str:
    """What the trained doctor earns beyond greedy, in words: pairs of consultations with the same patient."""
    first, second = ({r["episode"]: r["end"]["return"] for r in read_trajectories(f) if r["end"]} for f in (mine, other))
    both = [e for e in sorted(first.keys() & second.keys()) if first[e] is not None and second[e] is not None]
    if not both:
        return "No consultation was scored for ppo and greedy both: they are not compared."
    difference, low, high = paired_difference([first[e] for e in both], [second[e] for e in both], SEED)
    return f"Return of ppo minus that of greedy on the same patients: {difference:+.3f} [{low:+.3f}, {high:+.3f}]."


def _shown(summary: Mapping[str, Any], key: str) -> str:
    if summary[key] is None:
        return "-"
    low, high = summary[f"{key}_ci"]
    return f"{summary[key]:.3f} [{low:.3f}, {high:.3f}]"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _csv(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["doctor", *(f"{c}{end}" for c in COLUMNS for end in ("", "_low", "_high"))])
    for name, s in summaries.items():
        cells = [x for c in COLUMNS for x in ((s[c], *s[f"{c}_ci"]) if s[c] is not None else ("", "", ""))]
        table.writerow([name, *cells])
    return text.getvalue()


def _markdown(knowledge: str, seconds: float, episodes: int, rows: list[list[str]], gained: str) -> str:
    head = f"Doctors on {knowledge}, {episodes} test cases, one seed; ppo trained for {seconds:.0f} s. Means with 95 % intervals."
    lines = [f"| doctor | {' | '.join(COLUMNS)} |", f"| --- |{' --: |' * len(COLUMNS)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([head, "", *lines, "", gained, "", NOTICE, ""])
