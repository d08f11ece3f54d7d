"""The registered environments: Gymnasium's rules, batches, seeds, pickling, named cases, and a fresh process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_base
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import medenv  # noqa: F401  registers the environments
from medenv.envs.registration import environment_ids
from medenv.errors import CaseError, KnowledgeError, MedenvError, UnknownName
from medenv.knowledge.base import Finding
from medenv.knowledge.named import knowledge_base
from medenv.patients.scripted import ScriptedPatient
from medenv.testing import check_environment, check_patient, difference, scripted_actions

ID = "MedConsult-v0"
ROOT = Path(__file__).parent.parent
SMALL = {"knowledge": "synthetic:5x24", "max_turns": 5}


def keys(num: int) -> np.ndarray:
    return np.arange(num, dtype=np.uint64) + np.uint64(77)


@pytest.mark.parametrize("env_id", environment_ids())
def test_every_id__conforms(env_id: str, ddxplus_release: Path) -> None:
    check_environment(env_id)


@pytest.mark.parametrize(
    "arguments",
    [
        {"knowledge": tiny_base(), "observe_belief": True},
        {"knowledge": "synthetic:12x50", "noise": 0.3, "difficulty": 1.0, "setting": "emergency", "persona": "brief"},
        {"complaint": "chest_pain", "observe_belief": True},
        {"knowledge": "synthetic:2x8", "max_turns": 1, "split": "test"},
        {"knowledge": "synthetic:5x24", "reward": {"information_gain": {"weight": 2, "value": "log_probability"}}, "split": "all"},
    ],
)
def test_other_arguments__conform(arguments: dict) -> None:
    check_environment(ID, **arguments)


@pytest.mark.parametrize("env_id", environment_ids())
def test_make_vec__in_every_way(env_id: str, ddxplus_release: Path) -> None:
    batch = gym.make_vec(env_id, num_envs=3)
    assert batch.num_envs == 3 and batch.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    seen, _ = batch.reset(seed=1)
    assert batch.observation_space.contains(seen)
    if isinstance(batch.single_action_space, gym.spaces.Discrete):
        generic = gym.make_vec(env_id, num_envs=3, vectorization_mode="sync")
        other, _ = generic.reset(seed=1)
        for turn in range(12):
            assert not difference({k: np.asarray(v) for k, v in seen.items()}, {k: np.asarray(v) for k, v in other.items()}, f"turn {turn}")
            actions = scripted_actions(seen["action_mask"], batch.num_questions, keys(3), turn)
            (seen, *one), (other, *two) = batch.step(actions), generic.step(actions)
            assert batch.observation_space.contains(seen)
            assert not difference([np.asarray(x) for x in one[:3]], [np.asarray(x) for x in two[:3]])


@pytest.mark.parametrize("env_id", environment_ids())
def test_spec__survives_pickle_and_json(env_id: str, ddxplus_release: Path) -> None:
    spec = gym.make(env_id).spec
    assert spec is not None
    for again in (pickle.loads(pickle.dumps(spec)), EnvSpec.from_json(spec.to_json())):
        assert not difference(gym.make(again).reset(seed=4), gym.make(env_id).reset(seed=4))


def test_environment_itself__survives_pickle() -> None:
    env = gym.make(ID, **SMALL).unwrapped
    seen, _ = env.reset(seed=2)
    env.step(int(np.flatnonzero(seen["action_mask"])[0]))
    again = pickle.loads(pickle.dumps(env))
    mask = env.action_masks()
    action = int(np.flatnonzero(mask)[0])
    assert not difference(env.step(action), again.step(action))
    assert not difference(env.reset(), again.reset())


def test_fresh_process__with_two_imports(ddxplus_release: Path) -> None:
    """`import gymnasium, medenv` is all that a user needs; nothing heavy is loaded by it."""
    program = """
import sys, warnings
import gymnasium, medenv
heavy = {"torch", "ray", "transformers", "matplotlib", "PIL"} & set(sys.modules)
assert not heavy, heavy
from gymnasium.utils.env_checker import check_env
warnings.simplefilter("error")
ids = [i for i in gymnasium.registry if i.startswith("MedConsult")]
assert ids
for i in ids:
    check_env(gymnasium.make(i).unwrapped, skip_render_check=True)
    gymnasium.make_vec(i, num_envs=2).reset(seed=0)
print(len(ids))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(environment_ids())


def test_batch_seed__is_the_scalar_seed_plus_i() -> None:
    batch = gym.make_vec(ID, 4, "vector_entry_point", **SMALL)
    first = batch.reset(seed=10)[0]
    assert not difference(first, batch.reset(seed=[10, 11, 12, 13])[0])
    for i in range(4):
        single = gym.make(ID, **SMALL).reset(seed=10 + i)[0]
        assert not difference({k: v[i] for k, v in first.items()}, single)


