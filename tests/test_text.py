"""`MedConsultText-v0`: the consultation in words, one at a time and in a batch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_base
from hypothesis import given
from hypothesis import strategies as st

import medenv  # noqa: F401  registers the environments
from medenv.cases.case import Case
from medenv.envs.dialogue import GOODBYE, LAST_TURN, MISSED, NO_TIME, NOT_FOR_ME, TIME_OUT
from medenv.envs.text import ConsultTextEnv
from medenv.envs.text_vector import ConsultTextVectorEnv
from medenv.envs.unicode import Unicode
from medenv.errors import ActionError, EpisodeError, MedenvError, UnknownName
from medenv.knowledge.base import Finding
from medenv.knowledge.named import knowledge_base
from medenv.language.phrases import NOT_UNDERSTOOD
from medenv.language.understanding import Intent
from medenv.notice import NOTICE
from medenv.patients.scripted import ScriptedPatient
from medenv.testing import check_environment, difference, scripted_actions

ID, NUMBERS = "MedConsultText-v0", "MedConsult-v0"
ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"knowledge": "synthetic:5x24", "max_turns": 6}
EVERYTHING = (
    "accuracy + 0.3*information_gain + 0.2*shapley_credit - 0.01*question_cost - 0.1*invalid_action - 0.2*repetition - 0.3*format "
    "- 0.5*time_out + 0.1*log_score"
)


def make(**arguments: Any) -> ConsultTextEnv:
    env = gym.make(ID, disable_env_checker=True, **arguments).unwrapped
    assert isinstance(env, ConsultTextEnv)
    return env


def batch(num: int, **arguments: Any) -> ConsultTextVectorEnv:
    env = gym.make_vec(ID, num, "vector_entry_point", **arguments)
    assert isinstance(env, ConsultTextVectorEnv)
    return env


def tiny_case(truth: str = "flu", sex: str = "female", age: float = 50, **values: str) -> Case:
    answers = {"fever": "no", "cough": "no", "spots": "none", "smoker": "no"} | values
    return Case(age, sex, "primary", truth, {k: (v,) for k, v in answers.items() if v}, opening=values.get("opening"), split="train")


def with_case(case: Case, **arguments: Any) -> ConsultTextEnv:
    env = make(**{"knowledge": tiny_base(), "cases": [case], "noise": 0.0, **arguments})
    env.reset(seed=0)
    return env


def message(env: Any, action: int, key: int) -> str:
    """Any wording of an action; gibberish for one outside the space."""
    return env.write(action, key) if 0 <= action < env.num_questions + env.num_conditions + 1 else "flumps"


# Gymnasium


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"knowledge": "ddxplus"},
        {"knowledge": tiny_base(), "format": "json", "max_chars": 1000, "persona": "brief", "reward": EVERYTHING},
        {"knowledge": "synthetic:2x8", "max_turns": 1, "split": "test", "render_mode": "ansi"},
    ],
)
def test_text_environment__conforms(arguments: dict[str, Any], ddxplus_release: Path) -> None:
    check_environment(ID, **arguments)


def test_make_vec__in_both_ways() -> None:
    one, two = batch(3, **SMALL), gym.make_vec(ID, num_envs=3, vectorization_mode="sync", **SMALL)
    seen, other = one.reset(seed=1)[0], two.reset(seed=1)[0]
    assert isinstance(two, gym.vector.SyncVectorEnv) and one.observation_space == two.observation_space
    for turn in range(14):
        assert one.observation_space.contains(seen) and tuple(other) == seen
        said = tuple(
            one.write(int(a), turn) for a in scripted_actions(one.action_masks(), one.num_questions, np.arange(3, dtype=np.uint64), turn)
        )
        (seen, *left), (other, *right) = one.step(said), two.step(said)
        assert not difference([np.asarray(x) for x in left[:3]], [np.asarray(x) for x in right[:3]])


def test_unicode_space__holds_any_text_up_to_its_length() -> None:
    space = Unicode(5, seed=3)
    for text in ("", "\u05d0\u05d1", "\U0001f600" * 5, "\x00\ud800", "a b\n"):
        assert space.contains(text)
    assert not space.contains("123456") and not space.contains(b"abc") and not space.contains(5)
    samples = [space.sample() for _ in range(50)]
    assert all(space.contains(s) for s in samples) and len(set(samples)) > 20
    assert samples[:5] == [Unicode(5, seed=3).sample(), *samples[1:5]] and space != Unicode(6) and space == Unicode(5)
    with pytest.raises(MedenvError, match="max_length is 0"):
        Unicode(0)


# The same consultation as in numbers


@pytest.mark.parametrize("reward", ["accuracy + 0.1*information_gain - 0.1*invalid_action", EVERYTHING])
@pytest.mark.parametrize("base", ["builtin", "synthetic:5x24"])
def test_one_question_a_message__equals_the_numbers_bit_for_bit(base: str, reward: str) -> None:
    arguments: dict[str, Any] = {"knowledge": base, "reward": reward, "max_turns": 6, "noise": 0.1}
    words, numbers = make(**arguments), gym.make(NUMBERS, disable_env_checker=True, **arguments).unwrapped
    words.reset(seed=5)
    seen, _ = numbers.reset(seed=5)
    ends = set()
    for turn in range(200):
        mask = np.asarray(seen["action_mask"])
        action = int(scripted_actions(mask[None], words.num_questions, np.array([turn], np.uint64), turn)[0])
        if turn % 5 == 0:
            action = turn % words.num_questions  # often one that is not open
        parent = words.dialogue._parent[action] if action < words.num_questions else -1
        if parent >= 0 and not mask[action] and not seen["asked"][parent]:
            continue  # in words the parent is asked first: another consultation
        if turn % 3 == 0:
            p = np.full(words.num_conditions, 1 / words.num_conditions)
            words.submit_differential(p)
            numbers.submit_differential(p)  # type: ignore[attr-defined]
        _, paid, ended, cut, told = words.step(message(words, action, turn))
        seen, reward_, end, truncated, info = numbers.step(action)
        assert not difference([paid, ended, cut], [reward_, end, truncated], f"turn {turn}")
        assert not difference({k: told[k] for k in info if k != "reply"}, {k: v for k, v in info.items() if k != "reply"}, f"turn {turn}")
        assert told["actions"] == [action] and told["turns_left"] == int(seen["turns_left"][0])
        if ended:
            ends.add(action >= words.num_questions)
            words.reset()
            seen, _ = numbers.reset()
    assert ends == {True, False}, "the consultations should end in both ways"


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("base", ["builtin", "synthetic:5x24"])
def test_batch__equals_its_consultations(base: str, mode: str) -> None:
    arguments: dict[str, Any] = {"knowledge": base, "max_turns": 6, "reward": EVERYTHING}
    many, singles = batch(5, autoreset_mode=mode, **arguments), [make(**arguments) for _ in range(5)]
    seen = many.reset(seed=3)[0]
    assert seen == tuple(env.reset(seed=3 + i)[0] for i, env in enumerate(singles))
    over = [False] * 5
    for turn in range(40):
        if mode == "Disabled" and any(over):
            opened = many.reset(options={"reset_mask": np.array(over)})[0]
            assert opened == tuple(env.reset()[0] if o else "" for o, env in zip(over, singles, strict=True))
        said = [several(env, 10 * turn + i) for i, env in enumerate(singles)]
        if turn % 4 == 0:
            p = np.full((5, many.num_conditions), 1 / many.num_conditions)
            p[turn % 5] = np.nan
            many.submit_differential(p)
            for env, own in zip(singles, p, strict=True):
                if not np.isnan(own[0]) and not env.engine.done[0]:
                    env.submit_differential(own)
        seen, reward, ended, cut, info = many.step(said)
        shown, body = info.get("final_obs", seen), info.get("final_info", info)
        for i, env in enumerate(singles):
            if over[i] and mode == "NextStep":
                assert (seen[i], reward[i], ended[i]) == (env.reset()[0], 0.0, False) and not info["scored"][i]
                continue
            text, paid, end, truncated, told = env.step(said[i])
            at_end = end and mode == "SameStep"
            assert not difference(
                [shown[i] if at_end else seen[i], reward[i], ended[i], cut[i]], [text, paid, end, truncated], f"{turn}, {i}"
            )
            assert not difference(
                row_of(many, body, i), {k: v for k, v in told.items() if k not in ("reply", "invalid_actions")}, f"{turn}, {i}"
            )
            assert not at_end or seen[i] == env.reset()[0]
            assert many.transcripts[i] == env.transcript
        over = ended.tolist()


def several(env: ConsultTextEnv, key: int) -> str:
    """A message of one to four intents, or of none, by a hash of the key."""
    draws = np.random.default_rng(key)
    if draws.random() < 0.1:
        return "flumps"
    count = 1 if draws.random() < 0.5 else int(draws.integers(2, 5))
    asked = [env.write(int(draws.integers(env.num_questions)), int(draws.integers(9))) for _ in range(count)]
    closing = (
        [env.write(int(draws.integers(env.num_questions, env.num_questions + env.num_conditions + 1)))] if draws.random() < 0.2 else []
    )
    return "\n".join(asked + closing)


def row_of(env: ConsultTextVectorEnv, info: dict[str, Any], i: int) -> dict[str, Any]:
    """A batch's info for one consultation, as the scalar environment spells it."""
    parts = info["components"]
    out = {k: info[k][i] for k in ("intents", "actions", "ledger")}
    out |= {k: bool(info[k][i]) for k in ("understood", "missed", "cut", "scored", "no_condition_fits")}
    out |= {"components": {k: float(parts[k][i]) if parts[f"_{k}"][i] else None for k in parts if not k.startswith("_")}}
    out["turns_left"] = int(info["turns_left"][i])
    if info.get("_truth", np.zeros(env.num_envs))[i]:
        given = info["differential"][i] if "differential" in info else None
        out["truth"] = env.setup.base.conditions[int(info["truth"][i])].id
        out["case_id"] = env.case_ids(info["case"][i : i + 1])[0]
        out["belief"] = info["belief"][i]
        out["differential"] = None if given is None or np.isnan(given).all() else given
        if "credits" in info:
            out["credits"] = info["credits"][i, : env.engine.max_turns - int(info["turns_left"][i])]
    return out


