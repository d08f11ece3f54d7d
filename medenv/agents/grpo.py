"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) of a language-model doctor, with credit for each turn.

Reads top to bottom: settings, what TRL's `GRPOTrainer` gets from us (consultations instead of completions, an advantage for each token),
the trainer. All members of a group meet the same patient. The patient's tokens are read and never learned. Advantages: see `credit`.

Two of TRL's methods are extended. `_generate_and_score_completions` puts token advantages [B, T] in place of one for each completion, and
takes what was not scored, and groups without spread, out of the loss. `_prepare_inputs` splits a batch into passes of consultations of like
length and cuts the padding off: the same sums in less time. TRL calls `rollout_func` experimental; tests hold its shapes and masks.

vLLM, where there is a GPU and `medenv[vllm]`, writes each turn apart in place of the lock-step generation.

Does not cover: run directories and budgets (`medenv.runs.finetuning`), the clipped loss and its KL term (TRL's).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from medenv.agents.conversation import Conversation, Reply
from medenv.agents.credit import OUTCOME, Advantages, advantages, check_credit, token_advantages
from medenv.agents.finetuning import Settings, Share, check, check_batch, hugging_face, processes, schedule
from medenv.agents.generation import Sampling, converse, converse_apart
from medenv.agents.language_model import LanguageModel
from medenv.agents.rollouts import Held, Room, rollout_seeds, summary
from medenv.errors import RunError
from medenv.hashing import seed_for
from medenv.rewards.mix import DEFAULT, parse_mix

ADD_UP = ("failed", "skipped_groups", "learned_tokens", "tokens", "generated_tokens_per_second")  # over processes; other figures are means
SHOWN = 64  # consultations that the distance from the start is measured on, over all processes


@dataclass(kw_only=True)
class GRPOSettings(Settings):
    """Settings of GRPO."""

    batch: int = 128  # consultations per update, over all processes
    learning_rate: float = 6e-4  # for a model of a million parameters; 1e-6 to 5e-6 for a pretrained one, ten times that with LoRA
    learning_rate_end: float = 0.2  # share of it that is left at the end of the budget; it falls linearly
    group: int = 8  # consultations about each patient
    credit: str = "shapley_credit"  # what a turn is credited with: a component of the mix that is paid turn by turn, or outcome (none);
    # without env.reward the mix is the default one with the credit in place of information_gain
    credit_weight: float = 0.5  # of a question's own part beside the outcome, both in standard deviations
    diagnosis_weight: float = 4.0  # of a diagnosis's own part, likewise (it has few tokens), where training sees expected accuracy
    expected_accuracy: bool = True  # learn from belief[diagnosis] instead of 0 or 1, where the mix pays accuracy
    judge: str = ""  # reward mix that validation is scored with, where several trainings are compared; empty: the environment's own
    temperature: float = 1.0  # of the rollouts
    top_p: float = 1.0  # of the rollouts
    minibatches: int = 1  # updates from each batch; with one every update is on policy
    clip: float = 0.2  # of the probability ratio, where there are several
    beta: float = 0.0  # weight of the KL to the model that the run started from
    entropy: float = 0.0  # weight of an entropy bonus
    vllm: str = "off"  # off, colocate (in this process) or server
    vllm_server: str = "127.0.0.1:8000"  # host and port of `trl vllm-serve`
    vllm_memory: float = 0.3  # share of the GPU's memory for a colocated vLLM


def with_reward(settings: GRPOSettings) -> GRPOSettings:
    """The settings with a mix: where `env` names none, the default one, with the credit in place of information gain."""
    if "reward" in settings.env or settings.credit == OUTCOME:
        return settings
    mix = DEFAULT if settings.credit in parse_mix(DEFAULT).names else DEFAULT.replace("information_gain", settings.credit)
    return replace(settings, env={**settings.env, "reward": mix})


def check_grpo(settings: GRPOSettings, room: Room) -> None:
    """RunError for what can't be trained with, before anything is loaded."""
    least = {"group": 2, "credit_weight": 0, "diagnosis_weight": 0, "minibatches": 1, "clip": 0, "beta": 0, "entropy": 0, "vllm_memory": 0}
    check(settings, least)
    if not settings.model:
        raise RunError("setting model is empty: GRPO starts from a doctor that can hold a consultation, such as `medenv train sft`'s run")
    if settings.temperature <= 0:
        raise RunError(f"setting temperature is {settings.temperature!r}: give a number above 0, a group needs members that differ")
    Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
    check_credit(settings.credit, room.setup.rewards)
    room.setup.rewards.check_gamma(1.0)
    for name in ("steps", "checkpoint_every"):
        value = getattr(settings, name)
        if value is not None and value % settings.minibatches:
            raise RunError(
                f"setting {name} is {value}: give a multiple of minibatches ({settings.minibatches}), a batch is learned from whole"
            )
    check_vllm(settings)


def check_vllm(settings: GRPOSettings) -> None:
    """RunError where vLLM is asked for and can't be used."""
    if settings.vllm not in ("off", "colocate", "server"):
        raise RunError(f"setting vllm is {settings.vllm!r}: choose off, colocate or server")
    if settings.vllm == "off":
        return
    if importlib.util.find_spec("vllm") is None:
        raise RunError(f"setting vllm is {settings.vllm!r}, and vLLM is not installed: pip install 'medenv[vllm]' (GPU only), or vllm=off")
    if settings.vllm == "server":
        host, colon, port = settings.vllm_server.rpartition(":")
        if not colon or not host or not port.isdecimal():
            raise RunError(f"setting vllm_server is {settings.vllm_server!r}: give host:port, such as 127.0.0.1:8000")
        if processes().num_processes > 1:
            raise RunError("vllm=server serves one training process: use vllm=colocate with several")


class ConsultGRPO(GRPOTrainer):
    """TRL's trainer on consultations. `told`: what the last batch was like, for the run's log."""

    def __init__(self, lm: LanguageModel, room: Room, settings: GRPOSettings, folder: Path, steps: int, share: Share) -> None:
        self.lm, self.room, self.settings, self.share = lm, room, settings, share
        self.sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
        self.held: list[Held] = []
        self.told: dict[str, float] = {}
        self._passes: list[dict[str, Any]] = []
        size, passes = check_batch(settings, processes().num_processes, settings.group, settings.minibatches)
        self.reference = _reference(lm.model, settings)
        host, _, port = settings.vllm_server.rpartition(":")
        arguments = GRPOConfig(
            **hugging_face(settings, folder, size, passes, steps),
            num_generations=settings.group,
            generation_batch_size=settings.batch,
            num_iterations=1,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            epsilon=settings.clip,
            beta=settings.beta,
            entropy_coef=settings.entropy,
            scale_rewards="none",
            shuffle_dataset=False,
            use_vllm=settings.vllm != "off",
            vllm_mode=settings.vllm if settings.vllm != "off" else "colocate",
            vllm_server_host=host or "127.0.0.1",
            vllm_server_port=int(port) if port.isdecimal() else 8000,
            vllm_gpu_memory_utilization=settings.vllm_memory,
            vllm_max_model_length=lm.context,
            generation_kwargs={"stop_token_ids": [lm.chat.end]} if settings.vllm != "off" else None,
        )
        cases = settings.batch // settings.group * -(-steps // settings.minibatches)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(
                model=lm.model,
                reward_funcs=[_returns],
                args=arguments,
                train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(cases)]}),
                processing_class=lm.tokenizer,
                rollout_func=_rollout,
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the budget, not of the number of steps alone."""
        self.lr_scheduler = schedule(optimizer or self.optimizer, self.settings, self.share)
        return self.lr_scheduler

    def consult(self, prompts: Sequence[str]) -> list[Held]:
        """A consultation for each prompt, the number of a training patient. The seed is a function of update, process and place."""
        cases = self.room.cases(seed_for(self.settings.seed, "grpo train"), [int(p) for p in prompts])
        first = self.accelerator.process_index * len(prompts)
        seeds = rollout_seeds(self.settings.seed, "rollout", self.state.global_step, range(first, first + len(prompts)))
        started = time.perf_counter()
        self.held = self.room.hold(cases, self, seeds, self.settings.credit, self.settings.expected_accuracy)
        spent, written = time.perf_counter() - started, sum(sum(h.conversation.mask) for h in self.held)
        read = sum(len(h.conversation.ids) for h in self.held)
        self.told = {"tokens": float(read), "generated_tokens_per_second": written / spent, "rollout_seconds": spent, **summary(self.held)}
        return self.held

    name = "policy in training"

    def write(self, openings: Sequence[str], reply: Reply, seeds: Sequence[int]) -> list[Conversation]:
        """Hold the conversations with the weights of the moment."""
        if self.use_vllm:
            return converse_apart(self._generate_with_vllm, self.lm.chat, self.lm.context, openings, reply, self.sampling)
        with self.accelerator.autocast():
            return converse(self.lm, openings, reply, self.sampling, seeds)

    def _generate_with_vllm(self, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        _, turns, logprobs, _ = self.vllm_generation.generate(prompts=prompts, images=None, num_generations=1)
        return turns, [[float(token[0]) for token in turn] for turn in logprobs]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        found = self.advantages(self.held)
        length = output["completion_ids"].shape[1]
        each = torch.zeros((len(self.held), length))
        for row, (h, turns, kept) in enumerate(zip(self.held, found.turns, found.kept, strict=True)):
            if kept:
                told = token_advantages(h.conversation, turns)
                each[row, : len(told)] = torch.tensor(told)
        kept_rows = torch.tensor(found.kept, device=output["completion_ids"].device)
        output["advantages"] = each.to(output["completion_ids"].device)
        output["tool_mask"] = output["tool_mask"] * kept_rows[:, None]
        own = (output["completion_mask"] * output["tool_mask"]).sum()
        output["num_items_in_batch"] = self.accelerator.gather(own).sum()
        self.told |= {"skipped_groups": float(found.skipped), "learned_tokens": float(own)}
        self._tell()
        return output

    def advantages(self, held: Sequence[Held]) -> Advantages:
        """See `credit.advantages`; deviations are scaled over the batches of all processes."""
        weight = 0.0 if self.settings.credit == OUTCOME else self.settings.credit_weight
        judged = self.settings.expected_accuracy and self.room.setup.rewards.weight_of_right() > 0
        for h in held:
            if h.failure is not None:
                h.paid.total = np.nan
        return advantages([h.paid for h in held], self.settings.group, weight, judged * self.settings.diagnosis_weight, self._total)

    def _total(self, sums: np.ndarray) -> np.ndarray:
        return self.accelerator.reduce(torch.from_numpy(sums).to(self.accelerator.device), reduction="sum").cpu().numpy()

    def _tell(self) -> None:
        """`told` over all processes: counts and rates add up, the rest are means."""
        everybody = gather_object([self.told])
        sums = {k: sum(t[k] for t in everybody) for k in self.told}
        self.told = {k: v if k in ADD_UP else v / len(everybody) for k, v in sums.items()}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """A pass of consultations of like length without their common padding. A minibatch holds the same ones as without sorting."""
        each = self.args.steps_per_generation
        if self._step % each == 0 or not self._passes:
            batch = self._generate_and_score_completions(generation_batch)
            rows = len(batch["advantages"])
            lengths = batch["completion_mask"].sum(1).cpu().numpy()
            passes = each // self.settings.minibatches
            chance = np.random.Generator(np.random.PCG64(seed_for(self.settings.seed, "minibatches", self.state.global_step)))
            minibatches = np.split(chance.permutation(rows), self.settings.minibatches)
            parts = [p[np.argsort(lengths[p], kind="stable")] for p in minibatches]
            self._passes = [cut(batch, at) for p in parts for at in np.split(p, passes)]
        return self._passes[self._step % each]

    @torch.no_grad()
    def distance(self) -> float | None:
        """Mean over the doctor's tokens of r - 1 - log r, r = p_start / p_now: an estimate of KL(now || start) in nats a token.

        On consultations of the last batch. None where TRL reports it (`beta` above 0).
        """
        if self.settings.beta > 0:
            return None
        each = max(SHOWN // self.accelerator.num_processes, 1)
        some = [h.conversation for h in self.held if h.failure is None][:each]
        training, total, count = self.lm.model.training, 0.0, 0
        self.lm.model.eval()
        for c in some:
            ids = torch.tensor([c.ids], device=self.lm.model.device)
            own = torch.tensor(c.mask[1:], device=ids.device, dtype=torch.bool)
            now = _logprobs(self.lm.model, ids, self.settings.temperature)[own]
            with self.reference(self.lm.model) as start:
                before = _logprobs(start, ids, self.settings.temperature)[own]
            total += float(((before - now).exp() - 1 - (before - now)).sum())
            count += int(own.sum())
        self.lm.model.train(training)
        total, count = self._total(np.array([total, count])).tolist()
        return float(total / max(count, 1))


def _reference(model: Any, settings: GRPOSettings) -> Callable[[Any], contextlib.AbstractContextManager[Any]]:
    """A context in which the model that the run starts from can be asked: a copy of it, or with LoRA the adapter as it was.

    With `beta` above 0 TRL keeps a reference of its own, and none is made here.
    """
    if settings.beta > 0 or settings.lora is None:
        kept = None if settings.beta > 0 else copy.deepcopy(model).requires_grad_(False)
        return lambda now: contextlib.nullcontext(kept)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    def adapter(of: Any) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in get_peft_model_state_dict(of).items()}

    start = adapter(model)

    @contextlib.contextmanager
    def as_it_was(now: Any) -> Iterator[Any]:
        trained = adapter(now)
        set_peft_model_state_dict(now, start)
        try:
            yield now
        finally:
            set_peft_model_state_dict(now, trained)

    return as_it_was


def _logprobs(model: Any, ids: Tensor, temperature: float) -> Tensor:
    """[T - 1] log p of each token after the first."""
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, 1).gather(1, ids[0, 1:, None]).squeeze(1)


def cut(batch: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Some rows of a batch of TRL's, without the columns that are padding in all of them. Scalars stay."""
    at = torch.from_numpy(rows).to(batch["completion_ids"].device)
    some = {k: v[at] if isinstance(v, Tensor) and v.dim() > 0 else v for k, v in batch.items()}
    right = int(some["completion_mask"].sum(1).max())
    left = some["prompt_mask"].shape[1] - int(some["prompt_mask"].sum(1).max())
    out = dict(some)
    for k, v in some.items():
        if isinstance(v, Tensor) and v.dim() == 2:
            out[k] = v[:, left:] if k.startswith("prompt_") else v[:, :right]
    return out


def _rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
    """What TRL's `rollout_func` returns, for consultations. One that failed is a single token that is not learned."""
    ids, completions, logprobs, masks, returns = [], [], [], [], []
    for h in trainer.consult(prompts):
        c, start = h.conversation, h.conversation.prompt_length
        whole = h.failure is None
        ids.append(c.ids[:start] if whole else [trainer.lm.chat.end])
        completions.append(c.ids[start:] if whole else [trainer.lm.chat.end])
        masks.append(c.mask[start:] if whole else [0])
        logprobs.append(c.logprobs[start:] if whole else [0.0])
        returns.append(h.paid.total if whole and h.paid.scored else None)
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": logprobs, "env_mask": masks, "returned": returns}


def _returns(returned: list[float | None], **_: Any) -> list[float | None]:
    """TRL's reward: the return of each consultation, None where it could not be scored."""
    return returned