def test_masked_reset_and_missing_seeds__leave_the_other_streams_alone() -> None:
    batch = gym.make_vec(ID, 3, "vector_entry_point", autoreset_mode="Disabled", **SMALL)

    def later(**first) -> list[str]:  # type: ignore[no-untyped-def]
        batch.reset(seed=0)
        batch.reset(**first)
        batch.reset()
        return batch.case_ids()

    mask = np.array([False, True, False])
    usual, masked, none = later(), later(seed=50, options={"reset_mask": mask}), later(seed=[None, 51, None])
    batch.reset(seed=0)
    batch.reset()
    assert masked[0] == batch.case_ids()[0] and masked[2] == batch.case_ids()[2], "one reset fewer, the same stream"
    assert none[0] == usual[0] and none[2] == usual[2]
    assert masked[1] == none[1] != usual[1]


def test_seeds__continue_or_start_again() -> None:
    env = gym.make(ID, **SMALL).unwrapped
    env.reset(seed=5)
    ids = [env.case_id]
    for _ in range(30):
        env.reset()
        ids.append(env.case_id)
    assert len(set(ids)) == 31, "without a seed the stream goes on"
    env.reset(seed=5)
    assert env.case_id == ids[0]
    fresh = {make_unseeded() for _ in range(3)}
    assert len(fresh) == 3, "the very first stream without a seed is drawn from entropy"


def make_unseeded() -> str:
    env = gym.make(ID, **SMALL).unwrapped
    env.reset()
    return env.case_id


@pytest.mark.parametrize(("seed", "words"), [([1, 2], "2 seeds for 3"), (-1, "integers >= 0"), ([0, -1, 2], "integers >= 0")])
def test_bad_batch_seed__is_refused(seed: object, words: str) -> None:
    with pytest.raises(MedenvError, match=words):
        gym.make_vec(ID, 3, "vector_entry_point", **SMALL).reset(seed=seed)


def test_named_case__is_met_again() -> None:
    env = gym.make(ID, **SMALL).unwrapped
    env.reset(seed=1)
    first = env.reset()[0]
    token = env.step(env.engine.refer_action)[4]["case_id"]
    other = gym.make(ID, **SMALL).unwrapped
    assert not difference(first, other.reset(seed=99, options={"case": token})[0])
    assert not difference(first, other.reset(options={"case": [token]})[0])
    batch = gym.make_vec(ID, 3, "vector_entry_point", **SMALL)
    seen, _ = batch.reset(seed=0, options={"case": token})
    for i in range(3):
        assert not difference(first, {k: v[i] for k, v in seen.items()})
    assert batch.case_ids() == [token] * 3
    assert not difference(first, {k: v[1] for k, v in batch.reset(options={"case": ["0" * 16, token, "4" * 16]})[0].items()})


@pytest.mark.parametrize("case", [7, ["0" * 16, "0" * 16], "nobody", [], 3.5])
def test_bad_case__is_refused(case: object) -> None:
    env = gym.make(ID, **SMALL).unwrapped
    with pytest.raises(CaseError, match="case"):
        env.reset(seed=0, options={"case": case})


def test_unknown_option__is_refused() -> None:
    with pytest.raises(CaseError, match="'cases'"):
        gym.make(ID, **SMALL).reset(seed=0, options={"cases": "0" * 16})


def test_same_step__hands_over_the_last_observation() -> None:
    batch = gym.make_vec(ID, 3, "vector_entry_point", autoreset_mode="SameStep", **SMALL)
    batch.reset(seed=0)
    seen, _, ended, _, info = batch.step(np.array([batch.engine.refer_action, 0, batch.num_questions]))
    assert ended.tolist() == [True, False, True] == info["_final_obs"].tolist()
    assert info["final_obs"]["turns_left"].ravel().tolist() == [4, 4, 4] and seen["turns_left"].ravel().tolist() == [5, 4, 5]
    assert info["final_info"]["_truth"].tolist() == [True, False, True]


def test_observations__are_copies() -> None:
    env = gym.make(ID, **SMALL, observe_belief=True).unwrapped
    batch = gym.make_vec(ID, 2, "vector_entry_point", **SMALL, observe_belief=True)
    for one in (env, batch):
        seen, _ = one.reset(seed=0)
        kept = pickle.loads(pickle.dumps(seen))
        for _ in range(2):
            mask = np.atleast_2d(one.action_masks())
            action = scripted_actions(mask, one.num_questions, keys(len(mask)), 1, closing=False)
            one.step(action if one is batch else int(action[0]))
        assert not difference(kept, seen)
        for part in seen.values():
            if isinstance(part, np.ndarray):
                part[...] = 0
        assert one.action_masks().any(), "writing into an observation changes nothing inside"


