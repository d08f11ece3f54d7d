"""The simulation of scaling against closed forms, its measurements, and the estimates for GPUs."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from medenv.agents.ppo import PPOSettings
from medenv.errors import RunError
from medenv.runs import estimates
from medenv.runs.scaling import Work, bend, learning, read_calibration, rollout, simulate, table, with_fast_link
from medenv.runs.scaling_measured import _expected_longest, _line, measure_ppo, two_processes

CLUSTER = Path(__file__).parents[1] / "experiments" / "cluster"
FREE = Work("free", 64, (8.0,), 0.01, 0.002, 0.5, 0.003, bandwidth=float("inf"), latency=0.0)
NODES = (1, 2, 4, 8, 16, 32, 64)


def test_one_node__takes_the_measured_time() -> None:
    assert simulate(FREE, 1, 10).per_iteration == pytest.approx(8 * 0.01 + 64 * 8 * 0.002 + 0.5 + 64 * 0.003, rel=1e-12)


@pytest.mark.parametrize("nodes", NODES)
def test_without_variance_or_link__is_amdahls_law(nodes: int) -> None:
    serial, parallel = 8 * 0.01 + 0.5 + 64 * 0.003, 64 * 8 * 0.002
    assert simulate(FREE, nodes, 10).per_iteration == pytest.approx(serial + parallel / nodes, rel=1e-12)


@pytest.mark.parametrize("nodes", NODES[1:])
@pytest.mark.parametrize(("weights", "each"), [(1e6, 1e3), (1e3, 1e6), (1e8, 1e6), (1e8, 0.0)])
def test_link__takes_one_transfer_at_a_time(nodes: int, weights: float, each: float) -> None:
    work = replace(FREE, weights=weights, each=each, bandwidth=1e8, latency=1e-3)
    busy = rollout(work, [8.0] * (64 // nodes))
    send, back = weights / 1e8 + 1e-3, each * (64 // nodes) / 1e8 + 1e-3
    last = [max(k * send + busy, (nodes - 1) * send) + (nodes - k) * back for k in range(1, nodes)]
    assert simulate(work, nodes, 3).per_iteration == pytest.approx(max(busy, *last) + learning(work, nodes), rel=1e-12)


def test_all_nodes_learn__from_their_part_and_a_ring() -> None:
    work = replace(FREE, learners="all", weights=1e6, bandwidth=1e8, latency=1e-3)
    ring = 2 * 3 * (1e6 / 4 / 1e8 + 1e-3)
    assert simulate(work, 4, 5).per_iteration == pytest.approx(0.08 + 16 * 8 * 0.002 + 0.5 + 16 * 0.003 + ring, rel=1e-12)


def test_validation__pauses_every_so_many_iterations() -> None:
    paused = replace(FREE, validation=7.0, evaluate_every=5)
    assert simulate(paused, 4, 12).seconds - simulate(FREE, 4, 12).seconds == pytest.approx(14.0)


@pytest.mark.parametrize("nodes", [1, 3, 7, 64])
def test_every_consultation__arrives_once_and_is_learned_from(nodes: int) -> None:
    work = replace(FREE, lengths=(1.0, 5.0, 16.0), weights=1e6, each=1e4, bandwidth=1e8)
    found = simulate(work, nodes, 9)
    assert found.arrived == found.learned == 9 * 64
    assert found.waited >= 0.0


def test_stragglers__cost_what_the_longest_consultation_costs() -> None:
    work = replace(FREE, lengths=tuple(float(n) for n in range(1, 17)), turn_each=0.0)
    expected = _expected_longest(work.lengths, 64) * 0.01 + 0.5 + 64 * 0.003
    assert simulate(work, 1, 2000).per_iteration == pytest.approx(expected, rel=2e-3)
    assert simulate(work, 1, 50, seed=1) == simulate(work, 1, 50, seed=1) != simulate(work, 1, 50, seed=2)


def test_more_nodes__are_never_slower_where_the_link_is_free() -> None:
    work = replace(FREE, lengths=(2.0, 9.0, 16.0))
    seconds = [simulate(work, n, 400).per_iteration for n in NODES]
    assert all(later < before for before, later in pairwise(seconds))
    slow = [simulate(replace(work, bandwidth=b, weights=1e6, each=1e3), 8, 50).seconds for b in (1e9, 1e8, 1e7, 1e6)]
    assert slow == sorted(slow) and slow[0] < slow[-1]


def test_bend__is_where_half_of_ideal_is_left() -> None:
    assert bend([(1, 8.0), (2, 4.0), (4, 3.0), (8, 2.5)]) == 4


def test_bad_input__says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="65 nodes for a batch of 64: give from 1 to 64"):
        simulate(FREE, 65)
    with pytest.raises(RunError, match=r"is no calibration .* calibrate"):
        read_calibration(tmp_path / "missing.json")


def test_two_measurements__give_a_line_that_is_nowhere_negative() -> None:
    assert _line([16, 16], [16 * 256, 16 * 1024], [16 * (2 + 0.5 * 256), 16 * (2 + 0.5 * 1024)]) == pytest.approx((2.0, 0.5))
    assert _line([1, 1], [10, 100], [1.0, 20.0]) == pytest.approx((0.0, 0.2))
    assert _line([1, 1], [10, 100], [5.0, 4.0]) == pytest.approx((4.0, 0.0))


@pytest.mark.slow
def test_ppo__is_measured_on_one_process_and_on_two() -> None:
    settings = PPOSettings(env={"knowledge": "synthetic:8x16", "observe_belief": True, "max_turns": 8}, rollout=8, hidden=16)
    work = measure_ppo((32, 64), replace(settings, evaluate_episodes=16), repeats=2)
    assert work.batch == 64 and work.turn + work.turn_each > 0 and work.learn + work.learn_each > 0
    assert work.each * 64 > 8 * 64 * 4 * 8 and work.weights > 1000
    found = two_processes(work, settings, repeats=2)
    assert found["measured"] > 0 and found["error"] == pytest.approx(found["predicted"] / found["measured"] - 1)


def test_committed_table__is_simulated_from_the_committed_calibration() -> None:
    works = read_calibration(CLUSTER / "calibration.json")
    with (CLUSTER / "scaling.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    again = table([*works, *(with_fast_link(w) for w in works)])
    assert [{k: str(v) for k, v in row.items()} for row in again] == written


def test_committed_estimates__are_computed_from_the_committed_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "FOLDER", CLUSTER)
    rows = [estimates.row(name, estimates.estimate(*estimates.load(name))) for name in estimates.SETTINGS]
    with (CLUSTER / "estimates.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in rows]
    assert [r["GPUs"] for r in rows] == [1, 8, 64] and all(r["fits 80 GB"] == "yes" for r in rows)
    assert {r["status"] for r in rows} == {"estimated, not run"}


@pytest.mark.parametrize(("name", "published"), [("Qwen/Qwen3-1.7B", 1.72e9), ("Qwen/Qwen3-4B", 4.02e9), ("Qwen/Qwen3-8B", 8.19e9)])
def test_shape__has_as_many_parameters_as_published(name: str, published: float) -> None:
    assert estimates.SHAPES[name].parameters == pytest.approx(published, rel=0.01)


def test_estimate__follows_its_assumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "FOLDER", CLUSTER)
    settings, _ = estimates.load("gpu8.toml")
    one, half = estimates.estimate(settings, 8), estimates.estimate(settings, 8, assumed=estimates.Assumed(mfu=0.15))
    assert half.learn == pytest.approx(2 * one.learn) and half.memory == one.memory
    whole = estimates.estimate(replace(settings, lora=None), 8)
    assert whole.memory["weights"] + whole.memory["trained"] == pytest.approx(16 * estimates.SHAPES[settings.model].parameters)
    assert estimates.estimate(settings, 1).exchange == 0.0 < one.exchange
