"""Observations in other shapes: one flat vector, for one consultation or a batch, and what RLlib's masked modules read.

A flat observation is float32 [F]: evidence as it is, asked, the complaint one-hot, demographics and turns left scaled to 0..1,
and the belief where the environment shows it. The mask is not part of it: `action_masks()` has it.

Does not cover: frames, histories or normalisation that is learned; RLlib itself, which is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import MedenvError

PARTS = ("evidence", "asked", "complaint", "demographics", "turns_left", "belief")  # in this order, the belief if it is there


class FlatObservation(gym.ObservationWrapper[NDArray[np.float32], np.int64, dict[str, Any]], RecordConstructorArgs):
    """One consultation with a flat observation, float32 [F].

    >>> import gymnasium as gym, medenv
    >>> env = FlatObservation(gym.make("MedConsult-v0", knowledge="synthetic:12x30"))
    >>> env.reset(seed=0)[0].shape == env.observation_space.shape
    True
    """

    def __init__(self, env: gym.Env[dict[str, Any], np.int64]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._layout = _Layout(env.observation_space)
        self.observation_space = self._layout.space

    def observation(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """float32 [F] of one observation."""
        return self._layout.flatten({key: np.asarray(value)[None] for key, value in observation.items()})[0]

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [Q + D + 1], as sb3-contrib asks for it."""
        return self.env.get_wrapper_attr("action_masks")()


class FlatVectorObservation(gym.vector.VectorObservationWrapper):
    """A batch of `gym.make_vec` with flat observations, float32 [N, F]; with SAME_STEP `info["final_obs"]` is flat too.

    Row i equals `FlatObservation` around consultation i, bit for bit. MedenvError around any batch but medenv's own: in
    Gymnasium's, wrap each consultation with `FlatObservation`.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        if not isinstance(env.unwrapped, ConsultVectorEnv):
            kind = type(env.unwrapped).__name__
            raise MedenvError(f"FlatVectorObservation around {kind}: wrap each consultation with FlatObservation instead")
        gym.vector.VectorWrapper.__init__(self, env)  # not the parent's, which refuses SAME_STEP: `step` below covers it
        self._layout = _Layout(env.single_observation_space)
        self.single_observation_space = self._layout.space
        self.observation_space = batch_space(self._layout.space, env.num_envs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the batch's, with the observations of the ended consultations flat too."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            info["final_obs"] = self.observations(info["final_obs"])
        return self.observations(observation), reward, terminated, truncated, info

    def observations(self, observations: Any) -> Any:
        """float32 [N, F] of N observations."""
        return self._layout.flatten(observations)

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [N, Q + D + 1]."""
        return self.env.unwrapped.action_masks()


class RLlibObservation(gym.ObservationWrapper[dict[str, NDArray], np.int64, dict[str, Any]], RecordConstructorArgs):
    """One consultation as RLlib's masked modules read it: `observations` float32 [F] (flat) and `action_mask` float32 [A], 0 or 1."""

    def __init__(self, env: gym.Env[dict[str, Any], np.int64]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._layout = _Layout(env.observation_space)
        mask = spaces.Box(0.0, 1.0, env.observation_space["action_mask"].shape, np.float32)  # type: ignore[index]
        self.observation_space = spaces.Dict({"observations": self._layout.space, "action_mask": mask})

    def observation(self, observation: Mapping[str, Any]) -> dict[str, NDArray]:
        """The two arrays of one observation."""
        flat = self._layout.flatten({key: np.asarray(value)[None] for key, value in observation.items()})[0]
        return {"observations": flat, "action_mask": observation["action_mask"].astype(np.float32)}

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [Q + D + 1], as sb3-contrib asks for it."""
        return self.env.get_wrapper_attr("action_masks")()


class _Layout:
    """Where each part of an observation lies in the flat vector, and what it is divided by."""

    def __init__(self, space: spaces.Space) -> None:
        if not isinstance(space, spaces.Dict) or not set(PARTS[:-1]) <= set(space.spaces):
            raise MedenvError(f"flat observations are made from those of MedConsult-v0 ({', '.join(PARTS[:-1])}), not from {space}")
        self.parts: list[tuple[str, slice]] = []
        self.scale: dict[str, NDArray[np.float32]] = {}
        at = 0
        for key in PARTS:
            if key in space.spaces:
                part = space[key]
                width = int(part.n) if isinstance(part, spaces.Discrete) else int(np.prod(part.shape or ()))
                self.parts.append((key, slice(at, at + width)))
                at += width
        for key in ("demographics", "turns_left"):
            high = space[key].high  # type: ignore[attr-defined]
            self.scale[key] = np.where(high > 0, high, 1.0).astype(np.float32)
        low, high = np.zeros(at, np.float32), np.ones(at, np.float32)
        low[self.parts[0][1]] = -1.0
        self.space = spaces.Box(low, high, dtype=np.float32)

    def flatten(self, observation: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """float32 [N, F] of a batched observation."""
        n = len(observation["evidence"])
        out = np.zeros((n, *self.space.shape), np.float32)
        for key, where in self.parts:
            if key == "complaint":
                out[np.arange(n), where.start + observation[key].reshape(-1)] = 1.0
            elif key in self.scale:
                np.divide(observation[key], self.scale[key], out=out[:, where])
            else:
                out[:, where] = observation[key]
        return out
