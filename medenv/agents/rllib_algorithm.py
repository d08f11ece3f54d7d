"""The parts of PPO on RLlib: the network as an RLModule, the loss as a Learner, the env runner, and the algorithm that uses them.

A runner steps one batch of consultations, not one environment after the other, and makes no episode object for each. The weights come
with every request, so no runner can play with stale ones. Failures are counted, never scored: a runner that dies or stalls is started
again by Ray while the others play more for it; where an environment raises, it is made anew and its fragment thrown away. Each start
draws new patients, so no consultation is played twice.

Does not cover: settings, starting, dead learners (`rllib`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import ray
import torch
import tree
from ray.rllib.algorithms.ppo import PPO as RLlibPPO
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor
from torch.nn.functional import logsigmoid, nll_loss

from medenv.agents.policy import CLOSED, Architecture, Heads, Policy, Tracker
from medenv.agents.ppo import PPO, PPOSettings
from medenv.agents.ppo_objective import LOSSES, normalised, ppo_loss, scheduled, transitions
from medenv.errors import RunError
from medenv.hashing import seed_for

if TYPE_CHECKING:
    from medenv.agents.rllib import RLlibSettings

TRACKED = ("evidence", "complaint", "demographics")


class ConsultModule(TorchRLModule, ValueFunctionAPI):
    """`Policy`, and `Tracker` where the belief is not observed. `model_config`: architecture and seed."""

    def setup(self) -> None:
        """Build the networks, from their own source of chance."""
        architecture = Architecture(**self.model_config["architecture"])
        generator = torch.Generator().manual_seed(seed_for(self.model_config["seed"], "ppo network"))
        self.policy = Policy(architecture, generator)
        self.tracker = None if architecture.observe_belief else Tracker(architecture)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Logits [N, Q + D + 1] of RLlib's categorical distribution: the factored policy's log-probabilities, referring closed."""
        heads = self._forward_train(batch)["heads"]
        ask = logsigmoid(-heads.gate)[:, None] + heads.question.masked_fill(~heads.open, CLOSED)
        stop = logsigmoid(heads.gate)[:, None] + heads.diagnosis
        return {Columns.ACTION_DIST_INPUTS: torch.cat([ask, stop, torch.full_like(stop[:, :1], CLOSED)], 1)}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        out: dict[str, Any] = {"heads": self.policy(batch["belief"], batch["context"], batch["open"])}
        if self.tracker is not None and "evidence" in batch:
            out["tracked"] = self.tracker(*(batch[name] for name in TRACKED))
        return out

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """[N]."""
        values: Tensor = self.policy(batch["belief"], batch["context"], batch["open"]).value
        return values


class ConsultLearner(PPOTorchLearner):
    """PPO's loss as in `ppo`, the tracker's beside it. Rates and the entropy coefficient come with each update, in `timesteps`."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam for the policy and, apart, for the tracker."""
        module = self._module[module_id].unwrapped()
        for name, part in (("policy", module.policy), ("tracker", module.tracker)):
            if part is not None:
                params = list(part.parameters())
                optimiser = torch.optim.Adam(params, eps=1e-5 if name == "policy" else 1e-8)
                self.register_optimizer(module_id=module_id, optimizer_name=name, optimizer=optimiser, params=params)

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Take over what anneals."""
        super().before_gradient_based_update(timesteps=timesteps)
        self.settings = PPOSettings(**self.config.learner_config_dict["settings"])
        self.entropy_coefficient = timesteps["entropy_coefficient"]
        self.sums, self.count = torch.zeros(len(LOSSES) + 1), 0
        for name, optimiser in self.get_optimizers_for_module(DEFAULT_MODULE_ID):
            for group in optimiser.param_groups:
                group["lr"] = timesteps["tracker_rate" if name.endswith("tracker") else "learning_rate"]

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Tensor:
        """The loss of one minibatch."""
        heads: Heads = fwd_out["heads"]
        loss, parts = ppo_loss(heads, batch, self.settings, self.entropy_coefficient)
        tracked = torch.zeros(())
        if "tracked" in fwd_out:
            tracked = nll_loss(fwd_out["tracked"], batch["truth"])
        self.sums += torch.cat([parts, tracked.detach()[None]]).cpu()
        self.count += 1
        return loss + tracked

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Means over the minibatches, as metrics."""
        super().after_gradient_based_update(timesteps=timesteps)
        for name, value in zip((*LOSSES, "tracker_loss"), (self.sums / max(self.count, 1)).tolist(), strict=True):
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)


