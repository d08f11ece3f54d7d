"""PPO on RLlib's new API stack: the network, masking, loss and settings of `ppo`, on env runners and learners of a Ray cluster.

`OnRLlib` has the methods of `ppo.PPO`, so that one loop drives both; a learner that dies is replaced, from the state after the last update.

Does not cover: run directories and budgets (`medenv.runs.training`), the cluster (`medenv.runs.cluster`); imitation, which only `ppo` has.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.exceptions import RayError
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from medenv.agents.policy import Architecture, Policy, Tracker
from medenv.agents.ppo import PPO, PPOSettings
from medenv.agents.rllib_algorithm import ConsultLearner, ConsultModule, ConsultPPO, ConsultRunner, load_weights
from medenv.errors import RunError


@dataclass
class RLlibSettings(PPOSettings):
    """Settings of a run on RLlib: those of PPO, and what runs where."""

    engine: str = "rllib"
    num_env_runners: int = 2  # processes that consult, each with num_envs / num_env_runners consultations; 0: this one
    num_learners: int = 0  # processes that learn, each from its share of every minibatch; 0: this one
    gpus_per_learner: float = 0.0  # of each learner
    address: str = ""  # of the cluster: see `medenv.runs.cluster`
    sample_timeout: float = 60.0  # seconds after which a runner counts as stalled and is started again
    most_failures: int = 20  # runners, learners and environments that may fail before the run gives up


class OnRLlib:
    """The learner on a cluster, as `medenv.runs.training` drives it. Ray must be connected; `close` ends runners and learners."""

    def __init__(self, settings: RLlibSettings) -> None:
        self.settings = settings
        own = {f.name: getattr(settings, f.name) for f in fields(PPOSettings)}
        self.here = PPO(PPOSettings(**own | {"num_envs": 1}))  # validates, and is what is saved
        self.algorithm: ConsultPPO | None = None
        self.failures, self.ticket = 0, 0
        self.counts: dict[str, int] = {}
        self.kept: dict[str, Any] | None = None  # state after the last update

    @property
    def tables(self) -> Any:
        """The base's."""
        return self.here.tables

    @property
    def policy(self) -> Policy:
        """The network, up to date."""
        return self.here.policy

    @property
    def tracker(self) -> Tracker | None:
        """The policy's own belief, up to date."""
        return self.here.tracker

    def update(self, progress: float) -> dict[str, float]:
        """One rollout and what is learned from it, with counts of what failed on the way."""
        while True:
            algorithm = self.running()
            algorithm.progress = progress
            algorithm.ticket, algorithm.counts = max(algorithm.ticket, self.ticket), algorithm.counts | self.counts
            try:
                algorithm.train()
                self.kept = algorithm.kept_state()
                break
            except (RayError, ConnectionError) as error:
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                if not ray.is_initialized():
                    raise RunError(f"the cluster is gone ({why}): start it again and give --resume") from error
                self.ticket, self.counts = algorithm.ticket, algorithm.counts  # what was played and failed before stays so
                self.failures += 1
                counted = sum(algorithm.counts.values()) + self.failures
                if counted > self.settings.most_failures:
                    raise RunError(f"too many failures ({counted}); the last: {why}. Put it right and give --resume") from error
                self.close()
        self.ticket, self.counts = algorithm.ticket, algorithm.counts
        load_weights(self.here, self.kept["weights"])
        return algorithm.told | {"learner_failures": float(self.failures)}

    def running(self) -> ConsultPPO:
        """The algorithm, started from the kept state where it is not running."""
        if self.algorithm is None:
            self.algorithm = build(self.settings, self.here.architecture)
            if self.kept is not None:
                self.algorithm.take_state(self.kept)
        return self.algorithm

    def validate(self) -> dict[str, float]:
        """As `ppo.PPO`'s, in this process."""
        return self.here.validate()

    def state(self) -> dict[str, Any]:
        """What the next update depends on, but for the consultations that are open: a resumed run begins new ones."""
        if self.kept is None:
            self.kept = self.running().kept_state()
            load_weights(self.here, self.kept["weights"])
        return self.kept | {"learner_failures": self.failures}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self.failures = state.pop("learner_failures")
        self.kept = state
        load_weights(self.here, state["weights"])

    def close(self) -> None:
        """End runners and learners."""
        if self.algorithm is not None:
            with contextlib.suppress(Exception):  # what is dead can't be ended
                self.algorithm.stop()
            self.algorithm = None


