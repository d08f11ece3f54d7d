"""The README's tables, made from the committed tables under `experiments/` so that no number in them is written by hand.

    python -m medenv.runs.results            prints them
    python -m medenv.runs.results --write    puts each between its two marks in README.md

Does not cover: running the experiments (`medenv.runs.experiments`).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import medenv
from medenv.errors import RunError

ROOT = Path(medenv.__file__).parents[1]
HEAD = (
    "| patients | doctor | top-1 | questions | greedy's top-1 at as many questions | return | gap closed |",
    "|" + " --- |" * 7,
)
BUILTIN, REAL = "built-in base", "DDXPlus, real test patients"
Row = Mapping[str, str]


def results_table(experiments: Path = ROOT / "experiments") -> str:
    """Markdown. Learned doctors: the mean over seeds, their range in brackets; a single seed with its 95 % interval."""
    observed = _read(experiments / "ppo/belief.csv")
    lines = list(HEAD)
    for agent in ("random", "greedy", "oracle"):
        lines.append(_line(BUILTIN, agent, [r for r in observed if r["agent"] == agent]))
    runs = (
        ("belief", "PPO, belief observed"),
        ("no_belief", "PPO, belief not observed"),
        ("belief_20min", "PPO with layers twice as wide, belief observed"),
        ("imitate_20min", "PPO after imitating greedy, belief observed"),
    )
    for name, label in runs:
        lines += _seeds(BUILTIN, label, experiments / f"ppo/{name}.csv", "cases")
    real = [r for r in _read(experiments / "ddxplus/real_patients.csv") if r["chosen"]]
    lines.append(_line(REAL, f"greedy, confidence {real[0]['confidence']}", real))
    lines.append(f"| {REAL} | oracle | {_percent(real[0]['oracle_accuracy'], real[0]['oracle_ci'])} | all | | | |")
    for name, label in (("ddxplus_belief", "belief observed"), ("ddxplus_no_belief", "belief not observed")):
        lines += _seeds(REAL, f"PPO trained on sampled patients, {label}", experiments / f"ppo/{name}.csv", "real")
    return "\n".join(lines)


def attacks_table(experiments: Path = ROOT / "experiments") -> str:
    """Markdown: what the honest doctor and the best attack earn under each reward mix, and which attacks pay."""
    lines = ["| mix | honest return | best attack | its return | attacks that pay |", "|" + " --- |" * 5]
    for row in _read(experiments / "attacks/attacks.csv"):
        honest, best = (_return(row[key], row[f"{key}_ci"]) for key in ("honest", "best"))
        pays = row["pays"] if row["pays"] in ("none", "not judged") else f"**{row['pays']}**"
        lines.append(f"| {row['mix']} | {honest} | {row['best_attack']} | {best} | {pays} |")
    return "\n".join(lines)


def hacking_table(experiments: Path = ROOT / "experiments") -> str:
    """Markdown: what PPO made of each mix without accuracy, means over seeds."""
    head = ("mix", "return, first to last", "questions", "right diagnoses", "best guess right, last", "best guess right, highest", "parted")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in _read(experiments / "attacks/hacking.csv"):
        first = f"{float(row['return_start']):.3f}"
        keys = ("questions_end", "accuracy_end", "best_guess_end", "best_guess_highest")
        parted = "**yes**" if row["parted"] == "True" else "no"
        lines.append(f"| {row['mix']} | {first} to {row['return_end']} | {' | '.join(row[k] for k in keys)} | {parted} |")
    return "\n".join(lines)


def words_table(experiments: Path = ROOT / "experiments") -> str:
    """Markdown: doctors in words on test cases, means over seeds; below, GRPO with different credits."""
    head = (
        "doctor in words, 12 conditions, 8 turns",
        "decoding",
        "top-1",
        "of greedy's",
        "questions",
        "repeated",
        "training, seconds a seed",
    )
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name in ("doctor", "credit"):
        file = experiments / f"words/{name}.csv"
        for row in _read(file) if file.is_file() else []:
            if name == "credit" and row["arm"] in ("greedy", "SFT"):
                continue
            label = f"GRPO, {row['updates'].split(', ')[0]} updates, {row['arm']}" if name == "credit" else row["arm"]
            accuracy = _percent(row["accuracy"], row["accuracy_ci"])
            cells = (
                label,
                row["decoding"],
                accuracy,
                f"{float(row['of_greedy']):.0%}",
                row["questions"],
                f"{float(row['repeat_rate']):.1%}",
            )
            lines.append(f"| {' | '.join(cells)} | {row['train_seconds']} |")
    return "\n".join(lines)


def rewards_table(experiments: Path = ROOT / "experiments", name: str = "rewards") -> str:
    """What each reward adds to accuracy: `medenv ablate experiments/ablations/NAME.toml`."""
    lines = [
        "| patients | trained on | steps to 90 % of greedy's return | return, validation | accuracy | questions | return, test |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in _read(experiments / "ablations" / name / "results.csv"):
        if row["environment"].startswith("all") or row["mix"] == "random":
            continue
        steps = f"{int(row['steps_to_90']):,}" if row["steps_to_90"].isdigit() else row["steps_to_90"]
        reached = f"{steps} ({row['reached']})" if row["reached"] else ""
        earned = [
            _return(row[key], row[f"{key}_ci"]) if row[f"{key}_ci"] else f"{float(row[key]):.3f}" for key in ("return", "test_return")
        ]
        accuracy = f"{float(row['accuracy']):.1%}"
        lines.append(
            f"| {row['environment']} | {row['mix']} | {reached} | {earned[0]} | {accuracy} | {float(row['questions']):.1f} | {earned[1]} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {
    "results": results_table,
    "attacks": attacks_table,
    "hacking": hacking_table,
    "words": words_table,
    "rewards": rewards_table,
    "delayed": partial(rewards_table, name="delayed"),
}


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a table in the README."""
    return f"<!-- {name}: made by `python -m medenv.runs.results --write` -->", f"<!-- end of {name} -->"


