"""What the commands of `medenv.cli` share: errors as exit codes, options, output, tables, progress bars.

Does not cover: the commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from medenv.errors import MedenvError, RunError
from medenv.notice import NOTICE

EXTRAS = {"torch": "torch", "ray": "ray", "matplotlib": "plots", "PIL": "plots"} | dict.fromkeys(
    ("transformers", "trl", "accelerate", "datasets", "peft", "tokenizers"), "trl"
)  # package: extra that installs it

Command = Callable[..., Any]


def run_command(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run `command` on `args` (default: the process's own); returns the exit code, after one line on standard error where it failed."""
    try:
        code = command.main(args=None if args is None else list(args), prog_name="medenv", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "medenv"
        return fail(f"{error.format_message().rstrip('.')}: see {place} --help")
    except click.ClickException as error:
        return fail(error.format_message())
    except click.Abort:
        return fail("interrupted; finished work is kept where there is an --output", 130)
    except MedenvError as error:
        return fail(str(error))
    except BrokenPipeError:  # the reader of our output went away, as `medenv list | head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{name}: check the path and its permissions")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return fail(f"this needs {error.name}, which is not installed: pip install 'medenv[{EXTRAS[error.name]}]'")


def environment_options(command: Command) -> Command:
    """The options that become arguments of the environment; they arrive as `arguments`, without those not given."""
    options: list[tuple[str, dict[str, Any]]] = [
        ("--knowledge", {"metavar": "SOURCE", "help": "Knowledge base: builtin, ddxplus:DIR, files:DIR, synthetic:12x30."}),
        ("--cases", {"metavar": "SOURCE", "help": "Patients: sampled, ddxplus:FILE."}),
        ("--split", {"metavar": "SPLIT", "help": "train, validation, test or all."}),
        ("--reward", {"metavar": "MIX", "help": "Such as 'accuracy + 0.1*information_gain - 0.01*question_cost'."}),
        ("--max-turns", {"type": click.IntRange(min=1), "metavar": "N", "help": "Actions until the consultation ends."}),
        ("--complaint", {"metavar": "FINDING", "help": "What every patient comes with, such as chest_pain."}),
        ("--noise", {"type": click.FloatRange(0, 0.5), "metavar": "P", "help": "Probability of a misreported answer."}),
    ]

    def wrapped(**given: Any) -> Any:
        names = [flag[2:].replace("-", "_") for flag, _ in options]
        arguments = {name: given.pop(name) for name in names}
        return command(arguments={k: v for k, v in arguments.items() if v is not None}, **given)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    for option in getattr(command, "__click_params__", []):
        wrapped.__dict__.setdefault("__click_params__", []).append(option)
    for flag, settings in reversed(options):
        wrapped = click.option(flag, default=None, **settings)(wrapped)
    return wrapped


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
output_option = click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder for what is written.")
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Draws the patients.")


def note(message: str) -> None:
    """A line on standard error that is no failure."""
    click.echo(f"medenv: {message}", err=True)


def note_where(folder: Path) -> None:
    """A note where what a Ray job writes into `folder` goes with the job."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not folder.is_absolute():
        note(f"{folder} lies in the job's own directory and goes with it: give --output an absolute path that all machines see")


def fail(message: str, code: int = 2) -> int:
    """One line on standard error; returns the exit code."""
    click.echo(f"medenv: {' '.join(message.split())}", err=True)
    return code


def failed(what: str, error: AssertionError, as_json: bool) -> int:
    """A conformance check of `what` that did not pass; returns the exit code."""
    if as_json:
        print_json({"checked": what, "ok": False, "message": str(error)})
    return fail(f"check of {what!r} failed: {error}", 1)


def where_causes_are(output: Path | None) -> str:
    """The end of a message about consultations that failed."""
    return f"; see `failure` in {output / 'trajectories.jsonl'}" if output else "; give --output to keep the causes"


def read_toml(file: Path) -> dict[str, Any]:
    """A settings file; RunError where it is missing or not TOML."""
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{str(file)!r} is neither a settings file nor KEY=VALUE: give a TOML file that exists, or key=value") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is not TOML: {error}") from None


def finite(x: float) -> float | str:
    """A bound as JSON and a table take it."""
    return x if abs(x) != float("inf") else "none"


def emit(result: Mapping[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """The result as JSON with `--json`, else as `show` prints it."""
    if as_json:
        print_json(result)
    else:
        show()


def print_json(result: Mapping[str, Any]) -> None:
    """One line on standard output; NaN and infinities are errors."""
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def print_summary(summary: Mapping[str, Any]) -> None:
    """An evaluation: its scores with their intervals."""
    from medenv.runs.evaluate import KEYS

    rows = [[k, summary[k], ""] for k in ("environment", "agent", "seed", "base", "episodes", "failures")]
    for key in KEYS:
        interval = summary[f"{key}_ci"]
        rows.append([key, summary[key], "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"])
    print_table(NOTICE, ["key", "value", "95 % interval"], rows)


def print_ablation(told: Mapping[str, Any]) -> None:
    """An ablation: what was run, and the rows of its table that matter most."""
    if told["rows"]:
        columns = ["environment", "mix", "seeds", "return", "return_ci", "accuracy", "questions", "normalised", "steps_to_90", "reached"]
        print_table(NOTICE, columns, [[row.get(c) for c in columns] for row in told["rows"]])
        click.echo(f"{told['output']}/report.html holds all of it")
    click.echo(", ".join(f"{k}: {told[k]}" for k in ("ran", "cached", "retries", "failed", "missing") if told[k] is not None))


def print_knowledge(found: Mapping[str, Any]) -> None:
    """An entry with its links: a table of their own, and the sources that they name."""
    links = next((k for k in ("findings", "conditions") if isinstance(found.get(k), Mapping)), None)
    rows = [[k, v] for k, v in found.items() if k not in (links, "sources")]
    print_table("", ["key", "value"], rows)
    if links is not None:
        named = [[i, _pairs(e["probabilities"]), e["grade"], e["source"]] for i, e in found[links].items()]
        click.echo()
        print_table("", [links[:-1], "probabilities", "grade", "source"], named)
        click.echo()
        print_table("", ["source", "citation"], [[k, v] for k, v in found["sources"].items()])


def _pairs(probabilities: Mapping[str, float]) -> str:
    return ", ".join(f"{value} {p:.4g}" for value, p in probabilities.items())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on a terminal, else lines with tabs between the cells."""
    cells = [[_cell(c) for c in row] for row in rows]
    if not sys.stdout.isatty():
        if title:
            click.echo(title)
        for line in [list(columns), *cells]:
            click.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title or None, title_justify="left")
    for line in cells:
        table.add_row(*line)
    Console().print(table, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error when that is a terminal; calls are (done, all)."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def training_progress(seconds: float | None, steps: int | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, else a line per validation; both on standard error. Calls are metrics records."""
    if not sys.stderr.isatty():

        def line(record: dict[str, Any]) -> None:
            if record.get("validation_return") is not None:
                click.echo(f"update {record['update']}, {record['steps']} steps: {_told(record)}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=steps or seconds or 300, told="")

        known: dict[str, Any] = {}

        def advance(record: dict[str, Any]) -> None:
            known.update({k: v for k, v in record.items() if v is not None})
            told = _told(known, "" if "return" in known else "validation_")  # none has ended before the first update
            bar.update(task, completed=record["steps" if steps else "seconds"], told=told)

        yield advance


def _told(record: Mapping[str, Any], prefix: str = "validation_") -> str:
    names = [n for n in ("return", "accuracy", "questions") if record.get(prefix + n) is not None]
    return ", ".join(f"{name} {record[prefix + name]:.3f}" for name in names) or "begins"
