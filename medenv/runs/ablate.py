"""Reward ablations: the cells of a plan as Ray tasks, then tables, pictures and a page of their results.

    OUTPUT/cells/KEY.json            one result, written whole when its cell is done; a cell that is here is not run again
    OUTPUT/cells.jsonl               the plan's results, one a line: enough to make everything below again
    OUTPUT/results.csv, .md          a row for each environment and mix; comparisons.csv, .md: each mix beside the baseline
    OUTPUT/*.png, report.html        pictures; all of it on one page
    OUTPUT/work                      runs that are not finished

Given the same command, an ablation that was killed at any moment goes on: finished cells are kept, and a cell that was cut goes on from its
last checkpoint. A worker that dies is replaced, and how often is counted. A cell that raises, or takes longer than it may, is reported with
its cause and missing in the tables, which are then unfinished; it is never a score.

Folders are paths on every node: on a cluster without a shared one, a cell that is moved to another node starts again.

Does not cover: what a cell does (`cells`), what is made of the results (`ablation_tables`, `ablation_plots`, `ablation_report`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import json
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medenv.errors import MedenvError, RunError
from medenv.runs.ablation_tables import Name, Outcomes, comparison_notes, comparison_rows, name_of, notes, result_rows, sources, unfinished
from medenv.runs.cells import Cell, Plan, Result, check_names, read_plan, run_cell
from medenv.runs.cluster import cluster
from medenv.runs.records import locked, write_atomically
from medenv.runs.tables import write_table

RETRIES = 3  # of a cell whose worker died
PATIENCE = 60.0  # seconds that a cell waits for a worker of a killed run to be gone
GRACE = 30.0  # seconds after its time-out until the worker of a cell that does not stop is ended
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # more would only fight
KEPT = "finished cells are kept: make room and give the same command again"

Run = Callable[[Cell, Path], Result]
Progress = Callable[[int, int], None]


@dataclass
class Done:
    """What a run of an ablation did: cells that were run and that were there, causes of those that failed, workers replaced."""

    ran: int = 0
    cached: int = 0
    retries: int = 0
    causes: dict[Name, str] = field(default_factory=dict)


def ablate(
    config: Path,
    output: Path,
    address: str = "",
    workers: int | None = None,
    data: str | None = None,
    only: Sequence[str] = (),
    timeout: float | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    run: Run = run_cell,
) -> tuple[Done, Outcomes | None]:
    """Run the cells of the plan in `config` that are not in `output` yet, then write tables, pictures and the page.

    `workers`: cells at once (None: as many as the cluster has CPUs). `only`: some of `seed=N` and `environment=NAME`: run these cells and
    make no tables (None in place of outcomes). `timeout`: seconds of one cell, over the plan's. `progress` gets (done, all), `tell` a line
    for each cell that failed. RunError: a plan that can't be, a folder in use, a full disk, no cluster.
    """
    plan = read_plan(config, data)
    check_names(plan, config)
    cells = selected(plan, only)
    output = output.resolve()
    with locked(output / "work" / "lock"):
        done = _run_missing(cells, output, address, workers, timeout or plan.timeout, progress, tell, run)
        if only:
            return done, None
        found = outcomes(plan, output, done.causes, any_version=False)
        write_cells(found, output)
        write_report(found, output, command(config, data))
        if not found.missing:
            _clear(output / "work")
    return done, found


def report(config: Path, output: Path, data: str | None = None) -> Outcomes:
    """Tables, pictures and page from the results in `output` alone, whichever version of medenv made them. Runs nothing, needs no data."""
    plan = read_plan(config, data or "{data}")
    found = outcomes(plan, output, {}, any_version=True)
    if not found.results:
        raise RunError(f"{output} holds no results of {config}: run the ablation first, or give the --output that holds its cells.jsonl")
    write_report(found, output, command(config, data or ("DIR" if "{data}" in config.read_text(encoding="utf-8") else None)))
    return found


def summary(done: Done | None, found: Outcomes | None) -> dict[str, Any]:
    """For people and programs: counts of cells (None where nothing was run, or no table made), and the rows of results."""
    out: dict[str, Any] = dict.fromkeys(("ran", "cached", "retries", "failed", "missing"))
    if done is not None:
        out |= {"ran": done.ran, "cached": done.cached, "retries": done.retries, "failed": len(done.causes)}
    if found is not None:
        out["missing"] = len(found.missing)
    return out | {"causes": [found.why(n) for n in found.missing] if found else [], "rows": result_rows(found) if found else []}


def selected(plan: Plan, only: Sequence[str]) -> list[Cell]:
    """The cells that `only` asks for, all of them if it is empty. References come with their environment."""
    wanted: dict[str, set[str]] = {}
    known = {"seed": [str(s) for s in plan.seeds], "environment": list(plan.environments)}
    for text in only:
        key, _, value = text.partition("=")
        if value not in known.get(key, []):
            choices = ", ".join(f"{k}={v}" for k, values in known.items() for v in values)
            raise RunError(f"--only {text!r} is nothing of this plan: give one of {choices}; once more for another")
        wanted.setdefault(key, set()).add(value)
    environments, seeds = wanted.get("environment"), wanted.get("seed")
    return [
        c
        for c in plan.cells()
        if (environments is None or c.environment in environments) and (seeds is None or c.mix == c.trainer or str(c.seed) in seeds)
    ]


def outcomes(plan: Plan, output: Path, causes: Mapping[Name, str], any_version: bool) -> Outcomes:
    """The plan's results in `output`: by key; with `any_version` else by names and reward, which is then counted in `other_keys`.

    Where a base can't be read, the key without it and the environment's name stand for the key.
    """
    by_key = read_results(output)
    by_rest = {(r["environment"], r["key_without_base"]): r for r in by_key.values() if "key_without_base" in r}
    by_name = {(r["environment"], r["mix"], r["seed"]): r for r in by_key.values()}
    results: dict[Name, Result] = {}
    others = 0
    for cell in plan.cells():
        key, name = _key(cell), name_of(cell)
        result = by_rest.get((cell.environment, cell.key_without_base)) if key is None else by_key.get(key)
        if result is None and any_version:
            result = by_name.get(name)
            if result is not None and (result["reward"], result["trainer"]) != (cell.reward, cell.trainer):
                result = None
            others += result is not None
        if result is not None:
            results[name] = {**result, "environment": cell.environment, "mix": cell.mix, "seed": cell.seed}
    return Outcomes(plan, results, causes, others)


def read_results(output: Path) -> dict[str, Result]:
    """Results by key, of OUTPUT/cells.jsonl and OUTPUT/cells. RunError for one that can't be read."""
    file = output / "cells.jsonl"
    texts = [(file, line) for line in (file.read_text(encoding="utf-8").splitlines() if file.exists() else [])]
    texts += [(p, p.read_text(encoding="utf-8")) for p in sorted((output / "cells").glob("*.json"))]
    out: dict[str, Result] = {}
    for path, text in texts:
        try:
            result = json.loads(text)
            out[result["key"]] = result
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} holds no result ({type(error).__name__}: {error}): put back a copy of it, or remove it") from error
    return out


