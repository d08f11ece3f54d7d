"""The files in docker/, as far as they can be checked without a container engine: that `ray start` works, test_jobs.py shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from medenv.cli import cli, main

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
FILES = ("Dockerfile.cpu", "Dockerfile.cuda")
MANIFESTS = ("rayjob.yaml", "raycluster.yaml")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))

# KubeRay's fields of ray.io/v1 (reference of v1.6.2), and of Kubernetes' pods those that are used here
RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "submitterPodTemplate",
    "metadata",
    "clusterSelector",
    "submitterConfig",
}
RAY_JOB |= {"managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources", "suspend"}
RAY_JOB |= {"entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished", "shutdownAfterJobFinishes"}
CLUSTER = {"suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"}
CLUSTER |= {"headGroupSpec", "rayVersion", "workerGroupSpecs", "authOptions"}
HEAD = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template", "scaleStrategy"}
POD = {"containers": {"name", "image", "resources", "volumeMounts"}, "volumes": {"name", "persistentVolumeClaim"}}
SERVICE = {"image", "environment", "volumes", "shm_size", "init", "build", "command", "ports", "depends_on", "restart", "healthcheck"}


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: (name, arguments)."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def commands(name: str) -> list[list[str]]:
    """The words of every command that a Dockerfile runs."""
    lines = [given for what, given in instructions(name) if what in ("RUN", "CMD", "ENTRYPOINT")]
    shell = [part for line in lines if not line.startswith("[") for part in line.split("&&")]
    return [shlex.split(part) for part in shell] + [yaml.safe_load(line) for line in lines if line.startswith("[")]


@pytest.mark.parametrize("name", FILES)
def test_dockerfile__is_pinned_copies_what_exists_and_ends_as_a_user(name: str) -> None:
    steps = instructions(name)
    assert {what for what, _ in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert [given for what, given in steps if what == "FROM"] == ["python:3.11.14-slim-bookworm"]
    copied = [word for what, given in steps if what == "COPY" for word in given.split()[:-1]]
    assert "medenv" in copied and all((ROOT / word).exists() for word in copied)
    ignored = (DOCKER / f"{name}.dockerignore").read_text().split()
    assert not set(copied) & set(ignored)
    (user,) = [given for what, given in steps if what == "USER"]
    assert ["useradd", "--create-home", "--uid", "1000", user] in commands(name)
    last = next(n for n, (what, _) in enumerate(steps) if what == "USER")
    assert not any(word in given for _, given in steps[last:] for word in ("pip", "apt-get", "useradd"))


@pytest.mark.parametrize("name", FILES)
def test_dockerfile__commands_are_known_and_medenvs_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = commands(name)
    assert {w[0] for w in words} <= {"apt-get", "rm", "useradd", "mkdir", "chown", "python", "grep", "medenv"}
    assert ["grep", "^ray==", "constraints.txt", ">", "ray.txt"] in words or name.endswith("cpu")
    own = [w[1:] for w in words if w[0] == "medenv"]
    assert own == [["list"], ["--help"]]
    for arguments in own:
        assert main(arguments) == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_dockerfile__installs_extras_that_there_are(name: str) -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pip,) = [w for w in commands(name) if w[:3] == ["python", "-m", "pip"]]
    (asked,) = re.findall(r"^\.\[(.*)\]$", pip[-1])
    assert set(asked.split(",")) <= set(extras)
    assert ("vllm" in asked.split(",")) == (name == "Dockerfile.cuda") and ("constraints.txt" in pip) == (name == "Dockerfile.cpu")


def test_compose__has_known_keys_and_a_door_for_this_machine_alone() -> None:
    file = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert set(file) == {"name", "x-node", "services", "volumes"}
    for name, service in file["services"].items():
        assert set(service) <= SERVICE | {"<<"} and set(service.get("depends_on", [])) <= set(file["services"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if name == "patients":
            continue
        assert service["environment"]["RAY_AUTH_MODE"] == "token" and ":?" in service["environment"]["RAY_AUTH_TOKEN"]
        assert all(volume.split(":")[0] in file["volumes"] for volume in service["volumes"])
        assert service["command"][:2] == ["ray", "start"] and "--block" in service["command"]
    head = file["services"]["head"]
    assert (DOCKER / head["build"]["context"] / head["build"]["dockerfile"]).is_file()


def test_compose__patients_are_served_and_healthy() -> None:
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["patients"]
    assert service["ports"] == ["127.0.0.1:8080:8080"] and service["command"][0] == "medenv"
    kind, python, *check = service["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    words = [{"0.0.0.0": "127.0.0.1", "8080": "0"}.get(word, word) for word in service["command"][1:]]
    with subprocess.Popen([sys.executable, "-m", "medenv", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split("/v1")[0].rsplit(":", 1)[1]
        healthy = [sys.executable, *(word.replace(":8080", f":{port}") for word in check)]
        assert subprocess.run(healthy, timeout=30).returncode == 0
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert subprocess.run(healthy, timeout=30, stderr=subprocess.DEVNULL).returncode == 1


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest__has_kuberays_fields_and_this_rays_version(name: str) -> None:
    file = yaml.safe_load((DOCKER / name).read_text())
    assert set(file) == {"apiVersion", "kind", "metadata", "spec"} and file["apiVersion"] == "ray.io/v1"
    spec = file["spec"]
    if file["kind"] == "RayJob":
        assert set(spec) <= RAY_JOB
        spec = spec["rayClusterSpec"]
    assert set(spec) <= CLUSTER and spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == PINS["ray"]
    assert set(spec["headGroupSpec"]) <= HEAD
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert group is spec["headGroupSpec"] or set(group) <= WORKERS
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        assert ray_start_knows(group["rayStartParams"])
        pod = group["template"]["spec"]
        assert set(pod) <= {"securityContext", "containers", "volumes"}
        assert set(pod.get("securityContext", {})) <= {"runAsUser", "fsGroup"}
        for part, known in POD.items():
            assert all(set(entry) <= known for entry in pod[part])
        for container in pod["containers"]:
            assert set(container["resources"]) == {"limits", "requests"}
            assert {m["name"] for m in container["volumeMounts"]} <= {v["name"] for v in pod["volumes"]}


def ray_start_knows(given: dict[str, Any]) -> bool:
    scripts = pytest.importorskip("ray.scripts.scripts")
    return {f"--{name}" for name in given} <= {option for p in scripts.start.params for option in p.opts}


def test_rayjob__runs_a_command_of_medenv_that_resumes() -> None:
    words = shlex.split(yaml.safe_load((DOCKER / "rayjob.yaml").read_text())["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "medenv"] and "--resume" in words
    train: Any = cli.commands[words[3]]
    assert words[4] in train.commands
    settings = next(Path(word).name for word in words if word.endswith(".toml"))
    assert (ROOT / "experiments" / "cluster" / settings).is_file()
