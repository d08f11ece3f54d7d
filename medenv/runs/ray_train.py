"""SFT and GRPO on workers of a Ray cluster: `medenv.runs.finetuning` inside Ray Train's `TorchTrainer`, gloo on CPUs, nccl on GPUs.

The run directory stays medenv's own, whole checkpoints included. It must be on a file system that the command and all workers see under
one path. What Ray Train is told of each checkpoint is its update, its path, and how often the run was restarted; that lies in RUN/ray.

A worker that was killed takes its group with it; Ray Train starts the group again, up to `worker_failures` times, and the run goes on from
its last complete checkpoint. An error that medenv raises on purpose would come again: it ends the run at once, whichever worker raised it
and whatever the others wait for.

Does not cover: training (`finetuning`), the cluster (`cluster`), elastic numbers of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from medenv.agents.finetuning import Settings
from medenv.errors import MedenvError, RunError
from medenv.runs.checkpoints import CHECKPOINTS
from medenv.runs.cluster import cluster, require
from medenv.runs.finetuning import train_here
from medenv.runs.run_directory import read_metrics

STATE, TOKEN, TOLD = "ray", "seen_by_workers", "medenv.json"
LOOK = 0.5  # seconds between looks at the workers and at the metrics
PATIENCE = 600.0  # seconds that a run waits for nodes in place of those that were lost

Told = Callable[[dict[str, Any]], None]


def train_on_workers(settings: Settings, run: Path, open_run: Callable[[], object], progress: Told) -> ray.train.Result:
    """Train in the directory `run` on the settings' workers; `progress` gets each metrics line.

    `open_run` makes the run directory, once the cluster is found to have what the settings ask for. Returns what Ray Train says of the
    last checkpoint: `update`, `checkpoint`, `worker_restarts`. RunError as `cluster` and training raise it, where a worker does not see
    `run`, where workers were killed more than `worker_failures` times, and where nodes were lost and none came within PATIENCE.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK))
    cpus, gpus = settings.threads or 1, settings.gpus_per_worker
    with cluster(settings.address, cpus * settings.workers, gpus * settings.workers):
        _require_a_place(cpus)
        open_run()
        state = run.resolve() / STATE
        shutil.rmtree(state, ignore_errors=True)  # of the run before this one
        state.mkdir()
        token = uuid.uuid4().hex
        (state / TOKEN).write_text(token)
        lines = read_metrics(run / "metrics.jsonl")
        given = {
            "settings": settings,
            "run": str(run.resolve()),
            "here": os.getcwd(),  # relative paths in the settings begin there
            "token": token,
            "restarts": next((line["worker_restarts"] for line in reversed(lines) if line.get("worker_restarts")), 0),
        }
        each = {"CPU": float(cpus), "GPU": gpus} if gpus else {"CPU": float(cpus)}
        trainer = TorchTrainer(
            _work,
            train_loop_config=given,
            scaling_config=ray.train.ScalingConfig(num_workers=settings.workers, use_gpu=gpus > 0, resources_per_worker=each),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(state),
                failure_config=ray.train.FailureConfig(max_failures=settings.worker_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                callbacks=[_OnPurpose()],
                worker_runtime_env={} if gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
            ),
        )
        tail = _Tail(run / "metrics.jsonl", progress, lines[-1]["update"] if lines else -1)
        return _fitted(trainer, settings, tail, _Room(cpus, gpus, settings.workers))


def _require_a_place(cpus: float) -> None:
    """RunError where no machine of the cluster has room for one worker."""
    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus > most:
        raise RunError(f"setting threads is {cpus:g}, and the cluster's largest machine has {most:g} CPUs: give fewer")


def _work(given: dict[str, Any]) -> None:
    """What each worker does."""
    with contextlib.suppress(OSError):
        os.chdir(given["here"])
    run, context = Path(given["run"]), ray.train.get_context()
    token = run / STATE / TOKEN
    if not token.is_file() or token.read_text() != given["token"]:
        who = f"worker {context.get_world_rank()} on {socket.gethostname()}"
        raise RunError(f"{who} does not see {run}: give an --output on a file system that all machines share under one path")
    before = ray.train.get_checkpoint()
    restarts = given["restarts"] if before is None else _told(before)["worker_restarts"] + 1

    def saved(update: int) -> None:
        where = str(run / CHECKPOINTS / f"checkpoint-{update}")
        told = {"update": update, "checkpoint": where, "worker_restarts": restarts}
        if context.get_world_rank():
            ray.train.report(told)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / TOLD).write_text(json.dumps(told))
            ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(folder))

    saved(0)  # a worker that starts after this one knows that it is another try
    train_here(given["settings"], run, True, None, saved, restarts)


def _told(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        told: dict[str, Any] = json.loads((Path(folder) / TOLD).read_text())
    return told


class _OnPurpose(ray.train.UserCallback):
    """Ends the run at an error of medenv's, which another try would meet again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller."""
        for error in worker_exceptions.values():
            if isinstance(error, MedenvError):
                raise error


@dataclasses.dataclass
class _Tail:
    """Tells the metrics lines that have come since the last look; lines that a restarted run writes again are told once."""

    file: Path
    progress: Told
    update: int
    size: int = -1

    def look(self) -> None:
        size = self.file.stat().st_size if self.file.exists() else 0
        if size == self.size:
            return
        self.size = size
        for line in read_metrics(self.file):
            if line["update"] > self.update:
                self.update = line["update"]
                self.progress(line)


@dataclasses.dataclass
class _Room:
    """Ends the wait for nodes that do not come: Ray Train would wait without end."""

    cpus: float  # of a worker
    gpus: float
    workers: int
    short: float | None = None  # since when the cluster has too little

    def look(self) -> None:
        try:
            require(ray.cluster_resources(), self.cpus * self.workers, self.gpus * self.workers)
            _require_a_place(self.cpus)
            self.short = None
        except RunError as error:
            self.short = time.monotonic() if self.short is None else self.short
            if time.monotonic() - self.short >= PATIENCE:
                raise RunError(
                    f"nodes were lost and none came in their place for {PATIENCE:g} s ({error}): --resume goes on, also with fewer workers"
                ) from error


def _fitted(trainer: TorchTrainer, settings: Settings, tail: _Tail, room: _Room) -> ray.train.Result:
    """`trainer.fit()` in a thread: this one tells the progress, and an interrupt ends it as it ends any run."""
    results: list[ray.train.Result] = []
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            results.append(trainer.fit())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK)
        tail.look()
        if thread.is_alive():
            room.look()
    if errors:
        raise _plain(errors[0], settings) from errors[0]
    return results[0]


def _plain(error: BaseException, settings: Settings) -> BaseException:
    """The error of a worker's behind Ray Train's; RunError for workers that were killed too often."""
    causes = [getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    for cause in causes:
        if isinstance(cause, MedenvError):
            return cause
    lost = [c for c in causes if isinstance(getattr(c, "health_check_failure", None), ray.exceptions.RayActorError)]
    if lost:
        why = str(lost[0].health_check_failure).splitlines()[0]
        return RunError(
            f"workers were lost more than worker_failures={settings.worker_failures} times (the last one: {why}): --resume goes on"
        )
    return error
