"""Where does scaling bend? A simulation of rollouts and learning over N nodes, from times measured on one.

    python -m medenv.runs.scaling calibrate     # measures on this machine -> experiments/cluster/calibration.json
    python -m medenv.runs.scaling table         # simulates from it -> experiments/cluster/scaling.csv, .md and .png

One iteration is synchronous: the learner on node 0 sends its weights to the other nodes, one after another over its link; every node
consults its share of the batch, in lock step until its longest consultation ends; batches go back over the same link, first come first
served; when all are there the learner learns; now and then it validates. `learners="all"`: every node learns from its own batch and
gradients go around a ring instead, so weights and batches need not travel.

What is assumed: nodes like the measured one, a link of `bandwidth` and `latency`, no failures. What is left out: contention for memory and
cores, start-up, checkpoints.

Does not cover: measuring (`medenv.runs.scaling_measured`), GPUs (`medenv.runs.estimates`).
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medenv.errors import RunError
from medenv.hashing import seed_for

FOLDER = Path("experiments/cluster")
NODES = (1, 2, 4, 8, 16, 32, 64, 128)
ITERATIONS = 200


@dataclass(frozen=True)
class Work:
    """One kind of training, by its times on one node (seconds), its sizes (bytes) and the link between nodes (bytes a second)."""

    name: str
    batch: int  # consultations of an iteration, over all nodes
    lengths: tuple[float, ...]  # turns that consultations take, as measured: each one's is drawn from these
    turn: float  # seconds of a turn, however many consultations take it
    turn_each: float  # ... and for each that is still going on
    learn: float  # seconds of learning from a batch, however large
    learn_each: float  # ... and for each consultation
    learners: str = "one"  # or all
    weights: float = 0.0  # bytes that the learner sends, or that a ring of gradients passes on
    each: float = 0.0  # bytes that a consultation's transitions take on their way to the learner
    bandwidth: float = 1.25e9  # 10 Gbit a second
    latency: float = 1e-3
    validation: float = 0.0  # seconds of a validation
    evaluate_every: int = 1  # iterations between validations


@dataclass(frozen=True)
class Simulated:
    """What `simulate` found: seconds in all, consultations that arrived and were learned from, node-seconds spent waiting."""

    nodes: int
    iterations: int
    seconds: float
    arrived: int
    learned: int
    waited: float

    @property
    def per_iteration(self) -> float:
        """Mean seconds of an iteration."""
        return self.seconds / self.iterations


def simulate(work: Work, nodes: int, iterations: int = ITERATIONS, seed: int = 0) -> Simulated:
    """Run the events of `iterations` iterations on `nodes` nodes. RunError where the batch gives a node nothing to do."""
    if not 1 <= nodes <= work.batch:
        raise RunError(f"{nodes} nodes for a batch of {work.batch}: give from 1 to {work.batch}, each node needs a consultation")
    chance = np.random.Generator(np.random.PCG64(seed_for(seed, f"scaling {work.name}", nodes)))
    shares = [len(part) for part in np.array_split(np.arange(work.batch), nodes)]
    now, arrived, learned, waited = 0.0, 0, 0, 0.0
    for iteration in range(1, iterations + 1):
        busy = [rollout(work, chance.choice(work.lengths, share)) for share in shares]
        came = _gather(work, now, busy, shares) if work.learners == "one" else [now + b for b in busy]
        arrived += sum(shares)
        ready = max(came)
        waited += sum(ready - (now + b) for b in busy)
        now = ready + learning(work, nodes)
        learned += sum(shares)
        if iteration % work.evaluate_every == 0:
            now += work.validation
    return Simulated(nodes, iterations, now, arrived, learned, waited)


def rollout(work: Work, lengths: Sequence[float] | np.ndarray) -> float:
    """Seconds of a node's consultations, which take turns in lock step until the longest ends."""
    return work.turn * float(np.max(lengths)) + work.turn_each * float(np.sum(lengths))


