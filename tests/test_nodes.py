"""Nodes of a Ray cluster that are lost while PPO consults on them, and others that take their place."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from medenv.agents.rllib import OnRLlib, RLlibSettings  # noqa: E402
from medenv.runs.checkpoints import COMPLETE  # noqa: E402
from medenv.runs.cluster import cluster  # noqa: E402
from medenv.runs.run_directory import read_metrics  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]  # RLlib's own


@pytest.fixture
def machines() -> Iterator[Cluster]:
    """Two with a CPU each, as far as Ray can tell."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    nodes.add_node(num_cpus=1, num_gpus=0)
    yield nodes
    nodes.shutdown()


def test_node_lost__the_others_play_on_and_a_new_one_takes_its_place(machines: Cluster) -> None:
    settings = RLlibSettings(
        env={"knowledge": "synthetic:8x16", "max_turns": 6, "observe_belief": True},
        num_envs=64,
        rollout=8,
        minibatch=128,
        num_env_runners=2,
        sample_timeout=30.0,
        most_failures=3,
    )
    with cluster(machines.address, cpus=2):
        learner = OnRLlib(settings)
        try:
            assert learner.update(0.0)["consultations"] > 0
            (other,) = machines.worker_nodes
            machines.remove_node(other, allow_graceful=False)
            told = [learner.update(0.1) for _ in range(2)]
            assert all(t["consultations"] > 0 and t["unscored"] == 0 for t in told)  # by the runner that is left
            machines.add_node(num_cpus=1, num_gpus=0)
            end = time.monotonic() + 90
            while told[-1]["runner_restarts"] < 1:
                assert time.monotonic() < end, told[-1]
                told.append(learner.update(0.2))
            assert told[-1]["runner_restarts"] == 1 and told[-1]["learner_failures"] == 0
        finally:
            learner.close()


def test_node_lost_under_ray_train__the_run_goes_on_when_another_is_there(machines: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from test_finetuning import SFT

    from medenv.runs.finetuning import train

    run, told = tmp_path / "run", list[dict[str, Any]]()
    more = {"steps": 40, "demonstrations": 64, "evaluate_every": 20, "evaluate_episodes": 4, "checkpoint_every": 2}
    settings = dataclasses.replace(SFT, workers=2, address=machines.address, **more)
    with cluster(machines.address, cpus=2):
        thread = threading.Thread(target=lambda: told.append(train(settings, run)))
        thread.start()
        end = time.monotonic() + 120
        while not (run / "checkpoints" / "checkpoint-2" / COMPLETE).exists():
            assert time.monotonic() < end and thread.is_alive()
            time.sleep(0.01)
        (other,) = machines.worker_nodes
        machines.remove_node(other, allow_graceful=False)
        assert thread.is_alive(), "the node was lost too late for what is tested"
        machines.add_node(num_cpus=1, num_gpus=0)
        thread.join(150)
    assert [(line["worker_restarts"], line["update"]) for line in told] == [(1, 40)]
    assert [line["update"] for line in read_metrics(run / "metrics.jsonl")] == list(range(41))
