"""Training runs: the run directory (settings, versions, metrics, checkpoints), and PPO driven through it.

    RUN/run.json        settings, versions, base fingerprint: written once, when the run starts
    RUN/metrics.jsonl   one line per update; after a resume no update is missing and none appears twice
    RUN/checkpoint.pt   everything that the next update depends on
    RUN/policy/         what `ppo:RUN` loads
    RUN/final.json      the last metrics; its presence says that the run is finished
    RUN/curve.png       the learning curve, where matplotlib is installed

A checkpoint replaces the one before it whole (temporary file, fsync, rename), so a run that is killed at any moment continues from
the last one; with `steps` as budget it ends, on one machine, with the same parameters as a run that was never killed. A run goes on
under the medenv version that started it, or another with the same first two numbers; any other is an error that names both.

Does not cover: learning itself (`medenv.agents.ppo`), evaluation on test cases, and clusters.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import json
import math
import os
import platform
import time
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch

import medenv
from medenv.agents.policy import DAMAGED, policy_files
from medenv.agents.ppo import PPO, PPOSettings
from medenv.errors import RunError
from medenv.runs.plots import plot_learning_curve
from medenv.runs.records import TEMPORARY, write_all, write_atomically

S = TypeVar("S")
Progress = Callable[[dict[str, Any]], None]

FORMAT = 1  # of the run directory
DEFAULT_SECONDS = 300.0
CHANGEABLE = ("seconds", "steps", "tensorboard", "wandb")  # settings that a resumed run may change
FULL = "the last checkpoint is kept, make room and give --resume"

GLOSSARY: dict[str, tuple[str, str, str]] = {  # key: (formula or meaning, healthy range, what a bad value means)
    "update": ("rollouts learned from", "rises by one", "a gap: lines were lost"),
    "steps": ("environment steps", "rises by num_envs · rollout", "-"),
    "seconds": ("time spent, with validation and the earlier parts of a resumed run", "-", "-"),
    "steps_per_second": ("of this update, learning included", "steady", "falling: the machine is shared, or too many threads"),
    "return": ("mean over consultations that ended, the environment's own mix", "rises", "flat: raise entropy or gain_bonus"),
    "accuracy": ("their share of right diagnoses", "rises", "high while return falls: questions cost more than they bring"),
    "questions": ("their mean number of questions", "falls, then settles", "near 0 early: it stops at once; lower gate_start"),
    "policy_loss": ("-mean min(r A, clip(r) A)", "-0.05 to 0", "above 0: learning_rate too high"),
    "value_loss": ("mean (V - return)^2 / 2", "falls", "rises for long: learning_rate too high"),
    "explained_variance": ("1 - var(return - V) / var(return)", "0.2 to 0.9", "below 0: worse than a constant"),
    "entropy": ("H(gate) + P(ask) H(question) + P(stop) H(diagnosis), nats", "falls slowly", "0 within minutes: raise entropy"),
    "approx_kl": ("mean r - 1 - log r", "0.002 to 0.03", "above 0.1: lower learning_rate or epochs"),
    "clip_fraction": ("share of transitions with |r - 1| > clip", "0.02 to 0.3", "above 0.4: as approx_kl"),
    "grad_norm": ("mean norm before clipping", "0.05 to 2", "explodes: lower learning_rate"),
    "tracker_loss": ("-mean log P(truth) of the policy's own belief, nats", "falls below log D", "flat: raise tracker_rate"),
    "stop_rate": ("share of transitions that stop", "near 1 / (questions + 1)", "near 1: it stops at once"),
    "unscored": ("transitions left out, a reward could not be scored", "0", "above 0: a component fails"),
    "learning_rate": ("Adam's, annealed", "-", "-"),
    "entropy_coefficient": ("annealed", "-", "-"),
    "gain_bonus": ("training reward per nat, annealed", "-", "-"),
    "imitation_accuracy": ("share of greedy's actions matched at the end of cloning", "above 0.6", "low: clone for longer"),
    "imitation_seconds": ("time spent cloning", "-", "-"),
    "imitation_steps": ("environment steps spent cloning, not in steps", "-", "-"),
    "validation_return": ("mean on the fixed validation cases, greedy decoding", "rises", "below return: sampling does better"),
    "validation_accuracy": ("share of right diagnoses on them", "rises", "-"),
    "validation_questions": ("mean number of questions on them", "settles", "max_turns - 1: the gate never opens"),
}


def train(settings: PPOSettings, output: Path, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train PPO into the run directory `output`; returns the final metrics (see GLOSSARY).

    `progress` gets each metrics line. With `resume` the run in `output` goes on from its last checkpoint (an empty or missing
    directory starts one; a finished run returns its metrics). RunError: a directory that is not empty without `resume`, one of
    another version (see the module), base or settings (but `CHANGEABLE` ones), a damaged file, a full disk, or a setting out of range.
    """
    _check(settings)
    with _threads(settings.threads):
        learner = PPO(settings)
        base = learner.tables.base
        chosen = _plain({f.name: getattr(settings, f.name) for f in fields(settings)})
        about = {"kind": "ppo", "base": base.id, "fingerprint": base.fingerprint, "settings": chosen}
        run = RunDirectory(Path(output), about, resume, CHANGEABLE)
        finished = run.final(settings)
        if finished is not None:
            return finished
        run.track(settings.tensorboard, settings.wandb)
        try:
            final = _train(learner, settings, run, progress or (lambda record: None))
        finally:
            run.close()
    if importlib.util.find_spec("matplotlib"):
        plot_learning_curve(read_metrics(run.path / "metrics.jsonl"), run.path / "curve.png")
    return final


