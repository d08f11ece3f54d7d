"""Hugging Face's checkpoints in a run directory, and whether the files that a run started from are still the same.

    RUN/checkpoints/checkpoint-N/   `complete` in it is written last

Does not cover: what is in a checkpoint (transformers), and when one is due (`medenv.runs.finetuning`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from medenv.agents.finetuning import Settings
from medenv.agents.text_doctor import policy_folder
from medenv.runs.records import trajectory_file

CHECKPOINTS, COMPLETE = "checkpoints", "complete"
ENDS = 2**20  # bytes of a file's beginning and end that its hash covers


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written whole; what a kill cut off is removed."""
    whole = []
    for each in folder.glob("checkpoint-*"):
        if (each / COMPLETE).is_file():
            whole.append(each)
        else:
            shutil.rmtree(each, ignore_errors=True)
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def inputs(settings: Settings) -> dict[str, str]:
    """What tells that the files a run starts from are still the same: hashes of their sizes, first and last megabytes."""
    folder = policy_folder(settings.model) if settings.model else None
    files = sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []
    found = {"model": files, "trajectories": [trajectory_file(t)] if (t := getattr(settings, "trajectories", "")) else []}
    return {name: digest(some) for name, some in found.items() if some and all(f.is_file() for f in some)}


def digest(files: Sequence[Path]) -> str:
    """Twelve hexadecimal digits over names, sizes, and the first and last megabyte of each file."""
    out = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        out.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            out.update(content.read(ENDS))
            content.seek(max(0, size - ENDS))
            out.update(content.read(ENDS))
    return out.hexdigest()[:12]
