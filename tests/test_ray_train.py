"""SFT and GRPO on workers of a Ray cluster: the curve of one process, killed workers, errors of one worker, what the cluster lacks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="language models need torch")
pytest.importorskip("trl", reason="training needs trl")
ray = pytest.importorskip("ray", reason="workers need ray")
psutil = pytest.importorskip("psutil")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers and ray, about what they call themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of ray, about what it sets itself
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # ray leaves log files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("one_thread"),
]

from ray.cluster_utils import Cluster  # noqa: E402
from test_finetuning import ENV, SFT, grpo  # noqa: E402

from medenv.agents.grpo import GRPOSettings  # noqa: E402
from medenv.agents.language_model import load_model  # noqa: E402
from medenv.agents.rollouts import Room  # noqa: E402
from medenv.cli import main  # noqa: E402
from medenv.errors import RunError  # noqa: E402
from medenv.runs import ray_train, updates  # noqa: E402
from medenv.runs.checkpoints import COMPLETE  # noqa: E402
from medenv.runs.finetuning import train  # noqa: E402
from medenv.runs.run_directory import read_metrics  # noqa: E402

BY_ROUNDING = ("return", "accuracy", "questions", "skipped_groups", "learned_tokens", "loss", "grad_norm", "entropy", "learning_rate")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("start") / "run"
    train(dataclasses.replace(SFT, demonstrations=100, steps=20, evaluate_every=20, evaluate_episodes=4), run)
    return run


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two machines with a CPU each, as far as Ray can tell."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    nodes.add_node(num_cpus=1, num_gpus=0)
    yield nodes.address
    nodes.shutdown()


def two(start: Path, address: str, **more: Any) -> GRPOSettings:
    return grpo(start, workers=2, address=address, **more)


@pytest.fixture(scope="module")
def left_alone(start: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two workers that nothing happens to."""
    run = tmp_path_factory.mktemp("two") / "run"
    told: list[int] = []
    final = train(two(start, address), run, progress=lambda line: told.append(line["update"]))
    assert told == [0, 1, 2, 3] and final == json.loads((run / "final.json").read_text()) and "worker_restarts" not in final
    return run


def weights(run: Path) -> dict[str, Any]:
    return load_model(run / "policy").model.state_dict()


@pytest.mark.slow
def test_two_workers__learn_what_one_process_learns(start: Path, left_alone: Path, tmp_path: Path) -> None:
    """The same updates within 1e-5 of each figure, the same weights within 1e-4; both workers' weights have one hash."""
    train(grpo(start), tmp_path / "one")
    lines = [read_metrics(run / "metrics.jsonl") for run in (tmp_path / "one", left_alone)]
    assert [line["update"] for line in lines[1]] == [0, 1, 2, 3]
    for one, both in zip(lines[0][1:], lines[1][1:], strict=True):
        for key in BY_ROUNDING:
            assert both[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6), key
        assert both["same_weights"] == 1.0 and "same_weights" not in one
    ours = weights(left_alone)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint__goes_on_from_the_one_before(
    start: Path, address: str, left_alone: Path, tmp_path: Path
) -> None:
    """SIGKILL to the worker that writes: the other waits for it, both start again, nothing is lost or done twice, same bits."""
    run, torn = tmp_path / "run", tmp_path / "run" / "checkpoints" / "checkpoint-2"
    killed: list[bool] = []

    def writer() -> psutil.Process | None:
        for process in psutil.Process().children(recursive=True):
            try:
                if any(file.path == str(run / "metrics.jsonl") for file in process.open_files()):
                    return process
            except psutil.Error:
                continue
        return None

    def kill() -> None:
        deadline, process = time.monotonic() + 300, None
        while process is None and time.monotonic() < deadline:
            process = writer() if (run / "metrics.jsonl").exists() else time.sleep(0.05)
        while not torn.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        if process is not None:
            process.kill()
            process.wait(30)
            killed.append((torn / COMPLETE).exists())

    thread = threading.Thread(target=kill)
    thread.start()
    told: list[int] = []
    final = train(two(start, address), run, progress=lambda line: told.append(line["update"]))
    thread.join()
    assert killed == [False], "the kill came too late for what is tested"
    assert final["worker_restarts"] == 1 and final["update"] == 3
    assert told == [line["update"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3]
    expected = weights(left_alone)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())
    train(grpo(start, steps=4), run, resume=True)  # one process goes on where two were
    assert [line["update"] for line in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert read_metrics(run / "metrics.jsonl")[-1]["loss"] is not None


def command(settings: GRPOSettings, output: Path, *more: str) -> list[str]:
    given = {k: v for k, v in dataclasses.asdict(settings).items() if k != "env" and v is not None}
    keys = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in (given | {f"env.{k}": v for k, v in ENV.items()}).items()]
    return ["train", "grpo", *keys, "--output", str(output), *more]


