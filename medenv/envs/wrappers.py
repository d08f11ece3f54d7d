"""Observations in other shapes: one flat vector, for one consultation or a batch, and what RLlib's masked modules read.

A flat observation is float32 [F]: evidence as it is, asked, the complaint one-hot, demographics and turns left scaled to 0..1,
and the belief where the environment shows it. The mask is not part of it: `action_masks()` has it.

Does not cover: frames, histories or normalisation that is learned; RLlib itself, which is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from medenv.envs.vector import ConsultVectorEnv
from medenv.errors import MedenvError

PARTS = ("evidence", "asked", "complaint", "demographics", "turns_left", "belief")


class FlatObservation(gym.ObservationWrapper[NDArray[np.float32], np.int64, dict[str, Any]], gym.utils.RecordConstructorArgs):
    """One consultation with a flat observation, float32 [F].

    >>> import gymnasium as gym, medenv
    >>> from medenv.envs.wrappers import FlatObservation
    >>> env = FlatObservation(gym.make("MedConsult-v0", knowledge="synthetic:12x30"))
    >>> env.reset(seed=0)[0].shape == env.observation_space.shape
    True
    """

    def __init__(self, env: gym.Env[dict[str, Any], np.int64]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.layout = Layout.of(env.observation_space)
        self.observation_space = self.layout.space()

    def observation(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """float32 [F] of one observation."""
        return self.layout.flatten({k: np.asarray(v)[None] for k, v in observation.items()})[0]

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [Q + D + 1]."""
        return self.get_wrapper_attr("action_masks_of")() if self.env.has_wrapper_attr("action_masks_of") else _masks(self.env)


class FlatVectorObservation(gym.vector.VectorObservationWrapper, gym.utils.RecordConstructorArgs):
    """A `ConsultVectorEnv` with flat observations, float32 [N, F]; `info["final_obs"]` is flat too.

    Row i equals `FlatObservation` of consultation i, bit for bit. For Gymnasium's own vector environments put
    `FlatObservation` around each consultation instead (MedenvError otherwise).
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        pass
