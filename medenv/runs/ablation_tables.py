"""What an ablation found: its results put in order, and the rows of its two tables.

`results`: a row for each environment and mix, with intervals over seeds. `comparisons`: each mix beside the plan's baseline. A cell that
is missing is named and makes the tables unfinished; it is never a number.

Does not cover: running cells (`ablate`), the statistics themselves (`comparisons`), pictures and the page (`ablation_plots`,
`ablation_report`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from medenv.runs.cells import REFERENCES, SPLITS, Cell, Plan, Result
from medenv.runs.comparisons import (
    Interval,
    Strata,
    first_reach,
    improvement_interval,
    interquartile_mean,
    iqm,
    mean,
    mean_score,
    median_time,
    median_time_interval,
    paired_interval,
    probability_of_improvement,
    stratified_interval,
)

ALL = "all environments"
SHARE = 0.9  # of greedy's return: the target that runs are timed to
NEVER = "never"

Name = tuple[str, str, int]  # environment, mix, seed
Rows = list[dict[str, Any]]


def name_of(cell: Cell) -> Name:
    """How a result is found in a plan, whatever version of medenv made it."""
    return cell.environment, cell.mix, cell.seed


@dataclass
class Outcomes:
    """The results of a plan that are there, by name, and the causes of those that are not."""

    plan: Plan
    results: Mapping[Name, Result]
    causes: Mapping[Name, str] = field(default_factory=dict)
    other_keys: int = 0  # results that another version of medenv, or of the plan's settings, made, or that do not say

    @cached_property
    def missing(self) -> list[Name]:
        """Cells of the plan without a result, in its order."""
        return [name for name in map(name_of, self.plan.cells()) if name not in self.results]

    def why(self, name: Name) -> str:
        """A missing cell in one line."""
        environment, mix, seed = name
        return f"{environment}, {mix}, seed {seed}: {self.causes.get(name, 'not run')}"

    def runs(self, environment: str, mix: str) -> list[Result]:
        """The runs of a mix by seed; of a reference, its one."""
        seeds = [0] if mix in REFERENCES else self.plan.seeds
        return [self.results[environment, mix, s] for s in seeds if (environment, mix, s) in self.results]

    def reference(self, environment: str, who: str, split: str) -> float | None:
        """The return of `greedy` or `random`, None where it is missing."""
        result = self.results.get((environment, who, 0))
        return None if result is None else float(result[split]["return"])

    def normalised(self, environment: str, value: float, split: str) -> float | None:
        """(value - random) / (greedy - random); None where a reference is missing or greedy is not the better one."""
        low, high = (self.reference(environment, who, split) for who in ("random", "greedy"))
        return None if low is None or high is None or high <= low else (value - low) / (high - low)

    def measured(self, environment: str) -> list[str]:
        """The rewards whose means all runs in an environment tell, as `scores` names them."""
        runs = [r for mix in self.plan.mixes for r in self.runs(environment, mix)]
        names = dict.fromkeys(name for r in runs for name in r["validation"]["components"])
        return [f"measured_{n}" for n in names if all(n in r[split]["components"] for r in runs for split in SPLITS)]

    def greedy_on_curves(self, environment: str) -> list[float]:
        """What `greedy` earns on the validation cases of each run's curve; [its return on the shared ones] where no run says so."""
        own = [r["greedy"] for mix in self.plan.mixes for r in self.runs(environment, mix) if r.get("greedy") is not None]
        shared = self.reference(environment, "greedy", "validation")
        return own or ([] if shared is None else [shared])

    def times(self, environment: str, mix: str) -> list[float] | None:
        """Steps of each run to 90 % of what greedy earns on its curve's cases, inf where never; None where greedy earns nothing."""
        shared = self.reference(environment, "greedy", "validation")
        runs = [] if mix in REFERENCES else self.runs(environment, mix)
        greedy = [r.get("greedy", shared) or 0.0 for r in runs]
        if not runs or min(greedy) <= 0:
            return None
        return [first_reach(r["curve"]["steps"], r["curve"]["return"], SHARE * g) for r, g in zip(runs, greedy, strict=True)]

    def scores(self, environments: Sequence[str], mix: str, key: str, split: str, beside: str | None = None) -> Strata | None:
        """Runs of a mix by environment: `key` of their results, `normalised` or `measured_NAME`. None where one has none, or no scale.

        `beside`: another mix; only the runs whose seed it has too.
        """
        out = []
        for environment in environments:
            runs = [r for r in self.runs(environment, mix) if beside is None or (environment, beside, r["seed"]) in self.results]
            told = [r[split] | {f"measured_{k}": v for k, v in r[split]["components"].items()} for r in runs]
            values = [t["return" if key == "normalised" else key] for t in told]
            if key == "normalised":
                values = [self.normalised(environment, v, split) for v in values]
            if not values or None in values:
                return None
            out.append(values)
        return out


