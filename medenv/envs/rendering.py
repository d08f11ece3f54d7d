"""A consultation for people: as text, line by line, or as a picture.

Everything is read from the environment's turns and from its belief, which is exact given what the patient has said. The
truth is shown after the end only; before it, two cases with equal histories look equal.

Does not cover: batches, recorded consultations, or the doctor's own differential.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from medenv.envs.steps import NONE
from medenv.errors import EpisodeError
from medenv.knowledge.base import SEXES
from medenv.notice import NOTICE

if TYPE_CHECKING:
    from medenv.envs.consult import ConsultEnv

TOP = 8  # conditions shown
WIDTH, BAR = 100, 30  # characters
HEIGHT_PX, WIDTH_PX = 720, 1280

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEFT, _RIGHT, _MARGIN, _SPLIT, _BUBBLE = 24, 1256, 24, 752, 500  # pixels: the conversation ends at _SPLIT
_INK, _PALE, _PAPER, _LINE = (32, 36, 44), (112, 120, 132), (250, 250, 248), (214, 216, 220)
_DOCTOR, _PATIENT, _BLUE, _ORANGE = (226, 236, 248), (255, 255, 255), (0, 114, 178), (213, 94, 0)  # the last two: Okabe and Ito 2008


def text(env: ConsultEnv) -> str:
    """The whole consultation: patient, turns with replies and nats gained, differential, and the outcome after the end.

    EpisodeError before the first `reset`.
    """
    _check(env)
    out = [_heading(env), f'Opening: "{_opening(env)}"', ""]
    for turn in _turns(env):
        out += _turn_lines(turn)
    out += ["" if env.turns else "No question asked yet.", *_belief_lines(env)]
    if _ended(env):
        out += ["", *_outcome(env)]
    return "\n".join([*out, "", NOTICE])


def last_turn(env: ConsultEnv) -> str:
    """What `human` prints after `reset` (the patient) and after each step (the turn; after the last the outcome), with the differential."""
    _check(env)
    out = _turn_lines(_turns(env)[-1]) if env.turns else [_heading(env), f'Opening: "{_opening(env)}"']
    out += _belief_lines(env)
    return "\n".join([*out, *_outcome(env), NOTICE] if _ended(env) else out)


def picture(env: ConsultEnv) -> NDArray[np.uint8]:
    """uint8 [720, 1280, 3]: the conversation on the left, differential and belief entropy over the turns on the right.

    gymnasium.error.DependencyNotInstalled without Pillow.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise gym.error.DependencyNotInstalled('render_mode="rgb_array" needs Pillow: pip install "medenv[plots]"') from error
    _check(env)
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), _PAPER)
    page = _Page(ImageDraw.Draw(image), {size: ImageFont.load_default(size) for size in (13, 15, 17, 20)})
    page.write(_LEFT, 18, _heading(env), 20, width=_RIGHT - _LEFT)
    page.draw.line((_LEFT, 52, _RIGHT, 52), fill=_LINE)
    _draw_conversation(page, env, top=64, bottom=HEIGHT_PX - 44)
    _draw_differential(page, env, top=64)
    _draw_entropy(page, env, top=432, bottom=574)
    if _ended(env):
        _draw_outcome(page, env, top=602)
    page.write(_LEFT, HEIGHT_PX - 30, NOTICE, 13, _PALE)
    return np.asarray(image, np.uint8).copy()


class _Turn(NamedTuple):
    """One turn in words. `reply` is empty where the patient said nothing; `gain` is None where nothing was asked."""

    number: int
    doctor: str
    reply: str
    gain: float | None


def _check(env: ConsultEnv) -> None:
    if not env.engine.started:
        raise EpisodeError("render before reset: call reset() first")


def _ended(env: ConsultEnv) -> bool:
    return bool(env.engine.done[0])


def _heading(env: ConsultEnv) -> str:
    age, sex, setting = env.engine.demographics[0]
    base = env.setup.base
    patient = f"Patient: {age:.0f} years, {SEXES[int(sex)]}, {list(base.settings)[int(setting)]}"
    return f"{patient} · turn {len(env.turns)} of {env.setup.max_turns} · {base.id}"


