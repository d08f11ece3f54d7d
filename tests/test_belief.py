"""The belief against two oracles (enumeration of every patient, a Bayesian-network library), and its calibration at every turn."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from conftest import strict_base, tiny_base
from numpy.typing import NDArray

from medenv.belief.gain import InformationGain
from medenv.belief.posterior import no_condition_fits, observed_cell, observed_scores, posterior, posterior_one
from medenv.cases.case import Case
from medenv.cases.loaded import LoadedCases
from medenv.cases.sampled import SampledCases
from medenv.envs.engine import Engine
from medenv.envs.steps import NONE
from medenv.hashing import draw_array
from medenv.knowledge.base import SEXES, Finding, KnowledgeBase
from medenv.knowledge.compiled import IMPOSSIBLE, LOG_ZERO, Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.mix import parse_mix
from medenv.testing import calibration, check_calibration, check_opening

NOISE = 0.1
World = tuple[int, tuple[int, ...]]  # opening, then one value per finding (-1: a child whose parent is not active)


class Enumeration:
    """Every patient that a base of one setting can make, with its probability: written from the definitions, not from the tables."""

    def __init__(self, base: KnowledgeBase, noise: float) -> None:
        self.base, self.noise = base, noise
        self.D, self.cells = len(base.conditions), 2 * len(base.age_bands)
        spans = np.diff([*base.age_bands, base.oldest + 1])
        shape = np.array([[spans[c // 2] * d.age[c // 2] * d.sex[c % 2] for d in base.conditions] for c in range(self.cells)])
        prior = np.array([d.prior["primary"] for d in base.conditions])
        self.prior = prior / prior.sum()
        self.weight = shape / shape.sum(0) * self.prior  # P(cell, condition)

    def present(self, finding: Finding, cell: int) -> NDArray[np.float64]:
        """[V, D] P(value | condition) in this cell, before the opening is chosen."""
        sex = SEXES[cell % 2]
        out = np.zeros((len(finding.values), self.D))
        background = finding.background_by_cell.get((sex, cell // 2), finding.background)
        for d, condition in enumerate(self.base.conditions):
            link = next((k.probabilities for k in self.base.links if (k.condition, k.finding) == (condition.id, finding.id)), {})
            if finding.sex and finding.sex != sex:
                out[0, d] = 1.0
            elif finding.type == "binary":
                out[1, d] = 1 - (1 - link.get("yes", 0.0)) * (1 - background[1])
                out[0, d] = 1 - out[1, d]
            else:
                rest = 1 - sum(link.values())
                out[:, d] = [link.get(v, 0.0) + rest * b for v, b in zip(finding.values, background, strict=True)]
        return out

    def opens(self, finding: Finding) -> NDArray[np.float64]:
        """[D] P(this is the opening statement | condition)."""
        return np.array([self.base.complaints[c.id].get(finding.id, 0.0) for c in self.base.conditions])

    @cache  # noqa: B019  the tests' few enumerations live as long as the tests
    def reported(self, q: int, cell: int) -> NDArray[np.float64]:
        """[V, D] P(reported value | condition, not the opening)."""
        finding = self.base.findings[q]
        table, c = self.present(finding, cell), self.opens(finding)
        if c.any():
            yes = (table[1] - c) / (1 - c)
            table = np.stack([1 - yes, yes])
        if finding.sex and finding.sex != SEXES[cell % 2]:
            return table
        flip = self.noise * (1 - finding.reliability)
        return (1 - flip) * table + flip * (table @ self.prior)[:, None]

    @cache  # noqa: B019
    def worlds(self, cell: int) -> dict[World, NDArray[np.float64]]:
        """World -> [D] its joint probability with the cell and each condition."""
        findings = self.base.findings
        out: dict[World, NDArray[np.float64]] = {}
        for o in [q for q, f in enumerate(findings) if self.opens(f).any()]:
            for values in itertools.product(*([-1, *range(len(f.values))] for f in findings)):
                weight = self.weight[cell] * self.opens(findings[o])
                for q, f in enumerate(findings):
                    parent = self.base.finding_index[f.parent] if f.parent else None
                    active = parent is None or (values[parent] >= 0 and findings[parent].values[values[parent]] in f.activated_by)
                    if active != (values[q] >= 0) or (q == o and values[q] != 1):
                        break
                    if active and q != o:
                        weight = weight * self.reported(q, cell)[values[q]]
                else:
                    out[o, values] = weight
        return out

    def posterior(self, cell: int, opening: int, seen: dict[int, int]) -> NDArray[np.float64]:
        total = sum(w for (o, v), w in self.worlds(cell).items() if o == opening and all(v[q] == x for q, x in seen.items()))
        return total / np.sum(total)

    def gain(self, cell: int, opening: int, seen: dict[int, int], question: int) -> float:
        """Entropy now, less its expectation after the answer."""
        now, after = _entropy(self.posterior(cell, opening, seen)), 0.0
        total = sum(self._mass(cell, opening, seen))
        for value in range(len(self.base.findings[question].values)):
            mass = sum(self._mass(cell, opening, seen | {question: value}))
            if mass > 0:
                after += mass / total * _entropy(self.posterior(cell, opening, seen | {question: value}))
        return now - after

    def _mass(self, cell: int, opening: int, seen: dict[int, int]) -> list[float]:
        return [w.sum() for (o, v), w in self.worlds(cell).items() if o == opening and all(v[q] == x for q, x in seen.items())]


def _entropy(p: NDArray[np.float64]) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def _engine(tables: Compiled, num: int, turns: int = 20, split: str = "all") -> Engine:
    engine = Engine(SampledCases(tables, split), parse_mix("accuracy"), num, turns)
    engine.seed(list(range(num)))
    engine.begin()
    return engine


def _some_open(engine: Engine, turn: int) -> NDArray[np.int64]:
    """A random open question for each consultation; an invalid action where there is none."""
    mask = engine.buffer[:, engine.mask_at : engine.mask_at + engine.Q] == 1
    order = draw_array(engine.stream[:, None] + np.uint64(turn), np.arange(engine.Q)) >> np.uint64(1)
    return np.where(mask.any(1), np.argmax(np.where(mask, order.astype(np.int64), -1), axis=1), engine.A)


def test_enumeration__is_a_distribution_whose_marginals_are_the_base() -> None:
    """The choice of the opening and p' together leave P(finding | condition) as it was."""
    e = Enumeration(tiny_base(), 0.0)
    total = sum(w.sum() for cell in range(e.cells) for w in e.worlds(cell).values())
    assert total == pytest.approx(1.0, abs=1e-12)
    for cell in range(e.cells):
        for q in (0, 1):
            yes = sum(w for (_, v), w in e.worlds(cell).items() if v[q] == 1)
            assert yes / e.weight[cell] == pytest.approx(e.present(e.base.findings[q], cell)[1], abs=1e-12)