def _train(learner: PPO, settings: PPOSettings, run: RunDirectory, progress: Progress) -> dict[str, Any]:
    state = run.checkpoint()
    update, steps, spent = 0, 0, 0.0
    if state is not None:
        try:
            learner.load(state["learner"])
            update, steps, spent = state["update"], state["steps"], state["seconds"]
        except DAMAGED as error:
            raise run.damaged("checkpoint.pt", error) from error
    run.keep_metrics(update if state is not None else -1)
    started = time.perf_counter() - spent

    def record(metrics: Mapping[str, float]) -> None:
        line = {"update": update, "steps": steps, "seconds": round(time.perf_counter() - started, 3), **metrics}
        run.log(line)
        progress(line)

    def save() -> None:
        base = learner.tables.base
        run.save_files(policy_files(learner.policy, learner.tracker, base.fingerprint, base.id, _plain(settings.env)), "policy")
        run.save_checkpoint({"learner": learner.state(), "update": update, "steps": steps, "seconds": time.perf_counter() - started})

    if state is None:
        cloned = learner.imitate(settings.imitate) if settings.imitate > 0 else {}
        record(cloned | learner.validate())
        save()
    while (share := _spent(settings, steps, time.perf_counter() - started)) < 1.0:
        metrics = learner.update(share)
        update, steps = update + 1, steps + settings.num_envs * settings.rollout
        done = _spent(settings, steps, time.perf_counter() - started) >= 1.0
        if done or update % settings.evaluate_every == 0:
            metrics |= learner.validate()
        record(metrics)
        if done or update % settings.checkpoint_every == 0:
            save()
    return run.finish()