class ConsultRunner(EnvRunner):
    """One batch of consultations in one process; `sample` plays `rollout` turns of each with the weights that came with the request."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.settings = PPOSettings(**config.env_config["settings"])
        if self.worker_index:
            torch.set_num_threads(self.settings.threads or 1)
        self.ppo: PPO | None = None

    def sample(self, *, request: dict[str, Any], **_: Any) -> dict[str, Any]:
        """A fragment: scored transitions (arrays [M, …] by name), metrics and steps; or `failure`, the cause as text.

        `request`: weights, gain_bonus, and `ticket`, a number that no other request of the run has; patients are drawn from it where the
        runner starts (again).
        """
        weights = request["weights"]
        weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
        try:
            if self.ppo is None:
                self.ppo = PPO(self.settings, request["ticket"])
            load_weights(self.ppo, weights)
            rollout, metrics = self.ppo.collect(request["gain_bonus"])
        except Exception as error:  # told and counted by the algorithm; raised, it would end the process without a word
            self.ppo = None
            return {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
        flat = transitions(rollout, self.settings.gamma, self.settings.gae_lambda)
        if rollout.evidence:
            keep = rollout.scored.flatten()
            flat |= {name: torch.cat(parts)[keep] for name, parts in zip(TRACKED, zip(*rollout.evidence, strict=True), strict=True)}
            flat["truth"] = rollout.truth.flatten()[keep]
        steps = rollout.action.numel()
        return {"failure": None, "transitions": {k: v.numpy() for k, v in flat.items()}, "metrics": metrics, "steps": steps}

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """RLlib's map of spaces; the network's sizes come with its own configuration."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "__env_single__": spaces, DEFAULT_MODULE_ID: spaces}

    def assert_healthy(self) -> None:
        """Whether `__init__` was completed."""
        assert self.settings is not None

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing: weights come with each request, consultations start anew after a restart."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


