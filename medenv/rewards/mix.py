"""A mix of rewards: named components with visible weights that sum to the reward.

Written as a string, `"accuracy + 0.1*information_gain(value=probability) - 0.01*question_cost"`, or as a dict or TOML table,
`{"accuracy": 1, "information_gain": {"weight": 0.1, "value": "probability"}}`. Components are reported weighted, so that
they add up to the total. Or as the name of a preset, `"doctoragent"`, which stands for a whole mix (`PRESETS`).

Does not cover: what a single reward means (one file each).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenv.errors import MedenvError, RewardError, unknown
from medenv.knowledge.compiled import Compiled
from medenv.rewards.accuracy import Accuracy
from medenv.rewards.answers import NewAnswer, NoAnswer, PositiveAnswer
from medenv.rewards.base import Reward, Transition
from medenv.rewards.contextual import ProMed, Shapley
from medenv.rewards.costs import CostOfTest, Format, InvalidAction, QuestionCost, Repetition, TimeOut
from medenv.rewards.differential import BrierScore, LogScore, ReciprocalRank
from medenv.rewards.information_gain import InformationGain
from medenv.rewards.must_ask import MustAsk
from medenv.rewards.potential import Potential
from medenv.rewards.referral import Referral
from medenv.rewards.safety import Safety
from medenv.rewards.shapley_credit import ShapleyCredit
from medenv.rewards.triage import Triage

DEFAULT = "accuracy + 0.1*information_gain - 0.01*question_cost - 0.1*invalid_action"
# What published environments pay, in these components. The numbers are theirs; what has no counterpart here is said.
PRESETS = {
    "default": DEFAULT,
    # DoctorAgent-RL (arXiv 2505.19630). Its 5 * F1 of the diagnosis by word overlap is 5 for the right one here; its 5 * F1 of a
    # recommendation has no counterpart. Its -2 for a bad format and for a repeat is -2 for any invalid action (it masks nothing).
    "doctoragent": "new_answer - no_answer - 2*invalid_action - 5*time_out + 5*accuracy(referral=0)",
    # AARLC (Yuan and Yu 2021, arXiv 2112.00733) as DDXPlus runs it (code/aarlc: nu = 2.826, mu = 1): a question costs 1, gets .7 back
    # if it is new and 1 more if the finding is there. Here a question costs the base's price, and entropy is the exact belief's, not a
    # classifier's; AARLC pays its falls alone, here a rise is charged, so that the gains telescope. The trainer's discount was .99.
    "aarlc": "0.7*new_answer + positive_answer - question_cost - invalid_action + 2.826*information_gain(value=relative_entropy) "
    "+ accuracy(referral=0, wrong=1)",
}

_REWARDS = (
    *(Accuracy, InformationGain, ShapleyCredit, Shapley, ProMed, Potential, QuestionCost, InvalidAction),
    *(ReciprocalRank, LogScore, BrierScore, Triage, Safety, Referral, MustAsk),
    *(CostOfTest, NewAnswer, NoAnswer, PositiveAnswer, Repetition, Format, TimeOut),
)
_REGISTRY: dict[str, Callable[..., Reward]] = {r.name: r for r in _REWARDS}
_TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*(),=]))")


def register_reward(make: Callable[..., Reward], name: str) -> None:
    """Make a reward of your own available in mixes by name. `make(**parameters)` returns it."""
    _REGISTRY[name] = make


def known_rewards() -> list[str]:
    """Names that a mix can use."""
    return sorted(_REGISTRY)


def known_presets() -> list[str]:
    """Names of whole mixes, in place of one."""
    return sorted(PRESETS)


@dataclass(frozen=True)
class RewardMix:
    """Weighted rewards. `score` returns the total and every component, both float64."""

    terms: tuple[tuple[str, float, Reward], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Component names in the order written."""
        return tuple(name for name, _, _ in self.terms)

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Components that depend on the truth: shown at the last step only."""
        return frozenset(name for name, _, reward in self.terms if reward.needs_truth)

    @property
    def needs_ledger(self) -> bool:
        """Whether a reward reads `Transition.ledger`."""
        return any(getattr(reward, "needs_ledger", False) for _, _, reward in self.terms)

    @property
    def needs_differential(self) -> tuple[str, ...]:
        """Names of the rewards that score the doctor's differential."""
        return tuple(name for name, _, reward in self.terms if getattr(reward, "needs_differential", False))

    def weight_of_right(self) -> float:
        """What a right diagnosis brings against a wrong one, by `accuracy`; 0.0 in a mix without it."""
        return next((weight * (1.0 + reward.wrong) for _, weight, reward in self.terms if isinstance(reward, Accuracy)), 0.0)

    def weight_of_credit(self) -> float:
        """The weight of the reward whose credits `credits` gives; 0.0 in a mix without one."""
        return next((weight for _, weight, reward in self.terms if hasattr(reward, "credits")), 0.0)

    def bound(self, tables: Compiled) -> RewardMix:
        """The mix with every reward ready for these tables. RewardError for a reward that they can't serve."""
        ready = tuple((name, weight, reward.bind(tables) if hasattr(reward, "bind") else reward) for name, weight, reward in self.terms)
        return RewardMix(ready)

    def check_gamma(self, gamma: float) -> None:
        """RewardError where a reward's discount is not the trainer's."""
        for name, _, reward in self.terms:
            own = getattr(reward, "gamma", gamma)
            if own != gamma:
                raise RewardError(
                    f"{name} has gamma={own:g} and the trainer {gamma:g}: write {name}(gamma={gamma:g}), or change the trainer's"
                )

    def credits(self, t: Transition) -> NDArray[np.float64] | None:
        """Credits [N, T] of the answers of consultations that end, by turn, unweighted; None where no reward gives any."""
        return None if self._giver is None else self._giver.credits(t)

    @cached_property
    def _giver(self) -> Any:
        return next((reward for _, _, reward in self.terms if hasattr(reward, "credits")), None)

    def score(self, t: Transition) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Total [N] and weighted components {name: [N]}. NaN in a component: not scored; it adds 0 to the total."""
        n = t.ended.shape[0]
        total = np.zeros(n)
        components: dict[str, NDArray[np.float64]] = {}
        for name, weight, reward in self.terms:
            when = getattr(t, reward.when)
            if not when.any():
                components[name] = np.zeros(n)
                continue
            value = np.where(when, reward(t), 0.0)
            value *= weight
            components[name] = value
            total += value
        if np.isnan(total).any():
            total = np.zeros(n)
            for value in components.values():
                total += np.where(np.isnan(value), 0.0, value)
        return total, components

    def score_one(self, t: Transition, flags: Collection[str]) -> tuple[float, dict[str, float]]:
        """`score` for a transition of one consultation whose set flags are known, in plain numbers: the same bits."""
        total = 0.0
        components: dict[str, float] = {}
        for name, weight, reward in self.terms:
            value = float(reward(t)[0]) * weight if reward.when in flags else 0.0
            components[name] = value
            if value == value:  # not NaN
                total += value
        return total, components

    def __str__(self) -> str:
        out = ""
        for name, weight, reward in self.terms:
            changed = [f"{f.name}={_written(value)}" for f in _parameters(reward) if (value := getattr(reward, f.name)) != f.default]
            term = name + (f"({', '.join(changed)})" if changed else "")
            size = "" if abs(weight) == 1 else f"{_number(abs(weight))}*"
            out += f"{' ' if out else ''}{'-' if weight < 0 else '+' if out else ''}{' ' if out else ''}{size}{term}"
        return out


def parse_mix(mix: str | Mapping[str, Any] | RewardMix) -> RewardMix:
    """A mix from any of its spellings. Errors point at the place in a string, or name the key in a table.

    >>> str(parse_mix("accuracy - .02 * question_cost"))
    'accuracy - 0.02*question_cost'
    """
    if isinstance(mix, RewardMix):
        return mix
    if not isinstance(mix, str | Mapping):
        raise RewardError(f"a reward mix is a string or a table, not {mix!r}: write something like {DEFAULT!r}")
    terms = _from_text(PRESETS.get(mix.strip(), mix)) if isinstance(mix, str) else _from_table(mix)
    if not terms:
        raise RewardError(f"reward mix {mix!r} is empty: name at least one reward, such as {DEFAULT!r}")
    names = [name for name, _, _ in terms]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"reward mix names {name!r} twice: add the weights up")
    return RewardMix(tuple(terms))


def _parameters(reward: Any) -> list[Field[Any]]:
    """The fields that a mix may set."""
    return [f for f in fields(reward) if f.repr and f.init] if is_dataclass(reward) else []


def _written(value: Any) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """As short as it reads back exactly."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _make(name: str, weight: Any, parameters: Mapping[str, Any], where: str) -> tuple[str, float, Reward]:
    if name in PRESETS:
        raise RewardError(f"{name!r} is a preset, a whole mix that stands alone: write its parts, {PRESETS[name]!r}{where}")
    if name not in _REGISTRY:
        raise RewardError(f"{unknown('reward', name, [*_REGISTRY, *PRESETS])}{where}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RewardError(f"the weight of {name!r} is {weight!r}, not a number{where}")
    make = _REGISTRY[name]
    known = [f.name for f in _parameters(make)]
    for key in parameters:
        if is_dataclass(make) and key not in known:
            raise RewardError(f"{unknown(f'parameter of {name}', key, known)}{where}")
    try:
        return name, float(weight), make(**parameters)
    except TypeError as error:
        raise RewardError(f"reward {name!r} does not take these parameters: {dict(parameters)!r} ({error}){where}") from None
    except MedenvError as error:
        raise RewardError(f"{error}{where}") from None


def _from_table(table: Mapping[str, Any]) -> list[tuple[str, float, Reward]]:
    out = []
    for name, entry in table.items():
        parameters = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = parameters.pop("weight", 1.0)
        out.append(_make(name, weight, parameters, ""))
    return out


def _from_text(text: str) -> list[tuple[str, float, Reward]]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise _syntax(text, at + len(text[at:]) - len(text[at:].lstrip()), "a character that has no place in a mix")
        tokens.append((match.lastgroup, match.group(match.lastgroup or 0), match.start(match.lastgroup or 0)))
        at = match.end()
    tokens.append(("end", "", len(text)))
    position = 0

    def take(kind: str, value: str = "") -> str | None:
        nonlocal position
        got, word, _ = tokens[position]
        if got == kind and (not value or word == value):
            position += 1
            return word
        return None

    terms: list[tuple[str, float, Reward]] = []
    while tokens[position][0] != "end":
        sign = -1.0 if take("sign", "-") else 1.0
        if sign > 0 and not take("sign", "+") and terms:
            raise _syntax(text, tokens[position][2], "expected + or - between terms")
        number = take("number")
        if number and not take("sign", "*"):
            raise _syntax(text, tokens[position][2], "expected * and a reward's name after the weight")
        start = tokens[position][2]
        name = take("name")
        if not name:
            raise _syntax(text, start, "expected a reward's name")
        parameters: dict[str, Any] = {}
        if take("sign", "("):
            while not take("sign", ")"):
                key = take("name")
                if not key or not take("sign", "="):
                    raise _syntax(text, tokens[position][2], "expected parameter=value")
                minus = -1.0 if take("sign", "-") else 1.0
                value = take("number")
                word = None if value else take("name")
                if value is None and word is None:
                    raise _syntax(text, tokens[position][2], "expected a value")
                parameters[key] = minus * float(value) if value else word
                if not take("sign", ",") and tokens[position][1] != ")":
                    raise _syntax(text, tokens[position][2], "expected , or )")
        terms.append(_make(name, sign * float(number or 1.0), parameters, _pointer(text, start)))
    return terms


def _pointer(text: str, at: int) -> str:
    return f" at character {at + 1} of the mix: {text[:at]}>>>{text[at:]}"


def _syntax(text: str, at: int, what: str) -> RewardError:
    return RewardError(f"{what}{_pointer(text, at)}")
