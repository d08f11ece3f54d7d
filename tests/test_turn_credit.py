"""Advantages of turns on numbers worked by hand: outcome and credit, groups without spread, failures, several processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medenv.agents.conversation import Conversation
from medenv.agents.credit import Paid, advantages, check_credit, token_advantages
from medenv.errors import RunError
from medenv.rewards.mix import parse_mix

ASKS = [True, False]


def paid(total: float, *credits: float, asks: list[bool] | None = None) -> Paid:
    return Paid(total, list(credits), [True] * (len(credits) - 1) + [False] if asks is None else asks)


def test_outcome_only__is_the_deviation_from_the_groups_mean() -> None:
    found = advantages([paid(1.0, 0.9, 0.0), paid(0.0, 0.1, 0.0), paid(0.5, 0.0), paid(0.5, 0.0)], 4, 0.0, scale=False)
    assert [t.tolist() for t in found.turns] == [[0.5, 0.5], [-0.5, -0.5], [0.0], [0.0]]
    assert (found.skipped, found.failed, found.kept) == (0, 0, [True] * 4)


def test_credit__questions_are_compared_with_questions_at_the_same_place() -> None:
    """Place 1: credits .6, .2, .4 with mean .4. Place 2: .1 and .3 with mean .2; the third concludes there and has no part."""
    group = [paid(1.0, 0.6, 0.1, 0.0), paid(1.0, 0.2, 0.3, 0.0), paid(1.0, 0.4, 9.0)]
    found = advantages(group, 3, 2.0, scale=False)
    assert [np.round(t, 9).tolist() for t in found.turns] == [[0.4, -0.2, 0.0], [-0.4, 0.2, 0.0], [0.0, 0.0]]


def test_diagnoses__are_set_against_what_their_answers_allowed() -> None:
    """Worth .6 of .8 and .1 of .5: the group realised .7 of 1.3. One that was not diagnosed has no part, nor does its last question."""
    one, two, three = (paid(0.5, 0.2, 0.0) for _ in range(3))
    one.worth, one.best, two.worth, two.best = 0.6, 0.8, 0.1, 0.5
    three.asks[-1] = True
    found = advantages([one, two, three], 3, 0.0, 2.0, scale=False)
    part = 2.0 * (0.6 - 0.8 * 0.7 / 1.3)
    np.testing.assert_allclose(np.concatenate(found.turns), [0.0, part, 0.0, -part, 0.0, 0.0], atol=1e-12)
    one.lost, two.lost = 0.2, 0.4  # what the diagnoses lost is not the questions' loss: the outcomes are .7, .9 and .5
    found = advantages([one, two, three], 3, 0.0, 2.0, scale=False)
    np.testing.assert_allclose(np.concatenate(found.turns), [0.0, part, 0.2, 0.2 - part, -0.2, -0.2], atol=1e-12)
    equal_share = [paid(0.5, 0.0), paid(0.5, 0.0)]
    equal_share[0].worth, equal_share[0].best, equal_share[1].worth, equal_share[1].best = 0.4, 0.8, 0.3, 0.6
    assert advantages(equal_share, 2, 0.0, 1.0).skipped == 1  # both named the likeliest as well as they could


def test_scale__each_part_has_unit_deviation_over_the_batch() -> None:
    """Outcomes deviate by 1, -1 and 2, -2: root mean square sqrt(2.5). Credits by .5, -.5 in one group, 0 in the other: sqrt(.125)."""
    groups = [paid(2.0, 1.0, 0.0), paid(0.0, 0.0, 0.0), paid(4.0, 0.3, 0.0), paid(0.0, 0.3, 0.0)]
    found = advantages(groups, 2, 0.5)
    a, b = 1 / math.sqrt(2.5), 0.5 * 0.5 / math.sqrt(0.125)
    expected = [[a + b, a], [-a - b, -a], [2 * a, 2 * a], [-2 * a, -2 * a]]
    np.testing.assert_allclose(np.concatenate(found.turns), np.concatenate(expected), rtol=1e-12)


def test_groups_without_spread__are_skipped_and_counted() -> None:
    flat = [paid(1.0, 0.5, 0.0), paid(1.0, 0.5, 0.0)]
    found = advantages([*flat, paid(1.0, 0.0), paid(0.0, 0.0)], 2, 1.0)
    assert found.skipped == 1 and found.kept == [False, False, True, True]
    assert [t.tolist() for t in found.turns[:2]] == [[0.0, 0.0], [0.0, 0.0]]
    assert advantages(flat, 2, 1.0).turns[0].tolist() == [0.0, 0.0]


def test_equal_returns_with_different_credits__are_learned_from_only_with_credit() -> None:
    group = [paid(1.0, 0.9, 0.0), paid(1.0, 0.1, 0.0)]
    assert advantages(group, 2, 1.0).skipped == 0
    assert advantages(group, 2, 0.0).skipped == 1


@pytest.mark.parametrize("spoil", [lambda p: setattr(p, "total", math.nan), lambda p: p.credits.__setitem__(0, math.nan)])
def test_what_was_not_scored__is_left_out_of_the_means_and_of_the_loss(spoil: object) -> None:
    """Without the third, the mean is .5; read as 0 it would be a third, and the advantages others."""
    group = [paid(1.0, 0.2, 0.0), paid(0.0, 0.2, 0.0), paid(0.0, 0.2, 0.0)]
    spoil(group[2])  # type: ignore[operator]
    found = advantages(group, 3, 1.0, scale=False)
    assert [t.tolist() for t in found.turns] == [[0.5, 0.5], [-0.5, -0.5], [0.0, 0.0]]
    assert found.kept == [True, True, False] and found.failed == 1


def test_a_group_with_one_scored_member__is_skipped() -> None:
    found = advantages([paid(1.0, 0.2, 0.0), paid(math.nan, 0.1, 0.0)], 2, 1.0)
    assert found.kept == [False, False] and found.skipped == 1 and found.failed == 1


@pytest.mark.parametrize("group", [1, 3])
def test_a_group_size_that_does_not_divide_the_batch__is_an_error(group: int) -> None:
    with pytest.raises(RunError, match="divides the batch"):
        advantages([paid(1.0, 0.0)] * 4, group, 1.0)


CONSULTATION = st.tuples(st.floats(-2, 2), st.lists(st.floats(-1, 1), min_size=1, max_size=4)).map(lambda x: paid(x[0], *x[1]))
RANDOM = st.lists(CONSULTATION, min_size=8, max_size=8)


@given(RANDOM)
def test_two_processes__give_the_advantages_of_one(batch: list[Paid]) -> None:
    """The sums of both halves are added up, as `accelerator.reduce` does."""
    whole = advantages(batch, 4, 0.7, 0.3)
    seen: list[np.ndarray] = []

    def note(sums: np.ndarray) -> np.ndarray:
        seen.append(sums)
        return sums

    for half in (batch[:4], batch[4:]):
        advantages(half, 4, 0.7, 0.3, note)
    parts = [advantages(half, 4, 0.7, 0.3, lambda sums: seen[0] + seen[1]) for half in (batch[:4], batch[4:])]
    for one, two in zip(whole.turns, [*parts[0].turns, *parts[1].turns], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    assert whole.skipped == parts[0].skipped + parts[1].skipped


@given(RANDOM)
def test_advantages__do_not_depend_on_a_constant_paid_to_all(batch: list[Paid]) -> None:
    before = advantages(batch, 4, 0.7, scale=False)
    moved = [Paid(p.total + 3.0, [c + 1.0 for c in p.credits], p.asks) for p in batch]
    for one, two in zip(before.turns, advantages(moved, 4, 0.7, scale=False).turns, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-9)


def test_token_advantages__are_the_turns_for_its_own_tokens_and_0_for_the_patients() -> None:
    c = Conversation()
    c.hear([1, 2, 3])
    c.write([4, 5])
    c.hear([6, 7])
    c.write([8])
    c.hear([9])
    assert token_advantages(c, [0.5, -1.0]) == [0.5, 0.5, 0.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize(
    "credit, says",
    [
        ("accuracy", "can't be scored per turn: choose outcome or information_gain"),
        ("shapley_credit", "is not in the mix"),
        ("x", "not in"),
    ],
)
def test_a_credit_that_is_not_paid_by_turn__is_an_error(credit: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        check_credit(credit, parse_mix("accuracy + 0.1*information_gain"))


@pytest.mark.parametrize("credit", ["outcome", "shapley_credit", "information_gain", "promed_sig"])
def test_credits_by_turn__pass_the_check(credit: str) -> None:
    check_credit(credit, parse_mix("accuracy + shapley_credit + information_gain + promed_sig"))
