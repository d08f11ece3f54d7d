"""Training runs of language-model doctors, SFT and GRPO: driven through a run directory, on a budget of seconds or updates.

    RUN/run.json, metrics.jsonl, final.json   as every run's, see `run_directory`
    RUN/checkpoints/checkpoint-N/             Hugging Face's checkpoint; `complete` in it is written last
    RUN/policy/                               what `sft:RUN` and `grpo:RUN` load: an ordinary model directory and `doctor.json`
    RUN/samples/                              some validation consultations at each validation, to read

A run that is killed at any moment goes on from its last complete checkpoint. GRPO's policy is the last one, SFT's the one with the highest
validation return. Under several processes (`workers`, torchrun, accelerate) the first one writes and validates.

Does not cover: what happens around an update (`updates`), losses and rollouts (`medenv.agents.sft`, `grpo`), workers of a cluster
(`ray_train`), test cases (`evaluate`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from medenv.agents.finetuning import Settings, check_workers, make_room, on_ray, processes
from medenv.agents.grpo import GRPOSettings, check_grpo, with_reward
from medenv.agents.rollouts import Room
from medenv.agents.sft import SFTSettings, check_sft
from medenv.errors import MedenvError
from medenv.runs.checkpoints import CHECKPOINTS, inputs, last_checkpoint
from medenv.runs.plots import plot_learning_curve
from medenv.runs.run_directory import RunDirectory, plain, read_metrics
from medenv.runs.updates import Progress, Updates, from_first, spent

DEFAULT_STEPS = {"sft": 800, "grpo": 120}  # updates, where no budget is given
# settings that a resumed run may change: `batch` is over all workers, so their number changes sums by rounding only
CHANGEABLE = ("seconds", "steps", "tensorboard", "wandb", "workers", "gpus_per_worker", "address", "worker_failures")


def train(settings: Settings, output: Path, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train a language-model doctor into the run directory `output`; returns the final metrics (see `medenv.runs.glossary`).

    SFT for `SFTSettings`, GRPO for `GRPOSettings`; on workers of a Ray cluster where the settings ask for them. `progress` gets each
    metrics line. With `resume` the run in `output` goes on from its last complete checkpoint (an empty or missing directory starts one; a
    finished run returns its metrics). RunError: as the trainers' checks and `medenv.runs.cluster` say, a directory that is not empty
    without `resume`, one of another version, base or settings (but `CHANGEABLE` ones), a damaged file, a full disk.
    """
    if not on_ray(settings):
        return train_here(settings, Path(output), resume, progress)
    from medenv.runs.ray_train import STATE, train_on_workers

    settings, room = _checked(settings)
    check_workers(settings)
    path, opened = Path(output), list[RunDirectory]()
    if path.exists():  # what is wrong with it is told before Ray is started
        opened.append(_directory(settings, room, path, resume))
        finished = _finished(settings, opened[0])
        if finished is not None:
            return finished
    try:
        train_on_workers(settings, path, lambda: opened.append(_directory(settings, room, path, True)), progress or (lambda record: None))
    except MedenvError:
        if opened:
            opened[0].take_back(STATE)
        raise
    return _directory(settings, room, path, True).final(lambda last: True) or {}


def train_here(
    settings: Settings,
    output: Path,
    resume: bool = False,
    progress: Progress | None = None,
    saved: Callable[[int], None] | None = None,
    restarts: int = 0,
) -> dict[str, Any]:
    """`train` in this process, or in this and those that a launcher started beside it.

    `saved`: called in every process with the update of each checkpoint that is complete. `restarts`: noted in the metrics.
    """
    started = time.perf_counter()
    settings, room = _checked(settings)
    with _as_before(settings.threads), _told_once():
        run, finished = None, None
        if processes().is_main_process:
            run = _directory(settings, room, output, resume)
            finished = _finished(settings, run)
            last_checkpoint(run.path / CHECKPOINTS)  # away with what a kill cut off, before other processes look
        if from_first(finished is not None):
            return finished or {}
        if run is not None:
            run.track(settings.tensorboard, settings.wandb)
        try:
            Updates(settings, room, run, output, started, progress, saved, restarts).go()
            final = {} if run is None else run.finish()
        except MedenvError:
            if run is not None:
                run.take_back()
            raise
        finally:
            if run is not None:
                run.close()
    if run is not None and importlib.util.find_spec("matplotlib"):
        plot_learning_curve(read_metrics(run.path / "metrics.jsonl"), run.path / "curve.png")
    return final


def _checked(settings: Settings) -> tuple[Settings, Room]:
    """The settings with what they leave open, and their training consultations. RunError for what can't be trained with."""
    if settings.seconds is None and settings.steps is None:
        settings = dataclasses.replace(settings, steps=DEFAULT_STEPS[_kind(settings)])
    if isinstance(settings, GRPOSettings):
        settings = with_reward(settings)
    room = make_room(settings, "train")
    if isinstance(settings, GRPOSettings):
        check_grpo(settings, room)
    elif isinstance(settings, SFTSettings):
        check_sft(settings)
    return settings, room


def _kind(settings: Settings) -> str:
    return "grpo" if isinstance(settings, GRPOSettings) else "sft"


def _directory(settings: Settings, room: Room, output: Path, resume: bool) -> RunDirectory:
    base = room.setup.base
    chosen = plain({f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})
    about = {"kind": _kind(settings), "base": base.id, "fingerprint": base.fingerprint, "inputs": inputs(settings), "settings": chosen}
    return RunDirectory(output, about, resume, CHANGEABLE)


def _finished(settings: Settings, run: RunDirectory) -> dict[str, Any] | None:
    """The final metrics of a run whose budget of today is spent."""
    return run.final(lambda last: bool(last.get("plateau")) or spent(settings, last["steps"], last["seconds"]) >= 1.0)


@contextlib.contextmanager
def _as_before(threads: int | None) -> Iterator[None]:
    """Torch's threads and the global generators, which transformers seeds, are put back."""
    count, states = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.random.get_rng_state())
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Without the libraries' own reports and warnings; errors stay."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
