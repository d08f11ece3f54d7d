"""What both environments in words share: from a message to the engine's actions, and from the engine's answers to a reply.

A message may hold several intents; each takes a turn, in order. Asking a child asks its unasked parent first, in a turn of its own; if
the parent turns out not to activate it, the child needs no turn. A message of which nothing was understood is one malformed action.

Does not cover: Gymnasium's calls (`text`, `text_vector`), the rules (`engine`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.envs.engine import Engine
from medenv.envs.setup import Setup
from medenv.envs.steps import NONE
from medenv.envs.unicode import Unicode
from medenv.errors import ActionError, MedenvError
from medenv.language.formats import Format
from medenv.language.phrases import NOT_UNDERSTOOD, label
from medenv.language.understanding import ASK, DIAGNOSE, REFER, Heard, Intent, language
from medenv.language.voice import Speaker

DOCTOR, PATIENT = "doctor", "patient"
MALFORMED = -1  # the action of a message that was not understood
LEAST_CHARS, MAX_CHARS = 1000, 10_000
MISSED = "I didn't understand the rest."
TOLD = "I already told you: {answer}"
NOT_FOR_ME = "That does not apply here."
NO_TIME = "There is no time left for questions."
GOODBYE = "Thank you, doctor."
LAST_TURN = "[One turn left: diagnose or refer.]"
TIME_OUT = "[No turn left: the consultation is over.]"

Transcript = list[tuple[str, str]]  # (doctor or patient, what was said)


class Message:
    """One message on its way through an engine: what was heard, the actions still to take, and those taken with their answers' rows."""

    __slots__ = ("cut", "heard", "queue", "taken", "text")

    def __init__(self, text: str, heard: Heard, actions: list[int], cut: bool) -> None:
        self.text, self.heard, self.cut = text, heard, cut
        self.queue = actions[::-1]  # the next one is the last
        self.taken: list[tuple[int, int]] = []


