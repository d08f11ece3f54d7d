"""The commands `medenv train ppo|sft|grpo`: settings from files and KEY=VALUE, a run's folder, small settings for --smoke.

Does not cover: training (`medenv.runs.training`, `medenv.runs.finetuning`), other commands (`medenv.cli`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from medenv.cli_support import (
    emit,
    environment_options,
    json_option,
    note,
    note_where,
    output_option,
    print_table,
    read_toml,
    training_progress,
)
from medenv.errors import RunError

SMOKE = {"num_envs": 64, "rollout": 8, "steps": 1536, "minibatch": 256, "evaluate_every": 1, "evaluate_episodes": 128}
_SMALL = {"env": {"knowledge": "scope:12", "max_turns": 6}, "evaluate_episodes": 32, "threads": 1}
_EVERY = {"evaluate_every": 40, "checkpoint_every": 40}
SMOKE_SFT = {
    **_SMALL, **_EVERY, "steps": 80, "demonstrations": 400, "hidden": 48, "layers": 2, "heads": 2, "vocabulary": 400, "max_new_tokens": 24,
    "learning_rate": 8e-3, "learning_rate_end": 0.3,
}  # fmt: skip
SMOKE_GRPO = {**_SMALL, "steps": 4, "batch": 32, "evaluate_every": 2, "checkpoint_every": 2, "max_new_tokens": 24}


@click.group()
def train() -> None:
    """Train a doctor."""


def _training(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and the options that every `train` command has."""
    for option in (
        json_option,
        output_option,
        click.option("--smoke", is_flag=True, help="A run of seconds, to see that everything works."),
        click.option("--resume", is_flag=True, help="Go on with the run in --output, with its settings; its budget may be given anew."),
        environment_options,
        click.argument("settings", nargs=-1, metavar="[CONFIG.toml] [KEY=VALUE]..."),
    ):
        command = option(command)
    return command


Asked = tuple[tuple[str, ...], dict[str, Any], bool, bool, Path | None]


def _read(kind: Callable[[str], type], name: str, asked: Asked, small: Mapping[str, Any]) -> tuple[Any, Path]:
    """The settings that a `train` command was given, and the run's folder. `kind`: their class, by `engine`, imported when called."""
    from medenv.runs.cluster import LOCAL, check_address
    from medenv.runs.run_directory import saved_settings
    from medenv.runs.settings import read_settings

    texts, arguments, resume, smoke, output = asked
    folder = output or Path("runs") / (f"smoke-{name}" if smoke else name)
    note_where(folder)
    start = saved_settings(folder) if resume else {}
    table: dict[str, Any] = dict(small) if smoke and not start else {}
    for text in texts:
        key, equals, value = text.partition("=")
        table |= {key: value} if equals else read_toml(Path(text))
    for key, value in arguments.items():
        table[f"env.{key}"] = value
    engine = str(table.get("engine", start.get("engine", "torch")))
    if name == "ppo":
        _check_engine(engine, table, start)
    address = str(table.get("address", ""))
    if address not in ("", LOCAL) and (name, engine) != ("ppo", "torch"):
        check_address(address)  # here, before anything heavy is imported
    return read_settings(kind(engine), table, start), folder


