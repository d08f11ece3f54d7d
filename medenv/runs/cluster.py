"""A Ray cluster for a run: this machine's own cores, or a cluster that is there already.

    with cluster(address, cpus=3, gpus=1):      # a RunError within seconds where it can't be reached, or has too little
        ...

`address`: empty for RAY_ADDRESS where it is set (inside `ray job submit` it is), else for a cluster of this process's own, which ends with
it; `local` for its own in any case; `HOST:PORT` or `ray://HOST:PORT` for another. A driver that joins a cluster sends its own package
along, but for what Python needs besides.

Does not cover: jobs (`medenv.runs.jobs`), what runs on the cluster, and stopping other people's clusters, which it never does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import medenv
from medenv.errors import RunError
from medenv.runs.provenance import cores

LOCAL = "local"
# PPO's settings of what runs where on RLlib, which a resumed run may change
PLACES = ("num_env_runners", "num_learners", "gpus_per_learner", "address", "sample_timeout", "most_failures")
PATIENCE = 5.0  # seconds until a port that does not answer counts as unreachable
JUNK = ["__pycache__", "*.pyc"]  # never uploaded
_ADDRESS = re.compile(r"(ray://)?(?P<host>[^/\s:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d+)")


@contextlib.contextmanager
def cluster(address: str = "", cpus: float = 0, gpus: float = 0, own_cpus: int | None = None) -> Iterator[dict[str, float]]:
    """Ray, connected; yields the cluster's resources. What was connected before is used as it is, and left so.

    `cpus`, `gpus`: what the run will ask for in all. `own_cpus`: how many a cluster of its own declares (None: as many as the machine has,
    and at least `cpus`: more declared than there are run slower, not never). RunError where the address is none, does not answer, is no Ray
    cluster, or the cluster has fewer CPUs or GPUs than asked for; where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RunError('this needs Ray, which is not installed: pip install "medenv[ray]"') from None
    before = ray.is_initialized()
    if not before:
        _connect(resolved(address), cpus, own_cpus)
    try:
        found: dict[str, float] = dict(ray.cluster_resources())
        require(found, cpus, gpus)
        yield found
    finally:
        if not before:
            ray.shutdown()


def resolved(address: str) -> str:
    """The address that is meant: given, or RAY_ADDRESS, or LOCAL."""
    return address or os.environ.get("RAY_ADDRESS", "") or LOCAL


def require(found: dict[str, float], cpus: float = 0, gpus: float = 0) -> None:
    """RunError where a cluster with the resources `found` has fewer CPUs or GPUs than asked for."""
    for name, wanted in (("GPU", gpus), ("CPU", cpus)):
        if wanted > found.get(name, 0.0):
            raise RunError(f"the run asks for {wanted:g} {name}s and the cluster has {found.get(name, 0.0):g}: ask for fewer, or add nodes")


def _connect(address: str, cpus: float, own_cpus: int | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will have it: without GPUs, their variables stay as they are
    if address == LOCAL:
        count = own_cpus or max(cores(), math.ceil(cpus))
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than 30 s
        ray.init(address=LOCAL, num_cpus=count, include_dashboard=False, **quiet)
        return
    check_address(address)
    package = Path(medenv.__file__).parent
    inside = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # a job: its working_dir is with every worker
    if not inside:
        quiet["runtime_env"] = {"py_modules": [str(package)], "excludes": JUNK}
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        raise RunError(f"no Ray cluster at {address!r} ({why}): give the address that `ray start --head` printed, or `local`") from error


def check_address(address: str) -> None:
    """RunError for what is no address, or one where nothing listens. `auto` is left to Ray."""
    if address == "auto":
        return
    match = _ADDRESS.fullmatch(address.removeprefix("http://").rstrip("/"))
    if match is None:
        raise RunError(f"{address!r} is no address: give HOST:PORT or ray://HOST:PORT of a cluster, or `local`")
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"nothing answers at {address} ({error}): start the cluster, or give its address, or `local`") from error
