"""What happens around the updates of a language-model doctor's training: budget, validation, metrics, checkpoints, the policy kept.

GRPO's policy is the last one, SFT's the one with the highest validation return. Under several processes the first one writes and validates.

Does not cover: the run as a whole (`medenv.runs.finetuning`), losses and rollouts (`medenv.agents.sft`, `grpo`).
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback

from medenv.agents.finetuning import Settings, load_start, make_room, processes
from medenv.agents.grpo import ConsultGRPO, GRPOSettings
from medenv.agents.language_model import LanguageModel
from medenv.agents.rollouts import Held, Room, rollout_seeds, summary
from medenv.agents.sft import ConsultSFT, SFTSettings, demonstrations, held_out_loss, start_model, tokenised
from medenv.agents.text_doctor import POLICY, About, TextDoctor, save_doctor
from medenv.errors import RunError
from medenv.hashing import seed_for
from medenv.runs.checkpoints import CHECKPOINTS, COMPLETE, last_checkpoint
from medenv.runs.records import read_trajectories, write_atomically
from medenv.runs.run_directory import FULL, RunDirectory, plain, read_metrics

Progress = Callable[[dict[str, Any]], None]

SAMPLES = "samples"
MOST_STEPS = 20_000  # a budget in seconds alone ends here
SHOWN = 4  # consultations in a file of samples


class Updates(TrainerCallback):
    """One run: what happens around the updates of TRL's trainer."""

    def __init__(
        self,
        settings: Settings,
        room: Room,
        run: RunDirectory | None,
        path: Path,
        started: float,
        progress: Progress | None = None,
        saved: Callable[[int], None] | None = None,
        restarts: int = 0,
    ) -> None:
        self.settings, self.room, self.run, self.path, self.progress, self.saved = settings, room, run, path, progress, saved
        self.restarted = {"worker_restarts": restarts} if restarts else {}
        self.checkpoint = last_checkpoint(path / CHECKPOINTS)
        update = -1 if self.checkpoint is None else int(self.checkpoint.name.rpartition("-")[2])
        self.logged = update
        earlier: list[dict[str, Any]] = []
        if run is not None:
            run.keep_metrics(update)
            earlier = read_metrics(path / "metrics.jsonl")
        self.started = started - (earlier[-1]["seconds"] if earlier else 0.0)
        self.clock = from_first(time.perf_counter() - self.started)  # seconds spent, the same in every process
        self.plateau = bool(earlier and earlier[-1].get("plateau"))
        self.returns = [r["validation_return"] for r in earlier if r.get("validation_return") is not None]
        self.updated = time.perf_counter()
        self.due = self.stop = False
        self.held_out: list[dict[str, Any]] = []
        self.extra: dict[str, float] = {}
        self.validation = make_room(settings, "validation", settings.judge if isinstance(settings, GRPOSettings) else "")
        steps = settings.steps or MOST_STEPS
        if isinstance(settings, SFTSettings):
            self.lm, rows = self._demonstrated(settings)
            self.trainer: Any = ConsultSFT(self.lm, rows, settings, path / CHECKPOINTS, steps, self._share)
        else:
            assert isinstance(settings, GRPOSettings)
            self.lm = load_start(settings, room)
            self._check_room()
            self.trainer = ConsultGRPO(self.lm, room, settings, path / CHECKPOINTS, steps, self._share)
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(self)

    def _demonstrated(self, settings: SFTSettings) -> tuple[LanguageModel, list[dict[str, Any]]]:
        records = list(read_trajectories(settings.trajectories)) if settings.trajectories else None
        if settings.model:  # a model that can't serve is told of before the demonstrations are made
            lm = load_start(settings, self.room)
            learned, held = demonstrations(settings, self.room, self.validation, records)
        else:
            learned, held = demonstrations(settings, self.room, self.validation, records)
            lm = start_model(settings, self.room, learned)
        self.lm = lm
        self._check_room()
        rows, too_long = tokenised(lm, learned, settings.conclusion_weight)
        self.held_out, _ = tokenised(lm, held, settings.conclusion_weight)
        self.extra = {"too_long": float(too_long)}
        return lm, rows

    def _check_room(self) -> None:
        """RunError for a model that has no room for the opening, an answer and a conclusion."""
        cases = self.room.cases(seed_for(self.settings.seed, "room"), range(32))
        env = self.room.env(len(cases))
        openings, _ = env.reset(options={"case": cases})
        longest = max(len(self.lm.chat.opening(o)) for o in openings)
        needed = longest + 2 * self.settings.max_new_tokens + 32
        if self.lm.context is not None and needed > self.lm.context:
            raise RunError(
                f"the model reads at most {self.lm.context} tokens, and instructions with an opening of {longest}, a question, its "
                f"answer and a conclusion (max_new_tokens={self.settings.max_new_tokens} each) need {needed}: "
                "shorten `system`, or use another model"
            )

    def _share(self, update: int) -> float:
        return spent(self.settings, update, self.clock)

    def _over(self, update: int) -> bool:
        """Whether the budget is spent and the batch learned from whole. All processes ask together."""
        self.clock = from_first(time.perf_counter() - self.started)
        return update % getattr(self.settings, "minibatches", 1) == 0 and self._share(update) >= 1.0

    def go(self) -> None:
        """Train to the end of the budget."""
        if self.checkpoint is None:
            self._line(0, self.extra | self._validated(0))
            self._save_policy()
        elif self._share(self.logged) >= 1.0 or self.plateau:
            return
        self.updated = time.perf_counter()
        try:
            self.trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        except (OSError, SafetensorError) as error:
            raise RunError(f"could not write {self.path}: {getattr(error, 'strerror', None) or error}; {FULL}") from error
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):
                raise
            raise RunError(f"could not write a checkpoint in {self.path} ({error}); {FULL}") from error

    # What transformers' Trainer calls

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update: what is due."""
        over = self._over(state.global_step)
        self.due = over or state.global_step % self.settings.evaluate_every == 0
        control.should_training_stop = control.should_training_stop or over
        control.should_save = over or state.global_step % self.settings.checkpoint_every == 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """The trainer's figures of an update, once each: make the metrics line, and validate where it is due."""
        if state.global_step <= self.logged or "loss" not in logs:
            return
        figures = {"loss": logs["loss"], "grad_norm": logs.get("grad_norm"), "learning_rate": logs.get("learning_rate")}
        if isinstance(self.trainer, ConsultGRPO):
            told_ = dict(self.trainer.told)
            tokens = told_.pop("tokens") / self.trainer.settings.minibatches
            if told_["failed"] and self.run is not None:
                failed = [h for h in self.trainer.held if h.failure]
                write_atomically(self.path / SAMPLES / f"{state.global_step:06d}_failed.txt", told(failed), FULL)
            figures |= told_ | {"entropy": logs.get("entropy"), "clip_fraction": logs.get("clip_ratio/region_mean"), "kl": logs.get("kl")}
        else:
            tokens = self.trainer.tokens_seen()
        now = time.perf_counter()
        figures["tokens_per_second"] = tokens / (now - self.updated)
        if self.due:
            figures |= self._validated(state.global_step)
            if isinstance(self.trainer, ConsultGRPO) and self.trainer.beta == 0:
                figures["kl"] = self.trainer.distance()
            if from_first(self.stop):
                figures["plateau"] = True
                control.should_training_stop = control.should_save = True
            if self._over(state.global_step):
                control.should_training_stop = control.should_save = True  # validating took the rest: no further update, validated again
        if control.should_save and processes().num_processes > 1:
            figures["same_weights"] = self._same_weights()
        self._line(state.global_step, figures)
        self.updated = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint is on disk: say so last, keep the policy, drop the checkpoint before."""
        processes().wait_for_everyone()  # each process writes a file of it
        if self.run is not None:
            self._complete(state.global_step, self.run)
        if self.saved is not None:
            self.saved(state.global_step)

    def _complete(self, update: int, run: RunDirectory) -> None:
        folder = self.path / CHECKPOINTS / f"checkpoint-{update}"
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if not self.held_out:
            self._save_policy()
        run.sync()
        write_atomically(folder / COMPLETE, f"{update}\n", FULL)
        for other in (self.path / CHECKPOINTS).glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    # What they need

    def _validated(self, update: int) -> dict[str, Any]:
        if not processes().is_main_process:
            return {}
        out: dict[str, Any] = {}
        if self.held_out:
            out["validation_loss"] = held_out_loss(self.lm.model, self.held_out, self.lm.tokenizer.pad_token_id)
        if update == 0 and not self.settings.model:
            return out  # a model from scratch writes at random
        n = range(self.settings.evaluate_episodes)
        cases = self.validation.cases(seed_for(self.settings.seed, "text validation"), n)
        doctor = TextDoctor("policy in training", self.lm, self.settings.max_new_tokens)
        with self.trainer.accelerator.autocast():
            held = self.validation.hold(cases, doctor, rollout_seeds(self.settings.seed, "validation", 0, n))
        found = summary(held)
        write_atomically(self.path / SAMPLES / f"{update:06d}.txt", told(held), FULL)
        if self.held_out:
            self._watch(found["return"])
        keys = ("return", "accuracy", "questions", "repeat_rate", "format_errors", "failed")
        return out | {f"validation_{k}": found.get(k) for k in keys}

    def _same_weights(self) -> float:
        """Share of the processes whose trained weights are the first one's, bit for bit."""
        own = hashlib.sha256()
        for weights in self.lm.model.parameters():
            if weights.requires_grad:
                own.update(weights.detach().float().cpu().numpy().tobytes())
        everybody = gather_object([own.hexdigest()])
        return everybody.count(everybody[0]) / len(everybody)

    def _watch(self, earned: float) -> None:
        """Keep the policy with the highest validation return; stop where it has not risen for `patience` validations."""
        assert isinstance(self.settings, SFTSettings)
        if earned > max(self.returns, default=-math.inf):
            self._save_policy()
        self.returns.append(earned)
        patience = self.settings.patience
        since = len(self.returns) - 1 - int(np.argmax(self.returns))
        self.stop = patience is not None and since >= patience

    def _save_policy(self) -> None:
        if self.run is None:
            return
        base = self.room.setup.base
        about = About(
            base=base.id,
            fingerprint=base.fingerprint,
            env=plain(self.settings.env),
            system=self.lm.chat.system,
            max_new_tokens=self.settings.max_new_tokens,
        )
        save_doctor(self.path / POLICY, self.lm, about)

    def _line(self, update: int, figures: dict[str, Any]) -> None:
        self.logged = update
        if self.run is None:
            return
        seconds = round(time.perf_counter() - self.started, 3)
        line = {"update": update, "steps": update, "seconds": seconds, **figures, **self.restarted}
        self.run.log(line)
        if self.progress is not None:
            self.progress(line)


def told(held: Sequence[Held]) -> str:
    """Some consultations as text: those that failed first, then the first ones."""
    some = sorted(held, key=lambda h: h.failure is None)[:SHOWN]
    parts = []
    for h in some:
        lines = [f"case {h.case}", *(f"{who}: {text}" for who, text in h.transcript)]
        end = f"failed: {h.failure}" if h.failure else f"{'right' if h.correct else 'not right'}; return {h.earned:.3f}"
        parts.append("\n".join([*lines, f"({end}; {h.questions} questions, {h.repeats} repeated, {h.malformed} messages not understood)"]))
    return "\n\n".join(parts) + "\n"


def spent(settings: Settings, steps: int, seconds: float) -> float:
    """Share of the budget that is used up."""
    shares = [] if settings.seconds is None else [seconds / settings.seconds, steps / MOST_STEPS]
    shares += [] if settings.steps is None else [steps / settings.steps]
    return max(shares)


def from_first(value: Any) -> Any:
    """The first process's value, in every process. All of them wait here."""
    return broadcast_object_list([value])[0] if processes().num_processes > 1 else value