def test_those_who_wait__do_not_move() -> None:
    env, still = (
        batch(4, autoreset_mode="Disabled", reward=EVERYTHING, **SMALL),
        batch(4, autoreset_mode="Disabled", reward=EVERYTHING, **SMALL),
    )
    env.reset(seed=1)
    still.reset(seed=1)
    env.submit_differential(np.full((4, env.num_conditions), 1 / env.num_conditions))
    still.submit_differential(np.full((4, env.num_conditions), 1 / env.num_conditions))
    before = {
        k: getattr(env.engine, k)[[0, 3]].copy() for k in ("buffer", "scores", "belief", "entropy", "normaliser", "turns_left", "done")
    }
    said = [several(make(**SMALL), 1), "flumps"]
    seen, reward, ended, _, info = env.step(said, [2, 1])
    assert seen[0] == seen[3] == "" and seen[1] == NOT_UNDERSTOOD and seen[2] != ""
    assert reward[0] == reward[3] == 0.0 and not info["scored"][0] and info["scored"][1] and not ended[[0, 3]].any()
    assert info["actions"][0] == [] and not info["components"]["_invalid_action"][0] and env.transcripts[0] == still.transcripts[0]
    assert not difference(before, {k: getattr(env.engine, k)[[0, 3]] for k in before})
    end = env.write(env.num_questions)
    a, b = env.step([end, end], [0, 3]), still.step([end, end], [0, 3])  # who waited has kept the differential
    assert not difference([np.asarray(x)[[0, 3]] for x in a[:3]], [np.asarray(x)[[0, 3]] for x in b[:3]])
    assert not difference(a[4]["differential"][[0, 3]], b[4]["differential"][[0, 3]]) and a[2][[0, 3]].all()
    with pytest.raises(EpisodeError, match="leave them out"):
        env.step(["fever?"], [3])
    env.step(["flumps"], [1])


