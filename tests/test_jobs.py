"""Jobs on a Ray cluster: what goes along, what is said where it can't work, the launch files that ship, and clusters that are lost."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("ray")

from cluster_fixture import ROOT, RayCluster, ended, free_port, ray_cluster, start

from medenv.cli import cli, main
from medenv.errors import RunError
from medenv.runs import jobs
from medenv.runs.jobs import DEFAULT_ADDRESS, EXCLUDES, check_directory, submit
from medenv.runs.run_directory import read_metrics

CLUSTER = ROOT / "experiments" / "cluster"
LAUNCH = sorted(p.name for p in CLUSTER.glob("*.sh"))
PPO = ["steps=1024", "num_envs=64", "rollout=8", "evaluate_episodes=32", "env.knowledge=synthetic:8x16"]
SFT = [
    "steps=2",
    "demonstrations=16",
    "hidden=16",
    "layers=1",
    "heads=2",
    "vocabulary=300",
    "batch=4",
    "micro_batch=4",
    "evaluate_episodes=4",
]
SFT += ["env.knowledge=scope:12", "env.max_turns=4", "max_new_tokens=8", "threads=1", "workers=1", "gpus_per_worker=0"]
RLLIB = ["num_env_runners=1", "num_learners=0", "gpus_per_learner=0"]  # with a minibatch, the default, above the batch
GRPO = [*SFT[SFT.index("batch=4") :], "batch=8", "group=4", "steps=1", "lora=4", "vllm=off", "context=1024"]
PLAN = """
title = "A test."
trainer = "ppo"
seeds = [0]
episodes = 8
judge = "accuracy - 0.01*question_cost"
baseline = "plain"
settings.steps = 512
settings.num_envs = 64
settings.rollout = 8
settings.evaluate_episodes = 8
[environments.one]
knowledge = "synthetic:8x16"
[mixes]
plain = "accuracy"
"""
STEPS = {"ppo": 1024, "ppo-rllib": 1024, "sft": 2, "grpo": 1}
OUTSIDE = """
import json, sys, time
from pathlib import Path
import ray
from medenv.runs.cluster import cluster
here = Path(sys.argv[2])
with cluster(sys.argv[1], cpus=6):
    (here / "medenv").rename(here / "gone")  # as on another machine: Ray's workers look where the driver's own modules lie, too
    @ray.remote(num_cpus=1)
    def task(n):
        import medenv
        (here / f"running{n}").touch()
        while not (here / "go").exists():
            time.sleep(0.1)
        return n, medenv.__file__
    print(json.dumps(ray.get([task.remote(n) for n in range(6)], timeout=90)))