def _opening(env: ConsultEnv) -> str:
    complaint = int(env.engine.complaint[0])
    return env.setup.patient.opening(env.setup.base.findings[complaint] if complaint < env.num_questions else None)


def _turns(env: ConsultEnv) -> list[_Turn]:
    """Every turn so far; answers are worded again from their rows."""
    setup, out = env.setup, []
    meanings = setup.action_meanings()
    for number, (action, row, nats) in enumerate(env.turns, 1):
        if row == NONE:
            invalid = action < env.num_questions
            out.append(_Turn(number, f"{meanings[action]} (invalid: not open)" if invalid else meanings[action], "", None))
        else:
            finding = setup.base.findings[action]
            out.append(_Turn(number, finding.question or meanings[action], setup.patient.answer(finding, setup.values(row)), nats))
    return out


def _turn_lines(turn: _Turn) -> list[str]:
    lines = textwrap.wrap(f"{turn.number:>3}. {turn.doctor}", WIDTH, subsequent_indent="     ")
    if turn.gain is not None:
        lines += textwrap.wrap(f"{turn.reply} [{_tidy(turn.gain, 3)} nats]", WIDTH, initial_indent="     ", subsequent_indent="     ")
    return lines


def _belief_lines(env: ConsultEnv) -> list[str]:
    """The differential as bars, likeliest first."""
    left, entropy = int(env.engine.turns_left[0]), float(env.engine.entropy[0])
    bars = [f"  {_bar(p)} {p:6.1%}  {name}" for name, p in _differential(env)]
    return [f"Belief given what was said ({entropy:.2f} nats; {left} turns left)", *bars]


def _tidy(nats: float, digits: int) -> str:
    """A signed number of nats, without a minus before 0."""
    return f"{round(nats, digits) + 0.0:+.{digits}f}"


def _differential(env: ConsultEnv) -> list[tuple[str, float]]:
    """The likeliest conditions of the environment's belief, ties by lowest index."""
    belief = env.engine.belief[0]
    order = np.argsort(-belief, kind="stable")[:TOP]
    return [(env.setup.base.conditions[d].name, float(belief[d])) for d in order]