@pytest.mark.slow
def test_an_error_of_one_worker__ends_all_at_once_in_one_line(
    start: Path, address: str, left_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the first worker writes samples; the other would wait for it for half an hour. It is not tried again."""
    run = Path(shutil.copytree(left_alone, tmp_path / "run"))
    shutil.rmtree(run / "samples")
    (run / "samples").write_text("in the way")
    started = time.monotonic()
    assert main(command(two(start, address, steps=4), run, "--resume")) == 2
    assert time.monotonic() - started < 300
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("medenv: could not write") and "samples" in told[-1] and "Traceback" not in "".join(told)
    reported = (run / "ray" / "train" / "checkpoint_manager_snapshot.json").read_text()
    assert '"worker_restarts":0' in reported and '"worker_restarts":1' not in reported


@pytest.mark.parametrize(
    "more, says",
    [
        ({"workers": 3}, "setting batch is 16, which 3 processes x groups of 4 do not divide: give a multiple of 12, such as 12"),
        ({"workers": 2, "gpus_per_worker": 2.0}, "setting gpus_per_worker is 2: give 0 or 1"),
        ({"workers": 0}, "setting workers is 0"),
        ({"workers": 2, "address": "127.0.0.1:1"}, "nothing answers at 127.0.0.1:1"),
        ({"workers": 2, "address": "there"}, "'there' is no address"),
        ({"workers": 4, "gpus_per_worker": 1.0, "address": "local", "batch": 64}, "asks for 4 GPUs and the cluster has"),
    ],
)
def test_what_cannot_be_had__is_one_clear_line_within_seconds(
    more: dict[str, Any], says: str, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if more.get("gpus_per_worker") == 1.0 and torch.cuda.device_count() >= 4:
        pytest.skip("this machine has the GPUs")
    began = time.monotonic()
    assert main(command(grpo(start, **more), tmp_path / "run")) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert says in told[-1] and ("trains with Ray" in told[0]) == (more["workers"] > 1 and more.get("address", "local") == "local")
    assert time.monotonic() - began < 60 and not ray.is_initialized() and not (tmp_path / "run").exists()


def test_more_cpus_than_there_are__is_one_clear_line(start: Path, address: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="asks for 4 CPUs and the cluster has 2"):
        train(grpo(start, workers=4, address=address), tmp_path / "run")
    with pytest.raises(RunError, match="setting threads is 2, and the cluster's largest machine has 1 CPUs"):
        train(grpo(start, threads=2, address=address), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_worker_without_the_run_directory__says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    given = {"run": str(tmp_path / "run"), "here": os.getcwd(), "token": "a", "restarts": 0, "settings": None}
    with pytest.raises(RunError, match=r"worker 1 on .* does not see .*run: give an --output on a file system"):
        ray_train._work(given)
    (tmp_path / "run" / "ray").mkdir(parents=True)
    (tmp_path / "run" / "ray" / ray_train.TOKEN).write_text("another run's, of the same name on this machine's own disk")
    with pytest.raises(RunError, match="does not see"):
        ray_train._work(given)


def test_errors_behind_ray_trains__are_told_as_ours(start: Path) -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    settings = grpo(start, workers=2, worker_failures=1)
    ours = RunError("ours")
    assert ray_train._plain(ray.train.WorkerGroupError("", {0: RuntimeError("gloo"), 1: ours}), settings) is ours
    assert ray_train._plain(ray.train.ControllerError(ours), settings) is ours
    lost = WorkerHealthCheckFailedError("", ray.exceptions.ActorDiedError())
    told = ray_train._plain(ray.train.WorkerGroupError("", {0: RuntimeError("gloo"), 1: lost}), settings)
    assert isinstance(told, RunError) and "more than worker_failures=1 times" in str(told)
    other = ray.train.WorkerGroupError("", {0: TypeError("a bug")})
    assert ray_train._plain(other, settings) is other


def test_weights_that_differ__are_told(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = updates.Updates(grpo(start), Room(ENV, "train"), None, tmp_path, time.perf_counter())
    hashes: list[str] = []
    monkeypatch.setattr(updates, "gather_object", lambda own: [hashes.append(own[0]) or h for h in (*own, *hashes[:1])])
    assert made._same_weights() == 1.0
    with torch.no_grad():
        next(made.lm.model.parameters())[0, 0] += 1e-6
    assert made._same_weights() == 0.5 and hashes[0] != hashes[-1]


def test_nodes_that_do_not_come_back__end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [2.0, 2.0]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(nodes)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in nodes])
    room = ray_train._Room(2, 0, 2)
    room.look()
    nodes.pop()
    room.look()
    assert room.short is not None
    nodes.append(2.0)
    room.look()
    assert room.short is None, "another one came"
    monkeypatch.setattr(ray_train, "PATIENCE", 0.0)
    nodes[:] = [2.0]
    with pytest.raises(RunError, match=r"nodes were lost .* asks for 4 CPUs and the cluster has 2.*--resume goes on"):
        room.look()
    nodes[:] = [1.0] * 4
    with pytest.raises(RunError, match=r"nodes were lost .* largest machine has 1 CPUs"):
        room.look()


def test_progress__tells_each_line_once(tmp_path: Path) -> None:
    told: list[int] = []
    tail = ray_train._Tail(tmp_path / "metrics.jsonl", lambda line: told.append(line["update"]), 0)
    tail.look()
    for text in ('{"update": 0}\n{"update": 1}\n{"upd', '{"update": 0}\n{"update": 1}\n', '{"update": 0}\n{"update": 1}\n{"update": 2}\n'):
        (tmp_path / "metrics.jsonl").write_text(text)
        tail.look()
    assert told == [1, 2]