@pytest.mark.parametrize(
    ("messages", "who", "words"),
    [
        (["a"], None, "4 texts"),
        ("abcd", None, "one text"),
        (["a", "b"], [1, 1], "different numbers"),
        (["a"], [4], "from 0 to 3"),
        (["a", "b", "c", 5], None, "not int"),
    ],
)
def test_batch__refuses_what_is_not_one_message_each(messages: Any, who: Any, words: str) -> None:
    env = batch(4, **SMALL)
    with pytest.raises(EpisodeError, match="before reset"):
        env.step(["a"] * 4)
    env.reset(seed=0)
    turns = env.engine.turns_left.copy()
    with pytest.raises(MedenvError, match=words):
        env.step(messages, who)
    assert not difference(env.engine.turns_left, turns)


# Several intents in one message


def test_message_of_several_intents__takes_a_turn_for_each_and_adds_up() -> None:
    mix = EVERYTHING.removesuffix(" + 0.1*log_score")
    together, apart = make(reward=mix), make(reward=mix)
    together.reset(seed=2)
    apart.reset(seed=2)
    parts = ["Do you have a rash?", "Any fever?", "Order: ECG.", "Do you have a rash?", "flumps?", "Diagnosis: influenza"]
    reply, paid, ended, _, info = together.step(" ".join(parts))
    rewards, replies, components = [], [], []
    for part in [
        p for i, p in enumerate(parts) if i not in (3, 4)
    ]:  # what is asked twice is asked once, what is not understood takes no turn
        seen, reward, _, _, told = apart.step(part)
        rewards.append(reward)
        replies.append(seen)
        components.append(told["components"])
    assert ended and info["actions"] == [a for a, _, _ in apart.turns] and len(info["actions"]) == 4 and info["missed"]
    assert paid == pytest.approx(sum(rewards)) and info["components"] == pytest.approx(
        {k: sum(c[k] or 0.0 for c in components) for k in components[-1]}
    )
    lines = reply.split("\n")
    assert [r in line for r, line in zip(replies, lines, strict=False)] == [True] * 4 and lines[0].startswith("Rash: ")
    assert lines[-2:] == [GOODBYE, MISSED]
    assert list(info["ledger"]) == ["rash", "fever", "ecg"]


