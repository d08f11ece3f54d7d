"""`MedConsultText-v0` for many consultations at once: `gym.make_vec("MedConsultText-v0", num_envs=64)`, one engine for all.

Consultation i of a batch that is reset with seed s equals the scalar environment reset with seed s + i.

Does not cover: rendering (use the scalar environment), what a message means (`medenv.language`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from medenv.envs.dialogue import DOCTOR, MALFORMED, MAX_CHARS, PATIENT, Dialogue, Message, Transcript
from medenv.envs.setup import Names
from medenv.envs.steps import NONE, Step
from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import ActionError, EpisodeError, MedenvError
from medenv.language.formats import Format
from medenv.language.understanding import Intent
from medenv.language.voice import Speaker


class ConsultTextVectorEnv(Names, gym.vector.VectorEnv[tuple[str, ...], tuple[str, ...], NDArray]):
    """A batch of consultations in words. Arguments as `MedConsultText-v0`; see its documentation.

    `step(messages)` takes a message for each consultation; `step(messages, who)` for those numbered `who` alone: the others do not move,
    read the empty text and are paid 0. Messages of several intents are taken in lock step. `autoreset_mode` as in `ConsultVectorEnv`:
    NEXT_STEP (the default), SAME_STEP or DISABLED, which suits generation.

    Info as in `ConsultVectorEnv`, and `intents`, `actions`, `ledger` (lists of length N), `understood`, `missed`, `cut` (bool [N]) and
    `turns_left` (int [N]), for messages as in the scalar environment.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: None = None,
        format: str | Format = "any",
        max_chars: int = MAX_CHARS,
        **arguments: Any,
    ) -> None:
        numbers = ConsultVectorEnv(num_envs, AutoresetMode.DISABLED, render_mode, **arguments)
        self._attach(numbers, Dialogue(numbers.setup, format, max_chars), AutoresetMode(autoreset_mode))

    @classmethod
    def around(cls, numbers: ConsultVectorEnv, dialogue: Dialogue, transcript: Transcript) -> Self:
        """A batch around consultations that are under way and share a transcript (used by `imagine`); it does not reset by itself."""
        env = cls.__new__(cls)
        env._attach(numbers, dialogue, AutoresetMode.DISABLED)
        env._speakers = [dialogue.speaker(numbers.engine, i) for i in range(env.num_envs)]
        env.transcripts = [list(transcript) for _ in range(env.num_envs)]
        env._needs_reset[:] = False
        return env

    def _attach(self, numbers: ConsultVectorEnv, dialogue: Dialogue, mode: AutoresetMode) -> None:
        self.numbers, self.dialogue, self.autoreset_mode = numbers, dialogue, mode
        self.setup, self.engine, self.num_envs = numbers.setup, numbers.engine, numbers.num_envs
        self.metadata = {**type(self).metadata, "autoreset_mode": mode}
        self.single_observation_space = self.single_action_space = dialogue.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.render_mode, self.spec, self.closed = None, None, False
        self._needs_reset = np.ones(self.num_envs, bool)
        self._speakers = [Speaker(0, 0.0, "female")] * self.num_envs
        self.transcripts: list[Transcript] = [[] for _ in range(self.num_envs)]
        self._differential: NDArray[np.float32] | None = None
        self.components: dict[str, NDArray[np.float64]] = {}  # of the last step, weighted, what depends on the truth included: for trainers

    def action_masks(self) -> NDArray[np.bool_]:
        """Bool [N, Q + D + 1]: which actions of `MedConsult-v0` are open."""
        return self.numbers.action_masks()

    def intent(self, action: int) -> Intent:
        """What an action of `MedConsult-v0` is called in words."""
        return self.dialogue.intents[action]

    def write(self, action: int, key: int = 0) -> str:
        """A doctor's message for an action of `MedConsult-v0`, in the environment's format; `key` chooses among wordings."""
        return self.dialogue.language.write(self.dialogue.intents[action], key)

    def case_ids(self, handles: NDArray[np.uint64] | None = None) -> list[str]:
        """Tokens that `reset` accepts, of the given handles or of the present cases."""
        return self.numbers.case_ids(handles)

    def submit_differential(self, probabilities: NDArray) -> None:
        """Hand in the doctors' probabilities [N, D] before the messages that diagnose (NaN rows: none)."""
        self.engine.submit(probabilities)
        self._differential = self.engine.differential

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Start all consultations (or those of `options["reset_mask"]`); `options["case"]`: one id, or a list of ids."""
        self.numbers.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        opened = self._open(range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist())
        return tuple(opened.get(i, "") for i in range(self.num_envs)), {}

    def _open(self, who: Sequence[int]) -> dict[int, str]:
        """The first messages of consultations that have just begun."""
        out: dict[int, str] = {}
        for i in who:
            self._speakers[i] = self.dialogue.speaker(self.engine, i)
            out[i] = self.dialogue.opening(self.engine, i, self._speakers[i])
            self.transcripts[i] = [(PATIENT, out[i])]
        rows = list(who)
        self._needs_reset[rows] = False
        if self._differential is not None:
            self._differential[rows] = np.nan
        return out

    def step(
        self, messages: Sequence[str], who: Sequence[int] | NDArray[np.integer] | None = None
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """A message for everybody, or for the consultations `who`: texts, rewards float64 [N], terminated, truncated (never), info."""
        rows = list(range(self.num_envs)) if who is None else [int(i) for i in who]
        self._check(messages, rows)
        heard = [self.dialogue.hear(m) for m in messages]  # an ActionError leaves every consultation as it was
        fresh = [i for i in rows if self._needs_reset[i]]
        said = {i: m for i, m in zip(rows, heard, strict=True) if not self._needs_reset[i]}
        spoken: dict[int, str] = {}
        if fresh:
            self.engine.begin(np.array(fresh))
            spoken = self._open(fresh)
        turns = _Turns(self, said)
        for i, message in said.items():
            spoken[i] = self.dialogue.reply(self.engine, i, message, self._speakers[i])
            self.transcripts[i] += [(DOCTOR, message.text), (PATIENT, spoken[i])]
        info, ended, self.components = turns.info, turns.ended, turns.components
        self._needs_reset |= ended
        if self._differential is not None:
            self._differential[[i for i in said if not ended[i]]] = np.nan
            self.engine.differential = self._differential.copy()
        seen = tuple(spoken.get(i, "") for i in range(self.num_envs))
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            info = {**info, "final_obs": seen, "_final_obs": ended, "final_info": info, "_final_info": ended}
            self.engine.begin(np.flatnonzero(ended))
            spoken |= self._open(np.flatnonzero(ended).tolist())
            seen = tuple(spoken.get(i, "") for i in range(self.num_envs))
        return seen, turns.reward, ended, np.zeros(self.num_envs, bool), info

    def _check(self, messages: Sequence[str], rows: list[int]) -> None:
        if isinstance(messages, str) or len(messages) != len(rows):
            given = "one text" if isinstance(messages, str) else f"{len(messages)}"
            raise ActionError(f"messages must be {len(rows)} texts, one for each consultation that moves, got {given}")
        if len(set(rows)) != len(rows) or not all(0 <= i < self.num_envs for i in rows):
            raise MedenvError(f"who is {rows}: give different numbers from 0 to {self.num_envs - 1}")
        if not self.engine.started:
            raise EpisodeError("step before reset: call reset() first")
        over = int(self._needs_reset[rows].sum())
        if self.autoreset_mode == AutoresetMode.DISABLED and over:
            raise EpisodeError(
                f"step after the end of {over} consultations: leave them out of `who`, or reset them with options['reset_mask']"
            )


class _Turns:
    """The turns of one message for some consultations of a batch, in lock step, and what they add up to."""

    def __init__(self, env: ConsultTextVectorEnv, said: dict[int, Message]) -> None:
        engine, n = env.engine, env.num_envs
        self.env, self.said = env, said
        self.reward, self.ended, self.invalid = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        self.components: dict[str, NDArray[np.float64]] = {}
        self.at_end: dict[str, NDArray] = {}
        pending = dict(said)
        while pending:
            actions, moving = np.full(n, MALFORMED), np.zeros(n, bool)
            for i in list(pending):
                action = env.dialogue.next(engine, i, pending[i])
                if action is None:
                    del pending[i]
                else:
                    actions[i], moving[i] = action, True
            if pending:
                self._turn(actions, moving)
        self.info = self._info()

    def _turn(self, actions: NDArray[np.integer], moving: NDArray[np.bool_]) -> None:
        """One turn of those who move. The engine leaves alone whoever is done, so the others are done for as long as it takes."""
        engine = self.env.engine
        waiting = ~moving & ~engine.done
        engine.done[waiting] = True
        engine.differential = self.env._differential
        step = engine.step(actions)
        engine.done[waiting] = False
        self.reward += step.reward
        for name, value in step.components.items():
            self.components[name] = value + self.components[name] if name in self.components else value
        self.invalid |= step.transition.invalid
        for i in np.flatnonzero(moving).tolist():
            self.said[i].taken.append((int(actions[i]), int(step.row[i])))
        if step.transition.ended.any():
            self._finish(step)

    def _finish(self, step: Step) -> None:
        """Keep what is told of the consultations that ended in this turn."""
        ended, setup = step.transition.ended, self.env.setup
        told: dict[str, NDArray | None] = {
            "truth": step.transition.truth,
            "belief": step.transition.belief_after,
            "case": self.env.engine.handle,
            "differential": step.transition.differential,
            "credits": setup.rewards.credits(step.transition),
        }
        for name, value in told.items():
            if value is not None:
                empty = NONE if name == "truth" else np.nan if name == "differential" else 0
                self.at_end.setdefault(name, np.full(value.shape, empty, value.dtype))[ended] = value[ended]
        self.ended |= ended

    def _info(self) -> dict[str, Any]:
        env, n = self.env, self.env.num_envs
        moved = np.zeros(n, bool)
        moved[list(self.said)] = True
        scored, hidden = moved.copy(), env.setup.rewards.hidden
        components: dict[str, NDArray] = {}
        for name, value in self.components.items():
            due = self.ended if name in hidden else moved
            components[name] = np.where(self.ended, value, 0.0) if name in hidden else value
            components[f"_{name}"] = due & ~np.isnan(value)
            scored &= ~np.isnan(value)
        info: dict[str, Any] = {"components": components, "scored": scored, "invalid": self.invalid}
        info |= {"no_condition_fits": env.engine.no_condition_fits(), "turns_left": env.engine.turns_left.copy()}
        told = [env.dialogue.told(self.said[i]) if i in self.said else None for i in range(n)]
        info |= {key: [[] if t is None else t[key] for t in told] for key in ("intents", "actions")}
        info["ledger"] = [{} if t is None else t["ledger"] for t in told]
        info |= {key: np.array([t is not None and t[key] for t in told], bool) for key in ("understood", "missed", "cut")}
        return info | self.at_end | {f"_{key}": self.ended for key in self.at_end}
