"""Training runs on disk: settings of a resumed run, full disks, damaged files, other versions."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from medenv.agents.doctor import make_doctor
from medenv.agents.ppo import PPO, PPOSettings
from medenv.cli import main
from medenv.errors import RunError
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.runs.run_directory import RunDirectory, read_metrics, saved_settings
from medenv.runs.settings import read_settings
from medenv.runs.training import train

KNOWLEDGE = "synthetic:8x16"
ENV = {"knowledge": KNOWLEDGE, "observe_belief": True, "max_turns": 8}
SETTINGS = PPOSettings(
    env=ENV,
    num_envs=32,
    rollout=8,
    minibatch=128,
    hidden=16,
    steps=512,
    threads=1,
    evaluate_every=1,
    evaluate_episodes=16,
    checkpoint_every=1,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(SETTINGS, run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def tables() -> Compiled:
    return compiled(knowledge_base(KNOWLEDGE), 0.02)


# Settings


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "false", "False"])
def test_settings__booleans_in_any_case(text: str) -> None:
    read = read_settings(PPOSettings, {"tensorboard": text, "env.observe_belief": text})
    assert read.tensorboard is read.env["observe_belief"] is (text.lower() == "true")


def test_resume__takes_the_settings_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_settings(PPOSettings, {"env.max_turns": "9"}, saved_settings(run)).env == ENV | {"max_turns": 9}
    before = (run / "run.json").read_bytes()
    assert main(["train", "ppo", "--output", str(run), "--resume", "steps=768", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 768
    assert (run / "run.json").read_bytes() == before  # written once
    assert [r["update"] for r in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3]
    assert main(["train", "ppo", "--output", str(run), "--resume", "entropy=0.5"]) == 2
    assert "the run's setting entropy is 0.03, this one's is 0.5" in capsys.readouterr().err
    assert main(["train", "ppo", "--output", str(run), "--resume", "--max-turns", "9"]) == 2
    assert "'max_turns': 8" in capsys.readouterr().err


def test_resume__of_nothing_starts_a_run(tmp_path: Path) -> None:
    assert saved_settings(tmp_path / "none") == saved_settings(tmp_path) == {}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run directory"):
        saved_settings(tmp_path)


@pytest.mark.parametrize(("there", "goes_on"), [("1.2.9", True), ("1.3.0", False), ("2.2.3", False)])
def test_resume__under_the_same_minor_version_only(run: Path, monkeypatch: pytest.MonkeyPatch, there: str, goes_on: bool) -> None:
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"version": there}))
    monkeypatch.setattr("medenv.__version__", "1.2.3")
    if goes_on:
        assert train(SETTINGS, run, resume=True)["steps"] == 512
    else:
        with pytest.raises(RunError, match=f"version is '{there}', this one's is '1.2.3'"):
            train(SETTINGS, run, resume=True)


# Full disks


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk__keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, replace = tmp_path / "run", os.replace

    def refuse(old: Any, new: Any) -> None:
        if Path(new).name == "checkpoint.pt" and Path(new).exists():
            full()
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises(RunError, match=r"checkpoint\.pt: No space left on device; the last checkpoint is kept, make room and"):
            train(SETTINGS, run)
    assert not list(run.rglob("*.tmp"))
    assert train(SETTINGS, run, resume=True)["steps"] == 512
    assert [r["update"] for r in read_metrics(run / "metrics.jsonl")] == [0, 1, 2]


class Full:
    """A metrics file on a disk that takes half of the line and then no more."""

    def __init__(self, file: Any) -> None:
        self.file, self.taken = file, False

    def write(self, body: Any) -> int:
        if self.taken:
            full()
        self.taken = True
        return int(self.file.write(bytes(body)[: len(body) // 2]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_full_disk__tears_a_metrics_line_at_most(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {f.name: getattr(SETTINGS, f.name) for f in fields(SETTINGS)}
    base = knowledge_base(KNOWLEDGE)
    directory = RunDirectory(run, {"kind": "ppo", "base": base.id, "fingerprint": base.fingerprint, "settings": settings}, True)
    directory.keep_metrics(2)
    directory._metrics = Full(directory._metrics)  # type: ignore[assignment]
    with pytest.raises(RunError, match=r"metrics\.jsonl: No space left on device; the last checkpoint is kept"):
        directory.log({"update": 3, "steps": 768})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunError, match=r"metrics\.jsonl: No space"):
            directory.save_checkpoint({})
    directory.close()
    assert [r["update"] for r in read_metrics(run / "metrics.jsonl")] == [0, 1, 2]


# Damaged files


def test_damaged_checkpoint__is_named(run: Path) -> None:
    (run / "final.json").unlink()
    whole = (run / "checkpoint.pt").read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], (run / "policy" / "weights.pt").read_bytes()):
        (run / "checkpoint.pt").write_bytes(content)
        with pytest.raises(RunError, match=r"checkpoint\.pt is damaged"):
            train(SETTINGS, run, resume=True)
    (run / "final.json").write_text("{")
    with pytest.raises(RunError, match=r"final\.json is damaged"):
        train(SETTINGS, run, resume=True)


def test_damaged_policy__is_named(run: Path, tables: Compiled) -> None:
    weights, about = run / "policy" / "weights.pt", run / "policy" / "policy.json"
    whole = weights.read_bytes()
    for content in (b"", b"not weights", whole[: len(whole) // 2], (run / "checkpoint.pt").read_bytes()):
        weights.write_bytes(content)
        with pytest.raises(RunError, match=r"weights\.pt is damaged"):
            make_doctor(f"ppo:{run}", tables)
    weights.write_bytes(whole)
    said = json.loads(about.read_text())
    for key in said.keys() - {"env", "version", "base"}:  # which only messages need
        about.write_text(json.dumps({k: v for k, v in said.items() if k != key}))
        with pytest.raises(RunError, match=rf"policy\.json is damaged \(KeyError: '{key}'\)"):
            make_doctor(f"ppo:{run}", tables)
    about.write_text(json.dumps(said | {"architecture": {"hidden": 3}}))
    with pytest.raises(RunError, match=r"policy\.json is damaged"):
        make_doctor(f"ppo:{run}", tables)
    about.write_text("{")
    with pytest.raises(RunError, match=r"policy\.json is damaged"):
        make_doctor(f"ppo:{run}", tables)


def test_start_of_runners__takes_no_part_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from medenv.agents.rllib import RLlibSettings
    from medenv.runs import training

    class Slow(PPO):
        def running(self) -> None:
            time.sleep(2.0)

    small = {"num_envs": 8, "rollout": 4, "minibatch": 32, "evaluate_episodes": 8, "env": {"knowledge": "synthetic:8x16"}}
    monkeypatch.setattr(training, "_learner", lambda settings: contextlib.nullcontext(Slow(PPOSettings(**small))))
    final = train(RLlibSettings(**small, seconds=1.5), tmp_path / "run")
    assert final["update"] >= 1 and final["seconds"] < 3.0


def test_engine__settings_and_runs_of_the_other_one_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", "--output", str(tmp_path / "new"), "sample_timeout=3"]) == 2
    assert "setting sample_timeout is of engine=rllib, and the engine is torch" in capsys.readouterr().err
    assert main(["train", "ppo", "--output", str(run), "--resume", "engine=rllib"]) == 2
    assert "the run's engine is torch, this one's is rllib" in capsys.readouterr().err


def test_output_in_a_job__that_goes_with_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for output, told in (("rel", True), (str(tmp_path / "abs"), False)):
        assert main(["train", "ppo", "--output", output, "num_envs=0"]) == 2
        assert ("goes with it: give --output an absolute path" in capsys.readouterr().err) == told


def test_run_that_could_not_begin__takes_back_its_own_and_nothing_else(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for path, stays in ((tmp_path / "new", False), (there, True)):
        RunDirectory(path, {}, False).take_back()
        assert path.exists() == stays and not (path / "run.json").exists()
    for name in ("run.json", "metrics.jsonl", "samples.txt"):
        run = RunDirectory(tmp_path / name, {"settings": {}}, False)
        (run.path / name).write_text(
            '{"update": 0}\n' if name == "metrics.jsonl" else "{}" if name == "samples.txt" else json.dumps(run.about)
        )
        (RunDirectory(run.path, run.about, True) if name == "run.json" else run).take_back()  # began before, learned, holds another's file
        assert (run.path / name).exists() and (run.path / "run.json").exists()
