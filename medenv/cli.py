"""The command line: `medenv COMMAND`. Thin: each command checks its options, calls one function and prints.

A bad flag, file or name ends with exit code 2 and one line on standard error; a check that fails, or an evaluation in which every
consultation failed, with 1. Anything unexpected is not caught. With `--json` the last line of standard output is one JSON object.
Everything heavy is imported inside the commands.

Does not cover: what the commands do (`medenv.runs`, `medenv.testing`).
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import medenv
from medenv.errors import MedenvError, RunError, unknown
from medenv.notice import NOTICE

SMOKE = {"num_envs": 64, "rollout": 8, "steps": 1536, "minibatch": 256, "evaluate_every": 1, "evaluate_episodes": 128}
CHECKED = 200  # consultations of each doctor in `check reward`
EXTRAS = {"torch": "torch", "matplotlib": "plots", "PIL": "plots"}  # package: extra that installs it

Command = Callable[..., Any]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = cli.main(args=None if args is None else list(args), prog_name="medenv", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "medenv"
        return _fail(f"{error.format_message().rstrip('.')}: see {place} --help")
    except click.ClickException as error:
        return _fail(error.format_message())
    except click.Abort:
        return _fail("interrupted; finished work is kept where there is an --output", 130)
    except MedenvError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output went away, as `medenv list | head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{name}: check the path and its permissions")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"this needs {error.name}, which is not installed: pip install 'medenv[{EXTRAS[error.name]}]'")


def environment_options(command: Command) -> Command:
    """The options that become arguments of the environment; they arrive as `arguments`, without those not given."""
    options: list[tuple[str, dict[str, Any]]] = [
        ("--knowledge", {"metavar": "SOURCE", "help": "Knowledge base: builtin, ddxplus:DIR, files:DIR, synthetic:12x30."}),
        ("--cases", {"metavar": "SOURCE", "help": "Patients: sampled, ddxplus:FILE."}),
        ("--split", {"metavar": "SPLIT", "help": "train, validation, test or all."}),
        ("--reward", {"metavar": "MIX", "help": "Such as 'accuracy + 0.1*information_gain - 0.01*question_cost'."}),
        ("--max-turns", {"type": click.IntRange(min=1), "metavar": "N", "help": "Actions until the consultation ends."}),
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


@click.group(
    help=f"Reinforcement-learning environments for medical consultations.\n\n{NOTICE}",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(medenv.__version__, prog_name="medenv")
@click.pass_context
def cli(context: click.Context) -> None:
    """See `help`."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Environments, agents, rewards, and how knowledge bases and cases are named."""
    from medenv.agents.doctor import agent_names
    from medenv.cases.named import KINDS as case_kinds
    from medenv.envs.registration import environment_ids
    from medenv.knowledge.named import KINDS as base_kinds
    from medenv.rewards.mix import known_rewards

    found = {
        "environments": environment_ids(),
        "agents": agent_names(),
        "rewards": known_rewards(),
        "knowledge": list(base_kinds),
        "cases": list(case_kinds),
    }
    _emit(found, as_json, lambda: _table("", ["kind", "name"], [[kind, name] for kind, names in found.items() for name in names]))


@cli.group()
def check() -> None:
    """Conformance checks of an environment or a reward mix; exit code 1 when one fails."""


@check.command("env")
@click.argument("env_id", metavar="ID")
@environment_options
@json_option
def check_env(env_id: str, arguments: dict[str, Any], as_json: bool) -> int:
    """Check that the environment ID keeps Gymnasium's rules and medenv's."""
    import gymnasium as gym

    from medenv.envs.registration import environment_ids
    from medenv.testing import check_environment

    if env_id not in gym.registry:
        raise unknown("environment", env_id, environment_ids())
    try:
        check_environment(env_id, **arguments)
    except AssertionError as error:
        return _failed(env_id, error, as_json)
    _emit({"environment": env_id, "ok": True}, as_json, lambda: click.echo(f"{env_id}: all checks passed"))
    return 0


@check.command("reward")
@click.argument("mix")
@environment_options
@seed_option
@json_option
def check_reward_(mix: str, arguments: dict[str, Any], seed: int, as_json: bool) -> int:
    """Parse a reward MIX, check its rewards, and show what honest and random doctors earn under it."""
    from medenv.agents.doctor import BUILT_IN, make_doctor
    from medenv.rewards.mix import parse_mix
    from medenv.runs.consultations import asking, component_means, consultations, make_setup
    from medenv.runs.evaluate import assign, score_row, summarise
    from medenv.testing import check_reward

    rewards = parse_mix(mix)
    setup, _ = make_setup("MedConsult-v0", {"split": "validation"} | arguments | {"reward": rewards})
    try:
        check_reward(rewards)
    except AssertionError as error:
        return _failed(mix, error, as_json)
    terms = [
        {"name": n, "weight": w, "paid": r.when, "bounds": [_finite(b) for b in r.bounds], "needs_truth": r.needs_truth}
        for n, w, r in rewards.terms
    ]
    handles = assign(setup.source, seed, CHECKED)
    doctors: dict[str, dict[str, Any]] = {}
    for name in BUILT_IN:
        played = consultations(setup, handles, asking(make_doctor(name, setup.tables, seed), setup))
        scores = summarise([score_row(r) for r in played], seed)
        doctors[name] = {k: scores[k] for k in ("mean_return", "mean_return_ci", "accuracy", "mean_questions")}
        doctors[name]["components"] = component_means(played)

    def show() -> None:
        _table("Components, weighted; bounds of one step, unweighted", list(terms[0]), [list(t.values()) for t in terms])
        rows = [[name, d["mean_return"], d["accuracy"], d["mean_questions"], *d["components"].values()] for name, d in doctors.items()]
        click.echo()
        _table(f"Means over {CHECKED} consultations", ["doctor", "return", "accuracy", "questions", *rewards.names], rows)

    _emit({"reward": str(rewards), "ok": True, "terms": terms, "doctors": doctors, "seed": seed}, as_json, show)
    return 0


