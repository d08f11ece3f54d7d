"""Consultations in words held for training and validation: what a doctor wrote, what it was paid for each message, how it ended.

A consultation that can't be finished (the doctor, the patient or a reward raised, the model's context was full) is a failure with its
cause: it is counted and left out, never scored. When a batch raises, it is held again in halves, down to the consultation at fault.

Does not cover: what is learned from them (`credit`, `grpo`), records on disk (`medenv.runs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from medenv.agents.conversation import Conversation, Reply
from medenv.agents.credit import OUTCOME, Paid
from medenv.envs.dialogue import MALFORMED, Transcript
from medenv.envs.setup import Setup
from medenv.envs.text_vector import ConsultTextVectorEnv
from medenv.errors import RunError
from medenv.hashing import seed_for


class DoctorInWords(Protocol):
    """A doctor in words: `TextDoctor`, `Spoken`, or one of your own."""

    name: str

    def write(self, openings: Sequence[str], reply: Reply, seeds: Sequence[int]) -> Sequence[Conversation] | None:
        """Hold one conversation for each opening; see `converse`. A doctor that works with tokens returns them."""


@dataclass
class Held:
    """One consultation. `earned`: its return, NaN where it could not be scored; `paid`: what training sees of it. `failure`: why it
    could not be finished; then nothing else counts.
    """

    case: str
    earned: float = 0.0
    paid: Paid = field(default_factory=lambda: Paid(0.0))
    conversation: Conversation = field(default_factory=Conversation)
    transcript: Transcript = field(default_factory=list)
    actions: list[int] = field(default_factory=list)  # the engine's, -1: malformed
    questions: int = 0  # valid ones
    repeats: int = 0  # questions that had been asked, or that the opening had answered
    malformed: int = 0  # messages of which nothing was understood
    correct: bool = False
    ended: bool = False
    failure: str | None = None


class Room:
    """Consultations of one configuration, held in batches of any size. `arguments` as `MedConsultText-v0`."""

    def __init__(self, arguments: Mapping[str, Any], split: str) -> None:
        self.arguments = dict(arguments) | {"split": split}
        self._envs: dict[int, ConsultTextVectorEnv] = {}
        self.setup: Setup = self.env(1).setup

    def env(self, num: int) -> ConsultTextVectorEnv:
        """The environment for `num` consultations; the last few sizes are kept."""
        if num not in self._envs:
            if len(self._envs) > 3:
                self._envs.pop(next(iter(self._envs)))
            self._envs[num] = ConsultTextVectorEnv(num, "Disabled", **self.arguments)
        return self._envs[num]

    def cases(self, stream: int, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """Case ids of the room's split: number k of `stream` is always the same patient."""
        at = np.asarray(numbers, np.uint64)
        return self.env(1).case_ids(self.setup.source.next(np.full(len(at), stream, np.uint64), at))

    def hold(
        self, cases: Sequence[str], doctor: DoctorInWords, seeds: Sequence[int], credit: str = OUTCOME, expected: bool = False
    ) -> list[Held]:
        """A consultation about each of `cases`, in their order. `credit`: the component whose pay is noted message by message.

        `expected`: training sees belief[diagnosis], of the exact belief at the end, where `accuracy` pays 0 or 1: the same mean with less
        noise, since luck with the hidden case is averaged out. What a consultation `earned` stays the mix's.
        """
        if not cases:
            return []
        try:
            return _hold(self.env(len(cases)), cases, doctor, seeds, credit, expected)
        except Exception as error:  # a doctor, a patient, a reward may be foreign code: what it raises is data, not a score
            if len(cases) == 1:
                return [Held(cases[0], failure=f"{type(error).__name__}: {error}")]
        half = len(cases) // 2
        halves = (cases[:half], seeds[:half]), (cases[half:], seeds[half:])
        return [h for some, own in halves for h in self.hold(some, doctor, own, credit, expected)]


