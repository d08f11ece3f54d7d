"""PPO: the formulas, what is learned from, run directories that survive a kill, and the doctor that comes out."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from medenv.agents.doctor import make_doctor, one
from medenv.agents.policy import CLOSED, FORCED, Heads, entropy_of, load_doctor, log_probability_of, sample
from medenv.agents.ppo import PPO, PPOSettings, make_env
from medenv.agents.ppo_objective import Rollout, advantages, move_credit
from medenv.errors import RewardError, RunError
from medenv.knowledge.compiled import compiled
from medenv.knowledge.named import knowledge_base
from medenv.runs.records import write_atomically
from medenv.runs.run_directory import read_metrics
from medenv.runs.settings import read_settings
from medenv.runs.training import GLOSSARY, train

KNOWLEDGE = "synthetic:8x16"


def tiny(**changes: Any) -> PPOSettings:
    """A run of a second or two."""
    env = {"knowledge": KNOWLEDGE, "observe_belief": True, "max_turns": 8}
    small = PPOSettings(env=env, num_envs=32, rollout=8, minibatch=128, hidden=16, steps=8 * 256, threads=1)
    return replace(small, **{"evaluate_every": 4, "evaluate_episodes": 64, "checkpoint_every": 2, **changes})


def heads(n: int = 5, questions: int = 4, conditions: int = 3) -> Heads:
    g = torch.Generator().manual_seed(1)
    question = torch.randn(n, questions, generator=g)
    question[:, 1] = CLOSED
    open_ = torch.ones(n, questions, dtype=torch.bool)
    open_[:, 1] = False
    gate = torch.randn(n, generator=g)
    gate[0] = FORCED
    diagnosis = torch.randn(n, conditions, generator=g)
    return Heads(gate, question.log_softmax(1), diagnosis.log_softmax(1), torch.zeros(n), open_)


# The formulas


def test_the_factored_policy_is_one_distribution() -> None:
    h = heads()
    every = torch.stack([log_probability_of(h, torch.full((5,), a)) for a in range(7)], 1)
    assert torch.allclose(every.exp().sum(1), torch.ones(5), atol=1e-6)
    assert (every[:, 1] < -40).all()  # masked
    p = every.exp()
    assert torch.allclose(entropy_of(h), -(p * every.clamp_min(-100)).sum(1), atol=1e-5)


def test_samples_follow_the_distribution_and_the_mask() -> None:
    h = heads(1)
    h = h._replace(gate=h.gate * 0)
    many = Heads(*(x.expand(20000, *x.shape[1:]) for x in h))
    action, log_probability = sample(many, torch.Generator().manual_seed(0))
    share = torch.bincount(action, minlength=7) / 20000
    expected = torch.cat([log_probability_of(h, torch.tensor([a])) for a in range(7)]).exp()
    assert torch.allclose(share, expected, atol=0.015) and share[1] == 0
    assert torch.equal(log_probability, log_probability_of(many, action))


def test_advantages_by_hand() -> None:
    empty = torch.zeros(0)
    reward = torch.tensor([[1.0], [2.0], [4.0], [0.5]])
    value = torch.tensor([[0.5], [1.0], [3.0], [0.25], [8.0]])
    ended = torch.tensor([[False], [True], [False], [False]])
    scored = torch.ones(4, 1, dtype=torch.bool)
    rollout = Rollout(empty, empty, empty, empty, empty, value, reward, ended, scored, empty, [])
    last = 0.5 + 8.0 - 0.25
    ends = 2.0 - 1.0
    assert advantages(rollout, 1.0, 0.5).flatten().tolist() == [1.0 + 1.0 - 0.5 + 0.5 * ends, ends, 4.0 + 0.25 - 3.0 + 0.5 * last, last]
    scored[3] = False  # turn 3 could not be scored: it teaches nothing, and turn 2 reads its state's value, not a reward of 0
    assert advantages(rollout, 1.0, 0.5).flatten().tolist()[2:] == [4.0 + 0.25 - 3.0, 0.0]


# What is learned from


def test_every_transition_happened_and_none_crosses_an_end() -> None:
    learner = PPO(tiny())
    first = learner.observation["turns_left"].reshape(-1).copy()
    rollout, _ = learner.collect(0.0)
    left = torch.round(rollout.context[:, :, 0] * 8)
    assert torch.equal(left[0], torch.from_numpy(first))
    expected = torch.where(rollout.ended[:-1], torch.full_like(left[1:], 8.0), left[:-1] - 1)
    assert torch.equal(left[1:], expected) and rollout.ended.any()
    stops = rollout.action >= learner.Q
    assert torch.equal(stops, rollout.ended)  # no turn is invalid, none is a referral, the last turn always stops
    assert (rollout.action < learner.Q + learner.architecture.num_conditions).all()
    asked = rollout.open.gather(2, rollout.action.clamp(max=learner.Q - 1)[..., None]).squeeze(2)
    assert (asked | stops).all() and stops[left == 1].all() and rollout.scored.all()


def test_unscored_transitions_do_not_reach_the_loss() -> None:
    def learned(spoil: float) -> list[torch.Tensor]:
        learner = PPO(tiny())
        rollout, _ = learner.collect(0.0)
        rollout.scored[:, 0] = False
        rollout.reward[:, 0] = spoil
        learner.learn(rollout, 0.0)
        return list(learner.policy.parameters())

    assert all(torch.equal(a, b) for a, b in zip(learned(0.0), learned(1e6), strict=True))


def test_training_rewards_are_the_environments_but_for_the_two_settings() -> None:
    plain, _ = PPO(tiny(expected_accuracy=False)).collect(0.0)
    expected, _ = PPO(tiny()).collect(0.0)
    bonus, _ = PPO(tiny()).collect(0.5)
    assert torch.equal(plain.action, expected.action) and torch.equal(plain.action, bonus.action)
    asks = ~plain.ended
    assert torch.equal(plain.reward[asks], expected.reward[asks])
    Q = plain.open.shape[2]
    chosen = (plain.action - Q).clamp(min=0)
    hit = (chosen == plain.truth).float()
    paid = expected.belief.gather(2, chosen[..., None]).squeeze(2)
    assert torch.allclose((expected.reward - plain.reward)[plain.ended], (paid - hit)[plain.ended], atol=1e-6)
    gained = (bonus.reward - expected.reward)[:-1][asks[:-1]]
    entropy = -(plain.belief * plain.belief.clamp_min(1e-30).log()).sum(2)
    assert torch.allclose(gained, 0.5 * (entropy[:-1] - entropy[1:])[asks[:-1]], atol=1e-4)


def test_expected_accuracy_counts_what_a_wrong_diagnosis_costs() -> None:
    env = {"knowledge": KNOWLEDGE, "observe_belief": True, "max_turns": 8, "reward": "2*accuracy(wrong=1.5) - 0.01*question_cost"}
    plain, _ = PPO(tiny(env=env, expected_accuracy=False)).collect(0.0)
    expected, _ = PPO(tiny(env=env)).collect(0.0)
    assert torch.equal(plain.action, expected.action)
    right = expected.belief.gather(2, (expected.action - plain.open.shape[2]).clamp(min=0)[..., None]).squeeze(2)
    assert torch.allclose(expected.reward[plain.ended], (2 * right - 3 * (1 - right))[plain.ended], atol=1e-5)


def test_runs_share_no_patient_and_keep_to_their_splits() -> None:
    one_, other = PPO(tiny(seed=0)), PPO(tiny(seed=1))
    assert not set(one_.env.engine.handle.tolist()) & set(other.env.engine.handle.tolist())
    assert (one_.env.engine.handle & np.uint64(3) == 0).all()
    assert make_env(tiny(), "validation", 4).setup.source.split == "validation"
    assert one_.validate() == one_.validate()


def test_global_chance_is_left_alone() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    PPO(tiny()).update(0.0)
    assert torch.equal(before, torch.get_rng_state()) and numpy_before == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("observe", [True, False])
def test_it_learns(observe: bool) -> None:
    env = {"knowledge": KNOWLEDGE, "observe_belief": observe, "max_turns": 8}
    learner = PPO(tiny(env=env, num_envs=256, minibatch=512, evaluate_episodes=512))
    before = learner.validate()["validation_return"]
    for update in range(25):
        learner.update(update / 25)
    assert learner.validate()["validation_return"] > before + 0.05


def test_imitation_comes_close_to_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = PPO(tiny(env={"knowledge": KNOWLEDGE, "observe_belief": True, "max_turns": 8}))
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) / 100)  # 200 batches, however busy the machine is
    metrics = learner.imitate(2.0)
    assert metrics["imitation_accuracy"] > 0.4
    assert (learner.episode_return == 0).all() and not learner.env.engine.done.any()


# Settings


def test_settings_are_read_from_texts_and_tables() -> None:
    texts = {"seed": "3", "clip": "1e-1", "steps": "none", "env.max_turns": "12", "env.knowledge": "builtin", "wandb": "off"}
    read = read_settings(PPOSettings, texts)
    assert read == PPOSettings(seed=3, clip=0.1, env={"max_turns": 12, "knowledge": "builtin"})
    assert read_settings(PPOSettings, {"env": {"noise": 0.0}, "env.max_turns": 5}).env == {"noise": 0.0, "max_turns": 5}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"epochs": "two"}, "'two': give int"),
        ({"epochs": 1.5}, "1.5"),
        ({"tensorboard": 1}, "give bool"),
    ],
)
def test_bad_settings(table: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        read_settings(PPOSettings, table)


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ("accuracy + brier_score + log_score", "brier_score, log_score scores a differential, and PPO hands in none while it trains"),
        ("accuracy + potential(gamma=0.9)", r"potential has gamma=0\.9 and the trainer 1: write potential\(gamma=1\)"),
    ],
)
def test_rewards_that_ppo_cannot_learn_from(mix: str, says: str, tmp_path: Path) -> None:
    settings = tiny(env={"knowledge": KNOWLEDGE, "reward": mix})
    with pytest.raises(RewardError, match=says):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    PPO(tiny(env={"knowledge": KNOWLEDGE, "reward": "accuracy + potential(gamma=0.9)"}, gamma=0.9))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (tiny(env={"max_turn": 3}), "did you mean 'max_turns'"),
        (tiny(env={"split": "test"}), "validation uses validation"),
        (tiny(minibatch=0), "minibatch is 0"),
        (tiny(gae_lambda=1.5), "gae_lambda is 1.5"),
        (tiny(wandb="on"), "choose off, offline or online"),
    ],
)
def test_settings_out_of_range(settings: PPOSettings, says: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=says):
        train(settings, tmp_path / "run")


def test_every_setting_is_described_and_every_logged_key_is_in_the_glossary(tmp_path: Path) -> None:
    source = Path(sys.modules["medenv.agents.ppo"].__file__ or "").read_text()
    assert all(f"    {f.name}: " in source and "#" in source.split(f"    {f.name}: ")[1].split("\n")[0] for f in fields(PPOSettings))
    for observe in (True, False):
        env = {"knowledge": KNOWLEDGE, "observe_belief": observe, "max_turns": 8}
        final = train(tiny(steps=512, imitate=0.1, env=env), tmp_path / f"{observe}")
        assert set(final) <= set(GLOSSARY)


# Run directories


def test_a_run_directory_is_complete_and_guarded(tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []
    final = train(tiny(), run, progress=seen.append)
    assert {p.name for p in run.iterdir()} == {"run.json", "metrics.jsonl", "checkpoint.pt", "policy", "final.json", "curve.png"}
    assert (run / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert [r["update"] for r in read_metrics(run / "metrics.jsonl")] == list(range(9)) and len(seen) == 9
    assert final["steps"] == 8 * 256 and "validation_return" in final
    assert train(tiny(), run, resume=True) == final  # finished: nothing to do
    with pytest.raises(RunError, match="not empty: resume"):
        train(tiny(), run)
    with pytest.raises(RunError, match=r"setting entropy is 0\.03, this one's is 0\.5"):
        train(tiny(entropy=0.5), run, resume=True)
    other = {"knowledge": "synthetic:8x17", "observe_belief": True, "max_turns": 8}
    with pytest.raises(RunError, match=r"base is 'synthetic.*this one's is"):
        train(tiny(env=other), run, resume=True)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"version": "9.9.9"}))
    with pytest.raises(RunError, match=r"version is '9\.9\.9', this one's is"):
        train(tiny(), run, resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run directory"):
        train(tiny(), tmp_path / "notes", resume=True)


def test_a_torn_last_line_is_dropped_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"update": 0}\n{"update": 1}\n{"upda')
    assert [r["update"] for r in read_metrics(file)] == [0, 1]
    file.write_bytes(b'{"update": 0}\n{"upda\n{"update": 2}\n')
    with pytest.raises(RunError, match="line 2"):
        read_metrics(file)
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


KILLED = """
import sys
from pathlib import Path
from tests.test_ppo import tiny
from medenv.runs.training import train
settings = tiny(env={**tiny().env, "observe_belief": sys.argv[2] == "1"})
train(settings, Path(sys.argv[1]), resume=True, progress=lambda r: print(r["update"], flush=True))
"""


@pytest.mark.parametrize("observe", [True, False])
def test_killed_and_resumed_equals_never_killed(tmp_path: Path, observe: bool) -> None:
    settings = tiny(env={**tiny().env, "observe_belief": observe})
    train(settings, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(int(observe))]
    for kill_at in (1, 5):  # before the second checkpoint, and between two
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == kill_at:
                    process.send_signal(signal.SIGKILL)
                    break
            assert process.wait() == -signal.SIGKILL
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"update": 7, "torn')
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
    whole, killed = (torch.load(tmp_path / name / "policy" / "weights.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole)
    clock = ("seconds", "steps_per_second")
    one_, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert [{k: v for k, v in r.items() if k not in clock} for r in one_] == [{k: v for k, v in r.items() if k not in clock} for r in other]


# The doctor


@pytest.mark.parametrize("observe", [True, False])
def test_the_saved_doctor_decides_as_the_learner_does(tmp_path: Path, observe: bool) -> None:
    env_arguments = {"knowledge": KNOWLEDGE, "observe_belief": observe, "max_turns": 8}
    train(tiny(env=env_arguments), tmp_path / "run")
    tables = compiled(knowledge_base(KNOWLEDGE), 0.02)
    doctor = make_doctor(f"ppo:{tmp_path / 'run'}", tables)
    env = gym.make("MedConsult-v0", **env_arguments)
    observation, _ = env.reset(seed=5)
    ended = False
    while not ended:
        action, differential = doctor.act(one(observation))
        again, _ = load_doctor(tmp_path / "run" / "policy", tables).act(one(observation))
        assert differential is not None and np.isclose(differential.sum(), 1.0) and (differential >= 0).all()
        assert action[0] == again[0] and observation["action_mask"][action[0]] == 1
        if observe:  # where the belief is left out, the doctor works it out
            assert doctor.act({k: v for k, v in one(observation).items() if k != "belief"})[0][0] == action[0]
        observation, _, ended, _, _ = env.step(action[0])
    assert action[0] - 16 == np.argmax(differential[0])


@pytest.mark.parametrize("observe", [True, False])
def test_the_doctor_decides_alike_in_any_batch(tmp_path: Path, observe: bool) -> None:
    settings = tiny(steps=256, env={**tiny().env, "observe_belief": observe})
    train(settings, tmp_path / "run")
    env = make_env(settings, "validation", 64)
    doctor = load_doctor(tmp_path / "run", env.setup.tables)
    observation, _ = env.reset(seed=1)
    for _ in range(6):
        action, differential = doctor.act(observation)
        for i in (0, 17, 63):
            alone, its = doctor.act({k: v[i : i + 1] for k, v in observation.items()})
            assert alone[0] == action[i] and np.allclose(its[0], differential[i], atol=1e-12)
        observation = env.step(action)[0]


def test_a_doctor_of_another_base_is_refused(tmp_path: Path) -> None:
    train(tiny(steps=256), tmp_path / "run")
    other = knowledge_base("synthetic:8x17")
    with pytest.raises(RunError, match=f"{knowledge_base(KNOWLEDGE).fingerprint}.*{other.fingerprint}"):
        load_doctor(tmp_path / "run", compiled(other))
    with pytest.raises(RunError, match="no trained policy here"):
        load_doctor(tmp_path, compiled(other))


def test_credit_of_each_turn__is_taken_from_the_end_and_what_began_earlier_stays_there() -> None:
    paid = np.zeros((4, 3))
    paid[3] = [1.0, 2.0, 9.0]
    credits = np.array([[0.5, 0.25, 0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.0]])
    move_credit(paid, 3, np.array([0, 1]), np.array([2, 5]), credits)  # consultation 0 began at turn 1, consultation 1 two turns before 0
    assert np.allclose(paid[:, 0], [0.0, 0.5, 0.25, 0.25])
    assert np.allclose(paid[:, 1], [0.3, 0.4, 0.5, 0.8])
    assert (paid[:, 2] == [0, 0, 0, 9]).all() and np.allclose(paid.sum(0), [1, 2, 9])


def test_credit_each_turn__moves_what_the_environment_pays_and_changes_no_sum() -> None:
    mix = "accuracy + 0.1*shapley_credit - 0.01*question_cost"
    settings = {
        "env": {"knowledge": "synthetic:12x30", "max_turns": 6, "observe_belief": True, "reward": mix},
        "num_envs": 32,
        "rollout": 12,
    }
    rollouts = [PPO(PPOSettings(**settings, credit_each_turn=each)).collect(0.0)[0] for each in (False, True)]
    assert torch.equal(rollouts[0].action, rollouts[1].action) and not torch.equal(rollouts[0].reward, rollouts[1].reward)
    assert torch.allclose(rollouts[0].reward.sum(0), rollouts[1].reward.sum(0), atol=1e-5)  # a consultation has at most 6 turns of the 12
    with pytest.raises(RewardError, match="add shapley_credit"):
        PPO(PPOSettings(env={"knowledge": "synthetic:12x30", "reward": "accuracy"}, credit_each_turn=True))
