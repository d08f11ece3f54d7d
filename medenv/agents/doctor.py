"""What a doctor is: it sees observations and answers with actions. And the doctors by name.

Doctors are batched and keep no state between calls: what they do is a function of the observation (and of their
seed), so a decision is the same in any batch and on any worker. Build one with `make_doctor(name, tables)`.

Does not cover: training (`ppo`), and `oracle`, which sees the whole case and is an evaluator (`medenv.agents.oracle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medenv.errors import UnknownName, unknown
from medenv.knowledge.compiled import Compiled

Observation = Mapping[str, NDArray]


class Doctor(Protocol):
    """The interface of every agent that `evaluate` runs.

    A doctor may also have: `gives_differential`, whether `act` hands in a differential (without the attribute nobody knows, and a mix that
    scores one is allowed); `fingerprint`, text that tells its versions apart.
    """

    name: str

    def act(self, observation: Observation) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Actions int64 [N] for observations with a leading axis [N], and a differential [N, D] or None."""


TEXT_KINDS = ("sft", "grpo", "lm")  # of doctors in words by name: `sft:RUN_DIR`, `lm:DIR_OR_NAME` (see `text_doctor`)
BUILT_IN = ("random", "prevalence", "checklist", "greedy")


def agent_names() -> list[str]:
    """How agents are named on the command line."""
    return [*BUILT_IN, "greedy:CONFIDENCE", "oracle", "ppo:RUN_DIR", "sft:RUN_DIR", "grpo:RUN_DIR", "lm:DIR_OR_NAME"]


def make_doctor(name: str, tables: Compiled, seed: int = 0) -> Doctor:
    """The doctor that `name` names, for one compiled base; UnknownName proposes the closest."""
    kind, _, rest = name.partition(":")
    if name == "oracle":
        raise UnknownName("'oracle' is no doctor but an evaluator that sees the whole case: use `medenv evaluate` or oracle_beliefs")
    if kind == "ppo" and rest:
        from medenv.agents.policy import load_doctor

        return load_doctor(rest, tables)
    if kind in TEXT_KINDS and rest:
        raise UnknownName(f"agent {name!r} speaks and does not act on numbers: evaluate it in MedConsultText-v0")
    if kind == "greedy" and rest:
        from medenv.agents.greedy import Greedy

        try:
            return Greedy(tables, float(rest))
        except ValueError:
            raise UnknownName(f"agent {name!r}: write greedy:CONFIDENCE with a number in (0, 1], such as greedy:0.95") from None
    if not rest and kind in BUILT_IN:
        from medenv.agents.baselines import Checklist, Prevalence, Random
        from medenv.agents.greedy import Greedy

        build: dict[str, Callable[[], Any]] = {
            "random": lambda: Random(tables, seed),
            "prevalence": lambda: Prevalence(tables),
            "checklist": lambda: Checklist(tables),
            "greedy": lambda: Greedy(tables),
        }
        return build[kind]()
    raise unknown("agent", name, agent_names())


def one(observation: Mapping[str, Any]) -> dict[str, NDArray]:
    """A scalar environment's observation as a batch of one, for `Doctor.act`."""
    return {key: np.asarray(value)[None] for key, value in observation.items()}
