"""The experiments with language-model doctors: supervised start, GRPO, and whether credit for each turn helps.

    python -m medenv.runs.words experiments/words/doctor.toml     SFT at its plateau, GRPO from it, SFT continued as long; test cases
    python -m medenv.runs.words experiments/words/credit.toml     GRPO with different credits from the same starts

Both are made of the same cells: RUNS/seedN/ARM is a run of `medenv train`, RUNS/seedN/ARM-DECODING its evaluation. A cell that is finished
is left alone, one that was cut is resumed; several processes may work on one RUNS folder, each with seeds of its own (`--only`).

Does not cover: tuning, which was done on validation cases and by hand.
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

from medenv.agents.greedy import Greedy
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RunError
from medenv.runs.evaluate import evaluate
from medenv.runs.provenance import provenance
from medenv.runs.records import Record, read_trajectories
from medenv.runs.statistics import bootstrap_mean, paired_difference
from medenv.runs.tables import write_table

TEXT = "MedConsultText-v0"
DECODINGS = {"greedy decoding": 0.0, "sampled": 1.0}
CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of greedy, for its accuracy at another doctor's number of questions

SMOOTH = 10  # updates

Plan = Mapping[str, Any]
Table = list[dict[str, Any]]


@click.command(help=__doc__)
@click.argument("settings", type=click.Path(path_type=Path, exists=True))
@click.option("--output", default=None, type=click.Path(path_type=Path), help="default: beside SETTINGS")
@click.option("--runs", default="runs/words", type=click.Path(path_type=Path), help="where the runs are kept")
@click.option("--only", default="", help="seeds, such as 0,2: train and evaluate these, write no table")
def main(settings: Path, output: Path | None, runs: Path, only: str) -> None:
    """Every arm of SETTINGS over seeds: accuracy, questions, repeats on shared test cases, and differences between arms."""
    plan, cells = _cells(settings, runs, only)
    if only:
        return
    found = {(arm, how): [_evaluated(plan, cell, how) for cell in row] for arm, row in cells.items() for how in DECODINGS}
    curve = _greedy_curve(plan)
    reference = _evaluated(plan, runs / "greedy", "", "greedy")
    rows = [_row("greedy", "", [reference], reference, curve)]
    rows += [_row(arm, how, each, reference, curve) for (arm, how), each in found.items()]
    for row, (arm, _) in zip(rows[1:], found, strict=True):
        row["train_seconds"] = ", ".join(str(round(_last(cell)["seconds"])) for cell in cells[arm])
        row["updates"] = ", ".join(str(_last(cell)["update"]) for cell in cells[arm])
    table = (output or settings.parent) / settings.stem
    notes = [
        f"{plan['title']} {plan['episodes']} test cases, the same for every row, {len(plan['seeds'])} seeds. accuracy: mean over seeds, "
        "95 % bootstrap over seeds and cases; each_seed: by seed. of_greedy: accuracy / the accuracy of `greedy`, who speaks in the same "
        "environment with the same turns. greedy_equal_questions: greedy's accuracy at the same mean number of questions, interpolated "
        "over its confidence. repeat_rate: repeated questions / all questions.",
    ]
    command = f"python -m medenv.runs.words {settings}"
    sources = provenance(command, "torch", "transformers", "trl")
    write_table(table, rows, notes, sources)
    pairs = [(a, b) for i, a in enumerate(cells) for b in list(cells)[i + 1 :]]
    differences = [_difference(b, a, how, found[b, how], found[a, how]) for how in DECODINGS for a, b in pairs]
    note = "Accuracy of `arm` minus that of `than` on the same cases from the same seeds, seeds and cases resampled."
    write_table(table.with_name(f"{table.name}_differences"), differences, [note], sources)
    _plot(plan, cells, table.with_suffix(".png"))


def _cells(settings: Path, folder: Path, only: str) -> tuple[Plan, dict[str, list[Path]]]:
    """The plan, and for each arm its run folders by seed, trained and evaluated where they were not."""
    plan = tomllib.loads(settings.read_text(encoding="utf-8"))
    seeds = [int(s) for s in only.split(",")] if only else plan["seeds"]
    cells: dict[str, list[Path]] = {arm: [] for arm in plan["arms"]}
    for seed in seeds:
        for arm, about in plan["arms"].items():
            cell = _cell(folder, seed, arm)
            _trained(plan, arm, about, seed, cell, folder)
            for how in DECODINGS:
                _evaluated(plan, cell, how)
            cells[arm].append(cell)
    return plan, cells


def _cell(folder: Path, seed: int, arm: str) -> Path:
    return folder / f"seed{seed}" / arm.replace(" ", "_").replace(",", "")


def _trained(plan: Plan, arm: str, about: Plan, seed: int, cell: Path, folder: Path) -> None:
    """One run of `medenv train`, in a process of its own."""
    keys = {f"env.{k}": v for k, v in plan["env"].items()} | dict(plan.get(about["train"], {})) | dict(about.get("settings", {}))
    keys |= {"seed": seed, "threads": plan["threads"]}
    if "start" in about:
        keys["model"] = str(_cell(folder, seed, about["start"]))
    if "as_long_as" in about:  # the same compute: as many seconds as the other arm of the seed took
        keys["seconds"] = _last(_cell(folder, seed, about["as_long_as"]))["seconds"]
    command = [
        sys.executable,
        "-m",
        "medenv",
        "train",
        about["train"],
        *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in keys.items()),
    ]
    command += ["--output", str(cell), "--resume"]
    if (cell / "final.json").exists():
        _check_same(cell, about["train"], keys)
        return
    click.echo(f"{arm}, seed {seed}: {' '.join(command[1:])}")
    threads = str(plan["threads"])
    quiet = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if subprocess.run(command, env=os.environ | quiet, stdout=subprocess.DEVNULL, check=False).returncode:
        raise RunError(f"{arm}, seed {seed}: training failed; run the command again to resume it")


def _check_same(cell: Path, kind: str, keys: Plan) -> None:
    """RunError where a finished run was made with other settings than these."""
    from medenv.agents.grpo import GRPOSettings, with_reward
    from medenv.agents.sft import SFTSettings
    from medenv.runs.run_directory import saved_settings
    from medenv.runs.settings import read_settings

    wanted: Any = read_settings(GRPOSettings, keys) if kind == "grpo" else read_settings(SFTSettings, keys)
    wanted = with_reward(wanted) if kind == "grpo" else wanted
    for name, value in saved_settings(cell).items():
        if getattr(wanted, name) != value:
            raise RunError(
                f"{cell}: the run's {name} is {value!r}, the settings' is {getattr(wanted, name)!r}: remove it, or give other --runs"
            )


def _last(cell: Path) -> dict[str, Any]:
    last: dict[str, Any] = json.loads((cell / "final.json").read_text(encoding="utf-8"))
    return last


def _evaluated(plan: Plan, cell: Path, how: str, agent: str = "") -> list[Record]:
    """The records of a run's evaluation on the test cases, in their order."""
    kind = json.loads((cell / "run.json").read_text(encoding="utf-8"))["kind"] if not agent else ""
    folder = cell.with_name(f"{cell.name}-{how.replace(' ', '_') or 'test'}")
    arguments = dict(plan["env"]) | {"split": "test"}
    evaluate(TEXT, agent or f"{kind}:{cell}", plan["episodes"], 0, folder, arguments, temperature=DECODINGS.get(how, 0.0))
    return sorted(read_trajectories(folder), key=lambda r: r["episode"])