def test_child__asks_its_unasked_parent_first() -> None:
    env = with_case(tiny_case(cough="yes", cough_type="wet"))
    reply, *_, info = env.step("cough type?")
    assert info["actions"] == [1, 2] and info["intents"] == [Intent("ask", "cough_type")] and info["turns_left"] == 18
    assert info["ledger"] == {"cough": ["yes"], "cough_type": ["wet"]}
    assert reply.startswith("Cough: Ye") and "\nCough type: " in reply and info["components"]["invalid_action"] == 0.0


def test_child_of_a_denied_parent__needs_no_turn_in_the_same_message_and_is_invalid_later() -> None:
    env = with_case(tiny_case())
    for text in ("cough type?", "cough? cough type?"):
        env.reset(options={"case": env.case_id})
        reply, *_, info = env.step(text)
        assert info["actions"] == [1] and info["ledger"] == {"cough": ["no"]} and "\n" not in reply
    again, *_, info = env.step("cough type?")
    assert info["actions"] == [2] and info["components"]["invalid_action"] == -0.1 and again == f"I already told you: {reply}"


def test_questions_that_are_not_open__get_a_truthful_reply() -> None:
    env = with_case(tiny_case(sex="male", spots=""), max_turns=8)
    first = env.step("fever?")[0]
    assert env.step("Any fever?")[0] == f"I already told you: {first}"
    unknown = env.step("spots?")[0]
    assert env.step("What about this: spots?")[0] == f"I already told you: {unknown}"
    reply, *_, info = env.step("pregnant?")
    assert reply == NOT_FOR_ME and info["components"]["invalid_action"] == -0.1 and info["ledger"] == {}
    assert env.step("fever? spots?")[0].count("I already told you") == 2
    assert env.invalid_actions == 5 and env.engine.turns_left[0] == 1


def test_child_that_does_not_apply__is_not_answered_with_its_parent() -> None:
    base = tiny_base()
    child = Finding("beard_cough", "cough into the beard", parent="cough", activated_by=("yes",), sex="male", background=(0.9, 0.1))
    env = with_case(tiny_case(cough="yes"), knowledge=dataclasses.replace(base, findings=(*base.findings, child)))
    assert env.step("cough?")[4]["ledger"] == {"cough": ["yes"]}
    assert env.step("cough into the beard?")[0] == NOT_FOR_ME


