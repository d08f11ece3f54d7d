"""PPO on RLlib: the same network and loss, runs that resume, what fails and is counted, bad settings."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from medenv.agents.policy import log_probability_of
from medenv.agents.ppo import PPO, PPOSettings
from medenv.agents.rllib import OnRLlib, RLlibSettings
from medenv.agents.rllib_algorithm import ConsultModule, minibatches, together
from medenv.cli import main
from medenv.errors import RunError
from medenv.runs.cluster import cluster
from medenv.runs.run_directory import read_metrics

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]  # RLlib's own

SMALL: dict[str, Any] = {
    "env": {"knowledge": "synthetic:12x30", "max_turns": 6, "observe_belief": True},
    "num_envs": 64,
    "rollout": 8,
    "minibatch": 128,
    "evaluate_episodes": 128,
}
FEW = ["--knowledge", "synthetic:12x30", "--max-turns", "6", "num_envs=64", "rollout=8", "minibatch=128", "evaluate_episodes=64"]
EVERY = ["evaluate_every=1", "checkpoint_every=1"]


@pytest.fixture(scope="module")
def four_cpus() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests
    with cluster("local", own_cpus=4):
        yield


def test_module__gives_the_probabilities_of_the_policy() -> None:
    ppo = PPO(PPOSettings(**SMALL))
    rollout, _ = ppo.collect(0.0)
    module = ConsultModule(model_config={"architecture": asdict(ppo.architecture), "seed": 0}, observation_space=None, action_space=None)
    batch = {"belief": rollout.belief[3], "context": rollout.context[3], "open": rollout.open[3]}
    with torch.no_grad():
        logits = module._forward(batch)["action_dist_inputs"]
        heads = module._forward_train(batch)["heads"]
    told = torch.log_softmax(logits, 1).gather(1, rollout.action[3][:, None]).squeeze(1)
    assert logits.shape == (64, ppo.Q + ppo.architecture.num_conditions + 1)
    assert torch.allclose(told, log_probability_of(heads, rollout.action[3]), atol=1e-5)
    assert all(torch.equal(v, ppo.policy.state_dict()[k]) for k, v in module.policy.state_dict().items())  # the same start


def test_minibatches__see_every_row_once_an_epoch_and_divide_them_among_learners() -> None:
    order = minibatches(10, 3, 2, torch.Generator().manual_seed(0)).reshape(2, 3, 5)
    for epoch in range(3):
        assert sorted(order[:, epoch].flatten().tolist()) == list(range(10))
    assert not torch.equal(order[0, 0], order[0, 1])


def test_metrics_of_fragments__are_weighted_by_consultations() -> None:
    one = {"consultations": 1.0, "unscored": 2.0, "stop_rate": 0.5, "return": 1.0, "questions": 4.0, "accuracy": 1.0}
    three = {"consultations": 3.0, "unscored": 0.0, "stop_rate": 0.1, "return": 0.0, "questions": 8.0, "accuracy": 0.0}
    none = {"consultations": 0.0, "unscored": 0.0, "stop_rate": 0.0}
    told = together([one, three, none])
    assert told["return"] == 0.25 and told["questions"] == 7.0 and told["consultations"] == 4.0 and told["unscored"] == 2.0
    assert "return" not in together([none])


@pytest.mark.slow
@pytest.mark.cluster
def test_one_runner__learns_what_the_trainer_learns(four_cpus: None) -> None:
    settings = RLlibSettings(**SMALL, num_env_runners=0)
    learner = OnRLlib(settings)
    try:
        for k in range(12):
            told = learner.update(k / 12)
        assert told["environment_failures"] == told["learner_failures"] == 0
        ppo = PPO(PPOSettings(**SMALL))
        for k in range(12):
            ppo.update(k / 12)
        ours, theirs, start = (x.validate()["validation_return"] for x in (learner, ppo, PPO(PPOSettings(**SMALL))))
        assert min(ours, theirs) > start + 0.02  # both learn
        assert abs(ours - theirs) < 0.1
    finally:
        learner.close()


@pytest.mark.slow
@pytest.mark.cluster
def test_run__resumes_and_is_a_policy_like_any_other(four_cpus: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    asked = ["train", "ppo", "--output", str(run), "engine=rllib", "num_env_runners=1", *FEW, *EVERY, "env.observe_belief=false"]
    assert main([*asked, "steps=1024"]) == 0
    assert main(["train", "ppo", "--output", str(run), "--resume", "steps=2048", "num_env_runners=0"]) == 0  # elsewhere
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["update"] for line in lines] == [0, 1, 2, 3, 4] and lines[-1]["steps"] == 2048
    assert all(np.isfinite(line["tracker_loss"]) for line in lines[1:]) and lines[-1]["tracker_loss"] < lines[1]["tracker_loss"]
    assert {line["environment_failures"] + line["runner_restarts"] + line["learner_failures"] for line in lines[1:]} == {0}
    evaluate = ["evaluate", "MedConsult-v0", "--agent", f"ppo:{run}", "--episodes", "64", "--json"]
    assert main([*evaluate, "--knowledge", "synthetic:12x30", "--max-turns", "6"]) == 0
    assert '"failures": 0' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.cluster
def test_runners__that_die_raise_or_stall_are_counted_and_play_nobody_twice(four_cpus: None) -> None:
    learner = OnRLlib(RLlibSettings(**SMALL, num_env_runners=2, sample_timeout=30.0))
    try:
        learner.update(0.0)
        group = learner.running().env_runner_group

        def on(index: int, do: Any) -> Any:
            return group.foreach_env_runner(do, remote_worker_ids=[index], local_env_runner=False, timeout_seconds=60)[0]

        before = on(1, lambda runner: (os.getpid(), runner.ppo.env.engine.handle.copy()))
        other = on(2, lambda runner: runner.ppo.env.engine.handle.copy())
        assert not set(before[1]) & set(other)
        os.kill(before[0], signal.SIGKILL)  # in the runner's process; the next rollout finds it gone
        told = learner.update(0.1)
        assert told["consultations"] > 0
        wait_until(lambda: learner.update(0.1)["runner_restarts"] >= 1)
        wait_until(lambda: learner.update(0.1)["sample_seconds"] >= 0 and on(1, lambda runner: runner.ppo is not None))
        after = on(1, lambda runner: (os.getpid(), runner.ppo.env.engine.handle.copy()))
        assert after[0] != before[0] and not set(after[1]) & (set(before[1]) | set(other))

        def breaks(runner: Any) -> None:
            def raising(_: Any) -> None:
                raise ValueError("the patient has left")

            runner.ppo.env.step = raising

        on(2, breaks)
        told = learner.update(0.2)
        assert told["environment_failures"] == 1 and told["unscored"] == 0
        learner.update(0.2)  # it plays again, with other patients

        def stalls(runner: Any) -> None:
            runner.ppo.env.step = lambda _: time.sleep(600)

        learner.settings.sample_timeout = learner.running().settings.sample_timeout = 2.0
        on(2, stalls)
        told = learner.update(0.3)
        assert told["runner_stalls"] >= 1 and np.isfinite(told["policy_loss"])
    finally:
        learner.close()


@pytest.mark.slow
@pytest.mark.cluster
def test_learner__that_is_killed_is_replaced_from_the_last_update(four_cpus: None) -> None:
    learner = OnRLlib(RLlibSettings(**SMALL, num_env_runners=0, num_learners=2))
    try:
        learner.update(0.0)
        kept = {k: v.clone() for k, v in learner.policy.state_dict().items()}
        group = learner.running().learner_group
        workers, update = group._workers, group.update
        weights = [ray.get(w.get_state.remote(components="rl_module"))["rl_module"]["default_policy"] for w in workers]
        assert all(np.array_equal(weights[0][k], weights[1][k]) for k in weights[0])  # both have learned the same

        def killed(**asked: Any) -> Any:  # after the rollout, in the update
            ray.kill(workers[0])
            return update(**asked)

        group.update = killed
        told = learner.update(0.1)
        moved = max(float((v - kept[k]).abs().max()) for k, v in learner.policy.state_dict().items())
        assert told["learner_failures"] == 1 and 0 < moved < 0.1  # it went on from there, it did not begin anew
        assert learner.running().ticket == 3  # one for each rollout, the lost one's too: its patients do not come back
    finally:
        learner.close()


@pytest.mark.slow
@pytest.mark.cluster
def test_environment__that_always_raises_ends_the_run_with_its_cause(four_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = OnRLlib(RLlibSettings(**SMALL, num_env_runners=0, most_failures=3))
    try:
        monkeypatch.setattr(PPO, "collect", lambda *_: 1 / 0)
        with pytest.raises(RunError, match=r"too many failures.*4 environment failures.*ZeroDivisionError"):
            learner.update(0.0)
    finally:
        learner.close()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["engine=rlib"], "did you mean 'rllib'"),
        (["num_env_runners=2"], "setting num_env_runners is of engine=rllib, and the engine is torch"),
        (["engine=rllib", "num_env_runer=2"], "did you mean 'num_env_runners'"),
        (["engine=rllib", "num_env_runners=3"], "does not divide among num_env_runners=3: give a multiple, such as 63"),
        (["engine=rllib", "imitate=5"], "only engine=torch imitates"),
        (["engine=rllib", "num_env_runners=-1"], "at least 0"),
        (["engine=rllib", "gpus_per_learner=1"], "give num_learners=1"),
        (["engine=rllib", "num_learners=8", "gpus_per_learner=1"], "asks for 8 GPUs and the cluster has 0"),
        (["engine=rllib", "num_env_runners=64"], "asks for 64 CPUs"),
    ],
)
def test_bad_settings__are_told_in_one_line(
    keys: list[str], told: str, four_cpus: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "ppo", "--output", str(tmp_path / "run"), *FEW, "steps=512", *keys]) == 2
    errors = capsys.readouterr().err.strip()
    assert told in errors and "\n" not in errors
    assert not (tmp_path / "run").exists()


def test_address__that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests are connected to
    for address, told in (("127.0.0.1:1", "nothing answers at"), ("nowhere", "is no address")):
        with pytest.raises(RunError, match=told), cluster(address):
            raise AssertionError("connected")


def wait_until(done: Any, seconds: float = 100.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.2)
