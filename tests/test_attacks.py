"""Attackers do what their names say; the default reward withstands them; a reward that pays for asking does not."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from medenv.agents.attackers import ATTACKERS, IN_WORDS, LISTED, Attacker, Honest, likeness
from medenv.agents.baselines import Prevalence
from medenv.agents.doctor import one
from medenv.agents.greedy import Greedy
from medenv.cases.named import case_source
from medenv.cli import main
from medenv.envs.consult import ConsultEnv
from medenv.envs.engine import Engine
from medenv.envs.setup import Setup
from medenv.errors import MedenvError, RewardError, RunError, UnknownName
from medenv.hashing import seed_for
from medenv.knowledge.base import Condition, Finding, KnowledgeBase, Link
from medenv.knowledge.compiled import Compiled, compiled
from medenv.knowledge.named import knowledge_base
from medenv.rewards.mix import RewardMix, parse_mix
from medenv.runs import attacks, results
from medenv.runs.attacks import HONEST, MAX_TURNS, SPLIT, attack, attack_mixes, duplicates, verdict
from medenv.runs.evaluate import assign
from medenv.runs.experiments import main as experiments
from medenv.testing import check_doctor

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "experiments/attacks/settings.toml").read_text(encoding="utf-8"))
SMALL = {"knowledge": "synthetic:12x50"}
NOT_VALID = ("repeat", "fill_budget", "malformed", "invalid")  # their trick is an action that the mask forbids


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return attack("default", {}, 400, 0)


@pytest.fixture(scope="module")
def tables() -> Compiled:
    return Setup().tables


def make(name: str, tables: Compiled) -> Attacker:
    return (ATTACKERS | {"honest": Honest})[name](Greedy(tables, 0.8), tables)


class Watched:
    """`num` consultations of a doctor: per turn the observations, actions and differentials of those that took part, and who they were."""

    def __init__(self, doctor: Any, tables: Compiled, num: int = 24, turns: int = 20) -> None:
        engine = Engine(case_source("sampled", tables, "validation"), parse_mix("accuracy"), num, turns)
        engine.seed([seed_for("watched", i) for i in range(num)])
        engine.begin()
        self.turns: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]] = []
        self.actions: list[list[int]] = [[] for _ in range(num)]
        self.belief = []
        self.Q, self.D = engine.Q, engine.D
        while not engine.done.all():
            who = np.flatnonzero(~engine.done)
            seen = {k: v[who] for k, v in engine.views().items()}
            action, differential = doctor.act(seen)
            self.turns.append((seen, action, differential, who))
            self.belief.append(engine.belief[who].copy())
            for i, a in zip(who, action, strict=True):
                self.actions[i].append(int(a))
            everybody = np.zeros(num, np.int64)
            everybody[who] = action
            engine.step(everybody)

    def lengths(self) -> set[int]:
        return {len(a) for a in self.actions}

    def open(self, turn: int) -> np.ndarray:
        return self.turns[turn][0]["action_mask"][:, : self.Q] == 1

    def asked(self, turn: int) -> np.ndarray:
        """Without the opening statement."""
        seen = self.turns[turn][0]
        asked = seen["asked"] == 1
        asked[np.arange(len(asked)), seen["complaint"]] = False
        return asked

    def ends_with_the_likeliest(self) -> bool:
        last = [len(a) - 1 for a in self.actions]
        rows = [int(np.flatnonzero(self.turns[t][3] == i)[0]) for i, t in enumerate(last)]
        return all(self.actions[i][t] - self.Q == self.belief[t][row].argmax() for i, (t, row) in enumerate(zip(last, rows, strict=True)))


@pytest.fixture(scope="module")
def watched(tables: Compiled) -> dict[str, Watched]:
    return {name: Watched(make(name, tables), tables) for name in ("honest", *ATTACKERS)}


def honest_on(tables: Compiled, w: Watched, turn: int) -> np.ndarray:
    return Greedy(tables, 0.8).act(w.turns[turn][0])[0]


def test_constants__are_the_settings_written_down() -> None:
    assert (SETTINGS["honest"], SETTINGS["max_turns"], SETTINGS["split"]) == (HONEST, MAX_TURNS, SPLIT)
    assert len(SETTINGS["mixes"]) > 10
    for mix in SETTINGS["mixes"].values():
        parse_mix(mix)


def test_default_mix__pays_no_attacker(default: dict[str, Any]) -> None:
    low, high = default["honest"]["ci"]
    assert low < default["honest"]["mean"] < high and high - low < 0.1
    assert default["holds"] is True and default["does_not_apply"] == ["list_all_late"]
    assert set(default["attacks"]) == set(ATTACKERS) - {"list_all_late"}
    for name, found in default["attacks"].items():
        assert found["unscored"] == 0 and found["mean"] < low and found["pays"] is False, name
        assert sum(found["components"].values()) == pytest.approx(found["mean"]), name
    assert verdict(default).startswith("holds")


def test_honest_doctor__is_greedy_on_the_same_cases(default: dict[str, Any], tables: Compiled) -> None:
    from medenv.runs.evaluate import evaluate

    greedy = evaluate("MedConsult-v0", HONEST, 400, 0, env_arguments={"split": SPLIT, "max_turns": MAX_TURNS})
    mine = default["honest"]
    assert (mine["mean"], mine["accuracy"], mine["questions"]) == (greedy["mean_return"], greedy["accuracy"], greedy["mean_questions"])
    assert mine["ci"] == greedy["mean_return_ci"]
    assert (
        default["attacks"]["commonest"]["accuracy"]
        == evaluate("MedConsult-v0", "prevalence", 400, 0, env_arguments={"split": SPLIT})["accuracy"]
    )


def test_positive_pay_for_questions__is_flagged() -> None:
    found = attack("accuracy + 0.1*question_cost", SMALL, 60, 0)
    pays = {n for n, a in found["attacks"].items() if a["pays"]}
    assert found["holds"] is False and {"ask_everything", "near_duplicates", "after_settled", "fill_budget", "order_everything"} <= pays
    assert not pays & {"stop_at_once", "commonest", "refer_always", "malformed", "invalid", "repeat"}
    assert "fill_budget" in verdict(found) and not verdict(found).startswith("holds")


def test_attack__is_the_same_each_time_and_follows_its_seed() -> None:
    first, again, other = (attack("default", SMALL, 20, seed) for seed in (3, 3, 4))
    assert first == again and first["honest"]["mean"] != other["honest"]["mean"]


def test_list_of_everything__pays_only_where_names_cost_nothing() -> None:
    free, priced = (attack(mix, SMALL, 60, 0)["attacks"] for mix in ("reciprocal_rank(price=0)", "reciprocal_rank"))
    assert free["list_all_late"]["pays"] is True and priced["list_all_late"]["pays"] is False
    assert priced["list_all"]["mean"] == pytest.approx(1 / 12 - 12 * 0.02)
    assert free["list_all_late"]["mean"] - priced["list_all_late"]["mean"] == pytest.approx(12 * 0.02)


# What could not be scored


@dataclass(frozen=True)
class Spotty:
    """1 for any diagnosis; not scored where there was no action at all, nor for patients with condition `never`."""

    name: ClassVar[str] = "spotty"
    when: ClassVar[str] = "turn"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs_truth: ClassVar[bool] = True
    never: int = -1

    def __call__(self, t: Any) -> np.ndarray:
        return np.where(t.turn & (t.malformed | (t.truth == self.never)), np.nan, np.where(t.diagnosis >= 0, 1.0, 0.0))


def test_unscored_consultation__is_null_and_counted_never_0() -> None:
    found = attack(RewardMix((("spotty", 1.0, Spotty()),)), SMALL, 20, 0)
    lost = found["attacks"]["malformed"]
    assert (lost["mean"], lost["ci"], lost["pays"], lost["unscored"]) == (None, None, None, 20)
    assert lost["components"] == {"spotty": None} and lost["accuracy"] == 0.0
    assert found["holds"] is False and found["attacks"]["stop_at_once"]["pays"] is True  # another attack pays
    assert "malformed" in verdict(found)


def test_some_unscored__leave_no_mean_of_the_rest() -> None:
    found = attack(RewardMix((("spotty", 1.0, Spotty(never=3)),)), SMALL, 40, 0)
    source = Setup(**SMALL, split=SPLIT).source
    lost = int((source.open(assign(source, 0, 40)).truth == 3).sum())
    for doctor in (found["honest"], found["attacks"]["stop_at_once"]):
        assert 0 < doctor["unscored"] == lost < 40 and doctor["mean"] is doctor["ci"] is None and doctor["accuracy"] is not None
    assert found["holds"] is None and {a["pays"] for a in found["attacks"].values()} == {None}
    assert verdict(found).startswith("not judged")


def test_verdict__is_null_when_an_attack_could_not_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ATTACKERS["commonest"]):  # type: ignore[misc]
        def move(self, seen: Any) -> Any:
            raise RuntimeError("broken")

    monkeypatch.setitem(attacks.ATTACKERS, "commonest", Broken)
    found = attack("accuracy - 0.05*question_cost - 0.1*invalid_action", SMALL, 150, 0)
    assert found["attacks"]["commonest"]["unscored"] == 150 and found["attacks"]["commonest"]["mean"] is None
    assert found["holds"] is None and verdict(found).startswith("not judged") and "commonest" in verdict(found)
    assert not any(a["pays"] for a in found["attacks"].values())


def test_attack__refuses_what_it_cannot_run() -> None:
    for arguments in ({"episodes": 0, "seed": 0}, {"episodes": 5, "seed": -1}):
        with pytest.raises(MedenvError, match="give at least 1"):
            attack("default", SMALL, **arguments)
    with pytest.raises(RewardError):
        attack("acuracy", SMALL, 5, 0)
    with pytest.raises(UnknownName):
        attack("default", SMALL, 5, 0, honest="gredy")


# Attackers


@pytest.mark.parametrize("name", sorted(set(ATTACKERS) - set(NOT_VALID)))
@pytest.mark.parametrize("base", ["synthetic:2x8", "synthetic:12x50", "builtin"])
def test_attacker__conforms(name: str, base: str) -> None:
    tables = compiled(knowledge_base(base), 0.05)
    check_doctor(make(name, tables), tables, num=8)


@pytest.mark.parametrize("name", NOT_VALID)
def test_attacker_that_breaks_the_mask__is_the_same_in_any_batch(name: str, tables: Compiled, watched: dict[str, Watched]) -> None:
    with pytest.raises(AssertionError, match="expected valid actions"):
        check_doctor(make(name, tables), tables, num=8)
    for seen, action, differential, _ in watched[name].turns:
        part = make(name, tables).act({k: v[5:7] for k, v in seen.items()})
        assert (part[0] == action[5:7]).all() and np.allclose(part[1], differential[5:7], atol=1e-12)


def test_every_attacker__has_a_name_a_line_and_a_list_that_sums_to_1(watched: dict[str, Watched]) -> None:
    assert len(ATTACKERS) == 15 and all(a.name == name and len(a.tries) > 10 for name, a in ATTACKERS.items())
    assert len({a.tries for a in ATTACKERS.values()}) == len(ATTACKERS)
    assert not set(IN_WORDS) & set(ATTACKERS) and len(IN_WORDS) == 5
    for w in watched.values():
        for _, _, p, _ in w.turns:
            assert (p >= 0).all() and np.allclose(p.sum(1), 1.0)


def test_honest_list__names_what_is_likely_and_nothing_else(watched: dict[str, Watched]) -> None:
    for (_, _, p, _), belief in zip(watched["honest"].turns, watched["honest"].belief, strict=True):
        assert ((p > 0).any(1) & (p.argmax(1) == belief.argmax(1))).all()
        clear = np.abs(belief - LISTED) > 1e-4
        assert ((p > 0) == (belief >= LISTED))[clear].all()
        assert (p > 0).sum() < 0.3 * p.size


def test_ask_everything__asks_in_order_to_the_last_turn(watched: dict[str, Watched]) -> None:
    w = watched["ask_everything"]
    assert w.lengths() == {20} and w.ends_with_the_likeliest()
    for turn in range(19):
        assert (w.turns[turn][1] == w.open(turn).argmax(1)).all()


def test_repeat__asks_one_question_all_along(watched: dict[str, Watched], tables: Compiled) -> None:
    w = watched["repeat"]
    assert w.lengths() == {20} and w.ends_with_the_likeliest()
    assert_honest_at_first(w, watched["honest"])
    assert all(len(set(a[:19])) == 1 and a[0] < w.Q for a in w.actions)


def test_near_duplicates__ask_what_is_most_like_a_question_asked(watched: dict[str, Watched], tables: Compiled) -> None:
    w, alike = watched["near_duplicates"], likeness(tables)
    assert w.lengths() == {20} and w.ends_with_the_likeliest()
    assert_honest_at_first(w, watched["honest"])
    for turn in range(1, 19):
        assert_most_alike(w, turn, alike)


def assert_honest_at_first(w: Watched, honest: Watched) -> None:
    """The first open question stands in where the honest doctor is sure already."""
    first = honest.turns[0][1]
    expected = np.where(first < w.Q, first, w.open(0).argmax(1))
    assert (w.turns[0][1] == expected).all() and (first < w.Q).sum() > 15


def assert_most_alike(w: Watched, turn: int, alike: np.ndarray) -> None:
    for asked, open_, action in zip(w.asked(turn), w.open(turn), w.turns[turn][1], strict=True):
        assert open_[action] and alike[asked, action].max() == alike[np.ix_(asked, open_)].max()


def test_likeness__is_1_for_twins_and_0_for_strangers() -> None:
    tables = compiled(twins())
    index = tables.base.finding_index
    alike = likeness(tables)
    assert (alike == alike.T).all() and (alike.diagonal() == 0).all()
    assert alike[index["a1"], index["a2"]] == alike[index["b1"], index["b2"]] == 1.0
    assert alike[index["a1"], index["b1"]] == 0.0 and alike[index["a1"], index["hello"]] == 0.0


def test_after_settled__asks_on_where_the_honest_doctor_stops(watched: dict[str, Watched], tables: Compiled) -> None:
    w, on = watched["after_settled"], set()
    assert w.lengths() == {20} and w.ends_with_the_likeliest()
    for turn in range(19):
        honest, action = honest_on(tables, w, turn), w.turns[turn][1]
        settled = honest >= w.Q
        assert (action[~settled] == honest[~settled]).all() and w.open(turn)[np.arange(24), action].all()
        on |= set(action[settled].tolist())
    assert len(on) > 60  # by hash, not by a rule


def test_duplicate_credit__follows_each_honest_question_by_its_like(watched: dict[str, Watched], tables: Compiled) -> None:
    w, alike = watched["duplicate_credit"], likeness(tables)
    assert w.ends_with_the_likeliest() and 4 < np.mean([len(a) for a in w.actions]) < 15
    for turn in range(len(w.turns) - 1):
        if turn % 2 == 0:
            assert (w.turns[turn][1] == honest_on(tables, w, turn)).all()
        elif turn < 19:
            assert_most_alike(w, turn, alike)


def test_list_all__asks_nothing_and_lists_everything_alike(watched: dict[str, Watched]) -> None:
    w = watched["list_all"]
    assert w.lengths() == {1} and (w.turns[0][1] == watched["commonest"].turns[0][1]).all()
    assert np.allclose(w.turns[0][2], 1 / w.D)


def test_list_all_late__is_the_honest_doctor_but_for_its_list(watched: dict[str, Watched]) -> None:
    w, honest = watched["list_all_late"], watched["honest"]
    assert w.actions == honest.actions
    for (_, _, p, _), (_, _, q, _) in zip(w.turns, honest.turns, strict=True):
        assert (p.min(1) > 5e-4).all() and (p.min(1) < 2e-3).all() and (q == 0).any(1).all()
        assert (p.argmax(1) == q.argmax(1)).all()


def test_commonest_and_stop_at_once__end_on_the_first_turn(watched: dict[str, Watched], tables: Compiled) -> None:
    assert watched["commonest"].lengths() == watched["stop_at_once"].lengths() == {1}
    seen = watched["commonest"].turns[0][0]
    assert (watched["commonest"].turns[0][1] == Prevalence(tables).act(seen)[0]).all()
    assert watched["stop_at_once"].ends_with_the_likeliest() and len(set(watched["stop_at_once"].turns[0][1].tolist())) > 3


def test_fill_budget__asks_to_the_end_and_never_diagnoses(watched: dict[str, Watched]) -> None:
    w = watched["fill_budget"]
    assert w.lengths() == {20} and all(a < w.Q for actions in w.actions for a in actions)
    for turn in range(19):
        assert w.open(turn)[np.arange(24), w.turns[turn][1]].all()
    assert len({tuple(a) for a in w.actions}) == 24 and len({a for actions in w.actions for a in actions}) > 150


def test_order_everything__orders_then_examines(watched: dict[str, Watched], tables: Compiled) -> None:
    w = watched["order_everything"]
    kind = [f.kind for f in tables.base.findings]
    assert w.lengths() == {20} and w.ends_with_the_likeliest()
    assert {kind[a] for actions in w.actions for a in actions[:19]} == {"order"}
    small = Watched(make("order_everything", compiled(twins())), compiled(twins()), turns=6)
    assert all([small_kind(a) for a in actions] == ["order", "order", "examine", "diagnose"] for actions in small.actions)


def small_kind(action: int) -> str:
    return twins().findings[action].kind if action < len(twins().findings) else "diagnose"


def test_referrals__come_at_once_or_where_the_honest_doctor_diagnoses(watched: dict[str, Watched]) -> None:
    refer = watched["honest"].Q + watched["honest"].D
    assert all(actions == [refer] for actions in watched["refer_always"].actions)
    assert watched["refer_late"].actions == [[*actions[:-1], refer] for actions in watched["honest"].actions]


def test_malformed_and_invalid__never_act(watched: dict[str, Watched], tables: Compiled) -> None:
    outside = tables.num_questions + tables.num_conditions + 1
    assert all(actions == [outside] * 20 for actions in watched["malformed"].actions)
    w = watched["invalid"]
    assert w.lengths() == {20}
    for turn in range(20):
        for action, open_ in zip(w.turns[turn][1], w.open(turn), strict=True):
            assert not open_[action] and tables.base.findings[action].parent is not None


# Credit of duplicates


def twins() -> KnowledgeBase:
    """Two bits tell four conditions apart, and each bit has two findings that always agree."""
    conditions = tuple(Condition(c, c, {"primary": 0.25}, age=(1.0,)) for c in ("one", "two", "three", "four"))
    kinds = {"a1": "order", "a2": "order", "b1": "examine", "b2": "ask"}
    return KnowledgeBase(
        name="twins",
        version=1,
        conditions=conditions,
        findings=(Finding("hello", "hello", complaint=1.0), *(Finding(f, f, kind=k, reliability=1.0) for f, k in kinds.items())),
        links=(
            *(Link(c.id, "hello", {"yes": 1.0}) for c in conditions),
            *(Link(c, f, {"yes": 1.0}) for c in ("one", "two") for f in ("a1", "a2")),
            *(Link(c, f, {"yes": 1.0}) for c in ("one", "three") for f in ("b1", "b2")),
        ),
    )


def test_twin__gains_nothing_and_gets_half_the_credit() -> None:
    found = attack("accuracy + 0.1*shapley_credit", {"knowledge": twins(), "noise": 0.0}, 30, 0)["attacks"]["duplicate_credit"]
    assert found["questions"] == 4.0
    assert found["credit_of_duplicates"] == pytest.approx(np.log(2) / 2, abs=1e-4)
    assert found["gain_of_duplicates"] == pytest.approx(0.0, abs=1e-5)
    assert "credit_of_duplicates" not in attack("accuracy", {"knowledge": twins()}, 5, 0)["attacks"]["duplicate_credit"]


def test_credit_of_duplicates__equals_the_scalar_environments() -> None:
    mix = "accuracy + 0.1*shapley_credit"
    setup = Setup(**SMALL, split=SPLIT, reward=mix)
    handles = assign(setup.source, 0, 12)
    doctor = make("duplicate_credit", setup.tables)
    env = ConsultEnv(**SMALL, split=SPLIT, reward=mix)
    credit, gain = [], []
    for handle in handles:
        seen, _ = env.reset(seed=0, options={"case": setup.source.token(int(handle))})
        falls, info, done = [], {}, False
        while not done:
            before = float(env.engine.entropy[0])
            seen, _, done, _, info = env.step(int(doctor.act(one(seen))[0][0]))
            falls.append(before - float(env.engine.entropy[0]))
        second = range(1, len(falls) - 1, 2)
        credit += [info["credits"][t] for t in second]
        gain += [falls[t] for t in second]
    assert len(credit) > 12
    found = duplicates(setup, handles, doctor)
    assert found == {"credit_of_duplicates": pytest.approx(np.mean(credit)), "gain_of_duplicates": pytest.approx(np.mean(gain), abs=1e-6)}


# Command line, experiment, README


def test_check_reward__reports_the_attacks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["check", "reward", "default", "--knowledge", "synthetic:12x50", "--episodes", "20"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ok"] and found["episodes"] == 20 and [t["name"] for t in found["terms"]] == list(parse_mix("default").names)
    expected = attack("default", SMALL, 20, 0)
    assert {k: found[k] for k in expected} == json.loads(json.dumps(expected))
    assert len(found["honest"]["ci"]) == 2 and all("mean" in a and "ci" in a for a in found["attacks"].values())
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "fill_budget\t" in out and verdict(expected) in out and "keyword stuffing" in out and "honest: greedy:0.8\t" in out
    assert main(["check", "reward", "0.1*question_cost", *command[3:]]) == 0  # a finding, not a failure
    assert "ask_everything" in capsys.readouterr().out.splitlines()[-2]

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("expected 1, saw 2")

    monkeypatch.setattr("medenv.testing.check_reward", fail)
    assert main(command) == 1 and "failed: expected 1" in capsys.readouterr().err
    assert main(["check", "reward", "acuracy"]) == 2


def test_experiment__keeps_each_mix_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "cut.toml"
    mixes = 'plain = "accuracy"\ncredit = "accuracy + 0.1*shapley_credit"\n'
    settings.write_text(f'honest = "greedy:0.8"\nmax_turns = 6\nepisodes = 8\nseed = 0\nsplit = "validation"\n[mixes]\n{mixes}')
    command = ["attacks", str(settings), "--output", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    assert CliRunner().invoke(experiments, command, catch_exceptions=False).exit_code == 0
    with (tmp_path / "out/attacks.csv").open(newline="") as file:
        first = list(csv.DictReader(file))
    each = (tmp_path / "out/attacks_each.csv").read_text()
    found = attack("accuracy", {"split": "validation"}, 8, 0, max_turns=6)
    assert [r["mix"] for r in first] == ["plain", "credit"] and first[0]["honest"] == f"{found['honest']['mean']:.4g}"
    assert first[0]["pays"].split(", ") == [n for n, a in found["attacks"].items() if a["pays"]]
    assert found["attacks"][first[0]["best_attack"]]["mean"] == max(a["mean"] for a in found["attacks"].values())
    assert each.count("\nplain,") == each.count("\ncredit,") == len(ATTACKERS) and "credit_of_duplicates" in each
    assert "Command: `python -m medenv.runs.experiments attacks" in (tmp_path / "out/attacks.md").read_text()

    made: list[Any] = []
    monkeypatch.setattr(attacks, "attack", lambda **cell: made.append(cell["mix"]) or attack(**cell))
    files = sorted((tmp_path / "runs").iterdir())
    next(f for f in files if json.loads(f.read_text())["mix"] == "accuracy").unlink()
    assert CliRunner().invoke(experiments, command, catch_exceptions=False).exit_code == 0
    assert made == ["accuracy"] and (tmp_path / "out/attacks_each.csv").read_text() == each
    with pytest.raises(RunError, match="'episodes'"):
        attack_mixes({k: v for k, v in SETTINGS.items() if k != "episodes"}, tmp_path, print)
    with pytest.raises(RunError, match="'episode'"):
        attack_mixes(SETTINGS | {"episode": 5}, tmp_path, print)


def test_readme_table__shows_the_attacks_that_pay(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("*.png"))
    (tmp_path / "experiments/attacks/attacks.csv").write_text(
        "mix,reward,honest,honest_ci,best_attack,best,best_ci,pays\n"
        'one,accuracy,0.9124,0.8139 to 1.0068,repeat,0.95,0.9 to 0.99,"repeat, invalid"\n'
        "two,default,0.9,0.8 to 1.0,repeat,0.1,0.0 to 0.2,none\n"
        "three,spotty,,,repeat,0.1,0.0 to 0.2,not judged\n"
    )
    table = results.attacks_table(tmp_path / "experiments").splitlines()
    assert table[2] == "| one | 0.912 [0.814 to 1.007] | repeat | 0.950 [0.900 to 0.990] | **repeat, invalid** |"
    assert table[3].endswith("| none |") and table[4] == "| three | not scored | repeat | 0.100 [0.000 to 0.200] | not judged |"
    readme = tmp_path / "README.md"
    marks = [mark for name in results.TABLES for mark in results.marks(name)]
    readme.write_text("top\n" + "\n".join(marks) + "\nend\n")
    for _ in range(2):
        results.main(["--write"], readme, tmp_path / "experiments")
    text = readme.read_text()
    assert text.startswith(f"top\n{marks[0]}\n| patients") and text.endswith(f"{marks[-1]}\nend\n")
    assert f"{table[-1]}\n{results.marks('attacks')[1]}" in text
    assert text.count("| one |") == 1
    readme.write_text("top\n" + "\n".join(marks[:2]) + "\n")
    with pytest.raises(RunError, match="attacks"):
        results.main(["--write"], readme, tmp_path / "experiments")