def _bar(p: float) -> str:
    full, rest = divmod(round(p * BAR * 8), 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(BAR)


def _outcome(env: ConsultEnv) -> list[str]:
    """After the end: what the doctor decided, and what the patient had."""
    action, engine, conditions = env.turns[-1][0], env.engine, env.setup.base.conditions
    truth = int(engine.truth[0])
    diagnosis = action - env.num_questions
    if diagnosis < 0:
        verdict = "Ended without a diagnosis: no turn is left."
    elif action == engine.refer_action:
        verdict = "Referred."
    else:
        verdict = f"Diagnosis: {conditions[diagnosis].name} ({'right' if diagnosis == truth else 'wrong'})."
    return [verdict, f"The patient had: {conditions[truth].name} (belief at the end {float(engine.belief[0, truth]):.1%})."]


class _Page:
    """A drawing with its fonts, and text that is cut or wrapped to a width in pixels."""

    def __init__(self, draw: Any, fonts: dict[int, Any]) -> None:
        self.draw, self.fonts = draw, fonts

    def width(self, words: str, size: int) -> float:
        return float(self.draw.textlength(words, font=self.fonts[size]))

    def write(self, x: float, y: float, words: str, size: int, ink: tuple[int, int, int] = _INK, width: float = 1e9) -> None:
        """One line, cut with an ellipsis where it is wider than `width`."""
        if self.width(words, size) > width:
            while words and self.width(words + "…", size) > width:
                words = words[:-1]
            words += "…"
        self.draw.text((x, y), words, font=self.fonts[size], fill=ink)

    def wrap(self, words: str, size: int, width: float, most: int = 4) -> list[str]:
        """Lines no wider than `width`, at most `most`; a word that is wider by itself is cut when it is written."""
        lines: list[str] = [""]
        for word in words.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.width(longer, size) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"]


def _draw_conversation(page: _Page, env: ConsultEnv, top: int, bottom: int) -> None:
    """Bubbles, the newest turn at the bottom; the oldest turns give way, the opening stays."""
    blocks = [[(False, page.wrap(_opening(env), 15, _BUBBLE), "")]]
    for turn in _turns(env):
        blocks.append([(True, page.wrap(f"{turn.number}. {turn.doctor}", 15, _BUBBLE), "")])
        if turn.gain is not None:
            blocks[-1].append((False, page.wrap(turn.reply, 15, _BUBBLE), f"{_tidy(turn.gain, 2)} nats"))
    heights = [sum(20 * len(lines) + 16 for _, lines, _ in block) for block in blocks]
    first, room = len(blocks), bottom - top - heights[0] - 26
    while first > 1 and room >= heights[first - 1]:
        first -= 1
        room -= heights[first]
    y = _draw_block(page, blocks[0], top)
    if first > 1:
        page.write(_LEFT + 10, y, "… earlier turns are not shown", 13, _PALE)
        y += 26
    for block in blocks[first:]:
        y = _draw_block(page, block, y)


def _draw_block(page: _Page, block: list[tuple[bool, list[str], str]], y: int) -> int:
    """The bubbles (by the doctor?, lines, note) of one turn; returns where the next one begins."""
    for by_doctor, lines, note in block:
        wide = min(_BUBBLE, max(page.width(line, 15) for line in lines)) + 20
        x = _SPLIT - _MARGIN - wide if by_doctor else _LEFT
        page.draw.rounded_rectangle((x, y, x + wide, y + 20 * len(lines) + 10), 8, fill=_DOCTOR if by_doctor else _PATIENT, outline=_LINE)
        for k, line in enumerate(lines):
            page.write(x + 10, y + 4 + 20 * k, line, 15, width=_BUBBLE)
        page.write(x + wide + 8, y + 5, note, 13, _PALE)
        y += 20 * len(lines) + 16
    return y


def _draw_differential(page: _Page, env: ConsultEnv, top: int) -> None:
    page.write(_SPLIT + _MARGIN, top, "Belief over conditions, given what was said", 17)
    left, bar = _SPLIT + _MARGIN + 250, 160
    for k, (name, p) in enumerate(_differential(env)):
        y = top + 36 + 38 * k
        page.write(_SPLIT + _MARGIN, y + 3, name, 15, width=240)
        page.draw.rectangle((left, y, left + bar, y + 24), fill=_PATIENT, outline=_LINE)
        page.draw.rectangle((left, y, left + max(1.0, bar * p), y + 24), fill=_BLUE)
        page.write(left + bar + 10, y + 3, f"{p:.1%}", 15)


def _draw_entropy(page: _Page, env: ConsultEnv, top: int, bottom: int) -> None:
    """Belief entropy after the opening and after each turn, as columns on one scale from 0."""
    gains = np.array([nats for _, _, nats in env.turns])
    entropy = float(env.engine.entropy[0]) + np.append(np.cumsum(gains[::-1])[::-1], 0.0)
    left, highest = _SPLIT + _MARGIN, float(np.log(max(env.num_conditions, 2)))
    page.write(left, top - 30, f"Belief entropy: {entropy[-1]:.2f} of at most {highest:.2f} nats", 17)
    step = (_RIGHT - left) / (env.setup.max_turns + 1)
    page.draw.rectangle((left, top, _RIGHT, bottom), fill=_PATIENT, outline=_LINE)
    for k, h in enumerate(np.clip(entropy / highest, 0.0, 1.0)):
        x = left + k * step
        fill = _ORANGE if k == len(entropy) - 1 else _BLUE
        page.draw.rectangle((x + 1, bottom - max(1.0, h * (bottom - top - 2)), x + max(1.0, step - 1), bottom), fill=fill)
    page.write(left, bottom + 3, "opening", 13, _PALE)
    last = f"turn {env.setup.max_turns}"
    page.write(_RIGHT - page.width(last, 13), bottom + 3, last, 13, _PALE)


def _draw_outcome(page: _Page, env: ConsultEnv, top: int) -> None:
    left = _SPLIT + _MARGIN
    page.draw.rounded_rectangle((left, top, _RIGHT, top + 66), 8, fill=_PATIENT, outline=_ORANGE, width=2)
    for k, line in enumerate(_outcome(env)):
        page.write(left + 12, top + 9 + 26 * k, line, 15, width=_RIGHT - left - 24)
