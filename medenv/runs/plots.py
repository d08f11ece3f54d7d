"""Pictures of a run: the learning curve as a PNG, drawn without a screen.

Does not cover: comparisons of reward mixes (`ablation_plots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (("return", "mean return"), ("accuracy", "accuracy"), ("questions", "questions asked"))


def plot_learning_curve(metrics: Sequence[Mapping[str, Any]], file: Path, references: Mapping[str, float] | None = None) -> Path:
    """Draw return, accuracy and questions over environment steps, sampled and on validation, into the PNG `file`.

    `metrics`: the lines of a metrics.jsonl (`medenv.runs.training.read_metrics`). `references`: horizontal lines in the first
    panel, such as {"greedy": 0.95}. Returns `file`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name, colour, meaning in ((key, "0.7", "training, sampled"), (f"validation_{key}", "tab:blue", "validation, greedy decoding")):
            points = [(r["steps"], r[name]) for r in metrics if r.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=meaning)
        for name, value in (references or {}).items() if key == "return" else ():
            axes.axhline(value, color="tab:green", linestyle="--", linewidth=1)
            axes.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
        axes.set_xlabel("environment steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if figure.axes[0].lines:
        figure.axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    return file