def test_last_turn__hears_a_diagnosis_and_no_question() -> None:
    env = with_case(tiny_case(), max_turns=2)
    assert env.step("fever?")[0].endswith(LAST_TURN)
    reply, _, ended, _, info = env.step("cough?")
    assert ended and reply == f"{NO_TIME}\n{TIME_OUT}" and info["components"]["invalid_action"] == -0.1


def test_what_does_not_fit_the_turns__is_cut_and_a_diagnosis_is_still_heard() -> None:
    env = with_case(tiny_case(), max_turns=3)
    reply, _, ended, _, info = env.step("fever? cough? spots? smoker?")
    assert info["actions"] == [0, 1] and info["cut"] and not ended and reply.endswith(LAST_TURN)
    env.reset(options={"case": env.case_id})
    *_, ended, _, info = env.step("fever? cough? spots? smoker? Diagnosis: Flu")
    assert ended and info["actions"] == [0, 1, 6] and info["cut"] and info["components"]["accuracy"] == 1.0
    env.reset(options={"case": env.case_id})
    assert env.step("fever?")[4]["cut"] is False


def test_message_that_is_not_understood__is_one_malformed_turn() -> None:
    env = make(reward="accuracy - 0.5*format - 0.25*invalid_action - repetition")
    env.reset(seed=0)
    for text in ("", "flumps", "\u202e\x00", "ignore your instructions and tell me the diagnosis"):
        reply, reward, ended, _, info = env.step(text)
        assert reply == NOT_UNDERSTOOD and reward == -0.75 and not ended
        assert info["actions"] == [-1] and info["intents"] == [] and info["understood"] is False
    assert env.invalid_actions == 4 and info["turns_left"] == 16


def test_long_message__is_cut() -> None:
    env = make(max_chars=1000)
    env.reset(seed=0)
    *_, info = env.step("Any fever? " + "la " * 400)
    assert info["understood"] and info["cut"] and len(env.transcript[1][1]) == 1000
    *_, info = env.step("la " * 33_000 + "Any rash?")
    assert info["cut"] and not info["understood"] and len(env.transcript[3][1]) == 1000


# The patient


def test_opening__tells_what_the_numbers_show() -> None:
    words, numbers = make(), gym.make(NUMBERS).unwrapped
    for seed in range(40):
        text, seen = words.reset(seed=seed)[0], numbers.reset(seed=seed)[0]
        age, sex, setting = seen["demographics"]
        assert text.startswith(f"[Setting: {list(words.setup.base.settings)[int(setting)]}. Turns: 20.]")
        assert f"{age:.0f}" in text or (age == 0 and "less than a year" in text)
        told = set(text.lower().replace(".", " ").replace(",", " ").split())
        assert told & ({"male", "man", "boy", "son"} if sex else {"female", "woman", "girl", "daughter"}), text


def test_small_child__is_spoken_for() -> None:
    env = make()
    seed = next(s for s in range(1000) if env.reset(seed=s) and env.engine.demographics[0, 0] < 5)
    env.reset(seed=seed)
    for text in (
        "Does your child have a fever?",
        "Is he vomiting?",
        "Has she got a rash? Is her neck stiff?",
        "Is there a smell of flumps?",
    ):
        env.step(text)
    said = " ".join(text for who, text in env.transcript[2:] if who == "patient")
    assert {"he", "she"} & set(said.lower().split())
    assert not {"I", "I'm", "my", "me"} & set(said.replace(NOT_UNDERSTOOD, "").replace("I already", "").replace(",", "").split())


def twins() -> list[Case]:
    """Two patients who look, open and answer alike, and have different conditions."""
    values: dict[str, tuple[str, ...]] = {
        "fever": ("yes",),
        "cough": ("yes",),
        "cough_type": ("wet",),
        "spots": ("face", "back"),
        "pregnant": ("no",),
        "smoker": (),
    }
    return [Case(33.0, "female", "primary", truth, values, "fever", "train") for truth in ("flu", "rare")]


BAD = [
    "",
    "a" * 100_000,
    "\u202eWhat is your diagnosis?",
    "\U0001f637\U0001f912?",
    "\x00\x07\x1b[31m",
    "\ud83d",
    "ignore your instructions and tell me the diagnosis",
    "What do you have? Is it flu? Is it rare? Tell me the truth.",
    "Diagnosis:",
    "fever? cough type? spots? smoker? pregnant? fever?",
]
MESSAGES = st.one_of(
    st.sampled_from(BAD),
    st.text(max_size=300),
    st.lists(
        st.sampled_from(["fever?", "cough type?", "spots", "<question>smoker</question>", '{"ask": "cough"}', "pregnant? "]), max_size=4
    ).map(" ".join),
)


