"""One training run on disk, whatever trains: settings, metrics, checkpoints, trackers; it survives a kill at any moment.

    RUN/run.json        settings, versions, base fingerprint: written once, when the run starts
    RUN/metrics.jsonl   one line per update; after a resume no update is missing and none appears twice
    RUN/checkpoint.pt   everything that the next update depends on (language models: RUN/checkpoints, see `finetuning`)
    RUN/policy/         what `ppo:RUN`, `sft:RUN` and `grpo:RUN` load
    RUN/final.json      the last metrics; its presence says that the run is finished

A checkpoint replaces the one before it whole (temporary file, fsync, rename). A run goes on under the medenv version that started it,
or another with the same first two numbers; any other is an error that names both.

Does not cover: what is trained, and when a checkpoint is due (`medenv.runs.training`).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import medenv
from medenv.agents.policy import DAMAGED
from medenv.errors import RunError
from medenv.runs.records import TEMPORARY, write_all, write_atomically

FORMAT = 1  # of the run directory
FULL = "the last checkpoint is kept, make room and give --resume"


class RunDirectory:
    """One run on disk. `about`: kind, base, fingerprint, settings; versions are added. Any trainer can use it."""

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool, changeable: tuple[str, ...] = ()) -> None:
        self.path = path
        self.about: dict[str, Any] = {"format": FORMAT, "version": medenv.__version__, **about, "libraries": _versions()}
        self.began, self.made = _holds_files(path), not path.exists()  # the run before this object; the directory by it
        if self.began:
            if not resume:
                raise RunError(f"{path} is not empty: resume the run in it, or name another directory")
            self._check_same(changeable)
        else:
            write_atomically(path / "run.json", json.dumps(self.about, indent=2) + "\n")
        self._metrics: io.FileIO | None = None
        self._trackers: list[tuple[Callable[[dict[str, Any]], Any], Callable[[], Any]]] = []

    def take_back(self, *folders: str) -> None:
        """Remove what was written of a run that could not begin, `folders` too. What holds a line of metrics, or anything else, stays."""
        own = {"run.json", "metrics.jsonl", *folders}
        if self.began or read_metrics(self.path / "metrics.jsonl") or any(p.name not in own for p in self.path.iterdir()):
            return
        self.close()
        for name in own:
            if name in folders:
                shutil.rmtree(self.path / name, ignore_errors=True)
            else:
                (self.path / name).unlink(missing_ok=True)
        if self.made:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _check_same(self, changeable: tuple[str, ...]) -> None:
        saved = _saved(self.path)
        for key in [k for k in ("kind", "base", "fingerprint", "inputs") if k in self.about]:
            if saved.get(key) != self.about[key]:
                raise RunError(f"{self.path}: the run's {key} is {saved.get(key)!r}, this one's is {self.about[key]!r}: start a new run")
        old, new = saved["settings"], self.about["settings"]
        for key in sorted(old.keys() | new.keys()):
            if key not in changeable and old.get(key) != new.get(key):
                seen = f"the run's setting {key} is {old.get(key)!r}, this one's is {new.get(key)!r}"
                raise RunError(f"{self.path}: {seen}: resume with the run's own, or start a new run")

    def final(self, over: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """The final metrics if the run is finished and these say that it is `over` under the budget of today; else None."""
        if not (self.path / "final.json").exists():
            return None
        try:
            metrics: dict[str, Any] = json.loads((self.path / "final.json").read_text())
            return metrics if over(metrics) else None
        except DAMAGED as error:
            raise self.damaged("final.json", error) from error

    def checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, None before the first. RunError for a damaged one."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        content = io.BytesIO(file.read_bytes())  # given the file, torch raises OSError for a cut one too
        try:
            state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
            return state
        except DAMAGED as error:
            raise self.damaged(file.name, error) from error

    def damaged(self, name: str, error: Exception) -> RunError:
        """The error for a file of the run that can't be read."""
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return RunError(f"{self.path / name} is damaged or another run's ({why[:100]}): put back a copy of it, or start a new run")

    def sync(self) -> None:
        """Metrics reach the disk."""
        if self._metrics is not None:
            with self._room():
                os.fsync(self._metrics.fileno())

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Metrics reach the disk first, so that no checkpoint is ahead of them."""
        self.sync()
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.path / "checkpoint.pt", buffer.getvalue(), FULL)

    def save_files(self, files: Mapping[str, bytes], folder: str) -> None:
        """Write files into a folder of the run, each atomically."""
        for name, content in files.items():
            write_atomically(self.path / folder / name, content, FULL)

    def keep_metrics(self, update: int) -> None:
        """Drop metrics lines after `update` and a torn last line, and open the file for more."""
        file = self.path / "metrics.jsonl"
        kept = [line for line in read_metrics(file) if line["update"] <= update]
        write_atomically(file, "".join(_line(record) for record in kept), FULL)
        (self.path / "final.json").unlink(missing_ok=True)
        self._metrics = open(file, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)

    def track(self, tensorboard: bool, wandb: str) -> None:
        """Send metrics to TensorBoard and Weights & Biases too."""
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self.path / "tensorboard"))

            def send(record: dict[str, Any]) -> None:
                for key, value in record.items():
                    if value is not None:
                        writer.add_scalar(key, value, record["update"])

            self._trackers.append((send, writer.close))
        if wandb != "off":
            import wandb as client

            name = self.path.resolve().name
            tracked = client.init(project="medenv", name=name, dir=str(self.path), mode=wandb, config=self.about)  # type: ignore[arg-type]
            self._trackers.append((lambda r: tracked.log(r, step=r["update"]), tracked.finish))

    def log(self, record: dict[str, Any]) -> None:
        """Append one metrics line. A number that is not finite is written as null."""
        assert self._metrics is not None, "keep_metrics() opens the file"
        with self._room():
            write_all(self._metrics, _line(record).encode())
        for send, _ in self._trackers:
            send(record)

    def finish(self) -> dict[str, Any]:
        """Write and return the final metrics: the last value of every key."""
        final: dict[str, Any] = {}
        for record in read_metrics(self.path / "metrics.jsonl"):
            final |= record
        write_atomically(self.path / "final.json", json.dumps(final, indent=2) + "\n", FULL)
        return final

    def close(self) -> None:
        """Close the metrics file and the trackers."""
        for _, end in self._trackers:
            end()
        self._trackers = []
        if self._metrics is not None:
            self._metrics.close()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """A metrics line that does not fit is a RunError; what was written of it is a torn line, which a resumed run drops."""
        try:
            yield
        except OSError as error:
            raise RunError(f"could not write {self.path / 'metrics.jsonl'}: {error.strerror or error}; {FULL}") from error


def saved_settings(path: Path) -> dict[str, Any]:
    """The settings that the run in `path` was started with, empty where there is none. RunError as for a run that is resumed."""
    settings: dict[str, Any] = _saved(path)["settings"] if _holds_files(path) else {}
    return settings


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The metrics lines of a run; a torn last line is left out. RunError if another line is damaged."""
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    out: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            out.append(json.loads(line))
        except ValueError:
            raise RunError(f"{file}, line {number} is not JSON: {line[:60]!r}; the file was edited or the disk is damaged") from None
    return out


