"""A consultation as the token ids that a language-model doctor reads and writes, built turn by turn.

The environment's messages are user turns and are forced in; the doctor's are assistant turns and are written by the model. Nothing is
tokenised twice: a new turn adds ids and changes none, so `mask` (1: the model's own token, 0: forced in) is exact. `Chat` works out from a
tokenizer's chat template what stands before and after a message, once, and refuses a template whose earlier turns change later.

A message that spells a special token ("<|end|>") is text and stays text: it can't close a turn or open another.

Does not cover: models (`language_model`), writing turns (`generation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from medenv.errors import RunError

Reply = Callable[[list[str], list[int]], tuple[Sequence[str], Sequence[bool]]]  # messages and row numbers: texts, and who has ended
Tokenizer = Any  # transformers' PreTrainedTokenizerBase: imported by nobody here


class Span(NamedTuple):
    """One turn of the doctor: `ids[start:stop]`, its end-of-turn token included if the model wrote one."""

    start: int
    stop: int


@dataclass
class Conversation:
    """Token ids, and for each: was it the model's own (1) or forced in (0), and its log-probability (0.0 where forced in).

    `spans`: the doctor's turns in order. `complete`: the patient ended the consultation; False while it goes on and where it ran out of
    context.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    complete: bool = False

    @property
    def prompt_length(self) -> int:
        """How many ids stand before the doctor's first turn."""
        return self.spans[0].start if self.spans else len(self.ids)

    def hear(self, ids: list[int]) -> None:
        """Force ids in: the opening, or what follows a turn of the doctor's (`Chat.reply`)."""
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def write(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """A whole turn of the doctor's. Without `logprobs` they are 0.0: a demonstration has none."""
        self.spans.append(Span(len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids
        self.mask += [1] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs


class Chat:
    """What a tokenizer's chat template puts around messages, as ids.

    `system`: instructions in front of every consultation, if the template has a place for them. RunError for a tokenizer without a chat
    template, for a template that does not close the doctor's turns with a special token, and for one that is not prefix-stable: what it
    makes of a conversation so far is not how it begins the longer one.
    """

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        self.tokenizer, self.system = tokenizer, system
        if not tokenizer.chat_template:
            raise RunError("the tokenizer has no chat template: give one with `chat_template`, or use a chat model")
        self._special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        a, b, c, d, e = _PROBE
        first, second, third = self._render(a), self._render(a, b, c), self._render(*_PROBE)
        self._before, self._after = _around(first, a)
        closing, self._after_reply = _around(_added(second, first + b), c)
        if (closing, self._after_reply) != _around(_added(third, second + d), e):
            raise RunError(f"{_UNSTABLE} (it frames the second reply and the third differently)")
        self.end, self._before_reply = self._end_of_turn(closing)
        spaced = self._render(f" {a}\n")
        self._strips = spaced == first
        if not self._strips and spaced != f"{self._before} {a}\n{self._after}":
            raise RunError(
                "the chat template changes the spaces around a message but does not strip them: give another with `chat_template`"
            )
        if [*self.opening(a), *self.turn(b), *self.reply(c), *self.turn(d), *self.reply(e)] != self._ids(third):
            raise RunError(f"{_UNSTABLE} (turn by turn its tokenizer gives other tokens than for the whole)")

    def opening(self, text: str) -> list[int]:
        """The ids in front of the doctor's first turn: instructions, the patient's opening, and what opens the doctor's turn."""
        return self._framed(self._before, text, self._after)

    def turn(self, text: str) -> list[int]:
        """The ids of a doctor's turn as a model would write it, its end-of-turn token included: for demonstrations."""
        return [*self._framed("", text, ""), self.end]

    def reply(self, text: str, ended: bool = True) -> list[int]:
        """The ids from a turn of the doctor's to the next. `ended`: the doctor wrote its end-of-turn token; else it is forced in here."""
        ids = self._framed(self._before_reply, text, self._after_reply)
        return ids if ended else [self.end, *ids]

    def text(self, ids: list[int]) -> str:
        """What a turn of the doctor's says, without special tokens."""
        said: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said

    def conversation(self, messages: list[str]) -> Conversation:
        """A finished demonstration: the patient's and the doctor's messages in turn, the patient's first, the doctor's last."""
        if len(messages) % 2 or not messages:
            raise RunError(f"a demonstration of {len(messages)} messages: begin with the patient's and end with the doctor's")
        out = Conversation(complete=True)
        for i, message in enumerate(messages):
            if i % 2:
                out.write(self.turn(message))
            else:
                out.hear(self.reply(message) if i else self.opening(message))
        return out

    def _render(self, *turns: str) -> str:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2's errors, and whatever a template calls raises
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(f"the chat template refuses the conversation ({why}): leave `system` out, or give another template") from error
        return text

    def _framed(self, before: str, text: str, after: str) -> list[int]:
        text = text.strip() if self._strips else text
        if any(token in text for token in self._special):
            inside: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return [*self._ids(before), *inside, *self._ids(after)]
        return self._ids(before + text + after)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _end_of_turn(self, closing: str) -> tuple[int, str]:
        """The token that closes the doctor's turn, and what stands between it and the reply."""
        end = next((i for i in self._ids(closing) if i in self._special.values()), None)
        before, _, after = closing.partition(self.tokenizer.convert_ids_to_tokens(end)) if end is not None else (closing, "", "")
        if end is None or before:
            raise RunError(
                f"the chat template closes the doctor's turn with {closing[:40]!r}, no special token: give another with `chat_template`"
            )
        return end, after


_UNSTABLE = "the chat template is not prefix-stable, so earlier turns would change: give another with `chat_template`"
_PROBE = ("Hello there", "Any fever", "Since Monday", "Any cough", "Not really")


def _around(text: str, message: str) -> tuple[str, str]:
    """What stands before and after the last occurrence of `message`."""
    before, found, after = text.rpartition(message)
    if not found:
        raise RunError(f"the chat template leaves out or rewrites the message {message!r}: give another with `chat_template`")
    return before, after


def _added(longer: str, shorter: str) -> str:
    """What `longer` adds to `shorter`."""
    if not longer.startswith(shorter):
        raise RunError(f"{_UNSTABLE} (a longer conversation does not begin with the shorter one)")
    return longer[len(shorter) :]