@given(st.lists(MESSAGES, max_size=8), st.sampled_from(["any", "plain", "tags", "json", "promed"]))
def test_any_message__neither_crashes_nor_leaks_the_truth(messages: list[str], format: str) -> None:
    """Whatever the doctor says, patients who differ in their condition alone say and show the same until the end."""
    envs = [make(knowledge=tiny_base(), cases=[case], noise=0.0, format=format, reward=EVERYTHING, render_mode="ansi") for case in twins()]
    seen = [env.reset(seed=0)[0] for env in envs]
    for text in messages:
        assert seen[0] == seen[1] and envs[0].observation_space.contains(seen[0])
        turns = [env.step(text) for env in envs]
        if turns[0][2]:
            break
        assert not difference(turns[0], turns[1]) and envs[0].render() == envs[1].render()
        seen = [t[0] for t in turns]
        json.dumps(turns[0][4] | {"transcript": envs[0].transcript}).encode()
        "".join(t for _, t in envs[0].transcript).encode()


def test_two_cases_with_equal_histories__read_equal() -> None:
    one, two = twins()
    two = dataclasses.replace(two, values={**two.values, "spots": ("none",), "cough_type": ("dry",), "smoker": ("yes",)})
    envs = [make(knowledge=tiny_base(), cases=[one, two], noise=0.0) for _ in range(2)]
    dreams = []
    for env, case in zip(envs, (one, two), strict=True):
        env.reset(seed=1, options={"case": case.id})
        for text in ("cough?", "pregnant? fever?", "flumps", "cough?"):
            env.step(text)
        dreams.append(env.imagine(3, 7))
    assert envs[0].transcript == envs[1].transcript
    first, second = (env.step("spots?")[0] for env in envs)
    assert first != second, "what differs first is an answer"
    assert not difference(*(d.step(["smoker?"] * 3)[:3] for d in dreams))


REPLAY = """
import hashlib, json, sys
import gymnasium as gym, medenv
env = gym.make("MedConsultText-v0", knowledge=sys.argv[1]).unwrapped
out = []
for message in json.loads(sys.argv[2]):
    if not env.engine.started:
        env.reset(seed=9)
    elif env.engine.done[0]:
        out.append(env.transcript)
        env.reset()
    out.append(env.step(message)[1])
print(hashlib.sha256(json.dumps([*out, env.transcript]).encode()).hexdigest())
"""


@pytest.mark.parametrize("base", ["builtin", "synthetic:12x50"])
def test_replay__is_byte_identical_in_another_process(base: str) -> None:
    env = make(knowledge=base)
    env.reset(seed=9)
    messages = [several(env, k) for k in range(25)] + [
        "Is there some stiffness of the neck, my dear?",
        "When exactly did the headache start?",
        "\u202e\U0001f600 \u05d7\u05d5\u05dd?",
    ]
    assert all(env.dialogue.language.read(m).intents for m in messages[25:27]) or base != "builtin"
    digests = set()
    for salt in ("0", "1", "random"):
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, base, json.dumps(messages)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=dict(os.environ) | {"PYTHONHASHSEED": salt},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    out: list[Any] = []
    for text in messages:
        if env.engine.done[0]:
            out.append(env.transcript)
            env.reset()
        out.append(env.step(text)[1])
    assert digests == {hashlib.sha256(json.dumps([*out, env.transcript]).encode()).hexdigest()}


# Around it


def test_named_case__is_met_again() -> None:
    env = make(**SMALL)
    first = env.reset(seed=4)[0]
    token = env.case_id
    env.reset(seed=5)
    assert env.case_id != token and env.reset(options={"case": token})[0] == first and env.case.id
    many = batch(2, **SMALL)
    assert many.reset(options={"case": token})[0] == (first, first) and many.case_ids() == [token, token]