@pytest.mark.parametrize("noise", [0.0, NOISE, 0.5])
def test_belief_and_gain__equal_enumeration(noise: float) -> None:
    tables, oracle = compiled(tiny_base(), noise), Enumeration(tiny_base(), noise)
    engine, gain = _engine(tables, 60), InformationGain(tables)
    seen: list[dict[int, int]] = [{} for _ in range(60)]
    for turn in range(5):
        expected = gain(engine.belief, engine.cell)
        for i in range(60):
            cell, opening = int(engine.cell[i]), int(engine.complaint[i])
            p = oracle.posterior(cell, opening, seen[i])
            assert engine.belief[i] == pytest.approx(p, abs=2e-6)
            assert engine.entropy[i] == pytest.approx(_entropy(p), abs=5e-6)
            if i < 15:
                open_ = np.flatnonzero(engine.buffer[i, engine.mask_at : engine.mask_at + engine.Q])
                brute = [oracle.gain(cell, opening, seen[i], int(q)) for q in open_]
                assert expected[i, open_] == pytest.approx(brute, abs=5e-6)
                assert gain.exact(p, cell, open_) == pytest.approx(brute, abs=1e-9)
        step = engine.step(_some_open(engine, turn))
        for i in np.flatnonzero(step.row != NONE):
            seen[i][int(tables.row_finding[step.row[i]])] = int(tables.row_value[step.row[i]])


