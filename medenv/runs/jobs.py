"""Jobs: a command of medenv on a Ray cluster, run from a copy of a directory here. What `ray job submit` does, with small uploads.

    submit(["medenv", "train", "ppo", "--output", "/shared/runs/mine"], "http://HOST:8265")

The directory goes along without what `EXCLUDES` names and without links (Ray would follow them). `experiments/cluster/runtime_env.yaml`
holds the same list for plain `ray job submit`. The job runs on the head node in its copy of the directory: what it writes under a relative
path is lost with it. A cluster started with a token wants RAY_AUTH_MODE=token and the token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
~/.ray/auth_token) here too.

Does not cover: starting clusters, joining one from a process (`medenv.runs.cluster`), and what the command does with the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import http.client
import logging
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medenv.errors import RunError
from medenv.runs.cluster import PATIENCE

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
SILENCE = 30.0  # seconds without output until the server is asked whether it is there
LIMIT = 512 * 2**20  # bytes of a directory that Ray takes
EXCLUDES = [  # as in a .gitignore: a leading slash is the top of the directory, a name without one is anywhere; ".*" would be all of it
    "/agents", "/rewards",  # links into the package
    "/runs", "/demo", "/data", "/build", "/dist", "/tests", "/docker",
    ".?*", "__pycache__", "*.pyc", "*.egg-info", "wandb", "*.png", "*.zip",
]  # fmt: skip
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray lets them win over what a client is given


def submit(
    command: Sequence[str],
    address: str = "",
    working_dir: Path = Path("."),
    installed: bool = False,
    excludes: Sequence[str] = (),
    wait: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Submit `command`; returns {"job", "address", "status", "exit_code"}, the last None without `wait` or where the job had none.

    A first word `medenv` becomes `python -m medenv`. `address`: of the job server; empty for RAY_API_SERVER_ADDRESS, for RAY_ADDRESS where
    it is an http address, else `DEFAULT_ADDRESS`. `installed`: the cluster has medenv, so `working_dir` need not hold it. `excludes`: more
    to leave out. With `wait`, `tell` gets the job's output as it comes. RunError: Ray is not installed, a command that is empty, a
    directory that is missing, holds no medenv or is too large, a server that does not answer, wants another token, refuses, or is lost
    while waiting.
    """
    if not command:
        raise RunError("no command was given: put it behind --, such as `medenv submit -- medenv train ppo`")
    words = ["python", "-m", *command] if command[0] == "medenv" else list(command)
    left_out = check_directory(working_dir, installed, [*EXCLUDES, *excludes])
    address = _server(address)
    _check_server(address)
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise RunError('this needs Ray, which is not installed: pip install "medenv[ray]"') from None
    try:
        with _quiet(), _without(_ADDRESSES):
            client = JobSubmissionClient(address)
            environment = {"working_dir": str(working_dir.resolve()), "excludes": left_out}
            job: str = client.submit_job(entrypoint=shlex.join(words), runtime_env=environment)
            tell(f"job {job} on {address}: {shlex.join(words)}\n")
            if not wait:
                return {"job": job, "address": address, "status": "SUBMITTED", "exit_code": None}
            asyncio.run(_follow(client, job, address, tell))
            info = client.get_job_info(job)
    except AuthenticationError as error:
        raise RunError(f"{address} refuses without its token ({_first(error)}): {_TOKEN}") from error
    except (RuntimeError, OSError, ValueError) as error:  # requests' errors are OSErrors, aiohttp's too or RuntimeErrors
        raise RunError(
            f"{address} failed ({type(error).__name__}: {_first(error)}): see its logs, and resume the run on a new cluster"
        ) from error
    if not info.status.is_terminal():
        raise RunError(
            f"the output of job {job} on {address} broke off while it was {info.status.value}: `ray job logs -f {job}` goes on with it"
        )
    return {"job": job, "address": address, "status": info.status.value, "exit_code": info.driver_exit_code}


_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


async def _follow(client: Any, job: str, address: str, tell: Callable[[str], None]) -> None:
    """Hand on the job's output to its end. While it is silent the server is asked whether it is still there: a lost one ends the wait."""
    logs = client.tail_job_logs(job)
    while True:
        more = asyncio.ensure_future(anext(logs, None))
        while not (await asyncio.wait([more], timeout=SILENCE))[0]:
            _check_server(address)
        if (lines := more.result()) is None:
            return
        tell(lines)


def check_directory(directory: Path, installed: bool, excludes: Sequence[str]) -> list[str]:
    """The excludes with every link in `directory` beside them. RunError where it can't be a job's."""
    if not directory.is_dir():
        raise RunError(f"{str(directory)!r} is no directory: give --working-dir the one that holds the package medenv")
    if not installed and not (directory / "medenv" / "__init__.py").is_file():
        raise RunError(f"{str(directory)!r} holds no package medenv: give a checkout, or --installed where the cluster has medenv")
    sizes: dict[str, int] = {}
    links: list[str] = []
    for folder, folders, files in os.walk(directory):
        below = Path(folder).relative_to(directory).as_posix()
        path = {name: f"{below}/{name}".removeprefix("./") for name in [*folders, *files]}
        links += [f"/{path[name]}" for name in path if os.path.islink(Path(folder, name)) and not _matches(path[name], excludes)]
        folders[:] = [name for name in folders if not _matches(path[name], excludes)]
        for name in files:
            if not _matches(path[name], excludes) and not os.path.islink(Path(folder, name)):
                top = path[name].split("/")[0]
                sizes[top] = sizes.get(top, 0) + Path(folder, name).stat().st_size
    if sum(sizes.values()) >= LIMIT:
        most = ", ".join(f"{name} {sizes[name] / 2**20:.0f} MiB" for name in sorted(sizes, key=lambda n: -sizes[n])[:3])
        raise RunError(
            f"{str(directory)!r} would upload {sum(sizes.values()) / 2**20:.0f} MiB ({most}), Ray takes {LIMIT // 2**20}: --exclude some"
        )
    return [*excludes, *links]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern leaves the relative `path` out, as in a .gitignore: with a / before its end from the top, else by the last name."""
    name = path.rsplit("/", 1)[-1]
    for pattern in patterns:
        kept = pattern.rstrip("/").removeprefix("**/")
        if "/" in kept:
            at = fnmatch.fnmatchcase(path, kept.removeprefix("/")) or (pattern.startswith("**/") and fnmatch.fnmatchcase(path, f"*/{kept}"))
        else:
            at = fnmatch.fnmatchcase(name, kept)
        if at:
            return True
    return False


def _server(address: str) -> str:
    """The job server's address: given, in the environment, or Ray's own default."""
    given = address or os.environ.get(_ADDRESSES[0], "")
    if not given:
        given = os.environ.get(_ADDRESSES[1], "")
        given = given if given.startswith(("http://", "https://")) else DEFAULT_ADDRESS
    if not given.startswith(("http://", "https://")):
        raise RunError(f"{given!r} is no address of a job server: give http://HOST:PORT, the dashboard's, most often port 8265")
    return given.rstrip("/")


def _check_server(address: str) -> None:
    """RunError where nothing answers, or what answers is no job server. Refusals are for the client to tell."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise RunError(f"{address} answers and is no Ray job server (404): give --address the dashboard of a cluster") from error
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise RunError(f"no job server answers at {address} ({why}): start a cluster, or give --address its dashboard's") from error


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """The environment without some variables, for a moment."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray's reports on packaging and sockets, whose loggers have levels of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__
