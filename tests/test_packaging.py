"""What is installed: the wheel's contents, with and without symlinks in the tree, a fresh install, and a light import."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"agents": "medenv/agents", "rewards": "medenv/rewards"}
HEAVY = ("torch", "ray", "transformers", "trl", "matplotlib", "PIL", "wandb", "tensorboard")
FIRST_STEP = """
import importlib.util, gymnasium as gym, medenv
assert importlib.util.find_spec("torch") is None, "torch came with the core dependencies"
env = gym.make("MedConsult-v0")
observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(int(observation["action_mask"].argmax()))
assert info["reply"] and env.observation_space.contains(observation)
print(medenv.__file__)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command's result, in an environment without PYTHONPATH."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)


def copy_of_tree(where: Path, links: bool) -> Path:
    """What a clone holds that the wheel is made of. `links`: symlinks, or small text files as a clone without symlinks has them."""
    where.mkdir()
    shutil.copytree(ROOT / "medenv", where / "medenv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, where)
    for name, target in LINKS.items():
        if links:
            (where / name).symlink_to(target)
        else:
            (where / name).write_text(target)
    return where


def build(tree: Path, out: Path) -> Path:
    made = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=tree)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return next(out.glob("medenv-*.whl"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel of a tree with links, and of one without."""
    where = tmp_path_factory.mktemp("wheels")
    return [build(copy_of_tree(where / f"tree-{links}", links), where / f"out-{links}") for links in (True, False)]


@pytest.mark.slow
def test_wheel__is_the_same_with_and_without_symlinks(wheels: list[Path]) -> None:
    linked, plain = ({i.filename: i.CRC for i in zipfile.ZipFile(w).infolist() if not i.filename.endswith("RECORD")} for w in wheels)
    assert linked == plain


@pytest.mark.slow
def test_wheel__holds_every_module_and_table_and_nothing_else(wheels: list[Path]) -> None:
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"medenv"}
    inside = {n for n in names if n.startswith("medenv/")}
    wanted = [p for p in (ROOT / "medenv").rglob("*") if p.suffix in (".py", ".csv", ".toml") or p.name == "py.typed"]
    assert inside == {p.relative_to(ROOT).as_posix() for p in wanted}
    assert any(n.endswith("builtin/conditions.csv") for n in inside)
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_wheel__installs_alone_and_runs(wheels: list[Path], tmp_path: Path) -> None:
    python = tmp_path / "fresh" / "bin" / "python"
    assert run(sys.executable, "-m", "venv", tmp_path / "fresh", cwd=tmp_path).returncode == 0
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    probe = run(*pip, "--retries", "0", "--timeout", "15", "download", "--no-deps", "-d", tmp_path, "click", cwd=tmp_path)
    if probe.returncode:
        pytest.skip(f"the package registry cannot be reached: {probe.stderr.strip().splitlines()[-1]}")
    made = run(*pip, "install", "-c", ROOT / "constraints.txt", wheels[0], cwd=tmp_path)
    assert made.returncode == 0, made.stderr[-2000:]
    said = run(python, "-c", FIRST_STEP, cwd=tmp_path)
    assert said.returncode == 0, said.stderr[-2000:]
    assert str(tmp_path) in said.stdout
    listed = run(python.with_name("medenv"), "list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr[-2000:]
    assert "MedConsult-v0" in listed.stdout


def test_import__loads_nothing_heavy() -> None:
    code = f"import sys, medenv; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "[]"


def test_make__loads_nothing_heavy() -> None:
    code = (
        f"import sys, gymnasium, medenv; gymnasium.make('MedConsult-v0').reset(seed=0); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "[]"


@pytest.mark.parametrize("name", LINKS)
def test_link__is_relative_and_refuses_to_be_imported(name: str) -> None:
    link = ROOT / name
    if not link.is_symlink():
        pytest.skip("this clone has no symlinks")
    assert os.readlink(link) == LINKS[name]
    said = run(sys.executable, "-c", f"import {name}", cwd=ROOT)
    assert said.returncode != 0
    last = said.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and f"import medenv.{name}" in last


def test_constraints__pin_every_dependency_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(p.name) for p in pins]
    assert len(names) == len(set(names))
    version = {canonicalize_name(p.name): next(iter(p.specifier)).version for p in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(r) for group in (project["dependencies"], *project["optional-dependencies"].values()) for r in group]
    unpinned = {"medenv", "vllm"}  # vLLM is for GPUs and brings a torch and a transformers of its own: never beside these pins
    for r in asked:
        assert r.name in unpinned or r.specifier.contains(version[canonicalize_name(r.name)]), r


def test_architecture__names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+__\w+|test_\w+)`", (ROOT / "ARCHITECTURE.md").read_text()))
    written = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py")), re.M))
    assert len(named) > 20 and named <= written, sorted(named - written)


def test_simulation_card__counts_the_grades_of_the_base() -> None:
    with (ROOT / "medenv/knowledge/builtin/links.csv").open(newline="") as file:
        grades = Counter(row["grade"] for row in csv.DictReader(file))
    card = dict(re.findall(r"^\| ([A-D]) \| .* \| ([\d,]+) \|$", (ROOT / "SIMULATION_CARD.md").read_text(), re.M))
    assert {g: int(n.replace(",", "")) for g, n in card.items()} == {g: grades[g] for g in "ABCD"}