def test_belief__equals_a_bayesian_network() -> None:
    """An independent library on the same network: condition, opening, findings; children under their reported parents."""
    gum = pytest.importorskip("pyagrum", reason="pyagrum, the Bayesian-network library to compare with, is not installed")
    base = knowledge_base("synthetic:6x24")
    tables = compiled(base, NOISE)
    engine = _engine(tables, 400)
    cell = int(engine.cell[0])
    net = _network(gum, tables, cell)
    inference = gum.LazyPropagation(net)
    members = np.flatnonzero(engine.cell == cell)[:25]
    seen = {int(i): {} for i in members}
    for turn in range(9):
        step = engine.step(_some_open(engine, turn))
        for i in members:
            row = int(step.row[i])
            if row != NONE:
                f = base.findings[tables.row_finding[row]]
                seen[int(i)][f.id] = f.values[tables.row_value[row]]
        if turn % 4 == 0:
            for i in members:
                inference.setEvidence({"opening": base.findings[int(engine.complaint[i])].id} | seen[int(i)])
                inference.makeInference()
                assert engine.belief[i] == pytest.approx(inference.posterior("condition").toarray(), abs=5e-5)


def _network(gum, tables: Compiled, cell: int):  # type: ignore[no-untyped-def]
    base, D = tables.base, tables.num_conditions
    net = gum.BayesNet()
    net.add(gum.LabelizedVariable("condition", "", [c.id for c in base.conditions]))
    mass = np.diff(tables.joint_threshold.astype(float), prepend=0.0)
    here = tables.joint_cell == cell
    can_open = np.unique(tables.joint_opening[here])
    net.add(gum.LabelizedVariable("opening", "", [base.findings[q].id for q in can_open]))
    net.addArc("condition", "opening")
    net.cpt("condition").fillWith((tables.cell_weight[cell] / tables.cell_weight[cell].sum()).tolist())
    opens = np.zeros((D, can_open.size))
    np.add.at(opens, (tables.joint_condition[here], np.searchsorted(can_open, tables.joint_opening[here])), mass[here])
    for d in range(D):
        net.cpt("opening")[{"condition": d}] = opens[d] / opens[d].sum()
    for q, f in enumerate(base.findings):
        net.add(gum.LabelizedVariable(f.id, "", [*f.values, "not asked"]))
        net.addArc("condition", f.id)
        if q in can_open:
            net.addArc("opening", f.id)
    for q, f in enumerate(base.findings):
        if f.parent:
            net.addArc(f.parent, f.id)
        rows = tables.probability[tables.row_of[cell, q] : tables.row_of[cell, q] + tables.num_values[q]]
        for d in range(D):
            usual = [*rows[:, d], 0.0]
            if q in can_open:
                for o, opening in enumerate(can_open):
                    net.cpt(f.id)[{"condition": d, "opening": o}] = [0.0, 1.0, 0.0] if opening == q else usual
            elif f.parent:
                values = base.finding(f.parent).values
                for v, name in enumerate([*values, "not asked"]):
                    net.cpt(f.id)[{"condition": d, f.parent: v}] = usual if name in f.activated_by else [0.0] * len(f.values) + [1.0]
            else:
                net.cpt(f.id)[{"condition": d}] = usual
    return net


@pytest.mark.parametrize(
    ("base", "noise", "difficulty"),
    [("tiny", 0.1, 0.0), ("synthetic:12x30", 0.05, 0.0), ("synthetic:30x60", 0.0, 0.7), ("builtin", 0.02, 0.0)],
)
def test_belief__is_calibrated_at_every_turn(base: str, noise: float, difficulty: float) -> None:
    tables = compiled(tiny_base() if base == "tiny" else knowledge_base(base), noise, difficulty)
    check_calibration(SampledCases(tables, "test"), 40_000, turns=10, ece=0.01, errors=3.0)
    check_opening(SampledCases(tables, "test"), 200_000)


def test_belief__sharpens_with_questions() -> None:
    """Calibration is not bought by knowing nothing."""
    seen = calibration(SampledCases(compiled(knowledge_base("synthetic:12x30"), 0.02), "train"), 10_000, turns=12)
    assert seen[-1].accuracy > seen[0].accuracy + 0.2


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_observed_belief__equals_the_environments(difficulty: float) -> None:
    """What a doctor works out from the observation alone is what the environment knows."""
    tables = compiled(knowledge_base("synthetic:12x50"), NOISE, difficulty)
    engine = _engine(tables, 300)
    for turn in range(8):
        view = engine.views()
        assert (observed_cell(tables, view["demographics"]) == engine.cell).all()
        assert posterior(observed_scores(tables, view))[0] == pytest.approx(engine.belief, abs=2e-5)
        engine.step(_some_open(engine, turn))


