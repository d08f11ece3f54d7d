"""Conformance checks for parts of your own: bases, case sources, rewards, patients, environments, doctors.

Each check raises AssertionError that says what was expected and what was seen, and returns nothing otherwise:

    from medenv.testing import check_base, check_cases, check_doctor, check_environment, check_patient, check_reward

    check_base("files:my_base")                                     # tables, openings, calibration of the belief
    check_cases(LoadedCases(tables, cases), [LoadedCases(tables, cases, "test")])
    check_reward("accuracy + my_reward")                            # or a reward object
    check_patient(MyPatient(base), base)                            # the words of an answer: environments take it as `persona`
    check_environment("MedConsult-v0", knowledge="files:my_base")
    check_doctor(MyDoctor(tables), tables)

Every check draws its cases and actions from hashes of fixed keys: it says the same each time. They need numpy and gymnasium only.

Does not cover: whether a base is medically right, or a reward worth having.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import pickle
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from medenv.agents.doctor import Doctor
from medenv.belief.posterior import posterior
from medenv.cases.case import Case
from medenv.cases.sampled import SampledCases
from medenv.cases.source import ALL, NO_OPENING, CaseSource
from medenv.envs.engine import Engine
from medenv.envs.vector import ConsultVectorEnv
from medenv.hashing import draw_array, seed_for
from medenv.knowledge.base import KnowledgeBase
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.patients.scripted import Patient
from medenv.rewards.base import Reward, Transition
from medenv.rewards.mix import RewardMix, parse_mix

FLAGS = ("asked", "answered", "invalid", "referred", "ended")  # of a transition: what a reward may wait for
BINS = 10  # of equal width, for the calibration error
CHUNK = 5_000  # consultations that run together in a statistical check
ROUNDING = 1e-9  # tables are float64 sums

_U11, _U32 = np.uint64(11), np.uint64(32)


class Calibration(NamedTuple):
    """The belief of many consultations after `turn` answers: its mean top probability, how often the top is right, the standard
    error of the mean difference, and the expected calibration error over `BINS` bins."""

    turn: int
    confidence: float
    accuracy: float
    standard_error: float
    ece: float


# Bases


def check_base(
    base: str | KnowledgeBase, noise: float = 0.02, difficulty: float = 0.0, setting: str | None = None, consultations: int = 40_000
) -> None:
    """A base compiles to sound tables, and the belief on patients sampled from it is calibrated at every turn.

    `noise`, `difficulty`, `setting` as the environments take them. A smaller number of `consultations` is quicker and weaker.
    """
    tables = compiled(knowledge_base(base), noise, difficulty, setting)
    check_tables(tables)
    source = SampledCases(tables, ALL)
    check_cases(SampledCases(tables, "train"), [SampledCases(tables, split) for split in ("validation", "test")])
    check_opening(source, 5 * consultations)
    check_calibration(source, consultations)


def check_tables(tables: Compiled) -> None:
    """Probabilities are in [0, 1] and sum to 1, openings too, every condition can occur, every row lies where it is looked for."""
    p = tables.probability
    if not (np.isfinite(p).all() and p.min() >= -ROUNDING and p.max() <= 1 + ROUNDING):
        raise AssertionError(
            f"expected probabilities in [0, 1], saw {p.min():.4g} to {p.max():.4g}: "
            "where below 0, an opening is commoner than its finding (c > p)"
        )
    for cell in np.unique(tables.row_of, axis=0, return_index=True)[1].tolist():
        for q, finding in enumerate(tables.base.findings):
            rows = np.arange(tables.row_of[cell, q], tables.row_of[cell, q] + tables.num_values[q])
            if not (tables.row_finding[rows] == q).all():
                raise AssertionError(f"cell {cell}, {finding.id}: expected rows of this finding, saw {tables.row_finding[rows]}")
            off = np.abs(p[rows].sum(0) - 1).max()
            if not (off < ROUNDING):
                raise AssertionError(f"cell {cell}, {finding.id}: expected probabilities that sum to 1, saw a sum off by {off:.3g}")
    reached = tables.cell_weight.sum(0)
    if tables.setting is None:
        missing = [c.id for c, w in zip(tables.base.conditions, reached, strict=True) if w <= 0]
        if missing:
            raise AssertionError(f"expected every condition to occur, saw weight 0 for {missing}")
    total = tables.cell_weight.sum()
    if not (abs(total - 1) < ROUNDING):
        raise AssertionError(f"expected cells and conditions to sum to 1, saw {total!r}")
    mass = np.zeros_like(tables.cell_weight)
    np.add.at(mass, (tables.joint_cell, tables.joint_condition), np.diff(tables.joint_threshold.astype(np.float64), prepend=0.0) / 2.0**32)
    gap = np.abs(mass - tables.cell_weight)
    cell, d = divmod(int(gap.argmax()), gap.shape[1])
    if not (gap[cell, d] < (np.bincount(tables.joint_cell * mass.shape[1] + tables.joint_condition).max() + 1) / 2.0**32):
        raise AssertionError(
            f"condition {tables.base.conditions[d].id}, cell {cell}: expected the openings to sum to its weight "
            f"{tables.cell_weight[cell, d]:.6g}, saw {mass[cell, d]:.6g}"
        )


def calibration(source: CaseSource, consultations: int = 40_000, turns: int = 8, seed: int = 0) -> list[Calibration]:
    """The belief's calibration after 0 … `turns` random questions on cases of `source`."""
    right, top = [np.zeros(0, bool)] * (turns + 1), [np.zeros(0)] * (turns + 1)
    nothing = parse_mix("accuracy")
    for start in range(0, consultations, CHUNK):
        num = min(CHUNK, consultations - start)
        engine = Engine(source, nothing, num, turns + 2)
        engine.seed([seed_for(seed, "calibration", start + i) for i in range(num)])
        engine.begin()
        for turn in range(turns + 1):
            right[turn] = np.concatenate([right[turn], engine.belief.argmax(1) == engine.truth])
            top[turn] = np.concatenate([top[turn], engine.belief.max(1)])
            mask = engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1
            engine.step(_pick(mask, engine.stream, turn, nothing_open=engine.A))
    return [_calibration(turn, top[turn].astype(np.float64), right[turn]) for turn in range(turns + 1)]


