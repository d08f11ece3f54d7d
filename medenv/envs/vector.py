"""`MedConsult-v0` for thousands of consultations at once: `gym.make_vec("MedConsult-v0", num_envs=1024)`.

Environment i of a batch that is reset with seed s equals the scalar environment reset with seed s + i, bit for bit.

Does not cover: replies in words (ask `replies()` after a step) and rendering: use the scalar environment.
"""

from __future__ import annotations

from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from medenv.envs.copies import restore, snapshot
from medenv.envs.engine import Engine
from medenv.envs.setup import Names, Setup, check_options
from medenv.envs.steps import NONE, Step
from medenv.errors import ActionError, CaseError, EpisodeError, MedenvError
from medenv.hashing import draw, seed_for


class ConsultVectorEnv(Names, gym.vector.VectorEnv[dict[str, Any], NDArray, NDArray]):
    """A batch of consultations, stepped together by one engine. Arguments as `MedConsult-v0`; see its documentation.

    Observations are copies, as in the scalar environment with a leading axis [N]. A number outside the action space counts
    as an invalid action. `autoreset_mode`: NEXT_STEP (the default: the step after an end ignores the action, pays 0 and begins
    the next case), SAME_STEP (`info["final_obs"]`, `info["final_info"]`), or DISABLED (reset with `options["reset_mask"]`).

    Info holds arrays [N]: `components` (a dict of arrays, weighted; `_name` marks those that were due and may be shown), `scored`,
    `invalid`, `no_condition_fits`; and, with a mask `_key` beside each, for consultations that ended `truth` (condition index),
    `belief` [N, D], `differential` [N, D] (NaN: none), `case` (uint64 handles; `case_ids()` turns them into tokens), and with
    `shapley_credit` in the mix `credits` [N, max_turns].
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self, num_envs: int = 1, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP, render_mode: None = None, **arguments: Any
    ) -> None:
        if render_mode is not None:
            raise MedenvError(f"a batch does not render (render_mode={render_mode!r}): use gym.make for one consultation")
        setup = Setup(**arguments)
        self._attach(setup, setup.engine(num_envs), AutoresetMode(autoreset_mode))

    @classmethod
    def around(cls, setup: Setup, engine: Engine) -> Self:
        """A batch around an engine that is under way already (used by `imagine`); it does not reset by itself."""
        env = cls.__new__(cls)
        env._attach(setup, engine, AutoresetMode.DISABLED)
        env._needs_reset[:] = False
        env._imagined = True
        return env

    def _attach(self, setup: Setup, engine: Engine, mode: AutoresetMode) -> None:
        self.setup, self.engine, self.num_envs, self.autoreset_mode = setup, engine, engine.num, mode
        self.metadata = {**type(self).metadata, "autoreset_mode": mode}
        self.single_observation_space = setup.observation_space()
        self.single_action_space = spaces.Discrete(setup.num_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.render_mode, self.spec, self.closed = None, None, False
        self._needs_reset, self._everybody = np.ones(self.num_envs, bool), np.ones(self.num_envs, bool)
        self._question: NDArray[np.integer] = np.full(self.num_envs, NONE)  # asked in the last step,
        self._row: NDArray[np.integer] = self._question  # and the row that answered
        self._seeded, self._imagined = False, False

    def action_masks(self) -> NDArray[np.bool_]:
        """Bool [N, Q + D + 1]."""
        e = self.engine
        return e.buffer[:, e.mask_at : e.spare].astype(bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start all consultations (or those of `options["reset_mask"]`); `options["case"]`: one id, or a list of N ids."""
        options_ = check_options(options, ("case", "reset_mask"))
        mask = options_.get("reset_mask")
        if mask is not None and np.shape(mask) != (self.num_envs,):
            raise MedenvError(f"reset_mask has shape {np.shape(mask)}, not ({self.num_envs},)")
        who = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        self._seed(seed, who)
        case = options_.get("case")
        self.engine.begin(who, None if case is None else self.setup.handles(case, who.size))
        self._needs_reset[who] = False
        self._row = np.full(self.num_envs, NONE)
        return self._observation(), {}

    def _seed(self, seed: int | list[int | None] | None, who: NDArray[np.integer]) -> None:
        """Start the streams of `who`; where there is no seed, a stream goes on."""
        if seed is None and self._seeded:
            return
        if isinstance(seed, list | tuple | np.ndarray):
            if len(seed) != self.num_envs:
                raise MedenvError(f"{len(seed)} seeds for {self.num_envs} environments")
            given = list(seed)
        elif seed is None:
            given = [None] * self.num_envs
        else:
            given = [int(seed) + i for i in range(self.num_envs)]
        if any(s is not None and s < 0 for s in given):
            raise MedenvError(f"seed {seed!r}: give integers >= 0")
        if seed is not None and not isinstance(seed, list | tuple | np.ndarray):
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(int(seed))
        fresh = int(self.np_random.integers(1 << 62)) if None in given else 0
        some = [i for i in who.tolist() if given[i] is not None] if self._seeded else list(range(self.num_envs))
        self.engine.seed([s if (s := given[i]) is not None else seed_for(draw(fresh, i)) for i in some], np.array(some, np.intp))
        self._seeded = True

    def step(self, actions: NDArray) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One turn for everybody: observations, rewards float64 [N], terminated, truncated (never), info."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ActionError(f"actions must be {self.num_envs} integers, got shape {actions.shape} of {actions.dtype}")
        actions = actions.astype(np.int64, copy=False)
        if self.autoreset_mode == AutoresetMode.DISABLED and self._needs_reset.any():
            raise EpisodeError(
                f"step after the end of {int(self._needs_reset.sum())} consultations: reset them with options['reset_mask'] first"
            )
        if not self.engine.started:
            raise EpisodeError("step before reset: call reset() first")
        resetting = self._needs_reset if self.autoreset_mode == AutoresetMode.NEXT_STEP else None
        step = self.engine.step(actions, resetting)
        self._question, self._row = step.transition.question, step.row
        ended = step.transition.ended
        self._needs_reset = ended.copy()
        info = self._info(step, ended, self._everybody if resetting is None else ~resetting)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            info = {**info, "final_obs": self._observation(), "_final_obs": ended, "final_info": info, "_final_info": ended}
            self.engine.begin(np.flatnonzero(ended))
            self._needs_reset[:] = False
        return self._observation(), step.reward, ended, np.zeros(self.num_envs, bool), info

    def _info(self, step: Step, ended: NDArray[np.bool_], due: NDArray[np.bool_]) -> dict[str, Any]:
        e, live = self.engine, ~step.transition.ended
        components: dict[str, NDArray] = {}
        hidden = self.setup.rewards.hidden
        for name, value in step.components.items():
            components[name] = np.where(ended, value, 0.0) if name in hidden else value
            shown = ended if name in hidden else due
            components[f"_{name}"] = shown.copy() if step.scored is step.transition.turn else shown & ~np.isnan(value)
        info: dict[str, Any] = {"components": components, "scored": step.scored, "invalid": step.transition.invalid}
        info["no_condition_fits"] = e.no_condition_fits()
        if not live.all():
            who = np.flatnonzero(ended)
            belief = np.zeros_like(step.transition.belief_after)
            belief[who] = step.transition.belief_after[who]
            info |= {"truth": np.where(ended, e.truth, NONE), "belief": belief}
            if not self._imagined:
                info["case"] = np.where(ended, e.handle, np.uint64(0))
            if step.transition.differential is not None:
                info["differential"] = np.where(ended[:, None], step.transition.differential, np.nan)
            credits = self.setup.rewards.credits(step.transition)
            if credits is not None:
                info["credits"] = credits
            info |= {f"_{k}": ended for k in ("truth", "belief", "case", "differential", "credits") if k in info}
        return info

    def replies(self) -> list[str]:
        """The patients' words of the last step, made on request; empty where nothing was said."""
        s, said = self.setup, zip(self._question.tolist(), self._row.tolist(), strict=True)
        return ["" if row == NONE else s.patient.answer(s.base.findings[q], s.values(row)) for q, row in said]

    def case_ids(self, handles: NDArray[np.uint64] | None = None) -> list[str]:
        """Tokens that `reset` accepts, of the given handles or of the present cases."""
        if self._imagined:
            raise CaseError("imagined consultations are no cases: their hidden patients were redrawn from the belief")
        return [self.setup.source.token(int(h)) for h in (self.engine.handle if handles is None else handles)]

    def submit_differential(self, probabilities: NDArray) -> None:
        """Hand in the doctors' probabilities [N, D] before a step (NaN rows: none)."""
        self.engine.submit(probabilities)

    def imagine(self, n: int, seed: int, index: int = 0) -> ConsultVectorEnv:
        """As the scalar environment's, around consultation `index`."""
        return ConsultVectorEnv.around(self.setup, self.setup.imagined(self.engine, index, n, seed))

    def snapshot(self) -> dict[str, Any]:
        """The exact state, hidden cases included: for debugging and replay, never for search."""
        own = {"needs_reset": self._needs_reset.copy(), "question": self._question.copy(), "row": self._row.copy()}
        return snapshot(self.engine) | own

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Go back to a snapshot; returns the observations."""
        state = dict(state)
        self._needs_reset = state.pop("needs_reset").copy()
        self._question, self._row = state.pop("question").copy(), state.pop("row").copy()
        restore(self.engine, state)
        self._seeded = True  # the streams are part of the state
        return self._observation()

    def _observation(self) -> dict[str, Any]:
        out = self.engine.views()
        if self.setup.observe_belief:
            out["belief"] = self.engine.belief.copy()
        return out
