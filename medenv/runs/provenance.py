"""Where a committed number comes from: command, commit, hardware, versions.

Does not cover: the numbers themselves.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import medenv

_ROOT = Path(medenv.__file__).parents[1]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """One line: processor, cores that may be used, memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{model}, {cores()} cores{memory}, {platform.system()} {platform.machine()}"


def commit() -> str:
    """The repository's commit, `+` behind it when files differ; `unknown` outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.stdout.strip() else "")


def versions(*packages: str) -> str:
    """`numpy 2.4.6, torch 2.13.0`, leaving out what is not installed."""
    out = [f"Python {platform.python_version()}", f"medenv {medenv.__version__}"]
    for name in packages:
        try:
            out.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(out)


def provenance(command: str, *packages: str) -> list[str]:
    """Lines to stand under a table."""
    return [
        f"Command: `{command}`",
        f"Commit: {commit()}",
        f"Hardware: {hardware()}",
        f"Versions: {versions('numpy', 'gymnasium', *packages)}",
    ]