def write_report(found: Outcomes, output: Path, made_by: str) -> None:
    """Everything that is made of results, which stay as they are. Byte for byte the same for the same results. RunError for a full disk."""
    from medenv.runs.ablation_report import page

    tables = {"results": (result_rows(found), notes(found)), "comparisons": (comparison_rows(found), comparison_notes(found))}
    made = sources(found, made_by)
    for name, (rows, above) in tables.items():
        write_table(output / name, rows, [*unfinished(found), *above], made)
    drawn: dict[str, bytes] = {}
    if importlib.util.find_spec("matplotlib"):
        from medenv.runs.ablation_plots import pictures

        drawn = pictures(found)
        for name, png in drawn.items():
            write_atomically(output / f"{name}.png", png, KEPT)
    write_atomically(output / "report.html", page(found, tables, drawn, made), KEPT)


def write_cells(found: Outcomes, output: Path) -> None:
    """The plan's results, one a line. Others that stood there, of a plan before this one, become files in OUTPUT/cells."""
    here = [found.results[name] for name in map(name_of, found.plan.cells()) if name in found.results]
    for key in (there := read_results(output)).keys() - {r["key"] for r in here}:
        write_atomically(output / "cells" / f"{key}.json", _line(there[key]), KEPT)
    write_atomically(output / "cells.jsonl", "".join(_line(r) for r in here), KEPT)