def result_rows(found: Outcomes) -> Rows:
    """A row for each environment and mix, references first; with several environments, rows over all of them."""
    plan = found.plan
    rows = [_result_row(found, environment, mix) for environment in plan.environments for mix in (*REFERENCES, *plan.mixes)]
    if len(plan.environments) > 1:
        rows += [{"environment": ALL, "mix": mix} | _normalised(found, list(plan.environments), mix) for mix in plan.mixes]
    return rows


def comparison_rows(found: Outcomes) -> Rows:
    """Every mix beside each baseline but itself and those before it, in each environment, and over all where there are several."""
    plan = found.plan
    places = [[e] for e in plan.environments] + ([list(plan.environments)] if len(plan.environments) > 1 else [])
    pairs = [(mix, base) for k, base in enumerate(plan.baseline) for mix in plan.mixes if mix not in plan.baseline[: k + 1]]
    return [_comparison_row(found, place, mix, base) for place in places for mix, base in pairs]


def unfinished(found: Outcomes) -> list[str]:
    """Lines that name what is missing; none where nothing is."""
    if not found.missing:
        return []
    count = f"{len(found.missing)} of {len(found.plan.cells())}"
    return [f"**Unfinished.** Missing cells: {count}.", "", *(f"- {found.why(name)}" for name in found.missing), ""]


def notes(found: Outcomes) -> list[str]:
    """What a reader needs to know above the results."""
    plan, results, out = found.plan, found.results.values(), list[str]()
    seeds = f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"
    trained = [r for r in results if r["trainer"] not in REFERENCES]
    curves = (
        "and so is what greedy earns beside it"
        if all("greedy" in r for r in trained)
        else "what greedy earns beside it is of the shared ones"
    )
    out += [
        f"{plan.title} {seeds}; {plan.episodes} validation and {plan.episodes} test cases, the same for every doctor. Whatever a mix "
        f"trained on, every return is the judge's: `{plan.judge}`.",
        "",
        "Intervals (_ci) are 95 % percentiles of a bootstrap over seeds within each environment: they speak of other seeds, on the same "
        "cases, and with few seeds they are too narrow (with five they hold the mean 83 times in 100); a single seed has none. normalised: "
        "(return - random) / (greedy - random). iqm: the mean of the middle half of the runs. steps_to_90: "
        f"median over seeds of the steps to {100 * SHARE:.0f} % of greedy's return at validation, interpolated between validations; a run "
        f"that does not get there counts as later than any, and `{NEVER}` is a median among those. A curve is of its seed's own "
        f"validation cases, {curves}. Columns with test_ are measured once, after training.",
    ]
    if plan.measure:
        out[-1] += f" measured_: means a consultation of `{plan.measure}`, without weights."
    again = [r.get("retries", 0) for r in results]
    if sum(again):
        out += ["", f"Cells that were started again because their worker died: {sum(map(bool, again))} ({sum(again)} times)."]
    if found.other_keys:
        out += [
            "",
            f"{found.other_keys} results are of another version of medenv or of other settings than this plan has now, or do not say.",
        ]
    return out


def comparison_notes(found: Outcomes) -> list[str]:
    """What stands above the comparisons."""
    return [
        f"Every mix beside the baseline, {', then '.join(found.plan.baseline)}. "
        "Differences are means over seeds that both have, each run beside the one of its seed; their intervals (95 %) are Student's t of "
        "these pairs. Intervals of improvement and faster are bootstrapped as in `results.md`. "
        "improvement: the probability that a run of the mix earns more than a run of the baseline, a tie counting half. faster: that it "
        "reaches 90 % of greedy's return in fewer steps, two that never do being a tie. An interval of 0 to 0 or 1 to 1 says that every "
        "run of one lies above every run of the other, not that other seeds could not differ. Intervals are not corrected for the "
        "number of comparisons.",
    ]


def sources(found: Outcomes, command: str) -> list[str]:
    """Where the results come from, as they say themselves: a table made again from them says the same."""
    results = [found.results[name] for name in map(name_of, found.plan.cells()) if name in found.results]
    out = [f"Command: `{command}`"]
    for key, label in (("commit", "Commit"), ("hardware", "Hardware"), ("versions", "Versions")):
        out.append(f"{label}: {'; '.join(dict.fromkeys(str(r[key]) for r in results)) or 'no results yet'}")
    return out