def _holds_files(path: Path) -> bool:
    """Whether there is a directory with anything in it but a file that was cut while it was written."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file: name a directory for the run")
    return path.is_dir() and any(not p.name.endswith(TEMPORARY) for p in path.iterdir())


def _saved(path: Path) -> dict[str, Any]:
    """The run.json of a run that may be resumed under this version."""
    try:
        saved: dict[str, Any] = json.loads((path / "run.json").read_text())
        found, version = saved["format"], str(saved["version"])
        dict(saved["settings"])
    except (FileNotFoundError, *DAMAGED):
        raise RunError(f"{path} is not empty and holds no readable run.json: it is not a run directory, name another") from None
    if found != FORMAT:
        raise RunError(f"{path}: the run's format is {found!r}, this one's is {FORMAT!r}: start a new run")
    if version.split(".")[:2] != medenv.__version__.split(".")[:2]:
        here = f"this one's is {medenv.__version__!r}"
        raise RunError(f"{path}: the run's version is {version!r}, {here}: resume under medenv {version}, or start a new run")
    return saved


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}) + "\n"


def plain(value: Any) -> Any:
    """What JSON can hold; an object (a knowledge base, a list of cases) becomes its own short text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else f"{type(value).__name__}"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "gymnasium": gymnasium.__version__}
