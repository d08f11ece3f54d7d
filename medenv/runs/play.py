"""A person is the doctor, in the terminal: type part of a question's name, pick a number, read the answer, diagnose.

Does not cover: free text that a patient understands, or recording (use `evaluate`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from medenv.cases.loaded import LoadedCases
from medenv.envs import rendering
from medenv.envs.consult import ConsultEnv

CHOICES = 9
HELP = """Type part of a question's name to search for it, then the number of a choice.
  diagnose NAME   end with this diagnosis (part of the name is enough)
  refer           hand the patient on: ends the consultation
  list            all questions that are open
  ?               this help
  quit            leave (so does ctrl-D)"""


def play(
    env_id: str,
    seed: int | None = None,
    env_arguments: Mapping[str, Any] | None = None,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """One consultation. Returns truth, diagnosis, correct, return, questions, case_id; None when the person left before the end.

    `tell` gets the lines of the report on the cases' file, where they were read from one.
    """
    env = gym.make(env_id, disable_env_checker=True, **dict(env_arguments or {}))
    consult = env.unwrapped
    assert isinstance(consult, ConsultEnv)
    source = consult.setup.source
    if isinstance(source, LoadedCases) and source.report is not None and tell is not None:
        for line in source.report.lines():
            tell(line)
    env.reset(seed=seed)
    write(rendering.last_turn(consult) + "\nType part of a question, or ? for help.")
    total, chosen = 0.0, _Chooser(consult, write)
    while True:
        try:
            action = chosen.action(read(f"[{int(consult.engine.turns_left[0])} turns left] > ").strip())
        except (EOFError, KeyboardInterrupt):
            write(f"\nYou left before the end. The patient waits: --seed {seed}." if seed is not None else "\nYou left before the end.")
            return None
        if action is None:
            continue
        _, reward, ended, _, info = env.step(action)
        total += float(reward)
        write(rendering.last_turn(consult))
        if ended:
            break
    components = ", ".join(f"{k} {'not scored' if v is None else f'{v:+.3f}'}" for k, v in info["components"].items())
    write(f"Reward of the last turn: {components}. Return of the consultation: {total:.3f}. Case {info['case_id']}.")
    diagnosis = action - consult.num_questions
    named = consult.setup.base.conditions[diagnosis].id if 0 <= diagnosis < consult.num_conditions else None
    asked = sum(row >= 0 for _, row, _ in consult.turns)
    result = {"truth": info["truth"], "diagnosis": named, "correct": named == info["truth"], "return": total, "questions": asked}
    return result | {"case_id": info["case_id"], "seed": seed}


def search(text: str, names: Sequence[str], count: int = CHOICES) -> list[int]:
    """Indices of the names that `text` may mean, best first: those that hold all its words, else those spelled alike."""
    words = text.lower().split()
    if not words:
        return []
    low = [n.lower() for n in names]
    held = [i for i, n in enumerate(low) if all(w in n for w in words)]
    if held:
        return sorted(held, key=lambda i: (not any(p.startswith(words[0]) for p in low[i].split()), len(low[i]), i))[:count]
    matched = [(max(_alike(text.lower(), part) for part in (n, *n.split())), -i) for i, n in enumerate(low)]
    return [-i for ratio, i in sorted(matched, reverse=True)[:count] if ratio >= 0.6]


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


class _Chooser:
    """From typed lines to actions. Remembers the numbered choices that it showed last."""

    def __init__(self, env: ConsultEnv, write: Callable[[str], None]) -> None:
        self.env, self.write = env, write
        self.meanings = env.action_meanings()
        self.shown: list[int] = []

    def action(self, line: str) -> int | None:
        """The action that a line means, or None after telling the person what to do."""
        word, _, rest = line.partition(" ")
        if line in ("quit", "exit"):
            raise EOFError
        if line in ("?", "help"):
            self.write(HELP)
        elif not line:
            self.write("Type part of a question, or ? for help.")
        elif line == "refer":
            return len(self.meanings) - 1
        elif line.isdigit():
            if 1 <= int(line) <= len(self.shown):
                chosen, self.shown = self.shown[int(line) - 1], []
                return chosen
            self.write(f"{line} is not a choice: pick 1 to {len(self.shown)}" if self.shown else "Search first: type part of a question.")
        elif line == "list":
            self._show([q for q in range(self.env.num_questions) if self.env.action_masks()[q]])
        else:
            diagnosing = word in ("diagnose", "d")
            if diagnosing and not rest.strip():
                self.write("Name the condition: diagnose NAME")
                return None
            return self._pick(rest.strip() if diagnosing else line, diagnosing)
        return None

    def _pick(self, text: str, diagnosing: bool) -> int | None:
        mask, Q = self.env.action_masks(), self.env.num_questions
        span = range(Q, len(self.meanings) - 1) if diagnosing else range(Q)
        names = [self.meanings[a].partition(": ")[2] for a in span]
        found = [span[i] for i in search(text, names, len(names)) if mask[span[i]]][:CHOICES]
        if len(found) == 1 or (found and names[found[0] - span[0]].lower() == text.lower()):
            self.shown = []  # a number would mean a choice of a list that is no longer on the screen
            return found[0]
        if not found:
            what = "condition" if diagnosing else "open question"
            self.write(f"No {what} is like {text!r}: try another word, list, or ? for help.")
            return None
        self._show(found)
        return None

    def _show(self, actions: list[int]) -> None:
        self.shown = actions
        lines = [f"  {i:2} {self.meanings[a]}" for i, a in enumerate(actions, 1)]
        self.write("\n".join(lines) or "No question is open: diagnose NAME, or refer.")
