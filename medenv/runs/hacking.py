"""Can a learner earn a reward without getting better at diagnosing? PPO on mixes without accuracy, judged at every checkpoint.

For each mix and seed the validation return is set beside two accuracies on the same cases: the policy's own diagnoses, and the likeliest
condition of the exact belief when the consultation ends (`best guess`), which says what the collected answers are worth whatever the
policy names. A reward is hacked where its return goes on rising while the best guess falls.

Does not cover: scripted attacks (`attacks`), mixes with accuracy (`ablate`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
KEYS = ("return", "accuracy", "best_guess", "questions")
FELL = 0.02  # a fall of the best guess that counts


def curve(lines: Sequence[Line]) -> dict[str, list[float]]:
    """Steps and the four validation figures of the checkpoints of one run."""
    kept = [line for line in lines if line.get("validation_best_guess") is not None]
    return {"steps": [line["steps"] for line in kept]} | {k: [line[f"validation_{k}"] for line in kept] for k in KEYS}


def verdict(curves: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Means over seeds, least and greatest in brackets, and how far return and best guess parted.

    From the checkpoint with the best guess at its highest to the last one: `return_rose` and `best_guess_fell`, means over seeds. `parted`:
    in every seed the return rose while the best guess fell by more than two points.
    """
    out: dict[str, Any] = {"seeds": len(curves)}
    for key in KEYS:
        values = [c[key] for c in curves]
        out[f"{key}_start"] = round(float(np.mean([v[0] for v in values])), 4)
        out[f"{key}_end"] = _spread([v[-1] for v in values])
    out["best_guess_highest"] = _spread([max(c["best_guess"]) for c in curves])
    rose, fell = [], []
    for c in curves:
        top = int(np.argmax(c["best_guess"]))
        rose.append(c["return"][-1] - c["return"][top])
        fell.append(c["best_guess"][top] - c["best_guess"][-1])
    out["return_rose"], out["best_guess_fell"] = _spread(rose), _spread(fell)
    out["parted"] = all(r > 0 and f > FELL for r, f in zip(rose, fell, strict=True))
    return out


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f} to {max(values):.3f}]"


def read_curves(folders: Sequence[Path]) -> list[dict[str, list[float]]]:
    """The curves of finished runs."""
    out = []
    for folder in folders:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        out.append(curve([json.loads(line) for line in text.splitlines()]))
    return out


def plot(curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], file: Path) -> Path:
    """A panel for each mix: return (left axis) and the two accuracies (right axis) over steps, one line a seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, runs) in zip(panels, curves.items(), strict=False):
        other = axes.twinx()
        for run in runs:
            million = [s / 1e6 for s in run["steps"]]
            axes.plot(million, run["return"], color="0.45", linewidth=1.2)
            other.plot(million, run["accuracy"], color="tab:orange", linewidth=1.2)
            other.plot(million, run["best_guess"], color="tab:blue", linewidth=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("return", color="0.35", fontsize=8)
        other.set_ylabel("accuracy", fontsize=8)
        other.set_ylim(0, 1)
        axes.tick_params(labelsize=7)
        other.tick_params(labelsize=7)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    for colour, label in (("0.45", "return"), ("tab:orange", "accuracy of the policy"), ("tab:blue", "of the belief's best guess")):
        panels[-1].plot([], [], color=colour, label=label)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="lower right", fontsize=9)
    figure.supxlabel("million environment steps", fontsize=9)
    figure.savefig(file, dpi=110)
    return file
