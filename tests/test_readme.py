"""The README is true: its Python runs, its commands exist, its results table is the committed experiments' own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from medenv.cli import cli
from medenv.runs.results import TABLES, marks

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    medenv ")]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python__runs_in_order(number: int) -> None:
    space: dict[str, object] = {}
    for block in PYTHON[: number + 1]:
        exec(block, space)
    assert "gym" in space


@pytest.mark.parametrize("command", COMMANDS)
def test_command__is_spelled_as_the_command_line_knows_it(command: str) -> None:
    words = shlex.split(command)[1:]
    words = words[: words.index("--")] if "--" in words else words  # behind it stands a job's own command
    node = cli
    while words and words[0] in getattr(node, "commands", {}):
        node = node.commands[words.pop(0)]
    assert not hasattr(node, "commands"), f"{command}: stops at a group"
    known = {o for p in node.params for o in p.opts}
    assert {w for w in words if w.startswith("--")} <= known


@pytest.mark.parametrize("name", TABLES)
def test_table__is_made_from_the_committed_experiments(name: str) -> None:
    begin, end = marks(name)
    assert begin in README, "put the two marks of medenv.runs.results into the README and run it with --write"
    written = README.split(begin)[1].split(end)[0].strip()
    assert written == TABLES[name]()
    assert written.count("\n") > 6


def test_first_screen__says_what_how_and_that_it_is_no_medical_advice() -> None:
    head = "\n".join(README.splitlines()[:22])
    for words in ("make demo", "make test", "not medical advice", ".png", marks("results")[0]):
        assert words in head