def build(settings: RLlibSettings, architecture: Architecture) -> ConsultPPO:
    """The algorithm, its runners and learners started. Ray must be connected."""
    logging.getLogger("ray.rllib.algorithms.algorithm_config").setLevel(logging.ERROR)  # it warns that its new API stack is in use
    runners = max(1, settings.num_env_runners)
    shared = {f.name: getattr(settings, f.name) for f in fields(PPOSettings)}
    space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    config = (
        PPOConfig()
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .environment(
            observation_space=space,
            action_space=gym.spaces.Discrete(architecture.num_questions + architecture.num_conditions + 1),
            env_config={"settings": shared | {"num_envs": settings.num_envs // runners}},
        )
        .env_runners(
            env_runner_cls=ConsultRunner,
            num_env_runners=settings.num_env_runners,
            num_envs_per_env_runner=settings.num_envs // runners,
            create_local_env_runner=settings.num_env_runners == 0,
            validate_env_runners_after_construction=False,
            sample_timeout_s=settings.sample_timeout,
        )
        .learners(num_learners=settings.num_learners, num_gpus_per_learner=settings.gpus_per_learner)
        .training(
            learner_class=ConsultLearner,
            learner_config_dict={"settings": shared, "run": settings},
            gamma=settings.gamma,
            lr=settings.learning_rate,
            grad_clip=settings.max_grad_norm,
            grad_clip_by="global_norm",
            num_epochs=1,
            minibatch_size=min(settings.minibatch, settings.num_envs * settings.rollout) // max(1, settings.num_learners),
            train_batch_size_per_learner=settings.num_envs * settings.rollout // max(1, settings.num_learners),
            use_kl_loss=False,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=ConsultModule,
                observation_space=space,
                action_space=gym.spaces.Discrete(architecture.num_questions + architecture.num_conditions + 1),
                model_config={"architecture": asdict(architecture), "seed": settings.seed},
            )
        )
        .fault_tolerance(
            restart_failed_env_runners=True,
            max_num_env_runner_restarts=settings.most_failures + 1,
            env_runner_health_probe_timeout_s=0.2,
        )
        .reporting(min_time_s_per_iteration=None, min_sample_timesteps_per_iteration=0)
        .debugging(log_level="ERROR")
    )
    config._dont_auto_sync_env_runner_states = True
    return ConsultPPO(config=config)


def check_rllib(settings: RLlibSettings) -> None:
    """RunError for what can't run on RLlib."""
    s = settings
    for name, least in {"num_env_runners": 0, "num_learners": 0, "gpus_per_learner": 0, "sample_timeout": 1e-3, "most_failures": 0}.items():
        if not getattr(s, name) >= least:
            raise RunError(f"setting {name} is {getattr(s, name)!r}: give a number of at least {least}")
    if s.gpus_per_learner and not s.num_learners:
        raise RunError(f"gpus_per_learner={s.gpus_per_learner:g} and no learner of its own to have them: give num_learners=1 or more")
    for what, among in (("num_envs", "num_env_runners"), ("minibatch", "num_learners")):
        whole, parts = getattr(s, what), max(1, getattr(s, among))
        if whole % parts:
            raise RunError(
                f"{what}={whole} does not divide among {among}={parts}: give a multiple, such as {whole // parts * parts or parts}"
            )
    if s.imitate:
        raise RunError(f"setting imitate is {s.imitate!r}: only engine=torch imitates, leave it out")