def learning(work: Work, nodes: int) -> float:
    """Seconds until the weights are new."""
    if work.learners == "one" or nodes == 1:
        return work.learn + work.learn_each * work.batch
    ring = 2 * (nodes - 1) * (work.weights / nodes / work.bandwidth + work.latency)
    return work.learn + work.learn_each * -(-work.batch // nodes) + ring


def _gather(work: Work, start: float, busy: Sequence[float], shares: Sequence[int]) -> list[float]:
    """When each node's batch is with the learner. Events in order of time; the learner's link takes one transfer at a time."""
    came, free = [0.0] * len(busy), start
    events: list[tuple[float, int, str]] = [(start, node, "send") for node in range(1, len(busy))]
    came[0] = start + busy[0]  # the learner's own node: nothing travels
    heapq.heapify(events)
    while events:
        time, node, what = heapq.heappop(events)
        if what == "consulted":
            free = came[node] = max(time, free) + work.each * shares[node] / work.bandwidth + work.latency
        else:
            free = max(time, free) + work.weights / work.bandwidth + work.latency
            heapq.heappush(events, (free + busy[node], node, "consulted"))
    return came


def bend(rows: Sequence[tuple[int, float]]) -> int:
    """The most nodes that still give half of what as many single nodes would: (nodes, seconds of an iteration), from one node up."""
    alone = rows[0][1]
    return max(nodes for nodes, seconds in rows if alone / seconds >= 0.5 * nodes)


def read_calibration(file: Path) -> list[Work]:
    """The kinds of training that were measured. RunError where the file is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [Work(**w | {"lengths": tuple(w["lengths"])}) for w in found["works"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} is no calibration ({type(error).__name__}: {error}): run `python -m medenv.runs.scaling calibrate`"
        ) from None


def with_fast_link(work: Work) -> Work:
    """The same with every node learning, over a link as between GPU servers."""
    return dataclasses.replace(work, name=f"{work.name}, all nodes learn, 400 Gbit/s", learners="all", bandwidth=50e9, latency=1e-5)


def table(works: Sequence[Work]) -> list[dict[str, Any]]:
    """Simulated rows of every work at every number of nodes."""
    rows = []
    for work in works:
        found = [simulate(work, n) for n in NODES if n <= work.batch]
        most = bend([(f.nodes, f.per_iteration) for f in found])
        for f in found:
            speedup = found[0].per_iteration / f.per_iteration
            rows.append(
                {
                    "training": work.name,
                    "nodes": f.nodes,
                    "seconds an iteration": float(f"{f.per_iteration:.4g}"),
                    "speedup": round(speedup, 2),
                    "efficiency": round(speedup / f.nodes, 3),
                    "waiting": round(f.waited / f.nodes / f.seconds, 3),
                    "consultations/s": float(f"{work.batch / f.per_iteration:.4g}"),
                    "bend": "here" if f.nodes == most else "",
                }
            )
    return rows


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Speedup over nodes, one line for each training, beside the ideal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(NODES, NODES, color="0.7", linestyle="--", label="as many single nodes")
    for name in dict.fromkeys(r["training"] for r in rows):
        mine = [r for r in rows if r["training"] == name]
        axes.plot([r["nodes"] for r in mine], [r["speedup"] for r in mine], marker="o", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("nodes")
    axes.set_ylabel("speedup over one node")
    axes.set_title("Simulated from times measured on one node", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def main(what: str) -> None:
    """The two commands."""
    file = FOLDER / "calibration.json"
    if what == "calibrate":
        from medenv.runs.scaling_measured import calibrate

        file.write_text(json.dumps(calibrate(), indent=1) + "\n", encoding="utf-8")
        return
    from medenv.runs.experiments import _write as write_table

    works = read_calibration(file)
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = table([*works, *(with_fast_link(w) for w in works)])
    measured = found["two processes"]
    notes = [
        "**Simulated, not run**, from times measured on one node. training: what was measured, with the link that is assumed. waiting: "
        "share of node-seconds spent on weights, batches and longer consultations of others, without what nodes idle where "
        "one learns for all. bend: the most nodes at half of ideal speed or better.",
        "",
        f"One point was measured: PPO's iteration on two processes of one machine took {measured['measured']:.3g} s, predicted from one "
        f"process {measured['predicted']:.3g} s, {measured['error']:+.0%}. {measured['told']}",
        "",
        f"Measured with: {found['command']}, {found['commit']}, {found['hardware']}, load {found['load']} before.",
    ]
    write_table(FOLDER / "scaling", rows, notes, "python -m medenv.runs.scaling table", "torch")
    plot(rows, FOLDER / "scaling.png")


if __name__ == "__main__":
    if sys.argv[1:] not in (["calibrate"], ["table"]):
        sys.exit("give calibrate or table")
    main(sys.argv[1])