def check_calibration(
    source: CaseSource, consultations: int = 40_000, turns: int = 8, ece: float = 0.01, errors: float = 4.0, seed: int = 0
) -> None:
    """At every turn the expected calibration error is below `ece`, and the mean top belief within `errors` standard errors of accuracy.

    With few consultations chance alone gives a calibration error of about 1/sqrt(consultations); it is allowed for.
    """
    allowed = max(ece, 2.0 / np.sqrt(consultations))
    for c in calibration(source, consultations, turns, seed):
        seen = f"after {c.turn} answers: mean top belief {c.confidence:.4f}, accuracy {c.accuracy:.4f}, "
        seen += f"standard error {c.standard_error:.4f}, ECE {c.ece:.4f}"
        if not (abs(c.confidence - c.accuracy) <= errors * c.standard_error + 1e-6):
            raise AssertionError(f"expected the mean top belief to equal accuracy, saw {seen}")
        if not (c.ece < allowed):
            raise AssertionError(f"expected ECE < {allowed:.4f}, saw {seen}")


def check_opening(source: CaseSource, cases: int = 200_000, errors: float = 4.0, seed: int = 0) -> None:
    """No classifier on demographics and opening alone beats the belief: an opening tells no more than the belief takes from it.

    The classifier counts conditions per (cell, opening) on `cases` cases, shrunk towards the belief; both are scored by their
    log loss on a quarter as many fresh cases.
    """
    t = source.tables
    opened = source.open(_handles(source, cases + cases // 4, seed))
    opening = np.where(opened.opening == NO_OPENING, t.opening_finding.size, t.opening_of[opened.opening])
    place = opened.cell.astype(np.int64) * (t.opening_finding.size + 1) + opening
    train, test = slice(None, cases), slice(cases, None)
    places, index = np.unique(place, return_inverse=True)
    counts = np.zeros((places.size, t.num_conditions))
    np.add.at(counts, (index[train], opened.truth[train]), 1.0)
    flat = t.opening_log.reshape(-1, t.num_conditions)
    belief = posterior(flat[places].astype(np.float64))[0]
    learnt = (counts + 20.0 * belief) / (counts.sum(1, keepdims=True) + 20.0)
    loss = [-np.log(np.maximum(p[index[test], opened.truth[test]], 1e-12)) for p in (belief, learnt)]
    gained = loss[0] - loss[1]
    error = gained.std() / np.sqrt(gained.size)
    if not (gained.mean() <= errors * error + 1e-4):
        raise AssertionError(
            f"expected no classifier on the opening alone to beat the belief, saw log loss {loss[1].mean():.4f} against the belief's "
            f"{loss[0].mean():.4f} (standard error of the difference {error:.5f}): "
            "the choice of the opening gives away more than its table says"
        )


# Cases


def check_cases(source: CaseSource, others: Sequence[CaseSource] = (), number: int = 400, seed: int = 0) -> None:
    """Answers are a pure function of (case, finding), rows are the finding's own, tokens round-trip, splits share no case.

    `others` are the sources of the other splits.
    """
    t = source.tables
    handle = _handles(source, number, seed)
    if not (handle.dtype == np.uint64 and handle.shape == (number,)):
        raise AssertionError(f"expected handles uint64 [{number}], saw {handle.dtype} {list(handle.shape)}")
    if not (handle == _handles(source, number, seed)).all():
        raise AssertionError("expected the same handles for the same streams and episodes, saw others on the second call")
    singly = np.concatenate([_handles(source, 1, seed, first=i) for i in range(number)])
    if not (handle == singly).all():
        raise AssertionError("expected the same handle one at a time as in a batch, saw another: `next` must not depend on the batch")
    opened = source.open(handle)
    _check_opened(t, opened)
    back = source.open(handle[::-1])
    for name, one, two in zip(opened._fields, opened, back, strict=True):
        if not (np.asarray(one) == np.asarray(two)[::-1]).all():
            raise AssertionError(f"expected `open` to be a pure function of the handle, saw another {name} in another order")
    _check_answers(source, handle, opened)
    for h in handle[:50].tolist():
        token = source.token(h)
        if not isinstance(token, str):
            raise AssertionError(f"expected a token that is a string, saw {token!r}")
        again = source.handle(token)
        if not (source.token(again) == token):
            raise AssertionError(f"expected the token {token!r} to lead back to itself, saw {source.token(again)!r}")
        case = source.case(h)
        if not (isinstance(case, Case) and case.truth == t.base.conditions[int(source.open(np.array([h], np.uint64)).truth[0])].id):
            raise AssertionError(f"expected `case` to give the patient of handle {h} with its truth, saw {case!r}")
    own = _tokens(source, number, seed)
    for other in others:
        shared = own & _tokens(other, number, seed)
        if shared:
            raise AssertionError(
                f"expected splits {source.split!r} and {other.split!r} to share no case, "
                f"saw {len(shared)} in both, such as {sorted(shared)[0]!r}"
            )


def _check_opened(t: Compiled, opened: Any) -> None:
    C, D = t.cell_weight.shape
    if not ((opened.cell >= 0).all() and (opened.cell < C).all()):
        raise AssertionError(f"expected cells in 0-{C - 1}, saw {opened.cell.min()} to {opened.cell.max()}")
    if not ((opened.truth >= 0).all() and (opened.truth < D).all()):
        raise AssertionError(f"expected conditions in 0-{D - 1}, saw {opened.truth.min()} to {opened.truth.max()}")
    told = opened.opening[opened.opening != NO_OPENING]
    wrong = told[(told < 0) | (t.opening_of[told] < 0)]
    if wrong.size:
        raise AssertionError(f"expected openings that are binary findings without parent, saw findings {np.unique(wrong).tolist()}")
    band = np.searchsorted(np.array(t.base.age_bands[1:]), opened.age, side="right")
    wrong = np.flatnonzero(band != opened.cell // 2 % len(t.base.age_bands))
    if wrong.size:
        raise AssertionError(f"expected ages inside their cell's band, saw age {opened.age[wrong[0]]} in cell {opened.cell[wrong[0]]}")


def _check_answers(source: CaseSource, handle: NDArray[np.uint64], opened: Any) -> None:
    t, Q = source.tables, source.tables.num_questions
    who, question = np.repeat(np.arange(handle.size), Q), np.tile(np.arange(Q), handle.size)

    def ask(order: NDArray[np.intp]) -> NDArray[np.integer]:
        out = np.empty(order.size, np.int64)
        i, q = who[order], question[order]
        out[order] = source.rows(handle[i], opened.truth[i], opened.cell[i], q)
        return out

    rows = ask(np.arange(who.size))
    shuffled = ask(np.argsort(draw_array(np.full(who.size, seed_for("order"), np.uint64), np.arange(who.size))))
    wrong = np.flatnonzero(rows != shuffled)
    if wrong.size:
        raise AssertionError(
            "expected an answer to be a pure function of (case, finding), "
            f"saw {wrong.size} answers change when the questions came in another order"
        )
    for k in range(min(who.size, 3 * Q)):
        i = slice(who[k], who[k] + 1)
        one = int(source.rows(handle[i], opened.truth[i], opened.cell[i], question[k : k + 1])[0])
        fast = source.row(int(handle[i][0]), int(opened.truth[i][0]), int(opened.cell[i][0]), int(question[k]))
        if not (rows[k] == one == fast):
            raise AssertionError(f"expected the same answer in a batch, alone and from `row`, saw rows {rows[k]}, {one} and {fast}")
    total = source.row_slot.size
    if not (len(source.log_likelihood) == len(source.children) == total):
        raise AssertionError("expected log_likelihood, row_slot and children of one length")
    if not ((rows >= 0).all() and (rows < total).all()):
        raise AssertionError(f"expected rows in 0-{total - 1}, saw {rows.min()} to {rows.max()}")
    own = rows < t.unknown_row
    first = t.row_of[opened.cell[who], question]
    wrong = np.flatnonzero(own & ((rows < first) | (rows >= first + t.num_values[question])))
    if wrong.size:
        raise AssertionError(f"expected rows of the finding and the cell, saw row {rows[wrong[0]]} for finding {question[wrong[0]]}")
    for k in np.flatnonzero(rows > t.unknown_row).tolist():
        slots, q = source.more_slots.get(int(rows[k]), np.zeros(0, np.intp)), int(question[k])
        if not (slots.size and (slots >= t.slot_start[q]).all() and (slots < t.slot_start[q + 1]).all()):
            raise AssertionError(
                f"expected row {rows[k]} to set slots of finding {q} ({t.slot_start[q]}-{t.slot_start[q + 1] - 1}), saw {slots.tolist()}"
            )


# Rewards


def check_reward(reward: str | Mapping[str, Any] | RewardMix | Reward, tables: Compiled | None = None, steps: int = 60) -> None:
    """Each reward of a mix, or one reward: float64 [N], the same each time and in any batch, within its bounds, 0 where its flag is off.

    It is called on recorded transitions of random doctors on `tables` (default: a small invented base). Among them are
    repeated questions, resets and questions that disclose nothing: a flag that is off must mean 0, whatever the beliefs do.
    """
    if isinstance(reward, str | Mapping | RewardMix):
        mix = parse_mix(reward)
    else:
        mix = RewardMix(((reward.name, 1.0, reward),))
    for name, _, part in mix.terms:
        if part.when not in FLAGS:
            raise AssertionError(f"{name}: expected `when` to be one of {', '.join(FLAGS)}, saw {part.when!r}")
    for t in recorded_transitions(compiled(knowledge_base("synthetic:6x24"), 0.05) if tables is None else tables, steps):
        for name, _, part in mix.terms:
            _check_one_reward(name, part, t)
        total, components = mix.score(t)
        added = sum((np.where(np.isnan(v), 0.0, v) for v in components.values()), np.zeros(t.ended.size))
        if not (np.abs(total - added) < 1e-9).all():
            raise AssertionError(f"expected the components to sum to the reward, saw {total} against {added}")
        one = _part(t, slice(0, 1))
        alone = mix.score_one(one, [flag for flag in FLAGS if getattr(one, flag)[0]])[0]
        if alone != total[0]:
            raise AssertionError(f"expected the same reward for a consultation alone, saw {alone} against {total[0]}")


def check_patient(patient: Patient, base: KnowledgeBase) -> None:
    """Words for every opening and answer of `base`: text, never empty, the same each time, different for different answers."""
    for finding in (None, *(f for f in base.findings if f.complaint)):
        _check_words(partial(patient.opening, finding), f"the opening {finding and finding.id}")
    for finding in base.findings:
        said: dict[str, tuple[str, ...]] = {}
        for values in ((), *((v,) for v in finding.values)):
            words = _check_words(partial(patient.answer, finding, values), f"the answer {finding.id} = {values or 'unknown'}")
            if words in said:
                raise AssertionError(f"{finding.id}: expected other words for {values} than for {said[words]}, saw {words!r} for both")
            said[words] = values


def _check_words(say: Callable[[], str], what: str) -> str:
    first, second = say(), say()
    if not isinstance(first, str) or not first.strip():
        raise AssertionError(f"{what}: expected words, saw {first!r}")
    if first != second:
        raise AssertionError(f"{what}: expected the same words each time, saw {first!r} and {second!r}")
    return first


def recorded_transitions(tables: Compiled, steps: int = 60, num: int = 24) -> list[Transition]:
    """Copies of the transitions of `num` random doctors over `steps` steps, resets among them."""
    engine = Engine(SampledCases(tables, ALL), parse_mix("accuracy"), num, 7)
    engine.seed([seed_for("recorded", i) for i in range(num)])
    engine.begin()
    out: list[Transition] = []
    for turn in range(steps):
        if turn % 3 == 0:
            engine.submit(engine.belief / engine.belief.sum(1, keepdims=True))
        actions = scripted_actions(engine.buffer[:, engine.mask_at : engine.spare], engine.Q, engine.stream, turn)
        out.append(copy.deepcopy(engine.step(actions, engine.done.copy()).transition))
    return out


def _check_one_reward(name: str, reward: Reward, t: Transition) -> None:
    n, before = t.ended.size, copy.deepcopy(t)
    value = np.asarray(reward(t))
    if not (value.dtype == np.float64 and value.shape == (n,)):
        raise AssertionError(f"{name}: expected float64 [{n}], saw {value.dtype} {list(value.shape)}")
    for field in dataclasses.fields(t):
        where = difference(getattr(before, field.name), getattr(t, field.name), field.name)
        if where:
            raise AssertionError(f"{name}: expected the transition to be left as it is, saw it changed ({where})")
    where = difference(value, np.asarray(reward(t)))
    if where:
        raise AssertionError(f"{name}: expected the same numbers for the same transition, saw others the second time ({where})")
    when = getattr(t, reward.when)
    wrong = np.flatnonzero(~when & (value != 0))
    if wrong.size:
        raise AssertionError(
            f"{name}: expected 0 where {reward.when!r} is off, saw {value[wrong[0]]} "
            f"(invalid {t.invalid[wrong[0]]}): a repeated or refused question pays nothing"
        )
    low, high = reward.bounds
    wrong = np.flatnonzero((value < low) | (value > high))
    if wrong.size:
        raise AssertionError(f"{name}: expected values in [{low:g}, {high:g}], saw {value[wrong[0]]}")
    for cut in (1, n // 3, n - 1):
        parts = np.concatenate([reward(_part(t, slice(None, cut))), reward(_part(t, slice(cut, None)))])
        where = difference(value, parts)
        if where:
            raise AssertionError(
                f"{name}: expected the same numbers for a batch in two parts, saw others ({where}): "
                "a consultation's reward depends on it alone"
            )


def _part(t: Transition, rows: slice) -> Transition:
    n = t.ended.size
    values = {f.name: getattr(t, f.name) for f in dataclasses.fields(t)}
    return Transition(**{k: v[rows] if isinstance(v, np.ndarray) and v.shape[:1] == (n,) else v for k, v in values.items()})


# Environments


def check_environment(env_id: str, **arguments: Any) -> None:
    """A registered environment keeps Gymnasium's rules and medenv's: see the checks below, each of which can be called alone.

    Environments whose actions are not numbers are checked for what holds for them: Gymnasium's rules, seeds and pickling.
    """
    check_gymnasium(env_id, **arguments)
    check_seeds(env_id, **arguments)
    check_pickling(env_id, **arguments)
    env = gym.make(env_id, **arguments)
    if isinstance(env.action_space, gym.spaces.Discrete):
        check_episode(env_id, **arguments)
        for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            check_batch(env_id, mode, **arguments)
        check_split_batch(env_id, **arguments)
        check_snapshot(env_id, **arguments)
        check_equal_histories(env_id, **arguments)


def check_gymnasium(env_id: str, **arguments: Any) -> None:
    """Gymnasium's own checker, every warning an error."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        try:
            check_env(gym.make(env_id, **arguments).unwrapped)
        except Exception as error:
            raise AssertionError(f"expected {env_id} to pass gymnasium's check_env without a warning, saw: {error}") from error


def check_seeds(env_id: str, **arguments: Any) -> None:
    """Two instances with one seed are equal, another seed gives others, and no global random state is touched."""
    state, legacy = random.getstate(), np.random.get_state()
    one, two = (_episodes(gym.make(env_id, **arguments), 5, 60) for _ in range(2))
    other = _episodes(gym.make(env_id, **arguments), 6, 60)
    where = difference(one, two, "step")
    if where:
        raise AssertionError(f"{env_id}: expected two instances with one seed to be equal, saw a difference at {where}")
    if not difference(one, other):
        raise AssertionError(f"{env_id}: expected another seed to give other consultations, saw the same: the seed is ignored")
    if not (random.getstate() == state and not difference(np.random.get_state(), legacy)):
        raise AssertionError(f"{env_id}: expected global random states to be left alone, saw them moved")


def check_pickling(env_id: str, **arguments: Any) -> None:
    """The environment's spec survives pickling, and makes an equal environment."""
    env = gym.make(env_id, **arguments)
    copied = gym.make(pickle.loads(pickle.dumps(env.spec)))
    where = difference(_episodes(env, 5, 20), _episodes(copied, 5, 20), "step")
    if where:
        raise AssertionError(f"{env_id}: expected a pickled spec to make an equal environment, saw a difference at {where}")


def check_episode(env_id: str, **arguments: Any) -> None:
    """Within a consultation: components sum to the reward, masks hold, hidden components stay hidden, the end gives the truth."""
    env = gym.make(env_id, **arguments).unwrapped
    Q = env.get_wrapper_attr("num_questions")
    seen, _ = env.reset(seed=11)
    for turn in range(120):
        mask = np.asarray(seen["action_mask"])
        where = difference(mask.astype(bool), env.get_wrapper_attr("action_masks")())
        if where:
            raise AssertionError(f"{env_id}: expected action_masks() to equal the observation's mask, saw {where}")
        if not mask[Q:].all():
            raise AssertionError(f"{env_id}: expected diagnosing and referring to be open always, saw {mask[Q:]}")
        if mask[:Q][np.asarray(seen["asked"]) == 1].any():
            raise AssertionError(f"{env_id}: expected questions that were asked to be masked, saw one open")
        if not (float(seen["turns_left"][0]) > 1 or not mask[:Q].any()):
            raise AssertionError(f"{env_id}: expected only diagnosing and referring on the last turn, saw a question open")
        action = _act(env, seen, turn)
        seen, reward, terminated, truncated, info = env.step(action)
        parts = {k: v for k, v in info["components"].items() if v is not None}
        hidden = len(parts) < len(info["components"])
        if not (hidden or abs(sum(parts.values()) - reward) < 1e-9):
            raise AssertionError(f"{env_id}: expected components to sum to the reward {reward}, saw {info['components']}")
        if terminated and hidden and info["scored"]:
            raise AssertionError(f"{env_id}: expected every component at the end, saw {info['components']}")
        early = {"truth", "case_id", "belief"} & set(info)
        if not (terminated or not early):
            raise AssertionError(f"{env_id}: expected {sorted(early)} at the end only, saw them before")
        if terminated or truncated:
            if terminated and "truth" not in info:
                raise AssertionError(f"{env_id}: expected the truth at the end, saw {sorted(info)}")
            seen, _ = env.reset()


def check_batch(
    env_id: str, mode: str | AutoresetMode = AutoresetMode.NEXT_STEP, num: int = 5, steps: int = 60, seed: int = 3, **arguments: Any
) -> None:
    """A batch of `num` equals as many scalar environments, seeds `seed` + i, bit for bit, under an autoreset mode."""
    mode = AutoresetMode(mode)
    batch: Any = _vector(env_id, num, mode, arguments)
    singles = [gym.make(env_id, **arguments).unwrapped for _ in range(num)]
    keys = _keys(num, seed)
    seen, _ = batch.reset(seed=seed)
    own = [env.reset(seed=seed + i)[0] for i, env in enumerate(singles)]
    ended = np.zeros(num, bool)
    name = f"{env_id}, {mode.value}"
    for i in range(num):
        _equal(name, 0, i, _row(seen, i), own[i], "observation")
    for turn in range(steps):
        if mode == AutoresetMode.DISABLED and ended.any():
            seen, _ = batch.reset(options={"reset_mask": ended})
            own = [env.reset()[0] if ended[i] else own[i] for i, env in enumerate(singles)]
            for i in np.flatnonzero(ended).tolist():
                _equal(name, turn, i, _row(seen, i), own[i], "observation after a reset")
            ended = np.zeros(num, bool)
        actions = scripted_actions(np.asarray(seen["action_mask"]), batch.num_questions, keys, turn)
        seen, reward, terminated, truncated, info = batch.step(actions)
        replies = batch.replies()
        final, body = info.get("final_obs"), info.get("final_info", info)
        for i, env in enumerate(singles):
            if ended[i] and mode == AutoresetMode.NEXT_STEP:
                own[i] = env.reset()[0]
                _equal(name, turn, i, [_row(seen, i), float(reward[i]), bool(terminated[i])], [own[i], 0.0, False], "reset step")
                continue
            observation, paid, end, cut, told = env.step(int(actions[i]))
            at_end = mode == AutoresetMode.SAME_STEP and end
            _equal(name, turn, i, _row(final if at_end else seen, i), observation, "observation")
            _equal(name, turn, i, [float(reward[i]), bool(terminated[i]), bool(truncated[i])], [paid, end, cut], "reward and end")
            _equal(name, turn, i, _info(batch, body, i, replies[i]), {k: told[k] for k in _INFO if k in told}, "info")
            own[i] = observation
            if at_end:
                own[i] = env.reset()[0]
                _equal(name, turn, i, _row(seen, i), own[i], "observation after a reset")
        ended = np.asarray(terminated) | np.asarray(truncated)


def check_split_batch(env_id: str, num: int = 6, cut: int = 2, steps: int = 40, **arguments: Any) -> None:
    """A batch in two parts equals the whole."""
    whole, left, right = (_vector(env_id, n, AutoresetMode.NEXT_STEP, arguments) for n in (num, cut, num - cut))
    keys = _keys(num)
    seen, parts = whole.reset(seed=9)[0], [left.reset(seed=9)[0], right.reset(seed=9 + cut)[0]]
    for turn in range(steps):
        actions = scripted_actions(np.asarray(seen["action_mask"]), whole.num_questions, keys, turn)
        seen, reward, terminated, *_ = whole.step(actions)
        halves = [left.step(actions[:cut]), right.step(actions[cut:])]
        parts = [h[0] for h in halves]
        joined = {k: np.concatenate([p[k] for p in parts]) for k in seen}
        where = (
            difference(seen, joined)
            or difference(reward, np.concatenate([h[1] for h in halves]))
            or difference(terminated, np.concatenate([h[2] for h in halves]))
        )
        if where:
            raise AssertionError(f"{env_id}: expected a batch in two parts to equal the whole, saw a difference at step {turn}: {where}")


def check_snapshot(env_id: str, **arguments: Any) -> None:
    """A restored snapshot goes on exactly as the consultation did, in this environment and in a fresh one."""
    env, fresh = gym.make(env_id, **arguments).unwrapped, gym.make(env_id, **arguments).unwrapped
    seen, _ = env.reset(seed=21)
    for turn in range(3):
        seen, _, end, *_ = env.step(_act(env, seen, turn, closing=False))
        if end:
            seen, _ = env.reset()
    state = env.snapshot()  # type: ignore[attr-defined]
    runs = [_continue(env, seen)]
    for one in (env, fresh):
        restored = one.restore(pickle.loads(pickle.dumps(state)))  # type: ignore[attr-defined]
        where = difference(seen, restored)
        if where:
            raise AssertionError(f"{env_id}: expected the snapshot's observation after restore, saw another at {where}")
        runs.append(_continue(one, restored))
    for kind, run in zip(("the same", "a fresh"), runs[1:], strict=True):
        where = difference(runs[0], run, "step")
        if where:
            raise AssertionError(f"{env_id}: expected {kind} environment to go on exactly from a snapshot, saw a difference at {where}")


def check_equal_histories(env_id: str, patients: int = 4, **arguments: Any) -> None:
    """Two cases that differ only in what was not disclosed look equal: observation, mask, info, rendering, imagined consultations.

    The pairs are loaded cases without reporting noise; the environment must take `cases`, `split` and `noise`.
    """
    first = gym.make(env_id, **arguments | {"noise": 0.0}).unwrapped
    tables: Compiled = first.get_wrapper_attr("tables")
    for seed in range(patients):
        case, asked = _one_history(first, seed, arguments)
        pair = [case, _twin(tables.base, case, asked, seed)]
        envs = [gym.make(env_id, **arguments | {"noise": 0.0, "cases": pair, "split": ALL, "render_mode": "ansi"}).unwrapped for _ in pair]
        seen = [env.reset(seed=seed, options={"case": c.id}) for env, c in zip(envs, pair, strict=True)]
        _check_looks(env_id, envs, seen, "at the start")
        for q in asked:
            turns = [env.step(q) for env in envs]
            _check_looks(env_id, envs, [(t[0], t[4]) for t in turns], f"after question {q}")
            if not ([t[2] for t in turns] == [False, False]):
                raise AssertionError(f"{env_id}: expected both consultations to go on, saw {[t[2] for t in turns]}")


def _one_history(env: gym.Env, seed: int, arguments: Mapping[str, Any]) -> tuple[Case, list[int]]:
    """A patient of the environment and questions that it answers in turn, one fewer than the turns there are."""
    seen, _ = env.reset(seed=100 + seed)
    asked: list[int] = []
    Q = env.get_wrapper_attr("num_questions")
    for turn in range(min(6, int(seen["turns_left"][0]) - 2)):
        open_ = np.asarray(seen["action_mask"])[None, :Q] == 1
        if open_.any():
            asked.append(int(_pick(open_, _keys(1) + np.uint64(seed), turn, 0)[0]))
            seen, *_ = env.step(asked[-1])
    return dataclasses.replace(env.get_wrapper_attr("case"), split=""), asked


def _twin(base: KnowledgeBase, case: Case, asked: Sequence[int], seed: int) -> Case:
    """Another truth, and another value for each finding that stays undisclosed."""
    known = {base.findings[q].id for q in asked} | {case.opening}
    values = dict(case.values)
    for finding in base.findings:
        if finding.id not in known and values.get(finding.id):
            others = [v for v in finding.values if v not in values[finding.id]]
            values[finding.id] = (others[seed % len(others)],) if others else ()
    ids = [c.id for c in base.conditions if c.id != case.truth]
    return dataclasses.replace(case, truth=ids[seed % len(ids)], values=values)


def _check_looks(env_id: str, envs: Sequence[gym.Env], seen: Sequence[tuple[Any, Any]], when: str) -> None:
    looks = [
        {"observation": shown, "info": info, "mask": env.get_wrapper_attr("action_masks")(), "rendering": env.render()}
        for env, (shown, info) in zip(envs, seen, strict=True)
    ]
    where = difference(looks[0], looks[1])
    if not where:
        dreams = [env.get_wrapper_attr("imagine")(3, 17) for env in envs]
        for turn in range(3):
            actions = [scripted_actions(d.action_masks(), d.num_questions, _keys(3), turn, closing=False) for d in dreams]
            steps = [d.step(a)[:3] for d, a in zip(dreams, actions, strict=True)]
            where = where or difference(steps[0], steps[1], "imagined")
            if steps[0][2].any():
                break
    if where:
        raise AssertionError(
            f"{env_id}: expected two cases with equal histories to look equal {when}, saw a difference in {where}: "
            "it comes from the hidden case"
        )


def _episodes(env: gym.Env, seed: int, steps: int) -> list[Any]:
    """What `steps` steps from `seed` show, resets included."""
    seen, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    out: list[Any] = [(seen, info)]
    for turn in range(steps):
        if isinstance(env.action_space, gym.spaces.Discrete):
            action: Any = _act(env, seen, turn)
        else:
            action = env.action_space.sample()
        turned = env.step(action)
        out.append((action, *turned))
        seen = turned[0]
        if turned[2] or turned[3]:
            seen, info = env.reset()
            out.append((seen, info))
    return out


def _continue(env: gym.Env, seen: Any, steps: int = 25) -> list[Any]:
    out: list[Any] = []
    for turn in range(steps):
        turned = env.step(_act(env, seen, 1000 + turn))
        out.append(turned)
        seen = turned[0]
        if turned[2]:
            seen, info = env.reset()
            out.append((seen, info))
    return out


_INFO = ("reply", "components", "scored", "no_condition_fits", "truth", "case_id", "belief", "differential")


def _info(batch: Any, info: Mapping[str, Any], i: int, reply: str) -> dict[str, Any]:
    """A batch's info for consultation i, as the scalar environment spells it."""
    parts = info["components"]
    out: dict[str, Any] = {
        "reply": reply,
        "components": {k: float(v[i]) if parts[f"_{k}"][i] else None for k, v in parts.items() if not k.startswith("_")},
    }
    out["scored"] = bool(info["scored"][i])
    out["no_condition_fits"] = bool(info["no_condition_fits"][i]) if "no_condition_fits" in info else False
    if "_truth" in info and info["_truth"][i]:
        out["truth"] = batch.setup.base.conditions[int(info["truth"][i])].id
        out["case_id"] = batch.case_ids(info["case"][i : i + 1])[0]
        out["belief"] = info["belief"][i]
        given = info["differential"][i] if "differential" in info else None
        out["differential"] = None if given is None or np.isnan(given).all() else given
    return out


def _row(seen: Any, i: int) -> dict[str, Any]:
    return {k: v[i] for k, v in seen.items()}


def _equal(env_id: str, turn: int, i: int, batch: Any, single: Any, what: str) -> None:
    where = difference(batch, single, what)
    if where:
        raise AssertionError(
            f"{env_id}: expected consultation {i} of a batch to equal the scalar environment bit for bit, "
            f"saw a difference at step {turn}: {where}"
        )


# Doctors


def check_doctor(doctor: Doctor, tables: Compiled, num: int = 24, max_turns: int = 8) -> None:
    """A doctor chooses valid actions, the same in any batch and order, changes no observation, and gives probabilities or nothing."""
    env = ConsultVectorEnv(
        num,
        "Disabled",
        knowledge=tables.base,
        noise=tables.noise,
        difficulty=tables.difficulty,
        setting=tables.setting,
        max_turns=max_turns,
        split=ALL,
    )
    seen, _ = env.reset(seed=31)
    done = np.zeros(num, bool)
    order = np.argsort(draw_array(_keys(num), 0))
    for turn in range(max_turns):
        before = copy.deepcopy(seen)
        action, differential = doctor.act(seen)
        where = difference(before, seen)
        if where:
            raise AssertionError(f"{doctor.name}: expected the observation to be left as it is, saw it changed at {where}")
        action = np.asarray(action)
        if not (action.shape == (num,) and np.issubdtype(action.dtype, np.integer)):
            raise AssertionError(f"{doctor.name}: expected {num} integers, saw {action.dtype} {list(action.shape)}")
        _check_differential(doctor.name, differential, num, tables.num_conditions)
        inside = (action >= 0) & (action < env.engine.A)
        wrong = np.flatnonzero(~inside | (np.asarray(seen["action_mask"])[np.arange(num), np.where(inside, action, 0)] != 1))
        if wrong.size:
            raise AssertionError(
                f"{doctor.name}: expected valid actions, saw {action[wrong].tolist()} on turn {turn}, which the mask forbids"
            )
        again = np.asarray(doctor.act({k: v[order] for k, v in seen.items()})[0])
        if not (again == action[order]).all():
            raise AssertionError(
                f"{doctor.name}: expected the same decisions in another order, "
                f"saw {int((again != action[order]).sum())} others on turn {turn}"
            )
        alone = np.array([int(doctor.act({k: v[i : i + 1] for k, v in seen.items()})[0][0]) for i in range(num)])
        if not (alone == action).all():
            raise AssertionError(
                f"{doctor.name}: expected the same decisions one by one, saw {int((alone != action).sum())} others on turn {turn}"
            )
        seen, _, ended, _, _ = env.step(action)
        done |= ended
        if ended.any():
            seen, _ = env.reset(options={"reset_mask": ended})
    if not done.all():
        raise AssertionError(
            f"{doctor.name}: expected every consultation to end within {max_turns} turns, saw {int((~done).sum())} that did not"
        )


def _check_differential(name: str, given: Any, num: int, D: int) -> None:
    if given is None:
        return
    p = np.asarray(given)
    if not (p.shape == (num, D)):
        raise AssertionError(f"{name}: expected a differential [{num}, {D}] or None, saw {list(p.shape)}")
    if not (np.isfinite(p).all() and (p >= 0).all() and (np.abs(p.sum(1) - 1) < 1e-3).all()):
        raise AssertionError(f"{name}: expected probabilities that sum to 1, saw sums {p.sum(1)[:3]}")


# Shared


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two nested things differ, with both values; empty if they are equal bit for bit (NaN equals NaN)."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b) and set(a) != set(b):
            return f"{where}: keys {sorted(map(str, a))} against {sorted(map(str, b))}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{where}.{k}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} entries against {len(b)}"
        return next((d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := difference(x, y, f"{where}[{i}]"))), "")
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        x, y = np.asarray(a), np.asarray(b)
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{where}: {x.dtype} {list(x.shape)} against {y.dtype} {list(y.shape)}"
        same = (x == y) | ((x != x) & (y != y))
        return (
            "" if np.all(same) else f"{where}: {x[~same].flat[0]!r} against {y[~same].flat[0]!r}, {int((~same).sum())} of {x.size} entries"
        )
    return "" if a == b or (a != a and b != b) else f"{where}: {a!r} against {b!r}"


def scripted_actions(mask: NDArray, questions: int, keys: NDArray[np.uint64], turn: int, closing: bool = True) -> NDArray[np.int64]:
    """Actions int64 [N] for masks [N, A] whose first `questions` columns ask: mostly open questions, sometimes another open
    action, sometimes one that may be masked. A hash of (key, turn) for each row.

    With `closing` False nothing is invalid, and a consultation is closed only where no question is open.
    """
    open_ = np.asarray(mask) == 1
    ask = open_.copy()
    ask[:, questions:] = False
    ask = np.where(ask.any(1, keepdims=True), ask, open_)
    kind = (draw_array(keys, 1000 + 2 * turn) >> np.uint64(60))[:, None]  # 0 to 15
    return _pick(np.where(kind < 12, ask, np.where(kind < 14, open_, True)) if closing else ask, keys, 1001 + 2 * turn, 0)


def _vector(env_id: str, num: int, mode: AutoresetMode, arguments: Mapping[str, Any]) -> Any:
    return gym.make_vec(env_id, num, "vector_entry_point", autoreset_mode=mode, **arguments)


def _act(env: gym.Env, seen: Mapping[str, Any], turn: int, closing: bool = True) -> int:
    return int(scripted_actions(np.asarray(seen["action_mask"])[None], env.get_wrapper_attr("num_questions"), _keys(1), turn, closing)[0])


def _pick(allowed: NDArray[np.bool_], keys: NDArray[np.uint64], counter: int, nothing_open: int) -> NDArray[np.int64]:
    """One of the True columns of each row [N, K], uniformly by hash; `nothing_open` where there is none."""
    count = allowed.sum(1)
    place = ((draw_array(keys, counter) >> _U32) * count.astype(np.uint64)) >> _U32
    found = np.argmax(np.cumsum(allowed, axis=1) == (place.astype(np.int64) + 1)[:, None], axis=1)
    return np.where(count > 0, found, nothing_open)


def _keys(num: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.array([seed_for(seed, "check", i) for i in range(num)], np.uint64)


def _handles(source: CaseSource, number: int, seed: int, first: int = 0) -> NDArray[np.uint64]:
    stream = np.full(number, seed_for(seed, "streams"), np.uint64)
    return source.next(stream, np.arange(first, first + number, dtype=np.uint64))


def _tokens(source: CaseSource, number: int, seed: int) -> set[str]:
    return {source.token(int(h)) for h in _handles(source, max(number, 2 * len(source)), seed)}


def _calibration(turn: int, top: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    off = right - top
    bins = np.minimum((top * BINS).astype(np.int64), BINS - 1)
    ece = np.abs(np.bincount(bins, off, BINS)).sum() / top.size
    return Calibration(turn, float(top.mean()), float(right.mean()), float(off.std() / np.sqrt(top.size)), float(ece))
