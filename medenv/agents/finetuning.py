"""What training a language-model doctor has in common, supervised or by GRPO: settings, Hugging Face's arguments, the learning rate.

TRL's trainers do the training, so everything around them (accelerate, several processes, bf16, LoRA, checkpointing) is theirs. The model
comes from `settings.model`: a run directory, a model directory or a name on Hugging Face.

Does not cover: losses (`sft`, `grpo`), run directories, budgets and resuming (`medenv.runs.finetuning`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from medenv.agents.language_model import LanguageModel
from medenv.agents.rollouts import Room
from medenv.agents.text_doctor import MAX_NEW_TOKENS, load_doctor
from medenv.envs.setup import check_arguments
from medenv.errors import RunError
from medenv.language.formats import FORMATS

_NAMES = {f.name for f in fields(TrainingArguments)}
_CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing"  # its older name
Share = Callable[[int], float]  # of the budget that is spent after so many updates


@dataclass(kw_only=True)
class Settings:
    """Settings of one run; on the command line and in TOML each is a key. Fractions are of the budget."""

    env: dict[str, Any] = field(default_factory=dict)  # arguments of MedConsultText-v0 (format and max_chars among them), except split
    model: str = ""  # where to start: a run directory, a model directory, a name on Hugging Face; empty (sft only): from scratch
    seed: int = 0  # of the weights, the sampling and the patients
    seconds: float | None = None  # budget in seconds, everything included
    steps: int | None = None  # budget in updates; the first budget to run out ends the run
    batch: int = 32  # consultations per update, over all workers and processes: their number does not change what is learned
    micro_batch: int = 32  # consultations per forward and backward pass of one process: what memory holds
    learning_rate: float = 1e-3  # AdamW's, after the warm-up
    learning_rate_end: float = 0.05  # share of it that is left at the end of the budget; it falls linearly
    warmup: int = 20  # updates in which it rises from 0
    max_grad_norm: float = 1.0  # gradients are scaled down to it
    lora: int | None = None  # rank of an adapter that is trained instead of the model
    context: int = 0  # tokens that a consultation may take at most, and the model must hold; 0: what it holds
    max_new_tokens: int = MAX_NEW_TOKENS  # of one message of the doctor's
    system: str | None = None  # instructions in front of every consultation; none: the model's own, or for a bare model those of the base
    chat_template: str | None = None  # instead of the tokenizer's
    pad_token: str | None = None  # instead of the tokenizer's
    threads: int | None = None  # of torch; none: as it is
    bf16: bool | None = None  # train in bfloat16; none: on CUDA
    evaluate_every: int = 25  # updates between validations
    evaluate_episodes: int = 256  # fixed validation cases, greedy decoding
    checkpoint_every: int = 25  # updates between checkpoints
    workers: int = 1  # processes that train together, on a Ray cluster; 1, without GPUs and address below: in this process, without Ray
    gpus_per_worker: float = 0  # 0: the workers train on CPUs, on `threads` of them each (none: 1)
    address: str = ""  # of a Ray cluster, HOST:PORT; empty: RAY_ADDRESS's, or one of the run's own; local: its own in any case
    worker_failures: int = 3  # how many times the run goes on from its last checkpoint after a worker was killed
    tensorboard: bool = False  # write event files
    wandb: str = "off"  # off, offline or online


AT_LEAST = {
    "seed": 0, "seconds": 1e-3, "steps": 1, "batch": 1, "micro_batch": 1, "learning_rate": 0, "learning_rate_end": 0, "warmup": 0,
    "max_grad_norm": 1e-9, "lora": 1, "context": 0, "max_new_tokens": 1, "threads": 1, "evaluate_every": 1, "evaluate_episodes": 1,
    "checkpoint_every": 1, "workers": 1, "gpus_per_worker": 0, "worker_failures": 0,
}  # fmt: skip


def check(settings: Settings, more: Mapping[str, float]) -> None:
    """RunError for a setting out of range, with what to give."""
    for name, least in (AT_LEAST | dict(more)).items():
        value = getattr(settings, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise RunError(f"setting {name} is {value!r}: give a number of at least {least}")
    if torch.cuda.device_count() > 1 and processes().num_processes == 1 and not on_ray(settings):
        raise RunError("several GPUs are visible to one process: give workers, with gpus_per_worker=1, or set CUDA_VISIBLE_DEVICES")
    if settings.wandb not in ("off", "offline", "online"):
        raise RunError(f"setting wandb is {settings.wandb!r}: choose off, offline or online")
    if not 0.0 <= settings.learning_rate_end <= 1.0:
        raise RunError(f"setting learning_rate_end is {settings.learning_rate_end!r}: give a number in [0, 1]")


def on_ray(settings: Settings) -> bool:
    """Whether the settings ask for workers of a Ray cluster."""
    return settings.workers > 1 or settings.gpus_per_worker > 0 or bool(settings.address)


def check_workers(settings: Settings) -> None:
    """RunError where the settings can't be trained with on their workers, before Ray is started."""
    gpus = settings.gpus_per_worker
    if gpus > 1 or (settings.workers > 1 and gpus not in (0, 1)):
        raise RunError(f"setting gpus_per_worker is {gpus:g}: give 0 or 1, each worker trains on one GPU of its own, and raise workers")
    if processes().num_processes > 1:
        raise RunError("workers starts the processes itself, and a launcher (torchrun, accelerate) has started several: use one of both")
    check_batch(settings, settings.workers, getattr(settings, "group", 1), getattr(settings, "minibatches", 1))


