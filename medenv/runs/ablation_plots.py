"""Pictures of an ablation: learning curves, performance profile, accuracy against what the questions cost. Drawn without a screen.

Does not cover: the numbers (`ablation_tables`, `comparisons`), the learning curve of one run (`plots`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medenv.runs.ablation_tables import SHARE, Outcomes
from medenv.runs.cells import Result
from medenv.runs.comparisons import mean, mean_score, performance_profile, profile_band, stratified_interval

DPI = 110
ACROSS = 3  # panels beside each other
FRONTS = (("questions", "mean number of questions"), ("cost", "mean cost of the questions"))


def pictures(found: Outcomes) -> dict[str, bytes]:
    """PNG files by name, without those for which nothing is there yet: curves, profile, and front where the plan asks for it."""
    drawn = {"curves": _curves(found), "profile": _profile(found), "front": _front(found) if found.plan.front else None}
    return {name: png for name, png in drawn.items() if png is not None}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points (cost, gain) that no other beats: none costs less for as much gain, none gains more for as much cost.

    >>> pareto([(1.0, 0.5), (2.0, 0.5), (2.0, 0.9)])
    [0, 2]
    """
    beaten = [any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]
    return [k for k, b in enumerate(beaten) if not b]


def _curves(found: Outcomes) -> bytes | None:
    """A panel for each environment: the judge's validation return over steps, mean and 95 % band over seeds; greedy and 90 % of it."""
    plan = found.plan
    if not any(found.runs(e, m) for e in plan.environments for m in plan.mixes):
        return None
    columns = min(len(plan.environments), ACROSS)
    rows = math.ceil(len(plan.environments) / columns)
    figure = _figure(6.5 * columns + 2.5, 4.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(plan.environments) :]:
        axes.remove()
    for axes, environment in zip(panels, plan.environments, strict=False):
        for number, mix in enumerate(plan.mixes):
            _draw_curve(axes, found.runs(environment, mix), mix, **_style(number))
        greedy = found.greedy_on_curves(environment)
        for share, text, line in ((1.0, "greedy", "--"), (SHARE, f"{100 * SHARE:.0f} % of greedy", ":")):
            if greedy:
                axes.axhline(share * float(np.mean(greedy)), color="0.3", linestyle=line, linewidth=1, label=text)
        axes.set_title(environment)
        axes.set_xlabel("environment steps" if plan.trainer == "ppo" else "steps")
        axes.set_ylabel("judge's return on validation cases")
    return _finished(figure)


def _draw_curve(axes: Any, runs: Sequence[Result], mix: str, **style: Any) -> None:
    curves = [r["curve"] for r in runs if r["curve"]["steps"]]
    if not curves:
        return
    shortest = min(c["steps"][-1] for c in curves)
    grid = np.unique([s for c in curves for s in c["steps"] if s <= shortest])
    values = np.array([np.interp(grid, c["steps"], c["return"]) for c in curves])
    axes.plot(grid, values.mean(0), label=mix, **style)
    band = [stratified_interval(mean, [column], resamples=1000) for column in values.T]
    if None not in band:
        axes.fill_between(grid, *np.array(band).T, color=style["color"], alpha=0.15, linewidth=0)


def _profile(found: Outcomes) -> bytes | None:
    """Share of runs above each normalised score, over all environments, with bands."""
    plan = found.plan
    scores = {mix: found.scores(list(plan.environments), mix, "normalised", "validation") for mix in plan.mixes}
    known = {mix: s for mix, s in scores.items() if s is not None}
    if not known:
        return None
    pooled = np.concatenate([np.concatenate([np.asarray(e) for e in s]) for s in known.values()])
    low, high = float(pooled.min()), float(pooled.max())
    room = max(0.05 * (high - low), 0.01)
    taus = np.linspace(low - room, high + room, 201)
    figure = _figure(9, 4.5)
    axes = figure.subplots()
    for number, mix in enumerate(plan.mixes):
        if mix in known:
            style = _style(number)
            axes.plot(taus, performance_profile(known[mix], taus), label=mix, **style)
            band = profile_band(known[mix], taus)
            if band is not None:
                axes.fill_between(taus, *band, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xlabel("normalised score s: 0 is random, 1 is greedy (validation cases)")
    axes.set_ylabel("share of runs with a score above s")
    axes.set_ylim(-0.02, 1.02)
    return _finished(figure)


def _front(found: Outcomes) -> bytes | None:
    """Accuracy of every mix and `greedy` against questions and cost on the test cases; what no other beats is joined by a line."""
    plan = found.plan
    figure = _figure(12, 4.5 * len(plan.environments))
    drawn = False
    for row, environment in zip(figure.subplots(len(plan.environments), 2, squeeze=False), plan.environments, strict=True):
        for axes, (key, label) in zip(row, FRONTS, strict=True):
            drawn |= _draw_front(axes, found, environment, key)
            axes.set_xlabel(f"{label}, test cases")
            axes.set_ylabel("accuracy")
            axes.set_title(environment)
    return _finished(figure) if drawn else None


def _draw_front(axes: Any, found: Outcomes, environment: str, key: str) -> bool:
    names, points = [], []
    for number, mix in enumerate((*found.plan.mixes, "greedy")):  # `random` would press the others together
        x, y = (found.scores([environment], mix, k, "test") for k in (key, "accuracy"))
        if x is None or y is None:
            continue
        names.append(mix)
        points.append((mean_score(x), mean_score(y)))
        colour = "0.3" if mix == "greedy" else _style(number)["color"]
        axes.plot(x[0], y[0], ".", color=colour, alpha=0.4)
        axes.plot(*points[-1], "s" if mix == "greedy" else "o", color=colour, label=mix)
    best = sorted(pareto(points), key=lambda k: points[k])
    if best:
        axes.plot(*zip(*(points[k] for k in best), strict=True), color="0.5", linewidth=1, zorder=0, label="not beaten by any other")
    return bool(points)


def _style(number: int) -> dict[str, Any]:
    """Ten colours, then the same ones dashed."""
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finished(figure: Any) -> bytes:
    """The PNG, with a grid and one legend beside the panels."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        found, labels = axes.get_legend_handles_labels()
        handles |= {k: v for k, v in zip(labels, found, strict=True) if k not in handles}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, dpi=DPI, format="png")
    return out.getvalue()
