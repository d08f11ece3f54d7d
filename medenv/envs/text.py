"""`MedConsultText-v0`: the consultation of `MedConsult-v0` in words, messages in and out.

Does not cover: batches (`text_vector`), what a message means (`medenv.language`), how several intents are taken (`dialogue`).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from medenv.cases.case import Case
from medenv.envs.copies import restore, snapshot
from medenv.envs.dialogue import DOCTOR, MAX_CHARS, PATIENT, Dialogue, Message, Transcript, ending
from medenv.envs.engine import Engine
from medenv.envs.setup import Names, Setup, check_options
from medenv.envs.text_vector import ConsultTextVectorEnv
from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import ActionError, EpisodeError
from medenv.hashing import GOLDEN
from medenv.language.formats import Format
from medenv.language.understanding import Intent
from medenv.language.voice import Speaker
from medenv.notice import NOTICE

RENDER_MODES = ["ansi", "human"]


class ConsultTextEnv(Names, gym.Env[str, str]):
    """One medical consultation in words, with the patients, engine and rewards of `MedConsult-v0`.

    A research simulator. It is not medical advice and not for use with patients.

    Observation: the patient's message. The first one tells setting, number of turns, age, sex and complaint; for a child under ten
    somebody else speaks. Wordings vary with what the opening shows, not with the hidden case: equal histories read equal.

    Action: the doctor's message, any text. It may ask, examine, order, diagnose and refer, several at once: each takes a turn of the
    engine, in order, and rewards and components add up over the message. Asking a child asks its unasked parent first, in a turn of its
    own. A message of which nothing is understood is one malformed (invalid) turn; so is, without being malformed, a question that is not
    open (asked before, impossible). Questions that no longer fit the turns are cut; a diagnosis after them is still heard.

    Info, beside that of `MedConsult-v0` (reply, components, scored, no_condition_fits; at the end truth, case_id, belief, differential,
    credits, invalid_actions): `intents` (what was understood, in order, as (kind, id)), `actions` (what the engine did, as in
    `MedConsult-v0`; -1: malformed), `understood`, `missed` (part of it was not), `cut` (part of it was not heard: too long, or no turn
    left), `ledger` ({finding: values} that the patient disclosed), `turns_left`. A component is None where one of the message's turns was
    not scored, and before the end where it depends on the truth.

    Arguments: those of `MedConsult-v0` (render_mode "ansi" or "human"), and `format`, how the doctor's messages are laid out (plain,
    tags, answer, agentclinic, promed, json, any, or a `medenv.language.formats.Format`), and `max_chars`, the longest message either way,
    at least 1000: what is longer is cut.

    Version history: v0, first version; may change until release 0.1.0.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}

    def __init__(self, render_mode: str | None = None, format: str | Format = "any", max_chars: int = MAX_CHARS, **arguments: Any) -> None:
        self.setup = Setup(**arguments)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ActionError(f"render_mode is {render_mode!r}: choose one of {RENDER_MODES} or None")
        self.render_mode = render_mode
        self.dialogue = Dialogue(self.setup, format, max_chars)
        self.engine: Engine = self.setup.engine(1)
        self.observation_space = self.action_space = self.dialogue.space
        self.transcript: Transcript = []
        self.turns: list[tuple[int, int, float]] = []  # (action, answer's row or NONE, nats gained)
        self.invalid_actions = 0
        self._speaker = Speaker(0, 0.0, "female")
        self._differential: NDArray[np.float32] | None = None
        self._seeded = False

    @property
    def case_id(self) -> str:
        """The token of the present case: `reset(options={"case": token})` meets it again."""
        return self.setup.source.token(int(self.engine.handle[0]))

    @property
    def case(self) -> Case:
        """The whole hidden patient: for records, evaluators and debugging, never for a doctor."""
        return self.setup.source.case(int(self.engine.handle[0]))

    def action_masks(self) -> NDArray[np.bool_]:
        """Bool [Q + D + 1]: which actions of `MedConsult-v0` are open, for demonstrations by doctors in numbers."""
        e = self.engine
        return e.buffer[0, e.mask_at : e.spare].astype(bool)

    def intent(self, action: int) -> Intent:
        """What an action of `MedConsult-v0` is called in words."""
        return self.dialogue.intents[action]

    def write(self, action: int, key: int = 0) -> str:
        """A doctor's message for an action of `MedConsult-v0`, in the environment's format; `key` chooses among wordings."""
        return self.dialogue.language.write(self.dialogue.intents[action], key)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a consultation, with the patients of `MedConsult-v0` for the same seed."""
        super().reset(seed=seed)
        case = check_options(options).get("case")
        if seed is not None or not self._seeded:
            self.engine.seed([seed if seed is not None else int(self.np_random.integers(1 << 62)) ^ (GOLDEN >> 2)])
            self._seeded = True
        self.engine.begin_one(None if case is None else int(self.setup.handles(case, 1)[0]))
        self.turns, self.invalid_actions, self._differential = [], 0, None
        self._speaker = self.dialogue.speaker(self.engine, 0)
        self.transcript = [(PATIENT, self.dialogue.opening(self.engine, 0, self._speaker))]
        self._show()
        return self.transcript[0][1], {"reply": self.transcript[0][1]}

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One message. ActionError for what is no text, EpisodeError before `reset` and after the end."""
        if self.engine.done[0]:
            state = "after the end of a consultation" if self.engine.started else "before reset"
            raise EpisodeError(f"step {state}: call reset() first")
        message = self.dialogue.hear(action)
        reward, info = self._take(message)
        done = bool(self.engine.done[0])
        reply = self.dialogue.reply(self.engine, 0, message, self._speaker)
        self.transcript += [(DOCTOR, message.text), (PATIENT, reply)]
        info = {"reply": reply, **info, **self.dialogue.told(message), "turns_left": int(self.engine.turns_left[0])}
        if not done:
            self._differential = self.engine.differential = None
        self._show()
        return reply, reward, done, False, info

    def _take(self, message: Message) -> tuple[float, dict[str, Any]]:
        """Every turn of a message: the sum of the rewards, and the info of `MedConsult-v0`."""
        engine, total = self.engine, 0.0
        components: dict[str, float] = {}
        while (action := self.dialogue.next(engine, 0, message)) is not None:
            engine.differential = self._differential  # it is the message's: each turn of it has it
            before = engine.entropy[0]
            step = engine.step_one(action)
            message.taken.append((action, step.row))
            self.turns.append((action, step.row, float(before - engine.entropy[0])))
            self.invalid_actions += step.invalid
            total += step.reward
            components = {k: v + components[k] for k, v in step.components.items()} if components else step.components
        hidden = () if step.ended else self.setup.rewards.hidden
        info: dict[str, Any] = {
            "components": {k: None if k in hidden or v != v else v for k, v in components.items()},
            "scored": all(v == v for v in components.values()),  # NaN: not scored
            "no_condition_fits": bool(engine.no_condition_fits()[0]),
        }
        if step.ended:
            info |= ending(self.setup, engine, 0) | {"invalid_actions": self.invalid_actions}
            credits = self.setup.rewards.credits(step.transition)
            if credits is not None:
                info["credits"] = credits[0, : len(self.turns)]
        return total, info

    def submit_differential(self, probabilities: NDArray) -> None:
        """Hand in the doctor's own probabilities [D] before the diagnosing message; they are scored and recorded."""
        self.engine.submit(np.asarray(probabilities, np.float32)[None])
        self._differential = self.engine.differential

    def imagine(self, n: int, seed: int) -> ConsultTextVectorEnv:
        """As `MedConsult-v0`'s, in words: `n` consultations at this turn whose hidden cases are redrawn from the belief. For search."""
        numbers = ConsultVectorEnv.around(self.setup, self.setup.imagined(self.engine, 0, n, seed))
        return ConsultTextVectorEnv.around(numbers, self.dialogue, self.transcript)

    def snapshot(self) -> dict[str, Any]:
        """The exact state, hidden case included: for debugging and replay, never for search."""
        own = {"turns": list(self.turns), "invalid_actions": self.invalid_actions, "transcript": list(self.transcript)}
        return snapshot(self.engine) | own

    def restore(self, state: dict[str, Any]) -> str:
        """Go back to a snapshot; returns the patient's last message."""
        state = dict(state)
        self.turns, self.invalid_actions, self.transcript = (
            list(state.pop("turns")),
            state.pop("invalid_actions"),
            list(state.pop("transcript")),
        )
        restore(self.engine, state)
        self._speaker, self._differential = self.dialogue.speaker(self.engine, 0), None
        self._seeded = True  # the stream is part of the state
        return self.transcript[-1][1]

    def render(self) -> Any:
        """ansi: the whole consultation as text; human: None (messages are printed as they come)."""
        return "\n".join([*self._lines(self.transcript), "", NOTICE]) if self.render_mode == "ansi" else None

    def _lines(self, part: Transcript) -> list[str]:
        out = [f"{who.capitalize()}: {text}" for who, text in part]
        if self.engine.done[0] and self.engine.started:
            out.append(f"The patient had: {self.setup.base.conditions[int(self.engine.truth[0])].name}.")
        return out

    def _show(self) -> None:
        if self.render_mode == "human":
            print("\n".join(self._lines(self.transcript[-2:])))