@cli.command()
@click.argument("env_id", metavar="ID")
@environment_options
@click.option("--seed", type=click.IntRange(min=0), default=None, metavar="N", help="Draws the patient.")
@json_option
def play(env_id: str, arguments: dict[str, Any], seed: int | None, as_json: bool) -> None:
    """Be the doctor yourself."""
    from medenv.envs.registration import environment_ids
    from medenv.runs.play import play as play_

    if env_id not in environment_ids():
        raise unknown("environment", env_id, environment_ids())
    result = play_(env_id, seed, arguments, tell=_note)
    if as_json:
        _print_json(result or {"left": True})


@cli.command()
@click.argument("env_id", metavar="ID")
@click.option("--agent", default="greedy", show_default=True, help="random, prevalence, checklist, greedy, oracle or ppo:RUN_DIR.")
@click.option("--episodes", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Consultations.")
@seed_option
@environment_options
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, metavar="N", help="Consultations side by side.")
@output_option
@json_option
def evaluate(
    env_id: str, agent: str, episodes: int, seed: int, arguments: dict[str, Any], batch: int, output: Path | None, as_json: bool
) -> int:
    """Run an agent on fixed test cases. With --output nothing that is finished is done again."""
    from medenv.runs.evaluate import evaluate as evaluate_

    with _progress(f"{agent} on {env_id}") as advance:
        summary = evaluate_(env_id, agent, episodes, seed, output, arguments, batch, advance, _note)
    _emit(summary, as_json, lambda: _summary_table(summary))
    if summary["failures"] == summary["episodes"]:
        return _fail(f"all {summary['episodes']} consultations failed: nothing could be scored{_where(output)}", 1)
    return 0


@cli.group()
def train() -> None:
    """Train a doctor."""


@train.command("ppo")
@click.argument("settings", nargs=-1, metavar="[CONFIG.toml] [KEY=VALUE]...")
@environment_options
@click.option("--resume", is_flag=True, help="Go on with the run in --output, with its settings; seconds and steps may be given anew.")
@click.option("--smoke", is_flag=True, help="A run of seconds, to see that everything works.")
@output_option
@json_option
def train_ppo(settings: tuple[str, ...], arguments: dict[str, Any], resume: bool, smoke: bool, output: Path | None, as_json: bool) -> None:
    """Proximal policy optimisation. Keys are the fields of medenv.agents.ppo.PPOSettings; env.NAME reaches the environment."""
    from medenv.agents.ppo import PPOSettings
    from medenv.runs.training import read_settings, saved_settings
    from medenv.runs.training import train as train_

    folder = output or Path("runs") / ("smoke" if smoke else "ppo")
    start = saved_settings(folder) if resume else {}
    table: dict[str, Any] = dict(SMOKE) if smoke and not start else {}
    for text in settings:
        key, equals, value = text.partition("=")
        table |= {key: value} if equals else _read_toml(Path(text))
    for name, value in arguments.items():
        table[f"env.{name}"] = value
    chosen = read_settings(PPOSettings, table, start)
    with _training_progress(chosen.seconds, chosen.steps) as advance:
        final = train_(chosen, folder, resume=resume, progress=advance)
    kept = {k: final.get(k) for k in ("update", "steps", "seconds", "validation_return", "validation_accuracy", "validation_questions")}
    _emit({"run": str(folder)} | final, as_json, lambda: _table("", ["key", "value"], [["run", str(folder)], *map(list, kept.items())]))


@cli.command()
@click.argument("run", metavar="RUN.jsonl", type=click.Path(exists=True, path_type=Path))
@click.option("--reward", required=True, metavar="MIX", help="The mix to score with.")
@output_option
@json_option
def replay(run: Path, reward: str, output: Path | None, as_json: bool) -> None:
    """Score saved trajectories again with another reward mix."""
    from medenv.runs.replay import replay as replay_

    summary = replay_(run, reward, output, torn=_note)
    components = summary["components"]

    def show() -> None:
        rows = [[k, v] for k, v in summary.items() if k != "components" and not k.endswith("_ci")]
        _table("", ["key", "value"], [*rows, *([f"component {k}", v] for k, v in components.items())])

    _emit(summary, as_json, show)


