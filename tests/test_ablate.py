"""Ablations on a Ray cluster: kills of driver and workers, cells that fail or stall, what is run again, bad plans."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ablation_fixture import PLAN, invented, write_plan

pytest.importorskip("torch")
pytest.importorskip("ray")

from medenv.cli import main
from medenv.errors import RunError
from medenv.runs import ablate as module
from medenv.runs.ablate import _at_most, ablate, selected
from medenv.runs.cells import Cell, Result, read_plan
from medenv.runs.cluster import cluster

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning")]
TABLES = ("results.csv", "results.md", "comparisons.csv", "comparisons.md", "cells.jsonl")


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """One cluster for all ablations of this process; each finds it connected and leaves it so."""
    with cluster("local", own_cpus=2):
        yield


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medenv.runs.ablation_plots.pictures", lambda found: {})


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def by_value(function: Any) -> Any:
    """So that a worker, which can't import the tests, gets the function itself."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["ablation_fixture"])
    return function


@pytest.mark.slow
@pytest.mark.cluster
def test_killed_worker__is_replaced_and_counted(tmp_path: Path, two_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 1)

    def run(cell: Cell, folder: Path) -> Result:
        folder.mkdir(parents=True, exist_ok=True)
        if (cell.environment, cell.mix, cell.seed) == ("one", "plain", 1) and not (folder / "here before").exists():
            (folder / "here before").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.mix == "plain" and cell.seed == 2 and cell.environment == "two":
            os.kill(os.getpid(), signal.SIGKILL)
        threads = {k: os.environ[k] for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")} | {"torch": str(torch_threads())}
        return invented(cell) | {"hardware": str(set(threads.values()))}

    def torch_threads() -> int:
        import torch

        return torch.get_num_threads()

    lines: list[str] = []
    progress: list[tuple[int, int]] = []
    done, found = ablate(
        write_plan(tmp_path), tmp_path / "out", progress=lambda *p: progress.append(p), tell=lines.append, run=by_value(run)
    )
    assert found is not None and found.missing == [("two", "plain", 2)]
    assert lines == ["two, plain, seed 2: its worker died 2 times, last: WorkerCrashedError"]
    assert (done.ran, done.retries) == (15, 1 + 1) and progress[-1] == (16, 16)
    assert {r["hardware"] for r in found.results.values()} == {"{'1'}"}  # one thread each
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Cells that were started again because their worker died: 1 (1 times)." in text
    assert "Missing cells: 1 of 16" in text and "- two, plain, seed 2: its worker died 2 times" in text


@pytest.mark.slow
@pytest.mark.cluster
def test_failed_and_stalled_cells__are_missing_and_the_rest_is_done(tmp_path: Path, two_cpus: None) -> None:
    fails = tmp_path / "fails"
    fails.touch()

    def run(cell: Cell, folder: Path) -> Result:
        if fails.exists() and (cell.mix, cell.seed) == ("plain", 0):
            raise ValueError("no such\nthing")
        if fails.exists() and (cell.environment, cell.mix, cell.seed) == ("one", "plain", 1):
            time.sleep(600)
        return invented(cell)

    out = tmp_path / "out"
    done, found = ablate(write_plan(tmp_path), out, timeout=3.0, run=by_value(run))
    assert found is not None and found.missing == [("one", "plain", 0), ("two", "plain", 0), ("one", "plain", 1)]
    assert done.causes["one", "plain", 0] == "ValueError: no such thing" and done.retries == 0 and done.ran == 13
    assert done.causes["one", "plain", 1] == "it took longer than its time-out of 3 s"
    assert "0.85" not in [line.split(",")[4] for line in (out / "results.csv").read_text().splitlines() if line.startswith("one,plain")]
    fails.unlink()
    done, found = ablate(write_plan(tmp_path), out, run=by_value(run))
    assert (done.cached, done.ran) == (13, 3) and found is not None and not found.missing
    assert "Unfinished" not in (out / "results.md").read_text() and [p.name for p in (out / "work").iterdir()] == ["lock"]


def test_time_out__is_no_doctors_mistake() -> None:
    with pytest.raises(RunError, match=r"longer than its time-out of 0\.2 s"), _at_most(0.2):
        while True:
            with contextlib.suppress(Exception):  # as consultations go on after what a doctor raises
                time.sleep(5)


@pytest.mark.slow
@pytest.mark.cluster
def test_killed_driver__goes_on_and_makes_the_same_tables(tmp_path: Path, two_cpus: None) -> None:
    plan = write_plan(tmp_path)
    log = tmp_path / "log"
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import ablation_fixture
from ray import cloudpickle
from medenv.runs import ablation_plots
from medenv.runs.ablate import ablate
cloudpickle.register_pickle_by_value(ablation_fixture)
ablation_plots.pictures = lambda found: {{}}
def run(cell, folder):
    with open({str(log)!r}, "a") as file:
        file.write(cell.key + "\\n")
    time.sleep(0.3)
    return ablation_fixture.invented(cell)
if __name__ == "__main__":
    print(ablate(Path({str(plan)!r}), Path(sys.argv[1]), "local", workers=2, run=run)[0])
""",
        encoding="utf-8",
    )
    command = [sys.executable, str(program)]
    killed = subprocess.Popen([*command, str(tmp_path / "out")], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list((tmp_path / "out" / "cells").glob("*.json"))) < 4:
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    there = {p.stem for p in (tmp_path / "out" / "cells").glob("*.json")}
    assert 4 <= len(there) < 16 and not (tmp_path / "out" / "results.csv").exists()
    before = log.read_text().splitlines()
    subprocess.run([*command, str(tmp_path / "out")], check=True, stdout=subprocess.DEVNULL)
    again = log.read_text().splitlines()[len(before) :]
    assert not there & set(again) and len(there) + len(set(again)) == 16  # nothing finished is run again, nothing is lost
    ablate(plan, tmp_path / "whole", run=by_value(lambda cell, folder: invented(cell)))
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


# Without a cluster


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells one after the other in this process, where the test is not about Ray."""

    def results(cells: Any, work: Path, at_once: int, timeout: Any, run: Any) -> Iterator[tuple[Cell, Result, str, int]]:
        yield from ((cell, invented(cell), "", 0) for cell in cells)

    monkeypatch.setattr(module, "_results", results)
    monkeypatch.setattr(module, "cluster", lambda *a, **k: __import__("contextlib").nullcontext({"CPU": 1.0}))


def test_cells__are_found_by_what_they_are(tmp_path: Path, in_process: None) -> None:
    out, plan = tmp_path / "out", write_plan(tmp_path)
    assert ablate(plan, out)[0].ran == 16
    assert ablate(write_plan(tmp_path, PLAN.replace("plain", "bare")), out)[0].cached == 16  # another name is the same cell
    done, found = ablate(write_plan(tmp_path, PLAN.replace("episodes = 8", "episodes = 9")), out)
    assert (done.cached, done.ran) == (0, 16) and len(list((out / "cells").iterdir())) == 32
    assert found is not None and len((out / "cells.jsonl").read_text().splitlines()) == 16  # only the plan's own
    for file in (out / "cells").iterdir():
        file.unlink()
    assert ablate(plan, out)[0].cached == 16  # cells.jsonl holds them too


def test_only__runs_a_part_and_makes_no_table(tmp_path: Path, in_process: None) -> None:
    out, plan = tmp_path / "out", write_plan(tmp_path)
    done, found = ablate(plan, out, only=("seed=1", "seed=2", "environment=two"))
    assert found is None and done.ran == 2 + 4 and not (out / "results.csv").exists()
    assert {(c.environment, c.seed) for c in selected(read_plan(plan), ("seed=1",)) if c.trainer == "ppo"} == {("one", 1), ("two", 1)}
    for wrong in ("seed=7", "seed", "mix=plain", "environment=three"):
        with pytest.raises(RunError, match="give one of seed=0"):
            ablate(plan, out, only=(wrong,))


def test_full_disk__keeps_what_is_finished(tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, left = os.replace, [3]

    def refuse(old: Any, new: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(old, new)

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(
        RunError, match=r"json: No space left on device; finished cells are kept: make room and give the same command again"
    ):
        ablate(write_plan(tmp_path), tmp_path / "out")
    monkeypatch.setattr("os.replace", replace)
    assert [p.suffix for p in (tmp_path / "out" / "cells").iterdir()] == [".json"] * 3
    assert ablate(write_plan(tmp_path), tmp_path / "out")[0].cached == 3


def test_command__exit_codes_and_json(tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    command = ["ablate", str(write_plan(tmp_path)), "--output", str(tmp_path / "out"), "--json"]
    assert main([*command, "--report-only"]) == 2 and "holds no results of" in capsys.readouterr().err
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["ran"], told["missing"], told["failed"], len(told["rows"])) == (16, 0, 0, 10)
    next((tmp_path / "out" / "cells").iterdir()).write_text("torn")
    assert main(command) == 2 and "holds no result" in capsys.readouterr().err
    results = module._results
    monkeypatch.setattr(module, "_results", lambda *a: ((c, None, "no", 0) for c, *_ in results(*a)))
    assert main(["ablate", command[1], "--output", str(tmp_path / "other")]) == 1
    said = capsys.readouterr()
    assert "unfinished: 16 cells are missing" in said.err and "two, plain, seed 2: no" in said.err and "missing: 16" in said.out
    with module.locked(tmp_path / "out" / "work" / "lock"):
        assert main(command) == 2
    assert "in use by another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds = [0, 1, 2]", "seeds = []", "give a list of different integers"),
        ("seeds = [0, 1, 2]", "seeds = [1, 1]", "give a list of different integers"),
        ("front = true", "fornt = true", "unknown key 'fornt'; did you mean 'front'?"),
        ('baseline = "plain"', 'baseline = "plane"', "unknown baseline 'plane'; did you mean 'plain'?"),
        ('baseline = "plain"', 'baseline = ["plain", "plane"]', "unknown baseline 'plane'"),
        ('baseline = "plain"', "baseline = []", "unknown baseline '[]'"),
        ('plain = "accuracy"', 'plain = "acuracy"', "did you mean 'accuracy'?"),
        ('plain = "accuracy"', 'plain = "accuracy"\nplain = "accuracy"', "is not TOML"),
        ('"synthetic:8x16"\nnoise', '"synthetic:8by16"\nnoise', "synthetic:8by16"),
        ("noise = 0.1", "noize = 0.1", "environment two: unknown environment argument 'noize'; did you mean 'noise'?"),
        ("noise = 0.1", 'reward = "accuracy"', "reward is not an environment's"),
        ("noise = 0.1", "settings.rolout = 8", "unknown key of settings 'rolout'; did you mean 'rollout'?"),
        ("settings.steps = 64", "settings.stebs = 64", "unknown key of settings 'stebs'; did you mean 'steps'?"),
        ("settings.steps = 64", "settings.seed = 64", "unknown key of settings 'seed'"),
        ("settings.steps = 64", "settings.steps = 64\nstart.steps = 64", "the trainer is 'ppo': leave it out"),
    ],
)
def test_bad_plans__are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, said: str) -> None:
    assert before in PLAN
    plan = write_plan(tmp_path, PLAN.replace(before, after))
    assert main(["ablate", str(plan), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "cells").exists()
