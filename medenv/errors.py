"""One small class per cause of failure; every message says what happened, the value seen, and what to do.

Does not cover: failures of a patient or a worker while a consultation runs. Those are data (see `medenv.runs.records`), never scores.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 60  # names that an error lists


class MedenvError(ValueError):
    """Base of every error that medenv raises on purpose. The command line prints it as one line and exits with code 2."""


class KnowledgeError(MedenvError):
    """A knowledge base that cannot be read or compiled. The message names the file, the line and the value."""


class CaseError(MedenvError):
    """A patient that cannot be read, or a case that does not exist."""


class RewardError(MedenvError):
    """A reward mix that cannot be parsed or cannot be scored in this environment."""


class ActionError(MedenvError):
    """An action outside the action space, given to the scalar environment."""


class EpisodeError(MedenvError):
    """A call out of order: a step before `reset` or after the end."""


class RunError(MedenvError):
    """A run directory that is of another version or base, or that is not a run directory."""


class UnknownName(MedenvError):
    """A name that is not registered. The message proposes the closest one."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for an unknown name, with the closest known one, and all that are known where a reader can take them in (MANY).

    >>> str(unknown("agent", "gredy", ["random", "greedy"]))
    "unknown agent 'gredy'; did you mean 'greedy'? (known: greedy, random)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    told = ", ".join(names) if len(names) <= MANY else f"{len(names)} names, such as {', '.join(names[:: len(names) // 5])}"
    return UnknownName(f"unknown {kind} {name!r}{hint} (known: {told})")