class Dialogue:
    """The words of an environment: its language, its patient, and what a message does to a consultation. Holds no state of any."""

    def __init__(self, setup: Setup, format: str | Format = "any", max_chars: int = MAX_CHARS) -> None:
        if isinstance(max_chars, bool) or not isinstance(max_chars, int | np.integer) or max_chars < LEAST_CHARS:
            raise MedenvError(f"max_chars is {max_chars!r}: give an integer of at least {LEAST_CHARS}")
        self.setup, self.language, self.space = setup, language(setup.base, format), Unicode(int(max_chars))
        base = setup.base
        self.intents = [
            *(Intent(ASK, f.id) for f in base.findings),
            *(Intent(DIAGNOSE, c.id) for c in base.conditions),
            Intent(REFER),
        ]
        self._action = {intent: a for a, intent in enumerate(self.intents)}
        self._parent = [NONE if f.parent is None else base.finding_index[f.parent] for f in base.findings]
        self._settings = list(base.settings)
        try:
            setup.patient.opening(None, Speaker(0, 40.0, "female"))
        except TypeError:
            raise MedenvError(
                f"the patient {type(setup.patient).__name__} words answers without a speaker: give opening and answer a last argument "
                "`speaker` to use it in words (see medenv.patients.scripted.Patient)"
            ) from None

    def speaker(self, engine: Engine, i: int) -> Speaker:
        """Who speaks in consultation i: a function of what the opening shows."""
        age, sex, setting = engine.demographics[i].tolist()
        return Speaker.of(age, int(sex), int(setting), int(engine.complaint[i]))

    def opening(self, engine: Engine, i: int, speaker: Speaker) -> str:
        """The first message of consultation i: setting, turns, age and sex, complaint."""
        complaint, setting = int(engine.complaint[i]), self._settings[int(engine.demographics[i, 2])]
        finding = self.setup.base.findings[complaint] if complaint < engine.Q else None
        return self._cut(f"[Setting: {setting}. Turns: {engine.max_turns}.] {self.setup.patient.opening(finding, speaker)}")

    def hear(self, message: Any) -> Message:
        """Any text as a message, ready to be taken. ActionError for what is no text."""
        if not isinstance(message, str):
            raise ActionError(f"a message is a text, not {type(message).__name__}: {message!r:.80}")
        text = message[: self.space.max_length]
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs can't be written down
        heard = self.language.read(text)
        return Message(text, heard, [self._action[i] for i in heard.intents] or [MALFORMED], heard.cut or len(message) > len(text))

    def next(self, engine: Engine, i: int, message: Message) -> int | None:
        """The next action of consultation i, or None when the message has been taken. What no longer fits the turns is cut."""
        if engine.done[i]:
            message.cut |= bool(message.queue)
            return None
        while message.queue:
            action = message.queue[-1]
            if not 0 <= action < engine.Q:
                message.queue.pop()
                return action
            if message.taken and engine.turns_left[i] <= 1:
                message.cut = True
                message.queue.pop()
                continue
            first = self._first(engine.buffer[i], engine, action)
            if first != action:
                return first
            message.queue.pop()
            if not message.taken or not self._moot(engine.buffer[i], engine, action, message):
                return action
        return None

    def _first(self, buffer: NDArray[np.int8], engine: Engine, question: int) -> int:
        """The question itself, or the open ancestor that has to be asked before it."""
        at = question
        while buffer[engine.asked_at + at] == 0:
            if buffer[engine.mask_at + at]:
                return at
            at = self._parent[at]
            if at == NONE:
                break
        return question

    def _moot(self, buffer: NDArray[np.int8], engine: Engine, question: int, message: Message) -> bool:
        """Whether a question is closed by what this very message has brought out about its parents."""
        if buffer[engine.mask_at + question] or buffer[engine.asked_at + question]:
            return False
        taken = {action for action, _ in message.taken}
        at = self._parent[question]
        while at != NONE and at not in taken:
            at = self._parent[at]
        return at != NONE

    def reply(self, engine: Engine, i: int, message: Message, speaker: Speaker) -> str:
        """The patient's words after a message: an answer for each question, one a line, with its subject where there are several."""
        several = len(message.taken) > 1
        last = len(message.taken) if engine.done[i] else 0
        lines = [self._line(engine, i, action, row, speaker, several, k == last) for k, (action, row) in enumerate(message.taken, 1)]
        if message.heard.missed and message.heard.intents:
            lines.append(MISSED)
        if engine.done[i]:
            lines += [] if message.taken[-1][0] >= engine.Q else [TIME_OUT]
        elif engine.turns_left[i] == 1:
            lines.append(LAST_TURN)
        return self._cut("\n".join(lines))

    def _line(self, engine: Engine, i: int, action: int, row: int, speaker: Speaker, several: bool, last: bool) -> str:
        if action == MALFORMED:
            return NOT_UNDERSTOOD
        if action >= engine.Q:
            return GOODBYE
        finding = self.setup.base.findings[action]
        said = self._why_not(engine, i, action, speaker, last) if row == NONE else self._answer(action, self.setup.values(row), speaker)
        return f"{label(finding)} {said}" if several and (row == NONE or finding.kind == "ask") else said

    def _answer(self, question: int, values: tuple[str, ...], speaker: Speaker) -> str:
        return self.setup.patient.answer(self.setup.base.findings[question], values, speaker)

    def _why_not(self, engine: Engine, i: int, question: int, speaker: Speaker, last: bool) -> str:
        """A truthful reply to a question that was not open; `last`: it took the last turn."""
        asked, at = engine.buffer[i, engine.asked_at : engine.mask_at], question
        if not asked[question] and not engine.tables.allowed[engine.cell[i], question]:
            return NOT_FOR_ME
        if not asked[question] and last:
            return NO_TIME
        while at != NONE and not asked[at]:
            at = self._parent[at]
        return NOT_FOR_ME if at == NONE else TOLD.format(answer=self._answer(at, self._told(engine, i, at), speaker))

    def _told(self, engine: Engine, i: int, question: int) -> tuple[str, ...]:
        """The values of a finding that were disclosed, read from the evidence."""
        finding, start = self.setup.base.findings[question], engine.tables.slot_start
        evidence = engine.buffer[i, start[question] : start[question + 1]].tolist()
        if finding.type == "binary":
            return () if evidence[0] < 0 else (finding.values[evidence[0]],)
        return tuple(v for v, e in zip(finding.values, evidence, strict=True) if e == 1)

    def told(self, message: Message) -> dict[str, Any]:
        """What info tells of a message: intents, actions, understood, missed, cut, ledger."""
        findings, values = self.setup.base.findings, self.setup.values
        return {
            "intents": list(message.heard.intents),
            "actions": [action for action, _ in message.taken],
            "understood": bool(message.heard.intents),
            "missed": message.heard.missed,
            "cut": message.cut,
            "ledger": {findings[action].id: list(values(row)) for action, row in message.taken if row != NONE},
        }

    def _cut(self, text: str) -> str:
        return text[: self.space.max_length]


def ending(setup: Setup, engine: Engine, i: int) -> dict[str, Any]:
    """What info tells of consultation i at its end, as in `MedConsult-v0`: truth, case_id, belief, differential."""
    given = None if engine.differential is None else engine.differential[i]
    return {
        "truth": setup.base.conditions[int(engine.truth[i])].id,
        "case_id": setup.source.token(int(engine.handle[i])),
        "belief": engine.belief[i].copy(),
        "differential": None if given is None or np.isnan(given[0]) else given.copy(),
    }