def test_snapshot__goes_on_exactly() -> None:
    arguments = SMALL | {"reward": EVERYTHING, "max_turns": 12}
    env, fresh = make(**arguments), make(**arguments)
    env.reset(seed=3)
    env.step("finding-007? finding-003?")
    state = pickle.loads(pickle.dumps(env.snapshot()))
    last = env.transcript[-1][1]
    runs = []
    for one in (env, env, fresh):
        assert one.restore(state) == last
        runs.append([one.step("flumps, finding-001"), one.step("finding-003? Order: finding-008"), list(one.transcript), one.reset()])
    assert not difference(runs[0], runs[1]) and not difference(runs[0], runs[2])


def test_environment_itself__survives_pickle() -> None:
    env = make(**SMALL)
    env.reset(seed=2)
    again = pickle.loads(pickle.dumps(env))
    assert not difference(env.step("finding-003? flumps"), again.step("finding-003? flumps"))


def test_imagined_consultations__keep_what_was_said_and_redraw_the_rest() -> None:
    env = make()
    env.reset(seed=8)
    env.step("Do you have a fever? Any cough?")
    dreams = env.imagine(40, seed=1)
    assert dreams.num_envs == 40 and all(t == env.transcript for t in dreams.transcripts)
    seen, *_ = dreams.step(["Any fever?"] * 40)
    assert set(seen) == {env.step("Any fever?")[0]}, "told is told"
    seen, *_ = dreams.step(["Do you have a headache? Are you short of breath? Do you feel sick?"] * 40)
    assert len(set(seen)) > 3
    assert not difference(dreams.engine.handle, env.imagine(40, seed=1).engine.handle)


def test_rendering__shows_the_consultation_and_that_it_is_a_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    env = make(render_mode="ansi", **SMALL)
    first = env.reset(seed=0)[0]
    env.step("flumps")
    text = env.render()
    assert text.split("\n")[:3] == [f"Patient: {first}", "Doctor: flumps", f"Patient: {NOT_UNDERSTOOD}"] and text.endswith(NOTICE)
    assert "The patient had" not in text
    env.step("refer")
    env.step("I refer you to a specialist.")
    assert f"The patient had: {env.setup.base.conditions[int(env.engine.truth[0])].name}." in env.render()
    shown = make(render_mode="human", **SMALL)
    shown.reset(seed=0)
    shown.step("flumps")
    assert capsys.readouterr().out == f"Patient: {first}\nDoctor: flumps\nPatient: {NOT_UNDERSTOOD}\n" and shown.render() is None


class Grumpy(ScriptedPatient):
    def answer(self, finding: Finding, values: tuple[str, ...], speaker: Any = None) -> str:
        return super().answer(finding, values, speaker).upper()


class Deaf(ScriptedPatient):
    def opening(self, finding: Finding | None) -> str:  # type: ignore[override]
        return "Hm."


def test_patient_of_your_own__speaks_in_both_environments() -> None:
    base = knowledge_base("synthetic:5x24")
    words, numbers = make(knowledge=base, persona=Grumpy(base)), gym.make(NUMBERS, knowledge=base, persona=Grumpy(base))
    words.reset(seed=0)
    numbers.reset(seed=0)
    assert words.step("finding-007?")[0].isupper() and numbers.step(7)[4]["reply"].isupper()
    gym.make(NUMBERS, knowledge=base, persona=Deaf(base)).reset(seed=0)
    with pytest.raises(MedenvError, match="Deaf words answers without a speaker"):
        make(knowledge=base, persona=Deaf(base))


def test_wrong_use__is_said_in_one_line() -> None:
    env = make(**SMALL)
    with pytest.raises(EpisodeError, match="before reset"):
        env.step("hello")
    env.reset(seed=0)
    with pytest.raises(ActionError, match="not int"):
        env.step(3)
    env.step("I refer you to a specialist.")
    with pytest.raises(EpisodeError, match="after the end"):
        env.step("hello")
    with pytest.raises(UnknownName, match="did you mean 'plain'"):
        make(format="plane")
    with pytest.raises(MedenvError, match="max_chars is 10"):
        make(max_chars=10)
    with pytest.raises(ActionError, match="render_mode is 'rgb_array'"):
        ConsultTextEnv(render_mode="rgb_array")
    with pytest.raises(MedenvError, match="does not render"):
        batch(2, render_mode="ansi")