def command(config: Path, data: str | None) -> str:
    """What makes these results, as it is told in them."""
    return f"medenv ablate {config.as_posix()}" + (" --data DIR" if data else "")


def _run_missing(
    cells: Sequence[Cell],
    output: Path,
    address: str,
    workers: int | None,
    timeout: float | None,
    progress: Progress | None,
    tell: Callable[[str], None] | None,
    run: Run,
) -> Done:
    there = read_results(output)
    wanted = {c.key: c for c in cells}  # two mixes that say the same are one cell
    waiting = {key: c for key, c in wanted.items() if key not in there}
    done = Done(cached=len(wanted) - len(waiting))
    advance = progress or (lambda done, total: None)
    advance(done.cached, len(wanted))
    for key in wanted.keys() - waiting.keys():
        shutil.rmtree(output / "work" / key, ignore_errors=True)  # killed between the result and this
    if waiting:
        with cluster(address, cpus=1, own_cpus=workers) as found:
            at_once = min(workers or max(int(found["CPU"]), 1), len(waiting))
            for cell, result, why, retries in _results(list(waiting.values()), output / "work", at_once, timeout, run):
                done.retries += retries
                if result is None:
                    done.causes |= {name_of(c): why for c in cells if c.key == cell.key}
                    (tell or (lambda text: None))(f"{cell}: {why}")
                else:
                    write_atomically(output / "cells" / f"{cell.key}.json", _line({**result, "retries": retries}), KEPT)
                    shutil.rmtree(output / "work" / cell.key, ignore_errors=True)
                    done.ran += 1
                advance(done.cached + done.ran + len({c.key for c in cells if name_of(c) in done.causes}), len(wanted))
    return done


def _results(
    cells: Sequence[Cell], work: Path, at_once: int, timeout: float | None, run: Run
) -> Iterator[tuple[Cell, Result | None, str, int]]:
    """As they come: the cell, its result or None, why there is none, and how often it was started again."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": ONE_THREAD})(in_worker)
    waiting = deque((cell, 0) for cell in cells)
    running: dict[Any, tuple[Cell, int, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                cell, started_again = waiting.popleft()
                running[task.remote(run, cell, str(work / cell.key), timeout)] = cell, started_again, time.monotonic()
            (ready,), _ = ray.wait(list(running), num_returns=1)
            cell, started_again, since = running.pop(ready)
            try:
                yield cell, ray.get(ready), "", started_again
            except RayTaskError as error:
                cause = getattr(error, "cause", None) or error
                kind = "" if isinstance(cause, MedenvError) else f"{type(cause).__name__}: "
                yield cell, None, " ".join(f"{kind}{cause}".split())[:500], started_again
            except RayError as error:  # the worker or its node is gone
                if timeout is not None and time.monotonic() - since >= timeout + GRACE:
                    yield cell, None, _late(timeout), started_again
                elif started_again < RETRIES:
                    waiting.appendleft((cell, started_again + 1))
                else:
                    yield cell, None, f"its worker died {RETRIES + 1} times, last: {type(error).__name__}", started_again
    finally:
        for ref in running:
            with contextlib.suppress(RayError):
                ray.cancel(ref, force=True)


def in_worker(run: Run, cell: Cell, folder: str, timeout: float | None) -> Result:
    """One cell, in the process of a Ray worker: on one thread, alone in its folder, no longer than `timeout` seconds."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
    with locked(Path(f"{folder}.lock"), PATIENCE), _at_most(timeout):
        return run(cell, Path(folder))


class _TimeIsUp(BaseException):
    """Not an Exception: those are what a doctor, a patient or a reward does wrong, and consultations go on after them."""


def _late(seconds: float) -> str:
    return f"it took longer than its time-out of {seconds:g} s"


@contextlib.contextmanager
def _at_most(seconds: float | None) -> Iterator[None]:
    """RunError after so many seconds in the main thread, which no cell can take for a doctor's mistake; a process that does not heed it is
    ended some seconds later."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        yield
    except _TimeIsUp:
        raise RunError(_late(seconds)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _clear(work: Path) -> None:
    """Nothing is left to go on with: starts that cells share, locks of cells, what a kill left behind."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)


def _key(cell: Cell) -> str | None:
    """The cell's key; None where its base can't be read, as on a machine without the data."""
    try:
        return cell.key
    except MedenvError:
        return None


def _line(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n"