class ConsultPPO(RLlibPPO):
    """Collect, learn, count. Before each `train()` set `progress`, the share of the budget that is spent; `told` holds its metrics."""

    progress = 0.0

    def setup(self, config: Any) -> None:
        """RLlib's, and what is counted."""
        self.settings: RLlibSettings = self.config.learner_config_dict["run"]
        self.ticket = 0
        self.told: dict[str, float] = {}
        self.counts = {"runner_restarts": 0, "runner_stalls": 0, "environment_failures": 0}
        self.last_failure = ""
        self.shuffle = torch.Generator().manual_seed(seed_for(self.settings.seed, "rllib minibatches"))
        super().setup(config)

    def training_step(self) -> None:
        """One rollout from all runners, and what is learned from it."""
        s = self.settings
        start = time.perf_counter()
        schedule = scheduled(s, self.progress)
        fragments = self.collect(schedule["gain_bonus"])
        sampled = time.perf_counter()
        flat = {k: torch.from_numpy(np.concatenate([f["transitions"][k] for f in fragments])) for k in fragments[0]["transitions"]}
        variance = flat["target"].var(correction=0)
        explained = float(1 - flat["advantage"].var(correction=0) / variance) if variance > 0 else 0.0
        flat["advantage"] = normalised(flat["advantage"])
        order = minibatches(len(flat["target"]), s.epochs, max(1, s.num_learners), self.shuffle)
        batch = SampleBatch({k: v[order].numpy() for k, v in flat.items()})
        steps = sum(f["steps"] for f in fragments)
        results = self.learner_group.update(
            training_data=TrainingData(batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(order))),
            timesteps={**schedule, NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
            num_epochs=1,
            minibatch_size=max(1, min(s.minibatch, len(flat["target"])) // max(1, s.num_learners)),
            shuffle_batch_per_epoch=False,
        )
        self.told = {"explained_variance": explained} | together([f["metrics"] for f in fragments])
        losses = results[0][DEFAULT_MODULE_ID]
        names = LOSSES if "truth" not in flat else (*LOSSES, "tracker_loss")
        self.told |= {name: float(losses[name].peek() if hasattr(losses[name], "peek") else losses[name]) for name in names}
        del schedule["tracker_rate"]
        seconds = {"sample_seconds": sampled - start, "learn_seconds": time.perf_counter() - sampled}
        self.told |= schedule | seconds | {k: float(v) for k, v in self.counts.items()}
        self.told["steps_per_second"] = steps / (time.perf_counter() - start)

    def collect(self, gain_bonus: float) -> list[dict[str, Any]]:
        """As many fragments as there are runners; those that died or stall are waited for no longer, others play more for them."""
        s, group = self.settings, self.env_runner_group
        weights: Any = self.weights()
        wanted, got = max(1, s.num_env_runners), list[dict[str, Any]]()
        weights = ray.put(weights) if s.num_env_runners else weights
        while len(got) < wanted:
            ids = [0] if not s.num_env_runners else self._ready(wanted - len(got))
            requests = {i: {"weights": weights, "gain_bonus": gain_bonus, "ticket": self.ticket + k} for k, i in enumerate(ids)}
            self.ticket += len(ids)
            if not s.num_env_runners:
                replies = {0: group.local_env_runner.sample(request=requests[0])}
            else:
                replies = dict(
                    group.foreach_env_runner(
                        lambda runner, asked=requests: (runner.worker_index, runner.sample(request=asked[runner.worker_index])),
                        local_env_runner=False,
                        remote_worker_ids=ids,
                        timeout_seconds=s.sample_timeout,
                    )
                )
                self._end_stalled(set(ids) - set(replies))
            for reply in replies.values():
                if reply["failure"] is None:
                    got.append(reply)
                else:
                    self.failed("environment_failures", reply["failure"])
        return got

    def _ready(self, most: int) -> list[int]:
        """Runners that can be asked; waits until there is one."""
        until = time.monotonic() + 4 * self.settings.sample_timeout
        while True:
            self.restore_env_runners(self.env_runner_group)
            ids: list[int] = self.env_runner_group.healthy_env_runner_ids()[:most]
            if ids:
                return ids
            if time.monotonic() > until:
                raise RunError(f"no runner came back within {4 * self.settings.sample_timeout:g} s: look at the cluster, and give --resume")
            time.sleep(0.1)

    def _end_stalled(self, missing: set[int]) -> None:
        """End the runners that are alive and did not reply; Ray starts them again."""
        manager = self.env_runner_group._worker_manager
        for i in missing:
            if manager.is_actor_healthy(i):
                ray.kill(manager.actors()[i], no_restart=False)
                manager.set_actor_state(i, healthy=False)
                self.failed("runner_stalls", f"a runner did not reply within {self.settings.sample_timeout:g} s")

    def failed(self, what: str, why: str) -> None:
        """Count a failure; RunError where there were too many."""
        self.counts[what] += 1
        self.last_failure = why
        if sum(self.counts.values()) > self.settings.most_failures:
            told = ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in self.counts.items())
            raise RunError(f"too many failures ({told}); the last: {why}. Put the cause right and give --resume, or raise most_failures")

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Runners that are back, counted. RLlib asks before every update, `_ready` before every rollout; there is nothing to send them."""
        back = sorted(set(env_runner_group.probe_unhealthy_env_runners() or []))
        for _ in back:
            self.failed("runner_restarts", self.last_failure or "a runner's process ended")
        return back

    def weights(self) -> dict[str, Any]:
        """The network's, as arrays by name."""
        state = self.learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}")
        found: dict[str, Any] = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
        return found

    def kept_state(self) -> dict[str, Any]:
        """Weights, optimisers, the next ticket and the order of minibatches, as tensors and plain values."""
        learner = self.learner_group.get_state(components=COMPONENT_LEARNER)[COMPONENT_LEARNER]
        kept = {"weights": learner[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID], "optimisers": learner[COMPONENT_OPTIMIZER]}
        kept = tree.map_structure(lambda x: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x, kept)
        return kept | {"ticket": self.ticket, "shuffle": self.shuffle.get_state(), "counts": dict(self.counts)}

    def take_state(self, kept: dict[str, Any]) -> None:
        """Go on from a `kept_state()`."""
        state = self.learner_group.get_state(components=COMPONENT_LEARNER)
        learner = state[COMPONENT_LEARNER]
        as_arrays = tree.map_structure(lambda x: x.numpy() if isinstance(x, Tensor) else x, kept["weights"])
        learner[COMPONENT_RL_MODULE] = {DEFAULT_MODULE_ID: as_arrays}
        learner[COMPONENT_OPTIMIZER] = kept["optimisers"]
        self.learner_group.set_state(state)
        self.ticket, self.counts = max(self.ticket, kept["ticket"]), dict(kept["counts"])
        self.shuffle.set_state(kept["shuffle"])


def load_weights(ppo: PPO, weights: dict[str, Any]) -> None:
    """Put a module's weights into the networks of `ppo`."""
    for name, part in (("policy", ppo.policy), ("tracker", ppo.tracker)):
        if part is not None:
            part.load_state_dict(
                {k.partition(".")[2]: torch.as_tensor(np.array(v)) for k, v in weights.items() if k.startswith(f"{name}.")}
            )


def minibatches(rows: int, epochs: int, learners: int, generator: torch.Generator) -> Tensor:
    """Row numbers [learners · epochs · (rows // learners)]: each epoch a new order, divided among the learners, whose parts are whole."""
    share = rows // learners
    orders = [torch.randperm(rows, generator=generator)[: share * learners].reshape(learners, share) for _ in range(epochs)]
    return torch.stack(orders, 1).flatten()


def together(each: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of fragments as one: consultations and counts add up, what was measured of consultations is weighted by them."""
    n = sum(m["consultations"] for m in each)
    out = {"consultations": n, "unscored": sum(m["unscored"] for m in each), "stop_rate": sum(m["stop_rate"] for m in each) / len(each)}
    if n:
        out |= {k: sum(m[k] * m["consultations"] for m in each if m["consultations"]) / n for k in ("return", "questions", "accuracy")}
    return out