def _hold(
    env: ConsultTextVectorEnv, cases: Sequence[str], doctor: DoctorInWords, seeds: Sequence[int], credit: str, expected: bool
) -> list[Held]:
    weight = env.setup.rewards.weight_of_right() if expected else 0.0
    openings, _ = env.reset(options={"case": list(cases)})
    held = [Held(case) for case in cases]
    taken: list[list[int]] = [[] for _ in cases]  # engine turns of each message
    asked = [{int(c)} for c in env.engine.complaint]

    def reply(messages: Sequence[str], who: Sequence[int]) -> tuple[list[str], list[bool]]:
        texts, rewards, ended, _, info = env.step(messages, who)
        for i in who:
            h, actions = held[i], info["actions"][i]
            h.earned += float(rewards[i]) if info["scored"][i] else np.nan
            _note(env, h, actions, asked[i])
            taken[i].append(len(actions))
            h.paid.asks.append(actions[-1] < env.num_questions)
            if credit != OUTCOME:
                h.paid.credits.append(float(env.components[credit][i]))
            if ended[i]:
                h.ended = True
                diagnosis = actions[-1] - env.num_questions
                h.correct = diagnosis == int(info["truth"][i])
                h.paid.total = h.earned
                if 0 <= diagnosis < env.num_conditions:
                    belief = info["belief"][i]
                    h.paid.worth, h.paid.best = float(belief[diagnosis]), float(belief.max())
                    h.paid.total += weight * (h.paid.worth - h.correct)
                    h.paid.lost = weight * (h.paid.best - h.paid.worth)
                if credit != OUTCOME and "credits" in info and _gives_credits(env.setup, credit):
                    h.paid.credits = _by_message(info["credits"][i], taken[i])
        return [texts[i] for i in who], [bool(ended[i]) for i in who]

    written = doctor.write(openings, reply, seeds)
    for i, h in enumerate(held):
        h.transcript = list(env.transcripts[i])
        if written is not None:
            h.conversation = written[i]
        if not h.ended:
            h.failure = "the doctor broke off; a language model does when its context is full: give it more, or shorter or fewer turns"
        if credit == OUTCOME:
            h.paid.credits = [0.0] * len(h.paid.asks)
    return held


def _note(env: ConsultTextVectorEnv, h: Held, actions: Sequence[int], asked: set[int]) -> None:
    """Count what the engine did for one message."""
    for action in actions:
        if action == MALFORMED:
            h.malformed += 1
        elif action < env.num_questions:
            h.repeats += action in asked
            h.questions += action not in asked
            asked.add(action)
    h.actions += actions


def _gives_credits(setup: Setup, credit: str) -> bool:
    return any(name == credit and hasattr(reward, "credits") for name, _, reward in setup.rewards.terms)


def _by_message(credits: np.ndarray, taken: Sequence[int]) -> list[float]:
    """Credits by engine turn [T] summed over the turns of each message."""
    ends = np.cumsum(taken)
    return [float(credits[stop - n : stop].sum()) for stop, n in zip(ends, taken, strict=True)]


def summary(held: Sequence[Held]) -> dict[str, float]:
    """Means over the consultations that were scored, and how many were not. RunError, with the first cause, when none was.

    `return`, `accuracy`, `questions`, `turns` (messages of the doctor's), `repeat_rate` (of all questions), `format_errors` (share of
    messages not understood), `undiagnosed`, `failed`.
    """
    scored = [h for h in held if h.failure is None and np.isfinite(h.earned)]
    if not scored:
        cause = next((h.failure for h in held if h.failure), "a component of the reward was not scored")
        raise RunError(f"none of {len(held)} consultations could be scored: {cause}")
    questions, repeats, messages = (sum(x) for x in zip(*((h.questions, h.repeats, len(h.paid.asks)) for h in scored), strict=True))
    return {
        "return": float(np.mean([h.earned for h in scored])),
        "accuracy": float(np.mean([h.correct for h in scored])),
        "questions": questions / len(scored),
        "turns": messages / len(scored),
        "repeat_rate": repeats / max(questions + repeats, 1),
        "format_errors": sum(h.malformed for h in scored) / max(messages, 1),
        "undiagnosed": float(np.mean([h.paid.asks[-1] for h in scored])),
        "failed": float(len(held) - len(scored)),
    }


def rollout_seeds(seed: int, what: str, step: int, numbers: Sequence[int]) -> list[int]:
    """A seed of its own for each rollout: a function of the run's seed, the step and the rollout's number."""
    return [seed_for(seed, what, step, n) for n in numbers]
