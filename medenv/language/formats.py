"""How a doctor's message is laid out: plain sentences, tags, labels, JSON tool calls, and the layouts of published systems.

A format reads a message as parts, texts that ask, diagnose or refer, or that are ordinary speech; and writes one of them. What a
text means is not its business.

| name | as in | asks | orders and examines | concludes |
| --- | --- | --- | --- | --- |
| plain | | `Do you have a cough?` | `Order: ECG` | `Diagnosis: Croup` |
| tags | SDBench | `<question>…</question>` | `<test>…</test>` | `<diagnosis>…</diagnosis>`, `<refer>…</refer>` |
| answer | DoctorAgent-RL, Doctor-R1 | `<think>…</think><answer>Question: …</answer>` | the same | `<answer>Diagnosis: …</answer>` |
| agentclinic | AgentClinic | plain | `REQUEST TEST: [ECG]` | `DIAGNOSIS READY: [Croup]` |
| promed | ProMed | `question: …` | the same | `answer: …` |
| json | tool calls | `{"name": "ask", "arguments": {"finding": "cough"}}` | the same | `diagnose`, `refer` |
| any | | reads all of these, writes plain | | |

Does not cover: images, recommendations of treatment (read past), streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from medenv.errors import unknown


class Part(NamedTuple):
    """A piece of a message. `kind`: ask, diagnose, refer, say (ordinary speech), or none (read past)."""

    kind: str
    text: str


class Format(NamedTuple):
    """`read(message)` gives its parts; `write(kind, said, name, id)` one message, for a kind of finding or diagnose or refer, from an
    ordinary sentence, a name and an id.
    """

    name: str
    read: Callable[[str], list[Part]]
    write: Callable[[str, str, str, str], str]


THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(
    r"<(question|ask|test|examine|order|diagnosis|diagnose|refer|referral|answer)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE
)
_LABEL = re.compile(
    r"^[ \t*#>-]*(question|ask|request test|answer|(?:final |my |most likely )?diagnosis(?: ready)?|recommendation)[ \t*]*[:=][ \t*]*",
    re.MULTILINE | re.IGNORECASE,
)
_KINDS = {
    **dict.fromkeys(("question", "ask", "test", "examine", "order", "request test", "request_test"), "ask"),
    **dict.fromkeys(("diagnosis", "diagnose", "answer", "recommendation"), "diagnose"),
    **dict.fromkeys(("refer", "referral"), "refer"),
}
_JSON_STARTS = 50  # places in a message at which JSON is looked for


def _kind(label: str) -> str:
    """Of a label, a tag or a tool's name; empty for another word."""
    label = label.lower().strip()
    return "diagnose" if "diagnosis" in label else _KINDS.get(label, "")


def _labels(message: str) -> list[Part]:
    """Lines that begin with a label, and what is said before the first. After a diagnosis a recommendation is read past."""
    parts, last = [], Part("say", "")
    end = 0
    for match in [*_LABEL.finditer(message), None]:
        text = message[end : match.start() if match else None].strip()
        if text:
            parts.append(last._replace(text=text))
        if match is None:
            return parts
        read_past = match[1].lower() == "recommendation" and any(p.kind == "diagnose" for p in parts)
        last, end = Part("none" if read_past else _kind(match[1]), ""), match.end()
    return parts


def _strictly_labels(message: str) -> list[Part]:
    return [p for p in _labels(message) if p.kind != "say"]


def _tags(message: str) -> list[Part]:
    parts: list[Part] = []
    for match in _TAG.finditer(message):
        tag, text = match[1].lower(), match[2].strip()
        parts += _labels(text) if tag == "answer" else [Part(_kind(tag), text)]
    return parts


def _json(message: str) -> list[Part]:
    return [part for call in _objects(message) for part in _calls(call)]


def _objects(message: str) -> Iterator[Any]:
    """The JSON objects and lists that stand in a message, whatever is around them."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_JSON_STARTS):
        starts = [i for i in (message.find("{", at), message.find("[", at)) if i >= 0]
        if not starts:
            return
        try:
            found, at = decoder.raw_decode(message, min(starts))
            yield found
        except (ValueError, RecursionError):
            at = min(starts) + 1


def _calls(call: Any, depth: int = 0) -> Iterator[Part]:
    """{"name": "ask", "arguments": {…}}, {"ask": "fever"}, {"function": {…}}, {"tool_calls": […]}, and lists of them."""
    if isinstance(call, list):
        for each in call if depth < 4 else ():
            yield from _calls(each, depth + 1)
    elif isinstance(call, dict):
        inner = next((call[k] for k in ("tool_calls", "function", "function_call") if isinstance(call.get(k), dict | list)), None)
        name = next((call[k] for k in ("name", "action", "tool") if isinstance(call.get(k), str)), "")
        if inner is not None and depth < 4:
            yield from _calls(inner, depth + 1)
        elif _kind(name):
            yield from _texts(
                _kind(name), next((call[k] for k in ("arguments", "parameters", "input", "finding", "condition") if k in call), "")
            )
        else:
            for key, value in call.items():
                if _kind(key):
                    yield from _texts(_kind(key), value)


def _texts(kind: str, value: Any) -> Iterator[Part]:
    """The texts among a call's arguments, which may be JSON in a string."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = next(_objects(value), "")
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    texts = [t for v in values for t in (v if isinstance(v, list) else [v]) if isinstance(t, str)]
    yield from (Part(kind, t) for t in (texts or [""] if kind == "refer" else texts))


def _any(message: str) -> list[Part]:
    return (_json(message) if "{" in message else []) or (_tags(message) if "<" in message else []) or _labels(message)


def _write_plain(kind: str, said: str, name: str, id: str) -> str:
    return said


def _write_tags(kind: str, said: str, name: str, id: str) -> str:
    tag = {"ask": "question", "diagnose": "diagnosis", "refer": "refer"}.get(kind, "test")
    return f"<{tag}>{said if tag in ('question', 'refer') else name}</{tag}>"


def _write_answer(kind: str, said: str, name: str, id: str) -> str:
    text = {"diagnose": f"Diagnosis: {name}", "refer": f"Recommendation: {said}"}.get(kind, f"Question: {said}")
    return f"<think></think><answer>{text}</answer>"


def _write_agentclinic(kind: str, said: str, name: str, id: str) -> str:
    label = {"diagnose": "DIAGNOSIS READY", "examine": "REQUEST TEST", "order": "REQUEST TEST"}.get(kind)
    return f"{label}: [{name}]" if label else said


def _write_promed(kind: str, said: str, name: str, id: str) -> str:
    return {"diagnose": f"answer: {name}", "refer": f"answer: {said}"}.get(kind, f"question: {said}")


def _write_json(kind: str, said: str, name: str, id: str) -> str:
    tool = {"diagnose": ("diagnose", {"condition": id}), "refer": ("refer", {})}.get(kind, ("ask", {"finding": id}))
    return json.dumps({"name": tool[0], "arguments": tool[1]}, ensure_ascii=False)


FORMATS = {
    f.name: f
    for f in (
        Format("plain", _labels, _write_plain),
        Format("tags", _tags, _write_tags),
        Format("answer", _tags, _write_answer),
        Format("agentclinic", _labels, _write_agentclinic),
        Format("promed", _strictly_labels, _write_promed),
        Format("json", _json, _write_json),
        Format("any", _any, _write_plain),
    )
}


def format_named(format: str | Format) -> Format:
    """The format of this name (or one of your own); an unknown name proposes the closest."""
    if isinstance(format, Format):
        return format
    if format not in FORMATS:
        raise unknown("format", str(format), FORMATS)
    return FORMATS[format]
