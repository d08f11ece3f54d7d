"""Demonstrations: consultations in words to learn from, held by a doctor in numbers or taken from a file of trajectories.

A doctor in numbers (`greedy`) decides from the observation, as in `MedConsult-v0`; each decision is put into words by the environment's
format and taken by `MedConsultText-v0`, whose patients answer. All of it is a function of the seed.

Does not cover: learning from them (`sft`), preferences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medenv.agents.conversation import Conversation, Reply
from medenv.agents.doctor import Doctor
from medenv.agents.rollouts import Held, Room
from medenv.envs.dialogue import Transcript
from medenv.errors import RunError
from medenv.hashing import draw, seed_for

Messages = list[str]  # the patient's and the doctor's in turn, the patient's first, the doctor's last
BATCH = 512


class Spoken:
    """A doctor in numbers who speaks, in consultations of one room. `wordings`: how many ways of saying a thing are used; which one
    depends on the consultation's seed and the turn.
    """

    gives_differential = False

    def __init__(self, doctor: Doctor, room: Room, wordings: int = 1) -> None:
        self.doctor, self.room, self.wordings, self.name = doctor, room, wordings, doctor.name

    @property
    def fingerprint(self) -> str | None:
        """The doctor's own, and the number of wordings."""
        own = getattr(self.doctor, "fingerprint", None)
        return None if own is None else f"{own} wordings={self.wordings}"

    def write(self, openings: Sequence[str], reply: Reply, seeds: Sequence[int]) -> None:
        """Ask and conclude until `reply` says that all are over. The room's consultations of this number have just begun."""
        env = self.room.env(len(openings))
        who, turn = list(range(len(openings))), 0
        while who:
            observation = {name: view[who] for name, view in env.engine.views().items()}
            if self.room.setup.observe_belief:
                observation["belief"] = env.engine.belief[who]
            actions, _ = self.doctor.act(observation)
            said = [env.write(int(a), draw(seeds[i], turn) % self.wordings) for a, i in zip(actions, who, strict=True)]
            _, over = reply(said, who)
            who, turn = [i for i, ended in zip(who, over, strict=True) if not ended], turn + 1


class Retold:
    """Who says again what is on record, actions of `MedConsult-v0` in words. A consultation's seed is its number among the records."""

    name = "retold"

    def __init__(self, room: Room, actions: Sequence[Sequence[int]]) -> None:
        self.room, self.actions = room, actions

    def write(self, openings: Sequence[str], reply: Reply, seeds: Sequence[int]) -> Sequence[Conversation] | None:
        """Every recorded action as a message."""
        env, who, turn = self.room.env(len(openings)), list(range(len(openings))), 0
        while who:
            _, over = reply([env.write(self.actions[seeds[i]][turn]) for i in who], who)
            turn += 1
            who = [i for i, ended in zip(who, over, strict=True) if not ended and turn < len(self.actions[seeds[i]])]
        return None


def demonstrate(room: Room, doctor: Doctor, number: int, seed: int, stream: str, wordings: int = 1) -> list[Held]:
    """`number` finished consultations of the room's split: those of `stream` under the seed, from the first on."""
    spoken, out = Spoken(doctor, room, wordings), list[Held]()
    for start in range(0, number, BATCH):
        numbers = range(start, min(start + BATCH, number))
        cases = room.cases(seed_for(seed, stream), numbers)
        out += room.hold(cases, spoken, [seed_for(seed, "wording", n) for n in numbers])
    return out


def messages(transcript: Transcript) -> Messages:
    """What was said, without the patient's last word: nobody learns from it."""
    return [text for _, text in transcript[:-1]]


def from_records(room: Room, records: Sequence[Mapping[str, Any]]) -> list[Messages]:
    """Demonstrations on record: those in words as they were said, those in numbers put into words with the patients answering again.

    Failures are left out, and what asks and concludes nothing (the oracle's). RunError for records of another base, or of a split that is
    not trained on.
    """
    out: list[Messages] = []
    numbers: list[Mapping[str, Any]] = []
    for record in records:
        if record["base"] != room.setup.base.fingerprint:
            raise RunError(
                f"the trajectories are of a base with fingerprint {record['base']}, the environment's is {room.setup.base.fingerprint}: "
                "give env.knowledge as in their run"
            )
        if record["arguments"]["split"] != "train":
            raise RunError(
                f"the trajectories are of the split {record['arguments']['split']!r}, which is not trained on: "
                "make them with `medenv evaluate --split train`"
            )
        if record["failure"] is None and record["turns"]:
            if record.get("messages"):
                out.append([text for _, text in record["messages"][:-1]])
            else:
                numbers.append(record)
    for start in range(0, len(numbers), BATCH):
        some = numbers[start : start + BATCH]
        actions = [[t["action"] for t in r["turns"] if t["kind"] != "none"] for r in some]
        held = room.hold([r["case_id"] for r in some], Retold(room, actions), range(len(some)))
        out += [messages(h.transcript) for h in held if h.failure is None]
    return [m for m in out if m and len(m) % 2 == 0]
