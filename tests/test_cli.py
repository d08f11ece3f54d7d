"""The command line: exit codes, one-line errors, JSON as the last line, and each command once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ddxplus_fixture import draw_rows, row, write_patients, write_release

from medenv.cli import main
from medenv.runs import bench
from medenv.runs.bench import markdown
from medenv.runs.play import play, search

SMALL = ["--knowledge", "synthetic:12x30"]
ID = "MedConsult-v0"
ROOT = str(Path(__file__).parents[1])
COMMANDS = [
    *([], ["list"], ["check"], ["check", "env"], ["check", "reward"], ["play"], ["evaluate"], ["train"], ["train", "ppo"]),
    *(["replay"], ["knowledge"], ["knowledge", "show"], ["knowledge", "search"], ["bench"], ["demo"]),
]


def medenv(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A fresh process."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run([sys.executable, "-m", "medenv", *arguments], capture_output=True, text=True, env=environment, **more)


def last_json(out: str) -> dict[str, Any]:
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help__every_command_has_one(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: medenv") and len(out.splitlines()) > 3


def test_help__says_that_it_is_a_simulator_and_comes_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "research simulator: not medical advice" in capsys.readouterr().out
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert medenv("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0  # 0.25 s on an idle core


def test_import__loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "transformers", "matplotlib", "rich", "scipy")
    code = f"import sys, medenv, medenv.cli; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "[]"


BAD: dict[str, tuple[list[str], str]] = {
    "no such command": (["evalute"], "evalute"),
    "no such option": (["evaluate", ID, "--epsodes", "3"], "--epsodes"),
    "missing argument": (["evaluate"], "ID"),
    "not a number": (["evaluate", ID, "--episodes", "many"], "many"),
    "out of range": (["evaluate", ID, "--episodes", "0"], "0"),
    "negative seed": (["evaluate", ID, "--seed", "-1"], "-1"),
    "noise": (["evaluate", ID, "--noise", "0.9"], "0.9"),
    "turns": (["evaluate", ID, "--max-turns", "0"], "0"),
    "environment": (["evaluate", "MedConslt-v0"], "did you mean 'MedConsult-v0'"),
    "agent": (["evaluate", ID, *SMALL, "--agent", "gredy"], "did you mean 'greedy'"),
    "ppo directory": (["evaluate", ID, *SMALL, "--agent", "ppo:/nowhere"], "/nowhere"),
    "knowledge": (["evaluate", ID, "--knowledge", "bultin"], "bultin"),
    "knowledge size": (["evaluate", ID, "--knowledge", "synthetic:12"], "synthetic:12"),
    "knowledge folder": (["evaluate", ID, "--knowledge", "files:/nowhere"], "/nowhere"),
    "cases": (["evaluate", ID, *SMALL, "--cases", "smpled"], "smpled"),
    "cases file": (["evaluate", ID, *SMALL, "--cases", "ddxplus:/nowhere.csv"], "/nowhere.csv"),
    "split": (["evaluate", ID, *SMALL, "--split", "tset"], "did you mean 'test'"),
    "reward": (["evaluate", ID, *SMALL, "--reward", "acuracy"], "did you mean 'accuracy'"),
    "reward syntax": (["check", "reward", "accuracy + "], "character"),
    "reward empty": (["check", "reward", ""], "empty"),
    "check environment": (["check", "env", "CartPoleX"], "CartPoleX"),
    "play": (["play", "MedConsult-v9"], "MedConsult-v9"),
    "replay nothing": (["replay", "/nowhere.jsonl", "--reward", "accuracy"], "/nowhere.jsonl"),
    "replay without reward": (["replay", __file__], "--reward"),
    "replay no trajectories": (["replay", __file__, "--reward", "accuracy"], "test_cli.py"),
    "train what": (["train", "pppo"], "pppo"),
    "train setting": (["train", "ppo", "learnin_rate=1"], "learnin_rate"),
    "train type": (["train", "ppo", "num_envs=few"], "few"),
    "train file": (["train", "ppo", "nowhere.toml"], "nowhere.toml"),
    "train not toml": (["train", "ppo", __file__], "not TOML"),
    "bench": (["bench", "vectr"], "did you mean 'vector'"),
    "knowledge entry": (["knowledge", "show", "condition-00", *SMALL], "did you mean"),
    "knowledge base": (["knowledge", "search", "pain", "--knowledge", "nothing"], "nothing"),
    "output is a file": (["evaluate", ID, *SMALL, "--output", __file__], "test_cli.py"),
    "output below a file": (["evaluate", ID, *SMALL, "--output", f"{__file__}/run"], "test_cli.py"),
    "demo output": (["demo", "--output", __file__], "test_cli.py"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input__exits_with_2_and_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, seen = BAD[name]
    assert main(command) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and len(caught.err.splitlines()) == 1 and caught.err.startswith("medenv: "), caught.err
    assert seen in caught.err and "Traceback" not in caught.err


def test_bad_input__in_a_fresh_process() -> None:
    ran = medenv("evaluate", ID, *SMALL, "--agent", "gredy")
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and ran.stdout == ""


def test_unexpected_errors__are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("medenv.runs.evaluate.assign", broken)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", ID, *SMALL])


def test_output__a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m medenv knowledge show --knowledge synthetic:12x30 | true"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert "Traceback" not in ran.stderr


def test_list__names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    found = last_json(capsys.readouterr().out)
    assert ID in found["environments"] and "greedy" in found["agents"] and "accuracy" in found["rewards"]
    assert main(["list"]) == 0
    assert ID in capsys.readouterr().out


def test_evaluate__prints_json_or_lines_and_keeps_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", ID, *SMALL, "--episodes", "20", "--seed", "1", "--max-turns", "6", "--output", str(tmp_path / "run")]
    assert main([*command, "--json"]) == 0
    summary = last_json(capsys.readouterr().out)
    assert summary["episodes"] == 20 and summary["arguments"]["max_turns"] == 6 and len(summary["accuracy_ci"]) == 2
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "accuracy\t" in out and "not medical advice" in out and "\x1b" not in out


def test_replay__scores_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["evaluate", ID, *SMALL, "--episodes", "10", "--output", run, "--json"]) == 0
    summary = last_json(capsys.readouterr().out)
    assert main(["replay", f"{run}/trajectories.jsonl", "--reward", summary["arguments"]["reward"], "--json"]) == 0
    assert last_json(capsys.readouterr().out)["mean_return"] == summary["mean_return"]
    with open(f"{run}/trajectories.jsonl", "a") as file:
        file.write('{"torn')
    assert main(["replay", run, "--reward", "accuracy"]) == 0
    caught = capsys.readouterr()
    assert "torn" in caught.err and len(caught.err.splitlines()) == 1 and "mean_return" in caught.out


def test_check__passes_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["check", "reward", "accuracy - 0.1*question_cost", *SMALL, "--json"]) == 0
    found = last_json(capsys.readouterr().out)
    assert found["ok"] and [t["name"] for t in found["terms"]] == ["accuracy", "question_cost"]
    assert found["honest"]["mean"] > found["attacks"]["commonest"]["mean"]

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("expected 1,\nsaw 2")

    monkeypatch.setattr("medenv.testing.check_environment", fail)
    assert main(["check", "env", ID, *SMALL]) == 1
    assert capsys.readouterr().err.splitlines() == [f"medenv: check of {ID!r} failed: expected 1, saw 2"]
    monkeypatch.setattr("medenv.testing.check_environment", lambda *_, **__: None)
    assert main(["check", "env", ID, *SMALL]) == 0


def test_knowledge__shows_and_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knowledge", "show", *SMALL, "--json"]) == 0
    assert last_json(capsys.readouterr().out)["conditions"] == 12
    assert main(["knowledge", "show", "condition-003", *SMALL, "--json"]) == 0
    assert last_json(capsys.readouterr().out)["findings"]
    assert main(["knowledge", "search", "finding-01", *SMALL, "--json"]) == 0
    assert len(last_json(capsys.readouterr().out)["matches"]) == 10


def test_knowledge__shows_grades_and_citations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knowledge", "show", "common_cold", "--json"]) == 0
    found = last_json(capsys.readouterr().out)
    fever = found["findings"]["fever"]
    assert fever["grade"] and fever["source"] in found["sources"] and fever["probabilities"]["yes"] > 0
    assert main(["knowledge", "show", "common_cold"]) == 0
    out = capsys.readouterr().out
    assert f"fever\tyes {fever['probabilities']['yes']:.4g}\t{fever['grade']}\t{fever['source']}\n" in out
    assert f"{fever['source']}\t{found['sources'][fever['source']]}\n" in out
    assert main(["knowledge", "show", "fever", "--json"]) == 0
    assert last_json(capsys.readouterr().out)["conditions"]["common_cold"] == fever


def test_search__words_first_then_spelling() -> None:
    names = ["Chest pain on breathing in", "Chest pain", "Fever", "Painful knee"]
    assert search("chest pain", names) == [1, 0] and search("pain", names)[0] in (1, 3)
    assert search("fevre", names) == [2] and search("xyzzy", names) == [] and search("", names) == []


def test_play__a_consultation_to_its_end() -> None:
    typed = iter(["?", "", "list", "1", "finding-01", "99", "diagnose", "diagnose qqqqqq", "diagnose condition 3"])
    said: list[str] = []
    result = play(ID, 3, {"knowledge": "synthetic:12x30"}, lambda _: next(typed), said.append)
    assert result is not None and result["diagnosis"] == "condition-003" and result["questions"] == 1
    text = "\n".join(said)
    assert "nats" in text and "The patient had" in text and "not medical advice" in text and "99 is not a choice" in text
    typed = iter(["refer"])
    referred = play(ID, 3, {"knowledge": "synthetic:12x30"}, lambda _: next(typed), said.append)
    assert referred is not None and referred["diagnosis"] is None and not referred["correct"]


def test_play__leaving_early_is_polite() -> None:
    ran = medenv("play", ID, *SMALL, "--seed", "0", "--json", input="list\n")
    assert ran.returncode == 0 and ran.stderr == "" and "You left before the end" in ran.stdout and last_json(ran.stdout) == {"left": True}


def test_train__smoke_then_evaluate_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    run = str(tmp_path / "run")
    command = ["train", "ppo", "--smoke", *SMALL, "steps=512", "--output", run, "--json"]
    assert main(command) == 0
    assert last_json(capsys.readouterr().out)["steps"] == 512
    assert main(command) == 2  # not empty
    assert "resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert main(["evaluate", ID, *SMALL, "--agent", f"ppo:{run}", "--episodes", "10", "--json"]) == 0
    assert last_json(capsys.readouterr().out)["brier"] is not None


@pytest.mark.parametrize("words", [["ppo", "engine=rllib"], ["sft", "workers=2"], ["grpo", "model=run", "workers=2"]])
def test_train__address_that_does_not_answer_is_told_before_anything_is_loaded(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rllib", "sft", "grpo"):
        monkeypatch.setitem(sys.modules, f"medenv.agents.{name}", None)  # importing it fails
    assert main(["train", *words, "address=127.0.0.1:1"]) == 2
    assert "nothing answers at 127.0.0.1:1" in capsys.readouterr().err
    assert main(["train", *words, "address=nowhere"]) == 2
    assert "'nowhere' is no address" in capsys.readouterr().err


def test_train__shows_return_accuracy_and_questions_in_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["train", "ppo", "--smoke", *SMALL, "steps=512", "--output", str(tmp_path / "run"), "--json"]) == 0
    told = capsys.readouterr().err
    assert re.search(r"return -?\d\.\d{3}, accuracy \d\.\d{3}, questions \d+\.\d{3}", told)


def test_cases_from_a_file__are_reported_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_patients(tmp_path / "my_test.csv", [row(["E_1", "E_1"]), *draw_rows(3, 0)])
    source = ["--knowledge", f"ddxplus:{write_release(tmp_path / 'release')}", "--cases", f"ddxplus:{file}"]
    assert main(["evaluate", ID, *source, "--json"]) == 0
    caught = capsys.readouterr()
    assert f"medenv: {file}: 4 cases, split test" in caught.err and "an evidence listed twice" in caught.err
    assert last_json(caught.out)["loaded"]["repeated"] == 1
    typed, said = iter(["refer"]), []
    arguments = {"knowledge": source[1], "cases": source[3], "split": "test"}
    play(ID, 0, arguments, lambda _: next(typed), lambda text: None, said.append)
    assert said[0] == f"{file}: 4 cases, split test"


@pytest.mark.slow
def test_demo__writes_everything_and_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("PIL")
    command = ["demo", "--output", str(tmp_path), "--seconds", "3", "--episodes", "40", *SMALL]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "not medical advice" in out and all(f"\n{name} " in out for name in ("random", "greedy", "oracle", "ppo"))
    names = {"results.md", "results.csv", "learning_curve.png", "consultation.txt", "consultation.png"}
    assert names <= {f.name for f in tmp_path.iterdir()} and all((tmp_path / n).stat().st_size > 100 for n in names)
    compared = re.search(r"Return of ppo minus that of greedy on the same patients: [+-]\S+ \[[+-]\S+, [+-]\S+\]\.", out)
    assert compared and compared[0] in (tmp_path / "results.md").read_text()
    table = (tmp_path / "results.csv").read_text()
    assert main([*command, "--json"]) == 0
    assert last_json(capsys.readouterr().out)["scores"]["ppo"]["episodes"] == 40 and (tmp_path / "results.csv").read_text() == table


def test_bench__import_loads_nothing_heavy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "import", "--json", "--output", str(tmp_path / "bench.md")]) == 0
    report = last_json(capsys.readouterr().out)
    assert report["rows"][0]["note"] == "nothing heavy loaded" and 0 < report["rows"][0]["min"] <= report["rows"][0]["median"]
    assert (tmp_path / "bench.md").read_text() == markdown(report) and "| import | import medenv |" in markdown(report)


@pytest.mark.slow
def test_bench__demo_memory_is_that_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("PIL")
    monkeypatch.setattr(bench, "DEMO", ("--seconds", "1", "--episodes", "10", *SMALL))
    (measured,) = bench.demo_memory()
    assert measured["unit"] == "MB" and 100 < measured["median"] < 4000
    monkeypatch.setattr(bench, "DEMO", ("--seconds", "1", "--knowledge", "nothing"))
    with pytest.raises(SystemExit, match="nothing"):
        bench.demo_memory()
