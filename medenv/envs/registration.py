"""The registered environment ids: `MedConsult-v0` and frozen presets of its arguments, so that results compare, and
`MedConsultText-v0`, the same in words.

Does not cover: the environments themselves; entry points are strings, imported when one is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

_PRESETS: dict[str, dict[str, Any]] = {
    "MedConsult-v0": {},
    "MedConsult-Emergency-v0": {"setting": "emergency", "max_turns": 12},
    "MedConsult-Hard-v0": {"noise": 0.1, "difficulty": 0.5, "max_turns": 15},
    "MedConsult-DDXPlus-v0": {"knowledge": "ddxplus", "noise": 0.0, "max_turns": 30},
}


TEXT_IDS = ("MedConsultText-v0",)


def environment_ids() -> list[str]:
    """The ids of the environments in numbers; `TEXT_IDS` are those in words."""
    return list(_PRESETS)


def register_environments() -> None:
    """Called by `import medenv`."""
    for name, arguments in _PRESETS.items():
        if name not in gym.registry:
            gym.register(
                name,
                entry_point="medenv.envs.consult:ConsultEnv",
                vector_entry_point="medenv.envs.vector:ConsultVectorEnv",
                kwargs=arguments,
            )
    for name in TEXT_IDS:
        if name not in gym.registry:
            gym.register(
                name,
                entry_point="medenv.envs.text:ConsultTextEnv",
                vector_entry_point="medenv.envs.text_vector:ConsultTextVectorEnv",
            )
