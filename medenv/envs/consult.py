"""`MedConsult-v0`: one medical consultation, numbers in and out.

Does not cover: batches (`vector`), consultations in words, or rules of the consultation (`engine`).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from medenv.cases.case import Case
from medenv.envs.copies import restore, snapshot
from medenv.envs.engine import Engine
from medenv.envs.setup import Names, Setup, check_options
from medenv.envs.steps import NONE
from medenv.errors import ActionError, EpisodeError
from medenv.hashing import GOLDEN

RENDER_MODES = ["ansi", "human", "rgb_array"]


class ConsultEnv(Names, gym.Env[dict[str, Any], np.int64]):
    """
    ## Description
    A patient consults with one complaint. The doctor asks questions, examines, orders tests, and ends with a diagnosis or a
    referral. Patients are drawn from a knowledge base (or loaded from data); the belief behind the rewards is exact.
    This is a research simulator. It is not medical advice and not for use with patients.

    ## Action Space
    `Discrete(Q + D + 1)` for Q questions and D conditions.

    | action | meaning |
    | --- | --- |
    | 0 … Q-1 | ask question q (history, examination or test) |
    | Q … Q+D-1 | diagnose condition action-Q: ends the consultation |
    | Q+D | refer: ends the consultation |

    Masked actions are invalid: they take a turn, are counted and cost what the reward mix says. A number outside the space is an
    `ActionError`. Masked are: questions already asked, children of a finding that was not answered so as to activate them,
    questions that age or sex rule out, and on the last turn all questions.

    ## Observation Space
    | key | space | meaning |
    | --- | --- | --- |
    | evidence | Box(-1, 1, (S,), int8) | each slot: -1 unknown, 0 no, 1 yes |
    | asked | MultiBinary(Q) | questions asked so far, the opening statement among them |
    | complaint | Discrete(Q + 1) | the finding of the opening statement; Q: none |
    | demographics | Box(float32, (3,)) | age in years, sex (0 female, 1 male), setting (index) |
    | turns_left | Box(float32, (1,)) | turns left, from max_turns to 0 |
    | action_mask | MultiBinary(Q + D + 1) | 1 where the action is valid |
    | belief | Box(0, 1, (D,), float32) | with `observe_belief=True`: the exact posterior |

    ## Starting State
    A case of the split: its demographics and opening statement are disclosed. `reset(seed=…)` starts a stream of cases;
    `reset(options={"case": id})` names one.

    ## Rewards
    The mix `reward`, by default `accuracy + 0.1*information_gain - 0.01*question_cost - 0.1*invalid_action`. Components are in
    `info["components"]`, weighted, and sum to the reward. A referral pays 0.1 through accuracy, running out of turns 0.

    ## Episode End
    Termination: a diagnosis, a referral, or `max_turns` actions without either (the turn budget is observed, so it
    belongs to the task). Truncation: never by the environment itself.

    ## Information
    | key | when | meaning |
    | --- | --- | --- |
    | reply | always | the patient's words; empty where nothing was said |
    | components | each step | weighted reward components; None where hidden until the end (those that depend on the truth) |
    | scored | each step | False if a component could not be scored: leave the transition out |
    | no_condition_fits | each step | True if every condition is excluded by an answer of probability 0 |
    | truth | last step | the condition's id |
    | case_id | last step | a token that `reset` accepts |
    | belief, differential | last step | the environment's posterior [D]; the doctor's own [D], or None |
    | credits | last step, with `shapley_credit` | float64 [turns]: the Shapley credit of each turn's answer, unweighted, 0 without one |
    | invalid_actions | last step | how many there were |

    ## Arguments
    | name | default | meaning |
    | --- | --- | --- |
    | knowledge | "builtin@0" | a knowledge base, or `ddxplus:DIR`, `files:DIR`, `synthetic:60x180` |
    | cases | "sampled" | `sampled`, `ddxplus:FILE`, a list of `medenv.cases.case.Case`, a case source |
    | split | "train" | train, validation, test or all |
    | reward | see Rewards | a mix as a string or table |
    | max_turns | 20 | actions until the consultation ends, >= 1 |
    | noise | 0.02 | probability in [0, 0.5] that an answer of reliability 0 is misreported |
    | persona | "plain" | plain or brief: how the patient words an answer |
    | difficulty | 0.0 | in [0, 1]: 0 natural prevalence, 1 all conditions equally likely |
    | setting | None | one of the base's settings, or their mixture |
    | complaint | None | the finding that every patient comes with, such as `chest_pain`, or any |
    | observe_belief | False | put the exact posterior into the observation |
    | render_mode | None | "ansi", "human" (prints each turn), "rgb_array" |

    ## References
    Fansi Tchango et al., DDXPlus, NeurIPS 2022 · Ding et al., ProMed, arXiv 2508.13514 · Lindley, Ann. Math. Stat. 27 (1956).

    ## Version History
    * v0: first version; may change until release 0.1.0, each time with a line here.
    * v0, next: the findings of `builtin@0` have money, delay and invasiveness: another fingerprint, the same patients and probabilities.
    * v0, next: an argument `complaint`; without it nothing changes.
    * v0, next: the default mix is as it was. Shapley credit in the place of information gain ends lower or is not told from it (README,
      *Which reward?*).
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        self.setup = Setup(**arguments)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ActionError(f"render_mode is {render_mode!r}: choose one of {RENDER_MODES} or None")
        self.render_mode = render_mode
        self.engine: Engine = self.setup.engine(1)
        self.observation_space = self.setup.observation_space()
        self.action_space = spaces.Discrete(self.setup.num_actions)
        self.turns: list[tuple[int, int, float]] = []  # (action, answer's row or NONE, nats gained)
        self.invalid_actions = 0
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
        """The mask as sb3-contrib asks for it, bool [Q + D + 1]."""
        e = self.engine
        return e.buffer[0, e.mask_at : e.spare].astype(bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a consultation. Without a seed the stream goes on; the very first one is then drawn from entropy."""
        super().reset(seed=seed)
        case = check_options(options).get("case")
        if seed is not None or not self._seeded:
            self.engine.seed([seed if seed is not None else int(self.np_random.integers(1 << 62)) ^ (GOLDEN >> 2)])
            self._seeded = True
        self.engine.begin_one(None if case is None else int(self.setup.handles(case, 1)[0]))
        self.turns, self.invalid_actions = [], 0
        complaint = int(self.engine.complaint[0])
        self._reply = self.setup.patient.opening(self.setup.base.findings[complaint] if complaint < self.num_questions else None)
        if self.render_mode == "human":
            self._print()
        return self._observation(), {"reply": self._reply}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One turn. ActionError for a number outside the space, EpisodeError before `reset` and after the end."""
        engine = self.engine
        if engine.done[0]:
            state = "after the end of a consultation" if engine.started else "before reset"
            raise EpisodeError(f"step {state}: call reset() first")
        try:
            index = action.__index__()
        except (AttributeError, TypeError):
            index = -1
        if not 0 <= index < engine.A:
            raise ActionError(
                f"action {action!r} is outside Discrete({engine.A}): "
                f"ask 0-{engine.Q - 1}, diagnose {engine.Q}-{engine.A - 2}, refer {engine.A - 1}"
            )
        before = engine.entropy[0]
        step = engine.step_one(index)
        row, done = step.row, step.ended
        self.turns.append((index, row, float(before - engine.entropy[0])))
        self._reply = "" if row == NONE else self.setup.patient.answer(self.setup.base.findings[index], self.setup.values(row))
        self.invalid_actions += step.invalid
        hidden = () if done else self.setup.rewards.hidden
        components = step.components.items()
        info: dict[str, Any] = {
            "reply": self._reply,
            "components": {k: None if k in hidden or v != v else v for k, v in components},
            "scored": all(v == v for _, v in components),  # NaN: not scored
            "no_condition_fits": bool(engine.no_condition_fits()[0]),
        }
        if done:
            info |= self._final()
            credits = self.setup.rewards.credits(step.transition)
            if credits is not None:
                info["credits"] = credits[0, : len(self.turns)]
        if self.render_mode == "human":
            self._print()
        return self._observation(), step.reward, done, False, info

    def submit_differential(self, probabilities: NDArray) -> None:
        """Hand in the doctor's own probabilities [D] before the diagnosing step; they are scored and recorded."""
        self.engine.submit(np.asarray(probabilities, np.float32)[None])

    def imagine(self, n: int, seed: int) -> Any:
        """A vector environment of `n` consultations at this turn whose hidden cases are redrawn from the belief.

        For search: what was observed stays fixed, the true case is not looked at. MedenvError if no condition fits.
        """
        from medenv.envs.vector import ConsultVectorEnv

        return ConsultVectorEnv.around(self.setup, self.setup.imagined(self.engine, 0, n, seed))

    def snapshot(self) -> dict[str, Any]:
        """The exact state, hidden case included: for debugging and replay, never for search."""
        return snapshot(self.engine) | {"turns": list(self.turns), "invalid_actions": self.invalid_actions, "reply": self._reply}

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Go back to a snapshot; returns the observation."""
        state = dict(state)
        self.turns, self.invalid_actions, self._reply = list(state.pop("turns")), state.pop("invalid_actions"), state.pop("reply")
        restore(self.engine, state)
        self._seeded = True  # the stream is part of the state
        return self._observation()

    def render(self) -> Any:
        """ansi: text; rgb_array: uint8 [height, width, 3]; human: None (turns are printed as they happen)."""
        from medenv.envs import rendering

        if self.render_mode == "ansi":
            return rendering.text(self)
        if self.render_mode == "rgb_array":
            return rendering.picture(self)
        return None

    def _print(self) -> None:
        from medenv.envs import rendering

        print(rendering.last_turn(self))

    def _final(self) -> dict[str, Any]:
        engine = self.engine
        differential = engine.differential
        return {
            "truth": self.setup.base.conditions[int(engine.truth[0])].id,
            "case_id": self.case_id,
            "belief": engine.belief[0].copy(),
            "differential": None if differential is None or np.isnan(differential[0, 0]) else differential[0].copy(),
            "invalid_actions": self.invalid_actions,
        }

    def _observation(self) -> dict[str, Any]:
        e = self.engine
        buffer = e.buffer[0].copy()
        out = {
            "evidence": buffer[: e.S],
            "asked": buffer[e.asked_at : e.mask_at],
            "complaint": e.complaint[0],
            "demographics": e.demographics[0].copy(),
            "turns_left": e.turns_left.astype(np.float32),
            "action_mask": buffer[e.mask_at : e.spare],
        }
        if self.setup.observe_belief:
            out["belief"] = e.belief[0].copy()
        return out