@cli.group()
def knowledge() -> None:
    """Look into a knowledge base."""


@knowledge.command("show")
@click.argument("name", required=False)
@click.option("--knowledge", "source", default="builtin", show_default=True, metavar="SOURCE", help="The base.")
@json_option
def knowledge_show(name: str | None, source: str, as_json: bool) -> None:
    """The base in numbers, or one condition or finding by its id."""
    from medenv.runs.knowledge import describe, overview

    found = overview(source) if name is None else describe(source, name)
    _emit(found, as_json, lambda: _knowledge_table(found))


@knowledge.command("search")
@click.argument("text")
@click.option("--knowledge", "source", default="builtin", show_default=True, metavar="SOURCE", help="The base.")
@json_option
def knowledge_search(text: str, source: str, as_json: bool) -> None:
    """Conditions and findings whose names are like TEXT."""
    from medenv.runs.knowledge import find

    found = find(source, text)
    _emit({"matches": found}, as_json, lambda: _table("", ["kind", "id", "name"], [list(f.values()) for f in found]))


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@output_option
@json_option
def bench(names: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Measure speed: vector, scalar, gain, import, memory, demo_memory (default: all). --output FILE.md keeps the table."""
    from medenv.runs.bench import bench as bench_
    from medenv.runs.bench import markdown
    from medenv.runs.records import write_atomically

    with _progress("bench") as advance:
        report = bench_(names, advance)
    if output is not None:
        write_atomically(output, markdown(report))
    _emit(report, as_json, lambda: click.echo(markdown(report)))


@cli.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, metavar="DIR", help="Folder.")
@click.option("--seconds", type=click.FloatRange(min=1), default=180.0, show_default=True, metavar="N", help="Training time.")
@click.option("--episodes", type=click.IntRange(min=1), default=2000, show_default=True, metavar="N", help="Test cases.")
@click.option("--knowledge", default="builtin", show_default=True, metavar="SOURCE", help="The base.")
@json_option
def demo(output: Path, seconds: float, episodes: int, knowledge: str, as_json: bool) -> None:
    """Train a doctor for some minutes, compare it with others, show one of its consultations."""
    from medenv.runs.demo import demo as demo_

    with _training_progress(seconds, None) as advance:
        result = demo_(output, seconds, episodes, knowledge, (lambda text: None) if as_json else click.echo, advance)
    if as_json:
        _print_json(result)


def _note(message: str) -> None:
    """A line on standard error that is no failure."""
    click.echo(f"medenv: {message}", err=True)


def _fail(message: str, code: int = 2) -> int:
    click.echo(f"medenv: {' '.join(message.split())}", err=True)
    return code


def _failed(what: str, error: AssertionError, as_json: bool) -> int:
    if as_json:
        _print_json({"checked": what, "ok": False, "message": str(error)})
    return _fail(f"check of {what!r} failed: {error}", 1)


def _where(output: Path | None) -> str:
    return f"; see `failure` in {output / 'trajectories.jsonl'}" if output else "; give --output to keep the causes"


def _read_toml(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{str(file)!r} is neither a settings file nor KEY=VALUE: give a TOML file that exists, or key=value") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is not TOML: {error}") from None


def _finite(x: float) -> float | str:
    return x if abs(x) != float("inf") else "none"


def _emit(result: Mapping[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        _print_json(result)
    else:
        show()


def _print_json(result: Mapping[str, Any]) -> None:
    click.echo(json_module.dumps(result, ensure_ascii=False, allow_nan=False))


def _summary_table(summary: Mapping[str, Any]) -> None:
    from medenv.runs.evaluate import KEYS

    rows = [[k, summary[k], ""] for k in ("environment", "agent", "seed", "base", "episodes", "failures")]
    for key in KEYS:
        interval = summary[f"{key}_ci"]
        rows.append([key, summary[key], "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"])
    _table(NOTICE, ["key", "value", "95 % interval"], rows)


def _knowledge_table(found: Mapping[str, Any]) -> None:
    """An entry with its links: a table of their own, and the sources that they name."""
    links = next((k for k in ("findings", "conditions") if isinstance(found.get(k), Mapping)), None)
    rows = [[k, v] for k, v in found.items() if k not in (links, "sources")]
    _table("", ["key", "value"], rows)
    if links is not None:
        named = [[i, _pairs(e["probabilities"]), e["grade"], e["source"]] for i, e in found[links].items()]
        click.echo()
        _table("", [links[:-1], "probabilities", "grade", "source"], named)
        click.echo()
        _table("", ["source", "citation"], [[k, v] for k, v in found["sources"].items()])


def _pairs(probabilities: Mapping[str, float]) -> str:
    return ", ".join(f"{value} {p:.4g}" for value, p in probabilities.items())


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
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
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
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
def _training_progress(seconds: float | None, steps: int | None) -> Iterator[Callable[[dict[str, Any]], None]]:
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
    return ", ".join(f"{name} {record[prefix + name]:.3f}" for name in ("return", "accuracy", "questions"))
