"""A Ray cluster of several nodes on this machine, for tests: nodes are processes of `ray start`, as in the containers.

Each cluster has a folder and ports of its own and wants a token, so that it meets no other cluster and no other cluster's address. Whatever
happens to the test, its nodes end: with it, or when it is killed.

Does not cover: what runs on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker" / "compose.yaml"
BIN = Path(sys.executable).parent
PATIENCE = 90.0


class RayCluster:
    """Nodes started with compose.yaml's own commands, but for ports. `env`: what a client needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gcs, self.dashboard = free_port(), free_port()
        self.http, self.address = f"http://127.0.0.1:{self.dashboard}", f"127.0.0.1:{self.gcs}"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.env |= {"RAY_TMPDIR": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
        self.env |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_API_SERVER_ADDRESS": self.http, "RAY_USAGE_STATS_ENABLED": "0"}
        self.env["PYTHONDONTWRITEBYTECODE"] = "1"  # jobs share a copy of a directory: what lies in it is what was uploaded
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(self, service: str, cpus: int) -> subprocess.Popen[bytes]:
        """A node as the compose file starts `service`; returns its process."""
        command: list[str] = yaml.safe_load(COMPOSE.read_text())["services"][service]["command"]
        command = [
            word.replace("--address=head:6379", f"--address={self.address}") for word in command if not word.startswith("--num-cpus")
        ]
        own = {"--num-cpus": cpus, "--min-worker-port": 0, "--max-worker-port": 0, "--dashboard-agent-listen-port": free_port()}
        own |= {"--object-store-memory": 100_000_000}
        own["--temp-dir"] = self.folder / str(len(self.nodes))  # as on machines: in one folder, a node unpacks under another's feet
        if "--head" in command:
            command = [word for word in command if not word.startswith(("--port", "--dashboard-host"))]
            own |= {"--port": self.gcs, "--dashboard-port": self.dashboard, "--ray-client-server-port": free_port()}
        arguments = [str(BIN / command[0]), *command[1:], *(f"{k}={v}" for k, v in own.items())]
        env = {k: v for k, v in self.env.items() if k != "PYTHONPATH"}  # so that a job's medenv is the one that came with it
        with (self.folder / f"{service}-{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(arguments, env=env, cwd=self.folder, stdout=log, stderr=log, preexec_fn=_end_with_parent)
        self.nodes.append(node)
        return node

    def wait_for(self, nodes: int) -> None:
        """Until the job server answers and so many nodes are alive."""
        request = urllib.request.Request(f"{self.http}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.env['RAY_AUTH_TOKEN']}")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert all(n.poll() is None for n in self.nodes), self.logs()
            with contextlib.suppress(OSError):
                body = urllib.request.urlopen(request, timeout=5).read()
                if body.count(b'"ALIVE"') >= nodes:
                    return
            time.sleep(0.3)
        raise AssertionError(f"{nodes} nodes did not come up: {self.logs()}")

    def logs(self) -> str:
        return "\n".join(f.read_text(errors="replace")[-1500:] for f in self.folder.glob("*.log"))

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """A node, gone without a word: all its processes at once."""
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self.nodes.remove(node)

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
        for node in reversed(self.nodes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(20)
                continue
            self.kill(node)


@contextlib.contextmanager
def ray_cluster(*services: str, cpus: int = 2) -> Iterator[RayCluster]:
    """A cluster of the services named, `head` first."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets want a short path
    cluster = RayCluster(folder)
    try:
        cluster.start(services[0], cpus)
        cluster.wait_for(1)
        for service in services[1:]:
            cluster.start(service, cpus)
        cluster.wait_for(len(services))
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def start(cluster: RayCluster, *command: str, cwd: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    """A command, most often in the repository, as someone at the cluster's door has it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=cluster.env | env, **pipes)  # type: ignore[call-overload]


def ended(process: subprocess.Popen[str], timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """What it said. Killed where it takes longer than that."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args} did not end: {out[-2000:]} {err[-2000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _end_with_parent() -> None:
    """A session of its own that gets SIGTERM when the tests are killed."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
