"""Many consultations written side by side: one forward pass gives every row its next tokens, one cache lasts from opening to diagnosis.

Rows are in lock step: a pass takes the same number of tokens of each, so all stand at the same position and nothing is padded. A row has
several tokens to read (its opening, a reply), or the one that it has just written. A pass takes as many as the row with the fewest has, so
more than one where every row is reading. Rows whose consultation has ended leave the cache when they are an eighth of it.

Chance is counted: the token at position p of a row with seed s is drawn with one hash of (s, p). What a row writes therefore depends on
others only as far as the last bits of a matrix product depend on the shape of the batch: where two tokens are equally likely to within
them, or a draw falls that close to the border of two, another batch may go on differently.

Does not cover: what is said about a consultation (`conversation`), training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from medenv.agents.conversation import Chat, Conversation, Reply
from medenv.agents.language_model import LanguageModel
from medenv.errors import RunError
from medenv.hashing import draw_array, seed_for

DROP = 8  # finished rows leave the cache when they are one in DROP of it


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, RunError for what can't be.

    `max_new_tokens`: of one turn, its end-of-turn token counted; `temperature`: 0 takes the likeliest token; `top_p` in (0, 1]: draw from
    the smallest set of likeliest tokens that reaches this probability.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RunError(f"max_new_tokens is {self.max_new_tokens!r}: give at least 1")
        if not 0.0 <= self.temperature < float("inf"):
            raise RunError(f"temperature is {self.temperature!r}: give a number of at least 0; 0 takes the likeliest token")
        if not 0.0 < self.top_p <= 1.0:
            raise RunError(f"top_p is {self.top_p!r}: give a number in (0, 1]")


@dataclass
class _Row:
    number: int
    key: int
    pending: list[int]  # ids that the model has not read yet
    conversation: Conversation
    turn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    over: bool = False


def converse(lm: LanguageModel, openings: Sequence[str], reply: Reply, sampling: Sampling, seeds: Sequence[int]) -> list[Conversation]:
    """One conversation for each opening, in their order: the model writes a turn and `reply` answers, until it says that a row has ended.

    `reply(messages, who)` gets the turns that ended at one token, row numbers in `who` ascending, and returns a text and an end flag for
    each; the text of a row that has ended is not read. A turn ends with the end-of-turn token or after `max_new_tokens`; then that token is
    forced in. Without room for a reply and another turn a consultation stops before the reply, with `complete` False. Log-probabilities are
    those of the softmax at the temperature (at 1 where it is 0) over all tokens, before `top_p`: TRL computes the same again. RunError for
    an opening that leaves no room for a turn.
    """
    given = enumerate(zip(openings, seeds, strict=True))
    rows = [_Row(n, seed_for(seed, "generation"), lm.chat.opening(opening), Conversation()) for n, (opening, seed) in given]
    for row in rows:
        if not _fits(lm, len(row.pending), sampling):
            needed = f"{len(row.pending)} tokens, and a turn up to {sampling.max_new_tokens}"
            raise RunError(f"opening {row.number} has {needed}: more than the model's context of {lm.context}, shorten them")
        row.conversation.hear(row.pending)
    training = lm.model.training
    lm.model.eval()
    try:
        _run(lm, rows, reply, sampling)
    finally:
        lm.model.train(training)
    return [row.conversation for row in rows]


Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]]]]  # prompts: turns and their tokens' log-probabilities


def converse_apart(
    generate: Generate, chat: Chat, context: int | None, openings: Sequence[str], reply: Reply, sampling: Sampling
) -> list[Conversation]:
    """`converse` by a generator that knows nothing of consultations, such as vLLM: one call for each turn of all that are open.

    The generator has its own chance, so the same seeds need not give the same words.
    """
    rows = [Conversation() for _ in openings]
    for row, opening in zip(rows, openings, strict=True):
        row.hear(chat.opening(opening))
    who = list(range(len(rows)))
    while who:
        turns, logprobs = generate([rows[i].ids for i in who])
        turns = [list(turn) for turn in turns]
        for i, turn, logprob in zip(who, turns, logprobs, strict=True):
            rows[i].write(turn, list(logprob))
        texts, overs = reply([chat.text(turn) for turn in turns], who)
        going = []
        for i, turn, text, over in zip(who, turns, texts, overs, strict=True):
            rows[i].complete = bool(over)
            heard = chat.reply(text, ended=turn[-1:] == [chat.end])
            if not over and (context is None or len(rows[i].ids) + len(heard) + sampling.max_new_tokens <= context):
                rows[i].hear(heard)
                going.append(i)
        who = going
    return rows


class _Memory(DynamicLayer):
    """One layer's keys and values [n, heads, positions, size], with room for more; `DynamicLayer` copies all of them at every pass."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append; all keys and all values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self.rooms = key_states[:, :, :0], value_states[:, :, :0]
        old, new = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if new > self.rooms[0].shape[2]:
            self.rooms = self._wider(self.keys, new), self._wider(self.values, new)
        self.keys, self.values = (room[:, :, :new] for room in self.rooms)
        self.keys[:, :, old:], self.values[:, :, old:] = key_states, value_states
        return self.keys, self.values

    @staticmethod
    def _wider(states: Tensor, length: int) -> Tensor:
        room = states.new_empty((*states.shape[:2], length + length // 4 + 16, states.shape[3]))
        room[:, :, : states.shape[2]] = states
        return room

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        length, keys, values = self.keys.shape[2], self.rooms[0][indices], self.rooms[1][indices]
        self.rooms = keys, values
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


def _run(lm: LanguageModel, rows: list[_Row], reply: Reply, sampling: Sampling) -> None:
    cache, device, stops = DynamicCache(config=lm.model.config), lm.model.device, _stops(lm)
    cache.layers = [_Memory() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    while live := [i for i, row in enumerate(rows) if not row.over]:
        if (len(rows) - len(live)) * DROP >= len(rows) > len(live):
            cache.batch_select_indices(torch.tensor(live, device=device))
            rows, live = [rows[i] for i in live], list(range(len(live)))
        count = min(len(rows[i].pending) for i in live)
        idle = [lm.tokenizer.pad_token_id] * count  # what rows that are over read, to no effect
        tokens = torch.tensor([idle if row.over else row.pending[:count] for row in rows], device=device)
        with torch.inference_mode():
            logits = lm.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        for i in live:
            del rows[i].pending[:count]
        writing = [i for i in live if not rows[i].pending]
        if writing:
            _write(lm, [rows[i] for i in writing], logits[writing], reply, sampling, stops)


def _write(lm: LanguageModel, rows: list[_Row], logits: Tensor, reply: Reply, sampling: Sampling, stops: frozenset[int]) -> None:
    """One token for each row; where that ends the turn, the reply to it."""
    at = np.array([len(row.conversation.ids) + len(row.turn) for row in rows], np.int64)
    tokens, logprobs = choose(logits, uniform(np.array([row.key for row in rows], np.uint64), at), sampling)
    for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
        row.turn.append(token)
        row.logprobs.append(logprob)
        row.pending = [token]
    ended = [row for row in rows if row.turn[-1] in stops or len(row.turn) >= sampling.max_new_tokens]
    if not ended:
        return
    texts, overs = reply([lm.chat.text(row.turn) for row in ended], [row.number for row in ended])
    for row, text, over in zip(ended, texts, overs, strict=True):
        row.conversation.write(row.turn, row.logprobs)
        row.conversation.complete = bool(over)
        heard = lm.chat.reply(text, ended=row.turn[-1] == lm.chat.end)
        row.over = bool(over) or not _fits(lm, len(row.conversation.ids) + len(heard), sampling)
        if not row.over:
            row.conversation.hear(heard)
            row.pending += heard
        row.turn, row.logprobs = [], []


def uniform(keys: NDArray[np.uint64], counters: NDArray[np.int64]) -> Tensor:
    """Float64 [n] in [0, 1), multiples of 2**-32: one hash of key and counter each."""
    return torch.from_numpy((draw_array(keys, counters) >> np.uint64(32)).astype(np.float64) * 2.0**-32)


def choose(logits: Tensor, chance: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens int64 [n] for logits [n, V] and uniform numbers [n], and their log-probabilities float32 [n] (see `converse`)."""
    logprobs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), 1)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(1, keepdim=True)
        return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
    p, order = logprobs.exp(), None
    if sampling.top_p < 1:
        p, order = p.sort(dim=1, descending=True, stable=True)
        p = p.masked_fill(p.cumsum(1) - p >= sampling.top_p, 0.0)
    total = p.cumsum(1, dtype=torch.float64)
    tokens = torch.searchsorted(total, chance.to(total.device)[:, None] * total[:, -1:], right=True)
    tokens = tokens if order is None else order.gather(1, tokens)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def _fits(lm: LanguageModel, length: int, sampling: Sampling) -> bool:
    return lm.context is None or length + sampling.max_new_tokens <= lm.context


def _stops(lm: LanguageModel) -> frozenset[int]:
    """Tokens that end a turn: the chat's own, and those that the model's settings name."""
    named = lm.model.generation_config.eos_token_id
    more = named if isinstance(named, list) else [] if named is None else [named]
    return frozenset([lm.chat.end, *more])
