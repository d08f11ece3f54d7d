"""The command line: `medenv COMMAND`. Thin: each command checks its options, calls one function and prints.

A bad flag, file or name ends with exit code 2 and one line on standard error; a check that fails, or an evaluation in which every
consultation failed, with 1. Anything unexpected is not caught. With `--json` the last line of standard output is one JSON object.
Everything heavy is imported inside the commands.

Does not cover: training commands (`medenv.cli_train`); what the commands do (`medenv.runs`, `medenv.testing`); how they print and fail
(`medenv.cli_support`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import medenv
from medenv.cli_support import (
    emit,
    environment_options,
    fail,
    failed,
    finite,
    json_option,
    note,
    note_where,
    output_option,
    print_ablation,
    print_json,
    print_knowledge,
    print_summary,
    print_table,
    progress_bar,
    run_command,
    seed_option,
    training_progress,
    where_causes_are,
)
from medenv.cli_train import train
from medenv.errors import unknown
from medenv.notice import NOTICE


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(cli, args)


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
    from medenv.envs.registration import TEXT_IDS, environment_ids
    from medenv.knowledge.named import KINDS as base_kinds
    from medenv.rewards.mix import known_presets, known_rewards

    found = {
        "environments": [*environment_ids(), *TEXT_IDS],
        "agents": agent_names(),
        "rewards": known_rewards(),
        "presets": known_presets(),
        "knowledge": list(base_kinds),
        "cases": list(case_kinds),
    }
    emit(found, as_json, lambda: print_table("", ["kind", "name"], [[kind, name] for kind, names in found.items() for name in names]))


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
        return failed(env_id, error, as_json)
    emit({"environment": env_id, "ok": True}, as_json, lambda: click.echo(f"{env_id}: all checks passed"))
    return 0


@check.command("reward")
@click.argument("mix")
@environment_options
@click.option("--episodes", type=click.IntRange(min=1), default=500, show_default=True, metavar="N", help="Consultations of each doctor.")
@seed_option
@json_option
def check_reward_(mix: str, arguments: dict[str, Any], episodes: int, seed: int, as_json: bool) -> int:
    """Parse a reward MIX, check its rewards, and attack it: does any trick earn what an honest doctor earns?"""
    from medenv.rewards.mix import parse_mix
    from medenv.runs.attacks import attack
    from medenv.testing import check_reward

    rewards = parse_mix(mix)
    try:
        check_reward(rewards)
    except AssertionError as error:
        return failed(mix, error, as_json)
    terms = [
        {"name": n, "weight": w, "paid": r.when, "bounds": [finite(b) for b in r.bounds], "needs_truth": r.needs_truth}
        for n, w, r in rewards.terms
    ]
    with progress_bar("attacks") as advance:
        found = attack(rewards, arguments, episodes, seed, progress=advance)

    def show() -> None:
        print_table("Components, weighted; bounds of one step, unweighted", list(terms[0]), [list(t.values()) for t in terms])
        click.echo()
        _print_attacks(found, rewards.names)

    emit({"reward": str(rewards), "ok": True, "terms": terms, "seed": seed} | found, as_json, show)
    return 0


def _print_attacks(found: Mapping[str, Any], components: Sequence[str]) -> None:
    from medenv.runs.attacks import verdict

    honest = found["honest"]
    rows = []
    for name, a in ({f"honest: {honest['doctor']}": honest} | found["attacks"]).items():
        interval = None if a["ci"] is None else f"{a['ci'][0]:.4g} to {a['ci'][1]:.4g}"
        pays = "" if a is honest else {True: "yes", False: "no"}.get(a["pays"])
        rows.append([name, a["mean"], interval, pays, a["accuracy"], a["questions"], *a["components"].values()])
    columns = ["doctor", "return", "95 % interval", "pays", "accuracy", "questions", *(f"from {c}" for c in components)]
    print_table(f"Means over {found['episodes']} consultations, the same for every doctor", columns, rows)
    for name in ("credit_of_duplicates", "gain_of_duplicates"):
        if found["attacks"]["duplicate_credit"].get(name) is not None:
            click.echo(f"{name}: {found['attacks']['duplicate_credit'][name]:.4g} nats a question")
    click.echo(verdict(found))
    click.echo(f"Only in words, not tried here: {', '.join(found['in_words'])}")


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
    result = play_(env_id, seed, arguments, tell=note)
    if as_json:
        print_json(result or {"left": True})


@cli.command()
@click.argument("env_id", metavar="ID")
@click.option("--agent", default="greedy", show_default=True, help="As `medenv list` names them: greedy, ppo:RUN_DIR, ….")
@click.option("--episodes", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Consultations.")
@seed_option
@environment_options
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, metavar="N", help="Consultations side by side.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, metavar="T", help="Of a language model.")
@output_option
@json_option
def evaluate(
    env_id: str,
    agent: str,
    episodes: int,
    seed: int,
    arguments: dict[str, Any],
    batch: int,
    temperature: float,
    output: Path | None,
    as_json: bool,
) -> int:
    """Run an agent on fixed test cases. With --output nothing that is finished is done again."""
    from medenv.runs.evaluate import evaluate as evaluate_

    with progress_bar(f"{agent} on {env_id}") as advance:
        summary = evaluate_(env_id, agent, episodes, seed, output, arguments, batch, advance, note, temperature)
    emit(summary, as_json, lambda: print_summary(summary))
    if summary["failures"] == summary["episodes"]:
        return fail(f"all {summary['episodes']} consultations failed: nothing could be scored{where_causes_are(output)}", 1)
    return 0


cli.add_command(train)


@cli.command()
@click.argument("env_id", metavar="[ID]", default="MedConsultText-v0")
@environment_options
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDR", help="Where to listen; 0.0.0.0: on every network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="N", help="0: any that is free.")
def serve(env_id: str, arguments: dict[str, Any], host: str, port: int) -> None:
    """Patients over HTTP, spoken to as any chat model is (OpenAI's chat completions)."""
    from medenv.runs.serve import serve as serve_

    serve_(env_id, arguments, host, port, click.echo)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("--address", default="", metavar="http://HOST:8265", help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS.")
@click.option("--working-dir", type=click.Path(path_type=Path), default=Path("."), show_default=True, metavar="DIR", help="Goes along.")
@click.option("--exclude", "excludes", multiple=True, metavar="PATTERN", help="Leave more of it out, as in a .gitignore.")
@click.option("--installed", is_flag=True, help="The cluster has medenv: DIR need not hold it.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the output and end with the job's exit code.")
@json_option
def submit(
    command: tuple[str, ...],
    address: str,
    working_dir: Path,
    excludes: tuple[str, ...],
    installed: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Run a COMMAND, such as `medenv train ppo`, as a job on a Ray cluster."""
    from medenv.runs.jobs import submit as submit_

    job = submit_(command, address, working_dir, installed, excludes, wait, tell=lambda text: click.echo(text, nl=False, err=as_json))
    emit(job, as_json, lambda: click.echo(f"job {job['job']}: {job['status']}"))
    if job["status"] in ("SUBMITTED", "SUCCEEDED"):
        return 0
    return fail(f"job {job['job']} on {job['address']} ended as {job['status']}: its output says why", job["exit_code"] or 1)


@cli.command()
@click.argument("config", metavar="CONFIG.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option
@click.option(
    "--address", default="", metavar="ADDR", help="Ray cluster: HOST:PORT, ray://HOST:PORT or local (default: RAY_ADDRESS or local)."
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Cells at once (default: as many as the cluster has CPUs).")
@click.option("--data", metavar="DIR", help="Takes the place of {data} in CONFIG, such as a DDXPlus release.")
@click.option(
    "--only", multiple=True, metavar="KEY=VALUE", help="Run the cells of seed=N or environment=NAME, make no tables; may be repeated."
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Seconds of one cell; a longer one has failed.")
@click.option("--report-only", is_flag=True, help="Make tables and page again from the results in --output; runs nothing.")
@json_option
def ablate(
    config: Path,
    output: Path | None,
    address: str,
    workers: int | None,
    data: str | None,
    only: tuple[str, ...],
    timeout: float | None,
    report_only: bool,
    as_json: bool,
) -> int:
    """Reward ablations: the mixes of CONFIG over seeds and environments, as tasks on a Ray cluster, in tables and one page (report.html).

    --output is runs/NAME by default. Given again after a kill, the command goes on; what is finished is not run again.
    """
    from medenv.runs.ablate import ablate as ablate_
    from medenv.runs.ablate import report, summary

    folder = output or Path("runs") / config.stem
    note_where(folder)
    with progress_bar(config.stem) as advance:
        if report_only:
            told = summary(None, report(config, folder, data))
        else:
            told = summary(*ablate_(config, folder, address, workers, data, only, timeout, advance, note))
    told |= {"output": str(folder)}
    emit(told, as_json, lambda: print_ablation(told))
    if told["missing"] or told["failed"]:
        return fail(f"unfinished: {told['missing'] or told['failed']} cells are missing; give the same command again", 1)
    return 0


@cli.command()
@click.argument("run", metavar="RUN.jsonl", type=click.Path(exists=True, path_type=Path))
@click.option("--reward", required=True, metavar="MIX", help="The mix to score with.")
@output_option
@json_option
def replay(run: Path, reward: str, output: Path | None, as_json: bool) -> None:
    """Score saved trajectories again with another reward mix."""
    from medenv.runs.replay import replay as replay_

    summary = replay_(run, reward, output, torn=note)
    components = summary["components"]

    def show() -> None:
        rows = [[k, v] for k, v in summary.items() if k != "components" and not k.endswith("_ci")]
        print_table("", ["key", "value"], [*rows, *([f"component {k}", v] for k, v in components.items())])

    emit(summary, as_json, show)


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
    emit(found, as_json, lambda: print_knowledge(found))


@knowledge.command("search")
@click.argument("text")
@click.option("--knowledge", "source", default="builtin", show_default=True, metavar="SOURCE", help="The base.")
@json_option
def knowledge_search(text: str, source: str, as_json: bool) -> None:
    """Conditions and findings whose names are like TEXT."""
    from medenv.runs.knowledge import find

    found = find(source, text)
    emit({"matches": found}, as_json, lambda: print_table("", ["kind", "id", "name"], [list(f.values()) for f in found]))


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@output_option
@json_option
def bench(names: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Measure speed: vector, rewards, scalar, text, gain, shapley, import, … (default: all). --output FILE.md keeps the table."""
    from medenv.runs.bench import bench as bench_
    from medenv.runs.bench import markdown
    from medenv.runs.records import write_atomically

    with progress_bar("bench") as advance:
        report = bench_(names, advance)
    if output is not None:
        write_atomically(output, markdown(report))
    emit(report, as_json, lambda: click.echo(markdown(report)))


@cli.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, metavar="DIR", help="Folder.")
@click.option("--seconds", type=click.FloatRange(min=1), default=180.0, show_default=True, metavar="N", help="Training time.")
@click.option("--episodes", type=click.IntRange(min=1), default=2000, show_default=True, metavar="N", help="Test cases.")
@click.option("--knowledge", default="builtin", show_default=True, metavar="SOURCE", help="The base.")
@json_option
def demo(output: Path, seconds: float, episodes: int, knowledge: str, as_json: bool) -> None:
    """Train a doctor for some minutes, compare it with others, show one of its consultations."""
    from medenv.runs.demo import demo as demo_

    with training_progress(seconds, None) as advance:
        result = demo_(output, seconds, episodes, knowledge, (lambda text: None) if as_json else click.echo, advance)
    if as_json:
        print_json(result)