def _row(arm: str, how: str, seeds: Sequence[list[Record]], reference: list[Record], curve: list[tuple[float, float]]) -> dict[str, Any]:
    right = np.array([_right(records) for records in seeds])
    accuracy, greedy = right.mean(), _right(reference).mean()
    ends = [r["end"] for records in seeds for r in records if r["end"] is not None]
    asked = [_repeats(r) for records in seeds for r in records if r["end"] is not None]
    questions = float(np.mean([e["questions"] for e in ends]))
    low, high = _interval(right)
    asked_by_greedy, right_of_greedy = zip(*sorted(curve), strict=True)
    expected = float(np.interp(questions, asked_by_greedy, right_of_greedy))
    return {
        "arm": arm,
        "decoding": how,
        "accuracy": round(float(accuracy), 4),
        "accuracy_ci": f"{low:.4f} to {high:.4f}",
        "each_seed": ", ".join(f"{r.mean():.3f}" for r in right),
        "of_greedy": round(float(accuracy / greedy), 3),
        "questions": round(questions, 2),
        "greedy_equal_questions": round(expected, 4),
        "repeat_rate": round(sum(again for again, _ in asked) / max(sum(n for _, n in asked), 1), 4),
        "undiagnosed": round(float(np.mean([e["undiagnosed"] for e in ends])), 4),
        "mean_return": round(float(np.mean([e["return"] for e in ends])), 4),
    }