def check_batch(settings: Settings, processes: int, group: int = 1, updates: int = 1) -> tuple[int, int]:
    """(consultations per pass, passes per update) of one process. RunError, with numbers that fit, where the batch does not divide.

    `group`: consultations that must stay in one process; `updates` of one batch.
    """
    if settings.batch % (processes * group * updates):
        parts = [f"{processes} processes" if processes > 1 else "", f"groups of {group}" if group > 1 else ""]
        parts.append(f"{updates} minibatches" if updates > 1 else "")
        why = " x ".join(p for p in parts if p)
        unit = processes * group * updates
        fits = max(unit, settings.batch // unit * unit)
        raise RunError(f"setting batch is {settings.batch}, which {why} do not divide: give a multiple of {unit}, such as {fits}")
    each = settings.batch // (processes * updates)
    size = next(n for n in range(min(settings.micro_batch, each), 0, -1) if each % n == 0)
    return size, each // size


def processes() -> PartialState:
    """The processes that train together: which one this is, and how many they are (one without a launcher)."""
    return PartialState(cpu=not torch.cuda.is_available())


def make_room(settings: Settings, split: str, judge: str = "") -> Room:
    """The consultations of one split that the settings ask for; `judge`: another reward mix. RunError for an unknown argument."""
    check_arguments(settings.env, words=True)
    room = Room(settings.env | ({"reward": judge} if judge else {}), split)
    if room.setup.rewards.needs_differential:
        names = ", ".join(room.setup.rewards.needs_differential)
        raise RunError(f"{names} scores a differential, and a doctor in words gives none: leave it out of the mix")
    return room


def format_name(settings: Settings) -> str:
    """The name of the environment's format."""
    given = settings.env.get("format", "any")
    return given if given in FORMATS else "any"


def load_start(settings: Settings, room: Room) -> LanguageModel:
    """The model that training starts from, checked against the base and the chat's needs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = device.type == "cuda" and settings.lora is not None  # a frozen base in bfloat16; what is trained whole needs float32's steps
    return load_doctor(
        settings.model,
        room.setup.base,
        format_name(settings),
        context=settings.context,
        system=settings.system,
        lora=settings.lora,
        chat_template=settings.chat_template,
        pad_token=settings.pad_token,
        device=device,
        dtype=torch.bfloat16 if half else torch.float32,
        seed=settings.seed,
    )


def hugging_face(settings: Settings, folder: Path, size: int, passes: int, steps: int) -> dict[str, Any]:
    """The arguments that TRL's trainers share: their loop without their reports, evaluations and schedule of checkpoints."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": passes,
        "max_steps": steps,
        "learning_rate": settings.learning_rate,
        "weight_decay": 0.0,
        "adam_beta2": 0.95,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed % 2**32,
        "use_cpu": not cuda,
        "bf16": cuda if settings.bf16 is None else settings.bf16,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": cuda,
        _CHECKPOINTING: cuda and settings.lora is not None,
    }


def schedule(optimiser: torch.optim.Optimizer, settings: Settings, share: Share) -> LambdaLR:
    """The learning rate: up over the warm-up, then down linearly with the share of the budget that is spent."""

    def factor(update: int) -> float:
        up = min(1.0, (update + 1) / (settings.warmup + 1))
        return up * (1.0 + (settings.learning_rate_end - 1.0) * min(share(update), 1.0))

    return LambdaLR(optimiser, factor)