def read_settings(kind: type[S], table: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> S:
    """Settings (a dataclass) from a TOML table or from `key=value` texts; `env.max_turns` reaches into the table `env`.

    Texts are read as TOML values, or as they stand. `start`: settings under those of `table`, such as `saved_settings` of a run that
    is resumed. RunError for an unknown key, with the closest one, and for a wrong type.
    """
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in (*(start or {}).items(), *table.items()):
        name, _, inner = key.partition(".")
        if name not in types:
            close = difflib.get_close_matches(name, types, n=1, cutoff=0.4)
            raise RunError(f"unknown setting {key!r}{f'; did you mean {close[0]!r}?' if close else ''} (known: {', '.join(sorted(types))})")
        value = _parsed(value) if isinstance(value, str) and types[name] is not str else value
        if inner:
            value = {**values.get(name, {}), inner: value}
        elif isinstance(value, Mapping):
            value = {**values.get(name, {}), **value}
        values[name] = _typed(key, value, types[name])
    return kind(**values)


def saved_settings(path: Path) -> dict[str, Any]:
    """The settings that the run in `path` was started with, empty where there is none. RunError as for a run that is resumed."""
    settings: dict[str, Any] = _saved(path)["settings"] if _holds_files(path) else {}
    return settings


class RunDirectory:
    """One run on disk. `about`: kind, base, fingerprint, settings; versions are added. Any trainer can use it."""

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool, changeable: tuple[str, ...] = ()) -> None:
        self.path = path
        self.about: dict[str, Any] = {"format": FORMAT, "version": medenv.__version__, **about, "libraries": _versions()}
        if _holds_files(path):
            if not resume:
                raise RunError(f"{path} is not empty: resume the run in it, or name another directory")
            self._check_same(changeable)
        else:
            write_atomically(path / "run.json", json.dumps(self.about, indent=2) + "\n")
        self._metrics: io.FileIO | None = None
        self._trackers: list[tuple[Callable[[dict[str, Any]], Any], Callable[[], Any]]] = []

    def _check_same(self, changeable: tuple[str, ...]) -> None:
        saved = _saved(self.path)
        for key in ("kind", "base", "fingerprint"):
            if saved.get(key) != self.about[key]:
                raise RunError(f"{self.path}: the run's {key} is {saved.get(key)!r}, this one's is {self.about[key]!r}: start a new run")
        old, new = saved["settings"], self.about["settings"]
        for key in sorted(old.keys() | new.keys()):
            if key not in changeable and old.get(key) != new.get(key):
                seen = f"the run's setting {key} is {old.get(key)!r}, this one's is {new.get(key)!r}"
                raise RunError(f"{self.path}: {seen}: resume with the run's own, or start a new run")

    def final(self, settings: PPOSettings) -> dict[str, Any] | None:
        """The final metrics if the run is finished and the budget asks for no more, else None."""
        if not (self.path / "final.json").exists():
            return None
        try:
            metrics: dict[str, Any] = json.loads((self.path / "final.json").read_text())
            return metrics if _spent(settings, metrics["steps"], metrics["seconds"]) >= 1.0 else None
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

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Metrics reach the disk first, so that no checkpoint is ahead of them."""
        if self._metrics is not None:
            with self._room():
                os.fsync(self._metrics.fileno())
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


def _spent(settings: PPOSettings, steps: int, seconds: float) -> float:
    """Share of the budget that is used up."""
    shares = [] if settings.seconds is None else [seconds / settings.seconds]
    shares += [] if settings.steps is None else [steps / settings.steps]
    return max(shares) if shares else seconds / DEFAULT_SECONDS


_AT_LEAST = {
    "num_envs": 1, "rollout": 1, "minibatch": 1, "epochs": 1, "hidden": 1, "threads": 1, "evaluate_every": 1, "evaluate_episodes": 1,
    "checkpoint_every": 1, "seconds": 1e-3, "steps": 1, "seed": 0, "learning_rate": 0, "tracker_rate": 0, "clip": 0, "entropy": 0,
    "gain_bonus": 0, "imitate": 0,
}  # fmt: skip


def _check(settings: PPOSettings) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise RunError(f"setting {name} is {value!r}: give a number of at least {least}")
    for name in ("gamma", "gae_lambda", "learning_rate_end", "entropy_end", "gain_bonus_until"):
        if not 0.0 <= getattr(settings, name) <= 1.0:
            raise RunError(f"setting {name} is {getattr(settings, name)!r}: give a number in [0, 1]")
    if settings.wandb not in ("off", "offline", "online"):
        raise RunError(f"setting wandb is {settings.wandb!r}: choose off, offline or online")


def _parsed(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(key: str, value: Any, wanted: Any) -> Any:
    kinds = typing.get_args(wanted) or (wanted,)
    plain = tuple(typing.get_origin(k) or k for k in kinds) if wanted is not dict else (dict,)
    if typing.get_origin(wanted) is dict:
        plain = (dict,)
    if float in plain and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in plain and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        names = " or ".join("none" if k is type(None) else k.__name__ for k in plain)
        raise RunError(f"setting {key} is {value!r}: give {names}")
    return value


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold; an object (a knowledge base, a list of cases) becomes its own short text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else f"{type(value).__name__}"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "gymnasium": gymnasium.__version__}


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's thread count is one for the whole process: it is put back."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