def test_action_meanings() -> None:
    env = gym.make(ID, knowledge=tiny_base()).unwrapped
    meanings = env.action_meanings()
    assert len(meanings) == env.action_space.n == env.num_questions + env.num_conditions + 1
    assert meanings[0] == "ask: fever" and meanings[5] == "order: smoker" and meanings[6] == "diagnose: Flu" and meanings[-1] == "refer"
    assert meanings == gym.make_vec(ID, 2, "vector_entry_point", knowledge=tiny_base()).action_meanings()


def test_render__shows_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make(ID, **SMALL, render_mode="ansi").unwrapped
    for seed in range(5):
        seen, info = env.reset(seed=seed)
        assert info["reply"] in env.render() and "medical advice" in env.render()
        q = int(np.flatnonzero(seen["action_mask"])[0])
        assert env.step(q)[4]["reply"] in env.render()
    human = gym.make(ID, **SMALL, render_mode="human").unwrapped
    human.reset(seed=0)
    human.step(human.engine.refer_action)
    assert human.render() is None and capsys.readouterr().out.strip()


def test_preset_without_its_data__says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDENV_DDXPLUS", raising=False)
    with pytest.raises(KnowledgeError, match="MEDENV_DDXPLUS"):
        gym.make("MedConsult-DDXPlus-v0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"knowledge": "bultin"}, "did you mean 'builtin'"),
        ({"persona": "plan"}, "did you mean 'plain'"),
        ({"cases": "sample"}, "did you mean 'sampled'"),
    ],
)
def test_unknown_name__proposes_the_closest(arguments: dict, words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        gym.make(ID, **SMALL | arguments)


def test_batch__does_not_render() -> None:
    with pytest.raises(MedenvError, match="does not render"):
        gym.make_vec(ID, 2, "vector_entry_point", render_mode="ansi", **SMALL)


def test_sync_vector__of_scalars_equals_the_batch_under_same_step() -> None:
    scalar = SyncVectorEnv([lambda: gym.make(ID, **SMALL) for _ in range(3)], autoreset_mode="SameStep")
    batch = gym.make_vec(ID, 3, "vector_entry_point", autoreset_mode="SameStep", **SMALL)
    one, two = scalar.reset(seed=8)[0], batch.reset(seed=8)[0]
    for turn in range(25):
        assert not difference({k: np.asarray(v) for k, v in one.items()}, two)
        actions = scripted_actions(two["action_mask"], batch.num_questions, keys(3), turn)
        one, two = scalar.step(actions)[0], batch.step(actions)[0]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64])
def test_batch__takes_any_integer_type(kind: type) -> None:
    envs = gym.make_vec("MedConsult-v0", num_envs=3, knowledge="synthetic:60x180")
    envs.reset(seed=0)
    seen = envs.step(np.array([0, 7, 100]).astype(kind))
    envs.reset(seed=0)
    assert not difference(seen[:2], envs.step(np.array([0, 7, 100]))[:2])


def test_snapshot_of_another_base__is_refused() -> None:
    one, other = (gym.make("MedConsult-v0", knowledge=f"synthetic:5x24@{seed}") for seed in (0, 1))
    one.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(MedenvError, match="synthetic-5x24@0"):
        other.unwrapped.restore(one.unwrapped.snapshot())


class Whisper(ScriptedPatient):
    def answer(self, finding: Finding, values: tuple[str, ...]) -> str:
        return super().answer(finding, values).lower() + " ..."


def test_patient_of_your_own__words_the_answers() -> None:
    base = knowledge_base("synthetic:5x24")
    check_patient(Whisper(base), base)
    env = gym.make("MedConsult-v0", knowledge=base, persona=Whisper(base))
    env.reset(seed=0)
    said = [env.step(int(a))[4]["reply"] for a in np.flatnonzero(env.unwrapped.action_masks()[:20])[:3]]
    assert all(words.endswith(" ...") for words in said)


def test_patient_that_says_the_same_for_yes_and_no__is_noticed() -> None:
    class Mumbler(ScriptedPatient):
        def answer(self, finding: Finding, values: tuple[str, ...]) -> str:
            return "Hm."

    base = knowledge_base("synthetic:5x24")
    with pytest.raises(AssertionError, match="other words"):
        check_patient(Mumbler(base), base)
    for persona in ("plain", "brief"):
        check_patient(ScriptedPatient(knowledge_base("builtin"), persona), knowledge_base("builtin"))


def test_observe_belief__is_true_or_false() -> None:
    with pytest.raises(MedenvError, match="'False'"):
        gym.make("MedConsult-v0", knowledge="synthetic:5x24", observe_belief="False")
