"""Trajectories on disk: one consultation is one line of JSON, and everything else is computed from these lines.

A line (schema 1): `schema`, `medenv` (version), `environment`, `arguments` (all of them, defaults included), `base` (fingerprint),
`configuration` (hash), `seed`, `episode`, `case_id`, `agent`, `demographics` {age, sex, setting}, `opening` {finding, reply},
`turns`, `end`, `failure` (null, or what went wrong: then `end` is null and nothing is scored).

- a turn: `action`, `meaning`, `kind` (ask, examine, order, diagnose, refer, none), `reply`, `ledger` {finding, values, refused, invalid},
  `components` (weighted; null: not scored), `reward`, `entropy` [before, after] in nats, `belief` (the environment's, three likeliest).
- the end: `truth`, `diagnosis`, `referred`, `undiagnosed`, `differential` ({condition: probability}, the doctor's, likeliest first, null if
  none was given), `correct`, `return`, `questions`, `cost`, `invalid_actions`.
- in words also `messages`: [who, text] of patient and doctor in turn.

Lines are appended whole and synced; a summary is written last, under a temporary name, then renamed (`write_atomically`).

Does not cover: running consultations (`evaluate`), scoring them with another reward (`replay`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medenv.errors import RunError

SCHEMA = 1
TRAJECTORIES, SUMMARY, WRONG = "trajectories.jsonl", "summary.json", "wrong.csv"
TEMPORARY = ".tmp"  # suffix of a file that is being written

Record = dict[str, Any]


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits over a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:12]


class Writer:
    """Appends trajectories to a file. A torn last line of an earlier run is cut off first.

    Every `write` is one append of whole lines, flushed and synced. When the disk is full, the file is cut back to the last
    whole line and a RunError says how much is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._lock()
        self._end = whole_length(path)
        self._file.truncate(self._end)
        self.written = 0

    def _lock(self) -> None:
        """Two runs in one folder would each do the other's consultations."""
        if not _held(self._file):
            self._file.close()
            raise RunError(f"{self.path} is being written by another run: wait for it, or give another --output")

    def write(self, records: Iterable[Record]) -> None:
        """Append a batch. RunError (what was written before is kept) when the system refuses."""
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for r in records]
        body = "".join(lines).encode()
        try:
            write_all(self._file, body)
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut_back()
            raise RunError(
                f"could not write {self.path}: {error.strerror or error}; {self.written} consultations of this run are kept there: "
                "make room and give the same command again, it goes on from there"
            ) from error
        self._end += len(body)
        self.written += len(lines)

    def _cut_back(self) -> None:
        with contextlib.suppress(OSError):  # the reader drops a torn line, and the next Writer cuts it off
            self._file.truncate(self._end)

    def close(self) -> None:
        """Close the file; lines are on disk already."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_trajectories(path: str | Path, torn: Callable[[str], None] | None = None) -> Iterator[Record]:
    """The trajectories of a file, or of the run directory that holds it, in order.

    A torn last line (a run that was killed while writing) is dropped and reported to `torn` (None: `warnings.warn`). RunError for a
    file that is missing, of another schema, or damaged elsewhere.
    """
    file = trajectory_file(path)
    if not file.is_file():
        raise RunError(f"{file}: no such file; give a {TRAJECTORIES} or the run directory that holds one")
    with file.open("rb") as lines:
        held: tuple[int, bytes] | None = None
        for number, line in enumerate(lines, 1):
            if held is not None:
                yield _parse(file, *held)
            held = number, line
    if held is None:
        return
    try:
        if not held[1].endswith(b"\n"):
            raise ValueError
        json.loads(held[1])
    except ValueError:
        (torn or warnings.warn)(f"{file}: the last line ({len(held[1])} bytes) is torn and left out; that consultation counts as not done")
        return
    yield _parse(file, *held)


def trajectory_file(path: str | Path) -> Path:
    """The trajectory file that `path` is or holds."""
    path = Path(path)
    return path / TRAJECTORIES if path.is_dir() else path


def whole_length(path: Path) -> int:
    """Bytes up to the end of the last whole line that is JSON: where appending may begin."""
    end = 0
    with path.open("rb") as lines:
        last = b""
        for line in lines:
            if line.endswith(b"\n"):
                end, last = end + len(line), line
    if last:
        try:
            json.loads(last)
        except ValueError:
            end -= len(last)
    return end


def write_all(file: io.FileIO, body: bytes) -> None:
    """All of `body` into an unbuffered file, which may take less than it is given at a time. OSError when it takes no more."""
    rest = memoryview(body)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomically(path: Path, content: str | bytes, advice: str = "check the folder and the room left on the disk") -> None:
    """Replace a file whole: a reader, or a kill at any moment, finds the old content or the new.

    A temporary beside it is written and synced, then renamed. RunError, with `advice`, when the system refuses.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(f"could not write {path}: {error.strerror or error}; {advice}") from error


@contextlib.contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the file `path`, made where it is not there, against other processes; one that dies lets go of it.

    RunError where another still holds it after `patience` seconds. Where there is no flock, nothing guards against it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        until = time.monotonic() + patience
        while not _held(file):
            if time.monotonic() >= until:
                raise RunError(f"{path.parent} is in use by another run: wait for it, or give another --output")
            time.sleep(0.1)
        yield


def _held(file: io.IOBase) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """A rename is on disk once its folder is. Where a folder can't be opened (Windows), the system sees to it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parse(file: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunError(f"{file}, line {number}: not JSON ({error}); only the last line of a run may be torn") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise RunError(f"{file}, line {number}: schema {schema!r}; this version of medenv reads trajectories of schema {SCHEMA}")
    return record
