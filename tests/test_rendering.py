"""Renderings: they say what happened, need no truth before the end, and come in the sizes that are promised."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import medenv  # noqa: F401  registers the environments
from medenv.cases.case import Case
from medenv.envs import rendering
from medenv.errors import EpisodeError
from medenv.knowledge.base import YES
from medenv.knowledge.synthetic import synthetic
from medenv.notice import NOTICE


def make(**arguments: Any) -> Any:
    return gym.make("MedConsult-v0", **{"knowledge": "synthetic:12x30", "max_turns": 6} | arguments).unwrapped


def ask_open(env: Any) -> Any:
    """Ask the first question that is open."""
    return env.step(int(np.flatnonzero(env.action_masks())[0]))


def test_text__tells_patient_turns_belief_and_footer() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=2)
    info = ask_open(env)[-1]
    said = env.render()
    assert said.startswith("Patient: ")
    assert info["reply"] in said and "nats]" in said
    likeliest = env.setup.base.conditions[int(np.argmax(env.engine.belief[0]))].name
    first_bar = next(line for line in said.splitlines() if "█" in line)
    assert first_bar.endswith(likeliest) and f"{env.engine.belief[0].max():.1%}" in first_bar
    assert sum("%  Condition" in line for line in said.splitlines()) == rendering.TOP
    assert said.endswith(NOTICE) and "not medical advice" in said
    assert "The patient had" not in said


@pytest.mark.parametrize(
    ("end", "words"), [("right", "(right)."), ("wrong", "(wrong)."), ("refer", "Referred."), ("turns", "Ended without a diagnosis")]
)
def test_text__tells_the_outcome(end: str, words: str) -> None:
    env = make(max_turns=2)
    env.reset(seed=5)
    truth, Q = int(env.engine.truth[0]), env.num_questions
    ask_open(env)
    last = {"right": Q + truth, "wrong": Q + (truth + 1) % env.num_conditions, "refer": Q + env.num_conditions, "turns": 0}[end]
    assert env.step(last)[2]
    said = rendering.text(env)
    assert words in said and f"The patient had: {env.setup.base.conditions[truth].name}" in said
    assert words in rendering.last_turn(env) and NOTICE in rendering.last_turn(env)
    assert ("(invalid: not open)" in said) == (end == "turns")


def test_human__prints_the_patient_and_every_turn(capsys: pytest.CaptureFixture[str]) -> None:
    env = make(render_mode="human")
    _, info = env.reset(seed=3)
    assert info["reply"] in capsys.readouterr().out
    info = ask_open(env)[-1]
    out = capsys.readouterr().out
    assert out.startswith("  1. ") and info["reply"] in out
    bars = [line for line in rendering.text(env).splitlines() if "%  Condition" in line]
    assert [line for line in out.splitlines() if "%  Condition" in line] == bars and len(bars) == rendering.TOP
    assert env.render() is None


@pytest.mark.parametrize("draw", [rendering.text, rendering.last_turn, rendering.picture])
def test_rendering__equal_histories_look_equal_before_the_end(draw: Any) -> None:
    base = synthetic(6, 20)
    roots = [f for f in base.findings if f.parent is None and f.type == "binary" and not f.sex]
    opening = next(f for f in roots if f.complaint)
    values = {f.id: ("no",) for f in roots} | {opening.id: (YES,)}
    cases = [Case(30, "female", "primary", truth.id, values, opening.id, "train") for truth in base.conditions[:2]]
    seen = []
    for case in cases:
        env = make(knowledge=base, cases=[case], noise=0.0)
        env.reset(seed=0)
        now = [draw(env)]
        for _ in range(3):
            ask_open(env)
            now.append(draw(env))
        seen.append(now)
        assert env.case.truth == case.truth
    for one, other in zip(*seen, strict=True):
        assert np.array_equal(one, other)


def test_picture__has_the_promised_shape_on_long_consultations() -> None:
    env = make(knowledge="synthetic:4x30", max_turns=30, render_mode="rgb_array")
    env.reset(seed=1)
    before = env.render()
    done = False
    while not done:
        done = ask_open(env)[2]
    after = env.render()
    assert before.shape == after.shape == (rendering.HEIGHT_PX, rendering.WIDTH_PX, 3)
    assert before.dtype == after.dtype == np.uint8
    assert after.flags.writeable and (before != after).any()


def test_picture__cuts_words_that_do_not_fit() -> None:
    from PIL import Image, ImageDraw, ImageFont

    page = rendering._Page(ImageDraw.Draw(Image.new("RGB", (100, 100))), {15: ImageFont.load_default(15)})
    lines = page.wrap("a few short words and " + "anticonstitutionnellement" * 8, 15, 90)
    assert len(lines) <= 4 and all(page.width(line, 15) <= 90 for line in lines[:-1])
    assert page.wrap("one " * 200, 15, 90)[-1].endswith("…")


def test_picture__names_the_extra_where_pillow_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"pip install .medenv\[plots\]"):
        env.render()


def test_rendering__before_reset_says_so() -> None:
    for draw in (rendering.text, rendering.last_turn, rendering.picture):
        with pytest.raises(EpisodeError, match="call reset"):
            draw(make())