def _result_row(found: Outcomes, environment: str, mix: str) -> dict[str, Any]:
    plan, runs = found.plan, found.runs(environment, mix)
    row: dict[str, Any] = {"environment": environment, "mix": mix}
    row["reward"] = "" if mix in REFERENCES else plan.mixes[mix]["reward"]
    row["seeds"] = f"{len(runs)} of {1 if mix in REFERENCES else len(plan.seeds)}"
    row |= _means(found, environment, mix, "validation") | _normalised(found, [environment], mix)
    times = found.times(environment, mix)
    row |= {"steps_to_90": None, "steps_to_90_ci": None, "reached": None}
    if times:
        reached = sum(math.isfinite(t) for t in times)
        interval = median_time_interval(times)
        row["steps_to_90"] = _time(median_time(times))
        row["steps_to_90_ci"] = None if interval is None else " to ".join(map(_time, interval))
        row["reached"] = f"{reached} of {len(times)}"
    row |= {f"test_{k}": v for k, v in _means(found, environment, mix, "test").items()}
    row |= {f"test_{k}": v for k, v in _normalised(found, [environment], mix, "test").items()}
    return row | {"seconds": round(sum(r["seconds"] for r in runs) / len(runs), 1) if runs else None}


def _means(found: Outcomes, environment: str, mix: str, split: str) -> dict[str, Any]:
    """Return and accuracy with intervals, the rest as means over seeds."""
    out: dict[str, Any] = {}
    for key in ("return", "accuracy"):
        scores = found.scores([environment], mix, key, split)
        out |= _with_interval(key, scores, mean)
    out |= _with_interval("return_iqm", found.scores([environment], mix, "return", split), iqm)
    runs = found.runs(environment, mix)
    for key in ("questions", "cost"):
        out[key] = _mean_of([r[split][key] for r in runs])
    names = dict.fromkeys(name for r in runs for name in r[split]["components"])
    return out | {f"measured_{name}": _mean_of([r[split]["components"].get(name) for r in runs]) for name in names}


def _normalised(found: Outcomes, environments: Sequence[str], mix: str, split: str = "validation") -> dict[str, Any]:
    scores = found.scores(environments, mix, "normalised", split)
    return _with_interval("normalised", scores, mean) | _with_interval("normalised_iqm", scores, iqm)


def _comparison_row(found: Outcomes, environments: Sequence[str], mix: str, base: str) -> dict[str, Any]:
    one = len(environments) == 1
    row: dict[str, Any] = {"environment": environments[0] if one else ALL, "mix": mix, "baseline": base}
    row["seeds"] = " and ".join(str(sum(len(found.runs(e, m)) for e in environments)) for m in (mix, base))
    for split in SPLITS:
        before = "" if split == "validation" else "test_"
        measured = found.measured(environments[0]) if one else []
        for key in (*(("return",) if one else ()), "accuracy", "normalised", *measured):
            x, y = found.scores(environments, mix, key, split, base), found.scores(environments, base, key, split, mix)
            name = f"{before}{key}_difference"
            row |= {name: None, f"{name}_ci": None}
            if x is not None and y is not None:
                row |= {name: _rounded(mean_score(x) - mean_score(y)), f"{name}_ci": _interval(paired_interval(x, y))}
        row |= _improvement(f"{before}improvement", *(found.scores(environments, m, "return", split) for m in (mix, base)))
    early = [_negated([found.times(e, m) for e in environments]) for m in (mix, base)]
    return row | _improvement("faster", *early)


def _improvement(name: str, x: Strata | None, y: Strata | None) -> dict[str, Any]:
    if x is None or y is None:
        return {name: None, f"{name}_ci": None}
    return {name: _rounded(probability_of_improvement(x, y)), f"{name}_ci": _interval(improvement_interval(x, y))}


def _negated(times: Sequence[Sequence[float] | None]) -> Strata | None:
    """Times as scores: the earlier the higher. None where an environment has none."""
    return None if any(not t for t in times) else [[-t for t in each or ()] for each in times]


def _with_interval(name: str, scores: Strata | None, statistic: Callable[..., Any]) -> dict[str, Any]:
    if scores is None:
        return {name: None, f"{name}_ci": None}
    value = interquartile_mean(scores) if statistic is iqm else mean_score(scores)
    return {name: _rounded(value), f"{name}_ci": _interval(stratified_interval(statistic, scores))}


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return _rounded(sum(known) / len(known)) if known and len(known) == len(values) else None


def _rounded(value: float) -> float:
    return round(value, 4) + 0.0  # no -0.0


def _interval(pair: Interval | None) -> str | None:
    return None if pair is None else f"{_rounded(pair[0])} to {_rounded(pair[1])}"


def _time(steps: float) -> str:
    return NEVER if math.isinf(steps) else f"{steps:.0f}"
