"""Consultations in words for training and evaluation: pay by message, counts, failures, demonstrations, evaluation records."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medenv.agents.demonstrations import Spoken, demonstrate, from_records, messages
from medenv.agents.doctor import make_doctor
from medenv.agents.rollouts import Held, Room, summary
from medenv.cli import main
from medenv.errors import RunError
from medenv.runs.evaluate import evaluate
from medenv.runs.records import read_trajectories
from medenv.runs.replay import replay

MIX = "accuracy + 0.1*shapley_credit - 0.01*question_cost - 0.1*invalid_action"
ARGUMENTS = {"knowledge": "scope:12", "max_turns": 6, "reward": MIX}


@pytest.fixture(scope="module")
def room() -> Room:
    return Room(ARGUMENTS, "train")


class Script:
    """A doctor who reads lines, the same in every consultation."""

    name, gives_differential, fingerprint = "script", False, "1"

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def write(self, openings: Sequence[str], reply: Any, seeds: Sequence[int]) -> None:
        who, turn = list(range(len(openings))), 0
        while who:
            _, over = reply([self.lines[min(turn, len(self.lines) - 1)]] * len(who), who)
            who, turn = [i for i, ended in zip(who, over, strict=True) if not ended], turn + 1


def greedy(room: Room) -> Spoken:
    return Spoken(make_doctor("greedy", room.setup.tables), room)


def test_credits__are_noted_by_message_and_sum_to_the_credit_of_the_consultation(room: Room) -> None:
    cases = room.cases(5, range(16))
    by_credit = room.hold(cases, greedy(room), range(16), "shapley_credit")
    for h in by_credit:
        assert len(h.paid.credits) == len(h.paid.asks) == len(h.transcript) // 2
        assert h.paid.asks == [True] * (len(h.paid.asks) - 1) + [False]
    gains = Room({**ARGUMENTS, "reward": MIX.replace("0.1*shapley_credit", "information_gain")}, "train")
    by_gain = gains.hold(cases, greedy(gains), range(16), "information_gain")
    for credit, gain in zip(by_credit, by_gain, strict=True):
        assert credit.transcript == gain.transcript
        assert math.isclose(sum(credit.paid.credits), sum(gain.paid.credits), abs_tol=1e-4)
    assert any(not np.allclose(c.paid.credits, g.paid.credits, atol=1e-3) for c, g in zip(by_credit, by_gain, strict=True))


def test_a_message_with_two_questions__has_the_credits_of_both(room: Room) -> None:
    both = Script("Do you have a fever? Do you have a cough?", "Diagnosis: influenza")
    held = room.hold(room.cases(6, range(32)), both, range(32), "shapley_credit")
    alone = room.hold(
        room.cases(6, range(32)),
        Script("Do you have a fever?", "Do you have a cough?", "Diagnosis: influenza"),
        range(32),
        "shapley_credit",
    )
    for h, a in zip(held, alone, strict=True):
        assert len(h.paid.credits) == 2 and len(a.paid.credits) == 3
        assert math.isclose(h.paid.credits[0], sum(a.paid.credits[:2]), abs_tol=1e-6)


def test_a_credit_that_depends_on_the_truth__is_noted_at_every_message() -> None:
    room = Room({**ARGUMENTS, "reward": "accuracy + promed_sig"}, "train")
    held = room.hold(room.cases(7, range(16)), greedy(room), range(16), "promed_sig")
    assert sum(c > 0 for h in held for c in h.paid.credits[:-1]) > 16
    for h in held:
        assert math.isclose(h.paid.total, sum(h.paid.credits) + h.correct, abs_tol=1e-6)


def test_expected_accuracy__pays_the_belief_in_the_diagnosis_with_the_same_mean(room: Room) -> None:
    """Greedy names the likeliest condition: what training sees of it is at least 1 / 12, and on average what it earned."""
    held = room.hold(room.cases(11, range(600)), greedy(room), range(600), expected=True)
    more = np.array([h.paid.total - h.earned for h in held])
    believed = more + np.array([h.correct for h in held])
    assert (believed >= 1 / 12 - 1e-6).all() and (believed <= 1 + 1e-6).all() and believed.std() > 0.05
    assert abs(more.mean()) < 3 * more.std() / np.sqrt(600)
    assert {h.paid.total - h.earned for h in room.hold(room.cases(11, range(8)), greedy(room), range(8))} == {0.0}


def test_counts__of_repeats_and_of_what_was_not_understood(room: Room) -> None:
    lines = ("Do you have a fever?", "Do you have a fever?", "blah blah", "Diagnosis: influenza")
    for h in room.hold(room.cases(8, range(16)), Script(*lines), range(16)):
        fever_opened = h.repeats == 2
        assert h.questions == (0 if fever_opened else 1) and h.repeats == 2 - h.questions and h.malformed == 1
    found = summary(room.hold(room.cases(8, range(16)), Script(*lines), range(16)))
    assert found["format_errors"] == 0.25 and found["repeat_rate"] >= 0.5 and found["undiagnosed"] == 0.0


def test_asking_what_the_opening_said__is_a_repeat(room: Room) -> None:
    class Parrot(Script):
        def write(self, openings: Sequence[str], reply: Any, seeds: Sequence[int]) -> None:
            env, everybody = room.env(len(openings)), list(range(len(openings)))
            reply([env.write(int(c)) for c in env.engine.complaint], everybody)
            reply(["Diagnosis: influenza"] * len(openings), everybody)

    assert [(h.questions, h.repeats) for h in room.hold(room.cases(12, range(8)), Parrot(), range(8))] == [(0, 1)] * 8


def test_undiagnosed__is_an_end_that_counts_as_wrong(room: Room) -> None:
    found = summary(room.hold(room.cases(9, range(8)), Script("hm"), range(8)))
    assert found["undiagnosed"] == 1.0 and found["accuracy"] == 0.0 and found["failed"] == 0.0


def test_a_consultation_at_fault__fails_alone_and_is_no_score(room: Room) -> None:
    cases = room.cases(10, range(8))
    opened = room.env(8).reset(options={"case": cases})[0][3]

    class Breaks(Script):
        def write(self, openings: Sequence[str], reply: Any, seeds: Sequence[int]) -> None:
            if opened in openings:
                raise ValueError("boom")
            super().write(openings, reply, seeds)

    held = room.hold(cases, Breaks("Diagnosis: influenza"), range(8))
    failed = [h for h in held if h.failure]
    assert [h.case for h in held] == cases and 1 <= len(failed) < 8 and failed[0].failure == "ValueError: boom"
    whole = room.hold(
        [c for c, h in zip(cases, held, strict=True) if not h.failure], Script("Diagnosis: influenza"), range(8)[: 8 - len(failed)]
    )
    assert summary(held)["return"] == summary(whole)["return"] and summary(held)["failed"] == len(failed)
    with pytest.raises(RunError, match="none of 2 consultations could be scored: boom"):
        summary([Held("a", failure="boom"), Held("b", failure="boom")])


def test_demonstrations__are_a_function_of_the_seed_and_end_with_a_diagnosis(room: Room) -> None:
    doctor = make_doctor("greedy", room.setup.tables)
    one, two, other = (demonstrate(room, doctor, 20, seed, "sft train") for seed in (0, 0, 1))
    assert [h.transcript for h in one] == [h.transcript for h in two] != [h.transcript for h in other]
    for h in one:
        assert messages(h.transcript)[-1].startswith("Diagnosis: ") and len(messages(h.transcript)) % 2 == 0
    varied = demonstrate(room, doctor, 20, 0, "sft train", wordings=4)
    assert [h.actions for h in varied] == [h.actions for h in one] and [h.transcript for h in varied] != [h.transcript for h in one]


def test_trajectories__in_numbers_and_in_words_give_the_same_demonstrations(room: Room, tmp_path: Path) -> None:
    arguments = {**ARGUMENTS, "split": "train"}
    evaluate("MedConsult-v0", "greedy", 24, 3, tmp_path / "numbers", arguments)
    evaluate("MedConsultText-v0", "greedy", 24, 3, tmp_path / "words", arguments)
    numbers, words = (from_records(room, list(read_trajectories(tmp_path / kind))) for kind in ("numbers", "words"))
    assert numbers == words and len(words) == 24
    spoilt = list(read_trajectories(tmp_path / "numbers"))
    spoilt[3]["turns"] = [t | {"kind": "none"} for t in spoilt[3]["turns"]]  # nothing can be retold of it; the others stay their own
    assert from_records(room, spoilt) == numbers[:3] + numbers[4:]
    evaluate("MedConsultText-v0", "greedy", 4, 3, tmp_path / "test", ARGUMENTS)
    with pytest.raises(RunError, match="split 'test', which is not trained on"):
        from_records(room, list(read_trajectories(tmp_path / "test")))
    with pytest.raises(RunError, match=r"give env\.knowledge as in their run"):
        from_records(Room({"knowledge": "scope:6"}, "train"), list(read_trajectories(tmp_path / "words")))


def test_evaluate__in_words_scores_a_doctor_in_numbers_as_in_numbers(tmp_path: Path) -> None:
    words = evaluate("MedConsultText-v0", "greedy", 40, 0, tmp_path / "words", ARGUMENTS)
    numbers = evaluate("MedConsult-v0", "greedy", 40, 0, None, ARGUMENTS)
    for key in ("accuracy", "mean_questions", "mean_return", "invalid_actions"):
        assert words[key] == numbers[key]
    assert words["top3"] is None and numbers["top3"] is not None  # nothing is put in place of a differential that is not given
    records = list(read_trajectories(tmp_path / "words"))
    assert records[0]["messages"][0][0] == "patient" and len(records[0]["messages"]) % 2 == 1
    again = replay(tmp_path / "words", MIX)
    assert again["changed"] == 0
    assert replay(tmp_path / "words", "accuracy")["mean_return"] == words["accuracy"]


def test_evaluate__in_words_counts_what_was_repeated_or_not_understood() -> None:
    found = evaluate(
        "MedConsultText-v0", Script("Do you have a fever?", "Do you have a fever?", "?!", "Diagnosis: influenza"), 10, 0, None, ARGUMENTS
    )
    assert found["not_understood"] == 1.0 and found["repeated_questions"] >= 1.0 and found["invalid_actions"] >= 2.0


def test_evaluate__in_words_a_failure_is_never_a_score(tmp_path: Path) -> None:
    class Breaks(Script):
        def write(self, openings: Sequence[str], reply: Any, seeds: Sequence[int]) -> None:
            raise ValueError("boom")

    found = evaluate("MedConsultText-v0", Breaks(), 3, 0, tmp_path, ARGUMENTS)
    assert found["failures"] == 3 and found["accuracy"] is None
    assert {r["failure"] for r in read_trajectories(tmp_path)} == {"ValueError: boom"}


def test_evaluate__in_words_what_was_broken_off_keeps_its_turns_and_is_a_failure(tmp_path: Path) -> None:
    class Leaves(Script):
        def write(self, openings: Sequence[str], reply: Any, seeds: Sequence[int]) -> None:
            reply(["Do you have a fever?"] * len(openings), list(range(len(openings))))

    found = evaluate("MedConsultText-v0", Leaves(), 3, 0, tmp_path, ARGUMENTS)
    assert found["failures"] == 3 and found["mean_return"] is None
    for record in read_trajectories(tmp_path):
        assert (
            "the doctor broke off" in record["failure"]
            and record["end"] is None
            and len(record["turns"]) == 1
            and len(record["messages"]) == 3
        )


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["MedConsult-v0", "--agent", "sft:somewhere"], "speaks and this environment is in numbers"),
        (["MedConsultText-v0", "--agent", "grpo:nowhere"], "holds no doctor.json"),
        (["MedConsultText-v0", "--agent", "lm:/no/such/model"], "there is no such directory"),
    ],
)
def test_evaluate__a_doctor_in_words_that_does_not_fit_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments, "--episodes", "2", "--knowledge", "scope:12"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_command_line__evaluates_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "MedConsultText-v0", "--agent", "greedy", "--episodes", "8", "--knowledge", "scope:12", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["episodes"] == 8 and found["repeated_questions"] == 0.0
