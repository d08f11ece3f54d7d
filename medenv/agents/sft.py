"""Supervised fine-tuning of a language-model doctor on demonstrations, through TRL's `SFTTrainer`.

Reads top to bottom: settings, demonstrations, the order in which they are met, the loss.

What matters for a small model from scratch (`new_model` has its start): good demonstrations, short consultations first, and a heavier loss
on the message that concludes. Only the doctor's own tokens are learned; the patient's are read. A run stops when the mean return on
validation patients has not risen for `patience` validations: its plateau. (The loss on held-out demonstrations rises earlier, while
diagnoses still get better.)

Does not cover: run directories and budgets (`medenv.runs.finetuning`), packing, preferences (DPO).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from trl import SFTConfig, SFTTrainer

from medenv.agents.conversation import Conversation
from medenv.agents.demonstrations import Messages, demonstrate, from_records, messages
from medenv.agents.doctor import make_doctor
from medenv.agents.finetuning import Settings, Share, check, check_batch, hugging_face, load_start, processes, schedule
from medenv.agents.language_model import LanguageModel, from_scratch
from medenv.agents.rollouts import Room
from medenv.errors import RunError
from medenv.hashing import draw_array, seed_for

HELD_OUT = 16  # of a file of trajectories one in so many is for validation


@dataclass(kw_only=True)
class SFTSettings(Settings):
    """Settings of supervised fine-tuning."""

    learning_rate: float = 3e-3  # for a model from scratch; 1e-5 to 1e-4 for a pretrained one
    doctor: str = "greedy"  # who demonstrates
    demonstrations: int = 4096  # consultations that it holds with training patients
    wordings: int = 1  # ways of saying each thing that it uses
    trajectories: str = ""  # a trajectories.jsonl or its run directory: demonstrations from there instead
    conclusion_weight: float = 3.0  # of the tokens of the message that concludes, others 1
    patience: int | None = 6  # validations without a higher return that end the run; none: the budget ends it
    hidden: int = 128  # from scratch: width
    layers: int = 4  # from scratch
    heads: int = 4  # from scratch
    vocabulary: int = 1024  # from scratch: entries of the tokenizer


def check_sft(settings: SFTSettings) -> None:
    """RunError for a setting out of range."""
    least = {"demonstrations": 16, "wordings": 1, "conclusion_weight": 0, "patience": 1, "hidden": 8, "layers": 1, "heads": 1}
    check(settings, least | {"vocabulary": 261})
    if settings.hidden % settings.heads or settings.hidden // settings.heads % 2:
        raise RunError(f"setting hidden is {settings.hidden} and heads {settings.heads}: give an even multiple of the heads as width")


def demonstrations(
    settings: SFTSettings, train: Room, validation: Room, records: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Messages], list[Messages]]:
    """What is learned from, and what is held out: fresh validation patients, or every sixteenth of the trajectories `records`."""
    if records is not None:
        found = from_records(train, records)
        parts = [m for i, m in enumerate(found) if i % HELD_OUT], found[::HELD_OUT]
        if not all(parts):
            raise RunError(f"{settings.trajectories} holds {len(found)} finished consultations: give more, some are held out")
        return parts[0], parts[1]
    doctor = make_doctor(settings.doctor, train.setup.tables, seed_for(settings.seed, "demonstrator"))
    learned = demonstrate(train, doctor, settings.demonstrations, settings.seed, "sft train", settings.wordings)
    held = demonstrate(validation, doctor, settings.evaluate_episodes, settings.seed, "sft validation", settings.wordings)
    failed = [h.failure for h in (*learned, *held) if h.failure]
    if failed:
        raise RunError(f"{len(failed)} of {settings.doctor}'s demonstrations could not be finished: {failed[0]}")
    return [messages(h.transcript) for h in learned], [messages(h.transcript) for h in held]


def start_model(settings: SFTSettings, room: Room, learned: Sequence[Messages]) -> LanguageModel:
    """The model that the settings name, or one from scratch with a tokenizer learnt from the demonstrations."""
    if settings.model:
        return load_start(settings, room)
    if settings.lora is not None:
        raise RunError(f"setting lora is {settings.lora} and model is empty: a model from scratch is trained whole, leave lora out")
    shape = {"hidden": settings.hidden, "layers": settings.layers, "heads": settings.heads, "context": settings.context or 1024}
    return from_scratch((t for m in learned for t in m), settings.seed, settings.vocabulary, settings.system, **shape)


def tokenised(lm: LanguageModel, some: Sequence[Messages], conclusion_weight: float) -> tuple[list[dict[str, list[Any]]], int]:
    """Rows of `input_ids` and `weights` (0 for the patient's tokens), and how many consultations were too long for the model."""
    rows: list[dict[str, list[Any]]] = []
    for each in some:
        c = lm.chat.conversation(each)
        if lm.context is None or len(c.ids) <= lm.context:
            rows.append({"input_ids": c.ids, "weights": weights(c, conclusion_weight)})
    if not rows:
        raise RunError(f"none of {len(some)} demonstrations fits into {lm.context} tokens: give a model with more context, or fewer turns")
    return rows, len(some) - len(rows)


def weights(c: Conversation, conclusion_weight: float) -> list[float]:
    """What each token counts in the loss: 1 for the doctor's, `conclusion_weight` in its last message, 0 for the patient's."""
    out = [float(own) for own in c.mask]
    start, stop = c.spans[-1]
    out[start:stop] = [conclusion_weight] * (stop - start)
    return out


class ShortFirst(Sampler[int]):
    """Row numbers for `steps` batches: the first pass from short to long, later ones in a seeded order; batches of rows of like length."""

    def __init__(self, lengths: Sequence[int], batch: int, steps: int, seed: int) -> None:
        self.lengths, self.batch, self.steps, self.seed = np.asarray(lengths), batch, steps, seed

    def __len__(self) -> int:
        return self.batch * self.steps

    def __iter__(self) -> Iterator[int]:
        n, left, epoch = len(self.lengths), len(self), 0
        while left > 0:
            key = draw_array(np.full(n, seed_for(self.seed, "sft order", epoch), np.uint64), np.arange(n, dtype=np.uint64))
            shuffled = np.argsort(key, kind="stable")
            window = n if epoch == 0 else 16 * self.batch  # rows among which those of like length come together
            chunks = [shuffled[i : i + window] for i in range(0, n, window)]
            chunks = [c[np.argsort(self.lengths[c], kind="stable")] for c in chunks]
            batches = [c[i : i + self.batch] for c in chunks for i in range(0, len(c), self.batch)]
            batches = [b for b in batches if len(b) == self.batch] or batches  # a short one would shift all that follow
            order = range(len(batches)) if epoch == 0 else np.argsort(key[: len(batches)], kind="stable").tolist()
            rows = np.concatenate([batches[i] for i in order])[:left]
            yield from rows.tolist()
            left, epoch = left - len(rows), epoch + 1


def collate(rows: Sequence[dict[str, list[Any]]], pad: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `weights` [n, longest], padded on the right."""
    longest = max(len(r["input_ids"]) for r in rows)
    ids = torch.full((len(rows), longest), pad)
    mask, weight = torch.zeros((len(rows), longest), dtype=torch.long), torch.zeros((len(rows), longest))
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n], mask[i, :n], weight[i, :n] = torch.tensor(row["input_ids"]), 1, torch.tensor(row["weights"])
    return {"input_ids": ids, "attention_mask": mask, "weights": weight}


def weighted_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over tokens of weight x -log p, and the sum of the weights. `model` has TRL's fused head: no logits of all positions."""
    weight = batch["weights"][:, 1:]
    labels = batch["input_ids"].masked_fill(batch["weights"] == 0, -100)
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True, use_cache=False)
    return -(out.log_probs * weight).sum(), weight.sum()


class ConsultSFT(SFTTrainer):
    """TRL's trainer with the weighted loss, on rows that are tokens already."""

    def __init__(
        self, lm: LanguageModel, rows: Sequence[dict[str, Any]], settings: SFTSettings, folder: Path, steps: int, share: Share
    ) -> None:
        size, passes = check_batch(settings, processes().num_processes)
        self.settings, self.share, self.pad = settings, share, lm.tokenizer.pad_token_id
        self.tokens = 0
        self.rows_lengths = [len(r["input_ids"]) for r in rows]
        arguments = SFTConfig(
            **hugging_face(settings, folder, size, passes, steps),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            eos_token=lm.tokenizer.convert_ids_to_tokens(lm.chat.end),
        )
        super().__init__(
            model=lm.model,
            args=arguments,
            train_dataset=Dataset.from_list([{**r, "labels": r["input_ids"]} for r in rows]),
            processing_class=lm.tokenizer,
            data_collator=lambda some: collate(some, self.pad),
        )
        self.model_accepts_loss_kwargs: bool = False  # the trainer divides each pass's loss by their number
        self.weight = 1.0

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return ShortFirst(self.rows_lengths, self.settings.batch, self.args.max_steps, self.settings.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the budget, not of the number of steps alone."""
        self.lr_scheduler = schedule(optimizer or self.optimizer, self.settings, self.share)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        """A pass's part of the weighted mean over the tokens of the whole update, whatever its passes and processes."""
        total, _ = weighted_loss(model, inputs)
        self.tokens += int(inputs["attention_mask"].sum())
        return total / self.weight * self.accelerator.num_processes * self.current_gradient_accumulation_steps

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """The passes of an update; their weights are added up over all processes."""
        samples, items = super().get_batch_samples(*arguments, **named)
        own = torch.stack([b["weights"][:, 1:].sum() for b in samples]).sum() if samples else torch.zeros(())
        self.weight = max(float(self.accelerator.reduce(own.to(self.accelerator.device), reduction="sum")), 1e-9)
        return samples, items

    def tokens_seen(self) -> int:
        """Tokens read since the last call, padding not counted, by all processes."""
        seen = torch.tensor(self.tokens, device=self.accelerator.device)
        self.tokens = 0
        return int(self.accelerator.reduce(seen, reduction="sum"))


@torch.no_grad()
def held_out_loss(model: Any, rows: Sequence[dict[str, Any]], pad: int, size: int = 64) -> float:
    """Mean -log p, in nats, of the doctor's tokens of held-out demonstrations, weights as in training."""
    training, total, count = model.training, 0.0, 0.0
    model.eval()
    ordered = sorted(rows, key=lambda r: len(r["input_ids"]))
    for start in range(0, len(ordered), size):
        batch = {k: v.to(model.device) for k, v in collate(ordered[start : start + size], pad).items()}
        loss, weight = weighted_loss(model, batch)
        total, count = total + float(loss), count + float(weight)
    model.train(training)
    return total / count