def _right(records: Sequence[Record]) -> np.ndarray:
    """float64 [episodes]; a failure is no score and stops the table."""
    failed = [r["failure"] for r in records if r["end"] is None]
    if failed:
        raise RunError(f"{len(failed)} consultations failed ({failed[0]}): a table needs all of them")
    return np.array([float(r["end"]["correct"]) for r in records])


def _repeats(record: Record) -> tuple[int, int]:
    """Questions asked again, and questions."""
    asked, again, n = {record["opening"]["finding"]}, 0, 0
    for turn in record["turns"]:
        finding = turn["ledger"]["finding"]
        if finding is not None:
            again, n = again + (finding in asked), n + 1
            asked.add(finding)
    return again, n


def _interval(right: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap of the mean of [seeds, cases]: seeds and cases are resampled, each over all of the other."""
    if len(right) == 1:
        return bootstrap_mean(right[0])
    rng = np.random.Generator(np.random.PCG64(0))
    means = np.empty(resamples)
    for k in range(resamples):
        some = right[rng.integers(len(right), size=len(right))]
        means[k] = some[:, rng.integers(right.shape[1], size=right.shape[1])].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _difference(arm: str, than: str, how: str, a: Sequence[list[Record]], b: Sequence[list[Record]]) -> dict[str, Any]:
    first, second = (np.array([_right(records) for records in each]) for each in (a, b))
    mean = float((first - second).mean())
    low, high = _interval(first - second)
    seeds = [f"{paired_difference(x, y)[0]:+.3f}" for x, y in zip(first, second, strict=True)]
    return {
        "arm": arm,
        "than": than,
        "decoding": how,
        "difference": round(mean, 4),
        "ci": f"{low:.4f} to {high:.4f}",
        "each_seed": ", ".join(seeds),
        "apart": "yes" if low > 0 or high < 0 else "",
    }


def _greedy_curve(plan: Plan) -> list[tuple[float, float]]:
    arguments = {k: v for k, v in plan["env"].items() if k not in ("format", "max_chars")} | {"split": "test"}
    tables = Setup(**arguments).tables
    out = []
    for confidence in CONFIDENCES:
        s = evaluate("MedConsult-v0", Greedy(tables, confidence), plan["episodes"], 0, env_arguments=arguments)
        out.append((s["mean_questions"], s["accuracy"]))
    return out


def _plot(plan: Plan, cells: Mapping[str, Sequence[Path]], file: Path) -> None:
    """Accuracy over minutes of training, one line a seed, for each arm: on validation cases, and of GRPO's own sampled consultations.

    An arm that starts from another one begins where that ended; sampled accuracy is a mean over the last ten updates.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from medenv.runs.run_directory import read_metrics

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for k, (arm, row) in enumerate(cells.items()):
        start = plan["arms"][arm].get("start")
        for number, cell in enumerate(row):
            before = _last(cells[start][number])["seconds"] if start else 0.0
            lines = read_metrics(cell / "metrics.jsonl")
            for axes, key, over in ((left, "validation_accuracy", 1), (right, "accuracy", SMOOTH)):
                points = [((before + r["seconds"]) / 60, r[key]) for r in lines if r.get(key) is not None]
                if len(points) > over:
                    x, y = np.array(points).T
                    smooth = np.convolve(y, np.full(over, 1 / over), "valid")
                    axes.plot(x[over - 1 :], smooth, color=f"C{k}", alpha=0.8, linewidth=1.2, label=None if number else arm)
    for axes, title in ((left, "validation cases, greedy decoding"), (right, f"training cases, sampled; mean of {SMOOTH} updates")):
        axes.set_xlabel("minutes of training on one core, the start's included")
        axes.set_ylabel("accuracy")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (MedenvError, click.ClickException) as error:
        sys.exit(f"{error}")
