"""How fast a language-model doctor writes: consultations in lock step, against each turn generated apart.

- `generation`: tokens/s that the doctor writes (the patient's do not count), greedily, with a model from scratch of 1.4 million parameters
  that is not trained. Its end-of-turn token is made likely, so that turns are about as long as questions are, nine tokens. A stub patient
  answers with sentences of the built-in base and ends each consultation after ten turns. Beside `converse` the same consultations with one
  call of `model.generate` for each turn of all, prompts padded on the left; the two take turns.

Does not cover: GPUs, training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from medenv.agents.conversation import Conversation, Reply
from medenv.agents.generation import Sampling, converse, converse_apart
from medenv.agents.language_model import LanguageModel, from_scratch
from medenv.knowledge.named import knowledge_base
from medenv.runs.bench import Row, _row

CONVERSATIONS, TURNS, REPEATS = (16, 64), 10, 3
LONGEST = 24  # tokens of a turn
LIKELY = 1.9  # factor on the end-of-turn token's weights
APART, LOCK_STEP = "each turn apart (model.generate)", "lock step"


class StubPatient:
    """Answers from a list of sentences, by row and turn alone, and ends a consultation after `turns` of the doctor's."""

    def __init__(self, sentences: Sequence[str], turns: int) -> None:
        self.sentences, self.turns, self.answered = sentences, turns, dict[int, int]()

    def opening(self, row: int) -> str:
        """What the patient of a row begins with."""
        return f"I am {20 + row % 60} years old. {self._sentence(row, 0)}"

    def reply(self, messages: list[str], who: list[int]) -> tuple[list[str], list[bool]]:
        """Texts and end flags for the rows `who`."""
        for row in who:
            self.answered[row] = self.answered.get(row, 0) + 1
        return [self._sentence(row, self.answered[row]) for row in who], [self.answered[row] >= self.turns for row in who]

    def _sentence(self, row: int, turn: int) -> str:
        return self.sentences[(31 * row + 7 * turn) % len(self.sentences)]


def turns_apart(lm: LanguageModel, openings: Sequence[str], reply: Reply, sampling: Sampling) -> list[Conversation]:
    """`converse` with one call of `model.generate` for each turn of all open conversations; log-probabilities are left at 0.0."""

    def generate(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        turns = _generate(lm, prompts, sampling)
        return turns, [[0.0] * len(turn) for turn in turns]

    return converse_apart(generate, lm.chat, lm.context, openings, reply, sampling)


def _generate(lm: LanguageModel, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[int]]:
    length, pad = max(map(len, prompts)), lm.tokenizer.pad_token_id
    padded = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=lm.model.device)
    real = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=lm.model.device)
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(length)
        out = lm.model.generate(
            padded, attention_mask=real, max_new_tokens=sampling.max_new_tokens, eos_token_id=lm.chat.end, pad_token_id=pad, **how
        )
    turns: list[list[int]] = out[:, length:].tolist()
    return [turn[: turn.index(lm.chat.end) + 1] if lm.chat.end in turn else turn for turn in turns]


def generation() -> list[Row]:
    """The rows of the benchmark."""
    findings = knowledge_base("builtin").findings
    answers = [answer for f in findings for answer in f.answers.values()]
    lm = from_scratch([*(f.question for f in findings), *answers])
    with torch.no_grad():
        lm.model.lm_head.weight[lm.chat.end] *= LIKELY
    return [row for n in CONVERSATIONS for row in _compared(lm, answers, n)]


def _compared(lm: LanguageModel, answers: Sequence[str], n: int) -> list[Row]:
    sampling, said = Sampling(LONGEST, temperature=0.0), dict[str, list[Conversation]]()
    rates: dict[str, list[float]] = {APART: [], LOCK_STEP: []}
    for _ in range(REPEATS):
        for way, values in rates.items():
            patient = StubPatient(answers, TURNS)
            openings, start = [patient.opening(i) for i in range(n)], time.perf_counter()
            if way == APART:
                said[way] = turns_apart(lm, openings, patient.reply, sampling)
            else:
                said[way] = converse(lm, openings, patient.reply, sampling, range(n))
            values.append(sum(sum(c.mask) for c in said[way]) / (time.perf_counter() - start))
    rows = [_row("generation", f"{way}, {n} consultations", "tokens/s", values) for way, values in rates.items()]
    same = sum(a.ids == b.ids for a, b in zip(*said.values(), strict=True))
    return [rows[0], rows[1] | {"note": f"{rows[1]['median'] / rows[0]['median']:.2g} x each turn apart; {same} of {n} with equal texts"}]