"""


# Without a cluster


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A directory that holds a package medenv, and what must not go along."""
    for name in ("medenv/__init__.py", "medenv/runs/jobs.py", "runs/ppo/checkpoint.pt", ".git/HEAD", ".env", "medenv/x.pyc", "big/file"):
        (tmp_path / "dir" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dir" / name).write_bytes(b"x" * 1000)
    (tmp_path / "dir" / "medenv" / "loop").symlink_to("..")
    (tmp_path / "dir" / "agents").symlink_to("medenv")
    return tmp_path / "dir"


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def refusing(code: int) -> Iterator[str]:
    """The address of a server that answers every request with an HTTP error."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(code)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--address", "http://127.0.0.1:1"], "no job server answers at http://127.0.0.1:1"),
        (["--address", "127.0.0.1:6379"], "'127.0.0.1:6379' is no address of a job server"),
        (["--address", "http://127.0.0.1:notaport"], "no job server answers at"),
        (["--working-dir", "missing"], "'missing' is no directory"),
        (["--working-dir", "experiments"], "'experiments' holds no package medenv"),
    ],
)
def test_submit__bad_input_is_one_line_and_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["submit", *arguments, "--", "medenv", "list"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_submit__without_a_command_says_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit"]) == 2
    assert "put it behind --" in capsys.readouterr().err


def test_submit__a_server_that_says_nothing_is_given_up(silence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.2)
    with pytest.raises(RunError, match=r"no job server answers at .*timed out"):
        submit(["medenv", "list"], silence, ROOT)


@pytest.mark.parametrize(
    ("code", "words"),
    [(401, r"refuses without its token .* set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"), (404, r"is no Ray job server \(404\)")],
)
def test_submit__a_server_that_refuses_is_told_why(code: int, words: str) -> None:
    with refusing(code) as address, pytest.raises(RunError, match=words):
        submit(["medenv", "list"], address, ROOT)


def test_directory__too_large_names_what_is(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LIMIT", 2500)
    with pytest.raises(RunError, match=r"would upload .* \(medenv 0 MiB, big 0 MiB\).* --exclude some"):
        check_directory(package, False, EXCLUDES)
    assert check_directory(package, False, [*EXCLUDES, "/big"])


@pytest.mark.parametrize("pattern", ["big", "/big", "big/", "/big/", "big/*", "**/big", "big/file", "f[i]le", "**/big/file", "!no", "ig"])
def test_excludes__are_those_of_a_gitignore(package: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LIMIT", 2001)  # medenv's two files, and not big/file
    if pattern in ("!no", "ig"):
        with pytest.raises(RunError, match="would upload"):
            check_directory(package, False, [*EXCLUDES, pattern])
    else:
        check_directory(package, False, [*EXCLUDES, pattern])


def test_directory__links_are_left_out_wherever_they_are(package: Path) -> None:
    assert check_directory(package, False, EXCLUDES) == [*EXCLUDES, "/medenv/loop"]
    assert "/agents" in check_directory(package, False, [])


def test_directory__without_the_package_is_for_clusters_that_have_it(tmp_path: Path) -> None:
    assert check_directory(tmp_path, True, EXCLUDES) == EXCLUDES
    with pytest.raises(RunError, match="--installed"):
        check_directory(tmp_path, False, EXCLUDES)


def test_address__ray_address_counts_where_it_is_a_job_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert jobs._server("") == DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265/")
    assert jobs._server("") == "http://10.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://other")
    assert jobs._server("") == "https://other" and jobs._server("http://mine:1") == "http://mine:1"


def test_runtime_env_file__leaves_out_what_submit_leaves_out() -> None:
    assert yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text()) == {"excludes": EXCLUDES}


def launched(name: str) -> list[str]:
    """The words behind `medenv submit --` in a launch file."""
    text = (CLUSTER / name).read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^exec medenv submit -- medenv (.*)$", text, re.M)
    return shlex.split(line)


@pytest.mark.parametrize("name", LAUNCH)
def test_launch_file__names_a_command_and_settings_files_that_exist(name: str) -> None:
    words = launched(name)
    assert words[0] in cli.commands
    assert words[0] == "ablate" or words[1] in cli.commands["train"].commands  # type: ignore[attr-defined]
    assert all((ROOT / word).is_file() for word in words if word.endswith(".toml"))
    assert any(word.startswith("${RUNS:?") for word in words)


# With one


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster("head", "worker") as c:
        yield c


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def submitted(cluster: RayCluster, runs: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """Jobs, as many at once as the cluster has CPUs for; GRPO starts from what SFT leaves."""
    env = {"RUNS": str(runs)}
    look = "find . -type f; find . -type l; python -c 'import medenv; print(medenv.__file__)'; exit 3"
    closed = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}"}  # what is given wins
    ray = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", str(CLUSTER / "runtime_env.yaml"), "--"]
    running = {
        "look": start(cluster, "medenv", "submit", "--address", cluster.http, "--json", "--", "sh", "-c", look, **closed),
        "ppo.sh": start(cluster, "sh", str(CLUSTER / "ppo.sh"), *PPO, **env),
        "sft.sh": start(cluster, "sh", str(CLUSTER / "sft.sh"), *SFT, **env),
        "ray": start(cluster, *ray, "sh", "-c", "find . -type f; find . -type l; python -m medenv list"),
    }
    done = {name: ended(process) for name, process in running.items()}
    (runs / "plan.toml").write_text(PLAN)
    running = {
        "ppo_rllib.sh": start(cluster, "sh", str(CLUSTER / "ppo_rllib.sh"), *PPO, *RLLIB, **env),
        "grpo.sh": start(cluster, "sh", str(CLUSTER / "grpo.sh"), f"model={runs / 'sft'}", *GRPO, **env),
        "ablate.sh": start(cluster, "sh", str(CLUSTER / "ablate.sh"), str(runs / "plan.toml"), "--workers", "1", **env),
    }
    return done | {name: ended(process) for name, process in running.items()}


@pytest.mark.slow
@pytest.mark.cluster
def test_job__gets_the_package_and_no_junk_and_hands_back_its_exit_code(submitted: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = submitted["look"]
    assert done.returncode == 3, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["status"] == "FAILED" and told["exit_code"] == 3
    files = {line[2:] for line in done.stderr.splitlines() if line.startswith("./")}
    assert submitted["ray"].returncode == 0 and "MedConsult-v0" in submitted["ray"].stdout, submitted["ray"].stderr[-2000:]
    assert files == {line[2:] for line in submitted["ray"].stdout.splitlines() if line.startswith("./")}
    inside = {p.relative_to(ROOT).as_posix() for p in (ROOT / "medenv").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert inside <= files
    assert {f.split("/")[0] for f in files if "/" in f} == {"medenv", "experiments"}
    assert not {f for f in files if f.startswith(".") or f.endswith((".png", ".pyc"))}
    assert sum((ROOT / f).stat().st_size for f in files) < 4 * 2**20
    assert "working_dir_files" in done.stderr.split("medenv/__init__.py")[-2].splitlines()[-1]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("name", LAUNCH)
def test_launch_file__does_what_it_says(name: str, submitted: dict[str, subprocess.CompletedProcess[str]], runs: Path) -> None:
    done, kind = submitted[name], name.removesuffix(".sh").replace("_", "-")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if kind == "ablate":
        mixes = [json.loads(line)["mix"] for line in (runs / "ablate" / "cells.jsonl").read_text().splitlines()]
        assert sorted(mixes) == ["greedy", "plain", "random"]
        return
    run = json.loads((runs / kind / "run.json").read_text())
    assert run["kind"] == kind.removesuffix("-rllib")
    assert ("num_env_runners" in run["settings"]) == (kind == "ppo-rllib")
    assert json.loads((runs / kind / "final.json").read_text())["steps" if "ppo" in kind else "update"] == STEPS[kind]


@pytest.mark.slow
@pytest.mark.cluster
def test_node_lost__tasks_of_a_process_outside_run_again_with_its_package(cluster: RayCluster, tmp_path: Path) -> None:
    extra = cluster.start("worker", 2)
    cluster.wait_for(3)
    shutil.copytree(ROOT / "medenv", tmp_path / "medenv", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "outside.py"
    script.write_text(OUTSIDE)
    process = start(cluster, sys.executable, str(script), cluster.address, str(tmp_path), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("running*"))) == 6, process)
    cluster.kill(extra)
    (tmp_path / "go").touch()
    done = ended(process)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    assert [n for n, _ in answers] == list(range(6))
    assert all("py_modules" in file for _, file in answers), answers


@pytest.mark.slow
@pytest.mark.cluster
def test_head_lost__ends_the_wait_and_the_run_goes_on_elsewhere(cluster: RayCluster, tmp_path: Path) -> None:
    out, settings = tmp_path / "run", [*PPO[1:], "evaluate_every=1000", "checkpoint_every=1"]
    command = ["medenv", "submit", "--", "medenv", "train", "ppo", "--output", str(out)]
    with ray_cluster("head") as doomed:
        process = start(doomed, *command, "steps=100000000", *settings)
        wait_until(lambda: (out / "checkpoint.pt").exists() and len(read_metrics(out / "metrics.jsonl")) > 3, process)
        doomed.kill(doomed.nodes[0])
        lost = ended(process, timeout=60)
    assert lost.returncode == 2 and lost.stderr.count("\n") == 1
    assert re.search(r"failed \(.*\): .* resume", lost.stderr), lost.stderr
    wait_until(lambda: stands_still(out / "metrics.jsonl"), None)  # the driver ended with its head
    steps = read_metrics(out / "metrics.jsonl")[-1]["steps"] + 1024
    done = ended(start(cluster, *command, "--resume", f"steps={steps}"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((out / "final.json").read_text())["steps"] == steps
    assert [r["update"] for r in read_metrics(out / "metrics.jsonl")] == list(range(steps // 512 + 1))


def wait_until(holds: object, process: subprocess.Popen[str] | None, patience: float = 90) -> None:
    end = time.monotonic() + patience
    while not holds():  # type: ignore[operator]
        if process is not None and process.poll() is not None:
            raise AssertionError(ended(process).stderr[-2000:])
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def stands_still(file: Path) -> bool:
    before = file.stat().st_size
    time.sleep(1.0)
    return file.stat().st_size == before