def _check_engine(engine: str, table: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """RunError for settings of the other engine, and for a resumed run of it."""
    from medenv.runs.cluster import PLACES

    if start and start.get("engine", "torch") != engine:
        raise RunError(f"the run's engine is {start.get('engine', 'torch')}, this one's is {engine}: resume with the run's own")
    for key in table if engine == "torch" else ():
        if key in PLACES:
            raise RunError(f"setting {key} is of engine=rllib, and the engine is torch: give engine=rllib too, or leave it out")


def _ppo(engine: str) -> type:
    from medenv.runs.training import settings_class

    return settings_class(engine)


def _sft(engine: str) -> type:
    from medenv.agents.sft import SFTSettings

    return SFTSettings


def _grpo(engine: str) -> type:
    from medenv.agents.grpo import GRPOSettings

    return GRPOSettings


def _trained(folder: Path, final: Mapping[str, Any], as_json: bool, *more: str) -> None:
    kept = ("update", "steps", "seconds", "validation_return", "validation_accuracy", "validation_questions", *more)
    rows: list[list[Any]] = [["run", str(folder)], *([k, final.get(k)] for k in kept)]
    emit({"run": str(folder)} | dict(final), as_json, lambda: print_table("", ["key", "value"], rows))


def _tell_crowd(processes: float, address: str) -> None:
    """A cluster of the run's own declares as many CPUs as are asked for, though the machine has fewer."""
    from medenv.runs.cluster import LOCAL, resolved
    from medenv.runs.provenance import cores

    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if processes > cores() and resolved(address) == LOCAL and not connected:
        note(f"{processes:g} processes share this machine's {cores()} CPUs: fewer would be as fast, or faster")


def _tell_workers(chosen: Any) -> None:
    from medenv.agents.finetuning import on_ray

    if on_ray(chosen):
        each = f"{chosen.gpus_per_worker:g} GPU each" if chosen.gpus_per_worker else "on CPUs"
        note(f"trains with Ray: workers {chosen.workers}, {each}; batch {chosen.batch} is over all of them")
        _tell_crowd(chosen.workers, chosen.address)


@train.command("ppo")
@_training
def train_ppo(settings: tuple[str, ...], arguments: dict[str, Any], resume: bool, smoke: bool, output: Path | None, as_json: bool) -> None:
    """Proximal policy optimisation. Keys are the fields of medenv.agents.ppo.PPOSettings; env.NAME reaches the environment.

    engine=rllib trains on a Ray cluster, with the further keys of medenv.agents.rllib.RLlibSettings: num_env_runners, num_learners,
    gpus_per_learner, address, …
    """
    chosen, folder = _read(_ppo, "ppo", (settings, arguments, resume, smoke, output), SMOKE)
    from medenv.runs.training import train as train_

    if chosen.engine == "rllib":
        _tell_crowd(chosen.num_env_runners + chosen.num_learners, chosen.address)
    with training_progress(chosen.seconds, chosen.steps) as advance:
        final = train_(chosen, folder, resume=resume, progress=advance)
    _trained(folder, final, as_json)


@train.command("sft")
@_training
def train_sft(settings: tuple[str, ...], arguments: dict[str, Any], resume: bool, smoke: bool, output: Path | None, as_json: bool) -> None:
    """Supervised fine-tuning of a language-model doctor, from scratch or any Hugging Face model (model=DIR_OR_NAME, lora=RANK).

    Keys are the fields of medenv.agents.sft.SFTSettings; env.NAME reaches MedConsultText-v0. workers=N trains with Ray (gpus_per_worker=1,
    address=HOST:PORT).
    """
    chosen, folder = _read(_sft, "sft", (settings, arguments, resume, smoke, output), SMOKE_SFT)
    from medenv.runs.finetuning import train as train_

    _tell_workers(chosen)
    with training_progress(chosen.seconds, chosen.steps) as advance:
        final = train_(chosen, folder, resume=resume, progress=advance)
    _trained(folder, final, as_json, "validation_loss", "validation_repeat_rate")


@train.command("grpo")
@_training
def train_grpo(settings: tuple[str, ...], arguments: dict[str, Any], resume: bool, smoke: bool, output: Path | None, as_json: bool) -> None:
    """GRPO of a language-model doctor with credit for each turn, from a doctor that can hold a consultation (model=RUN_DIR).

    Keys are the fields of medenv.agents.grpo.GRPOSettings; env.NAME reaches MedConsultText-v0. workers=N trains with Ray
    (gpus_per_worker=1, address=HOST:PORT). With --smoke and no model, a small one is trained first, beside the run.
    """
    chosen, folder = _read(_grpo, "grpo", (settings, arguments, resume, smoke, output), SMOKE_GRPO)
    from medenv.runs.finetuning import train as train_

    if smoke and not chosen.model:
        start = folder.with_name(f"{folder.name}-start")
        first, _ = _read(_sft, "sft", ((), arguments, True, True, start), SMOKE_SFT)
        train_(first, start, resume=True)
        chosen.model = str(start)
    _tell_workers(chosen)
    with training_progress(chosen.seconds, chosen.steps) as advance:
        final = train_(chosen, folder, resume=resume, progress=advance)
    _trained(folder, final, as_json, "validation_repeat_rate", "kl", "skipped_groups", "failed")