def main(arguments: Sequence[str], readme: Path = ROOT / "README.md", experiments: Path = ROOT / "experiments") -> None:
    """Print the tables, or write them into the README."""
    made = {name: table(experiments) for name, table in TABLES.items()}
    if "--write" not in arguments:
        print("\n\n".join(made.values()))
        return
    text = readme.read_text(encoding="utf-8")
    for name, table in made.items():
        begin, end = marks(name)
        if begin not in text or end not in text:
            raise RunError(f"{readme} lacks the marks {begin!r} and {end!r}: put them where the table belongs")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}\n{end}{after}"
    readme.write_text(text, encoding="utf-8")


def _read(file: Path) -> list[Row]:
    if not file.is_file():
        raise RunError(f"{file} does not exist: run its experiment first")
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _line(patients: str, agent: str, rows: Sequence[Row]) -> str:
    row = rows[0]
    questions = f"{float(row['mean_questions']):.2f}" if row["mean_questions"] else "all"
    reward = f"{float(row['mean_return']):.3f}" if row["mean_return"] else ""
    gap = f"{float(row['gap_closed']):.0%}" if row.get("gap_closed") else ""
    return f"| {patients} | {agent} | {_percent(row['accuracy'], row['accuracy_ci'])} | {questions} | | {reward} | {gap} |"


def _seeds(patients: str, label: str, file: Path, test: str) -> list[str]:
    if not file.is_file():
        return []
    rows = [r for r in _read(file) if r["agent"].startswith("seed") and r["test"] == test]

    def spread(key: str, form: str, interval: str) -> str:
        values = [float(r[key]) for r in rows]
        low, high = (min(values), max(values)) if len(rows) > 1 else (float(x) for x in rows[0][interval].split(" to "))
        return f"{sum(values) / len(values):{form}} [{low:{form}} to {high:{form}}]"

    equal = f"{sum(float(r['greedy_equal_questions']) for r in rows) / len(rows):.1%}"
    keys = (("accuracy", ".1%"), ("mean_questions", ".2f"), ("mean_return", ".3f"))
    accuracy, questions, earned = (spread(key, form, f"{key}_ci") for key, form in keys)
    cells = (accuracy, questions, equal, earned, spread("gap_closed", ".1%", "gap_ci"))
    spent = max(float(r["seconds"]) for r in rows)
    time = f"{spent / 60:.0f} min" if spent > 240 else f"{spent / 60:.1f} min"
    return [f"| {patients} | {label}, {time} on one core, {len(rows)} seed{'s' if len(rows) > 1 else ''} | {' | '.join(cells)} |"]


def _return(value: str, interval: str) -> str:
    if not value:
        return "not scored"
    low, high = (float(x) for x in interval.split(" to "))
    return f"{float(value):.3f} [{low:.3f} to {high:.3f}]"


def _percent(value: str, interval: str) -> str:
    low, high = (float(x) for x in interval.split(" to "))
    return f"{float(value):.1%} [{low:.1%} to {high:.1%}]"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RunError as error:
        sys.exit(str(error))