def test_set_of_values__counts_with_its_mean_log_likelihood() -> None:
    tables = compiled(strict_base())
    case = Case(30, "female", "primary", "one", {"hello": ("yes",), "set": ("x", "z")}, "hello")
    engine = Engine(LoadedCases(tables, [case], "all"), parse_mix("accuracy"), 1, 5)
    engine.seed([0])
    engine.begin()
    q = tables.base.finding_index["set"]
    engine.step(np.array([q]))
    p = np.array([[0.8 + 0.2 * 0.2, 0.2 * 0.5], [0.2, 0.5]])  # P(x), P(z) under each condition
    mean = np.exp(np.log(p).mean(1))
    assert engine.belief[0] == pytest.approx(mean / mean.sum(), abs=1e-6)
    view = engine.views()
    assert view["evidence"][0, tables.slot_start[q] : tables.slot_start[q + 1]].tolist() == [1, 0, 1]
    assert posterior(observed_scores(tables, view))[0] == pytest.approx(engine.belief, abs=1e-6)


def test_multi_choice_gain__is_that_of_one_draw() -> None:
    tables = compiled(tiny_base())
    q = tables.base.finding_index["spots"]
    rows = tables.probability[tables.row_of[0, q] : tables.row_of[0, q] + 3]
    belief = np.array([0.2, 0.3, 0.5])
    answer = rows @ belief
    expected = _entropy(answer) - sum(b * _entropy(rows[:, d]) for d, b in enumerate(belief))
    assert InformationGain(tables)(belief[None], np.zeros(1, int))[0, q] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num", [1, 4])
def test_no_condition_fits__is_a_state_and_never_nan(num: int) -> None:
    tables = compiled(strict_base())
    case = Case(30, "female", "primary", "one", {"hello": ("yes",), "a": ("yes",), "b": ("yes",), "c": ("no",)}, "hello")
    fits = Case(31, "female", "primary", "one", {"hello": ("yes",), "a": ("yes",), "b": ("no",), "c": ("no",)}, "hello")
    source = LoadedCases(tables, [case, fits], "all")
    engine = Engine(source, parse_mix("accuracy + information_gain(value=log_probability)"), num, 9)
    engine.seed(list(range(num)))
    engine.begin(handles=np.arange(num, dtype=np.uint64) % np.uint64(2))
    fit = []
    for name in ("a", "b", "c"):
        step = engine.step(np.full(num, tables.base.finding_index[name]))
        fit.append((engine.normaliser < IMPOSSIBLE).tolist())
        assert fit[-1] == no_condition_fits(engine.scores).tolist()
        assert np.isfinite(engine.belief).all() and np.isfinite(engine.entropy).all() and np.isfinite(step.reward).all()
        assert engine.belief.sum(1) == pytest.approx(1.0)
    contradicted = [i % 2 == 0 for i in range(num)]
    assert fit == [[False] * num, contradicted, contradicted]
    assert engine.belief[0] == pytest.approx([0.5, 0.5]), "both conditions met one contradiction each"


def test_posterior__has_the_same_bits_for_one_and_for_many() -> None:
    rng = np.random.default_rng(3)
    for D in (2, 3, 7, 8, 9, 31, 64, 130, 501):
        scores = np.log(rng.dirichlet(np.full(D, 0.3), 37) + 1e-9).astype(np.float32)
        scores[5, 1:] = LOG_ZERO
        scores[6] = 2 * LOG_ZERO
        shift = np.zeros(37, np.float32)
        whole = posterior(scores, shift)
        for i in range(37):
            alone = posterior(scores[i : i + 1], shift[i : i + 1])
            fast = posterior_one(scores[i], shift[i])
            for k in range(3):
                assert whole[k][i].tobytes() == alone[k][0].tobytes() == np.asarray(fast[k], np.float32).tobytes(), (D, i, k)
        for cut in (1, 4, 36):
            parts = [posterior(scores[:cut], shift[:cut]), posterior(scores[cut:], shift[cut:])]
            assert np.concatenate([p[0] for p in parts]).tobytes() == whole[0].tobytes()
